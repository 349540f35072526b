"""Batches without their padding, for both models: everything but attention works on single positions."""

import torch

from matmul import ROW_MULTIPLE


class Packing:
    """The kept positions of a [b, t] grid as one list of n positions.

    What works on single positions need not see the padding at all; attention unfolds to the grid and
    back. This is exact for the kept positions as long as every position they attend to is kept too.
    A few padded positions are computed along to make n a multiple of ROW_MULTIPLE; their results are
    not used.

    Args:
        keep: bool [b, t], the positions to compute.
        mask: bool [b, 1, t, t], True where row i may attend to column j; for the attention to read.
    """

    def __init__(self, keep, mask=None):
        self.grid, self.mask = keep.shape, mask
        self.kept = int(keep.sum())
        kept_first = keep.flatten().argsort(descending=True, stable=True)
        self.index = kept_first[:self.kept + -self.kept % ROW_MULTIPLE]         # [n], in order but for the padding
        self.sequence = self.index // keep.shape[1]                             # [n], which of the b

    def rows(self, positions):
        """Flat positions of the grid that are kept, int [...] -> their rows among the n, int [...]."""
        return torch.searchsorted(self.index[:self.kept], positions)

    def pack(self, x):
        """[b, t, ...] -> [n, ...]."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x):
        """[n, d] -> [b, t, d], 0 where nothing was computed."""
        b, t = self.grid
        return x.new_zeros(b * t, x.shape[-1]).index_copy(0, self.index, x).view(b, t, -1)
