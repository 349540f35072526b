"""Evaluation and decoding in bfloat16: a copy with converted weights, which leaves the model as it is."""

import argparse
import contextlib

import numpy as np
import pytest
import torch
from cloze_data import options, write_data_dir
from limits import agree
from small_gpt import HEADS, batch_for, enlarge, lm_batch, small_lm
from small_gpt import small_model as small_gpt
from small_t5 import GOLDEN_SIZE, VERSIONS, odd_batch
from small_t5 import small_model as small_t5
from torch.utils._python_dispatch import TorchDispatchMode

import fast.gpt
import fast.t5
import generate
import loss
import t5_decoding
import train
import train_t5
from fast import known
from formats.files import load_tensors
from t5_pytorch import T5, load_t5_pretrained_model, shift_right
from training.precision import autocast, for_evaluation, one_update


@pytest.fixture
def only_known_models(monkeypatch):
    """Fail where the plain text takes a fast function's place."""
    monkeypatch.setattr(known, "warn_once", pytest.fail)


@pytest.mark.parametrize("make", [lambda: small_gpt(), lambda: small_lm(), lambda: small_t5(),
                                  lambda: small_t5(**VERSIONS["t5_v1_1"])])
def test_the_copy_is_short_and_the_model_stays(make):
    model = make()
    assert for_evaluation(model, "fp32") is model
    p = next(model.parameters())
    p.grad = torch.ones_like(p)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = for_evaluation(model, "bf16")
    assert type(converted) is type(model) and converted.training == model.training
    assert {value.dtype for value in converted.state_dict().values()} == {torch.bfloat16}
    assert not any(value.requires_grad for value in converted.parameters())
    assert converted.state_dict().keys() == before.keys()
    assert len(list(converted.parameters())) == len(list(model.parameters()))  # what is tied is one parameter
    for name, value in converted.named_parameters():
        assert torch.equal(value, before[name].bfloat16())
        value.fill_(3)
    assert all(torch.equal(value, before[name]) and value.dtype == torch.float32
               for name, value in model.state_dict().items())
    assert torch.equal(p.grad, torch.ones_like(p)) and all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("kind", HEADS, ids=str)
def test_gpt_s_evaluation_is_the_plain_text_s(kind, only_known_models):
    model = enlarge(small_gpt(head=kind), 4).eval()
    x, _, _ = batch_for(kind)
    converted = for_evaluation(model, "bf16")
    with torch.no_grad():
        plain, exact = converted(x)[1], model(x)[1]
    agree(fast.gpt.task_logits(converted, x).float(), plain.float(), 3e-2)
    agree(plain.float(), exact, 4e-2)
    agree(fast.gpt.task_logits(converted, x).float(), exact, 4e-2)


