"""Matrix products, in float32 on the faster of the two CPU libraries that torch carries; and with less kept.

For float32 on CPUs torch calls MKL, which on AMD's processors reaches less than oneDNN's rate, down to half of it, and
reads a weight slowly when there are few rows; for bfloat16 it calls oneDNN. Where blas.py says so `matmul` takes
oneDNN for float32 too, and for a single row MKL in several pieces (one_row). Measured on 2 cores of two AMD EPYCs with
AVX-512, for the shapes of GPT-1: 1.1 to 3 times as fast from 64 rows on, 1.2 to 5 times for 1 to 8 rows. Where a weight
meets many products and does not change it is laid out once (at_rest.py).
`torch.backends.mkldnn.enabled = False` brings the plain path back.
"""

import torch
import torch.nn.functional as F

from fast.at_rest import one_row, one_row_in_sums, product_at_rest
from fast.autograd import first_derivatives_only
from fast.blas import in_force

# oneDNN compiles a kernel for every number of rows it meets and keeps it: about 1 ms and 0.6 MB each.
# Whoever has batches of ever new sizes rounds them up to a multiple of this.
ROW_MULTIPLE = 32


def matmul(x, w, b=None):
    """Return x @ w + b.

    Args:
        x: [..., k]; w: [k, n], or a transposed view of a weight [n, k]; b: [n] or None.
    Returns:
        [..., n]; under autocast in its dtype.
    """
    rows = x.reshape(-1, x.shape[-1])                            # [..., k] -> [m, k]
    y = product_at_rest(rows, (w,), False, b)
    return (_matmul(rows, w, b) if y is None else y).view(*x.shape[:-1], w.shape[1])


def _matmul(rows, w, b=None):
    """matmul of rows [m, k] that no weight at rest waits for."""
    if not _onednn_takes(rows, w):
        return product("mkl", rows, w, b)
    if torch.is_grad_enabled():
        return _OneDNNProduct.apply(rows, w, b)
    n_rows = rows.shape[0]
    if n_rows == 1 and w.is_contiguous():
        return one_row_in_sums(rows, w, b)
    if n_rows == 1 and w.t().is_contiguous():
        return one_row(rows, w.t(), b)
    if 2 <= n_rows <= 4 and b is None and w.stride(0) == 1 and w.shape[0] <= w.shape[1]:
        # Weights [n, k] that few rows meet, as in a beam search: MKL's other order takes half of oneDNN's time.
        return torch.mm(w.t(), rows.t()).t().contiguous()        # [n, k] x [k, m] -> [m, n]
    return product("onednn", rows, w, b)


def linear(x, weight):
    """Return x @ weight.T, x [..., k] and weight [n, k], -> [..., n]; under autocast in its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)  # which keeps a conversion as long as the context lasts
    rows = x.reshape(-1, x.shape[-1])                            # [..., k] -> [m, k]
    y = product_at_rest(rows, (weight,), True)
    return (_matmul(rows, weight.t()) if y is None else y).view(*x.shape[:-1], weight.shape[0])


def linears(x, *weights):
    """Return linear(x, weight) for each of several weights; weights at rest are multiplied together."""
    y = product_at_rest(x.reshape(-1, x.shape[-1]), weights, True)             # [..., k] -> [m, all n], or None
    if y is None:
        return tuple(linear(x, weight) for weight in weights)
    return y.view(*x.shape[:-1], -1).split([weight.shape[0] for weight in weights], -1)        # [..., n] each


def _onednn_takes(x, w):
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") \
        and x.dtype == w.dtype == torch.float32 and x.device.type == w.device.type == "cpu" and x.numel() > 0 \
        and torch.backends.mkldnn.enabled and in_force() == "onednn"


def product(library, x, w, b=None):
    """x [m, k] @ w [k, n] + b by one library (see blas.py), without gradients for oneDNN."""
    if library == "mkl":
        return x @ w if b is None else torch.addmm(b, x, w)         # [m, k] x [k, n] -> [m, n]
    # The operator that torch's compiler puts in the place of F.linear, hence the weight as [n, k].
    return torch.ops.mkldnn._linear_pointwise.default(x, w.t(), b, "none", [], "")


class _OneDNNProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return product("onednn", x, w, b)

    @staticmethod
    def backward(ctx, d_y):
        return _gradients(*ctx.saved_tensors, d_y, ctx.needs_input_grad)


def _gradients(x, w, d_y, needed):
    """Return d_x, d_w, d_b of y = x @ w + b, each of them None where it is not needed.

    Args:
        x: [..., k]; w: [k, n]; d_y: [..., n]; needed: three of bool.
    """
    d_x = d_w = d_b = None
    rows, d_rows = x.flatten(0, -2), d_y.flatten(0, -2)             # [..., k] -> [m, k], [..., n] -> [m, n]
    if needed[0]:
        d_x = matmul(d_rows, w.t()).view_as(x)                      # [m, n] x [n, k] -> [..., k]
    if needed[1]:
        # laid out in memory as w is
        d_w = matmul(d_rows.t(), rows).t() if w.stride(0) == 1 else matmul(rows.t(), d_rows)  # [k, m] x [m, n]
    if needed[2]:
        d_b = d_rows.sum(0)
    return d_x, d_w, d_b


def matmul_made(x, w, b, function, *tensors):
    """Return x @ w + b, where x = function(*tensors), keeping the tensors for the backward pass instead of x.

    For an x that is cheap to compute again from what is kept anyway. The gradient goes to x, as in matmul.
    Under autocast x is kept after all, in its short form. It has first derivatives only.

    Args:
        x, w, b: see matmul.
        function: without randomness, and without tensors other than its arguments.
    """
    if _keeps_everything(x):
        return matmul(x, w, b)
    return _MadeProduct.apply(x, w, b, function, *(tensor.detach() for tensor in tensors))


def _keeps_everything(x):
    return not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)


class _MadeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, function, *tensors):
        ctx.function = function
        ctx.save_for_backward(w, *tensors)
        return matmul(x, w, b)

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_y):
        w, *tensors = ctx.saved_tensors
        with torch.autocast(d_y.device.type, enabled=False):  # as in the forward pass, see _keeps_everything
            gradients = _gradients(ctx.function(*tensors), w, d_y, ctx.needs_input_grad)
        return *gradients, None, *[None] * len(tensors)


def matmul_of(function, x, w, b=None):
    """Return function(x) @ w + b, keeping x for the backward pass instead of function(x) and what is behind it.

    For what is cheap to compute again and large to keep.
    Under autocast, where what is kept is half as large and time more precious, function(x) is kept after all:
    measured for a step of GPT-1 in bfloat16, that takes 8% less time and 0.2 GB more.
    It has first derivatives only.

    Args:
        function: from x to [..., k], without randomness, without parameters of its own, or they would get no
            gradient, and without a look at any module: what is computed again in the backward pass is what was
            computed before, whatever a module's mode is by then.
        x, w, b: tensors; w and b as in matmul.
    """
    if _keeps_everything(x):
        return matmul(function(x), w, b)
    return _RecomputedProduct.apply(function, x, w, b)


class _RecomputedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x, w, b):
        ctx.function = function
        ctx.save_for_backward(x, w)
        return matmul(function(x), w, b)

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_y):
        x, w = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, enabled=False):
            with torch.enable_grad():
                a = ctx.function(x)                              # [..., k]
            d_a, d_w, d_b = _gradients(a.detach(), w, d_y, (True, *ctx.needs_input_grad[2:]))
            d_x, = torch.autograd.grad(a, x, d_a)
        return None, d_x, d_w, d_b
