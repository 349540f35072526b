"""The tasks of the GPT-1 paper in one table, to be read beside its section 3.3 and tables 1 to 5."""

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from formats.errors import warn_once
from tasks import glue_files, nli_files, race_files, story_cloze
from tasks.glue_files import Split

__all__ = ["GPT_TASKS", "OTHER_SIZES", "Task", "check_sizes", "read_rocstories"]


class Task(NamedTuple):
    """A task: what its examples are, how GPT reads them, how it is judged.

    Attributes:
        name: of the data set, as people write it.
        transformation: 'classification', 'entailment', 'similarity' or 'multiple_choice' (paper section 3.3).
        texts: the names of an example's texts, in the order in which they are read.
        classes: the classes in the order of their numbers; multiple choice: the labels of the choices; () for a score.
        metrics: names in metrics.METRICS; the first one selects the best parameters.
        published: GPT-1's numbers, {metric or what: percent}, as printed in tables 2 to 4.
        caveat: what to know before comparing with them.
        sizes: {split: number of examples in the published data}.
        read: function of (data_dir, split) that returns a Split; data_dir is the task's folder or the one above it.
        files: function of data_dir that returns {split: paths of the files that hold it}, for those that are there.
        submission: {split: name of the file with its predictions}.
        writes_words: whether the submission has the names of the classes; otherwise their numbers.
        score_range: (lowest, highest) whole score, where the label is a score; None: classes or choices.
        cut: how an example that is too long is cut, a name in tasks.fitting.CUTS.
        n_context: how many of the texts are the context of a multiple choice.
        groups: names of the groups of examples that are also judged apart: RACE's levels.
    """

    name: str
    transformation: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    published: dict[str, float]
    caveat: str
    sizes: dict[str, int]
    read: Callable[[str, str], Split]
    files: Callable[[str], dict[str, list[str]]]
    submission: dict[str, str]
    writes_words: bool = False
    score_range: tuple[int, int] | None = None
    cut: str = "longest"
    n_context: int = 1
    groups: tuple[str, ...] = ()

    @property
    def n_out(self) -> int:
        """How many logits an example has: classes, choices or scores."""
        return len(self.classes) if self.score_range is None else self.score_range[1] - self.score_range[0] + 1

    @property
    def head(self) -> str | tuple[str, int]:
        """The task_head_type of model_pytorch.DoubleHeadModel."""
        if self.transformation == "multiple_choice":
            return self.transformation
        return "similarity" if self.transformation == "similarity" else "classification", self.n_out


def read_rocstories(data_dir: str, split: str, n_valid: int = 374) -> Split:
    """Read a split of the Story Cloze Test, see story_cloze.rocstories; labels '1' and '2'.

    Args:
        data_dir: the folder of its two files. split: 'train', 'valid' or 'test'.
        n_valid: stories of the validation file that are split off for validation.
    """
    splits = dict(zip(("train", "valid", "test"), story_cloze.rocstories(data_dir, n_valid=n_valid), strict=True))
    *texts, labels = splits[split]
    path = os.path.join(data_dir, story_cloze.TEST_FILE if split == "test" else story_cloze.VALID_FILE)
    return Split(path, dict(zip(("story", "ending1", "ending2"), texts, strict=True)),
                 [str(label + 1) for label in labels], np.arange(len(labels)))


def rocstories_files(data_dir: str) -> dict[str, list[str]]:
    """Return {split: the file that holds it} of the Story Cloze Test."""
    valid, test = (os.path.join(data_dir, name) for name in (story_cloze.VALID_FILE, story_cloze.TEST_FILE))
    return {"train": [valid], "valid": [valid], "test": [test]}


HIDDEN = "published on GLUE's hidden test labels"


def _glue(name, transformation, metrics, published, sizes, caveat=HIDDEN, submission=None, **more):
    """Return the Task of GLUE's name; see glue_files.GLUE_TASKS for its files and classes."""
    files = glue_files.GLUE_TASKS[name]
    if submission is None:
        submission = {"test": f"{files.folder}.tsv"}
    return Task(name, transformation, tuple(files.texts), files.classes or (), metrics, published, caveat, sizes,
                partial(glue_files.read_glue, name), partial(glue_files.glue_files, name), submission,
                writes_words=not files.are_numbers, **more)


def _read_mnli(data_dir, split):
    return glue_files.read_glue("ax", data_dir, "test") if split == "ax" else glue_files.read_glue(
        "mnli", data_dir, split)


def _mnli_files(data_dir):
    ax = glue_files.glue_files("ax", data_dir)
    return glue_files.glue_files("mnli", data_dir) | ({"ax": ax["test"]} if ax else {})


