"""Matrix products, in float32 on the faster of the two CPU libraries that torch carries; and with less kept.

For float32 on CPUs torch calls MKL, which on AMD's processors reaches less than oneDNN's rate, down to half of it, and
reads a weight slowly when there are few rows; for bfloat16 it calls oneDNN. Where blas.py says so `matmul` takes
oneDNN for float32 too, and for a single row MKL in several pieces (one_row). Measured on 2 cores of two AMD EPYCs with
AVX-512, for the shapes of GPT-1: 1.1 to 3 times as fast from 64 rows on, 1.2 to 5 times for 1 to 8 rows. Where a weight
meets many products and does not change, oneDNN has it laid out once (WeightsAtRest).
`torch.backends.mkldnn.enabled = False` brings the plain path back.
"""

import math
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from fast.autograd import first_derivatives_only
from fast.blas import in_force, maker

# oneDNN compiles a kernel for every number of rows it meets and keeps it: about 1 ms and 0.6 MB each.
# Whoever has batches of ever new sizes rounds them up to a multiple of this.
ROW_MULTIPLE = 32

# A weight at rest is packed when it meets this product, by which time about as much was lost as packing takes,
PACKED_FROM = 8
# for products of so many rows: from 2 to 1,280 rows no other number was measured to be faster.
PACKED_FOR = 16
# So many bytes are packed at most.
MOST_PACKED = 2 ** 30

# Into how many products that of one row is cut at most, see one_row: some give parts of the result, some are added up.
ONE_ROW_PARTS, ONE_ROW_SUMS = 8, 2


def matmul(x, w, b=None):
    """Return x @ w + b.

    Args:
        x: [..., k]; w: [k, n], or a transposed view of a weight [n, k]; b: [n] or None.
    Returns:
        [..., n]; under autocast in its dtype.
    """
    return _matmul(x, w, b, w if isinstance(w, torch.nn.Parameter) else None)


def _matmul(x, w, b, weight):
    """matmul; weight: whose entries w has, and which stays for more products than this one, or None."""
    rows = x.reshape(-1, x.shape[-1])                            # [..., k] -> [m, k]
    takes = _onednn_takes(rows, w)
    if takes and len(rows) == 1 and not torch.is_grad_enabled() and (w.is_contiguous() or w.t().is_contiguous()):
        y = one_row(rows, w, b)
    elif weight is not None and (laid_out := _packed(rows, w, weight, takes)) is not None:
        y = torch.ops.mkldnn._linear_pointwise.default(rows, laid_out, b, "none", [], "")
    elif not takes:
        y = product("mkl", rows, w, b)
    elif 2 <= len(rows) <= 4 and b is None and w.stride(0) == 1 and w.shape[0] <= w.shape[1] \
            and not torch.is_grad_enabled():
        # Weights [n, k] that few rows meet, as in a beam search: MKL's other order takes half of oneDNN's time.
        y = torch.mm(w.t(), rows.t()).t().contiguous()           # [n, k] x [k, m] -> [m, n]
    elif torch.is_grad_enabled():
        y = _OneDNNProduct.apply(rows, w, b)
    else:
        y = product("onednn", rows, w, b)
    return y.view(*x.shape[:-1], w.shape[1])


