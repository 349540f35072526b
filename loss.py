"""The losses of both papers, as they write them, from logits.

GPT-1: L1 is the language-model loss, L2 the task's, and fine-tuning minimises L3 = L2 + lambda L1
(paper sections 3.1 and 3.2; TF function `model`). T5: cross entropy with a squared log normaliser
(TF `mtf.layers.softmax_cross_entropy_with_logits`). fast/cross_entropy.py has the same without the
memory for all logits. A label of IGNORED is none, as for F.cross_entropy: its loss is 0, and no mean counts it.

Letters in the shape comments: b sequences or examples, c choices of an example, t positions, v rows
of the vocabulary.
"""

import torch
import torch.nn.functional as F

from formats.errors import BadInput
from formats.t5_files import IGNORED, PAD
from formats.tensor_files import is_true

__all__ = ["double_head_loss", "lm_losses", "losses_of_targets", "mean_task_loss", "require_batch", "require_targets",
           "t5_loss", "target_log_probs", "task_losses", "token_losses", "word_loss"]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Logits in float32, or in float64 if they are: losses are never taken in a half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def require_batch(x: torch.Tensor, m: torch.Tensor, n_logits: int | None = None) -> None:
    """Refuse an x and an m that are no batch.

    Args:
        x: int [..., t, 2]; m: [..., t]. n_logits: task logits of each example, where there is a task.
    Raises:
        BadInput: their shapes do not belong together; a weight in m is negative or not a number; there is a single
            choice, of which nothing is learned.
    """
    if x.dim() < 3 or x.size(-1) != 2:
        raise BadInput(f"x is {list(x.shape)}, expected int [b, c, t, 2] or [b, t, 2]: token ids and position ids")
    if m.shape != x.shape[:-1]:
        raise BadInput(f"m is {list(m.shape)}, expected {list(x.shape[:-1])} for x {list(x.shape)}: 1 at tokens to "
                       "learn from, 0 at padding")
    if is_true(~(m >= 0).all()):
        raise BadInput(f"m has the value {m[~(m >= 0)][0].item():g}, expected 0 or more: 1 at tokens to learn from, 0 "
                       "at padding")
    if n_logits == 1 and x.dim() == 4 and x.size(1) == 1:
        raise BadInput(f"x is {list(x.shape)}: a single choice for each example, of which nothing is learned; expected "
                       "int [b, c, t, 2] with two choices or more")


def require_targets(y: torch.Tensor, b: int, n: int) -> None:
    """Refuse targets that do not belong to task logits [b, n]; what y may be says task_losses.

    Raises:
        BadInput: another shape, a class that there is not, a truth that is not from 0 to 1, no distribution.
    """
    if n == 1:
        what = f"[{b}], how true each is, 0 to 1"
        wrong = ((y < 0) | (y > 1) | (y != y)) & (y != IGNORED)
    else:
        what = f"int [{b}], classes 0 to {n - 1} ({IGNORED}: none), or float [{b}, {n}], distributions over them"
        wrong = ((y < 0) | (y >= n) | (y != y.long())) & (y != IGNORED)
    if tuple(y.shape) not in {(b,), (b, n)}:
        raise BadInput(f"y is {list(y.shape)}, expected {what}")
    if n > 1 and y.dim() == 2:
        wrong = ~((y >= 0).all(1) & ((y.float().sum(1) - 1).abs() < 0.01))      # [b]
    if is_true(wrong.any()):
        at = int(wrong.flatten().int().argmax())
        raise BadInput(f"y[{at}] is {y[at].tolist()}, expected {what}")


