"""T5 run faster: the original's layers as functions over the modules of t5_pytorch.

    loss = training_loss(model, src, targets, z_loss)       the plain text: loss.t5_loss(model(...), targets, z_loss)
    log_p = target_log_probs(model, src, candidates)        loss.target_log_probs of model(...)
    ids = generate(model, src, mask)                        t5_decoding.generate
    ids = beam_search(model, src, mask)                     t5_decoding.beam_search

The functions own no parameter. Over a model they do not know whole (see known.py) they run the plain text. What is
saved: padding is not computed (packing.py), the vocabulary's logits are never stored (cross_entropy.py), the encoder
runs once for all candidates, positions read once are not read again (cache.py).

Letters in the shape comments: those of t5_pytorch.py, and
    n positions that are not padding, of all sequences (see Packing); n stands for b, t where there is none
"""

import functools
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import loss
import t5_decoding
from fast.at_rest import WeightsAtRest
from fast.attention import attend_with_bias
from fast.cache import KeysValues, as_read, grown
from fast.cross_entropy import linear_cross_entropy
from fast.devices import moved, moved_to
from fast.dropout import rate
from fast.known import knows
from fast.matmul import linear, linears
from fast.packing import Packing
from t5_pytorch import (
    MAX_DISTANCE,
    PAD,
    additive,
    masked,
    relative_position_bucket,
    require_finite,
    require_ids,
    shift_right,
)


def dropout(m, x, packing=None):
    """As SequenceDropout: one mask for all positions of a sequence. x: [b, t, d], or [n, d] with its packing."""
    p = rate(m)
    if p == 0:
        return x
    b = len(x) if packing is None else packing.grid[0]
    noise = F.dropout(x.new_ones(b, x.shape[-1]), p)                            # [b, d]
    return x * (noise[:, None] if packing is None else noise.index_select(0, packing.sequence))


def dense(m, x):
    """As Dense: [..., in] -> [..., out]."""
    return linear(x, m.weight)


