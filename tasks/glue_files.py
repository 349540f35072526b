"""Readers of GLUE's files: a folder to columns of text and label names, for both papers' models.

The files are tab-separated, without quoting, with a header in all but CoLA's train.tsv and dev.tsv. Columns are found
by name, the label of MNLI as the last column, as the number of columns changed over the years.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from formats.errors import BadInput, MissingInput, warn_once
from tasks.files import Table, number_of, open_tsv, shown

__all__ = ["ACCEPTABLE", "DUPLICATE", "ENTAILMENT", "EQUIVALENT", "GLUE_TASKS", "NLI", "NOT_ENTAILMENT_LAST",
           "SENTIMENT", "GlueTask", "Split", "find_file", "label_names", "read_glue"]

NLI = ("entailment", "neutral", "contradiction")
NOT_ENTAILMENT_LAST = ("entailment", "not_entailment")
ENTAILMENT = ("not_entailment", "entailment")
ACCEPTABLE = ("unacceptable", "acceptable")
SENTIMENT = ("negative", "positive")
EQUIVALENT = ("not_equivalent", "equivalent")
DUPLICATE = ("not_duplicate", "duplicate")
UNLABELLED = ("", "-")  # labels of examples that have none: such rows are left out and counted
FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
MRPC_STRINGS = ["#1 String", "#2 String"]


class Split(NamedTuple):
    """The examples of a file.

    Attributes:
        path: the file.
        texts: {name of a text: one string an example}, in the order in which a model reads them.
        labels: the name of each example's class, or its score as the file writes it; None: the file has no labels.
        index: int64 [n], the 0-based number of each example's row among the file's data rows. It has gaps where rows
            were left out. GLUE's submissions count like this, and so does `idx` in T5's data.
    """

    path: str
    texts: dict[str, list[str]]
    labels: list[str] | None
    index: np.ndarray

    def __len__(self):
        return len(self.index)


class GlueTask(NamedTuple):
    """Where a task's examples are and what they look like.

    Attributes:
        folder: its folder in glue_data/.
        texts: {name of a text: its column in the files}.
        label: name of the label's column; None: the last one.
        classes: the names of the classes, in the order of their numbers; None: the label is a score.
        are_numbers: whether the files write a class as its number.
        files: {split: name of its file}.
        any_width: skip, count and report rows of a wrong width.
    """

    folder: str
    texts: dict[str, str]
    label: str | None
    classes: tuple[str, ...] | None
    are_numbers: bool
    files: dict[str, str] = FILES
    any_width: bool = False


def _pair(a="sentence1", b="sentence2"):
    return {a: a, b: b}


_NLI_PAIR = {"premise": "sentence1", "hypothesis": "sentence2"}
GLUE_TASKS = {
    "cola": GlueTask("CoLA", {"sentence": "sentence"}, "label", ACCEPTABLE, True),
    "sst2": GlueTask("SST-2", {"sentence": "sentence"}, "label", SENTIMENT, True),
    "mrpc": GlueTask("MRPC", dict(zip(("sentence1", "sentence2"), MRPC_STRINGS, strict=True)), "Quality", EQUIVALENT,
                     True),
    "qqp": GlueTask("QQP", _pair("question1", "question2"), "is_duplicate", DUPLICATE, True, any_width=True),
    "stsb": GlueTask("STS-B", _pair(), "score", None, True),
    "mnli": GlueTask("MNLI", _NLI_PAIR, None, NLI, False, {
        "train": "train.tsv", "valid": "dev_matched.tsv", "valid_mismatched": "dev_mismatched.tsv",
        "test": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"}),
    "qnli": GlueTask("QNLI", _pair("question", "sentence"), "label", NOT_ENTAILMENT_LAST, False),
    "rte": GlueTask("RTE", _pair(), "label", NOT_ENTAILMENT_LAST, False),
    "wnli": GlueTask("WNLI", _pair(), "label", ENTAILMENT, True),
    "ax": GlueTask("diagnostic", _NLI_PAIR, None, NLI, False, {"test": "diagnostic.tsv"}),
}
OTHER_FOLDERS = {"diagnostic": ("MNLI",)}  # where older downloads have it


def find_file(data_dir: str, folders: tuple[str, ...], names: tuple[str, ...], what: str) -> str:
    """Return the first file that is there.

    Args:
        data_dir: the task's folder, or the one above it.
        folders: the names that the task's folder may have. names: those that the file may have. what: the task's name.
    Raises:
        MissingInput: there is none; where it was looked for.
    """
    places = [os.path.join(data_dir, *folder, name) for folder in (*((f,) for f in folders), ()) for name in names]
    found = next(filter(os.path.isfile, places), None)
    if found is None:
        raise MissingInput(f"{os.path.join(data_dir, folders[0], names[0])}: not found; --data_dir has to be {what}'s "
                           f"folder ({' or '.join(folders)}) with {' or '.join(names)}, or the folder above it")
    return found


def label_names(path: str, number: int, label: str, classes: tuple[str, ...] | None, are_numbers: bool) -> str:
    """Return the name of a class as it is written in a file; a score as it is.

    Raises:
        BadInput: it is none of the classes, or no score from 0 to 5; the row.
    """
    if classes is None:
        try:
            fits = 0 <= float(label) <= 5 and label.isascii() and "_" not in label
        except ValueError:
            fits = False
        if not fits:
            raise BadInput(f"{path}: row {number} has the score {shown(label)}, expected a number from 0 to 5")
        return label
    words = [str(i) for i in range(len(classes))] if are_numbers else classes
    if label not in words:
        raise BadInput(f"{path}: row {number} has the label {shown(label)}, expected {', '.join(words[:-1])} or "
                       f"{words[-1]}")
    return classes[words.index(label)]


def collect(table: Table, texts: dict[str, int], label: int | None, name_of: Callable[[int, str], str],
            keep: Callable[[list[str]], bool] | None = None, any_width: bool = False) -> Split:
    """Read the rows of an open table.

    Args:
        texts: {name of a text: place of its column}. label: place of the label's column; None: there is none.
        name_of: function of the row's number and the label in the file that returns the label to keep.
        keep: function of a row's fields that says whether the row belongs to the split; None: all do.
        any_width: skip rows that are too short, with a warning; and take longer ones for broken too.
    Raises:
        BadInput: a row is wrong, or there are none.
    """
    columns, labels, index = {name: [] for name in texts}, [], []
    width, broken, unlabelled = len(table.header or ()), 0, 0
    for i, (number, fields) in enumerate(table.rows):
        if any_width and len(fields) != width:
            broken += 1
            continue
        if keep is not None and not keep(fields):
            continue
        if label is not None:
            if fields[label].strip() in UNLABELLED:
                unlabelled += 1
                continue
            labels.append(name_of(number, fields[label]))
        for name, place in texts.items():
            columns[name].append(fields[place])
        index.append(i)
    if broken:
        warn_once(f"{table.path}: {number_of(broken, 'row')} of another width than the header's {width} fields, as in "
                  "old downloads; skipped")
    if unlabelled:
        warn_once(f"{table.path}: {number_of(unlabelled, 'row')} without a label ('' or '-'); skipped")
    if not index:
        raise BadInput(f"{table.path}: holds no examples{' with a label' if unlabelled else ''}; expected one a row")
    return Split(table.path, columns, None if label is None else labels, np.array(index, dtype=np.int64))


def read_glue(name: str, data_dir: str, split: str) -> Split:
    """Read a split of a GLUE task.

    MRPC is read from train.tsv, dev.tsv and test.tsv, or from msr_paraphrase_train.txt, dev_ids.tsv and
    msr_paraphrase_test.txt. The latter has labels, so it is preferred for the test split; there train and valid share
    the numbering of one file.

    Args:
        name: see GLUE_TASKS. data_dir: the task's folder, or the folder above it.
        split: 'train', 'valid' or 'test'; MNLI also 'valid_mismatched' and 'test_mismatched'; AX 'test' alone.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    task = GLUE_TASKS[name]
    folders = (task.folder, *OTHER_FOLDERS.get(task.folder, ()))
    if name == "mrpc":
        path, keep = _mrpc_file(data_dir, split)
    else:
        path, keep = find_file(data_dir, folders, (task.files[split],), name), None
    if name == "cola" and split != "test":
        table, places, label = open_tsv(path, header=False, width=4), [3], 1
    else:
        table = open_tsv(path, any_width=task.any_width)
        places, label = table.places(list(task.texts.values())), None
        if not split.startswith("test") or (name == "mrpc" and task.label in table.header):
            label = len(table.header) - 1 if task.label is None else table.places([task.label])[0]

    def name_of(number, word):
        return label_names(path, number, word, task.classes, task.are_numbers)

    if keep is not None:
        keep = keep(table)
    return collect(table, dict(zip(task.texts, places, strict=True)), label, name_of, keep, task.any_width)


def _mrpc_file(data_dir, split):
    """Return (path, None or a function of the open table that returns the function that tells the split's rows)."""
    folders, task = ("MRPC",), GLUE_TASKS["mrpc"]
    names = [task.files[split], f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"]
    path = find_file(data_dir, folders, tuple(reversed(names) if split == "test" else names), "mrpc")
    if split == "test" or not path.endswith(".txt"):
        return path, None
    try:
        ids_path = find_file(os.path.dirname(path), ("MRPC",), DEV_IDS, "mrpc")
    except MissingInput:
        raise MissingInput(f"{os.path.join(os.path.dirname(path), DEV_IDS[0])}: not found; {os.path.basename(path)} "
                           "holds train and dev in one, and this file of GLUE tells which pairs are dev; get it "
                           "(mrpc_dev_ids.tsv in GLUE's download script)") from None
    ids = {tuple(fields) for _, fields in open_tsv(ids_path, header=False, width=2).rows}

    def belongs(table):
        first, second = table.places(["#1 ID", "#2 ID"])
        return lambda fields: ((fields[first], fields[second]) in ids) == (split == "valid")

    return path, belongs
