"""T5 as Google's Mesh TensorFlow code runs it, with its variable names.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"; the code is tensorflow/mesh (transformer.py, transformer_layers.py, vocab_embeddings.py),
configured by the `t5` package. Version 1.0 has a ReLU feed-forward layer and takes its logits from the
embedding; version 1.1 has a gated GELU and its own logits. Top to bottom: primitives, attention,
feed-forward, layers, block, stack, model, the released sizes. t5_weights.py reads and writes checkpoints,
t5_decoding.py generates.

    model = T5(**T5_CONFIGS["small"])
    load_t5_pretrained_model(model, "t5-small/")
    logits = model(src, shift_right(targets), mask=src != PAD)

Letters in the shape comments:
    b sequences   s source positions   t target positions   j positions attended to
    n positions that are not padding, of all sequences (see Packing); n stands for b, t where there is none
    d width of the model (dim)   h heads   k size of a head (dim_head)   f inner width   v vocabulary
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from fast.matmul import linear
from fast.packing import Packing
from formats.errors import BadInput
from formats.t5_files import (  # noqa: F401 (offered from here too)
    EOS,
    FEED_FORWARD_KINDS,
    MAX_DISTANCE,
    NUM_BUCKETS,
    PAD,
    START,
    checkpoint_names,
    export_t5_model,
    load_t5_pretrained_model,
    read_t5_config,
)

MASKED = -1e9  # added to the scores of positions that may not be seen; in softmax exactly 0


class Dense(nn.Module):
    """x @ weight.T without bias (TF `mtf.layers.dense`); weight is [out, in], TensorFlow stores [in, out].

    Args:
        std: standard deviation of the initial weights; with truncated, of the normal distribution
            that is cut at two of them.
    """

    def __init__(self, n_in, n_out, std, truncated=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        if truncated:
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(self.weight, std=std)

    def forward(self, x):
        """[..., in] -> [..., out]."""
        return linear(x, self.weight)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + 1e-6) * scale: no mean subtracted, no bias (TF function `rms_norm`)."""

    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        """[..., d] -> [..., d]."""
        return F.rms_norm(x, self.scale.shape, self.scale, 1e-6)


