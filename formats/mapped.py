"""Files that are mapped into memory: their values go to a model's parameters, and their pages back to the system.

A page of a mapped file takes memory from the first look at it on, until it is given back. So a model is filled a piece
at a time, and what a piece was read from is given back before the next: the file is never in memory a second time.
Where the system is not Linux, or does not tell what is mapped, nothing is given back, and the values are the same.
"""

import bisect
import ctypes
import mmap
import re
import sys

import numpy as np
import torch

__all__ = ["MappedFiles", "Pieces", "copy_into", "load_state_dict"]

PAGE = mmap.PAGESIZE
CHUNK = 1 << 20  # values that are copied at a time
LARGE = 1 << 22  # bytes from which on memory is asked for in large pages
DONTNEED, HUGEPAGE = 4, 14  # of linux/mman.h
MAP_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ ([1-9]\d*) +(?!/dev/)/")


class MappedFiles:
    """The files that are mapped into this process's memory now; those that are mapped later are not among them.

    To forget pages of other memory would make zeros of its values, hence this list.
    """

    def __init__(self):
        found = []
        if sys.platform.startswith("linux"):
            try:
                with open("/proc/self/maps", encoding="utf-8", errors="replace") as f:
                    found = [(int(match[1], 16), int(match[2], 16)) for line in f if (match := MAP_LINE.match(line))]
            except OSError:
                pass
        self._starts, self._ends = [start for start, _ in found], [end for _, end in found]

    def give_back(self, tensor: torch.Tensor) -> None:
        """Forget the pages that a tensor on the CPU lies in, if they are a file's; its values are read anew then."""
        if tensor.numel() == 0 or tensor.device.type != "cpu":
            return
        start = tensor.data_ptr()
        end = start + tensor.element_size() * (1 + sum((n - 1) * step for n, step in
                                                       zip(tensor.shape, tensor.stride(), strict=True)))
        i = bisect.bisect_right(self._starts, start) - 1
        if i >= 0 and end <= self._ends[i]:
            start = start // PAGE * PAGE
            _advise(start, -(-end // PAGE) * PAGE - start, DONTNEED)


class Pieces:
    """A tensor whose values lie in several places, one after the other: OpenAI's files end where they end.

    Args:
        parts: 1-D tensors.
        shape: of the whole.
    """

    def __init__(self, parts: list[torch.Tensor], shape: list[int]):
        self.parts, self.shape = parts, tuple(shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "Pieces":
        """The first rows, pieces[:n]."""
        n = len(range(len(self))[:rows.stop])
        left, parts = n * self.shape[1], []
        for part in self.parts:
            parts.append(part[:left])
            left -= len(parts[-1])
        return Pieces(parts, [n, *self.shape[1:]])

    def __array__(self, dtype=None, copy=None):
        return np.concatenate([part.numpy() for part in self.parts]).reshape(self.shape).astype(dtype or np.float32)


@torch.no_grad()
def copy_into(pairs: list[tuple[torch.Tensor, torch.Tensor | Pieces]]) -> None:
    """Copy the second of each pair into the first, and give its memory back.

    Args:
        pairs: (tensor on any device, tensor or Pieces of the same shape). The list is empty afterwards: a source that
            nothing else holds is freed as soon as it is copied.
    """
    files = MappedFiles()
    pairs.reverse()
    while pairs:
        target, source = pairs.pop()
        if target.device.type == "cpu" and target.is_contiguous() and target.nbytes >= LARGE:
            start = -(-target.data_ptr() // PAGE) * PAGE
            _advise(start, (target.data_ptr() + target.nbytes - start) // PAGE * PAGE, HUGEPAGE)
        if isinstance(source, Pieces) and not target.is_contiguous():
            source = torch.from_numpy(np.asarray(source))
        if isinstance(source, Pieces):
            values, at = target.view(-1), 0
            for part in source.parts:
                _copy(values[at:at + len(part)], part, files)
                at += len(part)
        else:
            _copy(target, source, files)


def load_state_dict(model: torch.nn.Module, tensors: dict) -> None:
    """As model.load_state_dict(tensors), without a second copy of a mapped file in memory. Raises as that does."""
    own = model.state_dict()
    if own.keys() == tensors.keys() and all(own[name].shape == tensors[name].shape for name in own):
        copy_into([(own[name], tensors[name]) for name in own])
    else:  # of another form, which the model knows, or wrong
        model.load_state_dict(tensors)


def _copy(target, source, files):
    """Copy, some rows at a time where the source's rows lie together."""
    n = len(source) if source.dim() and source.is_contiguous() else 1
    if n < 2:
        target.copy_(source)
        files.give_back(source)
        return
    rows = max(1, CHUNK * n // max(source.numel(), 1))
    for start in range(0, n, rows):
        piece = source[start:start + rows]
        target[start:start + rows].copy_(piece)
        files.give_back(piece)


def _advise(start, size, advice):
    """Tell the system about pages; it may refuse."""
    if size > 0 and sys.platform.startswith("linux"):
        try:
            madvise = ctypes.CDLL(None).madvise
        except (OSError, AttributeError):
            return
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
