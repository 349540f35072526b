"""What the logs and submissions of runs say, and what explore reads in the models: numbers in text, and pictures.

    python analysis.py log/*.jsonl --out curves.png                cost and metric over updates, a row for each task
    python analysis.py log/l*.jsonl --layers --out layers.png      metric against transferred layers

Runs that differ in the seed alone are drawn as their median with a band. Every draw_ function returns the Figure, which
a notebook shows, and writes it where a path `out` is given; pictures/ holds the drawing.
"""

import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score

from formats.errors import BadInput, MissingInput
from formats.files import read_text
from pictures.dots import draw_seeds
from pictures.lines import Line, Panel, draw_lines
from pictures.tokens import draw_attention, draw_similarities, draw_surprisal
from tasks import metrics
from tasks.gpt_tasks import GPT_TASKS, Task
from tasks.story_cloze import TEST_FILE, _rocstories
from utils import OneLineParser, read_log, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPORTS", "Runs", "best_accuracy", "best_evaluation", "draw_attention", "draw_curves", "draw_layers",
           "draw_seeds", "draw_similarities", "draw_surprisal", "evaluations", "measured", "print_values",
           "read_predictions", "read_submission", "report", "rocstories", "runs_of"]

# what runs of one group may differ in besides the seed: names, and where and how they ran
NOT_OF_A_GROUP = {"seed", "desc", "time", "data", "matmul", "device", "compile", "resume", "submit", "analysis", "out",
                  "save_every", "log_dir", "save_dir", "submission_dir", "cache_dir", "show", "show_split"}


def read_submission(path: str) -> list[int]:
    """Return the predictions in a submission file (columns index, prediction) as a list of int.

    Raises:
        MissingInput, BadInput: absent, or not such a file.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected a submission file written with --submit")
    try:
        return [int(p) for p in pd.read_csv(path, sep="\t")["prediction"].values.tolist()]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: is not a submission file ({str(error)[:80]}); "
                       "expected the columns index and prediction") from None


def rocstories(data_dir: str, pred_path: str, log_path: str) -> tuple[float, float]:
    """Print the validation accuracy of the best evaluation and the test accuracy, in percent; return both.

    Args:
        data_dir: folder with the test file and its answers.
        pred_path: the submission file. log_path: the run's log.
    Raises:
        MissingInput, BadInput: a file is absent, or has another number of rows than the test file.
    """
    predictions = read_submission(pred_path)
    _, _, _, labels = _rocstories(os.path.join(data_dir, TEST_FILE))
    if len(predictions) != len(labels):
        raise BadInput(f"{pred_path}: has {len(predictions)} predictions, but the test file has {len(labels)} stories")
    test_accuracy = accuracy_score(labels, predictions) * 100.
    valid_accuracy = best_accuracy(log_path)
    print(f"ROCStories Valid Accuracy: {valid_accuracy:.2f}")
    print(f"ROCStories Test Accuracy:  {test_accuracy:.2f}")
    return valid_accuracy, test_accuracy


def print_values(name: str, valid: dict, test: dict | None, published: dict, caveat: str) -> None:
    """Print a task's metrics in percent, and the published ones.

    Args:
        name: of the task.
        valid, test: {name in metrics.METRICS: percent}, and of a part <name>_<part>; test None: its labels are not
            public.
        published, caveat: see gpt_tasks.Task.
    """
    for split, values in (("Valid", valid), ("Test", test)):
        for metric, value in (values or {}).items():
            print(f"{name} {split} {metrics.title_of(metric)}: {value:.2f}")
    if published:
        numbers = ", ".join(f"{metric} {value}" for metric, value in published.items())
        print(f"{name} published (Radford et al. 2018): {numbers}" + (f" ({caveat})" if caveat else ""))


def measured(task: Task, data_dir: str, pred_path: str, log_path: str) -> tuple[dict, dict | None]:
    """Return the metrics of a run, in percent: of its best evaluation on valid, and of its submission on test.

    Args:
        task: of gpt_tasks.GPT_TASKS. data_dir, pred_path, log_path: see rocstories.
    Returns:
        two of {metric: percent}, and <metric>_<part> for RACE's levels and MNLI's mismatched part; None in place of the
        second where the test labels are not public.
    Raises:
        MissingInput, BadInput: a file is absent, or the submission is of other rows than the test file's.
    """
    predictions = read_predictions(pred_path)
    split, test = task.read(data_dir, "test"), None
    if split.labels is not None:
        if list(predictions) != split.index.tolist():
            raise BadInput(f"{pred_path}: has {len(predictions)} predictions, but not of the {len(split)} examples in "
                           f"{split.path}")
        labels = np.array([float(label) if task.score_range else task.classes.index(label) for label in split.labels])
        found = _values(task, predictions.values(), pred_path)
        test = metrics.of(task.metrics, found, labels)
        test |= metrics.by_group(task.metrics[0], task.groups, split.groups, found, labels)
    best = best_evaluation(log_path, f"va_{task.metrics[0]}")
    valid = {name.removeprefix("va_"): value for name, value in best.items()
             if name.startswith("va_") and name.removeprefix("va_").startswith(task.metrics)}
    return valid, test


def report(task: Task, data_dir: str, pred_path: str, log_path: str) -> tuple[float, float | None]:
    """Print what measured returns, and the published numbers; see there for arguments and errors.

    Returns:
        the first metric on the validation and on the test split, in percent; None where its labels are not public.
    """
    valid, test = measured(task, data_dir, pred_path, log_path)
    name = os.path.splitext(task.submission["test"])[0].removesuffix("-m")
    print_values(name, valid, test, task.published, task.caveat)
    return valid[task.metrics[0]], test and test[task.metrics[0]]


def _values(task, words, path):
    """Return what a submission has written as numbers: classes or scores."""
    try:
        if task.score_range is not None:
            return np.array([float(word) for word in words])
        known = task.classes if task.writes_words else [str(k) for k in range(len(task.classes))]
        return np.array([known.index(word) for word in words])
    except ValueError as error:
        raise BadInput(f"{path}: has a prediction that the task does not know ({error}); it is of another task") \
            from None


def read_predictions(path: str) -> dict[int, str]:
    """Return {index: prediction} of a submission file, as it is written there.

    Raises:
        MissingInput, BadInput: absent, or not such a file.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected a submission file written with --submit")
    try:
        lines = read_text(path, "write it again with --submit").split("\n")
        header, rows = lines[0], [line.split("\t") for line in lines[1:] if line]
        if header != "index\tprediction":
            raise ValueError(f"its header is {header[:40]!r}")
        return {int(index): word for index, word in rows}
    except ValueError as error:
        raise BadInput(f"{path}: is not a submission file ({str(error)[:80]}); "
                       "expected the columns index and prediction") from None


