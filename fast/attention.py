"""Attention for training on CPUs, where torch has no fused kernel for it: with dropout, or with a bias that learns.

GPT's is causal and has dropout. Written out at once, the weights [b, h, t, t] of RACE's sequences go through memory a
dozen times, in hundreds of megabytes, and half of them are 0. Here a piece, which stays in the cache, is some queries
of some sequences, with the keys that they may see. Measured on one core of an AMD EPYC, when all of it was still
computed twice: without pieces 2.5 times as long for [32, 12, 450], 1.4 times for [2, 12, 512]; with pieces below 100
positions up to 1.2 times as long, as they compute the weights again.
"""

import torch

from fast.autograd import first_derivatives_only
from fast.dropout import draw_keep, draw_seed

LONG = 256         # positions from which on attention goes in pieces, and weights are not kept but computed again
QUERIES = 128      # of a sequence in a piece
ENTRIES = 1 << 20  # of the weights in a piece: 4 MB in float32


def attend_with_dropout(heads, scale, p, seed=None):
    """Causal attention, queries, keys and values [3, b, h, t, k] -> [b, h, t, k]. It has first derivatives only.

    Args:
        scale: of the scores; None: 1 / sqrt(k). p: dropout's rate.
        seed: of dropout's mask [b, h, t, t], see draw_keep; None: a new one.
    """
    seed = draw_seed() if seed is None and p else seed
    return _Attention.apply(heads, heads.size(4) ** -0.5 if scale is None else scale, p, seed)


def _pieces(shape):
    """Yield the pieces of queries [b, h, t, k] as (slice of sequences, slice of queries)."""
    b, h, t, _ = shape
    n, queries = (max(1, ENTRIES // (h * t * QUERIES)), QUERIES) if t >= LONG else (max(b, 1), max(t, 1))
    for i in range(0, b, n):
        for r in range(0, t, queries):
            yield slice(i, min(i + n, b)), slice(r, min(r + queries, t))


class _Attention(torch.autograd.Function):
    """Keeps what goes in, and of short sequences weights and mask: of long ones a layer's may take gigabytes.

    The factors 1 / (1 - p) and `scale` meet queries, results and gradients, which are smaller than long weights.
    """

    @staticmethod
    def forward(ctx, heads, scale, p, seed):
        q, k, v = heads
        ctx.scale, ctx.p, ctx.seed, short, kept = scale, p, seed, q.size(2) < LONG, []
        keep = _drawn(q, p, seed)
        a, q = torch.empty_like(q), q * scale
        for of, rows in _pieces(q.shape):
            w = _weights(q, k, of, rows)                                     # [n, h, r, j]
            if short:
                kept.append(w)
            if keep is not None:
                w = torch.mul(w, keep[of, :, rows, :rows.stop], out=None if short else w)
            a[of, :, rows] = w @ v[of, :, :rows.stop]                        # [n, h, r, j] x [n, h, j, k]
        ctx.save_for_backward(heads, keep if short else None, *kept)
        return a.mul_(1 / (1 - p))

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_a):
        heads, keep, *kept = ctx.saved_tensors
        q, k, v = heads
        keep = _drawn(q, ctx.p, ctx.seed) if keep is None else keep
        several = q.size(2) >= LONG                                          # pieces, whose gradients are added up
        d_heads = (torch.zeros_like(heads, dtype=torch.promote_types(q.dtype, torch.float32)) if several else
                   torch.empty_like(heads))
        with torch.autocast(q.device.type, enabled=False):  # whose softmax would be of another type
            q = q * ctx.scale
            for of, rows in _pieces(q.shape):
                seen, d = slice(rows.stop), d_a[of, :, rows]
                w = kept.pop() if kept else _weights(q, k, of, rows)
                d_w, dropped = d @ v[of, :, seen].mT, w                      # [n, h, r, k] x [n, h, k, j]
                if keep is not None:
                    mask = keep[of, :, rows, seen]
                    dropped, d_w = w * mask, d_w.mul_(mask)
                d_scores = torch._softmax_backward_data(d_w, w, -1, w.dtype)
                d_heads[0, of, :, rows] = d_scores @ k[of, :, seen]          # [n, h, r, j] x [n, h, j, k]
                d_k, d_v = d_scores.mT @ q[of, :, rows], dropped.mT @ d      # [n, h, j, r] x [n, h, r, k]
                if several:
                    d_heads[1, of, :, seen] += d_k
                    d_heads[2, of, :, seen] += d_v
                else:
                    d_heads[1], d_heads[2] = d_k, d_v
            d_heads.mul_(1 / (1 - ctx.p))  # in bfloat16 a gradient of 1 times that would be 0.16% too small for p = 0.1
            d_heads[0] *= ctx.scale
        return d_heads.to(heads.dtype), None, None, None


def _drawn(q, p, seed):
    """Dropout's mask [b, h, t, t], or None where nothing is dropped; q: [b, h, t, k]."""
    return draw_keep((*q.shape[:3], q.shape[2]), p, seed) if p else None


def _weights(q, k, of, rows):
    """Return the softmax [n, h, r, j] of a piece, over the keys up to its last query; q is scaled."""
    w = q[of, :, rows] @ k[of, :, :rows.stop].mT                             # [n, h, r, k] x [n, h, k, j]
    r = rows.stop - rows.start
    w[..., rows.start:] += torch.full((r, r), -float("inf"), dtype=w.dtype, device=w.device).triu_(1)
    return w.softmax(-1)


def attend_with_bias(q, k, v, bias=None):
    """T5's attention, unscaled and without dropout; its bias may learn. It has first derivatives only.

    torch's kernel has no gradient for a bias, and is slow backwards in bfloat16. Measured on one core of an AMD EPYC
    for T5-small and 20 to 512 positions, torch's attention takes 1.6 to 4 times as long in bfloat16 and 1.1 to 1.4
    times in float32.

    Args:
        q: [b, h, t, k]; k, v: [b, h, j, k]. bias: broadcastable to [b, h, t, j], or None.
    Returns:
        [b, h, t, k].
    """
    return _AttentionWithBias.apply(q, k, v, bias)


class _AttentionWithBias(torch.autograd.Function):
    """Keeps the weights of what it computes, in the short form."""

    @staticmethod
    def forward(ctx, q, k, v, bias):
        scores = q @ k.mT                                                       # [b, h, t, k] x [b, h, k, j]
        a = (scores if bias is None else scores + bias).softmax(-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, a)
        ctx.bias = bias if bias is None else (bias.shape, bias.dtype)
        return a @ v                                                            # [b, h, t, j] x [b, h, j, k]

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d):
        q, k, v, a = ctx.saved_tensors
        d_scores = torch._softmax_backward_data(d @ v.mT, a, -1, a.dtype)       # -> [b, h, t, j]
        d_bias = None
        if ctx.needs_input_grad[3]:
            shape, dtype = ctx.bias
            d_bias = d_scores.to(dtype).sum_to_size(shape)
        return d_scores @ k, d_scores.mT @ q, a.mT @ d, d_bias
