"""The user's own data in the four transformations: from .csv, .tsv and .jsonl files, or from Python.

    task, splits = own_examples("classification", "train.csv", test="test.csv")
    task, splits = own_examples("entailment", {"premise": [...], "hypothesis": [...], "label": [...]})
    task, splits = own_examples("similarity", data_frame, columns={"text1": "question", "label": "score"})

Columns: `text`; `premise, hypothesis`; `text1, text2`; `context, choice1, choice2, ...`; and `label`.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from formats.errors import BadInput
from tasks.files import open_csv, open_tsv, read_jsonl, require_text, shown
from tasks.glue_files import Split
from tasks.gpt_tasks import Task

__all__ = ["COLUMNS", "KINDS", "own_examples", "own_task", "parse_columns", "unlabelled", "write_rows"]

COLUMNS = {"classification": ("text",), "entailment": ("premise", "hypothesis"), "similarity": ("text1", "text2"),
           "multiple_choice": ("context",)}
KINDS = (".csv", ".tsv", ".jsonl")
NO_LABEL = "\0"  # the name of no column
MOST_SCORES = 100  # whole scores of a range, each a row of the head
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


class Source(NamedTuple):
    """Rows to read: what they are called in messages, the names of their columns, (number, {column: value}) each."""

    name: str
    header: list[str]
    rows: Iterator[tuple[int, Mapping]]


def parse_columns(words: list[str] | None, transformation: str) -> dict[str, str]:
    """Return {our name: theirs} for words like text=sentence.

    Raises:
        BadInput: a word without '=', or a name that the transformation does not read.
    """
    names = (*COLUMNS[transformation], "label")
    columns = {}
    for word in words or ():
        ours, _, theirs = word.partition("=")
        is_choice = transformation == "multiple_choice" and re.fullmatch(r"choice[1-9]\d*", ours)
        if not theirs or not (ours in names or is_choice):
            choices = ", choice1, choice2, ..." if transformation == "multiple_choice" else ""
            raise BadInput(f"--columns has {shown(word)}, expected NAME=COLUMN, NAME being one of {', '.join(names)}"
                           f"{choices} for --task {transformation}")
        columns[ours] = theirs
    return columns


def _open(source, name):
    """Return the Source in a path, a DataFrame, a dict of lists or a list of dicts; name: what it is called."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        kind = os.path.splitext(path)[1].lower()
        if kind not in KINDS:
            raise BadInput(f"{path}: its name ends in {shown(kind)}, expected {', '.join(KINDS)}")
        if kind == ".jsonl":
            return _of_records(path, read_jsonl(path))
        table = open_csv(path) if kind == ".csv" else open_tsv(path)
        twice = [column for column in table.header if table.header.count(column) > 1]

        def rows():
            for number, fields in table.rows:
                yield number, dict(zip(table.header, fields, strict=True))

        return Source(path, [column for column in table.header if column not in twice] + twice, rows())
    if hasattr(source, "columns") and hasattr(source, "itertuples"):
        if source.columns.duplicated().any():
            raise BadInput(f"{name}: has two columns of one name; rename or remove one")
        source = {str(column): source[column].tolist() for column in source.columns}
    if isinstance(source, Mapping):
        lengths = {column: len(values) for column, values in source.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"{name}: its columns have different lengths: {shown(lengths, 150)}")
        values = zip(*source.values(), strict=True)
        return Source(name, list(source), enumerate(dict(zip(source, row, strict=True)) for row in values))
    if isinstance(source, (list, tuple)) and all(isinstance(record, Mapping) for record in source):
        return _of_records(name, iter(enumerate(source)))
    raise BadInput(f"{name} is {type(source).__name__}, expected a path, a DataFrame, a dict of lists or a list of "
                   "dicts")


def _of_records(name, records):
    """Return the Source of (number, record): the columns are those of the first one."""
    first = next(records, None)
    if first is None:
        raise BadInput(f"{name}: is empty; expected one example a row")

    def rows():
        yield first
        yield from records

    return Source(name, list(first[1]), rows())


def _label(source, number, row, column):
    """Return the label in a column of a row as a string; numbers and truth values as JSON writes them."""
    label = row.get(column)
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, bool):
        label = str(label).lower()
    elif isinstance(label, float) and math.isfinite(label):
        label = str(int(label)) if label.is_integer() else repr(label)
    elif isinstance(label, int):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise BadInput(f"{source.name}: row {number} has {column} {shown(label)}, expected a label; give it one or "
                       "remove the row")
    return require_text(source.name, number, {column: label}, column)


def _choices(source, columns):
    """Return the names of the choices that a source has: choice1, choice2 and so on, as far as they go."""
    names = []
    while columns.get(f"choice{len(names) + 1}", f"choice{len(names) + 1}") in source.header:
        names.append(f"choice{len(names) + 1}")
    return names


