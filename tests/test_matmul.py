"""matmul's fast path against torch's plain products."""

import threading
import weakref

import pytest
import torch

from fast import at_rest
from fast import matmul as matmul_module
from fast.at_rest import WeightsAtRest
from fast.blas import VARIABLE
from fast.matmul import linear, linears, matmul, matmul_made, matmul_of

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN: one path only")


@pytest.fixture(autouse=True)
def take_onednn(monkeypatch):
    """oneDNN, on any processor."""
    if torch.backends.mkldnn.is_available():
        monkeypatch.setenv(VARIABLE, "onednn")


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
@pytest.mark.parametrize("n_in, n_out", [(24, 40), (24, 37), (37, 24), (13, 7)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_one_row_is_read_in_pieces_where_nothing_is_learned(monkeypatch, n_in, n_out, transposed, bias):
    x, w, b = operands((1,), n_in, n_out, transposed, bias)
    w, pieces, bmm = w.t() if transposed else w, [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *a: pieces.append(len(a[0])) or bmm(*a))
    matmul(x, w, b)
    assert not pieces
    with torch.no_grad():
        torch.testing.assert_close(matmul(x, w, b), plain(x, w, b), rtol=1e-5, atol=1e-5)
        assert pieces == [{40: 8, 24: 8}.get(n_out, 1) if transposed else {24: 2}.get(n_in, 1)]
        wide = torch.cat([w, w + 1], 1)[:, :n_out] if not transposed else torch.cat([w.t(), w.t()], 1)[:, :n_in].t()
        torch.testing.assert_close(matmul(x, wide, b), plain(x, wide, b), rtol=1e-5, atol=1e-5)
    assert len(pieces) == 1  # a part of a larger matrix is left to oneDNN


@pytest.fixture
def laid_out(monkeypatch):
    """A list that fills with the shapes of the weights [n, k] that are laid out anew."""
    made, together = [], at_rest._together
    monkeypatch.setattr(at_rest, "_together", lambda weights: made.append(tuple(together(weights).shape)) or
                        together(weights))
    return made


def skip_without_bfloat16(dtype):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not multiply in bfloat16 on this processor")


def close_in(dtype):
    return dict(rtol=1e-2, atol=3e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)


@ONEDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed, bias", [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("rows", [1, 3, 19, 67])
def test_a_weight_at_rest_is_laid_out_once_and_gives_the_same_numbers(laid_out, dtype, transposed, bias, rows):
    skip_without_bfloat16(dtype)
    x, w, b = (None if t is None else t.detach().to(dtype) for t in operands((rows,), 37, 24, transposed, bias))
    weight = torch.nn.Parameter(w)

    def product(x):
        return linear(x, weight) if transposed else matmul(x, weight, b)

    with torch.no_grad():
        expected = product(x)
        exact = x.double() @ (w.double().t() if transposed else w.double()) + (b.double() if bias else 0)
        close = close_in(dtype)
        for _ in range(20):
            product(x)
        assert not laid_out  # nobody has said that the weight stays
        as_it_is = rows == 1 and (dtype == torch.float32 or transposed)
        at_once = rows == 1 and not as_it_is  # so that one kernel makes all of its products
        with WeightsAtRest():
            for _ in range(at_rest.LAID_OUT_FROM - 1):
                product(x)
            assert bool(laid_out) == at_once
            with WeightsAtRest(), torch.inference_mode():  # the outer one goes on
                found = [product(x) for _ in range(3)]
            assert laid_out == ([] if as_it_is else [(24, 37)])
            with torch.enable_grad():
                assert product(x).requires_grad
        other_kernel = dtype == torch.bfloat16 and rows == 1 \
            or dtype == torch.float32 and 2 <= rows <= 4 and transposed  # MKL's order is left for oneDNN's
        for y in found:
            assert y.is_contiguous()
            torch.testing.assert_close(y.double(), exact, **close)
            assert other_kernel or torch.equal(y, expected)
        assert torch.backends.mkldnn.enabled
        weight.data.mul_(-2)  # of which autograd's version says nothing
        torch.testing.assert_close(product(x), plain(x, weight.t() if transposed else weight, b), **close)
        with WeightsAtRest():
            for _ in range(at_rest.LAID_OUT_FROM + 1):
                y = product(x)
        torch.testing.assert_close(y, plain(x, weight.t() if transposed else weight, b), **close)


@ONEDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (5, 7)])
def test_weights_at_rest_that_meet_the_same_rows_are_multiplied_together(laid_out, dtype, rows):
    skip_without_bfloat16(dtype)
    torch.manual_seed(0)
    x, *weights = (torch.randn(*shape, 37).to(dtype) for shape in (rows, (24,), (9,), (40,)))
    weights = [torch.nn.Parameter(weight) for weight in weights]
    with torch.no_grad():
        exact = [x.double() @ weight.double().t() for weight in weights]
        with WeightsAtRest():
            for n in range(at_rest.LAID_OUT_FROM + 2):
                assert laid_out == ([(24 + 9 + 40, 37)] if n >= at_rest.LAID_OUT_FROM else [])
                for y, wanted in zip(linears(x, *weights), exact, strict=True):
                    torch.testing.assert_close(y.double(), wanted, **close_in(dtype))
            weights[2].mul_(2)  # any of them
            torch.testing.assert_close(linears(x, *weights)[2].double() / 2, exact[2], **close_in(dtype))
    for y, weight in zip(linears(x, *weights), weights, strict=True):
        y.sum().backward()
        torch.testing.assert_close(weight.grad.double(), x.double().flatten(0, -2).sum(0).expand(len(weight), -1),
                                   **close_in(dtype))


