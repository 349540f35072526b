"""GPT-1 as OpenAI's TensorFlow code runs it, with its variable names.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; the code is
finetune-transformer-lm. Top to bottom: primitives, attention, MLP, block, model, heads, the two
models people use (LMModel, DoubleHeadModel), and the reader and writer of the released weights.

Inputs are pairs (token id, position id); both index ONE matrix `we`, whose rows are the tokens,
then `_start_`, `_delimiter_`, `_classify_`, then the positions.

Letters in the shape comments:
    b sequences   c choices of an example   t positions   n packed positions (see Packing)
    d n_embd      h heads   k size of a head (d / h)   v rows of `we`
"""

from functools import partial

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from fast.dropout import Dropout, DroppedMatrix, draw_keep
from fast.matmul import linear, matmul, matmul_made, matmul_of
from fast.packing import Packing
from formats.errors import BadInput
from formats.gpt_files import layer_names, read_pretrained, released_shapes, write_released
from loss import linear_cross_entropy, lm_token_scale


def gelu(x):
    """Gaussian error linear unit, tanh approximation with 0.044715 (TF function `gelu`)."""
    return F.gelu(x, approximate="tanh")


def swish(x):
    """x * sigmoid(x) (TF function `swish`)."""
    return F.silu(x)


ACT_FNS = {"relu": F.relu, "swish": swish, "gelu": gelu}