class Dropout(nn.Module):
    """Dropout with one mask for all positions of a sequence, as the original draws it.

    The noise has no length dimension: what is dropped at one position is dropped at all of them.
    """

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x, packing=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape."""
        if not self.training or self.p == 0:
            return x
        b = len(x) if packing is None else packing.grid[0]
        noise = F.dropout(x.new_ones(b, x.shape[-1]), self.p)                   # [b, d]
        return x * (noise[:, None] if packing is None else noise.index_select(0, packing.sequence))


def relative_position_bucket(relative_position, bidirectional):
    """Map distances to buckets: one each for near ones, then logarithmic up to 128 and beyond.

    TF function `_relative_position_bucket`.

    Args:
        relative_position: int tensor, memory position - query position.
        bidirectional: half of the buckets is for positions after the query (the encoder); otherwise
            these all fall into bucket 0 (the decoder, which cannot see them).
    Returns:
        int64 tensor of the same shape, 0 to 31.
    """
    n_buckets, offset = NUM_BUCKETS, 0
    distance = -relative_position
    if bidirectional:
        n_buckets //= 2
        offset = (distance < 0).long() * n_buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    n_exact = n_buckets // 2
    # Rounding decides at the boundaries, so the logarithm is taken in float32 as in the original.
    far = torch.log(distance.clamp(min=1).float() / n_exact) / math.log(MAX_DISTANCE / n_exact)
    far = (n_exact + far * (n_buckets - n_exact)).long().clamp(max=n_buckets - 1)
    return offset + torch.where(distance < n_exact, distance.long(), far)


class Attention(nn.Module):
    """Multi-head attention without biases and without 1/sqrt(k), which q's initialiser contains.

    TF class `SelfAttention` and, with keys and values from the encoder, `EncDecAttention`.

    Args:
        relative_bias: own the table [32 buckets, heads] of the stack; only its first block does.
    """

    def __init__(self, dim, heads, dim_head, dropout, relative_bias=False):
        super().__init__()
        self.heads = heads
        self.q = Dense(dim, heads * dim_head, std=(dim * dim_head) ** -0.5)
        self.k = Dense(dim, heads * dim_head, std=dim ** -0.5)
        self.v = Dense(dim, heads * dim_head, std=dim ** -0.5)
        self.o = Dense(heads * dim_head, dim, std=(heads * dim_head) ** -0.5)
        self.dropout = dropout
        if relative_bias:
            self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, heads)
            limit = (6 / (heads + NUM_BUCKETS)) ** 0.5  # glorot uniform
            nn.init.uniform_(self.relative_attention_bias.weight, -limit, limit)

    def split_heads(self, x, packing=None):
        """[b, t, h*k], or packed [n, h*k] -> [b, h, t, k]."""
        if packing is not None:
            return packing.split_heads(x, 1, self.heads).squeeze(0)             # [n, h*k] -> [b, h, t, k]
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)                # -> [b, t, h, k] -> [b, h, t, k]

    def keys_values(self, memory, packing=None):
        """[b, j, d], or packed [n, d] -> keys and values, each [b, h, j, k]."""
        return self.split_heads(self.k(memory), packing), self.split_heads(self.v(memory), packing)

    def forward(self, x, k, v, bias=None, packing=None):
        """Attend from x to k and v.

        Args:
            x: [b, t, d], or [n, d] with its packing; k, v: [b, h, j, k].
            bias: added to the scores, broadcastable to [b, h, t, j].
        Returns:
            The shape of x.
        """
        q = self.split_heads(self.q(x), packing)
        if self.training and self.dropout:
            # The original drops attention weights with one mask [b, h, 1, j] for all queries. The sum
            # over j of weight * mask * value is the same when the mask multiplies the values instead.
            v = v * F.dropout(v.new_ones(*v.shape[:3], 1), self.dropout)
        if bias is not None:
            bias = bias.to(q.dtype)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # [b, h, t, k]
        if packing is not None:
            return self.o(packing.merge_heads(a))                               # -> [n, h*k]
        return self.o(a.transpose(1, 2).flatten(2))                             # -> [b, t, h, k] -> [b, t, h*k]


def relative_bias(table, queries, length, bidirectional):
    """The bias of each query and memory position (TF function `compute_bias`).

    Args:
        table: [32, h].
        queries, length: the queries are the last t = `queries` of j = `length` positions.
    Returns:
        [1, h, t, j].
    """
    relative = torch.arange(1 - length, queries)  # memory - query; on the CPU, so that rounding is known
    bucket = relative_position_bucket(relative, bidirectional).to(table.device)
    by_distance = F.embedding(bucket, table).t()             # [t+j-1, h] -> [h, t+j-1]
    # The last query sees the first j distances, the one before it those from the second on: unfold
    # lists these windows, flip puts the first query first.
    return by_distance.unfold(-1, length, 1).flip(1)[None]   # [h, t+j-1] -> [h, t, j] -> [1, h, t, j]


class DenseReluDense(nn.Module):
    """Feed-forward layer: wo(relu(wi(x))), or wo(gelu(wi_0(x)) * wi_1(x)) (TF class `DenseReluDense`)."""

    def __init__(self, dim, d_ff, dropout, kind):
        super().__init__()
        self.gated = kind == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, Dense(dim, d_ff, std=dim ** -0.5, truncated=True))
        self.wo = Dense(d_ff, dim, std=d_ff ** -0.5, truncated=True)
        self.dropout = Dropout(dropout)

    def forward(self, x, packing=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape."""
        if self.gated:
            hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)    # [..., d] -> [..., f]
        else:
            hidden = F.relu(self.wi(x))
        return self.wo(self.dropout(hidden, packing))


class SelfAttentionLayer(nn.Module):
    """x + dropout(attention(norm(x))) over x itself."""

    def __init__(self, dim, heads, dim_head, dropout, relative_bias):
        super().__init__()
        self.layer_norm = RMSNorm(dim)
        self.SelfAttention = Attention(dim, heads, dim_head, dropout, relative_bias)
        self.dropout = Dropout(dropout)

    def forward(self, x, bias, packing=None, cache=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape; bias: as Attention's.

        With a cache (see t5_decoding.KeysValues), x is the newest position and sees the earlier ones too.
        """
        y = self.layer_norm(x)
        k, v = self.SelfAttention.keys_values(y, packing)
        if cache is not None:
            k, v = cache.extend(k, v)
        return x + self.dropout(self.SelfAttention(y, k, v, bias, packing), packing)


class CrossAttentionLayer(nn.Module):
    """x + dropout(attention(norm(x))) over the encoder's output; there is no relative bias here."""

    def __init__(self, dim, heads, dim_head, dropout):
        super().__init__()
        self.layer_norm = RMSNorm(dim)
        self.EncDecAttention = Attention(dim, heads, dim_head, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x, k, v, bias, packing=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape; k, v: [b, h, s, k]; bias: [b, 1, 1, s]."""
        return x + self.dropout(self.EncDecAttention(self.layer_norm(x), k, v, bias, packing), packing)


class FeedForwardLayer(nn.Module):
    """x + dropout(feed_forward(norm(x)))."""

    def __init__(self, dim, d_ff, dropout, kind):
        super().__init__()
        self.layer_norm = RMSNorm(dim)
        self.DenseReluDense = DenseReluDense(dim, d_ff, dropout, kind)
        self.dropout = Dropout(dropout)

    def forward(self, x, packing=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape."""
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x), packing), packing)


