"""Matrix products, in float32 on the faster of the two CPU libraries that torch carries.

For float32 on CPUs torch calls MKL, which leaves half of the vector width of some processors unused
and reads a weight slowly when there are few rows; for bfloat16 it calls oneDNN, which does neither.
`matmul` takes oneDNN for float32 too. Measured on 2 cores of an AMD EPYC with AVX-512, for the shapes
of GPT-1: 1.9 to 2.4 times as fast from 64 rows on, 2 to 5 times for 1 to 8 rows.
`torch.backends.mkldnn.enabled = False` brings the plain path back.
"""

import torch

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
    if not _onednn_takes(rows, w):
        y = rows @ w if b is None else torch.addmm(b, rows, w)   # [m, k] x [k, n] -> [m, n]
    elif 2 <= len(rows) <= 4 and b is None and w.stride(0) == 1 and w.shape[0] <= w.shape[1] \
            and not torch.is_grad_enabled():
        # Weights [n, k] that few rows meet, as in a beam search: MKL's other order takes half of oneDNN's time.
        y = torch.mm(w.t(), rows.t()).t().contiguous()           # [n, k] x [k, m] -> [m, n]
    else:
        y = _OneDNNProduct.apply(rows, w, b)
    return y.view(*x.shape[:-1], w.shape[1])


def _onednn_takes(x, w):
    return x.dtype == w.dtype == torch.float32 and x.device.type == w.device.type == "cpu" and x.numel() > 0 \
        and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled \
        and not torch.is_autocast_enabled("cpu")


class _OneDNNProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        # torch's compiler puts this operator in the place of F.linear, hence the weight as [n, k].
        return torch.ops.mkldnn._linear_pointwise(x, w.t(), b, "none", [], "")

    @staticmethod
    def backward(ctx, d_y):
        x, w = ctx.saved_tensors
        d_x = d_w = d_b = None
        if ctx.needs_input_grad[0]:
            d_x = matmul(d_y, w.t())                             # [m, n] x [n, k] -> [m, k]
        if ctx.needs_input_grad[1]:
            # laid out in memory as w is
            d_w = matmul(d_y.t(), x).t() if w.stride(0) == 1 else matmul(x.t(), d_y)  # [k, m] x [m, n] -> [k, n]
        if ctx.needs_input_grad[2]:
            d_b = d_y.sum(0)
        return d_x, d_w, d_b
