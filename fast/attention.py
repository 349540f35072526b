"""Causal attention with dropout for CPUs, where torch has no fused kernel: in pieces that stay in the cache.

Written out at once, the weights [b, h, t, t] of RACE's sequences go through memory a dozen times, in hundreds of
megabytes, and half of them are 0. Here a piece is some queries of some sequences, with the keys that they may see.
Measured on one core of an AMD EPYC for forward, again and backward: without pieces 2.5 times as long for [32, 12, 450],
1.4 times for [2, 12, 512]; with pieces below 100 positions up to 1.2 times as long, as they compute the weights again.
"""

import torch

from fast.autograd import first_derivatives_only
from fast.dropout import draw_keep, dropout

LONG = 256         # positions from which on pieces pay, though their weights are computed once more
QUERIES = 128      # of a sequence in a piece
ENTRIES = 1 << 20  # of the weights in a piece: 4 MB in float32


def attend_with_dropout(q, k, v, scale, p, keep=None):
    """Causal attention, 3 x [b, h, t, k] -> [b, h, t, k].

    Args:
        scale: of the scores; None: 1 / sqrt(k). p: dropout's rate.
        keep: dropout's mask, uint8 [b, h, t, t], if it is drawn already.
    """
    scale, t = q.size(3) ** -0.5 if scale is None else scale, q.size(2)
    if keep is None and p:
        keep = draw_keep((*q.shape[:3], k.size(2)), p)
    if t >= LONG and t == k.size(2):
        return _Attention.apply(q, k, v, scale, p, keep)
    w = ((q * scale) @ k.transpose(2, 3)).add_(_future(t, q))                # -> [b, h, t, t]
    return dropout(w.softmax(-1), p, keep) @ v                               # [b, h, t, t] x [b, h, t, k]


def _future(t, like):
    """[t, t], -infinity where a key comes after the query, else 0."""
    return torch.full((t, t), -float("inf"), dtype=like.dtype, device=like.device).triu_(1)


def _pieces(shape):
    """Yield the pieces of queries [b, h, t, k] as (slice of sequences, slice of queries)."""
    b, h, t, _ = shape
    n = max(1, ENTRIES // (h * t * QUERIES))
    for i in range(0, b, n):
        for r in range(0, t, QUERIES):
            yield slice(i, min(i + n, b)), slice(r, min(r + QUERIES, t))


class _Attention(torch.autograd.Function):
    """Keeps the mask and what goes in; the backward pass computes the weights again."""

    @staticmethod
    def forward(ctx, q, k, v, scale, p, keep):
        ctx.scale, ctx.p = scale, p
        ctx.save_for_backward(q, k, v, keep)
        a = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for of, rows in _pieces(q.shape):
            w, kept = _weights(q, k, scale, keep, of, rows)
            if kept is not None:
                w = w.mul_(kept).mul_(1 / (1 - p))
            a[of, :, rows] = w @ v[of, :, :rows.stop]                        # [n, h, r, j] x [n, h, j, k]
        return a

    @staticmethod
    @first_derivatives_only
    def backward(ctx, d_a):
        q, k, v, keep = ctx.saved_tensors
        d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        d_k, d_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
                    for x in (k, v))  # several pieces are added up
        with torch.autocast(q.device.type, enabled=False):  # whose softmax would be of another type
            for of, rows in _pieces(q.shape):
                w, kept = _weights(q, k, ctx.scale, keep, of, rows)              # [n, h, r, j]
                d, seen = d_a[of, :, rows], slice(rows.stop)
                d_w = d @ v[of, :, seen].transpose(2, 3)                         # [n, h, r, k] x [n, h, k, j]
                dropped = w
                if kept is not None:
                    dropped, d_w = (x.mul(kept).mul_(1 / (1 - ctx.p)) for x in (w, d_w))
                d_v[of, :, seen] += dropped.transpose(2, 3) @ d                  # [n, h, j, r] x [n, h, r, k]
                d_scores = torch._softmax_backward_data(d_w, w, -1, w.dtype).mul_(ctx.scale)
                d_q[of, :, rows] = d_scores @ k[of, :, seen]                     # [n, h, r, j] x [n, h, j, k]
                d_k[of, :, seen] += d_scores.transpose(2, 3) @ q[of, :, rows]    # [n, h, j, r] x [n, h, r, k]
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _weights(q, k, scale, keep, of, rows):
    """Return the softmax [n, h, r, j] of a piece, over the keys up to its last query, and its part of the mask."""
    w = (q[of, :, rows] * scale) @ k[of, :, :rows.stop].transpose(2, 3)      # [n, h, r, k] x [n, h, k, j]
    w[..., rows.start:] += _future(rows.stop - rows.start, w)
    return w.softmax(-1), None if keep is None else keep[of, :, rows, :rows.stop]
