"""How near two computations of the same numbers must be: a share of the largest number, on any processor."""

import numpy as np
import torch


def agree(got, want, share, floor=0.0, name=""):
    """Assert that no entry differs by more than a share of the largest wanted one.

    Args:
        got, want: arrays, tensors or numbers of one shape. share: in float32, rounding of sums leaves about 1e-6.
        floor: what the largest is at least, for what is all rounding noise around zero.
    """
    got, want = (x.detach().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)
                 for x in (got, want))
    assert got.shape == want.shape, (name, got.shape, want.shape)
    limit = share * max(np.abs(want).max(initial=0), floor)
    difference = np.abs(got - want).max(initial=0)
    assert difference <= limit, f"{name}: differs by {difference:.3g}, allowed are {limit:.3g}"
