"""Metrics and scores against sums written out, and where they have no value."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import loss
from formats.errors import BadInput
from tasks import metrics, scores


def draw(n, k, seed=0):
    g = np.random.default_rng(seed)
    labels = g.integers(0, k, n)
    return np.where(g.random(n) < 0.6, labels, g.integers(0, k, n)), labels


def test_metrics_of_classes_are_their_sums():
    predictions, labels = draw(97, 2)
    pairs = list(zip(predictions.tolist(), labels.tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert 0 < min(tp, fp, fn, tn) and len({tp, fp, fn, tn}) == 4
    want = {"acc": 100 * (tp + tn) / 97, "f1": 100 * 2 * tp / (2 * tp + fp + fn),
            "matthews": 100 * (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))}
    assert metrics.of([*want], predictions, labels) == pytest.approx(want)
    assert metrics.of(["acc"], *draw(50, 5))["acc"] == 100 * np.mean(np.equal(*draw(50, 5)))


def test_metrics_of_scores_are_their_sums():
    g = np.random.default_rng(1)
    labels = g.random(41) * 5
    predictions = labels ** 3 + 30 * g.random(41)

    def correlation(a, b):
        a, b = a - a.mean(), b - b.mean()
        return 100 * (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())

    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (predictions, labels)]
    got = metrics.of(["pearson", "spearman"], predictions, labels)
    assert got == pytest.approx({"pearson": correlation(predictions, labels), "spearman": correlation(*ranks)})
    assert abs(got["pearson"] - got["spearman"]) > 0.5
    assert metrics.of(["spearman"], labels ** 3, labels)["spearman"] == pytest.approx(100)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("predictions, labels", [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([0, 0, 0], [0, 0, 0]),
                                                 ([1], [1]), ([0.1 + 0.2, 0.3, 0.3], [1, 2, 3])])
def test_what_is_constant_tells_nothing_and_is_no_error(predictions, labels):
    values = metrics.of([*metrics.METRICS], np.rint(predictions).astype(int), np.array(labels))
    assert all(math.isfinite(value) for value in values.values()) and values["pearson"] == values["spearman"] == 0
    assert math.isfinite(metrics.of(["pearson"], predictions, labels)["pearson"])


def test_every_metric_has_a_title_and_wants_labels():
    assert metrics.METRICS.keys() == metrics.TITLES.keys()
    for predictions, labels in (([], []), ([1, 2], [1])):
        with pytest.raises(BadInput, match=f"^there are {len(predictions)} predictions and {len(labels)} labels"):
            metrics.of(["acc"], predictions, labels)


def test_a_score_is_spread_over_the_whole_scores_beside_it():
    given = [3.6, 0, 5, 2, 4.999, 0.25]
    targets = scores.distributions(given)
    assert targets.shape == (6, 6) and targets.dtype == np.float32
    np.testing.assert_allclose(targets[0], [0, 0, 0, 0.4, 0.6, 0], atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(targets @ np.arange(6), given, atol=1e-5)
    assert ((targets > 0).sum(1) <= 2).all()
    loss.require_targets(torch.from_numpy(targets), 6, 6)
    np.testing.assert_allclose(scores.distributions([-1.5, 2], -2, 2), [[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1]])
    for wrong in (5.1, -0.1, math.nan):
        with pytest.raises(BadInput, match=f"^score 2 of 3 is {wrong:g}, expected 0 to 5"):
            scores.distributions([1, wrong, 2])


def test_logits_predict_the_expected_score():
    targets = torch.from_numpy(scores.distributions([1.25, -2, 0.5], -2, 2))
    logits = targets.clamp(min=1e-30).log()
    torch.testing.assert_close(scores.expected(logits, -2), torch.tensor([1.25, -2, 0.5]))
    torch.testing.assert_close(scores.expected(torch.zeros(3, 6)), torch.full((3,), 2.5))
    assert scores.expected(torch.zeros(3, 6, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_difference_s_interval_allows_for_examples_and_seeds():
    """One seed: the paired t interval over the examples, by SciPy. Several: that over the seeds too, in squares."""
    g = np.random.default_rng(4)
    right, other = g.random((3, 57)) < 0.8, g.random((3, 57)) < 0.6
    right[1, :20] = False

    def half(values):
        low, high = stats.ttest_1samp(100 * values, 0).confidence_interval(0.95)
        return (high - low) / 2

    d = right.astype(float) - other
    mean, low, high = metrics.difference(right[:1], other[:1])
    assert (mean, high - mean, mean - low) == pytest.approx((100 * d[0].mean(), half(d[0]), half(d[0])))
    mean, low, high = metrics.difference(right, other)
    width = math.hypot(half(d.mean(0)), half(d.mean(1)))
    assert (mean, high - mean, mean - low) == pytest.approx((100 * d.mean(), width, width))
    assert metrics.difference(other, right) == pytest.approx((-mean, -high, -low))
    with pytest.raises(BadInput, match=r"\[3, 57\] and other \[2, 57\]"):
        metrics.difference(right, other[:2])


def test_a_difference_of_chance_is_seldom_called_more():
    """Of pairs of equal worth, about one in twenty has an interval that leaves out 0."""
    g = np.random.default_rng(6)
    wrong = 0
    for _ in range(400):
        _, low, high = metrics.difference(*(g.random((2, 1, 200)) < 0.7))
        wrong += low > 0 or high < 0
    assert 8 <= wrong <= 34
