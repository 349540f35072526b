"""Small GPTs and batches of odd sizes for the tests."""

import numpy as np
import torch
from gpt_golden import no_dropout

from model_pytorch import DoubleHeadModel, LMModel

N_VOCAB, N_CTX = 97, 23
HEADS = ["multiple_choice", "similarity", "inference", ("classification", 7), ("similarity", 4)]
N_LOGITS = {"multiple_choice": 2, "similarity": 1, "inference": 3, ("classification", 7): 7, ("similarity", 4): 4}


def story_batch(seed, examples=5, choices=2, n_vocab=N_VOCAB, n_ctx=N_CTX):
    """Examples whose choices share a beginning of random length; some sequences fill n_ctx.

    Returns:
        x int [examples, choices, n_ctx, 2]; m [examples, choices, n_ctx]; y [examples], the right choice.
    """
    g = np.random.default_rng(seed)
    x = np.zeros((examples, choices, n_ctx, 2), np.int64)
    m = np.zeros((examples, choices, n_ctx), np.float32)
    x[..., 1] = n_vocab + 3 + np.arange(n_ctx)
    for i in range(examples):
        story = g.integers(1, n_vocab, g.integers(1, n_ctx - 9))
        for j in range(choices):
            rest = g.integers(1, n_vocab, n_ctx - 3 - len(story) if i == j == 0 else g.integers(1, 6))
            tokens = [n_vocab, *story, n_vocab + 1, *rest, n_vocab + 2]
            x[i, j, :len(tokens), 0] = tokens
            m[i, j, :len(tokens)] = 1
    return torch.from_numpy(x), torch.from_numpy(m), torch.from_numpy(g.integers(0, choices, examples))


def batch_for(kind, seed=1):
    """x, m, y for a head of HEADS."""
    if kind in ("multiple_choice", "similarity"):
        return story_batch(seed)
    pairs = kind[0] == "similarity"
    x, m, _ = story_batch(seed, choices=2 if pairs else 1)
    y = torch.randint(N_LOGITS[kind], (len(x),), generator=torch.Generator().manual_seed(seed))
    return (x, m, y) if pairs else (x[:, 0], m[:, 0], y)


def small_model(seed=0, n_vocab=N_VOCAB, n_ctx=N_CTX, head="multiple_choice", **settings):
    """A DoubleHeadModel of 2 layers and 3 heads, without dropout unless asked for."""
    torch.manual_seed(seed)
    cfg = no_dropout(**(dict(n_embd=36, n_head=3, n_layer=2) | settings))
    return DoubleHeadModel(cfg, n_vocab + 2, head, vocab=n_vocab + 3 + n_ctx, n_ctx=n_ctx)


def small_lm(seed=0, n_vocab=N_VOCAB, n_ctx=N_CTX, **settings):
    """An LMModel of the same sizes."""
    torch.manual_seed(seed)
    cfg = no_dropout(**(dict(n_embd=36, n_head=3, n_layer=2) | settings))
    return LMModel(cfg, vocab=n_vocab + n_ctx, n_ctx=n_ctx)


def lm_batch(seed=0, b=3, t=17, n_vocab=N_VOCAB):
    """x int [b, t, 2] without padding."""
    ids = torch.randint(n_vocab, (b, t), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids, n_vocab + torch.arange(t).expand(b, t)], -1)


def enlarge(model, factor=8):
    """Weights large enough that every input matters."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p *= factor
    return model


ALL_DROPOUTS = dict(embd_pdrop=0.3, attn_pdrop=0.3, resid_pdrop=0.3, clf_pdrop=0.3)
