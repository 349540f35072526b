"""GPT-1 run faster: the original's functions attn, mlp, block and model over the modules of model_pytorch.

    loss, clf_losses = losses(model, x, m, y, lm_coef)      the plain text: loss.double_head_loss(*model(x), ...)
    logits = task_logits(model, x)                          model(x)[1], in evaluation mode
    logits = choice_logits(model, x)                        the same for multiple choice
    log_p = token_log_probs(model, x, wanted)               explore.token_log_probs(model, x), where wanted
    loss = lm_loss(model, x)                                model.loss(x)

The functions own no parameter. Over a model they do not know whole (see known.py) they run the plain text. What is
saved: padding is not computed (packing.py), the vocabulary's logits are never stored (cross_entropy.py), activations
and norms are computed again in the backward pass and not kept (matmul.py), masks are drawn faster (dropout.py), long
attention stays in the cache (attention.py), the beginning that choices share is computed once, positions read once are
not read again (cache.py).

Letters in the shape comments: those of model_pytorch.py, and
    n packed positions (see Packing)   r rows wanted   j positions attended to
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fast.attention import attend_with_dropout
from fast.cache import KeysValues
from fast.cross_entropy import linear_cross_entropy
from fast.devices import moved, moved_to
from fast.dropout import dropout, look_up, rate
from fast.known import knows
from fast.matmul import matmul, matmul_made, matmul_of
from fast.packing import Packing
from loss import (
    at_least_float32,
    double_head_loss,
    losses_of_targets,
    mean_task_loss,
    require_batch,
    require_targets,
    word_loss,
)
from model_pytorch import LMModel, MultipleChoiceHead, require_choices

TOKENS_AT_ONCE = 256  # whose logits exist at a time: 41 MB of GPT-1's


def conv1d(m, x, source=None):
    """As Conv1D: [..., nx] -> [..., nf]. source = (f, tensors): x is f(*tensors); they are kept and x recomputed."""
    return matmul(x, m.w, m.b) if source is None else matmul_made(x, m.w, m.b, *source)


def mix(qkv, n_head, scale, p, packing=None, cache=None):
    """Attention between its two products.

    Args:
        qkv: [b, t, 3d], or packed [n, 3d]. scale: of the scores; None: 1 / sqrt(k). p: dropout's rate.
        cache: KeysValues of earlier positions, which the new ones see and are added to.
    Returns:
        [b, t, d], or packed [n, d].
    """
    if packing is None:
        heads = qkv.unflatten(2, (3, n_head, -1)).permute(2, 0, 3, 1, 4)     # [b, t, 3d] -> [3, b, h, t, k]
    else:
        heads = packing.split_heads(qkv, 3, n_head)                          # [n, 3d] -> [3, b, h, t, k]
    q, k, v = heads
    if cache is not None:
        k, v = cache.extend(k, v)
        q = q.to(k.dtype)
    mask = None if packing is None else packing.mask
    t, j = q.size(2), k.size(2)
    if 1 < t < j:  # several new positions after earlier ones: the last of them sees all
        mask = torch.ones(t, j, dtype=torch.bool, device=q.device).tril(j - t)
    if p and mask is None and cache is None and q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):                           # which would make the softmax float32
            a = attend_with_dropout(heads, scale, p)
    else:
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and t > 1, scale=scale,
                                           dropout_p=p)
    if packing is None:
        return a.transpose(1, 2).flatten(2).to(qkv.dtype)                    # [b, h, t, k] -> [b, t, d]
    return packing.merge_heads(a)                                            # [b, h, t, k] -> [n, d]


def attn(m, x, source=None, packing=None, cache=None):
    """As Attention: [b, t, d] -> [b, t, d], or packed [n, d] -> [n, d]."""
    a = mix(conv1d(m.c_attn, x, source), m.n_head, None if m.scale else 1.0, rate(m.attn_dropout), packing, cache)
    a = conv1d(m.c_proj, a)
    return dropout(a, rate(m.resid_dropout))


def mlp(m, x, source=None):
    """As MLP: [..., d] -> [..., d]."""
    h = matmul_of(m.act, conv1d(m.c_fc, x, source), m.c_proj.w, m.c_proj.b)
    return dropout(h, rate(m.dropout))


def norm(m, x):
    """As LayerNorm; return also what makes the result again, as conv1d's source."""
    made = partial(_norm, e=m.e), x, m.g, m.b
    return _norm(x, m.g, m.b, m.e), made


def _norm(x, g, b, e):
    return F.layer_norm(x, g.shape, g, b, e)


def block(m, x, source=None, packing=None, cache=None, only=None):
    """As Block; with `only`, int [r], just these rows of the packed result: [n, d] -> [r, d].

    Returns:
        h, and what makes it again.
    """
    n, made = norm(m.ln_1, x + attn(m.attn, x, source, packing, cache))
    if only is not None:
        n, made = n[only], None
    return norm(m.ln_2, n + mlp(m.mlp, n, made))


