"""The cross entropy that keeps no logits against its definition."""

import pytest
import torch
import torch.nn.functional as F

from fast import cross_entropy
from fast.cross_entropy import linear_cross_entropy
from formats.errors import BadInput


def plain_linear_cross_entropy(hidden, weight, targets, scale, z_loss=0.0, keep=None, p=0.0):
    """The definition: sum over tokens of scale * (cross entropy + z_loss * logsumexp(logits)^2)."""
    if keep is not None:
        weight = weight * keep / (1 - p)
    logits = (hidden @ weight.T).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (scale * (losses + z_loss * logits.logsumexp(-1).square())).sum()


def problem(n, v=2300, d=17):
    torch.manual_seed(n)
    hidden, weight = torch.randn(n, d).requires_grad_(), torch.randn(v, d).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,)), torch.rand(n)


@pytest.mark.parametrize("d", [17, 70])  # in the gradient there is room for the exponentials of d tokens
@pytest.mark.parametrize("n", [1, 31, 33, 150])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("factor, p", [(1, 0.0), (0.25, 0.0), (0.25, 0.3)])
def test_value_and_gradients_are_those_of_the_definition(monkeypatch, d, n, z_loss, factor, p):
    monkeypatch.setitem(cross_entropy.LOGITS_AT_ONCE, 4, 2300 * 65)  # up to 64 tokens at once: up to three parts
    hidden, weight, targets, scale = problem(n, d=d)
    first = cross_entropy.CPU_ROWS  # of the second piece of the vocabulary
    targets[-1], targets[0] = first, first - 1
    keep = (torch.rand(weight.shape) > p).to(torch.uint8) if p else None
    results = []
    for function in (linear_cross_entropy, plain_linear_cross_entropy):
        value = function(hidden, weight, targets, scale, z_loss, keep, p)
        results.append([value, *torch.autograd.grad(value * factor, (hidden, weight))])
    for ours, want in zip(*results, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("d", [17, 70])
@pytest.mark.parametrize("smoothing, z_loss", [(0.1, 0.0), (0.3, 1e-2), (1.0, 0.0)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_smoothed_value_and_gradients_are_those_of_torch(monkeypatch, d, smoothing, z_loss, p):
    monkeypatch.setitem(cross_entropy.LOGITS_AT_ONCE, 4, 2300 * 65)
    hidden, weight, targets, scale = problem(150, d=d)
    targets[5] = targets[77] = -100
    keep = (torch.rand(weight.shape) > p).to(torch.uint8) if p else None
    logits = hidden @ (weight if keep is None else weight * keep / (1 - p)).t()
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    want = ((losses + z_loss * logits.logsumexp(-1).square() * (targets != -100)) * scale).sum()
    value = linear_cross_entropy(hidden, weight, targets, scale, z_loss, keep, p, label_smoothing=smoothing)
    results = [[v, *torch.autograd.grad(v, (hidden, weight))] for v in (value, want)]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(hidden, weight, targets, scale, z_loss, keep, p, label_smoothing=smoothing), want)


@pytest.mark.parametrize("grad", [True, False])
def test_targets_that_are_no_rows_are_refused(grad):
    hidden, weight, targets, scale = problem(40)
    with torch.set_grad_enabled(grad):
        for wrong in (-1, -99, len(weight)):
            targets[3] = wrong
            with pytest.raises(BadInput, match=f"target is {wrong}, expected 0 to {len(weight) - 1}, or -100"):
                linear_cross_entropy(hidden, weight, targets, scale)
        targets[3] = -100
        scale[3] = 0
        value = linear_cross_entropy(hidden, weight, targets, scale)
        targets[3] = 0
        torch.testing.assert_close(value, linear_cross_entropy(hidden, weight, targets, scale))
        with pytest.raises(BadInput, match="label_smoothing is 1.5"):
            linear_cross_entropy(hidden, weight, targets, scale, label_smoothing=1.5)


def test_value_without_gradients_and_of_no_token():
    hidden, weight, targets, scale = problem(40)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, scale),
                                   plain_linear_cross_entropy(hidden, weight, targets, scale))
    value = linear_cross_entropy(hidden[:0], weight, targets[:0], scale[:0])
    assert value == 0
    d_hidden, d_weight = torch.autograd.grad(value, (hidden, weight))
    assert not d_hidden.any() and not d_weight.any()


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [17, 170])
def test_bfloat16_is_close_to_float32(hidden_dtype, d):
    hidden, weight, targets, scale = problem(150, d=d)
    hidden = (hidden / d ** 0.5).detach().requires_grad_()  # logits of the same size for every d
    want = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, scale), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = linear_cross_entropy(hidden.to(hidden_dtype), weight, targets, scale)
    got = torch.autograd.grad(value, (hidden, weight))
    assert value.dtype == torch.float32
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).abs().max() < 2e-2 * expected.abs().max()


def test_large_logits_do_not_overflow():
    hidden, weight, targets, scale = problem(33)
    value = linear_cross_entropy(hidden * 1e3, weight, targets, scale)
    torch.testing.assert_close(value, plain_linear_cross_entropy(hidden * 1e3, weight, targets, scale))
    assert all(d.isfinite().all() for d in torch.autograd.grad(value, (hidden, weight)))


def test_gradients_are_handed_out_once_and_never_differentiated():
    hidden, weight, targets, scale = problem(40)
    for factor in (1, 0.5):
        value = linear_cross_entropy(hidden, weight, targets, scale) * factor
        value.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="once.*plain text"):
            value.backward()
    with pytest.raises(RuntimeError, match="first derivatives only.*plain text"):
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, scale), hidden, create_graph=True)


def test_bfloat16_weights_have_gradients_near_those_of_float32():
    hidden, weight, targets, scale = problem(150, d=64)
    want = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, scale), (hidden, weight))
    half = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    got = torch.autograd.grad(linear_cross_entropy(*half, targets, scale), half)
    for ours, expected in zip(got, want, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - expected).abs().max() < 5e-2 * expected.abs().max()
