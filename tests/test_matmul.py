"""matmul's fast path against torch's plain products."""

import weakref

import pytest
import torch

from fast import matmul as matmul_module
from fast.matmul import matmul, matmul_made, matmul_of
from fast.packing import Packing

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN: one path only")


def plain(x, w, b=None):
    torch.backends.mkldnn.enabled = False
    try:
        return matmul(x, w, b)
    finally:
        torch.backends.mkldnn.enabled = True


def operands(rows, n_in, n_out, transposed, bias, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(*rows, n_in, dtype=dtype, requires_grad=True)
    w = torch.randn(*((n_out, n_in) if transposed else (n_in, n_out)), dtype=dtype, requires_grad=True)
    b = torch.randn(n_out, dtype=dtype, requires_grad=True) if bias else None
    return x, w, b


@ONEDNN
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2, 2), (5,), (3, 17), (67,), (3, 0)])
@pytest.mark.parametrize("n_in, n_out", [(12, 12), (12, 37), (37, 12)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_the_plain_ones(rows, n_in, n_out, transposed, bias):
    x, w, b = operands(rows, n_in, n_out, transposed, bias)
    leaves = [t for t in (x, w, b) if t is not None]
    results = []
    for product in (matmul, plain):
        y = product(x, w.t() if transposed else w, b)
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    assert results[0][0].shape == (*rows, n_out)
    for ours, expected in zip(*results, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # where a few rows go another way
        y = matmul(x, w.t() if transposed else w, b)
    assert y.is_contiguous()
    torch.testing.assert_close(y, results[1][0], rtol=1e-5, atol=1e-5)


@ONEDNN
def test_fast_path_is_taken_for_float32_on_a_cpu_only(monkeypatch):
    taken = []
    product = matmul_module._OneDNNProduct.apply
    monkeypatch.setattr(matmul_module._OneDNNProduct, "apply", lambda *a: taken.append(1) or product(*a))
    x, w, _ = operands((7,), 5, 11, False, False)
    matmul(x, w)
    assert taken == [1]
    matmul(x.double(), w.double())
    plain(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul(x, w).dtype == torch.bfloat16
    assert taken == [1]


@ONEDNN
def test_second_derivative_is_the_plain_one():
    x, w, b = operands((7,), 5, 11, False, True)
    results = []
    for product in (matmul, plain):
        d_x, = torch.autograd.grad(product(x, w, b).sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(d_x.square().sum(), (x, w, b)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [(3, 9, 1), (40, 40, 40), (33, 31, 40), (1, 1, 1)])
def test_packing_keeps_every_kept_position_once_in_order(lengths):
    keep = torch.arange(40) < torch.tensor(lengths)[:, None]
    packing = Packing(keep)
    x = torch.randn(3, 40, 5)
    packed = packing.pack(x)
    assert len(packed) % 32 == 0 or len(packed) == keep.numel()
    assert sum(lengths) <= len(packed) < sum(lengths) + 32
    assert torch.equal(packed[:sum(lengths)], x[keep])
    assert torch.equal(packing.unpack(packed)[keep], x[keep])
    assert torch.equal(packing.sequence[:sum(lengths)], keep.nonzero()[:, 0])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("lengths", [(3, 9, 1), (13, 13, 13), (13, 2, 7), (13, 0, 7), (0, 0, 0)])
def test_heads_of_packed_vectors_are_those_of_the_grid(parts, lengths):
    keep = torch.arange(13) < torch.tensor(lengths)[:, None]
    packing = Packing(keep)
    x = torch.randn(len(packing.index), parts * 5 * 7, requires_grad=True)
    computed = torch.zeros(3 * 13).index_fill_(0, packing.index, 1).view(3, 1, 13, 1)
    weigh = torch.randn(parts, 3, 5, 13, 7)          # also of what nobody may use: it has no gradient
    heads = packing.split_heads(x, parts, 5)
    plain = packing.unpack(x).view(3, 13, parts, 5, 7).permute(2, 0, 3, 1, 4)
    assert heads.shape == plain.shape and torch.equal(heads * computed, plain)
    assert heads.isfinite().all()                    # where nothing was computed, too
    for part, plain_part in zip(heads, plain, strict=True):
        assert torch.equal(packing.merge_heads(part), packing.pack(plain_part.transpose(1, 2).flatten(2)))
    got, want = (torch.autograd.grad((h * weigh).sum(), x)[0] for h in (heads, plain))
    assert torch.equal(got, want)

    if 0 in lengths:
        assert torch.equal(heads, plain)             # 0 where there is nothing else to attend to
    a = torch.randn(3, 5, 13, 7, requires_grad=True)
    weigh = torch.randn(len(packing.index), 35)
    got, want = (torch.autograd.grad((rows * weigh).sum(), a)[0] for rows in
                 (packing.merge_heads(a), packing.pack(a.transpose(1, 2).flatten(2))))
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_product_of_a_recomputed_value_has_the_plain_gradients(dtype, bias):
    x, w, b = operands((3, 17), 5, 11, False, bias)
    leaves = [t for t in (x, w, b) if t is not None]

    def function(x):
        return torch.nn.functional.dropout(x.tanh(), 0.4)

    results = []
    for product in (matmul_of, lambda function, *args: matmul(function(args[0]), *args[1:])):
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            y = product(function, x, w, b)
        torch.rand(1)
        state = torch.get_rng_state()
        results.append([y.float(), *torch.autograd.grad(y.float().sin().sum(), leaves)])
        assert torch.equal(torch.get_rng_state(), state)  # drawing again leaves no trace
    tolerance = 1e-5 if dtype == "fp32" else 2e-2
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_product_of_a_made_value_has_the_plain_gradients_without_keeping_it(dtype, frozen):
    source, w, b = operands((3, 17), 5, 11, False, True)
    for i in frozen:
        (source, w, b)[i].requires_grad_(False)
    leaves = [t for t in (source, w, b) if t.requires_grad]
    results = []
    for product in (lambda x: matmul_made(x, w, b, torch.sigmoid, source), lambda x: matmul(x, w, b)):
        x = source.sigmoid()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            y = product(x) + x.sum()
        results.append([y, *torch.autograd.grad(y.sin().sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    x = torch.randn(3, 5)
    kept = weakref.ref(x)
    y = matmul_made(x, w, b, torch.sigmoid, torch.randn(3, 5))
    del x
    assert kept() is None
