"""t5_decoding against Mesh TensorFlow's output, and cached against uncached decoding."""

import math

import numpy as np
import pytest
import torch
from small_t5 import GOLDEN_SIZE, VERSIONS, near, small_model

import t5_decoding
from fast import t5 as fast_t5
from formats.errors import BadInput
from t5_decoding import beam_search, generate, sample
from t5_pytorch import EOS, START, T5, load_t5_pretrained_model


def odd_model(version, **changes):
    return small_model(dec_depth=2, **VERSIONS[version], **changes).train()


def odd_sources():
    src = torch.randint(2, 53, (3, 11), generator=torch.Generator().manual_seed(1))
    src[1, 8:] = src[2, 5:] = 0
    return src


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.mark.parametrize("decoding", [t5_decoding, fast_t5])
def test_greedy_and_beam_search_are_the_originals(golden, version, decoding):
    model = T5(**GOLDEN_SIZE, **VERSIONS[version])
    load_t5_pretrained_model(model, str(golden / "t5" / version / "checkpoint"))
    with np.load(golden / "t5" / version / "golden.npz") as file:
        src = torch.from_numpy(file["inputs"]).long()
        greedy, beam4 = (torch.from_numpy(file[f"decode_{kind}"]).long() for kind in ("greedy", "beam4"))
    ended = (greedy == EOS).cumsum(1) - (greedy == EOS).long() > 0  # the original goes on after a row's EOS
    assert torch.equal(decoding.generate(model, src, src != 0, max_length=24), greedy.masked_fill(ended, 0))
    ids = decoding.beam_search(model, src, src != 0, max_length=24, beams=4, alpha=0.6)
    assert torch.equal(torch.nn.functional.pad(ids, (0, 24 - ids.shape[1])), beam4)


def test_cached_logits_are_the_uncached(version):
    model, src = odd_model(version).eval(), odd_sources()
    tgt = torch.randint(2, 53, (3, 150), generator=torch.Generator().manual_seed(2))  # past the last bucket
    tgt[:, 0] = START
    with torch.no_grad():
        whole = model(src, tgt, src != 0)
        decoder = fast_t5.Decoder(model, src, src != 0, length=150)
        steps = torch.cat([decoder.step(tgt[:, i:i + 1]) for i in range(150)], 1)
    assert near(steps, whole, 1e-5)


def test_cached_logits_are_the_uncached_while_beams_change_places(version):
    model, src = odd_model(version).eval(), odd_sources()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        cached, uncached = (kind(model, src, src != 0, 12, 4) for kind in (fast_t5.Decoder, t5_decoding.Decoder))
        parents = None
        for _ in range(12):
            tokens = torch.randint(2, 53, (3, 4), generator=g)
            assert near(cached.step(tokens, parents), uncached.step(tokens, parents), 1e-5)
            parents = torch.randint(0, 4, (3, 4), generator=g)  # several may continue the same beam


def test_a_row_decodes_in_a_batch_as_alone(version):
    model, src = odd_model(version), odd_sources()
    for decode in (generate, beam_search, fast_t5.generate, fast_t5.beam_search):
        together = decode(model, src, src != 0, 9)
        for row, ids in zip(src, together, strict=True):
            alone = decode(model, row[None, row != 0], max_length=9)[0]
            length = min(len(alone), len(ids))
            stops_alone = decode in (generate, fast_t5.generate)  # a beam search's rows stop together
            assert torch.equal(alone[:length], ids[:length]) or not stops_alone
    assert torch.equal(generate(model, src, src != 0, 9), generate(model, src.masked_fill(src == 0, 7), src != 0, 9))


class Scripted:
    """Stands in for Decoder: the next token's log probabilities depend on the last token alone."""

    table = None  # [v, v]

    def __init__(self, model, src, mask, length, beams=1):
        pass

    def step(self, tokens, parents=None):
        return self.table[tokens]


