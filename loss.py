"""Cross entropy of a linear layer's output, without ever holding all of its logits.

A language model's loss needs logits [tokens, vocabulary] only to add them up. linear_cross_entropy
visits the tokens a few hundred at a time and takes the gradients on the way, so that each logit is
computed once and none is kept. The plain path it equals is plain_linear_cross_entropy.
"""

import torch
import torch.nn.functional as F

from matmul import ROW_MULTIPLE, matmul

# N tokens, V rows of the vocabulary, D width of the hidden states

# How many logits exist at once, by the bytes of each. In bfloat16 the products are fast, and adding the parts of the
# weight's gradient weighs more: so there are fewer and larger parts.
LOGITS_AT_ONCE = {8: 1 << 22, 4: 1 << 23, 2: 1 << 25}


def plain_linear_cross_entropy(hidden, weight, targets, scale, z_loss=0.0):
    """The definition: sum over tokens of scale * (cross entropy + z_loss * logsumexp(logits)^2).

    Args and return value as linear_cross_entropy.
    """
    logits = (hidden @ weight.T).float()  # [N, D] x [D, V] -> [N, V]
    losses = F.cross_entropy(logits, targets, reduction="none")
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return (scale * losses).sum()


def linear_cross_entropy(hidden, weight, targets, scale, z_loss=0.0):
    """Return sum over tokens of scale * (cross entropy + z_loss * logsumexp(logits)^2), a scalar.

    logits = hidden @ weight.T. Differentiable in hidden and weight. Under autocast the matrix
    products run in its dtype, everything else in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: int64 [N], rows of weight.
        scale: float32 [N], the weight of each token's loss.
        z_loss: coefficient of the squared log normaliser (T5: 1e-4 in training).
    """
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, scale, z_loss, wants_grad)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, scale, z_loss, wants_grad):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            n_tokens, padding = len(hidden), -len(hidden) % ROW_MULTIPLE
            h, w = F.pad(hidden, (0, 0, 0, padding)).to(dtype), weight.to(dtype)
            targets, scale = F.pad(targets, (0, padding))[:, None], F.pad(scale, (0, padding))[:, None]
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_hidden = torch.empty_like(h, dtype=hidden.dtype) if wants_grad else None
            d_weight = torch.empty_like(weight) if wants_grad else None
            at_once = LOGITS_AT_ONCE[w.itemsize] // len(w)
            at_once = max(at_once - at_once % ROW_MULTIPLE, ROW_MULTIPLE)
            # A CPU goes through the logits in pieces that stay in its cache.
            few_tokens, few_rows = (32, 2048) if device == "cpu" else (at_once, len(w))
            for start in range(0, len(h), at_once):
                part = slice(start, start + at_once)
                logits = matmul(h[part], w.t())                         # [n, D] x [D, V] -> [n, V]
                pieces = zip(*(x.split(few_tokens) for x in (logits, targets[part], scale[part])), strict=True)
                total += sum(_loss_and_gradient_(*piece, z_loss) for piece in pieces)
                if wants_grad:
                    d_hidden[part] = matmul(logits, w)                  # [n, V] x [V, D] -> [n, D]
                    for rows, columns in zip(d_weight.split(few_rows), logits.split(few_rows, 1), strict=True):
                        d_rows = matmul(columns.t(), h[part])           # [v, n] x [n, D] -> [v, D]
                        rows.add_(d_rows) if start else rows.copy_(d_rows)
            if wants_grad:
                d_hidden = d_hidden[:n_tokens]
                if n_tokens == 0:
                    d_weight.zero_()
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, d_total):
        d_hidden, d_weight = ctx.saved_tensors
        # The gradients are this call's own tensors: scaling them in place saves a copy of [V, D].
        if d_total.device.type != "cpu" or d_total != 1:
            d_hidden.mul_(d_total)
            d_weight.mul_(d_total)
        return d_hidden, d_weight, None, None, None, None


def _loss_and_gradient_(logits, targets, scale, z_loss):
    """Return the loss of a few tokens and put the gradient of their logits in the place of the logits.

    Args:
        logits: [n, V]; targets: int64 [n, 1]; scale: [n, 1]; z_loss: see linear_cross_entropy.
    """
    exp = logits.float()                                        # of float32 no copy
    at_target, top = exp.gather(1, targets), exp.amax(-1, keepdim=True)
    exp.sub_(top).exp_()
    z = exp.sum(-1, keepdim=True)                               # [n, 1]
    log_z = top + z.log()
    # d loss / d logits = scale * ((1 + 2 z_loss log_z) softmax(logits) - one_hot(target))
    exp.mul_(scale * (1 + 2 * z_loss * log_z) / z).scatter_add_(1, targets, -scale)
    logits.copy_(exp)
    return ((log_z - at_target + z_loss * log_z.square()) * scale).sum()


def lm_token_scale(m):
    """Return the weight of each position's token in mean(lm_losses) (TF function `model`).

    A sequence's loss is sum(masked token losses) / sum(mask[1:]), and the batch's their mean.

    Args:
        m: float [b, t], the mask; position 0 is predicted by nothing.
    Returns:
        float32 [b, t], position 0 always 0.
    """
    scale = m.float() / (m[:, 1:].float().sum(1, keepdim=True) * len(m))
    return torch.cat([torch.zeros_like(scale[:, :1]), scale[:, 1:]], 1)


def lm_losses(lm_logits, x, m):
    """Language-model loss of each sequence, the plain way.

    Args:
        lm_logits: [b * (t - 1), v]; x: int [b, t, 2]; m: float [b, t].
    Returns:
        [b], sum(masked token losses) / sum(mask[1:]).
    """
    b, t = m.shape
    losses = F.cross_entropy(lm_logits.float(), x[:, 1:, 0].reshape(-1).long(), reduction="none")
    losses = losses.view(b, t - 1) * m[:, 1:]
    return losses.sum(1) / m[:, 1:].sum(1)


def double_head_loss(lm_logits, clf_logits, x, m, y, lm_coef):
    """The fine-tuning loss from the two heads' logits, the plain way.

    Args:
        lm_logits: [b * c * (t - 1), v]; clf_logits: [b, c]; x: int [b, c, t, 2]; m: float [b, c, t];
        y: int [b]; lm_coef: weight of the language-model term.
    Returns:
        train_loss (scalar), clf_losses [b], lm_losses [b * c].
    """
    clf = F.cross_entropy(clf_logits.float(), y.long(), reduction="none")
    lm = lm_losses(lm_logits, x.flatten(0, 1), m.flatten(0, 1))
    loss = clf.mean()
    return (loss + lm_coef * lm.mean() if lm_coef else loss), clf, lm