def norm(m, x):
    """As RMSNorm: [..., d] -> [..., d].

    On a CPU torch's function is nine operators. Without gradients five do: measured on two cores of an AMD EPYC,
    decodings of T5-small take 0.91 to 0.98 of the time.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return F.rms_norm(x, m.scale.shape, m.scale, m.epsilon)
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)               # [..., d] -> [..., 1]
    square = torch.addcmul(_epsilon(m.epsilon), length, length, value=1 / x.shape[-1])
    return (wide * m.scale).mul_(square.rsqrt_()).to(x.dtype)


@functools.cache
def _epsilon(epsilon):
    with torch.inference_mode(False):
        return torch.full((1,), epsilon, dtype=torch.float32, device="cpu")


def relative_bias(table, queries, length, bidirectional, max_distance=MAX_DISTANCE):
    """As Attention.compute_bias, for the last queries alone.

    Args:
        table: [buckets, h].
        queries, length: the queries are the last t = `queries` of j = `length` positions.
    Returns:
        [1, h, t, j].
    """
    relative = torch.arange(1 - length, queries, device="cpu")  # memory - query; on the CPU, so that rounding is known
    bucket = relative_position_bucket(relative, bidirectional, len(table), max_distance)
    by_distance = F.embedding(moved(bucket, table.device), table).t().contiguous()  # [t+j-1, h] -> [h, t+j-1]
    # The last query sees the first j distances, the one before it those from the second on: unfold
    # lists these windows, flip puts the first query first. Attention copies a bias whose j do not lie side by side.
    return by_distance.unfold(-1, length, 1).flip(1)[None]   # [h, t+j-1] -> [h, t, j] -> [1, h, t, j]


def stack_bias(m, queries, length):
    """relative_bias by the table of a Stack."""
    first = m.block[0].layer[0].SelfAttention
    return relative_bias(first.relative_attention_bias.weight, queries, length, not m.is_decoder, first.max_distance)


def split_heads(x, heads, packing=None):
    """[b, t, h*k], or packed [n, h*k] -> [b, h, t, k]."""
    if packing is not None:
        return packing.split_heads(x, 1, heads).squeeze(0)                      # [n, h*k] -> [b, h, t, k]
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)                         # -> [b, t, h, k] -> [b, h, t, k]


def keys_values(m, memory, packing=None):
    """Keys and values of an Attention: [b, j, d], or packed [n, d] -> two of [b, h, j, k]."""
    return tuple(split_heads(part, m.heads, packing) for part in linears(memory, m.k.weight, m.v.weight))


def attention(m, q, k, v, bias=None, packing=None):
    """As Attention, with queries, keys and values made before.

    Args:
        q: [b, t, h*k], or [n, h*k] with its packing; k, v: [b, h, j, k].
        bias: added to the scores, broadcastable to [b, h, t, j].
    Returns:
        [b, t, d], or [n, d].
    """
    p, made, q = rate(m.dropout), q.dtype, split_heads(q, m.heads, packing).to(k.dtype)
    if p:
        # The original drops attention weights with one mask [b, h, 1, j] for all queries. The sum
        # over j of weight * mask * value is the same when the mask multiplies the values instead.
        v = v * F.dropout(v.new_ones(*v.shape[:3], 1), p)
    if torch.is_grad_enabled() and q.device.type == "cpu":
        a = attend_with_bias(q, k, v, bias)                                     # [b, h, t, k]
    else:
        bias = None if bias is None else bias.to(q.dtype)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # [b, h, t, k]
    if packing is not None:
        return dense(m.o, packing.merge_heads(a))                               # -> [n, h*k] -> [n, d]
    return dense(m.o, a.transpose(1, 2).flatten(2).to(made))                 # -> [b, t, h*k] -> [b, t, d]


def attention_to_states(m, x, states, bias=None):
    """As attention(m, dense(m.q, x), *keys_values(m, states), bias), without making keys and values of all positions.

    The two projections go to the other side of the products: q @ (states @ W).T = (q @ W.T) @ states.T. It takes as
    many products of weights as x has positions, and attention over vectors of width d instead of k, once for each head.

    Args:
        x: [b, t, d]; states: [b, j, d]. bias: broadcastable to [b, 1, h*t, j].
    Returns:
        [b, t, d].
    """
    b, t, h = *x.shape[:2], m.heads
    w_k, w_v = (part.weight.unflatten(0, (h, -1)) for part in (m.k, m.v))       # [h*k, d] -> [h, k, d]
    q = dense(m.q, x).view(b * t, h, -1).transpose(0, 1)                        # [b, t, h*k] -> [h, b*t, k]
    q = (q @ w_k).view(h, b, t, -1).transpose(0, 1).reshape(b, 1, h * t, -1)    # [h, b*t, d] -> [b, 1, h*t, d]
    bias = None if bias is None else bias.to(q.dtype)
    a = F.scaled_dot_product_attention(q, states[:, None], states[:, None], attn_mask=bias, scale=1.0)
    a = a.view(b, h, t, -1).transpose(0, 1).reshape(h, b * t, -1)               # [b, 1, h*t, d] -> [h, b*t, d]
    a = (a @ w_v.mT).transpose(0, 1).reshape(b, t, -1)                          # [h, b*t, k] -> [b, t, h*k]
    return dense(m.o, a)


def dense_relu_dense(m, x, packing=None):
    """As DenseReluDense; x: [b, t, d], or [n, d] with its packing -> the same shape."""
    if m.gated:
        gate, hidden = linears(x, m.wi_0.weight, m.wi_1.weight)                 # [..., d] -> two of [..., f]
        hidden = F.gelu(gate, approximate="tanh") * hidden
    else:
        hidden = F.relu(dense(m.wi, x), inplace=not torch.is_grad_enabled())
    return dense(m.wo, dropout(m.dropout, hidden, packing))


def block(m, x, bias, memory=None, memory_bias=None, packing=None, cache=None):
    """As Block.

    Args:
        x: [b, t, d], or [n, d] with its packing. bias: as attention's.
        memory: keys and values of the encoder's output, in a decoder; or that output itself [b, s, d].
        cache: KeysValues of earlier positions, which x sees too and is added to.
    Returns:
        The shape of x.
    """
    first = m.layer[0]
    y = norm(first.layer_norm, x)
    own = first.SelfAttention
    q, *kv = linears(y, own.q.weight, own.k.weight, own.v.weight)
    k, v = (split_heads(part, own.heads, packing) for part in kv)
    if cache is not None:
        k, v = cache.extend(k, v)
    x = x + dropout(first.dropout, attention(own, q, k, v, bias, packing), packing)
    if memory is not None:
        cross = m.layer[1]
        y, other = norm(cross.layer_norm, x), cross.EncDecAttention
        if torch.is_tensor(memory):
            y = attention_to_states(other, y, memory, memory_bias)
        else:
            y = attention(other, dense(other.q, y), *memory, memory_bias, packing)
        x = x + dropout(cross.dropout, y, packing)
    last = m.layer[-1]
    y = dense_relu_dense(last.DenseReluDense, norm(last.layer_norm, x), packing)
    return x + dropout(last.dropout, y, packing)


def stack(m, x, mask=None, memory=None, memory_mask=None, recompute=False):
    """As Stack, without computing padding.

    Args:
        x: [b, t, d], embedded tokens. mask: bool [b, t], here or on the CPU, True = keep; None keeps all.
        memory: [b, s, d], the encoder's output, in a decoder; memory_mask: bool [b, s].
        recompute: keep of each block its input alone, and run it again in the backward pass.
    Returns:
        [b, t, d], exactly 0 where mask is False.
    """
    m.require_mask(mask, x)
    packing = memory_packing = memory_bias = None
    bias = stack_bias(m, x.shape[1], x.shape[1])                                # [1, h, t, t]
    if m.is_decoder:
        bias = bias + bias.new_full(bias.shape[2:], masked(bias.dtype)).triu(1)
    if mask is not None:
        packing, mask = Packing(mask, device=x.device), moved(mask, x.device)
        bias = bias + additive(mask, bias.dtype)                                # -> [b, h, t, t]
        x = packing.pack(x)
    if memory_mask is not None:
        memory_packing = Packing(memory_mask, device=x.device)
        memory_bias = additive(moved(memory_mask, x.device), x.dtype)
        memory = memory_packing.pack(memory)

    def run(part, x, memory):
        memory_kv = keys_values(part.layer[1].EncDecAttention, memory, memory_packing) if m.is_decoder else None
        return block(part, x, bias, memory_kv, memory_bias, packing)

    x = dropout(m.dropout, x, packing)
    for part in m.block:
        x = checkpoint(run, part, x, memory, use_reentrant=False) if recompute else run(part, x, memory)
    x = dropout(m.dropout, norm(m.final_layer_norm, x), packing)
    return x if packing is None else packing.unpack(x) * mask[..., None].bool()  # as the original zeroes padding


def embedding_of(model, stack):
    """The embedding that a stack of a T5 reads."""
    return model.shared if model.tie_token_emb else stack.embedding


def embed(model, side, ids):
    """As T5.embed_source and embed_target, for the side "src" or "tgt". The ids are looked at where they lie."""
    table = embedding_of(model, model.encoder if side == "src" else model.decoder)
    require_ids(side, ids, table.num_embeddings)
    return table(moved(ids, table.weight.device))                               # [b, t] -> [b, t, d]


def encode(model, src, mask=None, recompute=False):
    """As T5.encode: int [b, s], bool [b, s] or None -> [b, s, d]. Both may lie on the CPU whatever the model is on."""
    return require_finite(stack(model.encoder, embed(model, "src", src), mask, recompute=recompute))


def before_logits(model, x):
    """The decoder's output as the logits want it: scaled by dim^-0.5 where they are tied."""
    return x * model.dim ** -0.5 if model.scale_logits else x


