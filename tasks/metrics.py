"""The metrics of GPT-1's tasks (paper tables 2 to 4), in percent: scikit-learn's and SciPy's, by short names.

    of("acc f1".split(), predictions, labels)      {'acc': 75.0, 'f1': 80.0}

Where a correlation has no value, as one side is constant, it is 0: such predictions tell nothing.
"""

import warnings

import numpy as np
from scipy import stats
from sklearn import metrics

from formats.errors import BadInput

__all__ = ["METRICS", "TITLES", "by_group", "difference", "of", "title_of"]


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions, in percent."""
    return 100 * metrics.accuracy_score(labels, predictions)


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, in percent; 0 where nothing is predicted or labelled 1."""
    return 100 * metrics.f1_score(np.equal(labels, 1), np.equal(predictions, 1), zero_division=0)


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation of predicted and true classes, in percent, -100 to 100."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found")
        return 100 * metrics.matthews_corrcoef(labels, predictions)


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation of predicted and true scores, in percent, -100 to 100."""
    return _correlation(stats.pearsonr, predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's correlation, that of the ranks, in percent, -100 to 100."""
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(function, predictions, labels):
    predictions, labels = (np.asarray(values, dtype=np.float64) for values in (predictions, labels))
    if len(labels) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        value = 100 * float(function(predictions, labels).statistic)
    return value if np.isfinite(value) else 0.0


# name, as in the log's va_<name> -> function of predictions and labels; and what a report calls it
METRICS = {"acc": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
TITLES = {"acc": "Accuracy", "f1": "F1", "matthews": "Matthews Correlation", "pearson": "Pearson Correlation",
          "spearman": "Spearman Correlation"}


def of(names: list, predictions: np.ndarray, labels: np.ndarray) -> dict:
    """Return {name: percent} of some METRICS.

    Args:
        names: keys of METRICS. predictions, labels: [n], classes or, for pearson and spearman, scores.
    Raises:
        BadInput: there are no labels, or not as many as predictions.
    """
    if len(predictions) != len(labels) or not len(labels):
        raise BadInput(f"there are {len(predictions)} predictions and {len(labels)} labels, expected as many, and at "
                       "least one")
    return {name: float(METRICS[name](predictions, labels)) for name in names}


def by_group(name: str, groups: tuple, numbers: np.ndarray | None, predictions: np.ndarray, labels: np.ndarray) -> dict:
    """Return {name_group: percent} of one metric for each group apart that has examples; {} where there are no groups.

    Args:
        name: a key of METRICS. groups: their names, see gpt_tasks.Task. numbers: int [n], the group of each example.
        predictions, labels: see of.
    """
    if numbers is None:
        return {}
    members = {group: np.flatnonzero(numbers == k) for k, group in enumerate(groups)}
    return {f"{name}_{group}": of([name], predictions[rows], labels[rows])[name] for group, rows in members.items()
            if len(rows)}


def title_of(name: str) -> str:
    """Return what a report calls a metric, of a part of the examples too: acc_middle is Accuracy (middle)."""
    metric, _, part = name.partition("_")
    return TITLES[metric] + (f" ({part})" if part else "")


def difference(right: np.ndarray, other: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """How much more often one way of training is right than another, on the same examples and with the same seeds.

    The interval allows for the examples, by the spread of the paired differences over them (means over the seeds), and,
    with two seeds or more, for the seeds, by that over them (Student's t); the two half-widths are added in squares.

    Args:
        right, other: bool [seeds, n], whether each of n examples was right.
    Returns:
        (the mean difference, the lower and the upper end of its interval), in points of percent.
    Raises:
        BadInput: another shape, or fewer than two examples.
    """
    right, other = (np.asarray(values, dtype=np.float64) for values in (right, other))
    if right.shape != other.shape or right.ndim != 2 or right.shape[1] < 2:
        raise BadInput(f"right is {list(right.shape)} and other {list(other.shape)}, expected two of one shape, "
                       "[seeds, n], with two examples or more")
    differences = 100 * (right - other)
    squares = sum(stats.t.ppf(0.5 + level / 2, len(means) - 1) ** 2 * means.var(ddof=1) / len(means)
                  for means in (differences.mean(0), differences.mean(1)) if len(means) > 1)
    mean = float(differences.mean())
    return mean, mean - float(squares) ** 0.5, mean + float(squares) ** 0.5
