"""Products with weights that nobody changes for a while, in decoding and evaluations: laid out once, read at full rate.

`with WeightsAtRest(): ...` says so, and matmul.py asks `product_at_rest` for every product.
"""

import functools
import math
import threading
import weakref
from contextvars import ContextVar

import torch
from torch import nn

from fast.blas import in_force, maker
from fast.memory import in_huge_pages

# Weights are laid out when they meet this product, by which time about as much was lost as that takes,
LAID_OUT_FROM = 8
# for a single row in huge pages from this product on,
IN_HUGE_PAGES_FROM = 64
# by oneDNN for products of so many rows: from 2 to 1,280 rows no other number was measured to be faster.
PACKED_FOR = 16
# So many bytes are laid out at most.
MOST_LAID_OUT = 2 ** 30

# Into how many products that of one row is cut at most, see one_row: some give parts of the result, some are added up.
ONE_ROW_PARTS, ONE_ROW_SUMS = 8, 2

_rest = ContextVar("the weights at rest", default=None)


class WeightsAtRest:
    """A context in which no weight of a model changes: whoever decodes or evaluates says so, and wants no gradients.

    oneDNN sorts a weight into blocks for each product anew. Here a weight that meets several products is sorted once;
    such a product stays the same bit for bit, but for 2 to 4 rows in float32, which MKL multiplies before (matmul.py).
    Weights that meet the same rows, as those of T5's queries, keys and values, are put together and multiplied at once,
    which may round differently. In the main thread a single row in bfloat16 goes to torch's own kernel, which wants a
    weight as [n, k]; other threads that multiply at that moment get torch's kernels too. What is laid out goes with the
    context: for one row and for several as large again as the model each, in all at most MOST_LAID_OUT. Who keeps a
    context and enters it again vouches for the time in between as well. A weight that was changed nevertheless is laid
    out again, where autograd noticed: not changes of `.data`, or in a conversion there and back. Inside of another one
    it does nothing.

    Measured on two cores of an AMD EPYC, for the models' shapes: sorted once, products of 8 to 32 rows are 1.3 to 1.6
    times as fast in float32 and 1.3 to 2.5 times in bfloat16, of 64 rows 1.2 to 1.4 times, of 640 rows 1.03 to 1.13
    times. One row in bfloat16 is read 1.0 to 1.8 times as fast by torch's kernel as by oneDNN when it is sorted.
    """

    def __init__(self):
        self.tokens, self.known, self.blas = [], {}, None

    def __enter__(self):
        self.blas = in_force()  # asking at every product would take as long as one of its kernels does to start
        self.tokens.append(_rest.set(self) if _rest.get() is None else None)
        return self

    def __exit__(self, *_):
        token = self.tokens.pop()
        if token is not None:
            _rest.reset(token)

    def product(self, x, weights, transposed, b):
        """See product_at_rest."""
        one = x.shape[0] == 1  # len(x) is a function in Python, ten times as slow
        key = id(weights[0]), len(weights), transposed, one
        known = self.known.get(key)
        if known is None or not known.are(weights):
            known = self.known[key] = _Known(weights, *_way(one, weights, transposed, self.blas))
        known.met += 1
        if known.lay_out is not None and known.laid_out is None:
            if known.met < known.lay_out_from:
                return None
            self.known = {key: kept for key, kept in self.known.items() if kept.weights[0]() is not None}
            n_bytes = sum(weight.nbytes for weight in weights)
            if n_bytes + sum(kept.n_bytes for kept in self.known.values()) > MOST_LAID_OUT:
                known.lay_out_from = 2 * known.met  # looking at all of them at every product would take long
                return None
            known.n_bytes, known.laid_out = n_bytes, known.lay_out([w if transposed else w.t() for w in weights])
        laid_out = weights[0] if known.lay_out is None else known.laid_out
        if known.met == IN_HUGE_PAGES_FROM and known.multiply is not _by_onednn:
            in_huge_pages(laid_out)
        return known.multiply(x, laid_out, b)


class _Known:
    """What a rest knows of weights that are multiplied together.

    Attributes:
        weights: weak references to them. states: theirs, when they were met first.
        lay_out: a function of a list of weights [n, k]; None: the only one is used as it is.
        multiply: a function of rows, of what lay_out returned (or the weight) and of the bias.
        lay_out_from: the product that may lay out. met: products so far.
        laid_out, n_bytes: the result of lay_out, and its size.
    """

    def __init__(self, weights, lay_out, multiply, lay_out_from=LAID_OUT_FROM):
        self.weights, self.states = [weakref.ref(weight) for weight in weights], [_state(weight) for weight in weights]
        self.lay_out, self.multiply, self.lay_out_from = lay_out, multiply, lay_out_from
        self.met, self.n_bytes, self.laid_out = 0, 0, None

    def are(self, weights):
        """Whether they are the same weights, unchanged: an address may have been used again."""
        for known, state, weight in zip(self.weights, self.states, weights, strict=True):
            if known() is not weight or state != _state(weight):
                return False
        return True