def one_row(x, w, b=None):
    """x [1, k] @ w [k, n] + b, w contiguous or the transposed view of a contiguous weight [n, k].

    Such a product is nothing but reading the weight. MKL does it on one core if it is asked for one product, and oneDNN
    reads at 0.4 to 0.8 of the rate of a plain sum. Asked for several products MKL gives each core its own, so the
    weight is cut along what lies apart in memory. Measured on 2 cores of an AMD EPYC, where a sum reads at 27 GB/s
    from memory and part of a weight comes from a cache, for the models' shapes: weights [n, k] 25 to 62 GB/s (oneDNN 13
    to 36), weights [k, n] 20 to 50 (14 to 25). Whole decodings of one sequence take 0.60 (T5) and 0.64 (GPT) of the
    time.
    """
    k, n = w.shape
    if not w.is_contiguous():
        parts = math.gcd(n, ONE_ROW_PARTS)
        y = torch.bmm(w.t().view(parts, n // parts, k), x.t().expand(parts, -1, -1)).view(1, n)  # -> [p, n/p, 1]
    else:
        parts = math.gcd(k, ONE_ROW_SUMS)
        y = torch.bmm(x.view(parts, 1, k // parts), w.view(parts, k // parts, n)).sum(0)  # [p, 1, k/p] x [p, k/p, n]
    return y if b is None else y.add_(b)


def linear(x, weight):
    """Return x @ weight.T, x [..., k] and weight [n, k], -> [..., n]; under autocast in its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)  # which keeps the weight's conversion as long as the context lasts
    return _matmul(x, weight.t(), None, weight)


def _onednn_takes(x, w):
    return _is_for_onednn(x, w, torch.float32) and in_force() == "onednn"


def _is_for_onednn(x, w, dtype):
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") \
        and x.dtype == w.dtype == dtype and x.device.type == w.device.type == "cpu" and x.numel() > 0 \
        and torch.backends.mkldnn.enabled


class WeightsAtRest:
    """A context in which no weight of a model changes: whoever decodes or evaluates says so, and wants no gradients.

    oneDNN sorts a weight into blocks for each product anew. Here a weight that meets several products is sorted once.
    Each product stays the same bit for bit, but for those of 2 to 4 rows in float32, which MKL has before (_matmul).
    The sorted weights, as large again as the model but at most MOST_PACKED, go with the context, so that nobody meets
    old ones: `with WeightsAtRest(): ...`. Who keeps it and enters it again vouches for the time in between as well. A
    weight that was changed nevertheless is sorted again, where autograd noticed. Inside of another one it does nothing.

    Measured on two cores of an AMD EPYC, for the models' shapes: products of 8 to 32 rows are 1.3 to 1.6 times as fast
    in float32 and 1.3 to 2.5 times in bfloat16, of 64 rows 1.2 to 1.4 times, of 640 rows 1.03 to 1.13 times.
    """

    def __init__(self):
        self.tokens, self.met, self.packed = [], WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def __enter__(self):
        self.tokens.append(_rest.set(self) if _rest.get() is None else None)
        return self

    def __exit__(self, *_):
        token = self.tokens.pop()
        if token is not None:
            _rest.reset(token)

    def packed_weight(self, w, weight):
        """A weight, whose entries are w [k, n], as oneDNN lays it out; None if it has met too few products so far."""
        state = w.data_ptr(), w.stride(), None if weight.is_inference() else weight._version
        known = self.packed.get(weight)
        if known is not None and known[0] != state:
            del self.packed[weight], self.met[weight]
            known = None
        if known is None:
            self.met[weight] = met = self.met.get(weight, 0) + 1
            if met >= PACKED_FROM and sum(p.nbytes for p in [weight, *self.packed.keys()]) <= MOST_PACKED:
                known = state, torch.ops.mkldnn._reorder_linear_weight(w.t(), PACKED_FOR)
                self.packed[weight] = known
        return None if known is None else known[1]


_rest = ContextVar("the weights at rest", default=None)


def _packed(x, w, weight, takes_float32):
    """The packed weight if there is one that this product may take, else None; see WeightsAtRest."""
    rest = _rest.get()
    if rest is None or torch.is_grad_enabled() or not (takes_float32 or _onednn_takes_bfloat16(x, w)):
        return None
    return rest.packed_weight(w, weight)


def _onednn_takes_bfloat16(x, w):
    """Whether torch multiplies in bfloat16 by oneDNN: by itself it does so on x86, whatever takes float32."""
    return _is_for_onednn(x, w, torch.bfloat16) and (in_force() == "onednn" or maker() == "GenuineIntel") \
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