def hidden_states(model, src, tgt, mask=None, tgt_mask=None, recompute=False):
    """As T5.forward, but before the product with logits_weight(): [b, t, d]."""
    memory = encode(model, src, mask, recompute)
    x = stack(model.decoder, embed(model, "tgt", tgt), tgt_mask, memory, mask, recompute)
    return before_logits(model, require_finite(x))


def _runs(model, *ids):
    """Whether the fast functions may run: over a model they know, and something to compute."""
    return knows(model) and all(x.numel() for x in ids)


def training_loss(model: nn.Module, src: torch.Tensor, targets: torch.Tensor, z_loss: float = 0.0, padded: bool = True,
                  label_smoothing: float = 0.0, recompute: bool = False) -> torch.Tensor:
    """The original's training loss, see loss.t5_loss.

    Args:
        src: int [b, s]; targets: int [b, t], both padded with PAD. A target of loss.IGNORED is no label. Where both
            lie on the CPU, nothing here waits for a GPU that the model may be on.
        padded: False promises that neither has padding.
        z_loss, label_smoothing: see loss.token_losses.
        recompute: keep of each block its input alone, and run it again in the backward pass: less memory, more time.
            The plain text keeps everything.
    Returns:
        a scalar, in nats.
    """
    mask, tgt_mask = (src != PAD, targets != PAD) if padded else (None, None)
    if not _runs(model, src, targets):
        src, targets, mask, tgt_mask = moved_to(model, src, targets, mask, tgt_mask)
        return loss.t5_loss(model(src, shift_right(targets), mask, tgt_mask), targets, z_loss, label_smoothing)
    hidden = hidden_states(model, src, shift_right(targets), mask, tgt_mask, recompute)        # [b, t, d]
    targets = moved(targets, hidden.device).long()
    scale = (targets != PAD).float() / targets.numel()
    pack = partial(torch.flatten, end_dim=1) if tgt_mask is None else Packing(tgt_mask, device=hidden.device).pack
    hidden, targets, scale = map(pack, (hidden, targets, scale))                # [b, t, ...] -> [n, ...]
    return linear_cross_entropy(hidden, model.logits_weight(), targets, scale, z_loss, label_smoothing=label_smoothing)


