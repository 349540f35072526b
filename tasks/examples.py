"""The examples of a task as GPT reads them: token ids end to end with offsets, laid out for the model batch by batch.

The four transformations are those of the paper's section 3.3 and figure 1:
    classification   _start_ text _classify_
    entailment       _start_ premise _delimiter_ hypothesis _classify_
    similarity       _start_ a _delimiter_ b _classify_ and _start_ b _delimiter_ a _classify_
    multiple_choice  _start_ context _delimiter_ choice _classify_ for each choice; a context of two texts,
                     RACE's article and question, has no delimiter between them
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tasks import scores
from tasks.layout import SPECIAL

__all__ = ["Batch", "Examples", "TRANSFORMATIONS", "Texts"]

TRANSFORMATIONS = ("classification", "entailment", "similarity", "multiple_choice")


@dataclass(frozen=True)
class Texts:
    """The token ids of texts, end to end.

    Attributes:
        ids: uint16 or int32 [tokens].
        offsets: int64 [n + 1]; text i has ids[offsets[i]:offsets[i + 1]].
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self):
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens in each text."""
        return np.diff(self.offsets)


class Batch(NamedTuple):
    """What a model reads of some examples.

    Attributes:
        x: int32 [b, c, t, 2] (similarity, multiple choice) or [b, t, 2], token ids and position ids; t is the length of
            the batch's longest sequence.
        m: float32 [b, c, t] or [b, t], 1 at tokens, 0 at padding.
        y: int64 [b], the right class or choice; float32 [b, number of whole scores], see
            scores.distributions; None: there are no labels.
    """

    x: np.ndarray
    m: np.ndarray
    y: np.ndarray | None


@dataclass(frozen=True, repr=False)
class Examples:
    """The examples of a split, encoded.

    Attributes:
        transformation: one of TRANSFORMATIONS.
        texts: the distinct texts.
        parts: int32 [n, p], which texts an example consists of, in the order of the task's columns.
        kept: int32 [n, p], tokens of each part that are kept, from its beginning; see fitting.fit.
        labels: for evaluation: int64 [n], classes or choices; float64 [n], scores; None: the split has no labels.
        score_range: (lowest, highest) whole score over which labels are spread; None: labels are classes or choices.
        index: int64 [n], the examples' numbers in their file, see glue_files.Split.
        n_vocab: tokens; the three special ones come right after, then the positions.
        n_context: how many of the parts are the context of a multiple choice.
        groups: int8 [n], see glue_files.Split.
    """

    transformation: str
    texts: Texts
    parts: np.ndarray
    kept: np.ndarray
    labels: np.ndarray | None
    score_range: tuple[int, int] | None
    index: np.ndarray
    n_vocab: int
    n_context: int = 1
    groups: np.ndarray | None = None

    def __len__(self):
        return len(self.parts)

    def __repr__(self):
        return f"Examples({len(self)} for {self.transformation}, {len(self.texts.ids):,} tokens)"

    @property
    def n_sequences(self) -> int:
        """How many sequences an example has."""
        return {"similarity": 2, "multiple_choice": self.parts.shape[1] - self.n_context}.get(self.transformation, 1)

    def sequences(self, row: int) -> list[np.ndarray]:
        """Return the token ids of an example's sequences, special tokens included: a list of int32 [length]."""
        start, delimiter, classify = (np.array([self.n_vocab + i], dtype=np.int32) for i in range(len(SPECIAL)))
        begins = self.texts.offsets[self.parts[row]]
        parts = [self.texts.ids[begin:begin + kept] for begin, kept in zip(begins, self.kept[row], strict=True)]
        if self.transformation == "classification":
            orders = [parts]
        elif self.transformation == "entailment":
            orders = [[parts[0], delimiter, parts[1]]]
        elif self.transformation == "similarity":
            orders = [[parts[0], delimiter, parts[1]], [parts[1], delimiter, parts[0]]]
        else:
            context = parts[:self.n_context]
            orders = [[*context, delimiter, choice] for choice in parts[self.n_context:]]
        return [np.concatenate([start, *order, classify], dtype=np.int32) for order in orders]

    def layout(self, rows: slice | np.ndarray) -> Batch:
        """Lay out some examples, padded with token 0 to the longest of their sequences.

        Args:
            rows: the examples' numbers, or a slice.
        """
        numbers = np.arange(len(self))[np.asarray(rows) if not isinstance(rows, slice) else rows]
        grid = [self.sequences(row) for row in numbers]
        t = max((len(sequence) for example in grid for sequence in example), default=1)
        x = np.zeros((len(grid), self.n_sequences, t, 2), dtype=np.int32)
        m = np.zeros((len(grid), self.n_sequences, t), dtype=np.float32)
        x[..., 1] = np.arange(t) + self.n_vocab + len(SPECIAL)
        for i, example in enumerate(grid):
            for k, sequence in enumerate(example):
                x[i, k, :len(sequence), 0] = sequence
                m[i, k, :len(sequence)] = 1
        if self.transformation in ("classification", "entailment"):
            x, m = x[:, 0], m[:, 0]
        return Batch(x, m, None if self.labels is None else self.targets(numbers))

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Return what the loss compares the logits of some examples with, see Batch.y."""
        if self.score_range is None:
            return self.labels[rows]
        return scores.distributions(np.clip(self.labels[rows], *self.score_range), *self.score_range)