class Block(nn.Module):
    """Two layers in the encoder, three in the decoder (TF scope `block_000`)."""

    def __init__(self, dim, heads, dim_head, d_ff, dropout, kind, is_decoder, relative_bias):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(dim, heads, dim_head, dropout, relative_bias)])
        if is_decoder:
            self.layer.append(CrossAttentionLayer(dim, heads, dim_head, dropout))
        self.layer.append(FeedForwardLayer(dim, d_ff, dropout, kind))

    def keys_values(self, memory, packing=None):
        """Keys and values of the encoder's output: [b, s, d], or packed [n, d] -> two of [b, h, s, k]."""
        return self.layer[1].EncDecAttention.keys_values(memory, packing)

    def forward(self, x, bias, memory=None, memory_bias=None, packing=None, cache=None):
        """x: [b, t, d], or [n, d] with its packing -> the same shape; memory: of keys_values, in a decoder."""
        x = self.layer[0](x, bias, packing, cache)
        if memory is not None:
            x = self.layer[1](x, *memory, memory_bias, packing)
        return self.layer[-1](x, packing)


class Stack(nn.Module):
    """Encoder or decoder: blocks, then a norm; the first block's bias table serves them all."""

    def __init__(self, dim, depth, heads, dim_head, d_ff, dropout, kind, is_decoder):
        super().__init__()
        self.is_decoder = is_decoder
        self.block = nn.ModuleList([
            Block(dim, heads, dim_head, d_ff, dropout, kind, is_decoder, relative_bias=i == 0)
            for i in range(depth)])
        self.final_layer_norm = RMSNorm(dim)
        self.dropout = Dropout(dropout)

    def bias(self, queries, length):
        """The relative bias of the last `queries` of `length` positions, [1, h, queries, length]."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        return relative_bias(table, queries, length, bidirectional=not self.is_decoder)

    def forward(self, x, mask=None, memory=None, memory_mask=None):
        """Run all positions of a batch.

        Args:
            x: [b, t, d], embedded tokens.
            mask: bool [b, t] (or 0 and 1), True = keep; None keeps all.
            memory: [b, s, d], the encoder's output, in a decoder; memory_mask: bool [b, s].
        Returns:
            [b, t, d], exactly 0 where mask is False.
        Raises:
            BadInput: the mask has another shape.
        """
        if mask is not None and mask.shape != x.shape[:2]:
            raise BadInput(f"a mask of the {'target' if self.is_decoder else 'source'} has the shape "
                           f"{list(mask.shape)}, expected [batch, length] = {list(x.shape[:2])}")
        packing = memory_packing = memory_bias = None
        bias = self.bias(x.shape[1], x.shape[1])                                # [1, h, t, t]
        if self.is_decoder:
            bias = bias + bias.new_full(bias.shape[2:], MASKED).triu(1)
        if mask is not None:
            packing, bias = Packing(mask), bias + additive(mask, bias.dtype)    # -> [b, h, t, t]
            x = packing.pack(x)
        if memory_mask is not None:
            memory_packing, memory_bias = Packing(memory_mask), additive(memory_mask, x.dtype)
            memory = memory_packing.pack(memory)
        x = self.dropout(x, packing)
        for block in self.block:
            keys_values = block.keys_values(memory, memory_packing) if self.is_decoder else None
            x = block(x, bias, keys_values, memory_bias, packing)
        x = self.dropout(self.final_layer_norm(x), packing)
        return x if packing is None else packing.unpack(x) * mask[..., None]    # as the original zeroes padding


def additive(mask, dtype):
    """bool [b, j], True = keep -> [b, 1, 1, j], 0 or -1e9, to be added to scores."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask.bool(), MASKED)[:, None, None]