class dotdict(dict):
    """A dict whose keys are attributes too. A name it does not hold is an AttributeError."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"no setting {name!r}; there are: {', '.join(self)}")

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__


DEFAULT_CONFIG = dotdict(n_embd=768, n_head=12, n_layer=12, embd_pdrop=0.1, attn_pdrop=0.1,
                         resid_pdrop=0.1, clf_pdrop=0.1, afn="gelu")


class LayerNorm(nn.Module):
    """Layer normalisation with gain g and bias b, epsilon inside the root (TF function `norm`)."""

    def __init__(self, n_state, e=1e-5):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n_state))
        self.b = nn.Parameter(torch.zeros(n_state))
        self.e = e

    def forward(self, x):
        """[..., d] -> [..., d]."""
        return F.layer_norm(x, self.g.shape, self.g, self.b, self.e)


class Conv1D(nn.Module):
    """x @ w + b with w of shape [nx, nf] (TF function `conv1d`; only width rf = 1 is ever used)."""

    def __init__(self, nf, rf, nx):
        super().__init__()
        if rf != 1:
            raise ValueError(f"rf is {rf}, only 1 exists")
        self.w = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.b = nn.Parameter(torch.zeros(nf))

    def forward(self, x, after=None, made=None):
        """[..., nx] -> [..., nf].

        Both options save memory, by computing something again in the backward pass: `after`, a function to apply
        to x first; `made`, a pair (function, tensor) of which x is the result.
        """
        if after is not None:
            return matmul_of(after, x, self.w, self.b)
        if made is not None:
            return matmul_made(x, self.w, self.b, *made)
        return matmul(x, self.w, self.b)  # [..., nx] x [nx, nf] -> [..., nf]


class Cache:
    """Keys and values of the positions seen so far, one pair of buffers [b, h, size, k] per layer."""

    def __init__(self, size):
        self.size, self.length, self.layers = size, 0, {}

    def extend(self, layer, k, v):
        """Add k, v [b, h, t, k] of the newest positions of `layer`; return all of them [b, h, length + t, k]."""
        if layer not in self.layers:
            self.layers[layer] = [x.new_empty(*x.shape[:2], self.size, x.shape[3]) for x in (k, v)]
        end = self.length + k.size(2)
        return [self._write(buffer, x, end) for buffer, x in zip(self.layers[layer], (k, v), strict=True)]

    def _write(self, buffer, x, end):
        buffer[:, :, self.length:end] = x
        return buffer[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention; c_attn packs query, key, value (TF function `attn`)."""

    def __init__(self, nx, n_ctx, cfg, scale=True):
        super().__init__()
        if nx % cfg.n_head:
            raise BadInput(f"n_embd is {nx}, which n_head {cfg.n_head} does not divide; change one of them")
        self.n_head = cfg.n_head
        self.scale = None if scale else 1.0  # None: 1 / sqrt(k)
        self.c_attn = Conv1D(nx * 3, 1, nx)
        self.c_proj = Conv1D(nx, 1, nx)
        self.attn_dropout = Dropout(cfg.attn_pdrop)
        self.resid_dropout = Dropout(cfg.resid_pdrop)
        self.register_load_state_dict_pre_hook(_drop_2018_mask)

    def forward(self, x, packing=None, cache=None, made=None):
        """[b, t, d] -> [b, t, d]; with a packing [n, d] -> [n, d].

        With a cache that holds earlier positions, x is one newer position [b, 1, d]. `made`: see Conv1D.
        """
        keep = None
        if packing is not None and packing.mask is None:
            # Drawn once, though mix may be computed again. Pre-training's long sequences would need too much memory.
            (b, t), h = packing.grid, self.n_head
            keep = self.attn_dropout.draw((b, h, t, t), x.device)
        mixed = partial(self.mix, packing=packing, cache=cache, keep=keep)
        return self.resid_dropout(self.c_proj(self.c_attn(x, made=made), after=mixed))

    def mix(self, qkv, packing, cache, keep):
        """Average the values by attention: [b, t, 3d] -> [b, t, d]; with a packing [n, 3d] -> [n, d].

        keep: the dropout's mask [b, h, t, t] if it is drawn already, or None.
        """
        if packing is not None:
            q, k, v = packing.split_heads(qkv, 3, self.n_head)                # [n, 3d] -> 3 x [b, h, t, k]
            mask = packing.mask
        else:
            q, k, v = qkv.unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # [b, t, 3d] -> 3 x [b, h, t, k]
            mask = None
        causal = q.size(2) > 1
        if cache is not None:
            k, v = cache.extend(self, k, v)
        if self.training and self.attn_dropout.p and mask is None and q.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):  # which would make the softmax float32
                a = self.attend_with_dropout(q, k, v, keep)
        else:
            a = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=self.scale,
                dropout_p=self.attn_dropout.p if self.training else 0.0)
        if packing is not None:
            return packing.merge_heads(a)                                     # [b, h, t, k] -> [n, d]
        return a.transpose(1, 2).flatten(2)                                   # [b, h, t, k] -> [b, t, d]

    def attend_with_dropout(self, q, k, v, keep):
        """scaled_dot_product_attention, causal, with dropout on a CPU, where it takes twice as long: there torch has
        no fused kernel for it. 3 x [b, h, t, k] -> [b, h, t, k]."""
        t, scale = q.size(2), q.size(3) ** -0.5 if self.scale is None else self.scale
        future = torch.full((t, t), -float("inf"), dtype=q.dtype).triu(1)
        w = ((q * scale) @ k.transpose(2, 3)).add_(future)                    # [b, h, t, k] x [b, h, k, t]
        return self.attn_dropout(w.softmax(-1), keep) @ v                     # [b, h, t, t] x [b, h, t, k]


def _drop_2018_mask(module, state_dict, prefix, *args):
    """Forget the causal mask that the 2018 port keeps among the weights as `attn.b`."""
    state_dict.pop(prefix + "b", None)


class MLP(nn.Module):
    """Two layers with an activation between (TF function `mlp`); n_state is the inner width."""

    def __init__(self, n_state, cfg):
        super().__init__()
        if cfg.afn not in ACT_FNS:
            raise BadInput(f"afn is {cfg.afn!r}, allowed are {', '.join(ACT_FNS)}")
        self.c_fc = Conv1D(n_state, 1, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, 1, n_state)
        self.act = ACT_FNS[cfg.afn]
        self.dropout = Dropout(cfg.resid_pdrop)

    def forward(self, x, made=None):
        """[..., d] -> [..., d]. `made`: see Conv1D."""
        return self.dropout(self.c_proj(self.c_fc(x, made=made), after=self.act))


