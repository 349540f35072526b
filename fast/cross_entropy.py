"""Cross entropy of a linear layer's output, without memory for all of its logits.

A language model's loss needs logits [tokens, vocabulary] only to add them up. linear_cross_entropy
visits a thousand words of the vocabulary at a time, while they are in the cache, and takes the
gradients on the way; what it has to keep until then lies, where it fits, in the memory of the weight's
gradient. Logits are computed a slice at a time and never stored whole. Its plain twin is
F.cross_entropy of hidden @ weight.T (tests/test_cross_entropy.py). It takes the same time (measured for a training
step of GPT-1 on one core of an AMD EPYC) and saves the memory: by count, 97 MB for the logits of 600 tokens alone.
"""

import math

import torch
import torch.nn.functional as F

from fast.autograd import first_derivatives_only
from fast.matmul import ROW_MULTIPLE, matmul
from formats.errors import BadInput
from loss import IGNORED

# N tokens (n of one part), V rows of the vocabulary (v of one piece), D width of the hidden states

# How many logits exist at once, by the bytes of each: more tokens make faster products, and take more memory.
# Those that fit in the memory of the gradient take none, and are not counted.
LOGITS_AT_ONCE = {8: 9 << 20, 4: 18 << 20, 2: 36 << 20}

# Rows of the vocabulary visited at a time on a CPU. A GPU takes all.
CPU_ROWS = 1024


