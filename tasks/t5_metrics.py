"""The metrics of T5's tasks: targets and predictions to {metric: value}, values in percent as in the paper's tables.

A function here has the name that the original's has. scikit-learn, scipy and sacrebleu compute what they are known for;
ROUGE is written out, and checked against the original's numbers.
"""

import collections
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sacrebleu
import scipy.stats
from sklearn import metrics

__all__ = ["accuracy", "all_match", "average_glue", "average_super_glue", "bleu", "deduplicate_metric",
           "f1_score_with_invalid", "matthews_corrcoef", "mean_group_metric", "mean_multiclass_f1",
           "multirc_f1_over_all_answers", "normalize_squad", "normalize_trivia_qa", "pearson_corrcoef", "rouge",
           "rouge_mean", "sequence_accuracy", "spearman_corrcoef", "squad", "trivia_qa"]

ROUGE_DRAWS = 1000  # samples of the bootstrap, as in the original
# the columns of the paper's averages: (task, metrics whose mean is the column)
GLUE_COLUMNS = (("cola", ("matthews_corrcoef",)), ("sst2", ("accuracy",)), ("mrpc", ("f1", "accuracy")),
                ("stsb", ("pearson_corrcoef", "spearman_corrcoef")), ("qqp", ("f1", "accuracy")),
                ("mnli", ("accuracy", "mismatched_accuracy")), ("qnli", ("accuracy",)), ("rte", ("accuracy",)))
SUPER_GLUE_COLUMNS = (("boolq", ("accuracy",)), ("cb", ("mean_3class_f1", "accuracy")), ("copa", ("accuracy",)),
                      ("multirc", ("f1", "exact_match")), ("record", ("f1", "em")),
                      ("super_glue_rte", ("accuracy",)), ("wic", ("accuracy",)), ("wsc", ("accuracy",)))


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Share of predictions equal to their targets; numbers or texts."""
    return {"accuracy": 100 * float(metrics.accuracy_score(targets, predictions))}


def sequence_accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Share of predictions equal to their targets, as a whole and case-sensitive; of any type."""
    return {"sequence_accuracy": 100 * float(np.mean([p == t for p, t in zip(predictions, targets, strict=True)]))}


def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews correlation; -1 (no label) counts as one more class. 0 where undefined."""
    return {"matthews_corrcoef": 100 * float(_quietly(metrics.matthews_corrcoef, targets, predictions))}


def f1_score_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of class 1; a prediction that is neither 0 nor 1 counts as the opposite of its target. 0 where undefined."""
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    predictions = np.where(np.isin(predictions, (0, 1)), predictions, 1 - targets)
    return {"f1": 100 * float(metrics.f1_score(targets, predictions, zero_division=0))}


def mean_multiclass_f1(targets: Sequence[int], predictions: Sequence[int], num_classes: int = 3) -> dict[str, float]:
    """Mean of the F1 of classes 0 to num_classes - 1; other predictions count for no class."""
    value = metrics.f1_score(targets, predictions, labels=list(range(num_classes)), average="macro", zero_division=0)
    return {f"mean_{num_classes}class_f1": 100 * float(value)}


def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson correlation; nan where one side is constant.

    Raises:
        ValueError: a single pair.
    """
    return {"pearson_corrcoef": 100 * float(_quietly(scipy.stats.pearsonr, targets, predictions)[0])}


def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Spearman rank correlation; nan where one side is constant."""
    return {"spearman_corrcoef": 100 * float(_quietly(scipy.stats.spearmanr, targets, predictions)[0])}


def _quietly(function, *arguments):
    """Call a function without its warnings that a constant side has no correlation: the nan or 0 says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def multirc_f1_over_all_answers(targets: Sequence[dict], predictions: Sequence[dict]) -> dict[str, float]:
    """F1 over all answers of all questions; targets and predictions as t5_postprocess.multirc returns them."""
    return f1_score_with_invalid([t["value"] for t in targets], [p["value"] for p in predictions])


def all_match(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """100 where all predictions of a group equal their targets, else 0."""
    return {"exact_match": 100.0 * (list(targets) == list(predictions))}


def mean_group_metric(targets: Sequence[dict], predictions: Sequence[dict],
                      metric: Callable = all_match) -> dict[str, float]:
    """Mean over groups of a metric of their values.

    Args:
        targets: {"group": of which group, "value": ...}. predictions: {"value": ...}.
        metric: function of this file from the values of a group.
    """
    groups = collections.defaultdict(lambda: ([], []))
    for target, prediction in zip(targets, predictions, strict=True):
        values = groups[_key(target["group"])]
        values[0].append(target["value"])
        values[1].append(prediction["value"])
    scores = [metric(*values) for values in groups.values()]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def deduplicate_metric(targets: Sequence[dict], predictions: Sequence[dict],
                       metric: Callable | None = None) -> dict[str, float]:
    """A metric (squad by default) of the first example of each group; arguments as in mean_group_metric."""
    first = {}
    for target, prediction in zip(targets, predictions, strict=True):
        first.setdefault(_key(target["group"]), (target["value"], prediction["value"]))
    return (metric or squad)([t for t, _ in first.values()], [p for _, p in first.values()])


def _key(group):
    """A group's number, or pair of numbers, as a key of a dict."""
    return tuple(group) if isinstance(group, list) else group