class Block(nn.Module):
    """Attention and MLP, each added to its input and then normalised (TF function `block`)."""

    def __init__(self, n_ctx, cfg, scale=True):
        super().__init__()
        self.attn = Attention(cfg.n_embd, n_ctx, cfg, scale)
        self.ln_1 = LayerNorm(cfg.n_embd)
        self.mlp = MLP(4 * cfg.n_embd, cfg)
        self.ln_2 = LayerNorm(cfg.n_embd)

    def forward(self, x, packing=None, cache=None, only=None, made=None, with_sum=False):
        """[b, t, d] -> [b, t, d]; with a packing [n, d] -> [n, d]; with `only`, int [r], just these rows: [r, d].

        `made`: see Conv1D. With `with_sum` returns what ln_2 was given, too.
        """
        a = x + self.attn(x, packing, cache, made)
        n = self.ln_1(a)
        if only is not None:
            s = n[only] + self.mlp(n[only])
        else:
            s = n + self.mlp(n, (self.ln_1, a))
        h = self.ln_2(s)
        return (h, s) if with_sum else h


class TransformerModel(nn.Module):
    """Embedding and blocks (TF function `model`, up to the final hidden states).

    Args:
        cfg: n_embd, n_head, n_layer, embd_pdrop, attn_pdrop, resid_pdrop, afn as attributes.
        vocab: rows of `we`: tokens + special tokens + positions.
        n_ctx: how many of these rows, the last ones, are positions.
    """

    def __init__(self, cfg, vocab=40990, n_ctx=512):
        super().__init__()
        self.n_vocab = vocab
        self.n_ctx = n_ctx
        self.embed = nn.Embedding(vocab, cfg.n_embd)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.embd_pdrop = cfg.embd_pdrop
        self.h = nn.ModuleList([Block(n_ctx, cfg, scale=True) for _ in range(cfg.n_layer)])
        self.register_load_state_dict_pre_hook(_strip_data_parallel_prefix)

    def look_up(self, x):
        """Drop entries of `we` and look x up in the result. One call per forward and tower: the original drops
        entries of the matrix itself, looks up tokens and positions in it and uses it as softmax weights too.

        Args:
            x: int [..., 2], token ids and position ids.
        Returns:
            h [..., d], token and position added; the dropped matrix [v, d], a DroppedMatrix.
        """
        weight, p = self.embed.weight, self.embd_pdrop
        if self.training and p and weight.device.type == "cpu":
            keep = draw_keep(weight.shape, p)
            h, weight = _DroppedLookup.apply(weight, keep, x, p)
            return h, DroppedMatrix(weight, keep, p)
        we = F.dropout(weight, p, self.training)
        return F.embedding(x, we).sum(-2), DroppedMatrix(we)     # [..., 2, d] -> [..., d]

    def forward(self, x, packing=None, cache=None, only=None):
        """Return the final hidden states.

        Args:
            x: int [..., t, 2], token ids and position ids; leading axes are flattened to b.
            packing: compute only its positions.
            cache: a Cache to read earlier positions from and to extend.
            only: int [r], with a packing: the rows wanted in the end; the last MLP then leaves out the others.
        Returns:
            [b, t, d]; with a packing [n, d], with `only` [r, d].
        """
        return self.forward_and_we(x, packing, cache, only)[0]

    def forward_and_we(self, x, packing=None, cache=None, only=None):
        """As forward; return also the DroppedMatrix [v, d] that the softmax of this forward uses."""
        x = x.reshape(-1, *x.shape[-2:])
        if packing is not None:
            x = packing.pack(x)                              # [b, t, 2] -> [n, 2]
        h, we = self.look_up(x)
        made = None
        for block in self.h:
            h, s = block(h, packing, cache, only if block is self.h[-1] else None, made, with_sum=True)
            made = block.ln_2, s
        if cache is not None:
            cache.length += x.size(1)
        return h, we


