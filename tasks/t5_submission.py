"""T5's predictions in the forms that GLUE, SuperGLUE and SQuAD take; elsewhere one text a row."""

import json
import re
from collections.abc import Sequence

from formats.errors import warn
from formats.files import write_atomically
from tasks.t5_tasks import Task

__all__ = ["as_in_passage", "file_name", "write_predictions"]

# task -> (name of GLUE's file, whether it wants a class's text in place of its number)
GLUE_FILES = {"cola": ("CoLA", False), "sst2": ("SST-2", False), "mrpc": ("MRPC", False), "qqp": ("QQP", False),
              "stsb": ("STS-B", False), "mnli": ("MNLI-m", True), "qnli": ("QNLI", True), "rte": ("RTE", True),
              "wnli": ("WNLI", False), "wnli_wsc": ("WNLI", False), "ax": ("AX", True)}
# task -> (name of SuperGLUE's file, the words for its classes)
SUPER_GLUE_FILES = {"boolq": ("BoolQ", ("false", "true")), "cb": ("CB", None), "copa": ("COPA", (0, 1)),
                    "super_glue_rte": ("RTE", None), "wic": ("WiC", ("false", "true")),
                    "wsc": ("WSC", ("False", "True")), "axb": ("AX-b", None), "axg": ("AX-g", None),
                    "multirc": ("MultiRC", None), "record": ("ReCoRD", None)}


def file_name(name: str, split: str) -> str:
    """The name of the file of a task's predictions for a set, such as MNLI-mm.tsv for mnli's test_mismatched."""
    if name in GLUE_FILES:
        stem = GLUE_FILES[name][0]
        return f"{stem}m.tsv" if split.endswith("mismatched") else f"{stem}.tsv"
    if name in SUPER_GLUE_FILES:
        return f"{SUPER_GLUE_FILES[name][0]}.jsonl"
    return f"{name}.json" if name.startswith("squad") else f"{name}.tsv"


def write_predictions(path: str, name: str, task: Task, examples: Sequence[dict], predictions: Sequence[str]) -> None:
    """Write the predictions for a set; a text that is no answer of the task gets its first class, with a warning.

    Args:
        name: the task's, in t5_tasks.TASKS; others get the form of their own data.
        examples: see t5_tasks.read_examples. predictions: a text for each.
    Raises:
        BadInput: the file cannot be written.
    """
    if name.startswith("squad"):
        text = json.dumps({example["id"]: as_in_passage(text, example["passage"])
                           for example, text in zip(examples, predictions, strict=True)}, ensure_ascii=False) + "\n"
    elif name in SUPER_GLUE_FILES:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n"
                       for record in _records(name, task, examples, predictions))
    elif name in GLUE_FILES:
        classes, as_text = _classes(task, examples, predictions), GLUE_FILES[name][1]
        if name == "stsb":  # the answers are numbers
            classes = [min(max(value, 0.0), 5.0) if value == value else 0.0 for value in classes]
        rows = (task.labels[value] if as_text else value for value in classes)
        text = "index\tprediction\n" + "".join(f"{i}\t{row}\n" for i, row in enumerate(rows))
    else:
        rows = (" ".join(text.split()) for text in predictions)
        text = "index\tprediction\n" + "".join(f"{i}\t{row}\n" for i, row in enumerate(rows))
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write(text)


def as_in_passage(text: str, passage: str) -> str:
    """An answer to SQuAD as the passage writes it, where it is there: without the blanks around signs that T5 reads.

    SQuAD's own script compares with the file's answers: "U . S ." would not be "U.S.".
    """
    signs = [re.escape(sign) for sign in text if not sign.isspace()]
    found = re.search(r"\s*".join(signs), passage) if signs else None
    return found[0] if found else " ".join(text.split())


def _classes(task, examples, predictions):
    """The class, or number, of each prediction; where it is none, class 0."""
    values = [task.postprocess(text, example, labels=task.labels)
              for example, text in zip(examples, predictions, strict=True)]
    values = [value["value"] if isinstance(value, dict) else value for value in values]
    invalid = sum(value == -1 for value in values)
    if invalid:
        first = repr(task.labels[0]) if task.labels else 0
        warn(f"{invalid} of {len(values)} predictions of {task.original} are none of its answers; they are written as "
             f"{first}")
    return [0 if value == -1 else value for value in values]


def _records(name, task, examples, predictions):
    """SuperGLUE's JSON objects."""
    if name == "record":  # one answer for each query
        first = {}
        for example, text in zip(examples, predictions, strict=True):
            first.setdefault(example["idx/query"], text)
        return [{"idx": idx, "label": text} for idx, text in first.items()]
    classes = _classes(task, examples, predictions)
    if name == "multirc":
        return _multirc_records(examples, classes)
    words = SUPER_GLUE_FILES[name][1] or task.labels
    return [{"idx": example["idx"], "label": words[value]} for example, value in zip(examples, classes, strict=True)]


def _multirc_records(examples, classes):
    """One object for each passage, with its questions and their answers."""
    passages = {}
    for example, value in zip(examples, classes, strict=True):
        questions = passages.setdefault(example["idx/paragraph"], {})
        questions.setdefault(example["idx/question"], []).append({"idx": example["idx/answer"], "label": value})
    return [{"idx": idx, "passage": {"questions": [{"idx": number, "answers": answers}
                                                   for number, answers in questions.items()]}}
            for idx, questions in passages.items()]
