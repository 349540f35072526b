"""Dropout for CPUs, where torch's own is slow: masks of one byte an entry, drawn five times as fast.

torch draws a mask with a serial generator at 4 ns an entry and keeps it in 4 bytes. Here torch's generator draws
the seed of faster ones, so that torch.manual_seed fixes the masks as usual. An entry is kept with a probability
exact to 32 bits: 16 of them decide, and the other 16 where the first are a tie.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SLICE = 1 << 17   # entries whose random bits stay in the cache of the core that draws them
STREAM = 1 << 21  # entries of one generator; several generators work at the same time


class Dropout(nn.Module):
    """nn.Dropout, faster on CPUs."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def draw(self, shape, device):
        """Return the mask that forward would draw for an x of this shape, or None where torch is to draw it."""
        if not self.training or self.p == 0 or device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return draw_keep(shape, self.p)

    def forward(self, x, keep=None):
        """The same shape; in training, entries are 0 with probability p and scaled by 1 / (1 - p) otherwise.

        keep: a mask drawn before.
        """
        if keep is None:
            keep = self.draw(x.shape, x.device)
        return F.dropout(x, self.p, self.training) if keep is None else _ByteDropout.apply(x, keep, self.p)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, keep, p):
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, d_y):
        return (d_y * ctx.saved_tensors[0]).mul_(ctx.scale), None, None


def draw_keep(shape, p):
    """Return a mask on the CPU: uint8 of the shape, 0 with probability p and else 1.

    uint8 multiplies faster than bool. The mask does not depend on the number of threads.
    """
    keep = torch.empty(shape, dtype=torch.uint8)
    flat, seed = keep.view(-1).numpy(), torch.randint(1 << 62, ()).item()
    high, low = divmod(round((1 - p) * 2 ** 32), 2 ** 16)

    def draw(stream):
        generator = np.random.Generator(np.random.SFC64([seed, stream]))
        end = min((stream + 1) * STREAM, len(flat))
        for start in range(stream * STREAM, end, SLICE):
            part = flat[start:min(start + SLICE, end)]
            bits = generator.integers(0, 2 ** 64, (len(part) + 3) // 4, dtype=np.uint64).view(np.uint16)[:len(part)]
            np.less(bits, high, out=part.view(bool))
            ties = np.flatnonzero(bits == high)
            part[ties] = generator.integers(0, 2 ** 16, len(ties)) < low

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

    def written_out(self):
        """The matrix as the plain path uses it."""
        return self.matrix if self.keep is None else self.matrix * self.keep / (1 - self.p)
