"""What the logs and submissions of runs say, and what explore reads in the models: numbers in text, and pictures.

    python analysis.py log/a.jsonl log/b.jsonl --out curves.png    cost and accuracy over updates
    python analysis.py log/l*.jsonl --layers --out layers.png      accuracy against transferred layers

Every draw_ function returns the Figure, which a notebook shows, and writes it where a path `out` is given.
"""

import contextlib
import io
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score

from datasets import TEST_FILE, _rocstories
from formats.errors import BadInput, MissingInput
from formats.files import read_text, write_atomically
from tasks import metrics
from tasks.gpt_tasks import GPT_TASKS, Task
from utils import OneLineParser, read_log, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REPORTS", "best_accuracy", "best_evaluation", "draw_attention", "draw_curves", "draw_layers", "draw_seeds",
           "draw_similarities", "draw_surprisal", "evaluations", "measured", "print_values", "read_predictions",
           "read_submission", "report", "rocstories"]

LINES = ["-", "--", ":", "-."]  # lines and markers tell runs apart in grey
MARKERS = "osv^Dx"


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


def draw_curves(log_paths: list[str], out: str | None = None, labels: list[str] | None = None) -> "Figure":
    """Draw validation cost (nats) and, where there is one, accuracy (percent) over updates.

    Args:
        log_paths: logs of any training script; cost is per example in fine-tuning, per token in pre-training.
        labels: their names; see names_of for the default.
    """
    figure = _figure(10, 4)
    cost, accuracy = figure.subplots(1, 2)
    labels = labels or names_of(log_paths)
    for i, path in enumerate(log_paths):
        lines = evaluations(path)
        x = [line["n_updates"] for line in lines]
        grey = str(0.6 * i / max(len(labels) - 1, 1))
        style = dict(color=grey, marker=MARKERS[i % len(MARKERS)], markersize=4)
        cost.plot(x, [line["va_cost"] for line in lines], LINES[i % len(LINES)], **style)
        accuracy.plot(x, [line.get("va_acc", np.nan) for line in lines], LINES[i % len(LINES)], **style)
    cost.set(xlabel="updates", ylabel="validation cost (nats)", ylim=(0, None))
    accuracy.set(xlabel="updates", ylabel="validation accuracy (%)")
    accuracy.axhline(50, color="0.8", linewidth=1, zorder=0)
    accuracy.annotate("chance", (0.01, 50), xycoords=("axes fraction", "data"), color="0.5", fontsize=8, va="bottom")
    _legend(accuracy, labels)
    return _save(figure, out)


def draw_layers(log_paths: list[str], out: str | None = None) -> "Figure":
    """Draw best validation accuracy (percent) against n_transfer, the paper's figure 2 (left) from any logs.

    Logs that share an n_transfer, such as those of several seeds, are drawn as their median with a range.
    """
    by_layers = {}
    for path in log_paths:
        header = (read_log(path) or [None])[0]
        if not isinstance(header, dict) or "n_transfer" not in header:
            raise BadInput(f"{path}: its first line names no n_transfer; expected the log of train.py")
        by_layers.setdefault(header["n_transfer"], []).append(best_accuracy(path))
    layers = sorted(by_layers)
    median = np.array([np.median(by_layers[n]) for n in layers])
    spread = np.array([[m - min(by_layers[n]), max(by_layers[n]) - m] for n, m in zip(layers, median, strict=True)]).T
    figure = _figure(6, 4)
    axes = figure.subplots()
    axes.errorbar(layers, median, yerr=spread, color="black", marker="o", capsize=3)
    names = {-1: "none\n(scratch)", 0: "embedding\nonly"}
    axes.set_xticks(layers, [names.get(n, str(n)) for n in layers])
    axes.set(xlabel="pretrained layers transferred", ylabel="best validation accuracy (%)")
    return _save(figure, out)


