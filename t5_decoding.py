"""T5's generation: greedy, sampling, and beam search as the original's.

    ids = beam_search(model, src, mask=src != PAD)

The functions ask a Decoder for the next token's logits. The one here runs the model's own forward over all tokens so
far; fast.t5 has the same functions with a Decoder that caches keys and values.

Letters in the shape comments: those of t5_pytorch.py, and n beams.
"""

import contextlib
import math

import torch

from formats.errors import BadInput
from t5_pytorch import EOS, PAD, START, require_finite


class Decoder:
    """Reads tokens one position at a time, for n beams of each source at once, and answers with logits.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s] or None; length: most positions; beams: n.
    """

    def __init__(self, model, src, mask, length, beams=1):
        self.model = model
        self.memory = model.encode(src, mask).repeat_interleave(beams, 0)               # [b, s, d] -> [bn, s, d]
        self.memory_mask = None if mask is None else mask.repeat_interleave(beams, 0)
        self.tokens = src.new_empty(len(src), beams, 0, dtype=torch.int64)

    def step(self, tokens, parents=None):
        """Read one more token per beam.

        Args:
            tokens: int [b, n].
            parents: int [b, n], the beam each continues; None: each itself.
        Returns:
            logits of the next token, float [b, n, v].
        """
        if parents is not None:
            self.tokens = self.tokens.gather(1, parents[..., None].expand_as(self.tokens))
        self.tokens = torch.cat([self.tokens, tokens[..., None]], -1)                   # [b, n, t]
        x = self.model.embed_target(self.tokens.flatten(0, 1))                          # [bn, t, d]
        x = self.model.decoder(x, None, self.memory, self.memory_mask)[:, -1]
        return self.model.logits(require_finite(x)).unflatten(0, tokens.shape).float()  # [bn, v] -> [b, n, v]


@contextlib.contextmanager
def evaluation_mode(model):
    """No gradients and no dropout; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.inference_mode():
            yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def _require(name, value, fits, allowed):
    """BadInput unless the argument fits."""
    if not fits:
        raise BadInput(f"{name} is {value}, expected {allowed}")


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Draw one id per row.

    Args:
        logits: [b, v].
        temperature: divides the logits; 0 takes the most probable id.
        top_k: draw from the k most probable only; 0 from all.
        top_p: draw from the smallest set of most probable ids that together have this probability.
        generator: torch.Generator, for draws that repeat.
    Returns:
        int64 [b].
    """
    if temperature == 0:
        return logits.argmax(-1)
    v = logits.shape[-1]
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature             # at most 0: nothing overflows
    logits, ids = logits.nan_to_num(nan=0.0).topk(min(top_k or v, v))           # largest first
    probabilities = logits.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    drawn = torch.multinomial(probabilities * (before < top_p), 1, generator=generator)  # [b, 1]
    return ids.gather(1, drawn).squeeze(1)


def generate(model, src, mask=None, max_length=None, temperature=0.0, top_k=0, top_p=1.0, generator=None,
             decoder=None):
    """Greedy decoding, or sampling with temperature > 0 (TF function `sample_autoregressive`).

    Ends when every row has an EOS or max_length is reached.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s], True = keep, or None.
        max_length: most tokens, EOS included; None: as many as the source has (the original's rule).
        temperature, top_k, top_p, generator: see sample.
        decoder: the class that answers with logits; Decoder by default.
    Returns:
        int64 [b, at most max_length], 0 after the first EOS.
    Raises:
        BadInput: an argument out of range.
    """
    max_length = src.shape[1] if max_length is None else max_length
    _require("max_length", max_length, max_length >= 1, "at least 1")
    _require("temperature", temperature, 0 <= temperature < math.inf, "0 or more")
    _require("top_k", top_k, top_k >= 0, "0 (all) or more")
    _require("top_p", top_p, 0 < top_p <= 1, "more than 0 and at most 1")
    with evaluation_mode(model):
        decoder = (decoder or Decoder)(model, src, mask, max_length)
        token = src.new_full((len(src), 1), START, dtype=torch.int64)
        done = torch.zeros_like(token, dtype=torch.bool)
        ids = []
        for _ in range(max_length):
            logits = decoder.step(token)[:, 0]                                  # [b, 1, v] -> [b, v]
            token = sample(logits, temperature, top_k, top_p, generator)[:, None]
            ids.append(token.masked_fill(done, PAD))
            done |= token == EOS
            if done.all():
                break
    return torch.cat(ids, 1)  # outside of inference mode: a tensor that a loss accepts


