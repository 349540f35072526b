"""Text-to-text data of one's own: files of inputs and targets to examples, and the metrics that may judge them."""

import os
import re
from collections.abc import Sequence

from formats.errors import BadInput
from tasks import t5_metrics, t5_postprocess
from tasks.files import lines_of, open_csv, open_tsv, read_jsonl, require_text, shown
from tasks.t5_tasks import Task

__all__ = ["METRICS", "own_task", "read_inputs", "read_pairs"]

COLUMNS = ("input", "target")
KINDS = (".tsv", ".csv", ".jsonl")


def _one_answer(metric, name=None):
    """A metric of lists of answers, as one of single targets; name: keep that value alone."""
    def of(targets, predictions):
        values = metric([[target] for target in targets], predictions)
        return values if name is None else {name: values[{"exact_match": "em"}.get(name, name)]}
    return of


def _of_numbers(metric):
    """A correlation, as a metric of texts; one that is no number is -1, as in T5's STS-B."""
    return lambda targets, predictions: metric([t5_postprocess.number(text) for text in targets],
                                               [t5_postprocess.number(text) for text in predictions])


# --metric -> function of target and predicted texts
METRICS = {"accuracy": t5_metrics.accuracy, "exact_match": _one_answer(t5_metrics.squad, "exact_match"),
           "f1": _one_answer(t5_metrics.squad, "f1"), "squad": _one_answer(t5_metrics.squad),
           "bleu": t5_metrics.bleu, "rouge": t5_metrics.rouge, "matthews": t5_metrics.matthews_corrcoef,
           "pearson": _of_numbers(t5_metrics.pearson_corrcoef), "spearman": _of_numbers(t5_metrics.spearman_corrcoef)}


def read_pairs(path: str, columns: Sequence[str] = COLUMNS, template: str | None = None, given: bool = False,
               with_target: bool = True) -> list[dict]:
    """Read a file of inputs and targets.

    .tsv: two fields a row, input and target, without header and quoting (T5's own form); with `given` a header names
    the columns. .csv: a header, fields may be quoted. .jsonl: one object a line.

    Args:
        columns: names of the columns of input and target.
        template: the input's text, with names of columns in braces in place of what they hold.
        given: whether columns or template were asked for.
        with_target: False: the target may be missing, and is then the empty text.
    Returns:
        dicts of "inputs" and "targets", in the file's order.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    kind = os.path.splitext(path)[1].lower()
    if kind not in KINDS:
        raise BadInput(f"{path}: expected a file whose name ends in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    names = re.findall(r"\{([^{}]*)\}", template) if template is not None else [columns[0]]
    if not names:
        raise BadInput(f"the template {shown(template)} names no column; write {{name}} where a column's text belongs")
    if kind == ".tsv" and not given:
        rows = _plain_tsv(path, with_target)
    elif kind == ".jsonl":
        rows = _objects(path, names, columns[1], with_target)
    else:
        rows = _table(open_csv(path) if kind == ".csv" else open_tsv(path), names, columns[1], with_target)

    def text(fields):
        return fields[0] if template is None else re.sub(r"\{([^{}]*)\}", lambda match: values[match[1]], template)

    found = []
    for fields, target in rows:
        values = dict(zip(names, fields, strict=True))
        found.append({"inputs": text(fields), "targets": target})
    if not found:
        raise BadInput(f"{path}: holds no examples; expected one a row")
    return found


def read_inputs(path: str, column: str = "input", template: str | None = None, given: bool = False) -> list[str]:
    """Read a file of inputs: a text on each line; or .tsv, .csv, .jsonl as read_pairs, without targets.

    Args:
        column: the input's. template, given: see read_pairs.
    Raises:
        MissingInput, BadInput: the file, the row, what was found and expected.
    """
    if os.path.splitext(path)[1].lower() in KINDS:
        return [pair["inputs"] for pair in read_pairs(path, (column, "\0"), template, given, with_target=False)]
    if given:
        raise BadInput(f"{path}: is read as an input on each line, and has no columns; give a .csv, .tsv or .jsonl "
                       "file")
    return [line for _, line in lines_of(path)]


def _plain_tsv(path, with_target):
    """Yield ([input], target) of T5's own form."""
    for number, line in lines_of(path):
        fields = line.split("\t")
        if len(fields) != 2 and (with_target or len(fields) != 1):
            raise BadInput(f"{path}: row {number} has {len(fields)} field{'s' * (len(fields) != 1)}, expected 2 "
                           "separated by a tab: input and target, without header; for other columns give --columns")
        yield fields[:1], fields[1] if len(fields) == 2 else ""


def _objects(path, names, target, with_target):
    """Yield ([text of each column], target) of JSON lines."""
    for number, record in read_jsonl(path):
        has_target = with_target or target in record
        yield ([require_text(path, number, record, name) for name in names],
               require_text(path, number, record, target) if has_target else "")


def _table(table, names, target, with_target):
    """Yield ([text of each column], target) of a table with a header."""
    has_target = with_target or target in table.header
    places = table.places([*names, target] if has_target else names)
    for _, fields in table.rows:
        texts = [fields[place] for place in places]
        yield texts[:len(names)], texts[len(names)] if has_target else ""


def own_task(files: dict[str, str | None], columns: Sequence[str], template: str | None, given: bool,
             metrics: Sequence[str], target_length: int) -> Task:
    """Return the Task of one's own files.

    Args:
        files: {"train", "valid", "test": path, or None}. metrics: keys of METRICS, the first selects.
        Else as read_pairs.
    """
    def read(data_dir, split):
        return read_pairs(files[split], columns, template, given, with_target=split != "test")

    splits = {split: (split,) if path else () for split, path in files.items()}
    return Task(read, _as_it_is, tuple(METRICS[name] for name in metrics), t5_postprocess.text, "own", None,
                target_length, splits=splits)


def _as_it_is(example):
    return [example]
