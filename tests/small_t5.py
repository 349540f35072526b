"""Small T5s of odd sizes, and the goldens' sizes, for the tests."""

import torch

from t5_pytorch import T5

VERSIONS = {"t5_v1_0": {}, "t5_v1_1": dict(feed_forward="gated-gelu", tie_logits=False)}
GOLDEN_SIZE = dict(dim=32, enc_num_tokens=96, enc_depth=2, enc_heads=4, enc_dim_head=8,
                   dec_num_tokens=96, dec_depth=2, dec_heads=4, dec_dim_head=8, d_ff=64)
ODD_SIZE = dict(dim=20, enc_num_tokens=53, enc_depth=2, enc_heads=3, enc_dim_head=7,
                dec_num_tokens=53, dec_depth=3, dec_heads=3, dec_dim_head=7, d_ff=29)


def odd_batch(seed=0, b=3, s=11, t=7, v=53):
    """Sources and targets of different lengths, no row full but the first."""
    g = torch.Generator().manual_seed(seed)
    src, tgt = (torch.randint(2, v, (b, n), generator=g) for n in (s, t))
    for row in range(1, b):
        src[row, s - 2 * row:] = 0
        tgt[row, t - row:] = 0
    return src, tgt


def small_model(seed=0, **changes):
    """A T5 of ODD_SIZE in evaluation mode."""
    torch.manual_seed(seed)
    return T5(**{**ODD_SIZE, **changes}).eval()


def close(a, b, limit):
    """Whether no entries differ by more than the limit."""
    return (a - b).abs().max().item() <= limit


def near(a, b, limit):
    """Whether entries differ by no more than a share of the largest one."""
    return close(a, b, limit * max(b.abs().max().item(), 1e-6))
