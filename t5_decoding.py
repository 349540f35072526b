"""T5's generation: greedy, sampling, and beam search as the original's.

    ids = beam_search(model, src, mask=src != PAD)                                          # [b, t], the best answers
    ids, scores = beam_search(model, src, src != PAD, n_best=3, return_scores=True)         # [b, 3, t], [b, 3]

The functions ask a Decoder for the next token's logits. The one here runs the model's own forward over all tokens so
far; fast.t5 has the same functions with a Decoder that caches keys and values.

Letters in the shape comments: those of t5_pytorch.py, and n beams.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from formats.errors import BadInput
from t5_pytorch import EOS, PAD, START, T5, require_finite

__all__ = ["Decoder", "Hypotheses", "beam_search", "evaluation_mode", "generate", "sample", "unwrapped"]

STOP_EVERY = 8  # tokens between two questions to `stop`
LARGEST_PENALTY = 1e30  # scores divided by it are still float32 numbers that can be told apart


class Decoder:
    """Reads tokens one position at a time, for n beams of each source at once, and answers with logits.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s] or None; length: most positions; beams: n.
    """

    def __init__(self, model: T5, src: torch.Tensor, mask: torch.Tensor | None, length: int, beams: int = 1):
        self.model = model
        self.memory = model.encode(src, mask).repeat_interleave(beams, 0)               # [b, s, d] -> [bn, s, d]
        self.memory_mask = None if mask is None else mask.repeat_interleave(beams, 0)
        self.tokens = src.new_empty(len(src), beams, 0, dtype=torch.int64)

    def step(self, tokens: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        """Read one more token per beam.

        Args:
            tokens: int [b, n].
            parents: int [b, n], the beam each continues; None: each itself.
        Returns:
            logits of the next token, [b, n, v], in the model's precision.
        """
        if parents is not None:
            self.tokens = self.tokens.gather(1, parents[..., None].expand_as(self.tokens))
        self.tokens = torch.cat([self.tokens, tokens[..., None]], -1)                   # [b, n, t]
        x = self.model.embed_target(self.tokens.flatten(0, 1))                          # [bn, t, d]
        x = self.model.decoder(x, None, self.memory, self.memory_mask)[:, -1]
        return self.model.logits(require_finite(x)).unflatten(0, tokens.shape)  # [bn, v] -> [b, n, v]


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model in a wrapper that has its forward alone: DistributedDataParallel, DataParallel, AveragedModel."""
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel)
    while isinstance(model, wrappers):
        model = model.module
    return model


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
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


def require_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raise BadInput for arguments of `sample` that are out of range, or mean nothing at temperature 0."""
    _require("temperature", temperature, 0 <= temperature < math.inf, "0 or more")
    _require("top_k", top_k, top_k >= 0, "0 (all) or more")
    _require("top_p", top_p, 0 < top_p <= 1, "more than 0 and at most 1")
    if temperature == 0 and (top_k or top_p < 1):
        name, value = ("top_k", top_k) if top_k else ("top_p", top_p)
        raise BadInput(f"{name} is {value}, but at temperature 0 nothing is drawn: give a temperature above 0 too")


def stopped(stop: Callable[[list[int]], bool], rows: torch.Tensor) -> torch.Tensor:
    """bool [b, 1]: for each row of ids [b, t], whether `stop` (see generate) says that it needs no more."""
    return torch.tensor([[bool(stop(row))] for row in rows.tolist()], dtype=torch.bool, device=rows.device).view(-1, 1)


def _prefix_ids(prefix, src):
    """The prefix (see generate) as int64 [b, p]; without one [b, 0]."""
    if prefix is None:
        return src.new_zeros(len(src), 0, dtype=torch.int64)
    prefix = torch.as_tensor(prefix, dtype=torch.int64, device=src.device)
    if prefix.dim() not in (1, 2) or (prefix.dim() == 2 and len(prefix) != len(src)):
        raise BadInput(f"prefix has the shape {list(prefix.shape)}, expected [length], or [batch, length] with batch "
                       f"{len(src)}")
    return prefix.expand(len(src), -1)


def sample(logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
           generator: torch.Generator | None = None) -> torch.Tensor:
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


def generate(model: T5, src: torch.Tensor, mask: torch.Tensor | None = None, max_length: int | None = None,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None,
             decoder: type | None = None, prefix: torch.Tensor | None = None,
             stop: Callable[[list[int]], bool] | None = None,
             return_scores: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Greedy decoding, or sampling with temperature > 0 (TF function `sample_autoregressive`).

    Ends when every row has an EOS or max_length is reached.

    Args:
        model: a T5, or one in a wrapper, see unwrapped; src: int [b, s]; mask: bool [b, s], True = keep, or None.
        max_length: most tokens after the prefix, EOS included; None: as many as the source has (the original's rule).
        temperature, top_k, top_p, generator: see sample.
        decoder: the class that answers with logits; Decoder by default.
        prefix: int [p] or [b, p], without EOS and padding: how every answer, or each, begins.
        stop: function of a row's ids so far (a list, without the prefix): whether it needs no more. It is asked
            every STOP_EVERY tokens, so an answer may go on for a few more than it wants.
        return_scores: return the scores too.
    Returns:
        ids: int64 [b, at most p + max_length], 0 after the first EOS, and where `stop` ended a row.
        scores, if asked for: float32 [b], the log-probability of each row's ids after the prefix, EOS included, in
            nats: the model's own, whatever was drawn from.
    Raises:
        BadInput: an argument out of range.
    """
    model, max_length = unwrapped(model), src.shape[1] if max_length is None else max_length
    _require("max_length", max_length, max_length >= 1, "at least 1")
    require_sampling(temperature, top_k, top_p)
    prefix = _prefix_ids(prefix, src)
    scores = torch.zeros(len(src), device=src.device)
    if not len(src):
        return (prefix.clone(), scores) if return_scores else prefix.clone()
    with evaluation_mode(model):
        decoder = (decoder or Decoder)(model, src, mask, prefix.shape[1] + max_length)
        *read, token = F.pad(prefix, (1, 0), value=START).split(1, 1)
        for forced in read:
            decoder.step(forced)
        done = torch.zeros_like(token, dtype=torch.bool)
        ids = []
        for _ in range(max_length):
            logits = decoder.step(token)[:, 0].float()  # argmax is slower in bfloat16: [b, 1, v] -> [b, v]
            token = sample(logits, temperature, top_k, top_p, generator)[:, None]
            if return_scores:
                scores += log_probs_of(token, logits).masked_fill(done[:, 0], 0)
            ids.append(token.masked_fill(done, PAD))
            done |= token == EOS
            if stop is not None and len(ids) % STOP_EVERY == 0:
                done |= stopped(stop, torch.cat(ids, 1))
            if done.all():
                break
    ids = torch.cat([prefix, *ids], 1)  # outside of inference mode: a tensor that a loss accepts
    return (ids, scores) if return_scores else ids