def beam_search(model, src, mask=None, max_length=None, beams=4, alpha=0.6, decoder=None):
    """Beam search as the original's (TF function `beam_search`; other libraries' differ).

    A hypothesis of n tokens, EOS included, scores log probability / ((5 + n) / 6)^alpha. Each step
    takes the 2 * beams best continuations; those that end compete for the finished places, the best
    others stay alive. All rows stop together: at the length limit, or once no alive hypothesis of
    any row could still beat its worst finished one.

    Args:
        model, src, mask: as generate.
        max_length: most tokens; None: as many as the source has. Never more than
            int(1.5 * longest source + 10), as in the original.
        beams: hypotheses kept per row; alpha: exponent of the length penalty.
        decoder: as generate.
    Returns:
        int64 [b, at most max_length], the best hypothesis of each row, 0 after EOS: the best
        finished one, or the best alive one where none has finished.
    Raises:
        BadInput: an argument out of range.
    """
    b, device = len(src), src.device
    longest = src.shape[1] if mask is None else int(mask.sum(1).max())
    max_length = min(src.shape[1] if max_length is None else max_length, int(1.5 * longest + 10))
    _require("max_length", max_length, max_length >= 1, "at least 1")
    _require("beams", beams, beams >= 1, "at least 1")
    _require("alpha", alpha, 0 <= alpha < math.inf, "0 or more")
    with evaluation_mode(model):
        decoder = (decoder or Decoder)(model, src, mask, max_length, beams)
        alive = torch.zeros(b, beams, max_length, dtype=torch.int64, device=device)
        alive_score = torch.full((b, beams), -math.inf, device=device)          # log probability
        alive_score[:, 0] = 0                                                   # at first all beams are one
        finished = alive.clone()
        finished_score = torch.full_like(alive_score, -math.inf)                # -inf: an empty place
        tokens, parents = torch.full((b, beams), START, device=device), None
        for i in range(max_length):
            log_p = decoder.step(tokens, parents).log_softmax(-1) + alive_score[..., None]  # [b, n, v]
            v = log_p.shape[-1]
            score, index = log_p.flatten(1).topk(2 * beams)                     # [b, n*v] -> [b, 2n]
            beam, token = index // v, index % v
            candidates = alive.gather(1, beam[..., None].expand(-1, -1, max_length))        # [b, 2n, length]
            candidates[..., i] = token
            ends = token == EOS

            penalty = ((5 + i + 1) / 6) ** alpha
            all_finished = torch.cat([finished, candidates], 1)
            all_scores = torch.cat([finished_score, (score / penalty).masked_fill(~ends, -math.inf)], 1)
            finished_score, best = all_scores.topk(beams)                       # [b, n + 2n] -> [b, n]
            finished = all_finished.gather(1, best[..., None].expand(-1, -1, max_length))

            alive_score, best = score.masked_fill(ends, -math.inf).topk(beams)  # [b, 2n] -> [b, n]
            alive = candidates.gather(1, best[..., None].expand(-1, -1, max_length))
            tokens, parents = token.gather(1, best), beam.gather(1, best)

            worst = finished_score.masked_fill(finished_score == -math.inf, math.inf).amin(1)
            bound = alive_score[:, 0] / ((5 + max_length) / 6) ** alpha
            if ((worst > bound) & (worst < math.inf)).all():
                break
    return torch.where(finished_score[:, :1] > -math.inf, finished[:, 0], alive[:, 0])[:, :i + 1]