def best_by_brute_force(table, length, alpha):
    """The best finished hypothesis of a chain, by trying all of at most `length` tokens."""
    v, best, hypotheses = len(table), (-math.inf, None), [((), 0.0)]
    for n in range(1, length + 1):
        longer = [(ids + (t,), p + table[ids[-1] if ids else START, t].item())
                  for ids, p in hypotheses for t in range(v)]
        best = max([best] + [(p / ((5 + n) / 6) ** alpha, ids) for ids, p in longer if ids[-1] == EOS])
        hypotheses = [(ids, p) for ids, p in longer if ids[-1] != EOS]
    return best[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_loses_nothing_finds_the_best_hypothesis(monkeypatch, seed, alpha):
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(1, 9, dtype=torch.int64)
    found = beam_search(torch.nn.Module(), src, max_length=5, beams=256, alpha=alpha)[0].tolist()
    expected = list(best_by_brute_force(table, 5, alpha))
    assert found == expected + [0] * (len(found) - len(expected))


def test_beam_search_stops_at_the_originals_limits(monkeypatch):
    table = torch.tensor([[1.0, -math.inf, 2, 1]] * 4).log_softmax(-1)  # never an EOS
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(2, 6, dtype=torch.int64)
    mask = torch.tensor([[True] * 2 + [False] * 4, [True] * 4 + [False] * 2])
    model = torch.nn.Module()
    assert beam_search(model, src, alpha=0.0).shape == (2, 6)                     # as long as the source
    assert beam_search(model, src, mask, max_length=99, alpha=0.0).shape == (2, 16)  # int(1.5 * 4 + 10)
    assert (beam_search(model, src, max_length=7, alpha=0.0) == 2).all()          # nothing finished: best alive
    table = torch.tensor([[1.0, 9, 2, 1]] * 4).log_softmax(-1)   # EOS at once
    monkeypatch.setattr(Scripted, "table", table)
    # One finished hypothesis is enough when the alive ones are hopeless: empty places do not count.
    assert beam_search(model, src, max_length=7).tolist() == [[EOS], [EOS]]


@pytest.mark.parametrize("first, second, expected", [
    ((0.368, 0.5), 0.493, [EOS]),     # log p -1.0 and -1.4, times (6/7)^2: the short one wins by a little
    ((0.368, 0.5), 0.53, [2, EOS]),   # log p -1.0 and -1.33: the long one does
    ((0.45, 0.4), 1.0, [2, EOS]),     # the alive one is behind (-0.92 against -0.8) but may still win, and does
])
@pytest.mark.parametrize("beams", [1, 3])
def test_length_penalty_counts_the_eos_and_alive_ones_are_waited_for(monkeypatch, beams, first, second, expected):
    p = torch.full((4, 4), 1e-9)
    p[START, EOS], p[START, 2], p[START, 3] = *first, 1 - sum(first)
    p[2, EOS], p[2, 3] = second, 1 - second + 1e-9
    p[3, 3] = 1.0
    monkeypatch.setattr(Scripted, "table", p.log())
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(1, 5, dtype=torch.int64)
    ids = beam_search(torch.nn.Module(), src, beams=beams, alpha=2.0)[0].tolist()
    assert ids == expected + [0] * (len(ids) - len(expected))


def test_generation_ends_when_every_row_has_ended(monkeypatch):
    table = torch.full((5, 5), -9.0)
    for token, following in ((START, 2), (2, 3), (3, EOS), (EOS, 4), (4, 4)):
        table[token, following] = 0.0
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(2, 8, dtype=torch.int64)
    assert generate(torch.nn.Module(), src).tolist() == [[2, 3, EOS]] * 2
    assert generate(torch.nn.Module(), src, max_length=2).tolist() == [[2, 3]] * 2
    table[EOS] = table[EOS].roll(1)
    table[START, 2] = table[START, 3] = 0.0  # rows may now differ; what follows an EOS is 0
    ids = generate(torch.nn.Module(), src.expand(2, 8).repeat(20, 1), temperature=1.0,
                   generator=torch.Generator().manual_seed(0))
    ended = (ids == EOS).cumsum(1) - (ids == EOS).long() > 0
    assert ended.any() and not ids[ended].any()


def test_sampling_follows_the_probabilities():
    p = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])
    logits = p.log().expand(20_000, 5)

    def shares(**options):
        g = torch.Generator().manual_seed(0)
        return torch.bincount(sample(logits, generator=g, **options), minlength=5) / 20_000

    def near(found, *expected):
        expected = torch.tensor(expected)
        return (found - expected / expected.sum()).abs().max() < 0.015 and not found[expected == 0].any()

    assert near(shares(), 0.05, 0.4, 0.1, 0.25, 0.2)
    assert near(shares(temperature=0.5), 0.05 ** 2, 0.4 ** 2, 0.1 ** 2, 0.25 ** 2, 0.2 ** 2)
    assert near(shares(top_k=2), 0, 0.4, 0, 0.25, 0)
    assert near(shares(top_k=99), 0.05, 0.4, 0.1, 0.25, 0.2)
    assert near(shares(top_p=0.66), 0, 0.4, 0, 0.25, 0.2)
    assert near(shares(top_p=0.64), 0, 0.4, 0, 0.25, 0)
    assert near(shares(top_p=1e-6), 0, 1, 0, 0, 0)
    assert near(shares(top_k=3, top_p=0.7), 0, 0.4, 0, 0.25, 0)  # of the three, renormalised
    assert near(shares(temperature=0), 0, 1, 0, 0, 0)