def test_gpt_s_word_loss_is_the_plain_text_s(only_known_models):
    model, x = enlarge(small_lm(), 4).eval(), lm_batch()
    converted = for_evaluation(model, "bf16")
    with torch.no_grad():
        plain, exact = loss.word_loss(converted(x), x, 97), loss.word_loss(model(x), x, 97)
    ours = fast.gpt.lm_word_loss(converted, x)
    assert ours.dtype == torch.float32
    agree(ours, plain, 1e-2)
    agree(ours, exact, 1e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_t5_s_evaluation_is_the_plain_text_s(version, only_known_models):
    model, (src, targets) = small_t5(**VERSIONS[version]), odd_batch()
    converted = for_evaluation(model, "bf16")
    values = []
    for m in (converted, model):
        with torch.no_grad():
            logits = m(src, shift_right(targets), src != 0, targets != 0)
            values.append((loss.t5_loss(logits, targets), loss.target_log_probs(logits, targets)))
            ours = fast.t5.training_loss(m, src, targets), fast.t5.target_log_probs(m, src, targets).diagonal()
        for got, want in zip(ours, values[-1], strict=True):
            assert got.dtype == torch.float32
            agree(got, want, 1e-5 if m is model else 2e-2)
    for got, want in zip(*values, strict=True):
        agree(got, want, 3e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_and_choices_of_the_golden_s_decoding(golden, version):
    """Its weights are random, so that the best two of 96 logits often lie within bfloat16's rounding."""
    model = T5(**GOLDEN_SIZE, **VERSIONS[version]).eval()
    load_t5_pretrained_model(model, str(golden / "t5" / version / "checkpoint"))
    converted = for_evaluation(model, "bf16")
    with np.load(golden / "t5" / version / "golden.npz") as file:
        src, ids = (torch.from_numpy(file[name]).long() for name in ("inputs", "decode_greedy"))
    with torch.no_grad():
        exact, plain = (m(src, shift_right(ids), src != 0).float() for m in (model, converted))
        decoder = fast.t5.Decoder(converted, src, src != 0, ids.shape[1])
        cached = torch.cat([decoder.step(tokens) for tokens in shift_right(ids).split(1, 1)], 1)
    for logits in (plain, cached):
        agree(logits, exact, 0.08)
        assert (logits.argmax(-1) == exact.argmax(-1)).float().mean() > 0.85
    rows = t5_decoding.beam_search(converted, src, src != 0, 24), fast.t5.beam_search(converted, src, src != 0, 24)
    assert all(len(ids) == len(src) for ids in rows)


@pytest.fixture(scope="module")
def line(tmp_path_factory, small_vocabulary):
    """A function from changed options to the command line of a tiny run in bf16."""
    folder = tmp_path_factory.mktemp("precision")
    data_dir = write_data_dir(folder / "data")

    def line(**changes):
        return options(folder, data_dir, small_vocabulary, **dict(precision="bf16") | changes)

    line.folder = folder
    return line


@pytest.mark.parametrize("plain", [False, True])
def test_a_run_evaluates_a_copy_and_trains_float32(line, monkeypatch, plain):
    seen, logits_of, step = [], train.task_logits, train.opt.OpenAIAdam.step

    def task_logits(args, model, x):
        assert not torch.is_autocast_enabled("cpu")
        seen.append({p.dtype for p in model.parameters()})
        return logits_of(args, model, x)

    def counted(self, *args):
        assert {p.dtype for group in self.param_groups for p in group["params"]} == {torch.float32}
        return step(self, *args)

    monkeypatch.setattr(train, "task_logits", task_logits)
    monkeypatch.setattr(train.opt.OpenAIAdam, "step", counted)
    def outcome(desc):
        train.main(line(desc=desc, plain=plain, submit=True))
        return load_tensors(str(line.folder / "save" / desc / "checkpoint"))["model"]

    first = outcome(f"evaluated-{plain}")
    assert seen and all(kinds == {torch.bfloat16} for kinds in seen)
    assert {value.dtype for value in first.values()} == {torch.float32}
    # without a look at the copy in between, training ends at the same bits
    monkeypatch.setattr(train, "task_logits", lambda args, model, x: torch.zeros(len(x), 2))
    second = outcome(f"blind-{plain}")
    assert all(torch.equal(first[name], second[name]) for name in first)


class Conversions(TorchDispatchMode):
    """Counts the matrices that are converted to bfloat16."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_an_update_converts_each_weight_once(kind, plain):
    model = small_gpt() if kind == "gpt" else small_t5()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and (".h." in name or "block" in name)
                and "relative" not in name]
    args = argparse.Namespace(plain=plain, lm_coef=0.5, label_smoothing=0.0, checkpoint_activations=False)
    device, results, counts = torch.device("cpu"), [], []

    def tower(seed):
        if kind == "gpt":
            return train.training_loss(args, model, *batch_for("multiple_choice", seed))
        return train_t5.training_loss(args, model, *odd_batch(seed))

    for around in (one_update(device), contextlib.nullcontext()):
        model.zero_grad()
        with Conversions() as seen:
            with around:
                for seed in (1, 2, 3):
                    with autocast(device, "bf16"):
                        value = tower(seed)
                    value.backward()
            counts.append(sum(seen.shapes.count(shape) for shape in {tuple(p.shape) for p in matrices}))
        results.append([p.grad.clone() for p in model.parameters()])
    for shared, apart in zip(*results, strict=True):
        agree(shared, apart, 1e-6, floor=1e-3)  # an embedding adds up its three uses in another order
    assert counts[1] - counts[0] >= 2 * len(matrices)  # those of the second and the third tower


def test_generation_reads_converted_weights(golden, monkeypatch, capsys, tmp_path):
    seen = []

    def generated(model, ids, n_tokens, *args, **kwargs):
        assert not torch.is_autocast_enabled("cpu")
        seen.append({p.dtype for p in model.parameters()})
        return ids[:, :1].expand(-1, n_tokens)

    class Encoder:
        def encode(self, texts, verbose=True):
            return [[3, 4] for _ in texts]

        def decode(self, ids):
            return " ".join(map(str, ids))

    monkeypatch.setattr(generate, "generate_gpt", generated)
    monkeypatch.setattr(generate, "load_gpt", lambda *args: (small_lm().eval(), Encoder()))
    for precision in ("fp32", "bf16"):
        generate.main(["--prompt", "x", "--n_tokens", "2", "--precision", precision, "--model_dir", str(tmp_path)])
    assert seen == [{torch.float32}, {torch.bfloat16}]
    assert capsys.readouterr().out == "3 4 3 3\n" * 2


@pytest.mark.parametrize("cached", [True, False])
def test_gpt_goes_on_in_bfloat16(cached):
    model = enlarge(small_lm(), 4).eval()
    converted = for_evaluation(model, "bf16")
    ids = torch.randint(1, 97, (3, 5), generator=torch.Generator().manual_seed(0))
    new = generate.generate_gpt(converted, ids, 12, cached=cached)
    assert new.shape == (3, 12) and (new < 97).all()
    whole = torch.cat([ids, new], 1)[:, :-1]
    with torch.no_grad():
        logits = model(generate.with_positions(whole, 0, 97))[:, 4:, :97]
    chosen, best = logits.gather(-1, new[..., None])[..., 0], logits.amax(-1)
    assert (best - chosen).max() <= 0.05 * logits.abs().max()  # what it took is as good as bfloat16 can tell


def test_one_query_at_a_time_attends_in_float32_on_a_cpu(monkeypatch, only_known_models):
    """As it does faster there. Beams, which are several queries, attend so to the source, not to what they read."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def attention(q, *args, **kwargs):
        seen.append((q.size(2), q.dtype))
        return attend(q, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    gpt, t5 = (for_evaluation(model.eval(), "bf16") for model in (small_lm(), small_t5()))
    generate.generate_gpt(gpt, torch.randint(1, 97, (3, 5)), 4)
    assert {kind for kind in seen if kind[0] == 1} == {(1, torch.float32)}
    seen.clear()
    src, _ = odd_batch()
    fast.t5.generate(t5, src, src != 0, 5)
    assert {kind for kind in seen if kind[0] == 1} == {(1, torch.float32)}
    seen.clear()
    fast.t5.beam_search(t5, src, src != 0, 5, 3)
    assert {kind for kind in seen if kind[0] == 3} == {(3, torch.bfloat16), (3, torch.float32)}
