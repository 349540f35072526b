"""Dropout for CPUs: its masks, its gradients, and that what is computed twice is dropped the same both times."""

import pytest
import torch
import torch.nn.functional as F
from gpt_golden import no_dropout
from test_model import enlarge, small_model, story_batch

from fast.dropout import SLICE, STREAM, Dropout, draw_keep
from model_pytorch import Attention, TransformerModel


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


def test_layer_drops_in_training_only_and_its_gradient_has_the_mask():
    layer = Dropout(0.3)
    x = torch.rand(5, 6, 7).transpose(0, 2).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape and (y == 0).any()
    d_x, = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(d_x, 2 * y / 0.7)
    assert layer.eval()(x) is x or torch.equal(layer(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("scale", [True, False])
def test_attention_with_dropout_is_torch_s_attention(scale):
    attention = Attention(24, 9, no_dropout(n_embd=24, n_head=3), scale).eval()
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=None if scale else 1.0)
    torch.testing.assert_close(attention.attend_with_dropout(q, k, v, None), want, rtol=1e-5, atol=1e-6)


def test_attention_drops_what_its_mask_says():
    attention = Attention(24, 9, no_dropout(n_embd=24, n_head=3, attn_pdrop=0.3)).train()
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    keep = draw_keep((2, 3, 9, 9), 0.3)
    scores = (q @ k.mT / 8 ** 0.5).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -float("inf"))
    want = (scores.softmax(-1) * keep / 0.7) @ v
    torch.testing.assert_close(attention.attend_with_dropout(q, k, v, keep), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", ["embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"])
def test_every_dropout_acts_in_training_only(setting):
    model = enlarge(small_model(**{setting: 0.3})).train()
    x, m, y = story_batch(1)

    def loss(seed):
        torch.manual_seed(seed)
        return model.losses(x, m, y, 0.5)[0].item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


@pytest.mark.parametrize("softmax", [True, False])
def test_looking_up_in_the_dropped_matrix_has_the_plain_gradient(softmax):
    model = TransformerModel(no_dropout(n_embd=12, n_head=2, n_layer=1, embd_pdrop=0.4), vocab=31, n_ctx=7).train()
    x, weight = torch.randint(0, 31, (3, 5, 2)), model.embed.weight
    h, we = model.look_up(x)
    mix = torch.randn(31, 12)

    def loss_of(h, we):
        return h.square().sum() + (we * mix).sum() * softmax

    got, = torch.autograd.grad(loss_of(h, we.written_out()), weight)
    assert 0.3 < 1 - we.keep.float().mean() < 0.5
    plain = weight * we.keep / 0.6
    torch.testing.assert_close(we.written_out(), plain)
    want, = torch.autograd.grad(loss_of(F.embedding(x, plain).sum(-2), plain), weight)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_gradient_is_that_of_the_forward_pass_with_its_masks(setting):
    model = enlarge(small_model(**{setting: 0.3})).double().train()
    x, m, y = story_batch(1)
    parameters = [p for p in model.parameters() if p.ndim > 1]
    directions = [torch.randn_like(p) * p.abs().mean() for p in parameters]

    def loss():
        torch.manual_seed(8)
        return model.losses(x, m, y, 0.5)[0]

    def loss_at(step):
        with torch.no_grad():
            for p, u in zip(parameters, directions, strict=True):
                p.add_(u, alpha=step)
            value = loss().item()
            for p, u in zip(parameters, directions, strict=True):
                p.sub_(u, alpha=step)
        return value

    gradients = torch.autograd.grad(loss(), parameters)
    slope = sum((g * u).sum().item() for g, u in zip(gradients, directions, strict=True))
    numeric = (loss_at(1e-3) - loss_at(-1e-3)) / 2e-3
    assert abs(numeric - slope) < 1e-2 * abs(slope), (numeric, slope)
