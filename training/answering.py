"""Answers of a T5 to many inputs: encoded, in batches of like length, shared out among the processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import t5_decoding
from fast import t5_answers
from fast.at_rest import WeightsAtRest
from formats import progress
from formats.errors import warn
from t5_pytorch import EOS, PAD
from training import sharding

__all__ = ["ALPHA", "DECODE_LENGTH", "answer", "batches", "encode", "pad", "unknown_signs", "warn_of_unknown_signs"]

DECODE_LENGTH = 128  # tokens of an answer at most, as in the original's evaluation
ROWS = 128           # rows times beams of a batch of short inputs: with so many, products run at their full rate
ALPHA = 0.6          # the paper's exponent of the beam search's length penalty


def pad(sequences: Sequence, device: Any = "cpu") -> torch.Tensor:
    """Return int64 [b, longest], lists or arrays of ids padded with PAD."""
    rows = np.full((len(sequences), max(map(len, sequences))), PAD, dtype=np.int64)
    for row, ids in zip(rows, sequences, strict=True):
        row[:len(ids)] = ids
    return torch.from_numpy(rows).to(device)


def encode(encoder: Any, texts: list[str], length: int, what: str, option: str, show: bool = True,
           verbose: bool | None = None) -> list[np.ndarray]:
    """Ids of texts as int32 arrays that end in EOS, cut to a length.

    Args:
        what, option: for the warning that counts what was cut. show: whether to warn.
        verbose: show a progress bar; None: where it warns.
    """
    found = encoder.encode(texts, verbose=show if verbose is None else verbose)
    cut = sum(len(ids) >= length for ids in found)
    if cut and show:
        warn(f"{cut} of {len(texts)} {what} have {length} tokens or more and were cut ({option})")
    return [np.array([*ids[:length - 1], EOS], dtype=np.int32) for ids in found]


def unknown_signs(encoder, texts) -> tuple[int, list[str]]:
    """How many texts hold signs that the vocabulary turns into `<unk>`, and those signs, the most frequent first."""
    unknown = encoder.model.unk_id()
    counts = {}
    for text in texts:
        for sign in set(text):
            counts[sign] = counts.get(sign, 0) + 1
    signs = [sign for sign, ids in zip(counts, encoder.encode(list(counts), verbose=False), strict=True)
             if unknown in ids]
    found = set(signs)
    return sum(not found.isdisjoint(text) for text in texts), sorted(signs, key=lambda sign: -counts[sign])


def warn_of_unknown_signs(encoder: Any, texts: Sequence[str], what: str) -> None:
    """Warn, with count and signs, where texts hold signs that the vocabulary turns into `<unk>`."""
    n, signs = unknown_signs(encoder, texts)
    if n:
        warn(f"{n} {what} hold signs that the vocabulary lacks, which become <unk>: "
             f"{' '.join(map(_ascii_or_sign, signs[:20]))}{' ...' * (len(signs) > 20)}")


def _ascii_or_sign(sign):
    """A sign as it is if it can be seen, else its number."""
    return sign if sign.isprintable() and sign != " " else ascii(sign)


def batches(inputs: Sequence[np.ndarray], n_batch: int, n_most: int, n_answer: int,
            n_processes: int = 1) -> list[list[int]]:
    """The numbers of inputs, in batches of like length, the longest first.

    A batch of short inputs may have more rows than n_batch, up to n_most, but no more positions, those of the answers
    included, than n_batch of the longest inputs, and no more rows than leave some to each process.

    Args:
        n_answer: tokens of an answer at most.
    """
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
    n_most, found = max(n_batch, min(n_most, -(-len(inputs) // n_processes))), []
    while order:
        longest = len(inputs[(found or [order])[0][0]])
        n = min(n_most, n_batch * (longest + n_answer) // (len(inputs[order[0]]) + n_answer))
        found.append(order[:n])
        order = order[n:]
    return found


def answer(model: torch.nn.Module, inputs: Sequence[np.ndarray], world: Any, max_length: int = DECODE_LENGTH,
           beams: int = 1, n_batch: int = 32, plain: bool = False, scores: bool = False,
           show: bool = True) -> tuple[list[list[int]], list[float]]:
    """Answer inputs by greedy decoding, or a beam search with the paper's alpha.

    Equal inputs are answered once. Batches hold inputs of like length, see batches; rows that have ended leave them
    (with `plain` they do not). The processes of a world share them out.

    Args:
        model: a T5. inputs: int32 arrays of ids, EOS included.
        world: see distributed.World. max_length: tokens of an answer at most, EOS included.
        scores: compute them too.
    Returns:
        ids: of each input's answer, up to EOS, in the order of the inputs; 0 may follow.
        scores: of each the log-probability of its tokens given the input, in nats: EOS included where it came, and
            without any length penalty. Zeros where they were not asked for.
    """
    unique, place = {}, []
    for ids in inputs:
        place.append(unique.setdefault(ids.tobytes(), len(unique)))
    distinct = [np.frombuffer(key, dtype=np.int32) for key in unique]
    n_most = n_batch if plain else ROWS // beams
    answers = torch.zeros(len(distinct), max_length, dtype=torch.int64, device=world.device)
    log_p = torch.zeros(len(distinct), device=world.device)
    functions = t5_decoding if plain else t5_answers
    rest = WeightsAtRest()
    all_rows = batches(distinct, n_batch, n_most, max_length, world.size)
    for rows, counts in progress.bar(world.share(all_rows), unit="batch", show=show):
        src = pad([distinct[i] for i in rows], world.device)
        given = dict(max_length=max_length, return_scores=scores)
        with sharding.decoding(model, world) as decoder, rest:
            if beams > 1:
                found = functions.beam_search(model, src, src != PAD, beams=beams, alpha=ALPHA, **given, **decoder)
            else:
                found = functions.generate(model, src, src != PAD, **given, **decoder)
        if not counts:
            continue
        rows = torch.tensor(rows, device=world.device)
        if scores:
            found, score = found
            log_p[rows] = score * _penalty(found) if beams > 1 else score
        answers[rows, :found.shape[1]] = found
    answers, log_p = world.sum(answers).tolist(), world.sum(log_p).tolist()
    return [answers[i] for i in place], [log_p[i] for i in place]


def _penalty(ids):
    """The length penalty [b] of answers [b, t]; one without EOS has t tokens."""
    ended = (ids == EOS).int()
    n = torch.where(ended.any(1), ended.argmax(1) + 1, ids.shape[1])
    return ((5 + n) / 6) ** ALPHA
