"""Lets a fast function and the plain text drop the same entries: the masks of one are written down for the other."""

import contextlib

import torch
import torch.nn as nn
import torch.nn.functional as F

import fast.attention
import fast.dropout
import fast.gpt
from fast import known


@contextlib.contextmanager
def gpt_masks_written_down(monkeypatch):
    """Yield a list that fills with the masks that fast.gpt draws, each as on the grid: packed ones are unpacked."""
    masks, packings, seeds = [], [], set()
    draw, pack = fast.dropout.draw_keep, fast.gpt.Packing

    def packing_of(*args, **kwargs):
        packings.append(pack(*args, **kwargs))
        return packings[-1]

    def drawn(shape, p, seed=None):
        keep = draw(shape, p, seed)
        if seed is not None and seed in seeds:  # drawn again in the backward pass
            return keep
        seeds.add(seed)
        packed = packings and len(shape) == 2 and shape[0] == len(packings[-1].index)
        masks.append(packings[-1].unpack(keep) if packed else keep)
        return keep

    def forward(self, x):  # of the classifier
        if not self.training or self.p == 0:
            return x
        masks.append(draw(x.shape, self.p))
        return x * masks[-1] / (1 - self.p)

    with monkeypatch.context() as patch:
        patch.setattr(fast.gpt, "Packing", packing_of)
        for module in (fast.attention, fast.dropout):
            patch.setattr(module, "draw_keep", drawn)
        patch.setattr(nn.Dropout, "forward", forward)
        patch.setitem(known.METHODS[nn.Dropout], "forward", forward)  # or the plain text would run on both sides
        yield masks


@contextlib.contextmanager
def gpt_masks_read(monkeypatch, masks):
    """Within, every nn.Dropout that drops takes the next of these masks; positions that lack in it are kept."""
    rest = iter(masks)

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        mask = next(rest)
        assert mask.dim() == x.dim(), (mask.shape, x.shape)
        for dim, (have, want) in enumerate(zip(mask.shape, x.shape, strict=True)):
            mask = F.pad(mask, [0, 0] * (x.dim() - 1 - dim) + [0, want - have], value=1)
        return x * mask / (1 - self.p)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", forward)
        yield
    assert next(rest, None) is None  # as many were drawn


@contextlib.contextmanager
def t5_noise_written_down(monkeypatch):
    """Yield a list that fills with what F.dropout returns for tensors of ones."""
    noises, drop = [], F.dropout

    def dropped(x, p, training=True):
        noises.append(drop(x, p, training))
        return noises[-1]

    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", dropped)
        yield noises


@contextlib.contextmanager
def t5_noise_read(monkeypatch, noises):
    """Within, F.dropout returns these in turn; the dimension of size 1 may stand elsewhere."""
    rest = iter(noises)

    def dropped(x, p, training=True):
        noise = next(rest)
        assert noise.squeeze().shape == x.squeeze().shape and torch.all(x == 1)
        return noise.reshape(x.shape).to(x.dtype)

    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", dropped)
        yield
    assert next(rest, None) is None
