"""Dropout for CPUs, where torch's own is slow: masks of one byte an entry, drawn two to three times as fast.

torch draws a mask with a serial generator at 4 ns an entry and keeps it in 4 bytes. Here torch's generator draws
the seed of a faster one, and each entry takes 32 bits of it; so torch.manual_seed fixes the masks as usual. The
work is done slice by slice, because random bits that stay in the cache cost less than the memory they would fill.
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SLICE = 1 << 18  # entries


class Dropout(nn.Module):
    """nn.Dropout, faster on CPUs."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        """The same shape; in training, entries are 0 with probability p and scaled by 1 / (1 - p) otherwise."""
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        return _ByteDropout.apply(x, self.p)


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        y, keep = dropped(x, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return y

    @staticmethod
    def backward(ctx, d_y):
        return (d_y * ctx.saved_tensors[0]).mul_(ctx.scale), None


def dropped(x, p):
    """Return (x after dropout, the mask of the entries that are kept), on a CPU.

    Args:
        x: float tensor; p: probability of an entry to become 0, below 1.
    Returns:
        y: the shape of x, contiguous; keep: uint8 of 0 and 1, the shape of x. y = x * keep / (1 - p).
    """
    y, keep = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=torch.uint8)  # uint8 multiplies faster
    draws = np.random.Generator(np.random.SFC64(torch.randint(1 << 62, ()).item()))
    limit = round((1 - p) * 2 ** 32) - 2 ** 31
    for x_part, y_part, keep_part in zip(*(t.view(-1).split(SLICE) for t in (x.contiguous(), y, keep)), strict=True):
        pairs = draws.integers(0, 2 ** 64, (len(x_part) + 1) // 2, dtype=np.uint64)
        bits = torch.from_numpy(pairs.view(np.int32))[:len(x_part)]
        torch.lt(bits, limit, out=keep_part.view(torch.bool))
        torch.mul(x_part, keep_part, out=y_part).mul_(1 / (1 - p))
    return y, keep


def drop_again_(x, keep, p):
    """Multiply x, contiguous, by keep / (1 - p) in place and return it."""
    for x_part, keep_part in zip(x.view(-1).split(SLICE), keep.view(-1).split(SLICE), strict=True):
        x_part.mul_(keep_part).mul_(1 / (1 - p))
    return x
