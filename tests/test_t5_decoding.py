"""t5_decoding against Mesh TensorFlow's output, and cached against uncached decoding."""

import math

import numpy as np
import pytest
import torch
from small_t5 import GOLDEN_SIZE, VERSIONS, near, small_model

import t5_decoding
from fast import t5 as fast_t5
from fast import t5_answers
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


def by_brute_force(table, length, alpha, start=START):
    """All finished and all alive hypotheses of a chain that have at most `length` tokens: two lists of (score, ids)."""
    v, finished, hypotheses = len(table), [], [((), 0.0)]
    for n in range(1, length + 1):
        longer = [(ids + (t,), p + table[ids[-1] if ids else start, t].item())
                  for ids, p in hypotheses for t in range(v)]
        penalty = ((5 + n) / 6) ** alpha
        finished += [(p / penalty, ids) for ids, p in longer if ids[-1] == EOS]
        hypotheses = [(ids, p) for ids, p in longer if ids[-1] != EOS]
    return sorted(finished, reverse=True), sorted(((p / penalty, ids) for ids, p in hypotheses), reverse=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_loses_nothing_finds_the_best_hypothesis(monkeypatch, seed, alpha):
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(1, 9, dtype=torch.int64)
    found = beam_search(torch.nn.Module(), src, max_length=5, beams=256, alpha=alpha)[0].tolist()
    expected = list(by_brute_force(table, 5, alpha)[0][0][1])
    assert found == expected + [0] * (len(found) - len(expected))


@pytest.mark.parametrize("prefix", [[], [3], [2, 3]])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_all_hypotheses_come_with_their_scores_the_finished_ones_first(monkeypatch, alpha, prefix):
    table = torch.randn(4, 4, generator=torch.Generator().manual_seed(7)).mul(2).log_softmax(-1)
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src = torch.ones(2, 9, dtype=torch.int64)
    finished, alive = by_brute_force(table, 5, alpha, start=prefix[-1] if prefix else START)
    assert len(finished) == 121 and len(alive) == 243

    def search(n_best, **options):
        return beam_search(torch.nn.Module(), src, max_length=5, beams=256, alpha=alpha, n_best=n_best,
                           prefix=torch.tensor([prefix, prefix]).long() if prefix else None, **options)

    ids, scores = search(130, return_scores=True)
    assert ids.shape == (2, 130, len(prefix) + 5) and scores.shape == (2, 130)
    assert torch.equal(ids[0], ids[1]) and torch.equal(scores[0], scores[1])
    for row, score, (want, answer) in zip(ids[0].tolist(), scores[0], finished + alive[:9], strict=True):
        assert score == pytest.approx(want, abs=1e-4)
        answer = [*prefix, *answer]
        close_to_others = sum(abs(want - other) < 1e-4 for other, _ in finished + alive) > 1
        assert row == answer + [0] * (len(row) - len(answer)) or close_to_others
    few, few_scores = search(3, return_scores=True)     # stops once three have finished and none can get better
    assert few.shape[:2] == (2, 3) and torch.equal(few_scores, scores[:, :3])
    one, score = search(1, return_scores=True)
    assert torch.equal(one, few[:, 0, :one.shape[1]]) and torch.equal(score, scores[:, 0])
    assert torch.equal(search(1), one) and torch.equal(search(3), few)


def test_places_that_nothing_can_fill_have_the_score_minus_infinity(monkeypatch):
    table = torch.tensor([[-math.inf, 0, -math.inf, -math.inf]] * 4)  # EOS and nothing else
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    ids, scores = beam_search(torch.nn.Module(), torch.ones(2, 3, dtype=torch.int64), n_best=4, return_scores=True)
    assert scores.tolist() == [[0, *[-math.inf] * 3]] * 2 and (ids[:, 0] == torch.tensor([EOS, 0, 0])).all()


@pytest.mark.parametrize("decoding", [t5_decoding, fast_t5])
def test_scores_are_the_log_probabilities_of_the_answers(version, decoding):
    model, src = odd_model(version).eval(), odd_sources()
    model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data *= 3
    for prefix in (None, torch.tensor([7, 8]), torch.tensor([[7, 8, 9], [9, 7, 7], [7, 7, 8]])):
        ids, scores = decoding.beam_search(model, src, src != 0, 9, beams=5, n_best=5, return_scores=True,
                                           prefix=prefix)
        p = 0 if prefix is None else prefix.shape[-1]
        if p:
            assert torch.equal(ids[..., :p], prefix.expand(3, p)[:, None].expand(3, 5, p))
        assert (scores[:, :-1] >= scores[:, 1:])[ids[:, 1:].eq(EOS).any(2) | ids[:, :-1].ne(EOS).all(2)].all()
        for row in range(3):
            assert len({tuple(hypothesis.tolist()) for hypothesis in ids[row]}) == 5
            for hypothesis, score in zip(ids[row], scores[row], strict=True):
                n = int((hypothesis == EOS).float().argmax()) + 1 if EOS in hypothesis else len(hypothesis)
                with torch.no_grad():
                    tgt = torch.nn.functional.pad(hypothesis[None, :n - 1], (1, 0))
                    log_p = model(src[row, None], tgt, src[row, None] != 0)[0].log_softmax(-1)
                want = log_p[torch.arange(n), hypothesis[:n]][p:].sum() / ((5 + n - p) / 6) ** 0.6
                assert score.item() == pytest.approx(want.item(), rel=1e-4)
        again = decoding.beam_search(model, src, src != 0, 9, beams=5, prefix=prefix)
        assert torch.equal(again, ids[:, 0, :again.shape[1]])


@pytest.mark.parametrize("decoding", [t5_decoding, fast_t5])
def test_an_answer_goes_on_from_its_prefix(version, decoding):
    model, src = odd_model(version), odd_sources()
    free = generate(model, src, src != 0, 6)
    for n in (1, 3):  # what would have come anyway changes nothing
        prefix = free[:, :n].clamp(min=2)
        forced = decoding.generate(model, src, src != 0, 6 - n, prefix=prefix)
        same = (free[:, :n] == prefix).all(1) & (forced[:, :n] == prefix).all(1)
        assert same.any() and torch.equal(forced[same, :6], free[same, :forced.shape[1]])
    ids = decoding.generate(model, src, src != 0, 4, prefix=[5, 6])
    assert ids.shape[1] <= 6 and (ids[:, :2] == torch.tensor([5, 6])).all()
    with torch.no_grad():
        model.eval()
        for row in range(3):
            logits = model(src[row, None], torch.tensor([[START, 5, 6]]), src[row, None] != 0)
            assert ids[row, 2] == logits[0, -1].argmax()
    with pytest.raises(BadInput, match=r"prefix has the shape \[2, 1\], expected .*batch 3"):
        decoding.generate(model, src, prefix=torch.tensor([[5], [6]]))


@pytest.mark.parametrize("decoding", [t5_decoding, fast_t5])
def test_no_row_gives_no_answer(decoding):
    model, src = odd_model("t5_v1_0"), odd_sources()[:0]
    for mask in (None, src != 0):
        assert decoding.generate(model, src, mask, 9).shape == (0, 0)
        assert decoding.generate(model, src, mask, 9, temperature=1.0, prefix=[5]).shape == (0, 1)
        assert decoding.beam_search(model, src, mask, 9).shape == (0, 0)
        ids, scores = decoding.beam_search(model, src, mask, n_best=3, return_scores=True)
        assert ids.shape == (0, 3, 0) and scores.shape == (0, 3) and ids.dtype == torch.int64


@pytest.mark.parametrize("beams", [1, 3])
def test_what_may_be_generated_takes_no_memory_and_buffers_that_grow_change_nothing(version, beams):
    model, src = odd_model(version).eval(), odd_sources()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        cached = fast_t5.Decoder(model, src, src != 0, 10 ** 12, beams)
        uncached = t5_decoding.Decoder(model, src, src != 0, 10 ** 12, beams)
        parents = None
        for _ in range(140):
            tokens = torch.randint(2, 53, (3, beams), generator=g)
            ours, plain = (decoder.step(tokens, parents) for decoder in (cached, uncached))
            assert (ours - plain).abs().max() < 5e-5 * plain.abs().max()
            parents = torch.randint(0, beams, (3, beams), generator=g)
    assert all(cache.length == 140 * beams <= cache.k.shape[2] <= 512 for cache in cached.caches)
    assert cached.bias.shape[-1] == 256 * beams  # twice doubled
    small = fast_t5.Decoder(model, src, src != 0, 5, beams)
    with torch.no_grad():
        small.step(tokens)
    assert small.caches[0].k.shape[2] == 5 * beams == small.bias.shape[-1]  # never more than the limit


def test_a_stop_ends_rows_one_by_one_and_is_asked_now_and_then(monkeypatch):
    table = torch.full((9, 9), -9.0)
    for token, following in ((START, 2), (2, 3), (3, 4), (4, 2)):
        table[token, following] = 0.0
    monkeypatch.setattr(Scripted, "table", table)
    monkeypatch.setattr(t5_decoding, "Decoder", Scripted)
    src, seen = torch.ones(2, 8, dtype=torch.int64), []

    def stop(row):
        seen.append(row)
        return len(row) >= 16

    ids = generate(torch.nn.Module(), src, max_length=99, stop=stop)
    assert ids.tolist() == [[2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2]] * 2
    assert [len(row) for row in seen] == [8, 8, 16, 16]
    ids = generate(torch.nn.Module(), src, max_length=20, stop=lambda row: seen.append(0) or len(seen) % 2)
    assert ids.shape == (2, 20) and not ids[0, 8:].any() and ids[1].all()


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
    (beam_search, dict(alpha=360), "alpha is 360, expected at most 66.3 where answers may have 11 tokens"),
    (beam_search, dict(n_best=5), "n_best is 5, expected 1 to 4"),
    (beam_search, dict(n_best=0), "n_best is 0, expected 1 to 4"),
    (generate, dict(top_k=3), "top_k is 3, but at temperature 0 nothing is drawn"),
    (generate, dict(top_p=0.5), "top_p is 0.5, but at temperature 0 nothing is drawn"),
])
def test_unusable_arguments_are_named(decode, option, complaint):
    with pytest.raises(BadInput, match=complaint):
        decode(odd_model("t5_v1_0"), odd_sources(), **option)


@pytest.mark.parametrize("search", [beam_search, t5_answers.beam_search])
def test_beams_are_scored_in_float32_whatever_the_logits_are(search):
    class Short(fast_t5.Decoder):
        def step(self, tokens, parents=None):
            return super().step(tokens, parents).bfloat16()

    class Wide(Short):
        def step(self, tokens, parents=None):
            return super().step(tokens, parents).float()

    model, src = small_model().eval(), odd_sources()
    found, wanted = (search(model, src, src != 0, 9, beams=3, return_scores=True, decoder=of) for of in (Short, Wide))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1]) and found[1].dtype == torch.float32
