"""Dropout for CPUs: its masks, its gradients, and that what is computed twice is dropped the same both times."""

import pytest
import torch
import torch.nn.functional as F
from gpt_golden import no_dropout
from test_model import enlarge, small_model, story_batch

from dropout import SLICE, Dropout, drop_again_, dropped
from model_pytorch import Attention, TransformerModel


@pytest.mark.parametrize("p", [0.1, 0.4, 0.999])
def test_entries_are_dropped_with_probability_p_and_the_rest_scaled(p):
    torch.manual_seed(0)
    x = torch.rand(3, SLICE // 2 + 77) + 1           # two slices, the last one odd
    y, keep = dropped(x, p)
    assert keep.shape == x.shape and set(keep.unique().tolist()) == {0, 1}
    assert torch.equal(y == 0, keep == 0)
    torch.testing.assert_close(y[keep == 1], x[keep == 1] / (1 - p))
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs((keep == 0).double().mean() - p) < 5 * deviation
    pairs = (keep.flatten()[1:] == 0) & (keep.flatten()[:-1] == 0)  # neighbours share a draw, but no bits
    assert abs(pairs.double().mean() - p * p) < 8 * deviation
    assert torch.equal(drop_again_(x.clone(), keep, p), y)


def test_masks_follow_from_torch_s_seed():
    x = torch.ones(41, 7)
    torch.manual_seed(3)
    first, second = dropped(x, 0.5)[0], dropped(x, 0.5)[0]
    torch.manual_seed(3)
    assert torch.equal(dropped(x, 0.5)[0], first) and torch.equal(dropped(x, 0.5)[0], second)
    assert not torch.equal(first, second)


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
    torch.testing.assert_close(attention.attend_with_dropout(q, k, v), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softmax", [True, False])
def test_looking_up_in_the_dropped_matrix_has_the_plain_gradient(softmax):
    model = TransformerModel(no_dropout(n_embd=12, n_head=2, n_layer=1, embd_pdrop=0.4), vocab=31, n_ctx=7).train()
    x, weight = torch.randint(0, 31, (3, 5, 2)), model.embed.weight
    h, we = model.look_up(x)
    mix = torch.randn(31, 12)

    def loss_of(h, we):
        return h.square().sum() + (we * mix).sum() * softmax

    got, = torch.autograd.grad(loss_of(h, we), weight)
    plain = weight * (we.detach() != 0) / 0.6
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