class T5(nn.Module):
    """The encoder-decoder, with the constructor and the call of the 2022 `t5_pytorch`.

        model = T5(dim=768, enc_num_tokens=512, enc_depth=6, enc_heads=12, enc_dim_head=64,
                   enc_mlp_mult=4, dec_num_tokens=512, dec_depth=6, dec_heads=12, dec_dim_head=64,
                   dec_mlp_mult=4, dropout=0., tie_token_emb=True)
        logits = model(src, tgt, mask=src_mask)

    The defaults are the values of that snippet. The arguments mean what they meant there, with these
    differences: there is no bias in any layer, no 1/sqrt(dim_head), norms do not subtract the mean,
    each stack has one relative-bias table, a mask [b, s] works for any batch and is about the source
    alone, and the logits come from the decoder's embedding (tie_logits=False gives them their own).

    Args:
        dim: width d of the model.
        enc_num_tokens, dec_num_tokens: vocabularies of source and target; they may differ when
            tie_token_emb is False.
        enc_depth, enc_heads, enc_dim_head: blocks, heads, size of a head; likewise dec_.
        enc_mlp_mult, dec_mlp_mult: inner width of the feed-forward layer as a multiple of dim.
        dropout: rate of every dropout; see Dropout for what the original drops together.
        tie_token_emb: one embedding for source and target, `shared`.
        tie_logits: True (version 1.0): the decoder's output times dim^-0.5 meets the embedding of the
            target; False (version 1.1): `decoder.logits`, no scaling.
        feed_forward: "relu" (version 1.0) or "gated-gelu" (version 1.1).
        d_ff: inner width of every feed-forward layer, instead of the two multiples.
    Raises:
        BadInput: naming the argument that does not fit.
    """

    def __init__(self, dim=768, enc_num_tokens=512, enc_depth=6, enc_heads=12, enc_dim_head=64,
                 enc_mlp_mult=4, dec_num_tokens=512, dec_depth=6, dec_heads=12, dec_dim_head=64,
                 dec_mlp_mult=4, dropout=0., tie_token_emb=True, *, tie_logits=True, feed_forward="relu",
                 d_ff=None):
        super().__init__()
        if tie_token_emb and enc_num_tokens != dec_num_tokens:
            raise BadInput(f"tie_token_emb is True, but enc_num_tokens is {enc_num_tokens} and dec_num_tokens "
                           f"{dec_num_tokens}; make them equal or pass tie_token_emb=False")
        if feed_forward not in FEED_FORWARD_KINDS:
            raise BadInput(f"feed_forward is {feed_forward!r}, expected one of {', '.join(FEED_FORWARD_KINDS)}")
        if not 0 <= dropout < 1:
            raise BadInput(f"dropout is {dropout}, expected 0 <= dropout < 1")
        self.dim, self.tie_token_emb, self.tie_logits = dim, tie_token_emb, tie_logits
        if tie_token_emb:
            self.shared = nn.Embedding(enc_num_tokens, dim)  # N(0, 1), not scaled on input
        self.encoder = Stack(dim, enc_depth, enc_heads, enc_dim_head, d_ff or dim * enc_mlp_mult, dropout,
                             feed_forward, is_decoder=False)
        self.decoder = Stack(dim, dec_depth, dec_heads, dec_dim_head, d_ff or dim * dec_mlp_mult, dropout,
                             feed_forward, is_decoder=True)
        if not tie_token_emb:
            self.encoder.embedding = nn.Embedding(enc_num_tokens, dim)
            self.decoder.embedding = nn.Embedding(dec_num_tokens, dim)
        if not tie_logits:
            self.decoder.logits = Dense(dim, dec_num_tokens, std=dim ** -0.5, truncated=True)

    def embed_source(self, src):
        """int [b, s] -> [b, s, d]."""
        return self.shared(src) if self.tie_token_emb else self.encoder.embedding(src)

    def embed_target(self, tgt):
        """int [b, t] -> [b, t, d]."""
        return self.shared(tgt) if self.tie_token_emb else self.decoder.embedding(tgt)

    def logits_weight(self):
        """[v, d]: hidden_states(...) @ logits_weight().T are the logits."""
        if not self.tie_logits:
            return self.decoder.logits.weight
        return self.shared.weight if self.tie_token_emb else self.decoder.embedding.weight

    def before_logits(self, x):
        """The decoder's output as the logits want it: scaled by dim^-0.5 when they are tied."""
        return x * self.dim ** -0.5 if self.tie_logits else x

    def encode(self, src, mask=None):
        """Run the encoder.

        Args:
            src: int [b, s]; mask: bool [b, s], True = keep, or None.
        Returns:
            [b, s, d], exactly 0 where mask is False.
        Raises:
            BadInput: a mask of another shape, or float16, in which T5's activations overflow.
        """
        device = src.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if torch.float16 in (autocast, self.logits_weight().dtype):
            raise BadInput("T5 overflows in float16 (largest number 65504); use bfloat16 or float32")
        return self.encoder(self.embed_source(src), mask)

    def hidden_states(self, src, tgt, mask=None, tgt_mask=None):
        """As forward, but stop before the product with logits_weight(): [b, t, d].

        A loss can then avoid the [b, t, v] logits; see loss.linear_cross_entropy.
        """
        memory = self.encode(src, mask)
        return self.before_logits(self.decoder(self.embed_target(tgt), tgt_mask, memory, mask))

    def forward(self, src, tgt, mask=None, tgt_mask=None):
        """Predict, at each target position, the next token.

        Args:
            src: int [b, s], the source's ids.
            tgt: int [b, t], what the decoder reads: the targets shifted right, see shift_right.
            mask: bool [b, s], True = keep; nothing depends on the other positions. None keeps all.
            tgt_mask: bool [b, t], the same for the target.
        Returns:
            logits [b, t, v], exactly 0 where tgt_mask is False.
        Raises:
            BadInput: see encode.
        """
        return linear(self.hidden_states(src, tgt, mask, tgt_mask), self.logits_weight())