def product_at_rest(x, weights, transposed, b=None):
    """Return x @ w + b as is fastest for weights at rest, several products side by side; or None, then others multiply.

    Args:
        x: [m, k]. weights: [k, n], or [n, k] where `transposed`, of which several may go together. b: [n] or None.
    Returns:
        [m, n], n of all weights; or None: they are no parameters on a CPU, nobody said that they rest, or they met too
        few products so far.
    """
    rest, first = _rest.get(), weights[0]
    if rest is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or not torch.backends.mkldnn.enabled \
            or not isinstance(first, nn.Parameter) or not x.numel() or not x.is_cpu or not first.is_cpu \
            or torch.is_autocast_enabled("cpu") or any(weight.dtype != x.dtype for weight in weights):
        return None
    if x.dtype == torch.float32 and rest.blas == "onednn" \
            or x.dtype == torch.bfloat16 and _onednn_takes_bfloat16(rest.blas):
        return rest.product(x, weights, transposed, b)
    return None


def _onednn_takes_bfloat16(library):
    """Whether torch multiplies bfloat16 by oneDNN, where float32 goes to a library: by itself it does so on x86."""
    return (library == "onednn" or maker() == "GenuineIntel") and _has_bfloat16()


@functools.cache
def _has_bfloat16():
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _state(weight):
    return weight.data_ptr(), weight.stride(), None if weight.is_inference() else weight._version


def _way(one, weights, transposed, library):
    """How one row, or more, meet weights: the arguments lay_out, multiply and lay_out_from of _Known."""
    float32, as_it_is = weights[0].dtype == torch.float32, len(weights) == 1 and weights[0].is_contiguous()
    main = threading.current_thread() is threading.main_thread()
    if not one or library != "onednn" or not (float32 or main):  # on Intel's processors one row was not measured
        return _sorted, _by_onednn
    if float32 and as_it_is:
        return None, one_row if transposed else one_row_in_sums
    if float32:
        return _together, one_row
    if as_it_is and transposed:
        return None, _one_row_in_bfloat16
    # at once where there is a single one, so that one kernel makes all of its products and a text's answer stays the
    # same whatever was answered before; several go there each for itself until then
    return _together, _one_row_in_bfloat16, 1 if len(weights) == 1 else LAID_OUT_FROM


def _sorted(weights):
    return torch.ops.mkldnn._reorder_linear_weight(_together(weights), PACKED_FOR)


def _together(weights):
    return torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()  # of [n, k] each -> [all n, k]


def _by_onednn(x, laid_out, b):
    return torch.ops.mkldnn._linear_pointwise.default(x, laid_out, b, "none", [], "")


def one_row(x, weight, b=None):
    """x [1, k] @ weight.T + b, weight [n, k] and contiguous.

    Such a product is nothing but reading the weight. MKL does it on one core if it is asked for one product, and oneDNN
    reads at 0.4 to 0.8 of the rate of a plain sum. Asked for several products MKL gives each core its own, so the
    weight is cut along what lies apart in memory. Measured on 2 cores of an AMD EPYC, where a sum reads at 27 GB/s
    from memory and part of a weight comes from a cache, for the models' shapes: weights [n, k] 25 to 62 GB/s (oneDNN 13
    to 36), weights [k, n] 20 to 50 (14 to 25). Whole decodings of one sequence take 0.60 (T5) and 0.64 (GPT) of the
    time.
    """
    n, k = weight.shape
    parts = math.gcd(n, ONE_ROW_PARTS)
    y = torch.bmm(weight.view(parts, n // parts, k), x.t().expand(parts, -1, -1)).view(1, n)  # -> [p, n/p, 1]
    return y if b is None else y.add_(b)


def one_row_in_sums(x, w, b=None):
    """x [1, k] @ w + b, w [k, n] and contiguous, as one_row."""
    k, n = w.shape
    parts = math.gcd(k, ONE_ROW_SUMS)
    y = torch.bmm(x.view(parts, 1, k // parts), w.view(parts, k // parts, n)).sum(0)  # [p, 1, k/p] x [p, k/p, n]
    return y if b is None else y.add_(b)


def _one_row_in_bfloat16(x, weight, b):
    """As one_row, by torch's own kernel, which runs while oneDNN is switched off, for the whole process."""
    torch._C._set_mkldnn_enabled(False)
    try:
        y = torch.mv(weight, x[0])[None]                         # [n, k] x [k] -> [1, n]
    finally:
        torch._C._set_mkldnn_enabled(True)  # as it was, or product_at_rest would have looked elsewhere
    return y if b is None else y.add_(b)
