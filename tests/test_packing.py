"""Batches without their padding: what is packed, and that heads are laid out as on the grid."""

import pytest
import torch

from fast.packing import Packing


@pytest.mark.parametrize("lengths", [(3, 9, 1), (40, 40, 40), (33, 31, 40), (1, 1, 1)])
def test_packing_keeps_every_kept_position_once_in_order(lengths):
    keep = torch.arange(40) < torch.tensor(lengths)[:, None]
    packing = Packing(keep)
    x = torch.randn(3, 40, 5)
    packed = packing.pack(x)
    assert len(packed) % 32 == 0 or len(packed) == keep.numel()
    assert sum(lengths) <= len(packed) < sum(lengths) + 32
    assert torch.equal(packed[:sum(lengths)], x[keep])
    assert torch.equal(packing.unpack(packed)[keep], x[keep])
    assert torch.equal(packing.sequence[:sum(lengths)], keep.nonzero()[:, 0])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("lengths", [(3, 9, 1), (13, 13, 13), (13, 2, 7), (13, 0, 7), (0, 0, 0)])
def test_heads_of_packed_vectors_are_those_of_the_grid(parts, lengths):
    keep = torch.arange(13) < torch.tensor(lengths)[:, None]
    packing = Packing(keep)
    x = torch.randn(len(packing.index), parts * 5 * 7, requires_grad=True)
    computed = torch.zeros(3 * 13).index_fill_(0, packing.index, 1).view(3, 1, 13, 1)
    weigh = torch.randn(parts, 3, 5, 13, 7)          # also of what nobody may use: it has no gradient
    heads = packing.split_heads(x, parts, 5)
    plain = packing.unpack(x).view(3, 13, parts, 5, 7).permute(2, 0, 3, 1, 4)
    assert heads.shape == plain.shape and torch.equal(heads * computed, plain)
    assert heads.isfinite().all()                    # where nothing was computed, too
    for part, plain_part in zip(heads, plain, strict=True):
        assert torch.equal(packing.merge_heads(part), packing.pack(plain_part.transpose(1, 2).flatten(2)))
    got, want = (torch.autograd.grad((h * weigh).sum(), x)[0] for h in (heads, plain))
    assert torch.equal(got, want)

    if 0 in lengths:
        assert torch.equal(heads, plain)             # 0 where there is nothing else to attend to
    a = torch.randn(3, 5, 13, 7, requires_grad=True)
    weigh = torch.randn(len(packing.index), 35)
    got, want = (torch.autograd.grad((rows * weigh).sum(), a)[0] for rows in
                 (packing.merge_heads(a), packing.pack(a.transpose(1, 2).flatten(2))))
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_mask_of_zeros_and_ones_is_a_mask(dtype):
    keep = torch.arange(13) < torch.tensor([3, 9, 1])[:, None]
    assert torch.equal(Packing(keep.to(dtype)).index, Packing(keep).index)
