"""Dropout for CPUs, where torch's own is slow: masks of one byte an entry, drawn five times as fast.

torch draws a mask with a serial generator at 4 ns an entry and keeps it in 4 bytes. Here torch's generator draws
the seed of faster ones, so that torch.manual_seed fixes the masks as usual. An entry is kept with a probability
exact to 32 bits: compare 8 random bits with a threshold; a tie draws 24 more.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from fast.autograd import first_derivatives_only

SLICE = 1 << 18   # entries whose random bits stay in the cache of the core that draws them
STREAM = 1 << 21  # entries of one generator; several generators work at the same time


def rate(module):
    """The probability with which a dropout module drops now: each asks its own mode."""
    return module.p if module.training else 0.0


def dropout(x, p, keep=None):
    """Return x with entries 0 with probability p and scaled by 1 / (1 - p) otherwise, drawn faster on CPUs.

    keep: a mask drawn before.
    """
    if keep is None and p and x.device.type == "cpu":
        keep = draw_keep(x.shape, p)
    return F.dropout(x, p, p > 0) if keep is None else _ByteDropout.apply(x, keep, p)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, keep, p):
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, d_y):
        return (d_y * ctx.saved_tensors[0]).mul_(ctx.scale), None, None


def draw_seed():
    """Return a seed for draw_keep, drawn by torch's generator."""
    return torch.randint(1 << 62, (), device="cpu").item()


def draw_keep(shape, p, seed=None):
    """Return a mask on the CPU: uint8 of the shape, 0 with probability p and else 1.

    uint8 multiplies faster than bool. The mask does not depend on the number of threads. A seed of draw_seed gives the
    same mask again; by default a new one is drawn.
    """
    keep, seed = torch.empty(shape, dtype=torch.uint8, device="cpu"), draw_seed() if seed is None else seed
    flat = keep.view(-1).numpy()
    high, low = divmod(round((1 - p) * 2 ** 32), 2 ** 24)

    def draw(stream):
        generator = np.random.Generator(np.random.SFC64([seed, stream]))
        end = min((stream + 1) * STREAM, len(flat))
        for start in range(stream * STREAM, end, SLICE):
            part = flat[start:min(start + SLICE, end)]
            bits = generator.integers(0, 2 ** 64, (len(part) + 7) // 8, dtype=np.uint64).view(np.uint8)[:len(part)]
            np.less(bits, high, out=part.view(bool))
            ties = np.flatnonzero(bits == high)
            part[ties] = generator.integers(0, 2 ** 24, len(ties), dtype=np.uint32) < low

    streams = range(-(-len(flat) // STREAM))
    if len(streams) > 1:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(draw, streams))
    else:
        list(map(draw, streams))
    return keep


class DroppedMatrix(NamedTuple):
    """A matrix of which entries are dropped, not written out: matrix * keep / (1 - p), or without `keep` the matrix."""

    matrix: torch.Tensor
    keep: torch.Tensor | None = None
    p: float = 0.0


def look_up(weight, x, p):
    """Drop entries of a matrix with probability p and look x up in the rest.

    Args:
        weight: [v, d]; x: int [..., 2].
    Returns:
        [..., d], the two rows added; the DroppedMatrix [v, d].
    """
    if p and weight.device.type == "cpu":
        keep = draw_keep(weight.shape, p)
        h, weight = _DroppedLookup.apply(weight, keep, x, p)
        return h, DroppedMatrix(weight, keep, p)
    weight = F.dropout(weight, p, p > 0)
    return F.embedding(x, weight).sum(-2), DroppedMatrix(weight)                # [..., 2, d] -> [..., d]


class _DroppedLookup(torch.autograd.Function):
    """Dropout of a matrix and lookup in it, for CPUs: the matrix gets its gradient in one buffer instead of four.

    Returns the rows looked up, and the undropped matrix; the rows' gradient is added into its gradient.
    """

    @staticmethod
    def forward(ctx, weight, keep, x, p):
        kept = keep[x]                                       # [..., 2, d]
        ctx.save_for_backward(x, kept)
        ctx.p, ctx.shape, ctx.dtype = p, weight.shape, weight.dtype
        ctx.set_materialize_grads(False)
        return (weight[x] * kept).sum(-2).div_(1 - p), weight.view_as(weight)

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_h, d_weight):
        x, kept = ctx.saved_tensors
        if d_weight is None:  # no softmax
            d_weight = torch.zeros(ctx.shape, dtype=ctx.dtype, device="cpu")
        if d_h is not None:
            d_rows = d_h.unsqueeze(-2) * kept / (1 - ctx.p)  # [..., d] -> [..., 2, d]
            # d_weight comes from the softmax and is nobody else's: it may be changed.
            d_weight = d_weight.contiguous().index_add_(0, x.flatten(), d_rows.flatten(0, -2))
        return d_weight, None, None, None