def shift_right(targets):
    """What the decoder reads while it predicts `targets`: START first, then each token but the last.

    The first padding position gets 0, not the last token (TF function `autoregressive_inputs`).

    Args:
        targets: int [b, t], padded with 0.
    Returns:
        int [b, t].
    """
    return F.pad(targets[:, :-1], (1, 0), value=START) * (targets != PAD)


def _released(dim, d_ff, heads, dim_head, depth, **version):
    """Constructor arguments of a released model; 32,000 pieces and 100 sentinels, rounded up to 32,128."""
    sizes = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in
             (("num_tokens", 32128), ("depth", depth), ("heads", heads), ("dim_head", dim_head))}
    return dict(dim=dim, d_ff=d_ff, **sizes, **version)


_V1_0 = dict(dropout=0.1, feed_forward="relu", tie_logits=True)
_V1_1 = dict(dropout=0.0, feed_forward="gated-gelu", tie_logits=False)  # pre-trained without; 0.1 to fine-tune
T5_CONFIGS = {
    "small": _released(512, 2048, 8, 64, 6, **_V1_0),
    "base": _released(768, 3072, 12, 64, 12, **_V1_0),
    "large": _released(1024, 4096, 16, 64, 24, **_V1_0),
    "3b": _released(1024, 16384, 32, 128, 24, **_V1_0),
    "11b": _released(1024, 65536, 128, 128, 24, **_V1_0),
    "v1_1-small": _released(512, 1024, 6, 64, 8, **_V1_1),  # these five are the sizes of flan-t5 too
    "v1_1-base": _released(768, 2048, 12, 64, 12, **_V1_1),
    "v1_1-large": _released(1024, 2816, 16, 64, 24, **_V1_1),
    "v1_1-xl": _released(2048, 5120, 32, 64, 24, **_V1_1),
    "v1_1-xxl": _released(4096, 10240, 64, 64, 24, **_V1_1),
}


# option of the T5 scripts -> arguments of T5 it sets, for a model of one's own size
SIZE_OPTIONS = {"d_model": ("dim",), "d_ff": ("d_ff",), "n_head": ("enc_heads", "dec_heads"),
                "d_kv": ("enc_dim_head", "dec_dim_head"), "n_layer": ("enc_depth", "dec_depth")}


def own_size(config, args, n_tokens):
    """Return constructor arguments of T5 changed by the options that were given, for a model without weights.

    Args:
        config: constructor arguments to start from.
        args: parsed options with SIZE_OPTIONS and feed_forward, each None where not given.
        n_tokens: ids of the vocabulary, sentinels included; rounded up to a multiple of 128, as in the original.
    """
    config = dict(config)
    for option, arguments in SIZE_OPTIONS.items():
        if getattr(args, option) is not None:
            config.update(dict.fromkeys(arguments, getattr(args, option)))
    if args.feed_forward is not None:
        config.update(feed_forward=args.feed_forward, tie_logits=args.feed_forward == "relu")
    config.update(dict.fromkeys(("enc_num_tokens", "dec_num_tokens"), -(-n_tokens // 128) * 128))
    return config
