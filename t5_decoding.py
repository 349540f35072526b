"""T5's generation: greedy, sampling, and beam search as the original's, with cached keys and values.

    ids = beam_search(model, src, mask=src != PAD)

Letters in the shape comments: those of t5_pytorch.py, and n beams.
"""

import contextlib
import math

import torch

from fast.matmul import linear
from formats.errors import BadInput
from t5_pytorch import EOS, MASKED, PAD, START, additive


class KeysValues:
    """Keys and values of the positions decoded so far, in buffers [b, h, size, k] of their final size."""

    def __init__(self, size):
        self.size, self.length = size, 0

    def extend(self, k, v):
        """Add k, v [b, h, n, k]; return all so far, [b, h, j, k] each."""
        if self.length == 0:
            self.k, self.v = (x.new_empty(*x.shape[:2], self.size, x.shape[3]) for x in (k, v))
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end] = k
        self.v[:, :, self.length:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class Decoder:
    """Decodes one position at a time, for n beams of each source at once.

    The beams of a source stand where a sequence's positions stand otherwise, [b, n, d]. So
    cross-attention reads one copy of the source's keys and values, and so does self-attention: its
    cache holds the positions of all beams, position by position, and each beam has a mask of the
    entries that are its own past. When beams are reordered, only that mask moves.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s] or None; length: most positions; beams: n.
    """

    def __init__(self, model, src, mask, length, beams=1):
        self.model, self.beams, self.length, self.position = model, beams, length, 0
        memory = model.encode(src, mask)
        self.memory = [block.keys_values(memory) for block in model.decoder.block]
        self.memory_bias = None if mask is None else additive(mask, memory.dtype)
        self.caches = [KeysValues(length * beams) for _ in model.decoder.block]
        self.bias = model.decoder.bias(1, length).repeat_interleave(beams, dim=-1)  # [1, h, 1, length*n]
        self.past = self.bias.new_full((len(src), 1, beams, length * beams), MASKED) if beams > 1 else None

    def step(self, tokens, parents=None):
        """Read one more token per beam.

        Args:
            tokens: int [b, n].
            parents: int [b, n], the beam each continues; None: each itself.
        Returns:
            logits of the next token, float [b, n, v].
        """
        model, n, end = self.model, self.beams, (self.position + 1) * self.beams
        bias = self.bias[..., (self.length - self.position - 1) * n:]           # [1, h, 1, end]
        if n > 1:
            if parents is not None:
                self.past = self.past.gather(2, parents[:, None, :, None].expand_as(self.past))
            self.past[:, 0, :, end - n:end].diagonal(dim1=1, dim2=2).zero_()
            bias = bias + self.past[..., :end]                                  # [b, h, n, end]
        x = model.embed_target(tokens)                                          # [b, n, d]
        for block, memory, cache in zip(model.decoder.block, self.memory, self.caches, strict=True):
            x = block(x, bias, memory, self.memory_bias, cache=cache)
        self.position += 1
        return linear(model.before_logits(model.decoder.final_layer_norm(x)), model.logits_weight()).float()


@contextlib.contextmanager
def _decoding(model):
    """No gradients and no dropout; the model's mode comes back afterwards."""
    training = model.training
    try:
        with torch.inference_mode():
            yield model.eval()
    finally:
        model.train(training)


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


def generate(model, src, mask=None, max_length=None, temperature=0.0, top_k=0, top_p=1.0, generator=None):
    """Greedy decoding, or sampling with temperature > 0 (TF function `sample_autoregressive`).

    Ends when every row has an EOS or max_length is reached.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s], True = keep, or None.
        max_length: most tokens, EOS included; None: as many as the source has (the original's rule).
        temperature, top_k, top_p, generator: see sample.
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
    with _decoding(model):
        decoder = Decoder(model, src, mask, max_length)
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
    return torch.cat(ids, 1)


def beam_search(model, src, mask=None, max_length=None, beams=4, alpha=0.6):
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
    with _decoding(model):
        decoder = Decoder(model, src, mask, max_length, beams)
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