# data set -> report on a submission
REPORTS = {name: partial(report, task) for name, task in GPT_TASKS.items()} | {"rocstories": rocstories}


def evaluations(log_path: str) -> list[dict]:
    """Return the evaluation lines of a log, without the arguments.

    Raises:
        BadInput: there are none.
    """
    lines = [line for line in read_log(log_path)[1:]
             if isinstance(line, dict) and {"n_updates", "va_cost"} <= line.keys()]
    if not lines:
        raise BadInput(f"{log_path}: holds no evaluation yet")
    return lines


def best_evaluation(log_path: str, name: str) -> dict:
    """Return the evaluation line of a log with the best value of a metric, such as va_acc; the first of equals.

    Raises:
        BadInput: no line has it.
    """
    lines = [line for line in evaluations(log_path) if name in line]
    if not lines:
        raise BadInput(f"{log_path}: holds no {name}; expected the log of a fine-tuning on a task with this metric")
    return max(lines, key=lambda line: line[name])


def best_accuracy(log_path: str) -> float:
    """Return the best validation accuracy in a log, in percent.

    Raises:
        BadInput: the log is not one of fine-tuning.
    """
    accuracies = [line["va_acc"] for line in evaluations(log_path) if "va_acc" in line]
    if not accuracies:
        raise BadInput(f"{log_path}: holds no accuracy (va_acc); expected the log of train.py or train_t5.py")
    return max(accuracies)


class Runs(NamedTuple):
    """Runs that differ in nothing but the seed: their name, task ('' where there is none), and logs, one a seed."""

    name: str
    task: str
    logs: list[str]


def runs_of(log_paths: list[str], labels: list[str] | None = None) -> list[Runs]:
    """Group logs whose options differ in the seed alone, in the order of the first of each.

    Args:
        log_paths: logs of any training script.
        labels: a name for each log; logs of one label and task are one group. None: the file's name, without the seed
            at its end where there are several.
    """
    headers = [(read_log(path) or [None])[0] for path in log_paths]
    headers = [header if isinstance(header, dict) else {} for header in headers]
    tasks = [str(header.get("dataset") or "") for header in headers]
    names, groups = names_of(log_paths), {}
    for i, header in enumerate(headers):
        seed, copy = header.get("seed"), 0
        own = json.dumps({name: value for name, value in header.items() if name not in NOT_OF_A_GROUP}, sort_keys=True)
        if labels:
            own = tasks[i], labels[i]
        while not labels and seed in [headers[j].get("seed") for j in groups.get((own, copy), ())]:
            copy += 1  # another run of the same seed
        groups.setdefault((own, copy), []).append(i)
    found = []
    for members in groups.values():
        first = members[0]
        name = names[first].removesuffix(f"-{headers[first].get('seed')}") if len(members) > 1 else names[first]
        found.append(Runs(labels[first] if labels else name, tasks[first], [log_paths[i] for i in members]))
    return found


