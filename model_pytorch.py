"""GPT-1 as the paper writes it, with the variable names of OpenAI's TensorFlow code.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; the code is
finetune-transformer-lm. Top to bottom: primitives, attention, MLP, block, model, heads, the two
models people use (LMModel, DoubleHeadModel). formats/gpt_weights.py reads and writes the released
weights. The losses stand in loss.py. fast/gpt.py runs these very modules faster.

Inputs are pairs (token id, position id); both index ONE matrix `we`, whose rows are the tokens,
then `_start_`, `_delimiter_`, `_classify_`, then the positions.

Letters in the shape comments:
    b sequences   c choices of an example   t positions   v rows of `we`
    d n_embd      h heads   k size of a head (d / h)
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from formats.errors import BadInput, warn_once
from formats.gpt_weights import (  # noqa: F401 (offered from here too)
    export_hub_model,
    export_openai_model,
    load_openai_pretrained_model,
    load_released,
    read_with_settings,
    tf_name,
)
from formats.hub import local_folder
from formats.initial_values import filled
from formats.tensor_files import is_true, strip_wrappers

__all__ = ["ACT_FNS", "DEFAULT_CONFIG", "Attention", "Block", "ClfHead", "Conv1D", "DoubleHeadModel", "LMHead",
           "LMModel", "LayerNorm", "MLP", "MultipleChoiceHead", "SimilarityHead", "TASK_HEADS", "TransformerModel",
           "dotdict", "export_hub_model", "export_openai_model", "gelu", "load_openai_pretrained_model",
           "make_task_head", "swish", "tf_name"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Gaussian error linear unit, tanh approximation with 0.044715 (TF function `gelu`)."""
    return F.gelu(x, approximate="tanh")


def swish(x: torch.Tensor) -> torch.Tensor:
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

    def __or__(self, other):
        return dotdict({**self, **other})

    def copy(self) -> "dotdict":
        """Return a dotdict of the same settings."""
        return dotdict(self)

    def __reduce__(self):
        return dotdict, (dict(self),)


class _Default(dotdict):
    """Settings that nobody changes for all others by accident; what is made of them can be changed."""

    def _refuse(self, *args, **kwargs):
        raise BadInput("DEFAULT_CONFIG is shared by all models; change a copy of it: DEFAULT_CONFIG | "
                       "{'n_layer': 6}, or DEFAULT_CONFIG.copy()")

    __setitem__ = __setattr__ = __delitem__ = __delattr__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse


DEFAULT_CONFIG = _Default(n_embd=768, n_head=12, n_layer=12, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1,
                          clf_pdrop=0.1, afn="gelu")


class LayerNorm(nn.Module):
    """Layer normalisation with gain g and bias b, epsilon inside the root (TF function `norm`)."""

    def __init__(self, n_state: int, e: float = 1e-5):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n_state))
        self.b = nn.Parameter(torch.zeros(n_state))
        self.e = e

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        return F.layer_norm(x, self.g.shape, self.g, self.b, self.e)

    def extra_repr(self) -> str:
        """Width and epsilon."""
        return f"{len(self.g)}, e={self.e:g}"