def target_log_probs(model: nn.Module, src: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """The log-probability of each candidate target given each source, [b, c]; the encoder runs once a source.

    Args:
        src: int [b, s]; candidates: int [c, t], the same for all sources, or [b, c, t]; both padded with PAD; see
            training_loss for where.
    """
    b, c = len(src), candidates.shape[-2]
    mask, targets = src != PAD, candidates.expand(b, -1, -1).flatten(0, 1)       # [b, c, t] -> [bc, t]
    if not _runs(model, src, candidates):
        src, mask, targets = moved_to(model, src, mask, targets)
        logits = model(src.repeat_interleave(c, 0), shift_right(targets), mask.repeat_interleave(c, 0), targets != PAD)
        return loss.target_log_probs(logits, targets).view(b, c)
    memory = encode(model, src, mask).repeat_interleave(c, 0)                    # [b, s, d] -> [bc, s, d]
    x = stack(model.decoder, embed(model, "tgt", shift_right(targets)), targets != PAD, memory,
              mask.repeat_interleave(c, 0))                                      # [bc, t, d]
    logits = linear(before_logits(model, x), model.logits_weight())
    return loss.target_log_probs(logits, moved(targets, logits.device)).view(b, c)


class Decoder:
    """As t5_decoding.Decoder, with cached keys and values.

    The beams of a source stand where a sequence's positions stand otherwise, [b, n, d]. So
    cross-attention reads one copy of the source's keys and values, and so does self-attention: its
    cache holds the positions of all beams, position by position, and each beam has a mask of the
    entries that are its own past. When beams are reordered, only that mask moves.

    Args:
        model: a T5; src: int [b, s]; mask: bool [b, s] or None; length: most positions; beams: n.
        states_for: steps that attend to the encoder's output itself, before keys and values are made of it.
    """

    def __init__(self, model, src, mask, length, beams=1, states_for=0):
        self.model, self.beams, self.length, self.position, self.states_for = model, beams, length, 0, states_for
        states = encode(model, src, mask)
        self.memory = [states] * len(model.decoder.block)
        self.memory_bias = None if mask is None else as_read(additive(mask, states.dtype))
        self.caches = [KeysValues(length * beams, beams == 1) for _ in model.decoder.block]
        self.size, self.bias, self.past = 0, None, None
        if beams > 1:
            table = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
            self.past = table.new_full((len(src), 1, beams, 0), masked(table.dtype))

    def step(self, tokens, parents=None):
        """Read one more token per beam.

        Args:
            tokens: int [b, n].
            parents: int [b, n], the beam each continues; None: each itself.
        Returns:
            logits of the next token, [b, n, v], in the model's precision.
        """
        model, n, end = self.model, self.beams, (self.position + 1) * self.beams
        if self.position == self.size:
            self._grow()
        if self.position == self.states_for:
            self.memory = [tuple(map(as_read, keys_values(part.layer[1].EncDecAttention, states)))
                           for part, states in zip(model.decoder.block, self.memory, strict=True)]
        bias = self.bias[..., (self.size - self.position - 1) * n:]             # [1, h, 1, end]
        if n > 1:
            if parents is not None:
                self.past = self.past.gather(2, parents[:, None, :, None].expand_as(self.past))
            self.past[:, 0, :, end - n:end].diagonal(dim1=1, dim2=2).zero_()
            bias = bias + self.past[..., :end]                                  # [b, h, n, end]
        x = embedding_of(model, model.decoder)(tokens)  # without embed's look at them, for which a GPU waits: [b, n, d]
        for part, memory, cache in zip(model.decoder.block, self.memory, self.caches, strict=True):
            x = block(part, x, bias, memory, self.memory_bias, cache=cache)
        self.position += 1
        x = before_logits(model, require_finite(norm(model.decoder.final_layer_norm, x)))
        return linear(x, model.logits_weight())

    def keep(self, rows):
        """Go on with some of the sources alone; rows: int [number of them]."""
        if self.position <= self.states_for:
            self.memory = [self.memory[0][rows]] * len(self.memory)
        else:
            self.memory = [(k[rows], v[rows]) for k, v in self.memory]
        self.memory_bias = None if self.memory_bias is None else self.memory_bias[rows]
        self.past = None if self.past is None else self.past[rows]
        for cache in self.caches:
            cache.keep(rows)

    def _grow(self):
        """Make the relative bias [1, h, 1, size*n], and room in `past`, for more positions."""
        old, self.size = self.size, grown(self.size, self.size + 1, self.length)
        bias = stack_bias(self.model.decoder, 1, self.size).repeat_interleave(self.beams, dim=-1)
        self.bias = as_read(bias) if self.beams == 1 else bias
        if self.past is not None:
            self.past = F.pad(self.past, (0, (self.size - old) * self.beams), value=masked(self.past.dtype))


def _decoder(model, src, prefix):
    model = t5_decoding.unwrapped(model)
    if not _runs(model, src):
        return t5_decoding.Decoder
    if prefix is not None:  # the Decoder looks at no ids
        require_ids("prefix", torch.atleast_2d(torch.as_tensor(prefix, dtype=torch.int64)),
                    embedding_of(model, model.decoder).num_embeddings)
    return Decoder


def generate(model, src, *args, **kwargs):
    """As t5_decoding.generate, with cached keys and values."""
    with WeightsAtRest():
        return t5_decoding.generate(model, src, *args, decoder=_decoder(model, src, kwargs.get("prefix")), **kwargs)


def beam_search(model, src, *args, **kwargs):
    """As t5_decoding.beam_search, with cached keys and values."""
    with WeightsAtRest():
        return t5_decoding.beam_search(model, src, *args, decoder=_decoder(model, src, kwargs.get("prefix")), **kwargs)