def _read(source, transformation, columns, texts, needs_labels):
    """Read a source.

    Args:
        texts: names of the texts; None: of a multiple choice, to be found.
        needs_labels: refuse a source without labels.
    Returns:
        (Split with the labels as they are, numbers of the rows, names of the texts).
    """
    if texts is None:
        texts = (*COLUMNS[transformation], *(_choices(source, columns) or ["choice1"]))
        if len(texts) == 2:
            texts = (*texts, "choice2")  # so that the message names it
    wanted = {name: columns.get(name, name) for name in (*texts, "label")}
    has_labels = wanted["label"] in source.header
    missing = [column for name, column in wanted.items()
               if column not in source.header and (name != "label" or needs_labels)]
    if missing:
        raise BadInput(f"{source.name}: lacks the column {', '.join(missing)}; found "
                       f"{shown(', '.join(map(str, source.header)), 150)}; --columns {texts[0]}=COLUMN renames")
    twice = next((column for column in wanted.values() if source.header.count(column) > 1), None)
    if twice:
        raise BadInput(f"{source.name}: has the column {twice} {source.header.count(twice)} times; which one counts? "
                       "rename or remove the others")
    found, labels, numbers = {name: [] for name in texts}, [], []
    one_more = f"choice{len(texts)}" if transformation == "multiple_choice" else None
    one_more = columns.get(one_more, one_more)
    for number, row in source.rows:
        if one_more in row:
            raise BadInput(f"{source.name}: row {number} has a {one_more}, but the training examples, or those before "
                           f"it, have {len(texts) - 1} choices; all need as many")
        for name in texts:
            found[name].append(require_text(source.name, number, row, wanted[name]))
        if has_labels:
            labels.append(_label(source, number, row, wanted["label"]))
        numbers.append(number)
    if not numbers:
        raise BadInput(f"{source.name}: has a header but no examples")
    return Split(source.name, found, labels if has_labels else None, np.arange(len(numbers))), numbers, texts


def own_task(transformation: str, texts: tuple[str, ...], classes: tuple[str, ...],
             score_range: tuple[int, int] | None = None) -> Task:
    """Return the Task of own data: judged by accuracy, or a score by Pearson's and Spearman's correlations."""
    metrics = ("acc",) if score_range is None else ("pearson", "spearman")
    return Task("own", transformation, tuple(texts), tuple(classes), metrics, {}, "own data", {}, None, None,
                {"test": "own.tsv"}, writes_words=True, score_range=None if score_range is None else tuple(score_range))


def _is_number(label):
    return NUMBER.fullmatch(label) is not None and math.isfinite(float(label))


def _classes(split, numbers, transformation):
    """Return (classes, score range) of the training labels."""
    found = sorted(set(split.labels))
    are_numbers = all(map(_is_number, found))
    are_scores = are_numbers and (len(found) > 2 or not all(map(str.isdigit, found)))
    if transformation == "similarity" and are_scores:
        values = [float(label) for label in found]
        lowest, highest = math.floor(min(values)), math.ceil(max(values))
        if not 1 <= highest - lowest <= MOST_SCORES:
            raise BadInput(f"{split.path}: its scores go from {min(values):g} to {max(values):g}, expected "
                           f"a range of 1 to {MOST_SCORES} whole numbers; scale them")
        return (), (lowest, highest)
    if len(found) < 2:
        raise BadInput(f"{split.path}: all {len(numbers)} examples have the label {shown(found[0])}; expected two "
                       "classes or more")
    return tuple(sorted(found, key=float) if are_numbers else found), None


def _numbered_choices(split, numbers, texts, columns):
    """Return the split with labels '1', '2' and so on, where the file may also have the name of the choice's column."""
    n = len(texts) - 1
    meaning = {str(k): str(k) for k in range(1, n + 1)}
    for k, name in enumerate(texts[1:], 1):
        meaning[name] = meaning[columns.get(name, name)] = str(k)
    for number, label in zip(numbers, split.labels or (), strict=split.labels is not None):
        if label not in meaning:
            raise BadInput(f"{split.path}: row {number} has the label {shown(label)}, expected 1 to {n} or the name of "
                           f"the choice's column, {texts[1]} to {texts[-1]}")
    labels = None if split.labels is None else [meaning[label] for label in split.labels]
    return Split(split.path, split.texts, labels, split.index)


