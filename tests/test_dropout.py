"""Dropout for CPUs: its masks and its gradients."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from fast import attention
from fast.attention import attend_with_dropout
from fast.dropout import SLICE, STREAM, draw_keep, dropout, look_up, rate


@pytest.mark.parametrize("p", [0.1, 0.4, 0.999, 1e-7])
def test_entries_are_kept_with_probability_1_minus_p(p):
    torch.manual_seed(0)
    keep = draw_keep((3, STREAM // 2 + SLICE // 2 + 77), p)      # two streams, with odd ends
    assert keep.dtype == torch.uint8 and set(keep.unique().tolist()) <= {0, 1}
    deviation = (p * (1 - p) / keep.numel()) ** 0.5
    for part in (keep, keep.flatten()[-SLICE // 2:], keep[:, ::2]):
        assert abs((part == 0).double().mean() - p) < 5 * deviation * (keep.numel() / part.numel()) ** 0.5 + 1e-6
    for apart in (1, 4, 2 ** 16, SLICE, STREAM):
        both = (keep.flatten()[apart:] == 0) & (keep.flatten()[:-apart] == 0)
        assert abs(both.double().mean() - p * p) < 8 * deviation


def test_ties_of_the_first_16_bits_are_drawn_by_the_other_16():
    p = 1 - 0.5 / 2 ** 16                       # one entry in 131,072 is kept, where 16 bits alone would keep none
    torch.manual_seed(0)
    kept = draw_keep((1 << 24,), p).sum().item()
    assert abs(kept - 128) < 5 * 128 ** 0.5


def test_masks_follow_from_torch_s_seed_whatever_the_threads():
    masks, threads = [], torch.get_num_threads()
    for n in (1, 3, threads):
        torch.set_num_threads(n)
        torch.manual_seed(3)
        masks.append([draw_keep(shape, 0.5) for shape in ((41, 7), (41, 7), (2, STREAM + 5))])
    for other in masks[1:]:
        assert all(torch.equal(a, b) for a, b in zip(masks[0], other, strict=True))
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][2][0, :STREAM - 5], masks[0][2][1, :STREAM - 5])


def test_entries_are_dropped_and_the_gradient_has_the_mask():
    x = torch.rand(5, 6, 7).transpose(0, 2).requires_grad_()
    y = dropout(x, 0.3)
    assert y.shape == x.shape and (y == 0).any()
    d_x, = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(d_x, 2 * y / 0.7)
    assert torch.equal(dropout(x, 0.0), x)


def test_a_module_drops_in_training_mode_alone():
    module = nn.Dropout(0.3)
    assert rate(module) == 0.3 and rate(module.eval()) == 0


@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention_with_dropout_is_torch_s_attention(scale):
    q, k, v = heads = torch.randn(3, 2, 3, 9, 8)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    torch.testing.assert_close(attend_with_dropout(heads, scale, 0.0), want, rtol=1e-5, atol=1e-6)


def test_attention_drops_what_its_mask_says():
    q, k, v = heads = torch.randn(3, 2, 3, 9, 8)
    keep = draw_keep((2, 3, 9, 9), 0.3, seed=5)
    scores = (q @ k.mT / 8 ** 0.5).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -float("inf"))
    want = (scores.softmax(-1) * keep / 0.7) @ v
    torch.testing.assert_close(attend_with_dropout(heads, None, 0.3, seed=5), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t, n_pieces", [(8, 1), (9, 4), (13, 9)])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("drops", [True, False])
def test_attention_in_pieces_has_the_plain_gradients(monkeypatch, t, n_pieces, scale, drops):
    for name, value in (("LONG", 9), ("QUERIES", 5), ("ENTRIES", 2 * 2 * 9 * 5)):
        monkeypatch.setattr(attention, name, value)
    q, k, v = heads = torch.randn(3, 3, 2, t, 8, dtype=torch.float64, requires_grad=True)
    keep, of_result = draw_keep((3, 2, t, t), 0.3, seed=5), torch.randn(3, 2, t, 8, dtype=torch.float64)
    assert len(list(attention._pieces(q.shape))) == n_pieces
    scores = (q @ k.mT * (scale or 8 ** -0.5)).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -float("inf"))
    want = (scores.softmax(-1) * (keep / 0.7 if drops else 1)) @ v
    got = attend_with_dropout(heads, scale, 0.3 if drops else 0.0, seed=5)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad((got * of_result).sum(), heads),
                               torch.autograd.grad((want * of_result).sum(), heads))


@pytest.mark.parametrize("softmax", [True, False])
def test_looking_up_in_the_dropped_matrix_has_the_plain_gradient(softmax):
    x, weight = torch.randint(0, 31, (3, 5, 2)), torch.randn(31, 12, requires_grad=True)
    h, we = look_up(weight, x, 0.4)
    mix = torch.randn(31, 12)

    def loss_of(h, we):
        return h.square().sum() + (we * mix).sum() * softmax

    got, = torch.autograd.grad(loss_of(h, we.matrix * we.keep / 0.6), weight)
    assert 0.3 < 1 - we.keep.float().mean() < 0.5
    plain = weight * we.keep / 0.6
    want, = torch.autograd.grad(loss_of(F.embedding(x, plain).sum(-2), plain), weight)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_long_attention_in_bfloat16_are_not_smaller(monkeypatch, autocast):
    """1 / (1 - p) is no number of bfloat16: rounded to it, gradients would all be 0.16% too small at p = 0.1."""
    for name, value in (("LONG", 9), ("QUERIES", 8), ("ENTRIES", 2 * 2 * 24 * 8)):
        monkeypatch.setattr(attention, name, value)
    torch.manual_seed(0)
    heads = torch.randn(3, 8, 3, 24, 5).bfloat16()
    d = torch.ones(8, 3, 24, 5)
    sums = []
    for dtype in (torch.bfloat16, torch.float64):
        leaf = heads.to(dtype).requires_grad_()
        y = attend_with_dropout(leaf, 1.0, 0.1, seed=5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            sums.append(torch.autograd.grad(y, leaf, d.to(dtype))[0][2].double().sum())  # d_v, all of one sign
    assert abs(sums[0] / sums[1] - 1) < 6e-4