class _DroppedLookup(torch.autograd.Function):
    """Dropout of a matrix and lookup in it, for CPUs: the matrix gets its gradient in one buffer instead of four.

    Returns the rows looked up and the matrix itself, not dropped: whose gradient the rows' is added to.
    """

    @staticmethod
    def forward(ctx, weight, keep, x, p):
        kept = keep[x]                                       # [..., 2, d]
        ctx.save_for_backward(x, kept)
        ctx.p, ctx.shape = p, weight.shape
        ctx.set_materialize_grads(False)
        return (weight[x] * kept).sum(-2).div_(1 - p), weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_h, d_weight):
        x, kept = ctx.saved_tensors
        if d_weight is None:  # no softmax
            d_weight = torch.zeros(ctx.shape, dtype=d_h.dtype)
        if d_h is not None:
            d_rows = d_h.unsqueeze(-2) * kept / (1 - ctx.p)  # [..., d] -> [..., 2, d]
            # d_weight comes from the softmax and is nobody else's: it may be changed.
            d_weight = d_weight.contiguous().index_add_(0, x.flatten(), d_rows.flatten(0, -2))
        return d_weight, None, None, None


def _strip_data_parallel_prefix(module, state_dict, prefix, *args):
    """Accept a state dict saved from nn.DataParallel, as the 2018 port saved its own."""
    if not prefix and state_dict and all(name.startswith("module.") for name in state_dict):
        for name in list(state_dict):
            state_dict[name[len("module."):]] = state_dict.pop(name)


class LMHead(nn.Module):
    """Logits over all rows of `we`, tied to it, without bias.

    Args:
        model: the TransformerModel whose embedding it shares.
        trunc_and_reshape: leave out the last position, which predicts nothing, and flatten.
    """

    def __init__(self, model, cfg, trunc_and_reshape=True):
        super().__init__()
        v, d = model.embed.weight.shape
        self.decoder = nn.Linear(d, v, bias=False)
        self.decoder.weight = model.embed.weight
        self.trunc_and_reshape = trunc_and_reshape

    def forward(self, h, we=None):
        """h [b, t, d] -> [b * (t - 1), v], or [b, t, v] without trunc_and_reshape.

        we: the DroppedMatrix of this forward; the undropped one by default.
        """
        if self.trunc_and_reshape:
            h = h[:, :-1].reshape(-1, h.size(-1))                    # [b, t, d] -> [b(t-1), d]
        return linear(h, self.decoder.weight if we is None else we.written_out())  # [..., d] x [d, v] -> [..., v]


class _ClassifyHead(nn.Module):
    """What the heads share: the hidden state at the classify token, dropout, a linear layer.

    Weights start at N(0, 0.02) and biases at 0 (TF function `clf`).
    """

    def __init__(self, clf_token, cfg, n_out):
        super().__init__()
        self.clf_token = clf_token
        self.dropout = nn.Dropout(cfg.clf_pdrop)
        self.linear = nn.Linear(cfg.n_embd, n_out)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def position(self, x):
        """int [..., t, 2] -> int64 [...]: where each sequence has its FIRST classify token; 0 if nowhere."""
        return (x[..., 0] == self.clf_token).int().argmax(-1)

    def pooled(self, h, x):
        """h [b, t, d], x [..., t, 2] -> [..., d], the hidden state at each sequence's position."""
        at = self.position(x).flatten()                                     # [b]
        return h[torch.arange(len(at), device=h.device), at].view(*x.shape[:-2], -1)


class MultipleChoiceHead(_ClassifyHead):
    """One logit per choice; the choices of an example share one dropout mask."""

    def __init__(self, clf_token, cfg):
        super().__init__(clf_token, cfg, 1)

    def forward(self, h, x):
        """h [b * c, t, d], x [b, c, t, 2] -> [b, c]."""
        return self.choose(self.pooled(h, x))

    def choose(self, h):
        """Hidden states at the classify tokens [b, c, d] -> logits [b, c]."""
        mask = self.dropout(h.new_ones(h.size(0), 1, h.size(2)))
        return self.linear(h * mask).squeeze(-1)                            # [b, c, d] x [d, 1] -> [b, c]


class ClfHead(_ClassifyHead):
    """n_class logits for each sequence (paper section 3.3: classification, entailment)."""

    def __init__(self, clf_token, cfg, n_class):
        super().__init__(clf_token, cfg, n_class)

    def forward(self, h, x):
        """h [b, t, d], x [b, t, 2] or [b, 1, t, 2] -> [b, n_class]."""
        return self.linear(self.dropout(self.pooled(h, x).view(h.size(0), -1)))