def lm_losses(lm_logits: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """L1: the language-model loss of each sequence.

    Args:
        lm_logits: [b * (t - 1), v]; x: int [b, t, 2], whose ids are the labels; m: [b, t], 1 at tokens to learn from,
            0 at padding.
    Returns:
        [b], sum(masked token losses) / sum(mask[1:]) in nats; 0 where the mask is all zeros.
    Raises:
        BadInput: see require_batch; or there are logits of another number of tokens.
    """
    require_batch(x, m)
    b, t = m.shape
    if len(lm_logits) != b * (t - 1):
        raise BadInput(f"lm_logits are {list(lm_logits.shape)}, expected [{b * max(t - 1, 0)}, v] for x "
                       f"{list(x.shape)}")
    labels = x[:, 1:, 0].long()
    losses = F.cross_entropy(at_least_float32(lm_logits), labels.flatten(), reduction="none")
    m = (m[:, 1:] * (labels != IGNORED)).to(losses.dtype)
    return (losses.view(b, t - 1) * m).sum(1) / m.sum(1).clamp(min=torch.finfo(m.dtype).tiny)


def word_loss(lm_logits: torch.Tensor, x: torch.Tensor, n_words: int) -> torch.Tensor:
    """The sum of the cross entropies of tokens 1 .. t-1 among the words alone: a position is no word.

    Args:
        lm_logits: [b, t, v] of an LMModel; x: int [b, t, 2]; n_words: rows of `we` before the positions.
    Returns:
        a scalar, in nats.
    """
    logits = at_least_float32(lm_logits[:, :-1, :n_words]).flatten(0, 1)       # [b, t, v] -> [b(t-1), n_words]
    return F.cross_entropy(logits, x[:, 1:, 0].flatten().long(), reduction="sum")


def task_losses(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L2: the task's loss of each example.

    Args:
        logits: [b, n], of n choices or classes; [b, 1], one score for yes (similarity).
        y: int [b], the right choice or class; or float [b, n], a distribution over them. For [b, 1]: [b], how
            true it is, 0 to 1.
    Returns:
        [b], cross entropy in nats.
    Raises:
        BadInput: see require_targets.
    """
    if logits.dim() != 2:
        raise BadInput(f"logits are {list(logits.shape)}, expected [b, n], of n choices or classes")
    require_targets(y, *logits.shape)
    return losses_of_targets(logits, y)


def losses_of_targets(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As task_losses, of targets that require_targets has seen: looking at them waits for a GPU that they are on."""
    logits = at_least_float32(logits)
    if logits.size(1) == 1:
        y = y.to(logits.dtype).view(-1)
        return F.binary_cross_entropy_with_logits(logits[:, 0], y, reduction="none").masked_fill(y == IGNORED, 0)
    return F.cross_entropy(logits, y.to(logits.dtype) if y.dim() == 2 else y.long(), reduction="none")


def mean_task_loss(losses: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean of task_losses [b] over the examples that have a label; 0 where none has. y: see task_losses."""
    is_distribution = y.dim() == 2 and y.size(1) > 1
    return losses.sum() / (max(len(losses), 1) if is_distribution else (y != IGNORED).sum().clamp(min=1))


def double_head_loss(lm_logits: torch.Tensor, clf_logits: torch.Tensor, x: torch.Tensor, m: torch.Tensor,
                     y: torch.Tensor, lm_coef: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L3: the fine-tuning loss from the two heads' logits, mean_task_loss + lm_coef * mean(lm_losses).

    Args:
        lm_logits: [b * c * (t - 1), v]; clf_logits: [b, n]; x: int [b, c, t, 2] (or [b, t, 2]); m: [b, c, t] (or
            [b, t]); y: see task_losses; lm_coef: weight of the language-model term; 0 drops it. x, m and y may be
            NumPy arrays too.
    Returns:
        train_loss (scalar), clf_losses [b], lm_losses [b * c].
    Raises:
        BadInput: see require_batch and require_targets.
    """
    x, m, y = (value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device=clf_logits.device)
               for value in (x, m, y))
    require_batch(x, m, clf_logits.size(-1))
    clf = task_losses(clf_logits, y)
    lm = lm_losses(lm_logits, x.flatten(0, -3), m.flatten(0, -2))
    loss = mean_task_loss(clf, y)
    return (loss + lm_coef * lm.sum() / max(len(lm), 1) if lm_coef else loss), clf, lm


def token_losses(logits: torch.Tensor, targets: torch.Tensor, z_loss: float = 0.0,
                 label_smoothing: float = 0.0) -> torch.Tensor:
    """T5's loss of each token: cross entropy + z_loss * log(Z)^2, log Z the logsumexp of the logits.

    Args:
        logits: [..., v]; targets: int [...]; z_loss: 1e-4 in the original's training, 0 in evaluation.
        label_smoothing: share of the target's probability that is spread over all v rows, as F.cross_entropy does.
    Returns:
        [...], in nats, 0 at IGNORED. Padding is not left out.
    """
    logits = at_least_float32(logits)
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), reduction="none",
                             label_smoothing=label_smoothing).view(targets.shape)
    return losses + z_loss * logits.logsumexp(-1).square() * (targets != IGNORED) if z_loss else losses


def t5_loss(logits: torch.Tensor, targets: torch.Tensor, z_loss: float = 0.0,
            label_smoothing: float = 0.0) -> torch.Tensor:
    """The original's training loss: token_losses of real tokens, over the number of all positions.

    Args:
        logits: [b, t, v]; targets: int [b, t], padded with PAD or IGNORED; z_loss, label_smoothing: see token_losses.
    Returns:
        a scalar, in nats.
    """
    return (token_losses(logits, targets, z_loss, label_smoothing) * (targets != PAD)).sum() / max(targets.numel(), 1)


def target_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The log-probability of each target sequence: minus the sum of its real tokens' losses.

    Args:
        logits: [b, t, v]; targets: int [b, t], padded with PAD or IGNORED.
    Returns:
        float32 [b].
    """
    return -(token_losses(logits, targets) * (targets != PAD)).sum(-1)
