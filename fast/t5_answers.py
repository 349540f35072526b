"""T5's answers to a batch of sources whose rows leave when they have finished: the ids of t5_decoding, every one.

    ids = generate(model, src, mask, max_length)            t5_decoding.generate, greedy
    ids = beam_search(model, src, mask, max_length)         t5_decoding.beam_search

An evaluation decodes many short answers and a few long ones. In t5_decoding a batch goes on at its full size until the
last of its rows has ended. Here what has ended is dropped from the caches. A row's answer does not depend on the
others' but for the rounding of products of another size.
"""

from functools import partial

import torch

import t5_decoding
from fast import t5
from fast.known import knows
from t5_decoding import Hypotheses, evaluation_mode, log_probs_of, require_search, unwrapped
from t5_pytorch import EOS, START

STATES_FOR = 8   # steps of greedy decoding before keys and values are made of the sources: most answers end before
LEAVE_AT = 0.75  # the share of rows that is left over when the others leave: each time all caches are copied


def _left(over):
    """int [m], the rows that go on, where some have to leave; else None. over: bool [b], True: it has ended."""
    on = (~over).nonzero()[:, 0]
    return on if len(on) <= LEAVE_AT * len(over) else None


def generate(model, src, mask=None, max_length=None, return_scores=False, decoder=None):
    """As t5_decoding.generate, greedy.

    Args:
        decoder: a class as fast.t5.Decoder, which it is by default.
    """
    model = unwrapped(model)
    if not (knows(model) and src.numel()):
        return t5_decoding.generate(model, src, mask, max_length, return_scores=return_scores)
    max_length = src.shape[1] if max_length is None else max_length
    with evaluation_mode(model):
        decoder = (decoder or partial(t5.Decoder, states_for=STATES_FOR))(model, src, mask, max_length)
        ids, scores = src.new_zeros(len(src), max_length, dtype=torch.int64), torch.zeros(len(src), device=src.device)
        place, token = torch.arange(len(src), device=src.device), torch.full_like(src[:, :1], START)
        over = torch.zeros_like(token[:, 0], dtype=torch.bool)
        for t in range(max_length):
            logits = decoder.step(token)[:, 0].float()                          # [b, 1, v] -> [b, v]
            token = logits.argmax(1, keepdim=True)
            ids[place, t] = token[:, 0].masked_fill(over, 0)
            if return_scores:
                scores[place] += log_probs_of(token, logits).masked_fill(over, 0)
            over = over | (token[:, 0] == EOS)
            on = _left(over)
            if on is not None:
                if not len(on):
                    break
                decoder.keep(on)
                place, token, over = place[on], token[on], over[on]
    ids = ids[:, :t + 1].clone()  # outside of inference mode: a tensor that a loss accepts
    return (ids, scores.clone()) if return_scores else ids


def beam_search(model, src, mask=None, max_length=None, beams=4, alpha=0.6, return_scores=False, decoder=None):
    """As t5_decoding.beam_search, of the best answer alone; decoder: see generate."""
    model = unwrapped(model)
    if not (knows(model) and src.numel()):
        return t5_decoding.beam_search(model, src, mask, max_length, beams, alpha, return_scores=return_scores)
    max_length = require_search(src, mask, max_length, beams, alpha)
    with evaluation_mode(model):
        decoder = (decoder or t5.Decoder)(model, src, mask, max_length, beams)
        ids, scores = src.new_zeros(len(src), max_length, dtype=torch.int64), torch.zeros(len(src), device=src.device)
        place, tokens, parents = torch.arange(len(src), device=src.device), src.new_full((len(src), beams), START), None
        hypotheses = Hypotheses(len(src), beams, max_length, alpha, src.device)
        for t in range(max_length):
            logits = decoder.step(tokens, parents)                              # [b, n, v]
            tokens, parents = hypotheses.advance(logits.log_softmax(-1, dtype=torch.float32))
            over = hypotheses.are_final(1)
            on = place[:0] if t + 1 == max_length else _left(over)
            if on is not None:
                best, score = hypotheses.best(1)
                ids[place, :t + 1], scores[place] = best[:, 0], score[:, 0]     # also of those that go on
                if not len(on):
                    break
                decoder.keep(on)
                hypotheses.keep(on)
                place, tokens, parents = place[on], tokens[on], parents[on]
    ids = ids[:, :t + 1].clone()  # outside of inference mode: a tensor that a loss accepts
    return (ids, scores.clone()) if return_scores else ids
