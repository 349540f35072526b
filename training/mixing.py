"""Orders of training examples: drawn from several tasks (T5 paper, section 3.5.2), packed several to a row."""

import numpy as np

__all__ = ["MixedOrders", "PackedOrders", "epoch_length", "packed", "proportions"]


def proportions(sizes: list[int], limit: int | None = None, temperature: float = 1.0) -> np.ndarray:
    """The share of each task in a mixture, float64 [tasks].

    Args:
        sizes: examples of each task.
        limit: sizes above it count as it (the paper's K).
        temperature: the sizes are raised to 1 / temperature; 1: in proportion; large: nearly equal shares.
    """
    rates = np.minimum(sizes, limit or max(sizes)).astype(np.float64) ** (1 / temperature)
    return rates / rates.sum()


def epoch_length(sizes: list[int], limit: int | None = None) -> int:
    """How many examples an epoch of a mixture has: the sum of the limited sizes; of a single task all it has."""
    return int(np.minimum(sizes, limit or max(sizes)).sum()) if len(sizes) > 1 else sizes[0]


class MixedOrders:
    """An order for each epoch, drawn when it is asked for; the numbers count through all tasks' examples.

    Each task's examples come in shuffled passes that go on from epoch to epoch, so that none comes a second time
    before the task's others have come once. Of a single task an epoch is one pass. Everything follows from the seed:
    orders[epoch] is the same, whatever was asked for before.

    Args:
        seed: of the draws. n_iter: epochs.
        sizes, limit, temperature: see proportions. An epoch has epoch_length of them.
    """

    def __init__(self, seed: int, n_iter: int, sizes: list[int], limit: int | None = None, temperature: float = 1.0):
        self.seed, self.sizes = seed, sizes
        shares, length = proportions(sizes, limit, temperature), epoch_length(sizes, limit)
        self.counts = np.random.default_rng([seed, 0]).multinomial(length, shares, size=n_iter)     # [epochs, tasks]
        self.before = np.cumsum(self.counts, 0) - self.counts
        self.offsets = np.cumsum(sizes) - sizes

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, epoch: int) -> np.ndarray:
        """Return int64 [length], the numbers of the examples of an epoch in their order."""
        parts = [self._of_task(task, self.before[epoch, task], count) for task, count in enumerate(self.counts[epoch])]
        if len(parts) == 1:
            return parts[0]
        return np.random.default_rng([self.seed, 1, epoch]).permutation(np.concatenate(parts))

    def _of_task(self, task, start, count):
        """The examples of a task from place `start` of its endless order on."""
        size = self.sizes[task]
        passes = range(start // size, (start + count + size - 1) // size)
        order = [np.random.default_rng([self.seed, 2, task, number]).permutation(size) for number in passes]
        if not order:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate(order)[start % size:][:count] + self.offsets[task]


def packed(order: np.ndarray, lengths: np.ndarray, limits: tuple[int, int]) -> list[np.ndarray]:
    """Fill rows with examples in their order, as long as they fit; return the numbers of each row's examples.

    Args:
        order: int [n], numbers of examples. lengths: int [examples, 2], tokens of input and target of each.
        limits: tokens of input and target that a row holds.
    """
    starts, used = [], np.array(limits)  # a full row, so that the first example opens one
    for place, number in enumerate(order):
        used = used + lengths[number]
        if (used > limits).any():
            starts.append(place)
            used = lengths[number]
    return np.split(order, starts[1:])


class PackedOrders:
    """Orders of rows, each an array of example numbers, in place of single examples.

    All epochs have as many rows as the first: one with more leaves its last ones out, one with fewer takes its first
    ones a second time.

    Args:
        orders: of single examples. lengths, limits: see packed.
    """

    def __init__(self, orders: MixedOrders, lengths: np.ndarray, limits: tuple[int, int]):
        self.orders, self.lengths, self.limits = orders, lengths, limits
        self.n_rows = len(packed(orders[0], lengths, limits))

    def __len__(self) -> int:
        return len(self.orders)

    def __getitem__(self, epoch: int) -> np.ndarray:
        """Return an array of n_rows arrays."""
        rows = packed(self.orders[epoch], self.lengths, self.limits)
        found = np.empty(self.n_rows, dtype=object)
        for i in range(self.n_rows):
            found[i] = rows[i % len(rows)]
        return found