def draw_seeds(accuracies: dict[int, float], out: str | None = None, published: dict[str, float] | None = None,
               title: str | None = None, what: str = "test accuracy (%)") -> "Figure":
    """Draw the test accuracy of every seed as a dot, their median as a line, and published numbers as thin lines.

    Args:
        accuracies: {seed: percent}. published: {label: percent}. what: is drawn, the axis' name.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    seeds, median = sorted(accuracies), float(np.median(list(accuracies.values())))
    lines = [(f"median: {median:.2f}", median, "-", "black"),
             *((label, value, LINES[1 + i % 3], "0.45") for i, (label, value) in enumerate((published or {}).items()))]
    for label, value, line, color in lines:
        axes.axhline(value, linestyle=line, color=color, linewidth=1, label=label)
    axes.plot(range(len(seeds)), [accuracies[seed] for seed in seeds], "o", color="black", label="one seed")
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.set(xlabel="seed", ylabel=what, xlim=(-0.5, len(seeds) - 0.5), title=title)
    axes.margins(y=0.1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, out)


def draw_attention(weights: np.ndarray, columns: list[str], rows: list[str] | None = None,
                   out: str | None = None) -> "Figure":
    """Draw the attention weights of each layer (down) and head (across); the darker, the more.

    Args:
        weights: [l, h, t, j] of one text, as explore.attention gives them for a batch: its [:, 0].
        columns: the tokens that are attended to; longer weights, which are padding there, are cut to them.
        rows: the tokens that attend; None: the same.
    Returns:
        the Figure.
    Raises:
        BadInput: another number of axes, or more tokens than weights.
    """
    rows = columns if rows is None else rows
    weights = np.asarray(weights)
    if weights.ndim != 4 or weights.shape[2] < len(rows) or weights.shape[3] < len(columns):
        raise BadInput(f"weights are {list(weights.shape)}, expected [layers, heads, {len(rows)} or more, "
                       f"{len(columns)} or more] for these tokens: of one text of the batch, such as weights[:, 0]")
    n_layer, n_head = weights.shape[:2]
    size = max(1.2, 0.16 * max(len(rows), len(columns)))
    figure = _figure(size * n_head + 1, size * n_layer + 1)
    grid = figure.subplots(n_layer, n_head, squeeze=False, sharex=True, sharey=True)
    for layer, of_layer in enumerate(grid):
        for head, axes in enumerate(of_layer):
            axes.imshow(weights[layer, head, :len(rows), :len(columns)], cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
            axes.set_yticks(range(len(rows)), rows, fontsize=6)
            if layer == 0:
                axes.set_title(f"head {head}", fontsize=8)
        of_layer[0].set_ylabel(f"layer {layer}", fontsize=8)
    return _save(figure, out)


def draw_surprisal(table: pd.DataFrame, out: str | None = None) -> "Figure":
    """Draw the surprisal of each token as a bar over it, a row for each text.

    Args:
        table: what explore.surprisal returns.
    Returns:
        the Figure.
    """
    texts = [rows for _, rows in table.groupby("text")]
    longest = max(map(len, texts), default=1)
    highest = 1.05 * table["surprisal"].max() if table["surprisal"].notna().any() else 1  # one scale for all texts
    figure = _figure(max(4, 0.45 * longest), 1.9 * max(len(texts), 1))
    for axes, rows in zip(figure.subplots(max(len(texts), 1), 1, squeeze=False)[:, 0], texts, strict=False):
        values = rows["surprisal"].to_numpy(dtype=float)
        axes.bar(range(len(rows)), np.nan_to_num(values), color="0.4")
        axes.set_xticks(range(len(rows)), rows["token"], rotation=60, ha="right", fontsize=8)
        axes.set(ylabel="surprisal (nats)", xlim=(-0.6, longest - 0.4), ylim=(0, highest))
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out)


def draw_similarities(cosines: np.ndarray, labels: list[str], out: str | None = None) -> "Figure":
    """Draw a table of cosines, with its numbers.

    Args:
        cosines: [n, n], see explore.similarities. labels: n names.
    Returns:
        the Figure.
    """
    cosines = np.asarray(cosines)
    size = 1.5 + 0.6 * len(labels)
    figure = _figure(size + 1, size)
    axes = figure.subplots()
    axes.imshow(cosines, cmap="Greys", vmin=-1, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for i, row in enumerate(cosines):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if value > 0.4 else "black")
    return _save(figure, out)


def _figure(width, height):
    """Return an empty matplotlib Figure, in inches. It is not pyplot's: it needs no screen and no global state."""
    # A notebook's terminal names a backend in MPLBACKEND that need not be installed here. matplotlib reads the variable
    # when it is imported, and cannot be imported where it does not know the name.
    backend = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    import matplotlib
    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A Figure that a notebook shows without any setting."""

        def _repr_png_(self):
            data = io.BytesIO()
            self.savefig(data, format="png", dpi=100)
            return data.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def _legend(axes, labels):
    """Draw the legend of the first lines of axes. Names stand as they are: matplotlib would hide `_a` and set `$x$`."""
    legend = axes.legend(axes.get_lines()[:len(labels)], [f"line {i}" for i in range(len(labels))], frameon=False)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label.encode(errors="backslashreplace").decode())  # a file's name may be any bytes


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


def _save(figure, out):
    """Write a figure where a path is given; return it."""
    if out is not None:
        with write_atomically(out) as temporary:
            figure.savefig(temporary, format=os.path.splitext(out)[1].lstrip(".") or "png", dpi=120)
    return figure


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
