"""T5 as the paper and Google's Mesh TensorFlow code write it, with its variable names.

Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"; the code is tensorflow/mesh (transformer.py, transformer_layers.py, vocab_embeddings.py),
configured by the `t5` package. Version 1.0 has a ReLU feed-forward layer and takes its logits from the
embedding; version 1.1 has a gated GELU and its own logits. Top to bottom: primitives, attention,
feed-forward, layers, block, stack, model, the released sizes. loss.py has the losses, t5_decoding.py
generates, formats/t5_files.py reads and writes checkpoints; fast/t5.py runs these very modules faster.

    model = T5.from_pretrained("google-t5/t5-small")
    logits = model(src, shift_right(targets), mask=src != PAD)

Letters in the shape comments:
    b sequences   s source positions   t target positions   j positions attended to
    d width of the model (dim)   h heads   k size of a head (dim_head)   f inner width   v vocabulary
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from formats.errors import BadInput
from formats.hub import local_folder
from formats.initial_values import filled
from formats.t5_files import (  # noqa: F401 (offered from here too)
    EOS,
    EPSILON,
    FEED_FORWARD_KINDS,
    IGNORED,
    MAX_DISTANCE,
    NUM_BUCKETS,
    PAD,
    START,
    checkpoint_names,
    copy_t5_vocabulary,
    export_t5_model,
    load_t5_pretrained_model,
    read_t5_config,
)
from formats.tensor_files import is_true, strip_wrappers

# without Attention and Block, so that `from t5_pytorch import *` leaves those of model_pytorch as they are
__all__ = ["EOS", "PAD", "START", "T5", "T5_CONFIGS", "DenseReluDense", "RMSNorm", "SequenceDropout", "Stack",
           "export_t5_model", "load_t5_pretrained_model", "read_t5_config", "relative_position_bucket", "shift_right"]


class Dense(nn.Module):
    """x @ weight.T without bias (TF `mtf.layers.dense`); weight is [out, in], TensorFlow stores [in, out].

    Args:
        std: standard deviation of the initial weights; with truncated, of the normal distribution
            that is cut at two of them.
    """

    def __init__(self, n_in: int, n_out: int, std: float, truncated: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        if truncated:
            nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(self.weight, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.weight)                                         # [..., in] x [in, out] -> [..., out]

    def extra_repr(self) -> str:
        """The sizes."""
        n_out, n_in = self.weight.shape
        return f"n_in={n_in}, n_out={n_out}"


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + epsilon) * scale: no mean subtracted, no bias (TF function `rms_norm`)."""

    def __init__(self, dim: int, epsilon: float = EPSILON):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        return F.rms_norm(x, self.scale.shape, self.scale, self.epsilon)

    def extra_repr(self) -> str:
        """Width and epsilon."""
        return f"{len(self.scale)}, epsilon={self.epsilon:g}"


