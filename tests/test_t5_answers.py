"""fast.t5_answers: rows that end leave the batch, and every token is that of t5_decoding, which they do not leave."""

import pytest
import torch
import torch.nn.functional as F
from small_gpt import small_lm
from small_t5 import VERSIONS, near, odd_batch, small_model

import loss
import t5_decoding
from fast import t5 as fast_t5
from fast import t5_answers
from generate import generate_gpt
from t5_pytorch import EOS, PAD, START, additive
from training import answering

LENGTH = 23


def model_that_ends(version):
    """A T5 whose answers have lengths of all kinds: EOS is likelier than by chance."""
    model = small_model(seed=1, dec_depth=2, **VERSIONS[version])
    weight = model.decoder.logits.weight if version == "t5_v1_1" else model.shared.weight
    with torch.no_grad():
        for part in (model.encoder.block, model.decoder.block):
            for p in part.parameters():
                if p.ndim > 1:
                    p *= 3
        weight[EOS] *= 4 if version == "t5_v1_0" else 1.5
    return model


def sources():
    src, _ = odd_batch(b=5, s=19)
    more, _ = odd_batch(seed=1, b=8, s=19)
    return torch.cat([src, more])


def same(ours, plain):
    width = max(ours.shape[1], plain.shape[1])
    return torch.equal(*(F.pad(ids, (0, width - ids.shape[1])) for ids in (ours, plain)))


@pytest.fixture(params=[(0.95, 0), (0.95, 8), (0.7, 3)])
def kept(monkeypatch, request):
    """The numbers of rows that were left over each time some left: each of 13 when it has ended, or several at once.

    The second number is that of steps which read the encoder's output itself.
    """
    counts, keep = [], fast_t5.Decoder.keep
    for name, value in zip(("LEAVE_AT", "STATES_FOR"), request.param, strict=True):
        monkeypatch.setattr(t5_answers, name, value)
    monkeypatch.setattr(fast_t5.Decoder, "keep", lambda self, rows: counts.append(len(rows)) or keep(self, rows))
    return counts


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_tokens_and_scores_are_the_plain_text_s(version, masked, kept):
    model, src = model_that_ends(version), sources()
    mask = src != PAD if masked else None
    ids, scores = t5_answers.generate(model, src, mask, LENGTH, return_scores=True)
    want, want_scores = t5_decoding.generate(model, src, mask, LENGTH, return_scores=True)
    assert same(ids, want) and near(scores, want_scores, 1e-5)
    assert torch.equal(t5_answers.generate(model, src, mask, LENGTH), ids)
    lengths = (want != PAD).sum(1)
    assert len(lengths.unique()) > 3 and (kept or t5_answers.LEAVE_AT < 0.9)


@pytest.mark.parametrize("beams, alpha", [(4, 0.6), (2, 0.0), (1, 1.5)])
@pytest.mark.parametrize("version", VERSIONS)
def test_beam_search_s_tokens_and_scores_are_the_plain_text_s(version, beams, alpha, kept):
    model, src = model_that_ends(version), sources()
    given = (model, src, src != PAD, LENGTH, beams, alpha)
    ids, scores = t5_answers.beam_search(*given, return_scores=True)
    want, want_scores = t5_decoding.beam_search(*given, return_scores=True)
    assert same(ids, want) and near(scores, want_scores, 1e-5)
    assert torch.equal(t5_answers.beam_search(*given), ids)
    assert len((want != PAD).sum(1).unique()) > 3 and (kept or t5_answers.LEAVE_AT < 0.9)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_to_states_is_attention_to_their_keys_and_values(masked):
    model, g = small_model(), torch.Generator().manual_seed(1)
    m = model.decoder.block[1].layer[1].EncDecAttention
    x, states = (torch.randn(5, t, 20, generator=g) for t in (3, 11))
    bias = additive(sources()[:5, :11] != PAD, x.dtype) if masked else None
    with torch.no_grad():
        assert near(fast_t5.attention_to_states(m, x, states, bias), m(x, states, bias), 1e-5)