def own_examples(transformation: str, train: Any, valid: Any = None, test: Any = None,
                 columns: Mapping[str, str] | None = None, seed: int = 42) -> tuple[Task, dict[str, Split]]:
    """Read own data.

    Labels are any strings; of a multiple choice the number of the right choice, from 1 on, or its column's name.
    Labels of a similarity that are numbers, and not just two whole ones, are scores.

    Args:
        transformation: 'classification', 'entailment', 'similarity' or 'multiple_choice'.
        train, valid, test: each the path of a .csv, .tsv or .jsonl file, a DataFrame, a dict of lists, or a list of
            dicts. Without `valid` a tenth of train is held out. `test` may lack labels.
        columns: {our name of a column: theirs}, where they differ.
        seed: draws the tenth that is held out.
    Returns:
        the Task, whose classes are the labels in train, by number or by name; and its splits, {'train', 'valid', and
        'test' where there is one: Split}.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected. The rows of Python objects count from 0.
    """
    if transformation not in COLUMNS:
        raise BadInput(f"the task is {shown(transformation)}, allowed are {', '.join(COLUMNS)}")
    columns, texts = dict(columns or {}), None if transformation == "multiple_choice" else COLUMNS[transformation]
    splits, rows, classes, score_range = {}, {}, (), None
    for name, source in (("train", train), ("valid", valid), ("test", test)):
        if source is None:
            continue
        split, rows[name], texts = _read(_open(source, name), transformation, columns, texts, name != "test")
        if transformation == "multiple_choice":
            classes = tuple(map(str, range(1, len(texts))))
            split = _numbered_choices(split, rows[name], texts, columns)
        elif name == "train":
            classes, score_range = _classes(split, rows[name], transformation)
        _check_labels(split, rows[name], classes, score_range, train if isinstance(train, str) else "train")
        splits[name] = split
    if valid is None:
        splits = _hold_out(splits, seed)
    return own_task(transformation, texts, classes, score_range), splits


def _check_labels(split, numbers, classes, score_range, train):
    """Refuse a label that the training examples do not have."""
    for number, label in zip(numbers, split.labels or (), strict=split.labels is not None):
        if score_range is not None and not _is_number(label):
            raise BadInput(f"{split.path}: row {number} has the label {shown(label)}, expected a number as in {train}")
        if score_range is None and label not in classes:
            raise BadInput(f"{split.path}: row {number} has the label {shown(label)}, which no example of {train} has "
                           f"(it has {shown(', '.join(classes), 150)}); correct it, or add training examples of it")


def _hold_out(splits, seed):
    """Return the splits with a tenth of train as valid, both in the order of the file."""
    train = splits["train"]
    if len(train) < 2:
        raise BadInput(f"{train.path}: has one example, expected two or more, as a tenth is held out for validation")
    parts = train_test_split(np.arange(len(train)), test_size=max(1, len(train) // 10), random_state=seed)
    held = {}
    for name, rows in zip(("train", "valid"), map(np.sort, parts), strict=True):
        held[name] = Split(train.path, {key: [texts[i] for i in rows] for key, texts in train.texts.items()},
                           [train.labels[i] for i in rows], train.index[rows])
    return held | ({"test": splits["test"]} if "test" in splits else {})


def unlabelled(source: Any, texts: tuple[str, ...], general: tuple[str, ...], columns: dict[str, str] | None = None,
               joined: dict[str, list[str]] | None = None) -> Split:
    """Read the texts of rows that are to be labelled; whatever else they hold is left alone.

    Args:
        source: see own_examples. texts: names of the task's texts, which the columns may have.
        general: what the columns are called otherwise, see COLUMNS; columns: {one of these names: the column}.
        joined: {name of a text: columns whose texts, joined by blanks, are it}, where the source has them all.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    opened, columns = _open(source, "the rows"), columns or {}
    if joined and not columns and all(column in opened.header for parts in joined.values() for column in parts):
        parts = tuple(column for parts in joined.values() for column in parts)
        split, _, _ = _read(opened, "", {"label": NO_LABEL}, parts, needs_labels=False)
        found = {name: list(map(" ".join, zip(*(split.texts[column] for column in of_text), strict=True)))
                 for name, of_text in joined.items()}
        return Split(split.path, found, None, split.index)
    names = texts if all(columns.get(name, name) in opened.header for name in texts) else general
    kind = "multiple_choice" if names[0] == "context" else ""  # which refuses one choice more
    split, _, _ = _read(opened, kind, {**columns, "label": NO_LABEL}, names, needs_labels=False)
    return Split(split.path, dict(zip(texts, split.texts.values(), strict=True)), None, split.index)


def _plain(value):
    """What JSON holds of a value it does not know: a NumPy number; of others nothing, as of what is missing."""
    return value.item() if hasattr(value, "item") else None


def write_rows(path: str, source: Any, name: str) -> None:
    """Write rows from Python to a .jsonl file; values that JSON does not know, such as dates, as missing ones.

    Args:
        source: a DataFrame, a dict of lists or a list of dicts. name: what it is called in messages.
    Raises:
        BadInput: it is none of these, or empty.
    """
    rows = [row for _, row in _open(source, name).rows]
    if not rows:
        raise BadInput(f"{name}: is empty; expected one example a row")
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps({str(column): value for column, value in row.items()}, default=_plain) + "\n")