class SequenceDropout(nn.Dropout):
    """Dropout with one mask for all positions of a sequence, as the original draws it.

    The noise has no length dimension: what is dropped at one position is dropped at all of them.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., t, d] -> [..., t, d]; attention weights [b, h, t, j] have one mask for all t queries."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(*x.shape[:-2], 1, x.shape[-1]), self.p)


def relative_position_bucket(relative_position: torch.Tensor, bidirectional: bool, n_buckets: int = NUM_BUCKETS,
                             max_distance: int = MAX_DISTANCE) -> torch.Tensor:
    """Map distances to buckets: one each for near ones, then logarithmic up to max_distance (128) and beyond.

    TF function `_relative_position_bucket`.

    Args:
        relative_position: int tensor, memory position - query position.
        bidirectional: half of the buckets is for positions after the query (the encoder); otherwise
            these all fall into bucket 0 (the decoder, which cannot see them).
    Returns:
        int64 tensor of the same shape, 0 to n_buckets - 1.
    """
    offset = 0
    distance = -relative_position
    if bidirectional:
        n_buckets //= 2
        offset = (distance < 0).long() * n_buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    n_exact = n_buckets // 2
    # Rounding decides at the boundaries, so the logarithm is taken in float32 as in the original.
    far = torch.log(distance.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    far = (n_exact + far * (n_buckets - n_exact)).long().clamp(max=n_buckets - 1)
    return offset + torch.where(distance < n_exact, distance.long(), far)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """bool [b, j], True = keep -> [b, 1, 1, j], 0 or a large negative number, to be added to scores."""
    return torch.where(mask.bool(), 0.0, masked(dtype)).to(dtype)[:, None, None]


def masked(dtype: torch.dtype) -> float:
    """What is added to the scores of positions that may not be seen; in softmax exactly 0. Twice that is finite."""
    return max(-1e9, torch.finfo(dtype).min / 2)


class Attention(nn.Module):
    """Multi-head attention without biases and without 1/sqrt(k), which q's initialiser contains.

    TF class `SelfAttention` and, with a memory from the encoder, `EncDecAttention`. dropout is given the attention
    weights, so a hook on it sees them.

    Args:
        relative_bias: (number of buckets, distance from which on all is in the last one) of the table
            [buckets, heads] of the stack, which only its first block owns; None in the others.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float,
                 relative_bias: tuple[int, int] | None = None):
        super().__init__()
        self.heads = heads
        self.q = Dense(dim, heads * dim_head, std=(dim * dim_head) ** -0.5)
        self.k = Dense(dim, heads * dim_head, std=dim ** -0.5)
        self.v = Dense(dim, heads * dim_head, std=dim ** -0.5)
        self.o = Dense(heads * dim_head, dim, std=(heads * dim_head) ** -0.5)
        self.dropout = SequenceDropout(dropout)
        if relative_bias is not None:
            num_buckets, self.max_distance = relative_bias
            self.relative_attention_bias = nn.Embedding(num_buckets, heads)
            limit = (6 / (heads + num_buckets)) ** 0.5  # glorot uniform
            nn.init.uniform_(self.relative_attention_bias.weight, -limit, limit)

    def compute_bias(self, length: int, bidirectional: bool) -> torch.Tensor:
        """The relative bias of each query and memory position, [1, h, t, t] (TF function `compute_bias`)."""
        table, position = self.relative_attention_bias, torch.arange(length, device="cpu")
        # On the CPU: the rounding is known there.
        bucket = relative_position_bucket(position[None, :] - position[:, None], bidirectional, table.num_embeddings,
                                          self.max_distance)                    # [t, t]
        bias = table(bucket.to(table.weight.device))                            # [t, t, h]
        return bias.permute(2, 0, 1)[None]

    def forward(self, x: torch.Tensor, memory: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Attend from x to memory.

        Args:
            x: [b, t, d]; memory: [b, j, d], x itself in self-attention.
            bias: added to the scores, broadcastable to [b, h, t, j].
        Returns:
            [b, t, d].
        """
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)            # [b, t or j, h*k] -> [b, h, t or j, k]
                   for y in (self.q(x), self.k(memory), self.v(memory)))
        scores = q @ k.transpose(2, 3)                                          # [b, h, t, k] x [b, h, k, j]
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        a = self.dropout(scores.softmax(-1)) @ v                                # [b, h, t, j] x [b, h, j, k]
        return self.o(a.transpose(1, 2).flatten(2))                             # -> [b, t, h, k] -> [b, t, h*k]

    def extra_repr(self) -> str:
        """The number of heads."""
        return f"heads={self.heads}"


class DenseReluDense(nn.Module):
    """Feed-forward layer: wo(relu(wi(x))), or wo(gelu(wi_0(x)) * wi_1(x)) (TF class `DenseReluDense`)."""

    def __init__(self, dim: int, d_ff: int | None, dropout: float, kind: str):
        super().__init__()
        self.gated = kind == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, Dense(dim, d_ff, std=dim ** -0.5, truncated=True))
        self.wo = Dense(d_ff, dim, std=d_ff ** -0.5, truncated=True)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, t, d] -> [b, t, d]."""
        if self.gated:
            hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)    # [b, t, d] -> [b, t, f]
        else:
            hidden = F.relu(self.wi(x))
        return self.wo(self.dropout(hidden))

    def extra_repr(self) -> str:
        """The kind of activation."""
        return "gated-gelu" if self.gated else "relu"