def normalize_squad(text: str) -> str:
    """An answer without case, ASCII signs, articles and doubled blanks, as SQuAD compares them."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _without_articles(text)


def normalize_trivia_qa(text: str) -> str:
    """As normalize_squad, with blanks in place of the signs, and four more quotation marks."""
    signs = string.punctuation + "‘’´`"
    text = text.lower().translate(str.maketrans(signs, " " * len(signs)))
    return _without_articles(text)


def _without_articles(text):
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(target, prediction):
    """F1 of the words of two normalised texts."""
    target, prediction = target.split(), prediction.split()
    same = (collections.Counter(target) & collections.Counter(prediction)).total()
    return 2 * same / (len(target) + len(prediction)) if same else 0.0


def _answers(targets, predictions, normalize):
    """Exact match and word F1, each the best over an example's answers, then the mean over examples."""
    exact, f1 = [], []
    for answers, prediction in zip(targets, predictions, strict=True):
        answers, prediction = [normalize(answer) for answer in answers], normalize(prediction)
        exact.append(max(answer == prediction for answer in answers))
        f1.append(max(_word_f1(answer, prediction) for answer in answers))
    return {"em": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))}


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and F1 against each example's list of answers."""
    return _answers(targets, predictions, normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """TriviaQA's exact match and F1 against each example's list of answers."""
    return _answers(targets, predictions, normalize_trivia_qa)


def bleu(targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacrebleu, cased, with its international tokenisation.

    Args:
        targets: a text for each prediction; or several lists of such texts, the streams of references.
    """
    streams = [targets] if isinstance(targets[0], str) else targets
    value = sacrebleu.corpus_bleu(predictions, streams, smooth_method="exp", force=False, lowercase=False,
                                  tokenize="intl", use_effective_order=False).score
    return {"bleu": float(value)}


def rouge_mean(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and summary-level ROUGE-L: the mean F1 over examples, without stemming.

    Raises:
        ValueError: no examples.
    """
    return _rouge_values(_rouge_scores(targets, predictions).mean(0))


def rouge(targets: Sequence[str], predictions: Sequence[str], seed: int = 0) -> dict[str, float]:
    """As rouge_mean, but the median of the means of ROUGE_DRAWS samples with replacement: the paper's number.

    Args:
        seed: of the draws. The same examples with the same seed give the same numbers.
    """
    scores, draws = _rouge_scores(targets, predictions), np.random.RandomState(seed)
    columns = []
    for column in scores.T:  # a fresh sample for each metric, one after the other, as in the original
        means = [column[draws.choice(len(column), size=len(column))].mean() for _ in range(ROUGE_DRAWS)]
        columns.append(np.median(means))
    return _rouge_values(columns)


def _rouge_values(columns):
    return {name: 100 * float(value) for name, value in zip(("rouge1", "rouge2", "rougeLsum"), columns, strict=True)}


def _rouge_scores(targets, predictions):
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum of each example, float64 [n, 3]."""
    if not len(targets):
        raise ValueError("ROUGE of no examples; give at least one")
    rows = []
    for target, prediction in zip(targets, predictions, strict=True):
        # sentences end where a dot stands alone, which is how the paper's data wrote them
        target, prediction = target.replace(" . ", " .\n"), prediction.replace(" . ", " .\n")
        words = _rouge_words(target), _rouge_words(prediction)
        rows.append([_ngram_f1(*words, 1), _ngram_f1(*words, 2), _summary_f1(target, prediction)])
    return np.array(rows)


def _rouge_words(text):
    """Runs of ASCII letters and digits, in lower case."""
    return re.findall("[a-z0-9]+", text.lower())


def _f1(same, n_target, n_prediction):
    return 2 * same / (n_target + n_prediction) if same else 0.0


def _ngram_f1(target, prediction, n):
    """F1 of the n-grams of two lists of words."""
    target, prediction = (collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))
                          for words in (target, prediction))
    return _f1((target & prediction).total(), target.total(), prediction.total())


def _summary_f1(target, prediction):
    """Summary-level ROUGE-L (Lin 2004, section 3.2): of each target sentence, the union of its longest common
    subsequences with all predicted sentences; a word counts no more often than it stands in either text."""
    targets, predictions = ([_rouge_words(line) for line in text.split("\n") if line] for text in (target, prediction))
    left = [collections.Counter(word for words in side for word in words) for side in (targets, predictions)]
    n_target, n_prediction = (counter.total() for counter in left)
    same = 0
    for sentence in targets:
        union = set().union(*(_common_subsequence(sentence, other) for other in predictions))
        for i in sorted(union):
            if all(counter[sentence[i]] > 0 for counter in left):
                same += 1
                for counter in left:
                    counter[sentence[i]] -= 1
    return _f1(same, n_target, n_prediction)


def _common_subsequence(a, b):
    """Places in `a` of a longest common subsequence of two lists of words."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int64)
    for i, word in enumerate(a, 1):
        row, above = table[i], table[i - 1]
        for j, other in enumerate(b, 1):
            row[j] = above[j - 1] + 1 if word == other else max(row[j - 1], above[j])
    i, j, places = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif table[i, j - 1] > table[i - 1, j]:
            j -= 1
        else:
            i -= 1
    return places


def _average(columns, scores):
    values = [[scores.get(f"{task}/{metric}") for metric in names] for task, names in columns]
    if any(value is None for column in values for value in column):
        return None
    return float(np.mean([np.mean(column) for column in values]))


def average_glue(scores: dict[str, float]) -> float | None:
    """The average over GLUE's eight columns without WNLI; a column of two metrics (MNLI: two sets) is their mean.

    Args:
        scores: {"cola/matthews_corrcoef": value, ..., "mnli/mismatched_accuracy": value, ...}, see GLUE_COLUMNS.
    Returns:
        the average; None where a metric is missing.
    """
    return _average(GLUE_COLUMNS, scores)


def average_super_glue(scores: dict[str, float]) -> float | None:
    """As average_glue, over SuperGLUE's eight columns; see SUPER_GLUE_COLUMNS."""
    return _average(SUPER_GLUE_COLUMNS, scores)