@pytest.mark.parametrize("decoding", [t5_decoding, fast_t5])
def test_decoding_ignores_dropout_and_gives_every_mode_back(decoding):
    src = odd_sources()
    model = odd_model("t5_v1_0", dropout=0.5).train()
    model.encoder.block[1].eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(decoding.generate(model, src, src != 0, 9), generate(odd_model("t5_v1_0"), src, src != 0, 9))
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
    model.eval()
    for ids in (decoding.beam_search(model, src, src != 0, 9), decoding.generate(model, src, src != 0, 9)):
        assert not model.training and not ids.is_inference()
        model(src, ids.clamp(min=2)).sum().backward()  # the ids are ordinary tensors that training can read
        ids[0, 0] = 3


def test_decoding_in_half_precision():
    model, src = odd_model("t5_v1_1"), odd_sources()
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_t5.generate(model, src, src != 0, 6).shape[0] == 3
    model.bfloat16()
    assert fast_t5.beam_search(model, src, src != 0, 6).shape[0] == 3
    with torch.no_grad():
        tgt = torch.full((3, 1), START)
        step = fast_t5.Decoder(model.eval(), src, src != 0, 4).step(tgt)
        whole = model(src, tgt, src != 0).float()
        assert (step - whole).abs().max() < 0.02 * whole.abs().max()
        model.encoder.block[1].layer[1].DenseReluDense.wo.weight.mul_(1e5)  # as in the released models
    for decoding in (t5_decoding, fast_t5):
        with pytest.raises(BadInput, match="float16"):
            decoding.generate(model.half(), src)


@pytest.mark.parametrize("decode, option, complaint", [
    (generate, dict(temperature=-1.0), "temperature is -1.0, expected 0 or more"),
    (generate, dict(top_k=-2), "top_k is -2, expected 0"),
    (generate, dict(top_p=0.0), "top_p is 0.0, expected more than 0 and at most 1"),
    (generate, dict(top_p=1.5), "top_p is 1.5"),
    (generate, dict(max_length=0), "max_length is 0, expected at least 1"),
    (beam_search, dict(max_length=0), "max_length is 0, expected at least 1"),
    (beam_search, dict(beams=0), "beams is 0, expected at least 1"),
    (beam_search, dict(alpha=-0.1), "alpha is -0.1, expected 0 or more"),
])
def test_unusable_arguments_are_named(decode, option, complaint):
    with pytest.raises(BadInput, match=complaint):
        decode(odd_model("t5_v1_0"), odd_sources(), **option)