_ACC = ("acc",)
_TASKS = [
    # commonsense reasoning and reading comprehension, table 3
    Task("rocstories", "multiple_choice", ("story", "ending1", "ending2"), ("1", "2"), _ACC, {"acc": 86.5},
         "the best single run; the authors' code gives a median of 85.8", {"train": 1497, "valid": 374, "test": 1871},
         read_rocstories, rocstories_files, {"test": "ROCStories.tsv"}, cut="released"),
    Task("race", "multiple_choice", ("article", "question", "option1", "option2", "option3", "option4"),
         race_files.LETTERS, _ACC, {"acc": 59.0, "acc of middle schools": 62.9, "acc of high schools": 57.4}, "",
         {"train": 87866, "valid": 4887, "test": 4934}, race_files.read_race, race_files.race_files,
         {"test": "RACE.tsv"}, writes_words=True, cut="article", n_context=2, groups=race_files.LEVELS),
    # natural language inference, table 2
    Task("snli", "entailment", ("premise", "hypothesis"), glue_files.NLI, _ACC, {"acc": 89.9}, "",
         {"train": 549367, "valid": 9842, "test": 9824}, nli_files.read_snli, partial(nli_files.nli_files, "snli"),
         {"test": "SNLI.tsv"}, writes_words=True),
    _glue("mnli", "entailment", _ACC, {"acc": 82.1, "acc of mismatched": 81.4},
          {"train": 392702, "valid": 9815, "valid_mismatched": 9832, "test": 9796, "test_mismatched": 9847, "ax": 1104},
          submission={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
          )._replace(read=_read_mnli, files=_mnli_files),
    _glue("qnli", "entailment", _ACC, {"acc": 88.1}, {"train": 104743, "valid": 5463, "test": 5463},
          HIDDEN + "; of version 1 of the data (108,436 training pairs; on version 2 BERT's paper gives GPT-1 87.4)"),
    _glue("rte", "entailment", _ACC, {"acc": 56.0}, {"train": 2490, "valid": 277, "test": 3000}),
    Task("scitail", "entailment", ("premise", "hypothesis"), nli_files.SCITAIL, _ACC, {"acc": 88.3}, "",
         {"train": 23596, "valid": 1304, "test": 2126}, nli_files.read_scitail,
         partial(nli_files.nli_files, "scitail"), {"test": "SciTail.tsv"}, writes_words=True),
    _glue("wnli", "entailment", _ACC, {"acc": 53.4}, {"train": 635, "valid": 71, "test": 146},
          HIDDEN + "; not in the paper's tables, but it counts in its GLUE score"),
    # semantic similarity and classification, table 4
    _glue("mrpc", "similarity", ("f1", "acc"), {"f1": 82.3}, {"train": 3668, "valid": 408, "test": 1725}),
    _glue("qqp", "similarity", ("f1", "acc"), {"f1": 70.3}, {"train": 363846, "valid": 40430, "test": 390965}),
    _glue("stsb", "similarity", ("pearson", "spearman"), {"pearson": 82.0},
          {"train": 5749, "valid": 1500, "test": 1379}, score_range=(0, 5)),
    _glue("sst2", "classification", _ACC, {"acc": 91.3}, {"train": 67349, "valid": 872, "test": 1821}),
    _glue("cola", "classification", ("matthews", "acc"), {"matthews": 45.4},
          {"train": 8551, "valid": 1043, "test": 1063}),
]
GPT_TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
# sizes of other versions of the data: number of training examples -> what it tells
OTHER_SIZES = {"qnli": {108436: "version 1, on which the published number is"},
               "qqp": {363849: "with the rows that are broken in other downloads"},
               "snli": {550152: "with the pairs that have no gold label"}}


def check_sizes(task: Task, sizes: dict[str, int]) -> None:
    """Warn where a split has not as many examples as the published data; say which version QNLI is.

    The Story Cloze Test is left alone, as other stories come in its form.

    Args:
        sizes: {split: number of examples}.
    """
    if task.name == "rocstories":
        return
    known = OTHER_SIZES.get(task.name, {}).get(sizes.get("train"))
    if known:
        warn_once(f"{task.name}: {sizes['train']:,} training examples: {known}")
    differ = [f"{split} {n:,} (published: {task.sizes[split]:,})" for split, n in sizes.items()
              if split in task.sizes and n != task.sizes[split] and not (known and split == "train")]
    if differ and not (known and task.name == "qnli"):  # nobody knows the other sizes of version 1
        warn_once(f"{task.name}: other numbers of examples than in the published data: {', '.join(differ)}")