class SelfAttentionLayer(nn.Module):
    """x + dropout(attention(norm(x))) over x itself."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float,
                 relative_bias: tuple[int, int] | None, epsilon: float = EPSILON):
        super().__init__()
        self.layer_norm = RMSNorm(dim, epsilon)
        self.SelfAttention = Attention(dim, heads, dim_head, dropout, relative_bias)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [b, t, d] -> [b, t, d]; bias: as Attention's."""
        y = self.layer_norm(x)
        return x + self.dropout(self.SelfAttention(y, y, bias))


class CrossAttentionLayer(nn.Module):
    """x + dropout(attention(norm(x))) over the encoder's output; there is no relative bias here."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, epsilon: float = EPSILON):
        super().__init__()
        self.layer_norm = RMSNorm(dim, epsilon)
        self.EncDecAttention = Attention(dim, heads, dim_head, dropout)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [b, t, d], memory [b, s, d], bias [b, 1, 1, s] or None -> [b, t, d]."""
        return x + self.dropout(self.EncDecAttention(self.layer_norm(x), memory, bias))


class FeedForwardLayer(nn.Module):
    """x + dropout(feed_forward(norm(x)))."""

    def __init__(self, dim: int, d_ff: int | None, dropout: float, kind: str, epsilon: float = EPSILON):
        super().__init__()
        self.layer_norm = RMSNorm(dim, epsilon)
        self.DenseReluDense = DenseReluDense(dim, d_ff, dropout, kind)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, t, d] -> [b, t, d]."""
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x)))


class Block(nn.Module):
    """Two layers in the encoder, three in the decoder (TF scope `block_000`)."""

    def __init__(self, dim: int, heads: int, dim_head: int, d_ff: int | None, dropout: float, kind: str,
                 is_decoder: bool, relative_bias: tuple[int, int] | None, epsilon: float = EPSILON):
        super().__init__()
        self.layer = nn.ModuleList([SelfAttentionLayer(dim, heads, dim_head, dropout, relative_bias, epsilon)])
        if is_decoder:
            self.layer.append(CrossAttentionLayer(dim, heads, dim_head, dropout, epsilon))
        self.layer.append(FeedForwardLayer(dim, d_ff, dropout, kind, epsilon))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None, memory: torch.Tensor | None = None,
                memory_bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [b, t, d] -> [b, t, d]; memory: [b, s, d], the encoder's output, in a decoder; biases: as Attention's."""
        x = self.layer[0](x, bias)
        if memory is not None:
            x = self.layer[1](x, memory, memory_bias)
        return self.layer[-1](x)