def log_probs_of(token: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The log-probability of a token [b, 1] by logits [b, v]: [b]."""
    return (logits.gather(1, token) - logits.logsumexp(1, keepdim=True))[:, 0]


def require_search(src: torch.Tensor, mask: torch.Tensor | None, max_length: int | None, beams: int, alpha: float,
                   n_best: int = 1) -> int:
    """Return the most tokens that an answer of beam_search may have, or raise BadInput for an argument out of range."""
    longest = src.shape[1] if mask is None or not len(src) else int(mask.sum(1).max())
    max_length = min(src.shape[1] if max_length is None else max_length, int(1.5 * longest + 10))
    _require("max_length", max_length, max_length >= 1, "at least 1")
    _require("beams", beams, beams >= 1, "at least 1")
    _require("alpha", alpha, 0 <= alpha < math.inf, "0 or more")
    limit = math.log(LARGEST_PENALTY) / math.log((6 + max_length) / 6)
    _require("alpha", alpha, alpha <= limit, f"at most {limit:.1f} where answers may have {max_length} tokens")
    _require("n_best", n_best, 1 <= n_best <= beams, f"1 to {beams}, the beams")
    return max_length


class Hypotheses:
    """The hypotheses of a beam search: n alive and n finished ones of each of b sources, from the best down.

    Attributes:
        alive: int64 [b, n, t], t the steps so far; alive_score: float32 [b, n], log probabilities.
        finished: int64 [b, n, t]; finished_score: float32 [b, n], over the length penalty; -inf: an empty place.
    """

    def __init__(self, b: int, beams: int, max_length: int, alpha: float, device: torch.device):
        self.beams, self.max_length, self.alpha = beams, max_length, alpha
        self.alive = torch.zeros(b, beams, 0, dtype=torch.int64, device=device)
        self.alive_score = torch.full((b, beams), -math.inf, device=device)
        self.alive_score[:, 0] = 0                                              # at first all beams are one
        self.finished, self.finished_score = self.alive.clone(), torch.full_like(self.alive_score, -math.inf)

    def penalty(self, n: int) -> float:
        """The length penalty of n tokens."""
        return ((5 + n) / 6) ** self.alpha

    def advance(self, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step.

        Args:
            log_p: float32 [b, n, v], the log probabilities of each alive hypothesis' next token.
        Returns:
            tokens int [b, n], the newest of the alive ones now; parents int [b, n], which of them each goes on from.
        """
        n = self.beams
        log_p, token = log_p.topk(min(2 * n, log_p.shape[-1]))  # of each; the best of all are among them: [b, n, m]
        score, index = (log_p + self.alive_score[..., None]).flatten(1).topk(2 * n)  # [b, n*m] -> [b, 2n]
        beam, token = index // log_p.shape[-1], token.flatten(1).gather(1, index)
        candidates = torch.cat([_rows(self.alive, beam), token[..., None]], 2)  # [b, 2n, t + 1]
        ends = token == EOS

        ended = (score / self.penalty(candidates.shape[2])).masked_fill(~ends, -math.inf)
        self.finished_score, best = torch.cat([self.finished_score, ended], 1).topk(n)  # [b, n + 2n] -> [b, n]
        self.finished = _rows(torch.cat([F.pad(self.finished, (0, 1)), candidates], 1), best)

        self.alive_score, best = score.masked_fill(ends, -math.inf).topk(n)     # [b, 2n] -> [b, n]
        self.alive = _rows(candidates, best)
        return token.gather(1, best), beam.gather(1, best)

    def are_final(self, n_best: int) -> torch.Tensor:
        """bool [b]: the n_best of a source have finished, and nothing alive could beat its worst finished one."""
        worst = self.finished_score.masked_fill(self.finished_score == -math.inf, math.inf).amin(1)
        bound = self.alive_score[:, 0] / self.penalty(self.max_length)
        return (worst > bound) & (self.finished_score[:, n_best - 1] > -math.inf)

    def best(self, n_best: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [b, n_best, t] and scores float32 [b, n_best]: the finished ones, then alive ones."""
        scores = torch.cat([self.finished_score, self.alive_score / self.penalty(self.alive.shape[2])], 1)
        # Both parts are sorted; empty places come last.
        place = torch.cat([(self.finished_score == -math.inf) * 2, torch.ones_like(self.alive_score)], 1)
        best = place.argsort(dim=1, stable=True)[:, :n_best]                    # [b, n + n] -> [b, n_best]
        return _rows(torch.cat([self.finished, self.alive], 1), best), scores.gather(1, best)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the sources alone; rows: int [number of them]."""
        for name in ("alive", "alive_score", "finished", "finished_score"):
            setattr(self, name, getattr(self, name)[rows])


def beam_search(model: T5, src: torch.Tensor, mask: torch.Tensor | None = None, max_length: int | None = None,
                beams: int = 4, alpha: float = 0.6, decoder: type | None = None, n_best: int = 1,
                return_scores: bool = False,
                prefix: torch.Tensor | None = None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Beam search as the original's (TF function `beam_search`; other libraries' differ).

    A hypothesis of n tokens, EOS included, scores log probability / ((5 + n) / 6)^alpha. Each step
    takes the 2 * beams best continuations; those that end compete for the finished places, the best
    others stay alive. All rows stop together: at the length limit, or once no alive hypothesis of
    any row could still beat its worst finished one, and n_best have finished.

    Args:
        model, src, mask: as generate.
        max_length: most tokens after the prefix; None: as many as the source has. Never more than
            int(1.5 * longest source + 10), as in the original.
        beams: hypotheses kept per row; alpha: exponent of the length penalty.
        decoder, prefix: as generate. Scores and lengths n are those of what follows the prefix.
        n_best: hypotheses returned per row, at most `beams`.
        return_scores: return the scores too.
    Returns:
        ids: int64 [b, at most p + max_length], the best hypothesis of each row, 0 after EOS: the best finished one, or
            the best alive one where none has finished. With n_best above 1: [b, n_best, ...], the finished ones from
            the best down, then, where too few have finished, alive ones (they have no EOS).
        scores, if asked for: float32 [b], or [b, n_best]; -inf: there is no such hypothesis.
    Raises:
        BadInput: an argument out of range.
    """
    model, b, device = unwrapped(model), len(src), src.device
    max_length = require_search(src, mask, max_length, beams, alpha, n_best)
    prefix = _prefix_ids(prefix, src)
    if not b:
        shape = (0,) if n_best == 1 else (0, n_best)
        ids, scores = prefix.new_zeros(*shape, prefix.shape[1]), torch.zeros(shape, device=device)
        return (ids, scores) if return_scores else ids
    with evaluation_mode(model):
        decoder = (decoder or Decoder)(model, src, mask, prefix.shape[1] + max_length, beams)
        *read, tokens = F.pad(prefix, (1, 0), value=START)[:, None].expand(-1, beams, -1).unbind(-1)
        for forced in read:
            decoder.step(forced)
        hypotheses, parents = Hypotheses(b, beams, max_length, alpha, device), None
        for _ in range(max_length):
            logits = decoder.step(tokens, parents)                              # [b, n, v]
            tokens, parents = hypotheses.advance(logits.log_softmax(-1, dtype=torch.float32))
            if hypotheses.are_final(n_best).all():
                break
    ids, scores = hypotheses.best(n_best)  # outside of inference mode: tensors that a loss accepts
    ids = torch.cat([prefix[:, None].expand(-1, n_best, -1), ids], 2)
    if n_best == 1:
        ids, scores = ids[:, 0], scores[:, 0]
    return (ids, scores) if return_scores else ids


def _rows(x, index):
    """x [b, m, t], index [b, n] -> [b, n, t]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