class SimilarityHead(_ClassifyHead):
    """One score for two texts given in both orders, whose states are added (paper section 3.3)."""

    def __init__(self, clf_token, cfg):
        super().__init__(clf_token, cfg, 1)

    def forward(self, h, x):
        """h [b * 2, t, d], x [b, 2, t, 2] -> [b, 1]."""
        return self.linear(self.dropout(self.pooled(h, x).sum(1)))          # [b, 2, d] -> [b, d] -> [b, 1]


TASK_HEADS = {
    "multiple_choice": MultipleChoiceHead,
    "similarity": SimilarityHead,
    "inference": lambda clf_token, cfg: ClfHead(clf_token, cfg, 3),
}


def make_task_head(task_head_type, clf_token, cfg):
    """Return the head for a name in TASK_HEADS or for ('classification', number of classes)."""
    if isinstance(task_head_type, str) and task_head_type in TASK_HEADS:
        return TASK_HEADS[task_head_type](clf_token, cfg)
    if isinstance(task_head_type, (tuple, list)) and len(task_head_type) == 2 \
            and task_head_type[0] == "classification" and isinstance(task_head_type[1], int):
        return ClfHead(clf_token, cfg, task_head_type[1])
    raise ValueError(f"task_head_type is {task_head_type!r}, allowed are "
                     f"{', '.join(map(repr, TASK_HEADS))} and ('classification', n_class)")


class LMModel(nn.Module):
    """The transformer with a language-model head.

    forward(x), x int [b, t, 2], returns logits [b, t, v]; with return_probs, probabilities in
    which the position rows, which are no words, have probability 0.
    """

    def __init__(self, cfg, vocab=40990, n_ctx=512, return_probs=False):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg, trunc_and_reshape=False)
        self.return_probs = return_probs
        self.register_load_state_dict_pre_hook(_strip_data_parallel_prefix)
        self.register_load_state_dict_pre_hook(lambda module, state_dict, prefix, *args:
                                               state_dict.pop(prefix + "pos_emb_mask", None))

    def forward(self, x):
        logits = self.lm_head(*self.transformer.forward_and_we(x))
        if self.return_probs:
            logits[..., -self.transformer.n_ctx:] = -float("inf")
            return logits.softmax(-1)
        return logits

    def loss(self, x):
        """Mean cross entropy over positions 1 .. t-1 of x int [b, t, 2], no padding; a scalar in nats."""
        h, we = self.transformer.forward_and_we(x)
        h = h[:, :-1].flatten(0, 1)                             # [b, t, d] -> [b(t-1), d]
        targets = x[:, 1:, 0].flatten().long()                  # [b(t-1)]
        scale = torch.full(targets.shape, 1 / len(targets), device=h.device)
        return linear_cross_entropy(h, we.matrix, targets, scale, keep=we.keep, p=we.p)


