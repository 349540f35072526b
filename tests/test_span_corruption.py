"""Span corruption against the original's numbers: lengths, counts, sentinels."""

import json

import numpy as np
import pytest

from training.span_corruption import (
    corrupt,
    noise_span_to_unique_sentinel,
    nonnoise_span_to_unique_sentinel,
    random_spans_helper,
    random_spans_noise_mask,
)


@pytest.fixture(scope="module")
def original(golden):
    return json.loads((golden / "t5" / "span_corruption.json").read_text())


def spans(mask):
    """How many runs of True a mask has."""
    return int(np.sum(np.diff(np.concatenate([[0], mask.astype(int)])) == 1))


def test_lengths_are_the_original_s(original):
    rows = original["random_spans_helper"]["rows"]
    assert len(rows) > 50
    for row in rows:
        found = random_spans_helper(row["inputs_length"], row["noise_density"], row["mean_noise_span_length"], 1, 1)
        assert found == (row["tokens_length"], row["targets_length"]), row
    assert random_spans_helper(512) == (568, 114)


def test_numbers_of_noise_tokens_and_spans_are_the_original_s(original):
    rows = original["random_spans_noise_mask_counts"]
    assert len(rows) == 295
    rng = np.random.default_rng(1)
    for row in rows:
        mask = random_spans_noise_mask(row["length"], row["noise_density"], row["mean_noise_span_length"], rng)
        assert len(mask) == row["length"]
        assert (mask.sum(), spans(mask)) == (row["num_noise_tokens"], row["num_noise_spans"]), row
        assert not mask[0] and mask[-1]


def test_the_mask_rounds_in_single_precision(original):
    lengths = range(2, 4097)
    in_double = [max(round(n * 0.15), 1) for n in lengths]
    masks = [random_spans_noise_mask(n) for n in lengths]
    differ = [n for n, mask, count in zip(lengths, masks, in_double, strict=True)
              if (mask.sum(), spans(mask)) != (count, max(round(count / 3), 1))]
    assert len(differ) == original["float32_vs_python_double_rounding"]["lengths_2_to_4096_at_0_15_mean_3_differing"]
    assert {190, 350, 390, 670} <= set(differ)


def test_degenerate_masks():
    assert random_spans_noise_mask(1).tolist() == [False]
    assert not random_spans_noise_mask(9, noise_density=0).any()


def test_sentinels_are_the_original_s(original):
    cases, first = original["sentinels"]["cases"], original["sentinels"]["first_sentinel"]
    assert len(cases) >= 8
    for case in cases:
        tokens, mask = np.array(case["tokens"]), np.array(case["noise_mask"], dtype=bool)
        assert noise_span_to_unique_sentinel(tokens, mask, first).tolist() == case["inputs"], case["note"]
        assert nonnoise_span_to_unique_sentinel(tokens, mask, first).tolist() == case["targets"], case["note"]


def test_every_division_into_spans_is_equally_likely():
    # 7 tokens, 3 of them noise in 2 spans: 1 + 2 or 2 + 1, with 1 + 3, 2 + 2 or 3 + 1 kept ones: six masks
    rng = np.random.default_rng(5)
    drawn = ["".join(map(str, random_spans_noise_mask(7, 0.43, 1.5, rng).astype(int))) for _ in range(3000)]
    masks, counts = np.unique(drawn, return_counts=True)
    assert len(masks) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-squared with 5 degrees of freedom, p = 0.001


def test_a_corrupted_batch_holds_every_token_once():
    tokens = np.arange(3 * 37).reshape(3, 37) + 10
    inputs, targets = corrupt(tokens, 999, 1, 0.15, 3.0, np.random.default_rng(2))
    assert inputs.shape == (3, 34) and targets.shape == (3, 9)  # 6 noise tokens in 2 spans, and EOS
    for raw, x, y in zip(tokens, inputs, targets, strict=True):
        assert x[-1] == y[-1] == 1
        assert sorted(i for i in (*x, *y) if 10 <= i < 990) == raw.tolist()
        assert [i for i in x if i > 990] == [999, 998] == [i for i in y if i > 990]
    assert len({tuple(row - row[0]) for row in inputs}) > 1  # each row has a mask of its own