@pytest.mark.parametrize("n_batch, n_most, n_processes", [(4, 16, 1), (4, 16, 7), (5, 0, 1), (1, 9, 2), (99, 128, 1)])
def test_batches_hold_every_input_once_and_no_more_than_the_first(n_batch, n_most, n_processes):
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 40, (57,), generator=draw).tolist()
    inputs = [list(range(n)) for n in lengths]
    found = answering.batches(inputs, n_batch, n_most, 7, n_processes)
    assert sorted(i for rows in found for i in rows) == list(range(57)) and answering.batches([], n_batch, 9, 7) == []
    ordered = [lengths[i] for rows in found for i in rows]
    assert ordered == sorted(ordered, reverse=True)
    assert all(len(rows) * (lengths[rows[0]] + 7) <= n_batch * (max(lengths) + 7) for rows in found)
    assert len(found[0]) == min(n_batch, 57) and (len(found) >= min(n_processes, 57 // n_batch))
    assert all(len(rows) <= max(n_batch, n_most) for rows in found)
    assert n_most <= n_batch or max(map(len, found)) > n_batch or n_batch == 99


def test_a_score_is_the_log_probability_of_the_answer():
    model, src = model_that_ends("t5_v1_0"), sources()
    for ids, scores in (t5_decoding.generate(model, src, src != PAD, 6, return_scores=True),
                        fast_t5.generate(model, src, src != PAD, 6, return_scores=True),
                        t5_decoding.generate(model, src, src != PAD, 6, temperature=2.0, return_scores=True,
                                             generator=torch.Generator().manual_seed(1))):
        assert (ids == EOS).any() and not (ids == EOS).any(1).all()
        for row, answer, score in zip(src, ids, scores, strict=True):
            end = answer.tolist().index(EOS) + 1 if EOS in answer else len(answer)
            read = F.pad(answer[None, :end - 1], (1, 0), value=START)
            with torch.no_grad():
                log_p = model(row[None, row != PAD], read).log_softmax(-1)
            assert near(score, log_p[0].gather(1, answer[:end, None]).sum(), 1e-5)


def test_a_model_that_is_not_ours_runs_the_plain_text(kept, capsys):
    model, src = model_that_ends("t5_v1_0"), sources()
    want = t5_answers.generate(model, src, src != PAD, 6), t5_answers.beam_search(model, src, src != PAD, 6)
    n = len(kept)
    handle = model.encoder.register_forward_hook(lambda *args: None)
    found = t5_answers.generate(model, src, src != PAD, 6), t5_answers.beam_search(model, src, src != PAD, 6)
    handle.remove()
    assert len(kept) == n and all(same(a, b) for a, b in zip(found, want, strict=True))
    assert t5_answers.generate(model, src[:0], None, 6).shape[0] == 0


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_model_decodes_as_the_one_inside(process_group):
    model, src, gpt = model_that_ends("t5_v1_0"), sources(), small_lm()
    prompt = torch.randint(1, 20, (2, 5), generator=torch.Generator().manual_seed(2))
    wrapped = (torch.nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel, torch.nn.DataParallel,
               lambda inner: torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(inner)))
    for wrap in wrapped:
        for decoding in (t5_decoding, fast_t5, t5_answers):
            for decode in (decoding.generate, decoding.beam_search):
                assert same(decode(wrap(model), src, src != PAD, 6), decode(model, src, src != PAD, 6))
        for cached in (True, False):
            assert torch.equal(generate_gpt(wrap(gpt), prompt, 7, cached=cached), generate_gpt(gpt, prompt, 7))


def test_answers_may_take_part_in_a_loss():
    model, src = model_that_ends("t5_v1_0"), sources()
    for decode in (t5_answers.generate, t5_answers.beam_search):
        ids = decode(model, src, src != PAD, 6)
        loss.t5_loss(model(src, F.pad(ids[:, :-1], (1, 0))), ids).backward()