@ONEDNN
@pytest.mark.parametrize("which", [0, 1])
def test_another_weight_at_a_used_address_is_not_taken_for_the_old_one(which):
    torch.manual_seed(0)
    x, weights = torch.randn(1, 48), [torch.nn.Parameter(torch.randn(64, 48)) for _ in range(2)]
    with torch.no_grad(), WeightsAtRest() as rest:
        for _ in range(at_rest.LAID_OUT_FROM + 1):
            linears(x, *weights)
        known, = (known for known in rest.known.values() if len(known.weights) == 2)
        weights[which] = torch.nn.Parameter(torch.randn(64, 48))
        known.states[which] = at_rest._state(weights[which])  # as if it lay at the same address
        for y, weight in zip(linears(x, *weights), weights, strict=True):
            torch.testing.assert_close(y, x @ weight.t(), rtol=1e-5, atol=1e-5)


@ONEDNN
@pytest.mark.parametrize("transposed", [True, False])
def test_one_row_in_bfloat16_is_the_same_whatever_was_multiplied_before(transposed):
    skip_without_bfloat16(torch.bfloat16)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(96, 96).bfloat16()) for _ in range(3)]

    def product(x):
        return torch.cat(linears(x, *weights) if transposed else [matmul(x, weight) for weight in weights], 1)

    x = torch.randn(1, 96).bfloat16()
    with torch.no_grad(), WeightsAtRest():
        first = product(x)
        for _ in range(at_rest.IN_HUGE_PAGES_FROM + 1):
            last = product(x)
    assert torch.equal(first, last)


@ONEDNN
def test_other_threads_leave_onednn_on(monkeypatch):
    skip_without_bfloat16(torch.bfloat16)
    switched, switch = [], torch._C._set_mkldnn_enabled
    monkeypatch.setattr(torch._C, "_set_mkldnn_enabled", lambda on: switched.append(on) or switch(on))
    x, weight = torch.randn(1, 37).bfloat16(), torch.nn.Parameter(torch.randn(24, 37).bfloat16())
    found = []

    def products():
        with torch.no_grad(), WeightsAtRest():
            found.extend(linear(x, weight) for _ in range(at_rest.LAID_OUT_FROM + 1))

    thread = threading.Thread(target=products)
    thread.start()
    thread.join()
    assert not switched and len(found) == at_rest.LAID_OUT_FROM + 1
    products()
    assert switched == [False, True] * (at_rest.LAID_OUT_FROM + 1)
    for y in found:
        torch.testing.assert_close(y, (x @ weight.t()).detach(), **close_in(torch.bfloat16))


@ONEDNN
def test_a_single_row_s_weights_go_to_huge_pages_in_time_and_stay_what_they_are(monkeypatch):
    moved, move = [], at_rest.in_huge_pages
    monkeypatch.setattr(at_rest, "in_huge_pages", lambda tensor: moved.append(tensor.data_ptr()) or move(tensor))
    x, weight = torch.randn(1, 1024), torch.nn.Parameter(torch.randn(3000, 1024))  # 12 MB: whole huge pages
    before, address = weight.detach().clone(), weight.data_ptr()
    with torch.no_grad(), WeightsAtRest():
        for _ in range(at_rest.IN_HUGE_PAGES_FROM - 1):
            expected = linear(x, weight)
        assert not moved
        found = [linear(x, weight) for _ in range(3)]
    assert moved == [address] and weight.data_ptr() == address and torch.equal(weight, before)
    assert all(torch.equal(y, expected) for y in found)


@ONEDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_weights_that_are_too_large_to_be_laid_out_are_multiplied_all_the_same(laid_out, monkeypatch, dtype, transposed,
                                                                               rows):
    skip_without_bfloat16(dtype)
    monkeypatch.setattr(at_rest, "MOST_LAID_OUT", 0)
    torch.manual_seed(0)
    x, weights = torch.randn(rows, 24).to(dtype), [torch.nn.Parameter(torch.randn(24, 24).to(dtype)) for _ in range(2)]
    with torch.no_grad(), WeightsAtRest():
        for _ in range(2 * at_rest.IN_HUGE_PAGES_FROM):
            found = linears(x, *weights) if transposed else [matmul(x, weight) for weight in weights]
    assert not laid_out
    for y, weight in zip(found, weights, strict=True):
        exact = x.double() @ (weight.double().t() if transposed else weight.double())
        torch.testing.assert_close(y.double(), exact.detach(), **close_in(dtype))


@ONEDNN
def test_a_rest_that_is_kept_lays_out_once_up_to_its_limit_and_forgets_what_is_gone(laid_out, monkeypatch):
    weights = [torch.nn.Parameter(torch.randn(n, 12)) for n in (8, 9, 10)]
    monkeypatch.setattr(at_rest, "MOST_LAID_OUT", 4 * 12 * (8 + 10))
    x, rest = torch.randn(5, 12), WeightsAtRest()
    with torch.no_grad():
        for _ in range(3):
            with rest:
                for weight in (*weights, *weights) * at_rest.LAID_OUT_FROM:
                    linear(x, weight)
        assert laid_out == [(8, 12), (9, 12)]
        del weights[0], weight
        with rest:
            for _ in range(3):
                linear(x, weights[-1])
        assert laid_out == [(8, 12), (9, 12)]  # 9 and 10 rows are still too many
        del weights[0]
        with rest:
            for _ in range(7 * at_rest.LAID_OUT_FROM):  # it looks again after twice as many products
                linear(x, weights[-1])
        assert laid_out == [(8, 12), (9, 12), (10, 12)]


@ONEDNN
def test_a_weight_that_changes_in_a_rest_is_laid_out_again(laid_out):
    weight, x = torch.nn.Parameter(torch.randn(12, 12)), torch.randn(5, 12)

    def check(product, w):
        for _ in range(at_rest.LAID_OUT_FROM + 1):
            torch.testing.assert_close(product(), x @ w, rtol=1e-5, atol=1e-5)

    with torch.no_grad(), WeightsAtRest():
        check(lambda: linear(x, weight), weight.t())
        weight.mul_(2)
        check(lambda: linear(x, weight), weight.t())
        weight.data = weight.data + 1
        check(lambda: linear(x, weight), weight.t())
        check(lambda: matmul(x, weight), weight)  # the other way round
    assert len(laid_out) == 4


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
    monkeypatch.setenv(VARIABLE, "mkl")
    matmul(x, w)
    monkeypatch.setenv(VARIABLE, "onednn")
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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_product_of_a_recomputed_value_has_the_plain_gradients(dtype, bias):
    x, w, b = operands((3, 17), 5, 11, False, bias)
    leaves = [t for t in (x, w, b) if t is not None]

    def function(x):
        return x.tanh()

    results = []
    for product in (matmul_of, lambda function, *args: matmul(function(args[0]), *args[1:])):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            y = product(function, x, w, b)
        results.append([y.float(), *torch.autograd.grad(y.float().sin().sum(), leaves)])
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


@pytest.mark.parametrize("kind", ["made", "recomputed"])
def test_what_is_computed_again_is_what_was_computed(kind):
    """Autocast in the backward pass alone changes nothing, and a tensor that changed in between is noticed."""
    source, w, b = operands((3, 17), 5, 11, False, True)

    def run(autocast, change=False):
        leaves = [t.detach().clone().requires_grad_() for t in (source, w, b)]
        if kind == "made":
            y = matmul_made(leaves[0].sigmoid(), leaves[1], leaves[2], torch.sigmoid, leaves[0])
        else:
            y = matmul_of(torch.sigmoid, *leaves)
        if change:
            with torch.no_grad():
                leaves[0].add_(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(y.sin().sum(), leaves)

    for ours, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run(False, change=True)
