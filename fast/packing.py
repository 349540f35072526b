"""Batches without their padding, for both models: everything but attention works on single positions.

Measured for a training step of GPT-1 on 8 stories, on one core of an AMD EPYC: without it, padded to the longest of
the batch, the step takes 1.15 times as long.
"""

import torch

from fast.devices import moved
from fast.matmul import ROW_MULTIPLE


class Packing:
    """The kept positions of a [b, t] grid as one list of n positions.

    What works on single positions need not see the padding at all; attention unfolds to the grid and
    back. This is exact for the kept positions as long as every position they attend to is kept too:
    elsewhere attention finds other positions' numbers. A few padded positions are computed along to make
    n a multiple of ROW_MULTIPLE; their results are not used.

    The layout is worked out where `keep` lies: on a GPU that waits for it, on the CPU it does not.

    Args:
        keep: bool [b, t] (or 0 and 1), the positions to compute.
        device: where what is packed lies; where `keep` does by default.
        mask: bool [b, 1, t, t], True where row i may attend to column j; for the attention to read.
    """

    def __init__(self, keep, mask=None, device=None):
        device = keep.device if device is None else device
        self.grid, self.mask = keep.shape, None if mask is None else moved(mask, device)
        keep = keep.bool()
        counts = keep.sum(1)
        self.kept, self.fewest = torch.stack([counts.sum(), counts.min()]).tolist()  # in all; in one sequence
        kept_first = keep.flatten().argsort(descending=True, stable=True)
        self._index_there = kept_first[:self.kept + -self.kept % ROW_MULTIPLE]  # [n], in order but for the padding
        self.index = moved(self._index_there, device)                           # [n]
        self.sequence = self.index // keep.shape[1]                             # [n], which of the b
        self._rows_of_heads = {}

    def rows(self, positions):
        """Flat positions of the grid that are kept, int [...] where `keep` lay -> their rows among the n, int [...]."""
        return moved(torch.searchsorted(self._index_there[:self.kept], positions), self.index.device)

    def pack(self, x):
        """[b, t, ...] -> [n, ...]."""
        return x.flatten(0, 1).index_select(0, self.index)

    def split_heads(self, x, parts, n_head):
        """Lay out packed vectors for attention in one pass, without the grid in between: it halves its moves of data.

        Args:
            x: [n, parts * n_head * k], such as queries, keys and values side by side: 3 parts.
        Returns:
            [parts, b, n_head, t, k]. Padding slots hold a copy of some real position and get no gradient; mask
            them out. merge_heads does not return what they see. A sequence that keeps nothing is all 0.
        """
        if self.fewest == 0:
            grid = self.unpack(x).unflatten(-1, (parts, n_head, -1))                # [n, ...] -> [b, t, parts, h, k]
            return grid.permute(2, 0, 3, 1, 4)
        index, inverse = self._head_rows(parts, n_head)
        heads = _TakeRows.apply(x.reshape(inverse.numel(), -1), index, inverse)     # -> [n * parts * n_head, k]
        return heads.view(parts, self.grid[0], n_head, self.grid[1], -1)

    def merge_heads(self, a):
        """[b, h, t, k] -> [n, h * k]."""
        if self.fewest == 0:
            return self.pack(a.transpose(1, 2).flatten(2))                          # -> [b, t, h * k] -> [n, h * k]
        index, inverse = self._head_rows(1, a.shape[1])
        rows = _TakeRows.apply(a.reshape(index.numel(), -1), inverse, None)         # [b * h * t, k] -> [n * h, k]
        return rows.view(len(self.index), -1)

    def _head_rows(self, parts, n_head):
        """Return int [parts * b * n_head * t] and int [n * parts * n_head], which invert each other: where each vector
        of one head comes from when heads are split, and where each goes to."""
        if (parts, n_head) not in self._rows_of_heads:
            (b, t), n, device = self.grid, len(self.index), self.index.device
            source = self.index.new_zeros(b * t).index_copy(0, self.index, torch.arange(n, device=device))
            packed = torch.arange(n * parts * n_head, device=device).view(n, parts, n_head)
            split = torch.arange(parts * b * n_head * t, device=device).view(parts, b, n_head, t)
            self._rows_of_heads[parts, n_head] = (
                packed[source].view(b, t, parts, n_head).permute(2, 0, 3, 1).flatten(),
                split.permute(1, 3, 0, 2).flatten(0, 1)[self.index].flatten())  # [b, t, parts, h] -> [n, parts, h]
        return self._rows_of_heads[parts, n_head]

    def unpack(self, x):
        """[n, d] -> [b, t, d], 0 where nothing was computed."""
        b, t = self.grid
        return x.new_zeros(b * t, x.shape[-1]).index_copy(0, self.index, x).view(b, t, -1)


class _TakeRows(torch.autograd.Function):
    """x[index], with a gradient from one place for each row, where index_select's adds up over places.

    Args:
        x: [r, k]; index: int [s].
        inverse: int [r], for each row of x its place in the result whose gradient it gets; duplicates get no
            gradient. Without `inverse`, rows must be unique.
    """

    @staticmethod
    def forward(ctx, x, index, inverse):
        ctx.save_for_backward(index, inverse)
        ctx.n_rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, d_y):
        index, inverse = ctx.saved_tensors
        if inverse is not None:
            return d_y.index_select(0, inverse), None, None
        return d_y.new_zeros(ctx.n_rows, d_y.shape[1]).index_copy(0, index, d_y), None, None
