"""The reader of RACE: a folder of JSON files, an article and its questions each, to one example a question."""

import json
import os

import numpy as np

from formats.errors import BadInput, MissingInput
from tasks.files import lines_of, read_jsonl, require_text, shown
from tasks.glue_files import Split

__all__ = ["LETTERS", "LEVELS", "race_files", "read_race"]

LETTERS = ("A", "B", "C", "D")
PART = {"train": "train", "valid": "dev", "test": "test"}
LEVELS = ("middle", "high")


def race_files(data_dir: str) -> dict[str, list[str]]:
    """Return {split: its files}: those of middle schools, then of high schools, each by name; for those there."""
    found = {}
    for split, part in PART.items():
        for root in (os.path.join(data_dir, "RACE"), data_dir):
            paths = [os.path.join(folder, name) for folder in (os.path.join(root, part, level) for level in LEVELS)
                     if os.path.isdir(folder) for name in sorted(os.listdir(folder)) if name.endswith(".txt")]
            if paths:
                found[split] = paths
                break
    return found


def read_race(data_dir: str, split: str) -> Split:
    """Read a split of RACE.

    The blank `_` of a question is left as it is.

    Args:
        data_dir: the folder RACE, or the folder above it. split: 'train', 'valid' or 'test'.
    Returns:
        texts article, question, option1 .. option4; labels A to D; groups as in LEVELS. The questions of an article
        share its string.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    paths = race_files(data_dir).get(split)
    if paths is None:
        raise MissingInput(f"{os.path.join(data_dir, 'RACE', PART[split])}: holds no {' or '.join(LEVELS)} folder with "
                           ".txt files; --data_dir has to be RACE's folder, or the folder above it")
    texts = {name: [] for name in ("article", "question", *(f"option{k}" for k in range(1, 5)))}
    labels, groups = [], []
    for path in paths:
        level = LEVELS.index(os.path.basename(os.path.dirname(path)))
        for article, question, options, answer in _questions(path):
            for name, text in zip(texts, (article, question, *options), strict=True):
                texts[name].append(text)
            labels.append(answer)
            groups.append(level)
    if not labels:
        raise BadInput(f"{os.path.dirname(paths[0])}: its {len(paths)} files hold no questions")
    return Split(os.path.dirname(os.path.dirname(paths[0])), texts, labels, np.arange(len(labels)),
                 np.array(groups, dtype=np.int8))


def _questions(path):
    """Yield (article, question, options, answer) of each question in a file: one JSON object, or one a line."""
    whole = "\n".join(line for _, line in lines_of(path))
    try:
        records = [(1, json.loads(whole))]
    except (ValueError, RecursionError):
        records = list(read_jsonl(path))
    for number, record in records:
        if not isinstance(record, dict):
            raise BadInput(f"{path}: holds {shown(whole)}, expected a JSON object with article, questions, options and "
                           "answers")
        article = require_text(path, number, record, "article")
        lists = [record.get(name) for name in ("questions", "options", "answers")]
        if not all(isinstance(values, list) for values in lists) or len({len(values) for values in lists}) != 1:
            raise BadInput(f"{path}: row {number} lacks questions, options and answers as three lists of one length")
        for i, (question, options, answer) in enumerate(zip(*lists, strict=True)):
            where = f"{path}: row {number}, question {i + 1},"
            if not isinstance(options, list) or len(options) != len(LETTERS):
                raise BadInput(f"{where} has {len(options) if isinstance(options, list) else shown(options)} options, "
                               "expected four")
            if answer not in LETTERS:
                raise BadInput(f"{where} has the answer {shown(answer)}, expected A, B, C or D")
            fields = {"question": question} | {f"option {k}": option for k, option in enumerate(options, 1)}
            yield article, *_texts(path, number, fields), answer


def _texts(path, number, fields):
    question, *options = (require_text(path, number, fields, name) for name in fields)
    return question, options