class Conv1D(nn.Module):
    """x @ w + b with w of shape [nx, nf] (TF function `conv1d`; only width rf = 1 is ever used)."""

    def __init__(self, nf: int, rf: int, nx: int):
        super().__init__()
        if rf != 1:
            raise ValueError(f"rf is {rf}, only 1 exists")
        self.w = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.b = nn.Parameter(torch.zeros(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., nx] -> [..., nf]."""
        return x @ self.w + self.b                                      # [..., nx] x [nx, nf] -> [..., nf]

    def extra_repr(self) -> str:
        """The sizes, as the arguments are called."""
        return "nx={}, nf={}".format(*self.w.shape)


class Attention(nn.Module):
    """Causal multi-head self-attention; c_attn packs query, key, value (TF function `attn`).

    attn_dropout is given the attention weights, so a hook on it sees them.
    """

    def __init__(self, nx: int, n_ctx: int, cfg: dotdict, scale: bool = True):
        super().__init__()
        if nx % cfg.n_head:
            raise BadInput(f"n_embd is {nx}, which n_head {cfg.n_head} does not divide; change one of them")
        self.n_head, self.scale = cfg.n_head, scale
        self.c_attn = Conv1D(nx * 3, 1, nx)
        self.c_proj = Conv1D(nx, 1, nx)
        self.attn_dropout = nn.Dropout(cfg.attn_pdrop)
        self.resid_dropout = nn.Dropout(cfg.resid_pdrop)
        self.register_load_state_dict_pre_hook(_drop_2018_mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, t, d] -> [b, t, d]."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # -> 3 x [b, h, t, k]
        w = q @ k.transpose(2, 3)                                       # [b, h, t, k] x [b, h, k, t] -> [b, h, t, t]
        if self.scale:
            w = w / math.sqrt(k.size(3))
        future = torch.ones(w.shape[2:], dtype=torch.bool, device=w.device).triu(1)
        w = w.masked_fill(future, -math.inf).softmax(-1)                # -1e9 in the original: exactly 0 either way
        a = self.attn_dropout(w) @ v                                    # [b, h, t, t] x [b, h, t, k] -> [b, h, t, k]
        a = a.transpose(1, 2).flatten(2)                                # -> [b, t, h, k] -> [b, t, d]
        return self.resid_dropout(self.c_proj(a))

    def extra_repr(self) -> str:
        """The number of heads."""
        return f"n_head={self.n_head}" + ("" if self.scale else ", scale=False")


def _drop_2018_mask(module, state_dict, prefix, *args):
    """Forget the causal mask that the 2018 port keeps among the weights as `attn.b`."""
    state_dict.pop(prefix + "b", None)


class MLP(nn.Module):
    """Two layers with an activation between (TF function `mlp`); n_state is the inner width."""

    def __init__(self, n_state: int, cfg: dotdict):
        super().__init__()
        if cfg.afn not in ACT_FNS:
            raise BadInput(f"afn is {cfg.afn!r}, allowed are {', '.join(ACT_FNS)}")
        self.c_fc = Conv1D(n_state, 1, cfg.n_embd)
        self.c_proj = Conv1D(cfg.n_embd, 1, n_state)
        self.act = ACT_FNS[cfg.afn]
        self.dropout = nn.Dropout(cfg.resid_pdrop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))

    @property
    def afn(self) -> str | None:
        """The activation's name in ACT_FNS; None where it is another."""
        return next((name for name, function in ACT_FNS.items() if function is self.act), None)

    def extra_repr(self) -> str:
        """The activation."""
        return f"act={getattr(self.act, '__name__', self.act)}"


class Block(nn.Module):
    """Attention and MLP, each added to its input and then normalised (TF function `block`)."""

    def __init__(self, n_ctx: int, cfg: dotdict, scale: bool = True):
        super().__init__()
        self.attn = Attention(cfg.n_embd, n_ctx, cfg, scale)
        self.ln_1 = LayerNorm(cfg.n_embd)
        self.mlp = MLP(4 * cfg.n_embd, cfg)
        self.ln_2 = LayerNorm(cfg.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, t, d] -> [b, t, d]."""
        n = self.ln_1(x + self.attn(x))
        return self.ln_2(n + self.mlp(n))


class TransformerModel(nn.Module):
    """Embedding and blocks (TF function `model`, up to the final hidden states).

    Args:
        cfg: n_embd, n_head, n_layer, embd_pdrop, attn_pdrop, resid_pdrop, afn as attributes.
        vocab: rows of `we`: tokens + special tokens + positions.
        n_ctx: how many of these rows, the last ones, are positions.
    """

    def __init__(self, cfg: dotdict, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        self.n_vocab = vocab
        self.n_ctx = n_ctx
        self.embed = nn.Embedding(vocab, cfg.n_embd)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.embd_dropout = nn.Dropout(cfg.embd_pdrop)
        self.h = nn.ModuleList([Block(n_ctx, cfg, scale=True) for _ in range(cfg.n_layer)])
        self.register_load_state_dict_pre_hook(strip_wrappers)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Return the final hidden states.

        Args:
            x: int [..., t, 2], token ids and position ids; leading axes are flattened to b.
            keep: what draw_keep returned, where the softmax needs it too; drawn here by default.
        Returns:
            [b, t, d].
        Raises:
            BadInput: see require_ids.
        """
        self.require_ids(x)
        x = x.flatten(0, -3) if x.dim() > 2 else x[None]                # [..., t, 2] -> [b, t, 2]
        keep = self.draw_keep() if keep is None else keep
        e = self.embed(x)                                               # [b, t, 2, d]
        if keep is not None:
            e = e * F.embedding(x, keep)
        h = e.sum(2)                                                    # [b, t, 2, d] -> [b, t, d]
        for block in self.h:
            h = block(h)
        return h

    def extra_repr(self) -> str:
        """The rows of `we` and how many of them are positions."""
        return f"vocab={self.n_vocab}, n_ctx={self.n_ctx}"

    def draw_keep(self) -> torch.Tensor | None:
        """Draw what the embedding's dropout multiplies `we` by.

        The original drops entries of the matrix itself, once a forward, looks up tokens and positions in
        what is left, and uses that as the softmax weights too (see LMHead).

        Returns:
            [v, d], each entry 0 or 1 / (1 - p); None where nothing is dropped.
        """
        if not drops(self.embd_dropout):
            return None
        we = getattr(self.embed, "weight", None)
        if we is None:
            raise BadInput(f"embed is a {type(self.embed).__name__} without a weight, whose entries embd_dropout could "
                           "drop; set embd_dropout.p = 0")
        return self.embd_dropout(torch.ones(we.shape, dtype=we.dtype, device=we.device))

    def require_ids(self, x: torch.Tensor) -> None:
        """Refuse an x that is no tensor of (token id, position id).

        Raises:
            BadInput: another shape or type, token ids that are no rows of `we`, or position ids that are not among
                its last n_ctx rows.
        """
        first = self.n_vocab - self.n_ctx
        if not hasattr(x, "dim"):
            raise BadInput(f"x is {type(x).__name__}, expected a tensor: torch.as_tensor makes one of an array")
        if x.dim() < 2 or x.size(-1) != 2 or x.dtype not in (torch.int32, torch.int64):
            raise BadInput(f"x is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}, expected int "
                           f"[..., length, 2]: token ids and position ids, which start at {first} here")
        tokens, positions = x.unbind(-1)
        if is_true(((tokens < 0) | (positions < first) | (x >= self.n_vocab).any(-1)).any()):
            if positions.min() < first or positions.max() >= self.n_vocab:
                raise BadInput(f"x has position ids from {int(positions.min())} to {int(positions.max())}, expected "
                               f"int [..., length, 2] with {first} to {self.n_vocab - 1} in x[..., 1]: the last "
                               f"{self.n_ctx} of the {self.n_vocab} rows of we")
            raise BadInput(f"x has token ids from {int(tokens.min())} to {int(tokens.max())}, expected 0 to "
                           f"{self.n_vocab - 1} in x[..., 0]; a label of -100 is no token: the mask m says what is not "
                           "learned from")


def drops(dropout: nn.Module) -> bool:
    """Whether a dropout may change its input: each asks its own mode and rate. What is not nn.Dropout may."""
    return not isinstance(dropout, nn.Dropout) or (dropout.training and dropout.p > 0)


def _drop_2018_position_mask(module, state_dict, prefix, *args):
    """Forget the mask of the position rows that the 2018 port keeps among an LMModel's weights."""
    state_dict.pop(prefix + "pos_emb_mask", None)


class TiedDecoder(nn.Linear):
    """h @ we.T: a linear layer that shares the embedding's matrix, and what dropout left of it."""

    def forward(self, h: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """[..., d] -> [..., v]. keep: see TransformerModel.draw_keep."""
        return F.linear(h, self.weight if keep is None else self.weight * keep)   # [..., d] x [d, v] -> [..., v]


class LMHead(nn.Module):
    """Logits over all rows of `we`, tied to it, without bias.

    Args:
        model: the TransformerModel whose embedding it shares.
        trunc_and_reshape: leave out the last position, which predicts nothing, and flatten.
    """

    def __init__(self, model: nn.Module, cfg: dotdict, trunc_and_reshape: bool = True):
        super().__init__()
        v, d = model.embed.weight.shape
        self.decoder = TiedDecoder(d, v, bias=False, device="meta")
        self.decoder.weight = model.embed.weight
        self.trunc_and_reshape = trunc_and_reshape

    def forward(self, h: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """h [b, t, d] -> [b * (t - 1), v], or [b, t, v] without trunc_and_reshape.

        keep: see TransformerModel.draw_keep. A decoder that replaced ours gets h alone: the matrix that
        is dropped is not its own.
        """
        if self.trunc_and_reshape:
            h = h[:, :-1].reshape(-1, h.size(-1))                       # [b, t, d] -> [b(t-1), d]
        if isinstance(self.decoder, TiedDecoder):
            return self.decoder(h, keep)
        if keep is not None and any(isinstance(part, TiedDecoder) for part in self.decoder.modules()):
            _warn_of_wrapped("lm_head.decoder", self.decoder)
        return self.decoder(h)


class _ClassifyHead(nn.Module):
    """What the heads share: the hidden state at the classify token, dropout, a linear layer.

    Weights start at N(0, 0.02) and biases at 0 (TF function `clf`). Each head says which x it takes: the numbers of
    axes, the number of sequences of an example (None: any), and both in words.
    """

    dims, n_sequences, takes = (4,), None, "int [b, c, t, 2]"
    is_in_hub_files = False  # whether transformers has the same head

    def __init__(self, clf_token: int, cfg: dotdict, n_out):
        super().__init__()
        self.clf_token = clf_token
        self.dropout = nn.Dropout(cfg.clf_pdrop)
        self.linear = nn.Linear(cfg.n_embd, n_out)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def position(self, x: torch.Tensor) -> torch.Tensor:
        """int [..., t, 2] -> int64 [...]: where each sequence has its FIRST classify token; 0 if nowhere.

        Raises:
            BadInput: x has not as many sequences an example as the head takes.
        """
        if x.dim() not in self.dims or x.dim() == 4 and self.n_sequences not in (None, x.size(1)):
            raise BadInput(f"x is {list(x.shape)}, but a {type(self).__name__} takes {self.takes}")
        return (x[..., 0] == self.clf_token).int().argmax(-1)

    def pooled(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """h [b, t, d], x [..., t, 2] -> [..., d], the hidden state at each sequence's position."""
        at = self.position(x).flatten()                                 # [b]
        return h[torch.arange(len(at), device=h.device), at].unflatten(0, x.shape[:-2])

    def forward(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """h [b, t, d], x [..., t, 2] with b sequences -> logits, see classify."""
        return self.classify(self.pooled(h, x))

    def extra_repr(self) -> str:
        """The id of the token that it looks for."""
        return f"clf_token={self.clf_token}"


class MultipleChoiceHead(_ClassifyHead):
    """One logit per choice; the choices of an example share one dropout mask."""

    takes, is_in_hub_files = "int [b, c, t, 2], the c choices of each example", True

    def __init__(self, clf_token: int, cfg: dotdict):
        super().__init__(clf_token, cfg, 1)

    def classify(self, h: torch.Tensor) -> torch.Tensor:
        """Hidden states at the classify tokens [b, c, d] -> logits [b, c]."""
        mask = self.dropout(torch.ones_like(h[:, :1]))                  # [b, 1, d]
        return self.linear(h * mask).squeeze(-1)                        # [b, c, d] x [d, 1] -> [b, c]


def require_choices(head: nn.Module, x: torch.Tensor) -> None:
    """Refuse x [b, 1, t, 2] for a multiple choice: a single choice is always the chosen one.

    Raises:
        BadInput: it is so.
    """
    if isinstance(head, MultipleChoiceHead) and x.dim() == 4 and x.size(1) == 1:
        raise BadInput(f"x is {list(x.shape)}: a single choice for each example, so that nothing is chosen; expected "
                       "int [b, c, t, 2] with two choices or more (model(x)[1] is the logit of each by itself)")


class ClfHead(_ClassifyHead):
    """n_class logits for each sequence (paper section 3.3: classification, entailment)."""

    dims, n_sequences, takes = (3, 4), 1, "int [b, t, 2] or [b, 1, t, 2], one sequence for each example"

    def __init__(self, clf_token: int, cfg: dotdict, n_class: int):
        super().__init__(clf_token, cfg, n_class)

    def classify(self, h: torch.Tensor) -> torch.Tensor:
        """Hidden states at the classify tokens [b, d] or [b, 1, d] -> logits [b, n_class]."""
        return self.linear(self.dropout(h.flatten(1)))                  # [b, d] x [d, n_class]


class SimilarityHead(_ClassifyHead):
    """Two texts in both orders, whose states are added before the linear layer (paper section 3.3).

    Dropout of the sum is ours: the paper names no mask here.
    """

    n_sequences, takes = 2, "int [b, 2, t, 2], the two texts of each example in both orders"

    def __init__(self, clf_token: int, cfg: dotdict, n_class: int = 1):
        super().__init__(clf_token, cfg, n_class)

    def classify(self, h: torch.Tensor) -> torch.Tensor:
        """Hidden states at the classify tokens [b, 2, d] -> logits [b, n_class]."""
        return self.linear(self.dropout(h.sum(1)))                      # [b, 2, d] -> [b, d] x [d, n_class]


TASK_HEADS = {
    "multiple_choice": MultipleChoiceHead,
    "similarity": SimilarityHead,
    "inference": lambda clf_token, cfg: ClfHead(clf_token, cfg, 3),
}


# name of a head with a number of classes -> its class, and the fewest classes
SIZED_HEADS = {"classification": (ClfHead, 2), "similarity": (SimilarityHead, 1)}


def make_task_head(task_head_type: str | tuple, clf_token: int, cfg: dotdict) -> nn.Module:
    """Return the head for a name in TASK_HEADS, or for (name in SIZED_HEADS, number of classes).

    'inference' has 3 classes; entailment of n classes is ('classification', n). 'similarity' has one logit, for yes;
    ('similarity', n) has n, of classes or of whole scores.

    Raises:
        BadInput: there is no such head.
    """
    if isinstance(task_head_type, str) and task_head_type in TASK_HEADS:
        return TASK_HEADS[task_head_type](clf_token, cfg)
    if isinstance(task_head_type, (tuple, list)) and len(task_head_type) == 2:
        name, n_class = task_head_type
        head, fewest = SIZED_HEADS.get(name, (None, 1)) if isinstance(name, str) else (None, 1)
        if head is not None and isinstance(n_class, int) and not isinstance(n_class, bool) and n_class >= fewest:
            return head(clf_token, cfg, n_class)
    raise BadInput(f"task_head_type is {task_head_type!r}, allowed are {', '.join(map(repr, TASK_HEADS))}, "
                   + " and ".join(f"({name!r}, n_class from {fewest} on)"
                                  for name, (_, fewest) in SIZED_HEADS.items()))


def hidden_states_and_keep(transformer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Call a TransformerModel; return [b, t, d], and what its embedding was multiplied by (see draw_keep), or None.

    A module that took its place is given x alone. It draws for itself, and the softmax takes the whole matrix; where
    that is a wrapped TransformerModel that drops, a line says so.
    """
    keep = transformer.draw_keep() if isinstance(transformer, TransformerModel) else None
    if keep is None and any(isinstance(part, TransformerModel) and drops(part.embd_dropout)
                            for part in transformer.modules()):
        _warn_of_wrapped("transformer", transformer)
    return (transformer(x) if keep is None else transformer(x, keep)), keep


def _warn_of_wrapped(name, module):
    """Say that a wrapper keeps the embedding's dropout from the softmax."""
    if not torch.compiler.is_compiling():
        warn_once(f"{name} is a {type(module).__name__}: the softmax takes the whole embedding, with the entries that "
                  "embd_dropout drops in the look-up, unlike the original; wrap the blocks or the whole model, or set "
                  "embd_dropout.p = 0")


class _TiedModel(nn.Module):
    """A model whose lm_head has the embedding's matrix, and keeps it where torch would make two of one."""

    def _apply(self, fn, recurse=True):
        return self._still_tied(lambda: super(_TiedModel, self)._apply(fn, recurse))

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """As nn.Module's, with assign too."""
        return self._still_tied(lambda: super(_TiedModel, self).load_state_dict(state_dict, strict, assign))

    def _still_tied(self, change):
        head, embed = getattr(self.lm_head, "decoder", None), getattr(self.transformer, "embed", None)
        tied = head is not None and embed is not None and getattr(head, "weight", 0) is getattr(embed, "weight", None)
        result = change()
        if tied:
            head.weight = embed.weight
        return result


class LMModel(_TiedModel):
    """The transformer with a language-model head.

    forward(x), x int [b, t, 2], returns logits [b, t, v]; with return_probs, probabilities in
    which the position rows, which are no words, have probability 0.
    """

    def __init__(self, cfg: dotdict, vocab: int = 40990, n_ctx: int = 512, return_probs: bool = False):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg, trunc_and_reshape=False)
        self.return_probs = return_probs
        self.register_load_state_dict_pre_hook(strip_wrappers)
        self.register_load_state_dict_pre_hook(_drop_2018_position_mask)

    @classmethod
    def from_pretrained(cls, name: str, revision: str | None = None, return_probs: bool = False,
                        dtype: torch.dtype | None = None) -> "LMModel":
        """Return a model with the weights and sizes of a folder or of a repository on the Hub, in evaluation mode.

        Its encoder: text_utils.TextEncoder.from_folder. There are no special rows; the positions are all there.

        Args:
            name: a folder in OpenAI's format or the Hub's, or `owner/name` of a repository; see read_pretrained.
            revision: branch, tag or commit of the repository.
            return_probs: see above.
            dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
        Raises:
            MissingInput, BadInput: see read_pretrained; or the folder does not say how many heads there are.
        """
        path = local_folder(name, revision)
        released, settings = read_with_settings(path)
        cfg, rows = DEFAULT_CONFIG | settings, released.n_vocab + released.n_ctx
        return filled(lambda: cls(cfg, rows, released.n_ctx, return_probs),
                      lambda model: load_released(model, released, path), dtype).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x int [b, t, 2] -> logits or probabilities [b, t, v]."""
        logits = self.lm_head(*hidden_states_and_keep(self.transformer, x))
        if self.return_probs:
            rows = torch.arange(logits.size(-1), device=logits.device)
            is_position = rows >= self.transformer.n_vocab - self.transformer.n_ctx
            return logits.masked_fill(is_position, -math.inf).softmax(-1)
        return logits

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """The paper's L1 as a mean: cross entropy of positions 1 .. t-1 of x int [b, t, 2] without padding, in nats.

        A text of one token predicts nothing: 0. The softmax is over all rows of `we`, as in fine-tuning.
        fast.gpt.lm_loss gives the same number faster.
        """
        logits = self.lm_head(*hidden_states_and_keep(self.transformer, x)) if self.return_probs else self(x)
        logits = logits[:, :-1]                                                             # [b, t - 1, v]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits.flatten(0, 1), x[:, 1:, 0].flatten().long(), reduction="sum")
        return total / max(x[:, 1:, 0].numel(), 1)


class DoubleHeadModel(_TiedModel):
    """The transformer with a language-model head and a task head, as fine-tuned in the paper.

    loss.double_head_loss makes the training loss of what forward returns; fast.gpt.losses and
    fast.gpt.task_logits give the same numbers faster.

    Args:
        cfg: see TransformerModel, and clf_pdrop.
        clf_token: id of `_classify_`.
        task_head_type: see make_task_head.
        vocab, n_ctx: see TransformerModel.
    """

    def __init__(self, cfg: dotdict, clf_token: int, task_head_type: str | tuple, vocab: int = 40990, n_ctx: int = 512):
        super().__init__()
        self.transformer = TransformerModel(cfg, vocab, n_ctx)
        self.lm_head = LMHead(self.transformer, cfg)
        self.task_head = make_task_head(task_head_type, clf_token, cfg)
        self.register_load_state_dict_pre_hook(strip_wrappers)

    @classmethod
    def from_pretrained(cls, name: str, task_head_type: str | tuple = "multiple_choice", clf_token: int | None = None,
                        n_special: int = 3, revision: str | None = None,
                        dtype: torch.dtype | None = None) -> "DoubleHeadModel":
        """Return a model with the weights and sizes of a folder or of a repository on the Hub, in evaluation mode.

        A multiple-choice head that transformers saved (OpenAIGPTDoubleHeadsModel) is loaded into ours. Otherwise the
        head is fresh, as in the original, which loads none.

        Args:
            name, revision, dtype: see LMModel.from_pretrained.
            task_head_type: see make_task_head.
            clf_token: id of `_classify_`; None: the last of the special tokens.
            n_special: fresh rows for special tokens, right after the tokens; 0 where these hold the special ones.
        Raises:
            MissingInput, BadInput: see LMModel.from_pretrained; or there is no clf_token.
        """
        path = local_folder(name, revision)
        released, settings = read_with_settings(path)
        cfg, tokens = DEFAULT_CONFIG | settings, released.n_vocab + n_special
        if clf_token is None and n_special < 1 or clf_token is not None and not 0 <= clf_token < tokens:
            raise BadInput(f"clf_token is {clf_token}, expected an id from 0 to {tokens - 1} (with n_special "
                           f"{n_special}, the tokens in {path} are {released.n_vocab})")
        clf_token, rows = tokens - 1 if clf_token is None else clf_token, tokens + released.n_ctx
        return filled(lambda: cls(cfg, clf_token, task_head_type, rows, released.n_ctx),
                      lambda model: load_released(model, released, path, n_special), dtype).eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x int [b, c, t, 2] (or [b, t, 2]) -> lm_logits [b * c * (t - 1), v], task logits."""
        h, keep = hidden_states_and_keep(self.transformer, x)
        return self.lm_head(h, keep), self.task_head(h, x)

    def task_logits(self, x: torch.Tensor) -> torch.Tensor:
        """As the second of forward, without the language model's logits, which take nearly all of its time.

        Raises:
            BadInput: a multiple choice has a single choice, so that its logits choose nothing.
        """
        require_choices(self.task_head, x)
        return self.task_head(hidden_states_and_keep(self.transformer, x)[0], x)