class DoubleHeadModel(nn.Module):
    """The transformer with a language-model head and a task head, as fine-tuned in the paper.

    forward(x) is the plain path. `losses` and `choice_logits` give the same numbers faster.

    Args:
        cfg: see TransformerModel, and clf_pdrop.
        clf_token: id of `_classify_`.
        task_head_type: see make_task_head.
        vocab, n_ctx: see TransformerModel.
    """

    def __init__(self, cfg, clf_token, task_head_type, vocab=40990, n_ctx=512):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg)
        self.task_head = make_task_head(task_head_type, clf_token, cfg)
        self.register_load_state_dict_pre_hook(_strip_data_parallel_prefix)

    def forward(self, x):
        """x int [b, c, t, 2] (or [b, t, 2]) -> lm_logits [b * c * (t - 1), v], task logits."""
        h, we = self.transformer.forward_and_we(x)
        return self.lm_head(h, we), self.task_head(h, x)

    def losses(self, x, m, y, lm_coef):
        """The training loss of multiple-choice examples, without computing padding.

        Args:
            x: int [b, c, t, 2]; m: float [b, c, t], 1 at tokens the language model learns from;
            y: int [b], the right choice; lm_coef: weight of the language-model loss.
        Returns:
            train_loss: mean(clf_losses) + lm_coef * mean(lm_losses), a scalar.
            clf_losses: [b].
        """
        rows, at = x.flatten(0, 1), self.task_head.position(x)                 # [bc, t, 2], [b, c]
        steps = torch.arange(x.size(2), device=x.device)
        scale = lm_token_scale(m.flatten(0, 1))                                # [bc, t], token predicted AT t
        if lm_coef == 0:
            scale = torch.zeros_like(scale)
        last = torch.maximum(at.flatten(), (scale.ne(0) * steps).amax(1))      # [bc], last position that counts
        t = int(last.max()) + 1
        packing = Packing(steps[:t] <= last[:, None])
        h, we = self.transformer.forward_and_we(rows[:, :t], packing)          # [n, d], [v, d]
        grid = packing.unpack(h)                                               # [n, d] -> [bc, t, d]
        pooled = grid[torch.arange(len(grid), device=x.device), at.flatten()]  # [bc, d]
        logits = self.task_head.choose(pooled.view(*at.shape, -1))             # [b, c]
        clf_losses = F.cross_entropy(logits.float(), y.long(), reduction="none")
        loss = clf_losses.mean()
        if lm_coef:
            counts = scale[:, 1:t].ne(0)                                       # [bc, t - 1]
            hidden = grid[:, :-1][counts]                                      # -> [tokens that count, d]
            targets = rows[:, 1:t, 0][counts].long()
            loss = loss + linear_cross_entropy(hidden, we.matrix, targets, lm_coef * scale[:, 1:t][counts],
                                               keep=we.keep, p=we.p)
        return loss, clf_losses

    @torch.no_grad()
    def choice_logits(self, x):
        """Task logits [b, c] of x int [b, c, t, 2] in eval mode, computing the shared beginning once.

        The choices of an example start with the same tokens, whose hidden states are equal as
        nothing is dropped. They are laid out as one row: beginning, rest of choice 1, rest of
        choice 2, ...; a mask keeps the choices from seeing each other.
        """
        if self.training:
            raise RuntimeError("choice_logits is exact only without dropout: call model.eval() first")
        at = self.task_head.position(x)                                        # [b, c]
        b, c, t = x.shape[:3]
        differs = (x != x[:, :1]).any(-1).any(1)                               # [b, t]
        shared = torch.where(differs.any(1), differs.int().argmax(1), t)
        shared = torch.minimum(shared, at.amin(1))                             # [b]
        own = at + 1 - shared[:, None]                                         # [b, c] lengths of the rests
        start = shared[:, None] + own.cumsum(1) - own                          # [b, c] columns where they begin
        end = shared + own.sum(1)                                              # [b]
        column = torch.arange(int(end.max()), device=x.device)                 # [t'] columns of the new rows
        part = (column >= start[..., None]).sum(1)                             # [b, t'] 0 shared, 1.. choices
        choice = (part - 1).clamp(min=0)
        source = torch.where(part > 0, column - start.gather(1, choice) + shared[:, None], column)
        keep = column < end[:, None]
        example = torch.arange(b, device=x.device)[:, None]
        rows = x[example, choice, source.clamp(max=t - 1)]                     # [b, t', 2]
        visible = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        causal = column[None, :] <= column[:, None]
        packing = Packing(keep, (visible & causal)[:, None])
        pooled = packing.rows(example * rows.size(1) + start + own - 1)        # [b, c]
        h = self.transformer(rows, packing, only=pooled.flatten())             # [bc, d]
        return self.task_head.choose(h.view(b, c, -1))                         # [b, c, d] -> [b, c]


def tf_name(name):
    """Return the TF variable of a parameter of TransformerModel: 'h.0.attn.c_attn.w' -> 'model/h0/attn/c_attn/w:0'."""
    if name == "embed.weight":
        return "model/we:0"
    return "model/" + name.replace("h.", "h", 1).replace(".", "/") + ":0"