def hidden_states(m, x, packing=None, cache=None, only=None, recompute=False):
    """The final hidden states of a TransformerModel, and the DroppedMatrix [v, d] that their softmax uses.

    Args:
        x: int [b, t, 2], here or on the CPU.
        packing: compute only its positions.
        cache: a list of KeysValues, one a layer: read earlier positions from them, add these. Under no_grad.
        only: int [r], with a packing: the rows wanted in the end; the last MLP then leaves out the others.
        recompute: keep of each block its input alone, and run it again in the backward pass. Not with `only`, `cache`.
    Returns:
        [b, t, d]; with a packing [n, d], with `only` [r, d].
    """
    if cache is not None and torch.is_grad_enabled():
        raise RuntimeError("a cache of keys and values holds no gradients: call this under torch.no_grad()")
    if not cache or cache[0].length == 0:  # a token that was generated needs no look, which waits for a GPU
        m.require_ids(x)
    x = moved(x, m.embed.weight.device)
    if packing is not None:
        x = packing.pack(x)                                                  # [b, t, 2] -> [n, 2]
    h, we = look_up(m.embed.weight, x, rate(m.embd_dropout))
    made = None
    for i, b in enumerate(m.h):
        if recompute:
            h = checkpoint(lambda b, h: block(b, h, None, packing)[0], b, h, use_reentrant=False)
            continue
        last = i == len(m.h) - 1
        h, made = block(b, h, made, packing, None if cache is None else cache[i], only if last else None)
    return (h[only] if only is not None and not len(m.h) else h), we


def empty_cache(m, size):
    """Return a cache for hidden_states that holds up to `size` positions; memory is taken as they come."""
    return [KeysValues(size) for _ in m.h]


def lm_token_scale(m):
    """The weight of each position's token in the mean of loss.lm_losses.

    Args:
        m: [b, t], 1 at tokens to learn from; position 0 is predicted by nothing.
    Returns:
        float32 [b, t], position 0 always 0.
    """
    m = torch.cat([torch.zeros_like(m[:, :1]), m[:, 1:]], 1).float()
    return m / (m.sum(1, keepdim=True).clamp(min=torch.finfo(m.dtype).tiny) * len(m))


def _tensor(value):
    """A tensor as it is; of an array or a list a tensor on the CPU."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


def losses(model: nn.Module, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor,
           lm_coef: float, recompute: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss of a DoubleHeadModel with any head, without computing padding.

    Args:
        x: int [b, c, t, 2] (or [b, t, 2] for a classifier); m: [b, c, t] (or [b, t]), 1 at tokens the language model
            learns from; y: see loss.task_losses; lm_coef: weight of the language-model loss. x, m and y may be NumPy
            arrays too. They may lie on the CPU whatever the model is on: then nothing here waits for a GPU.
        recompute: see hidden_states; less memory, more time. The plain text keeps everything.
    Returns:
        train_loss: mean_task_loss + lm_coef * mean(lm_losses), a scalar.
        clf_losses: [b].
    Raises:
        BadInput: see loss.require_batch, loss.require_targets and the head.
    """
    x, m, y = map(_tensor, (x, m, y))
    learns = any(torch.is_tensor(weight) and weight.requires_grad for weight in (m, lm_coef))
    if learns or not knows(model) or not x.numel():  # the fast loss has no gradients in the weights of its terms
        x, m, y = moved_to(model, x, m, y)
        return double_head_loss(*model(x), x, m, y, lm_coef)[:2]
    at = model.task_head.position(x)                                         # [b, c]
    require_batch(x, m, 1 if isinstance(model.task_head, MultipleChoiceHead) else None)
    model.transformer.require_ids(x)
    m, device = m.to(x.device), model.transformer.embed.weight.device
    rows = x.flatten(0, -3)                                                  # [bc, t, 2]
    steps = torch.arange(rows.size(1), device=x.device)
    scale = lm_token_scale(m.flatten(0, -2))                                 # [bc, t], token predicted AT t
    if lm_coef == 0:
        scale = torch.zeros_like(scale)
    last = torch.maximum(at.flatten(), (scale.ne(0) * steps).amax(1))        # [bc], last position that counts
    t = int(last.max()) + 1
    packing = Packing(steps[:t] <= last[:, None], device=device)
    h, we = hidden_states(model.transformer, rows[:, :t], packing, recompute=recompute)  # [n, d], [v, d]
    pooled = h.index_select(0, packing.rows(t * torch.arange(len(rows), device=x.device) + at.flatten()))  # [bc, d]
    logits = model.task_head.classify(pooled.unflatten(0, at.shape))
    require_targets(y, *logits.shape)
    y = moved(y, device)
    clf_losses = losses_of_targets(logits, y)
    loss = mean_task_loss(clf_losses, y)
    if lm_coef:
        counts = F.pad(scale[:, 1:t], (0, 1)).flatten().nonzero()[:, 0]      # flat positions that predict what counts
        targets, weights = rows[:, :t, 0].flatten()[counts + 1].long(), scale[:, :t].flatten()[counts + 1]
        loss = loss + linear_cross_entropy(h.index_select(0, packing.rows(counts)), we.matrix, moved(targets, device),
                                           lm_coef * moved(weights, device), keep=we.keep, p=we.p)
    return loss, clf_losses


