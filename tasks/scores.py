"""Scores as targets: a score is spread over the two whole scores beside it (Tai et al. 2015), and read back as a mean.

The paper does not say how GPT-1 was trained on STS-B. The authors' script had transformed targets for that task alone,
which this fits; the choice is ours.
"""

import numpy as np
import torch

from formats.errors import BadInput

__all__ = ["distributions", "expected"]


def distributions(scores: np.ndarray, lowest: int = 0, highest: int = 5) -> np.ndarray:
    """The distribution over the whole scores lowest .. highest whose mean is a score: 3.6 is 0.4 on 3 and 0.6 on 4.

    Args:
        scores: [n], from lowest to highest.
    Returns:
        float32 [n, highest - lowest + 1].
    Raises:
        BadInput: a score is out of range or no number, with its place.
    """
    scores = np.asarray(scores, dtype=np.float64)
    wrong = ~((scores >= lowest) & (scores <= highest))
    if wrong.any():
        at = int(wrong.argmax())
        raise BadInput(f"score {at + 1} of {len(scores)} is {scores[at]:g}, expected {lowest} to {highest}")
    distances = np.abs(scores[:, None] - np.arange(lowest, highest + 1))        # [n, k]
    return np.maximum(0, 1 - distances).astype(np.float32)


def expected(logits: torch.Tensor, lowest: int = 0) -> torch.Tensor:
    """The score that logits over whole scores predict: the mean of their distribution.

    Args:
        logits: [n, k], of the scores lowest .. lowest + k - 1.
    Returns:
        float32 (or 64) [n].
    """
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    return p @ torch.arange(lowest, lowest + p.size(-1), dtype=p.dtype, device=p.device)