def load_openai_pretrained_model(model, n_ctx=-1, n_special=-1, n_transfer=12, n_embd=768, path="./model/",
                                 path_names="./", verbose=True):
    """Copy released weights into a TransformerModel (or into the transformer of an LMModel or DoubleHeadModel).

    `we` becomes [tokens; n_special fresh rows N(0, 0.02); the first n_ctx positions], as in the original's train.py.
    The fresh rows are drawn from NumPy's global generator, again as there: np.random.seed fixes them.

    Args:
        n_ctx: positions to load; -1 for all.
        n_special: rows between tokens and positions; -1 for none.
        n_transfer: layers to load besides `we`; 0 loads `we` alone, -1 loads nothing.
        n_embd: the width expected.
        path: a folder in the released format, or a folder or file with the Hub's model.safetensors.
        path_names: ignored; the 2018 port kept a list of names there.
        verbose: print one line on what was loaded.
    Returns:
        {'loaded': [TF names], 'fresh': [TF names]}, together every variable of the transformer.
    Raises:
        MissingInput, BadInput: see read_pretrained; or model and weights do not fit. The model is then unchanged.
    """
    model = getattr(model, "transformer", model)
    n_special = max(n_special, 0)
    if n_transfer < -1 or n_transfer > len(model.h):
        raise BadInput(f"n_transfer is {n_transfer}, allowed is -1 to {len(model.h)}, the model's n_layer")
    parameters = dict(model.named_parameters())
    new = {}
    if n_transfer >= 0:
        weights = read_pretrained(path)
        layers = (len(weights) - 2) // len(layer_names(1))
        (positions, width), n_vocab = weights["positions"].shape, len(weights["tokens"])
        n_ctx = positions if n_ctx < 0 else n_ctx
        if n_transfer > layers:
            raise BadInput(f"n_transfer is {n_transfer}, allowed is -1 to {layers}, the layers in {path}")
        if not width == n_embd == model.embed.weight.size(1):
            raise BadInput(f"n_embd is {n_embd} (the model's is {model.embed.weight.size(1)}), but the weights in "
                           f"{path} have {width}; give n_embd {width}, or n_transfer -1 for none of them")
        if n_ctx > positions:
            raise BadInput(f"n_ctx is {n_ctx}, allowed is at most {positions}, the positions in {path}")
        rows = n_vocab + n_special + n_ctx
        if model.embed.weight.size(0) != rows:
            raise BadInput(f"the model's we has {model.embed.weight.size(0)} rows, but {path} with n_special "
                           f"{n_special} and n_ctx {n_ctx} gives {n_vocab} + {n_special} + {n_ctx} = {rows}; "
                           f"make the model with vocab={rows}")
        special = (np.random.randn(n_special, width) * 0.02).astype(np.float32)
        new["embed.weight"] = np.concatenate([weights["tokens"], special, weights["positions"][:n_ctx]])
        for name in parameters:
            if name.startswith("h.") and int(name.split(".")[1]) < n_transfer:
                new[name] = weights[name]
        with torch.no_grad():
            for name, value in new.items():
                parameters[name].copy_(torch.from_numpy(np.array(value)))
    fresh = [name for name in parameters if name not in new]
    if verbose:
        source = f"from {path}" if new else "(n_transfer -1)"
        print(f"loaded {len(new)} of {len(parameters)} variables {source}; "
              f"fresh: {n_special if new else 'all'} special rows"
              + (f" and {len(fresh)} variables, {tf_name(fresh[0])} to {tf_name(fresh[-1])}" if fresh else ""))
    return {"loaded": [tf_name(name) for name in new], "fresh": [tf_name(name) for name in fresh]}


def export_openai_model(model, path, n_special=0):
    """Write a model in the released format: params_0.npy .. params_9.npy and params_shapes.json.

    Special rows and heads have no place in the format and are left out.

    Args:
        model: a TransformerModel, LMModel or DoubleHeadModel.
        path: the folder, made if missing.
        n_special: rows of `we` between tokens and positions, not written.
    Raises:
        BadInput: the folder cannot be written.
    """
    model = getattr(model, "transformer", model)
    we = model.embed.weight
    n_vocab = len(we) - model.n_ctx - n_special
    parameters = dict(model.named_parameters())
    values = [we[-model.n_ctx:], we[:n_vocab]]
    values += [parameters[name] for name in layer_names(len(model.h))]
    flat = torch.cat([v.detach().float().cpu().flatten() for v in values]).numpy()
    write_released(path, flat, released_shapes(model.n_ctx, n_vocab, we.size(1), len(model.h)))