class Stack(nn.Module):
    """Encoder or decoder: blocks, then a norm; the first block's bias table serves them all."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, d_ff: int | None, dropout: float, kind: str,
                 is_decoder: bool, relative_bias: tuple[int, int] = (NUM_BUCKETS, MAX_DISTANCE),
                 epsilon: float = EPSILON):
        super().__init__()
        self.is_decoder = is_decoder
        self.block = nn.ModuleList([
            Block(dim, heads, dim_head, d_ff, dropout, kind, is_decoder, relative_bias if i == 0 else None, epsilon)
            for i in range(depth)])
        self.final_layer_norm = RMSNorm(dim, epsilon)
        self.dropout = SequenceDropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, memory: torch.Tensor | None = None,
                memory_mask: torch.Tensor | None = None) -> torch.Tensor:
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
        self.require_mask(mask, x)
        t = x.shape[1]
        bias = self.block[0].layer[0].SelfAttention.compute_bias(t, bidirectional=not self.is_decoder)  # [1, h, t, t]
        if self.is_decoder:
            bias = bias + bias.new_full((t, t), masked(bias.dtype)).triu(1)
        if mask is not None:
            bias = bias + additive(mask, bias.dtype)                            # -> [b, h, t, t]
        memory_bias = None if memory_mask is None else additive(memory_mask, bias.dtype)  # [b, 1, 1, s]
        x = self.dropout(x)
        for block in self.block:
            x = block(x, bias, memory, memory_bias)
        x = self.dropout(self.final_layer_norm(x))
        return x if mask is None else x * mask[..., None].bool()                # as the original zeroes padding

    def require_mask(self, mask: torch.Tensor | None, x: torch.Tensor) -> None:
        """Raise BadInput unless mask is None or has the shape [batch, length] of x [b, t, d]."""
        if mask is not None and mask.shape != x.shape[:2]:
            raise BadInput(f"a mask of the {'target' if self.is_decoder else 'source'} has the shape "
                           f"{list(mask.shape)}, expected [batch, length] = {list(x.shape[:2])}")


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
        dropout: rate of every dropout; see SequenceDropout for what the original drops together.
        tie_token_emb: one embedding for source and target, `shared`.
        tie_logits: True (version 1.0): the decoder's output times dim^-0.5 meets the embedding of the
            target; False (version 1.1): `decoder.logits`, no scaling.
        scale_logits: whether that output is scaled; None: where the logits are tied, as in both versions.
        feed_forward: "relu" (version 1.0) or "gated-gelu" (version 1.1).
        d_ff: inner width of every feed-forward layer, instead of the two multiples.
        num_buckets, max_distance: of the relative positions, see relative_position_bucket.
        epsilon: of the norms.
    Raises:
        BadInput: naming the argument that does not fit.
    """

    def __init__(self, dim: int = 768, enc_num_tokens: int = 512, enc_depth: int = 6, enc_heads: int = 12,
                 enc_dim_head: int = 64, enc_mlp_mult: int = 4, dec_num_tokens: int = 512, dec_depth: int = 6,
                 dec_heads: int = 12, dec_dim_head: int = 64, dec_mlp_mult: int = 4, dropout: float = 0.,
                 tie_token_emb: bool = True, *, tie_logits: bool = True, feed_forward: str = "relu",
                 d_ff: int | None = None, scale_logits: bool | None = None, num_buckets: int = NUM_BUCKETS,
                 max_distance: int = MAX_DISTANCE, epsilon: float = EPSILON):
        super().__init__()
        if tie_token_emb and enc_num_tokens != dec_num_tokens:
            raise BadInput(f"tie_token_emb is True, but enc_num_tokens is {enc_num_tokens} and dec_num_tokens "
                           f"{dec_num_tokens}; make them equal or pass tie_token_emb=False")
        if feed_forward not in FEED_FORWARD_KINDS:
            raise BadInput(f"feed_forward is {feed_forward!r}, expected one of {', '.join(FEED_FORWARD_KINDS)}")
        if not 0 <= dropout < 1:
            raise BadInput(f"dropout is {dropout}, expected 0 <= dropout < 1")
        if num_buckets < 4 or num_buckets % 2:
            raise BadInput(f"num_buckets is {num_buckets}, expected an even number from 4 on: half are for each side")
        if not max_distance > num_buckets // 2:
            raise BadInput(f"max_distance is {max_distance}, expected more than half of num_buckets {num_buckets}")
        if not 0 <= epsilon < 1:
            raise BadInput(f"epsilon is {epsilon}, expected a small number such as 1e-6")
        self.dim, self.tie_token_emb, self.tie_logits = dim, tie_token_emb, tie_logits
        self.scale_logits = tie_logits if scale_logits is None else scale_logits
        shared = dict(relative_bias=(num_buckets, max_distance), epsilon=epsilon)
        if tie_token_emb:
            self.shared = nn.Embedding(enc_num_tokens, dim)  # N(0, 1), not scaled on input
        self.encoder = Stack(dim, enc_depth, enc_heads, enc_dim_head, d_ff or dim * enc_mlp_mult, dropout,
                             feed_forward, is_decoder=False, **shared)
        self.decoder = Stack(dim, dec_depth, dec_heads, dec_dim_head, d_ff or dim * dec_mlp_mult, dropout,
                             feed_forward, is_decoder=True, **shared)
        if not tie_token_emb:
            self.encoder.embedding = nn.Embedding(enc_num_tokens, dim)
            self.decoder.embedding = nn.Embedding(dec_num_tokens, dim)
        if not tie_logits:
            self.decoder.logits = Dense(dim, dec_num_tokens, std=dim ** -0.5, truncated=True)
        self.register_load_state_dict_pre_hook(strip_wrappers)

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, dtype: torch.dtype | None = None) -> "T5":
        """Return a model with the weights and sizes of a folder or of a repository on the Hub, in evaluation mode.

        Its encoder: text_utils.SentencePieceEncoder.from_folder.

        Args:
            name: a folder with config.json and weights (see load_t5_pretrained_model), or `owner/name` of a
                repository. The folder of one of Google's checkpoints has no config.json: use T5_CONFIGS for those.
            revision: branch, tag or commit of the repository.
            dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
        Raises:
            MissingInput, BadInput: see read_t5_config and load_t5_pretrained_model.
        """
        path = local_folder(name, revision)
        config = read_t5_config(path)
        return filled(lambda: cls(**config), lambda model: load_t5_pretrained_model(model, path)["fresh"], dtype).eval()

    def embed_source(self, src: torch.Tensor) -> torch.Tensor:
        """int [b, s] -> [b, s, d]. Raises BadInput: see require_ids."""
        require_ids("src", src, (self.shared if self.tie_token_emb else self.encoder.embedding).num_embeddings)
        return self.shared(src) if self.tie_token_emb else self.encoder.embedding(src)

    def embed_target(self, tgt: torch.Tensor) -> torch.Tensor:
        """int [b, t] -> [b, t, d]. Raises BadInput: see require_ids."""
        require_ids("tgt", tgt, (self.shared if self.tie_token_emb else self.decoder.embedding).num_embeddings)
        return self.shared(tgt) if self.tie_token_emb else self.decoder.embedding(tgt)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The decoder's output [b, t, d] -> logits [b, t, v]; it is scaled by dim^-0.5 where they are tied."""
        if self.scale_logits:
            x = x * self.dim ** -0.5
        if not self.tie_logits:
            return self.decoder.logits(x)
        return F.linear(x, self.logits_weight())                                # [b, t, d] x [d, v]

    def logits_weight(self) -> torch.Tensor:
        """The matrix [v, d] that the logits are made with."""
        if not self.tie_logits:
            return self.decoder.logits.weight
        return self.shared.weight if self.tie_token_emb else self.decoder.embedding.weight

    def encode(self, src: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Run the encoder.

        Args:
            src: int [b, s]; mask: bool [b, s], True = keep, or None.
        Returns:
            [b, s, d], exactly 0 where mask is False.
        Raises:
            BadInput: a mask of another shape, or activations that overflow float16, as those of the released models do.
        """
        return require_finite(self.encoder(self.embed_source(src), mask))

    def forward(self, src: torch.Tensor, tgt: torch.Tensor, mask: torch.Tensor | None = None,
                tgt_mask: torch.Tensor | None = None) -> torch.Tensor:
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
        memory = self.encode(src, mask)
        return self.logits(require_finite(self.decoder(self.embed_target(tgt), tgt_mask, memory, mask)))


def require_ids(name: str, ids: torch.Tensor, n: int) -> None:
    """Refuse what is no int [batch, length] of token ids 0 to n - 1.

    Raises:
        BadInput: naming the argument, what it is and what was expected.
    """
    if not hasattr(ids, "dim"):
        raise BadInput(f"{name} is {type(ids).__name__}, expected a tensor: torch.as_tensor makes one of an array")
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise BadInput(f"{name} is {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}, expected int [batch, "
                       "length]")
    if is_true(((ids < 0) | (ids >= n)).any()):
        raise BadInput(f"{name} has token ids from {int(ids.min())} to {int(ids.max())}, expected 0 to {n - 1}; "
                       f"padding is {PAD}, and a label of -100 is no token")


def require_finite(x: torch.Tensor) -> torch.Tensor:
    """Return x, after a look at it where it was computed in float16, whose largest number is 65504.

    Raises:
        BadInput: there is an infinity or NaN.
    """
    device = x.device.type
    if torch.compiler.is_compiling() or device == "meta":  # there are no values to look at
        return x
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if torch.float16 in (x.dtype, autocast) and not x.isfinite().all():
        raise BadInput("T5 overflows in float16 (largest number 65504); use bfloat16 or float32")
    return x


def shift_right(targets: torch.Tensor) -> torch.Tensor:
    """What the decoder reads while it predicts `targets`: START first, then each token but the last.

    The first padding position gets 0, not the last token (TF function `autoregressive_inputs`).

    Args:
        targets: int [b, t], padded with PAD. IGNORED, a label that no loss counts, is read as PAD.
    Returns:
        int [b, t].
    """
    tokens = targets[:, :-1].masked_fill(targets[:, :-1] == IGNORED, PAD)
    return F.pad(tokens, (1, 0), value=START) * (targets != PAD)


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