@torch.no_grad()
def task_logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The task logits of a DoubleHeadModel in evaluation mode, without language-model logits and padding.

    Args:
        x: int [b, c, t, 2] (or [b, t, 2] for a classifier), a tensor or a NumPy array; see losses for where.
    Returns:
        [b, c] for multiple choice, else [b, number of classes].
    Raises:
        RuntimeError: something is dropped, or may be: the model is in training mode.
        BadInput: a multiple choice has a single choice.
    """
    if model.training or any(isinstance(part, torch.nn.Dropout) and rate(part) for part in model.modules()):
        raise RuntimeError("task_logits is exact only without dropout: call model.eval() first")
    x = _tensor(x)
    require_choices(getattr(model, "task_head", None), x)
    if not knows(model) or not x.numel():
        return model(*moved_to(model, x))[1]
    if isinstance(model.task_head, MultipleChoiceHead):
        return _choice_logits(model, x)
    rows, at = x.flatten(0, -3), model.task_head.position(x)                 # [bc, t, 2], [b, c]
    t = int(at.max()) + 1
    packing = Packing(torch.arange(t, device=x.device) <= at.flatten()[:, None],
                      device=model.transformer.embed.weight.device)
    only = packing.rows(torch.arange(len(rows), device=x.device) * t + at.flatten())
    h, _ = hidden_states(model.transformer, rows[:, :t], packing, only=only)
    return model.task_head.classify(h.unflatten(0, at.shape))


def choice_logits(model, x):
    """Task logits [b, c] of a DoubleHeadModel for multiple choice; see task_logits. x: int [b, c, t, 2]."""
    return task_logits(model, x)


def _choice_logits(model, x):
    """Task logits [b, c] of x int [b, c, t, 2], computing the shared beginning once."""
    at = model.task_head.position(x)                                         # [b, c]
    model.transformer.require_ids(x)
    rows, packing, places = _share_beginnings(x, at, model.transformer.embed.weight.device)
    h, _ = hidden_states(model.transformer, rows, packing, only=places(at[..., None]).flatten())  # [bc, d]
    return model.task_head.classify(h.view(*at.shape, -1))                   # [b, c, d] -> [b, c]


def _share_beginnings(x, at, device):
    """Lay the choices of each example out as one row: beginning, rest of choice 1, rest of choice 2, ...

    The choices of an example start with the same tokens, whose hidden states are equal as nothing is dropped. A mask
    keeps the choices from seeing each other. Measured on one core of an AMD EPYC: without it an evaluation takes 1.7
    times as long.

    Args:
        x: int [b, c, t, 2]. at: int [b, c], the last position of each choice that is needed.
        device: of the Packing.
    Returns:
        rows int [b, t', 2], their Packing, and a function of positions int [b, c, k], none beyond `at`, that returns
        where they are among the packed, int [b, c, k].
    """
    b, c, t = x.shape[:3]
    differs = (x != x[:, :1]).any(-1).any(1)                                 # [b, t]
    shared = torch.where(differs.any(1), differs.int().argmax(1), t)
    shared = torch.minimum(shared, at.amin(1))                               # [b]
    own = at + 1 - shared[:, None]                                           # [b, c] lengths of the rests
    start = shared[:, None] + own.cumsum(1) - own                            # [b, c] columns where they begin
    end = shared + own.sum(1)                                                # [b]
    column = torch.arange(int(end.max()), device=x.device)                   # [t'] columns of the new rows
    part = (column >= start[..., None]).sum(1)                               # [b, t'] 0 shared, 1.. choices
    choice = (part - 1).clamp(min=0)
    source = torch.where(part > 0, column - start.gather(1, choice) + shared[:, None], column)
    keep = column < end[:, None]
    example = torch.arange(b, device=x.device)[:, None]
    rows = x[example, choice, source.clamp(max=t - 1)]                       # [b, t', 2]
    visible = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    causal = column[None, :] <= column[:, None]
    packing = Packing(keep, (visible & causal)[:, None], device)

    def places(positions):
        own_column = positions - shared[:, None, None] + start[..., None]
        columns = torch.where(positions < shared[:, None, None], positions, own_column)
        return packing.rows(example[..., None] * rows.size(1) + columns)

    return rows, packing, places


@torch.no_grad()
def token_log_probs(model: nn.Module, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of some tokens, given those before them, among the words alone; nothing is dropped.

    The plain text is explore.token_log_probs. What the choices of an example share is computed once.

    Args:
        model: an LMModel in evaluation mode. x: int [b, c, t, 2], on the CPU. wanted: bool [b, c, t], True at the
            tokens in question; never at position 0, which nothing predicts.
    Returns:
        float32 (or 64) [b, c, t], on the CPU, 0 where not wanted.
    Raises:
        RuntimeError: something is dropped, or may be: the model is in training mode.
    """
    if model.training or any(isinstance(part, torch.nn.Dropout) and rate(part) for part in model.modules()):
        raise RuntimeError("token_log_probs is exact only without dropout: call model.eval() first")
    n_words = model.transformer.n_vocab - model.transformer.n_ctx
    model.transformer.require_ids(x)
    found = wanted.nonzero()                                                 # [n, 3]: example, choice, position
    at = (torch.arange(x.size(2)) * wanted).amax(2).sub(1).clamp(min=0)      # [b, c], the last that predicts
    device = model.transformer.embed.weight.device
    if knows(model):
        rows, packing, places = _share_beginnings(x, at, device)
        before = torch.arange(x.size(2) - 1).expand(*at.shape, -1)
        before = places(torch.minimum(before, at[..., None]))                # [b, c, t - 1], where each one's h is
        h, we = hidden_states(model.transformer, rows, packing)
        h = h.index_select(0, before[moved(found[:, 0], device), moved(found[:, 1], device),
                                     moved(found[:, 2] - 1, device)])        # [n, d]
        logits_of = partial(torch.matmul, other=we.matrix[:n_words].T)
    else:
        h = model.transformer(moved(x[:, :, :int(at.max()) + 1].flatten(0, 1), device)).unflatten(0, at.shape)
        h = h[moved(found[:, 0], device), moved(found[:, 1], device), moved(found[:, 2] - 1, device)]
        logits_of = model.lm_head.decoder
    ids = moved(x[..., 0][wanted].long(), device)
    parts = [-F.cross_entropy(at_least_float32(logits_of(some)[:, :n_words]), of_some, reduction="none")
             for some, of_some in zip(h.split(TOKENS_AT_ONCE), ids.split(TOKENS_AT_ONCE), strict=True)]
    values = torch.cat(parts).cpu() if parts else torch.zeros(0)
    return values.new_zeros(wanted.shape).masked_scatter(wanted, values)


def lm_loss(model: nn.Module, x: torch.Tensor, recompute: bool = False) -> torch.Tensor:
    """As LMModel.loss: mean cross entropy over positions 1 .. t-1 of x int [b, t, 2], no padding; a scalar in nats.

    x may lie on the CPU, see losses; so for recompute.
    """
    if not knows(model) or x.size(1) < 2 or not len(x):
        x, = moved_to(model, x)
        if isinstance(model, LMModel):
            return model.loss(x)
        logits = model(x)                                                    # of a wrapper
        return word_loss(logits, x, logits.size(-1)) / max(x[:, 1:, 0].numel(), 1)
    h, we = hidden_states(model.transformer, x, recompute=recompute)
    h = h[:, :-1].flatten(0, 1)                                              # [b, t, d] -> [b(t-1), d]
    targets = moved(x[:, 1:, 0].flatten().long(), h.device)                  # [b(t-1)]
    scale = torch.full(targets.shape, 1 / len(targets), dtype=torch.float32, device=h.device)
    return linear_cross_entropy(h, we.matrix, targets, scale, keep=we.keep, p=we.p)


@torch.no_grad()
def lm_word_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As loss.word_loss(model(x), ...) of an LMModel in evaluation mode: the sum over tokens 1 .. t-1 of x
    int [b, t, 2] of the cross entropy among the words alone, in nats; a scalar. x may lie on the CPU, see losses."""
    n_words = model.transformer.n_vocab - model.transformer.n_ctx
    if not knows(model) or not x.numel():
        x, = moved_to(model, x)
        logits = model.lm_head(model.transformer(x)) if model.return_probs else model(x)
        return word_loss(logits, x, n_words)
    h, we = hidden_states(model.transformer, x)
    h = h[:, :-1].flatten(0, 1)                                              # [b, t, d] -> [b(t-1), d]
    return linear_cross_entropy(h, we.matrix[:n_words], moved(x[:, 1:, 0].flatten().long(), h.device),
                                torch.ones(len(h), dtype=torch.float32, device=h.device),
                                keep=None if we.keep is None else we.keep[:n_words], p=we.p)