def linear_cross_entropy(hidden, weight, targets, scale, z_loss=0.0, keep=None, p=0.0, label_smoothing=0.0):
    """Return sum over tokens of scale * (cross entropy + z_loss * logsumexp(logits)^2), a scalar.

    As for F.cross_entropy, a target of -100 is none. Any other that is no row of the weight is refused, or makes the
    loss NaN on a GPU, which nobody waits for.

    logits = hidden @ weight.T, with dropout of the weight where `keep` is given. It has first derivatives in hidden
    and weight, and hands them out once: a second backward over the same graph is refused. Under autocast the matrix
    products run in its dtype, everything else in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        targets: int64 [N], rows of weight, or -100.
        scale: float32 [N], the weight of each token's loss.
        z_loss: coefficient of the squared log normaliser (T5: 1e-4 in training).
        keep, p: uint8 [V, D] and a probability: weight * keep / (1 - p) takes the place of weight. The
            product is never written out, which saves a matrix as large as the weight.
        label_smoothing: share of the target's probability that is spread over all V rows, 0 to 1.
    Raises:
        BadInput: a target or label_smoothing out of range.
    """
    if not 0 <= label_smoothing <= 1:
        raise BadInput(f"label_smoothing is {label_smoothing}, expected 0 to 1")
    ignored = targets == IGNORED
    targets, scale = targets.masked_fill(ignored, 0), scale.masked_fill(ignored, 0)
    wrong = (targets < 0) | (targets >= len(weight))
    if targets.device.type == "cpu":
        if wrong.any():
            raise BadInput(f"a target is {int(targets[wrong][0])}, expected 0 to {len(weight) - 1}, or {IGNORED} where "
                           "there is none")
    else:
        targets, scale = targets.masked_fill(wrong, 0), scale.masked_fill(wrong, math.nan)
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, scale, z_loss, keep, p, label_smoothing, wants_grad)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, scale, z_loss, keep, p, smoothing, wants_grad):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        pieces = _slices(len(weight), CPU_ROWS if device == "cpu" else len(weight))
        # A GPU converts all rows once; a CPU each piece when it is wanted, which is then in the cache.
        rows_of = weight if device == "cpu" else weight.to(dtype)
        # One buffer for all: a new tensor for each piece would leave holes between the logits that are kept.
        buffer = None if keep is None else weight.new_empty(weight[pieces[0]].shape, dtype=dtype)

        def rows(piece):
            if keep is None:
                return rows_of[piece].to(dtype)                 # [v, D]
            return torch.mul(rows_of[piece].to(dtype), keep[piece], out=buffer[:piece.stop - piece.start])

        with torch.autocast(device, enabled=False):
            n_tokens, padding = len(hidden), -len(hidden) % ROW_MULTIPLE
            h = F.pad(hidden, (0, 0, 0, padding)).to(torch.promote_types(dtype, torch.float32)) / (1 - p)
            targets, scale = F.pad(targets, (0, padding)), F.pad(scale, (0, padding))[:, None]
            total = scale.new_zeros(())
            # The mean logit of a token is its product with the mean row.
            mean_row = sum(rows(piece).sum(0, dtype=h.dtype) for piece in pieces) / len(weight) if smoothing else None
            d_hidden, d_weight = (torch.zeros_like(h), weight.new_empty(weight.shape)) if wants_grad else (None, None)
            # How many tokens' exponentials fit in the gradient's memory, which nobody else needs until it is filled.
            reusable = wants_grad and device == "cpu"
            tokens_that_fit = weight.size(1) * weight.itemsize // dtype.itemsize if reusable else 0
            fit = min(tokens_that_fit // ROW_MULTIPLE * ROW_MULTIPLE, len(h))
            most = max(LOGITS_AT_ONCE[dtype.itemsize] // len(weight) // ROW_MULTIPLE, 1) * ROW_MULTIPLE
            for part in _slices(fit, fit) + _slices(len(h), most, start=fit):
                h_part, target, weigh = h[part], targets[part], scale[part]
                exps = None
                if wants_grad:
                    exps = [_scratch(len(h_part), d_weight[piece], dtype, part.stop <= fit) for piece in pieces]
                at_mean = (h_part @ mean_row)[:, None] if smoothing else None
                loss, factors = _loss_of_part(h_part.to(dtype), rows, pieces, target, weigh, z_loss, exps, smoothing,
                                              at_mean)
                total += loss
                if not wants_grad:
                    continue
                for piece, factor in zip(pieces, factors.split(1, 1), strict=True):
                    exp = exps.pop(0)
                    d_hidden[part].addcmul_(matmul(exp, rows(piece)), factor)       # [n, v] x [v, D] -> [n, D]
                    d_rows = matmul(exp.t(), (h_part * factor).to(dtype))           # [v, n] x [n, D] -> [v, D]
                    d_rows = d_rows if keep is None else d_rows.mul_(keep[piece])
                    d_weight[piece].add_(d_rows) if part.start else d_weight[piece].copy_(d_rows)
                kept, at_target = 1 if keep is None else keep[target], weigh * (smoothing - 1)
                d_hidden[part].addcmul_(weight[target] * kept, at_target)
                d_weight.index_add_(0, target, (h_part * at_target * kept).to(d_weight.dtype))
                if smoothing:
                    d_hidden[part].addcmul_(mean_row, weigh, value=-smoothing)
                    d_rows = (h_part * weigh).sum(0).mul_(-smoothing / len(weight)).to(d_weight.dtype)
                    for piece in pieces:
                        d_weight[piece].add_(d_rows if keep is None else d_rows * keep[piece])
            if wants_grad:
                d_hidden = d_hidden[:n_tokens].div_(1 - p).to(hidden.dtype)
                if n_tokens == 0:
                    d_weight.zero_()
        ctx.gradients = d_hidden, d_weight
        return total

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_total):
        if ctx.gradients is None:
            raise RuntimeError("the fast loss hands its gradients out once; for a second backward over one graph take "
                               "the plain text (model(x) and loss.py, --plain)")
        # The gradients are this call's own tensors: scaling them in place saves a copy of [V, D].
        (d_hidden, d_weight), ctx.gradients = ctx.gradients, None
        if d_total.device.type != "cpu" or d_total != 1:
            d_hidden.mul_(d_total)
            d_weight.mul_(d_total)
        return d_hidden, d_weight, None, None, None, None, None, None, None


def _slices(length, step, start=0):
    return [slice(at, min(at + step, length)) for at in range(start, length, step or 1)]


def _scratch(n, d_rows, dtype, reuse_gradient):
    """Return a tensor [n, v] for v = len(d_rows), with memory of its own or in that of the gradient d_rows [v, D]."""
    size = n * len(d_rows)
    memory = d_rows.view(-1).view(dtype)[:size] if reuse_gradient else d_rows.new_empty(size, dtype=dtype)
    return memory.view(n, len(d_rows))


def _loss_of_part(h, rows, pieces, targets, scale, z_loss, exps, smoothing, at_mean):
    """Return the loss of a few tokens, and factors of their gradient.

    Args:
        h: [n, D]; pieces: slices of the vocabulary; rows: function from one of them to [v, D];
        targets: int64 [n]; scale: [n, 1]; z_loss: see linear_cross_entropy;
        exps: tensors [n, v] to be filled, one for each piece, or None;
        smoothing: see linear_cross_entropy; at_mean: [n, 1], the mean logits it wants, or None.
    Returns:
        the loss; factors [n, pieces]: the gradient of a piece's logits is factor * exp, less `scale` at the target
        (with smoothing, less its share at every row).
    """
    tops, sums, at_target = [], [], 0
    for i, piece in enumerate(pieces):
        logits = matmul(h, rows(piece).t())                         # [n, D] x [D, v] -> [n, v]
        exp = logits.to(torch.promote_types(h.dtype, torch.float32))
        column = targets[:, None] - piece.start
        inside = (column >= 0) & (column < exp.size(1))
        at_target += torch.where(inside, exp.gather(1, column.clamp(0, exp.size(1) - 1)), 0.0)
        tops.append(exp.amax(-1, keepdim=True))
        at_once = exps is not None and exps[i].dtype == exp.dtype
        exp = torch.exp(exp.sub_(tops[-1]), out=exps[i] if at_once else exp)
        sums.append(exp.sum(-1, keepdim=True))
        if exps is not None and not at_once:
            exps[i].copy_(exp)
    tops = torch.cat(tops, 1)                                       # [n, pieces]
    log_z = (tops + torch.cat(sums, 1).log()).logsumexp(-1, keepdim=True)
    # d loss / d logits = scale * ((1 + 2 z_loss log_z) softmax(logits) - one_hot(target))
    factors = scale * (1 + 2 * z_loss * log_z) * (tops - log_z).exp()
    if smoothing:
        at_target = at_target.lerp(at_mean.to(at_target.dtype), smoothing)
    return ((log_z - at_target + z_loss * log_z.square()) * scale).sum(), factors