def draw_curves(log_paths: list[str], out: str | None = None, labels: list[str] | None = None) -> "Figure":
    """Draw validation cost (nats) and, where there is one, the task's metric (percent) over updates.

    There is a row of two panels for each task. Runs that differ in the seed alone are a line, their median, with a
    band from the lowest to the highest.

    Args:
        log_paths: logs of any training script; cost is per example in fine-tuning, per token in pre-training.
        labels: their names; see runs_of for the default.
    """
    groups, panels = runs_of(log_paths, labels), []
    for task in dict.fromkeys(group.task for group in groups):
        of_task = [group for group in groups if group.task == task]
        metric = _metric_of(of_task[0].logs[0])
        title = task if len({group.task for group in groups}) > 1 else None
        panels.append(Panel([_course(group, "va_cost") for group in of_task], "updates", "validation cost (nats)",
                            title=title, ylim=(0, None)))
        if metric is not None:
            panels.append(Panel([_course(group, f"va_{metric}") for group in of_task], "updates",
                                f"validation {_title_of(metric)}", chance=_chance_of(task, metric)))
    return draw_lines(panels, out)


def _course(group, name):
    """Return a Line of one column of some logs over updates."""
    by_update = {}
    for path in group.logs:
        for line in evaluations(path):
            by_update.setdefault(line["n_updates"], []).append(np.nan if line.get(name) is None else line[name])
    return Line(group.name, sorted(by_update), [by_update[n] for n in sorted(by_update)])


def _metric_of(log_path):
    """Return the name of the metric that a log judges by: its task's first, else the first besides the cost, or None.

    Of pre-training it is the perplexity.
    """
    names = [name.removeprefix("va_") for name in evaluations(log_path)[0] if name.startswith("va_")]
    header = read_log(log_path)[0]
    task = GPT_TASKS.get(header.get("dataset")) if isinstance(header, dict) else None
    if task is not None and task.metrics[0] in names:
        return task.metrics[0]
    return next((name for name in ("acc", *names) if name in names and name != "cost"), None)


def _title_of(metric):
    return {"acc": "accuracy (%)", "ppl": "perplexity"}.get(metric) or f"{metrics.TITLES.get(metric, metric)} (%)"


def _chance_of(task, metric):
    """Return what guessing gives in a task's accuracy, in percent; 0 in a correlation; None where nobody knows."""
    known = GPT_TASKS.get(task)
    if metric == "acc" and known is not None:
        return 100 / known.n_out
    return 0 if metric in ("matthews", "pearson", "spearman") else None


def draw_layers(log_paths: list[str], out: str | None = None) -> "Figure":
    """Draw the best validation metric (percent) against n_transfer, the paper's figure 2 (left) from any logs.

    Logs of a task that share an n_transfer, such as those of several seeds, are drawn as their median with a band; each
    task has its line.
    """
    by_task, metric = {}, {}
    for path in log_paths:
        header = (read_log(path) or [None])[0]
        if not isinstance(header, dict) or "n_transfer" not in header:
            raise BadInput(f"{path}: its first line names no n_transfer; expected the log of train.py")
        task = str(header.get("dataset") or "")
        metric.setdefault(task, _metric_of(path))
        by_layers = by_task.setdefault(task, {})
        name = f"va_{metric[task]}"
        by_layers.setdefault(header["n_transfer"], []).append(best_evaluation(path, name)[name])
    lines = [Line(task or "median", sorted(found), [found[n] for n in sorted(found)])
             for task, found in by_task.items()]
    titles = {_title_of(name) for name in metric.values()}
    layers = sorted({n for found in by_task.values() for n in found})
    names = {-1: "none\n(scratch)", 0: "embedding\nonly"}
    return draw_lines([Panel(lines, "pretrained layers transferred",
                             f"best validation {titles.pop() if len(titles) == 1 else 'metric (%)'}",
                             ticks={n: names.get(n, str(n)) for n in layers})], out)


def names_of(paths):
    """Return a name for each log: the file's, with as much of its folders as tells it from the others."""
    parts = [os.path.splitext(os.path.abspath(path))[0].split(os.sep) for path in paths]

    def name(mine, length):
        return os.sep.join(mine[-length:])

    lengths = [1] * len(parts)
    for i, mine in enumerate(parts):
        while lengths[i] < len(mine) and any(other != mine and name(other, lengths[i]) == name(mine, lengths[i])
                                             for other in parts):
            lengths[i] += 1
    return [name(mine, length) for mine, length in zip(parts, lengths, strict=True)]


def main(argv=None):
    """Draw the logs named on the command line."""
    p = OneLineParser(prog="analysis.py", description="Draw the logs of training runs.")
    p.add_argument("logs", nargs="+", help="log files (log/*.jsonl)")
    p.add_argument("--layers", action="store_true", help="accuracy against n_transfer instead of courses over updates")
    p.add_argument("--out", default="curves.png", help="the picture to write (.png, .pdf or .svg)")
    args = p.parse_args(argv)
    if os.path.splitext(args.out)[1] not in (".png", ".pdf", ".svg"):
        raise BadInput(f"--out is {args.out!r}, expected a name ending in .png, .pdf or .svg")
    (draw_layers if args.layers else draw_curves)(args.logs, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(run_script(main))
