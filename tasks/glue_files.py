"""Readers of GLUE's files: a folder to columns of text and label names, for both papers' models.

The files are tab-separated, without quoting, with a header in all but CoLA's train.tsv and dev.tsv. Columns are found
by name, the label of MNLI as the last column, as the number of columns changed over the years.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from formats.errors import BadInput, MissingInput, warn_once
from tasks.files import Table, number_of, open_tsv, shown

__all__ = ["ACCEPTABLE", "DUPLICATE", "ENTAILMENT", "EQUIVALENT", "GLUE_TASKS", "NLI", "NOT_ENTAILMENT_LAST",
           "SENTIMENT", "GlueTask", "Split", "collect", "find_file", "glue_files", "label_name",
           "read_glue", "table_rows"]

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


@dataclass(frozen=True)
class Split:
    """The examples of a file.

    Attributes:
        path: the file.
        texts: {name of a text: one string an example}, in the order in which a model reads them.
        labels: the name of each example's class, or its score as the file writes it; None: the file has no labels.
        index: int64 [n], the 0-based number of each example's row among the file's data rows. It has gaps where rows
            were left out. GLUE's submissions count like this, and so does `idx` in T5's data.
        groups: int8 [n], which of the task's groups each example is of, see gpt_tasks.Task; None: there are none.
    """

    path: str
    texts: dict[str, list[str]]
    labels: list[str] | None
    index: np.ndarray
    groups: np.ndarray | None = None

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


def label_name(path: str, number: int, label: str, classes: tuple[str, ...] | None, are_numbers: bool) -> str:
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


def collect(path: str, names: list[str], rows: Iterable[tuple], name_of: Callable[[int, str], str] | None) -> Split:
    """Make a Split of the rows of a file.

    Args:
        names: of an example's texts.
        rows: (number of the row in the file, list of its texts, its label) for each data row; None in place of the
            texts for a row that is not of this split.
        name_of: function of the row's number and the label in the file that returns the label to keep; None: the file
            has no labels. Rows whose label is '' or '-' are left out, with a warning.
    Raises:
        BadInput: a row is wrong, or none is left.
    """
    columns, labels, index, unlabelled = {name: [] for name in names}, [], [], 0
    for i, (number, texts, label) in enumerate(rows):
        if texts is None:
            continue
        if name_of is not None:
            if label.strip() in UNLABELLED:
                unlabelled += 1
                continue
            labels.append(name_of(number, label))
        for name, text in zip(names, texts, strict=True):
            columns[name].append(text)
        index.append(i)
    if unlabelled:
        warn_once(f"{path}: {number_of(unlabelled, 'row')} without a label ('' or '-'); skipped")
    if not index:
        raise BadInput(f"{path}: holds no examples{' with a label' if unlabelled else ''}; expected one a row")
    return Split(path, columns, None if name_of is None else labels, np.array(index, dtype=np.int64))


def table_rows(table: Table, places: list[int], label: int | None, belongs: Callable | None = None,
               any_width: bool = False) -> Iterator[tuple]:
    """Yield the rows of a table as collect takes them.

    Args:
        places: of the texts' columns. label: place of the label's column; None: there is none.
        belongs: function of a row's fields that says whether it is of this split; None: all are.
        any_width: leave out rows of a wrong width, with a warning.
    """
    broken, width = 0, len(table.header or ())
    for number, fields in table.rows:
        if any_width and len(fields) != width:
            broken += 1
            yield number, None, None
        elif belongs is not None and not belongs(fields):
            yield number, None, None
        else:
            yield number, [fields[place] for place in places], None if label is None else fields[label]
    if broken:
        warn_once(f"{table.path}: {number_of(broken, 'row')} of another width than the header's {width} fields, as in "
                  "old downloads; skipped")


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
    path, dev_ids = (*_find_files(name, data_dir, split), None)[:2]
    if name == "cola" and split != "test":
        table, places, label = open_tsv(path, header=False, width=4), [3], 1
    else:
        table = open_tsv(path, any_width=task.any_width)
        places, label = table.places(list(task.texts.values())), None
        if not split.startswith("test") or (name == "mrpc" and task.label in table.header):
            label = len(table.header) - 1 if task.label is None else table.places([task.label])[0]

    def name_of(number, word):
        return label_name(path, number, word, task.classes, task.are_numbers)

    rows = table_rows(table, places, label, dev_ids and _dev_or_not(table, dev_ids, split), task.any_width)
    return collect(path, list(task.texts), rows, None if label is None else name_of)


def _dev_or_not(table, dev_ids, split):
    """Return the function that tells the rows of MRPC's train or dev in the file that holds both."""
    ids = {tuple(fields) for _, fields in open_tsv(dev_ids, header=False, width=2).rows}
    first, second = table.places(["#1 ID", "#2 ID"])
    return lambda fields: ((fields[first], fields[second]) in ids) == (split == "valid")


def glue_files(name: str, data_dir: str) -> dict[str, list[str]]:
    """Return {split: the files that hold it} of a GLUE task, for the splits that are there; see read_glue."""
    found = {}
    for split in GLUE_TASKS[name].files:
        with contextlib.suppress(MissingInput):
            found[split] = _find_files(name, data_dir, split)
    return found


def _find_files(name, data_dir, split):
    """Return the file of a split, and after it that with the ids of MRPC's dev part where it is needed."""
    task = GLUE_TASKS[name]
    if name != "mrpc":
        return [find_file(data_dir, (task.folder, *OTHER_FOLDERS.get(task.folder, ())), (task.files[split],), name)]
    names = [task.files[split], f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"]
    path = find_file(data_dir, (task.folder,), tuple(reversed(names) if split == "test" else names), name)
    if split == "test" or not path.endswith(".txt"):
        return [path]
    try:
        return [path, find_file(os.path.dirname(path), (task.folder,), DEV_IDS, name)]
    except MissingInput:
        raise MissingInput(f"{os.path.join(os.path.dirname(path), DEV_IDS[0])}: not found; {os.path.basename(path)} "
                           "holds train and dev in one, and this file of GLUE tells which pairs are dev; get it "
                           "(mrpc_dev_ids.tsv in GLUE's download script)") from None
