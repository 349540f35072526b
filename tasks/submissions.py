"""Predictions on test splits in the files that GLUE's server takes, and beside each the probabilities.

    index, prediction       the row of the test file, from 0; the class's name or number as GLUE wants it, or a score
"""

import os

import torch

from formats.files import write_atomically
from tasks import scores
from tasks.examples import Examples
from tasks.gpt_tasks import Task

__all__ = ["predictions_of", "probabilities_path", "write_submission"]


def predictions_of(task: Task, logits: torch.Tensor) -> list:
    """Return what is predicted from logits [n, k], as the submission writes it: numbers, words or scores."""
    if task.score_range is not None:
        return [f"{score:.3f}" for score in scores.expected(logits, task.score_range[0]).tolist()]
    numbers = logits.argmax(1).tolist()
    return [task.classes[k] for k in numbers] if task.writes_words else numbers


def probabilities_path(path: str) -> str:
    """Return the path of the probabilities beside a submission: MNLI-m.tsv -> MNLI-m.probabilities.tsv."""
    stem, extension = os.path.splitext(path)
    return f"{stem}.probabilities{extension}"


def write_submission(path: str, task: Task, examples: Examples, logits: torch.Tensor) -> None:
    """Write the predictions for a split, and beside them the probabilities: index, p_<class> (or p_<whole score>).

    Args:
        examples: the split, whose index has the rows of its file. logits: [n, k].
    Raises:
        BadInput: a file cannot be written.
    """
    index = examples.index.tolist()
    _write(path, ["index", "prediction"], zip(index, predictions_of(task, logits), strict=True))
    names = range(task.score_range[0], task.score_range[1] + 1) if task.score_range else task.classes
    probabilities = ([f"{p:.6f}" for p in row] for row in logits.float().softmax(1).tolist())
    _write(probabilities_path(path), ["index", *(f"p_{name}" for name in names)],
           ((i, *row) for i, row in zip(index, probabilities, strict=True)))


def _write(path, header, rows):
    """Write a tab-separated file; a tab or line end in a name of one's own becomes a blank."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        for row in (header, *rows):
            f.write("\t".join(" ".join(str(cell).splitlines()).replace("\t", " ") for cell in row) + "\n")
