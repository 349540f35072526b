"""--dry_run: what an update takes, by count, is what a model takes; and docs/scale.md says what it counts."""

import argparse
import re

import pytest
import torch
from pretraining import T5_SIZES
from small_t5 import ODD_SIZE, odd_batch
from small_t5 import small_model as small_t5

import loss
import opt
import pretrain
import pretrain_t5
import train
import train_t5
from t5_pytorch import T5, T5_CONFIGS, shift_right
from training import plan
from utils import run_script

OF_TEXT = ["--desc", "x", "--text", "nowhere.txt", "--model_dir", "nowhere"]
DEVICES, CAPACITIES, RESERVE = (1, 8, 64), (40, 80), 2  # GB; the reserve is for what the plan does not count


def options(**changes):
    usual = dict(dry_run=1, shard=False, checkpoint_activations=False, n_gpu=1, n_batch=3, plain=True, precision="fp32")
    return argparse.Namespace(**usual | changes)


def tower_loss(model):
    src, tgt = (torch.ones_like(x) for x in odd_batch())
    return loss.t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, 1e-4)


def adafactor(parameters):
    return opt.Adafactor(parameters, min_dim_size_to_factor=7)


def counted(args, loss_of=tower_loss, **changes):
    return plan.count(args, lambda: T5(**ODD_SIZE | dict(dropout=0.1) | changes),
                      lambda model: [*model.encoder.block, *model.decoder.block], adafactor, loss_of)


def test_the_count_is_what_a_model_takes():
    """Of tensors with memory: parameters, gradients, state, and what autograd keeps, each storage once."""
    found = counted(options())
    model, kept = small_t5(dropout=0.1).train(), {}
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        total = tower_loss(model)
    total.backward()
    optimizer = adafactor(model.parameters())
    optimizer.step()
    parameters = sum(p.numel() * 4 for p in model.parameters())
    state = sum(x.numel() * 4 for of in optimizer.state.values() for x in of.values())
    assert (found.n_parameters * 4, found.parameters, found.gradients, found.state) == (parameters,) * 3 + (state,)
    assert found.activations == sum(storage.nbytes() for storage in kept.values())
    assert found.gathered == found.received == 0
    assert found.memory == 2 * parameters + state + found.activations


def test_twice_the_batch_keeps_nearly_twice_as_much_and_computes_twice_as_much():
    def of_two(model):
        src, tgt = (torch.ones_like(x).repeat(2, 1) for x in odd_batch())
        return loss.t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, 1e-4)

    one, two = counted(options()), counted(options(), of_two)
    assert 1.9 < two.activations / one.activations <= 2 and two.operations == 2 * one.operations


def test_checkpointing_keeps_inputs_and_one_block():
    args = options(checkpoint_activations=True)
    few, many = (counted(args, enc_depth=depth).activations for depth in (2, 6))
    whole = counted(options(), enc_depth=6)
    b, s, d = 3, 11, ODD_SIZE["dim"]
    assert many - few == 4 * b * s * d * 4  # an input [b, s, d] for each of four more blocks
    assert many < 0.8 * whole.activations
    assert counted(args, enc_depth=6).operations == pytest.approx(4 / 3 * whole.operations, rel=0.02)  # forward again


@pytest.mark.parametrize("n", [2, 3])
def test_processes_that_share_hold_their_rows(n):
    whole, shared = counted(options(dry_run=n)), counted(options(dry_run=n, shard=True))
    model = small_t5()
    assert shared.parameters == shared.gradients == sum(
        -(-len(p) // n) * p[0].numel() * 4 for p in model.parameters())
    assert whole.state / n <= shared.state < whole.state and shared.activations == whole.activations
    blocks = [sum(p.numel() * 4 for p in block.parameters()) for block in (*model.encoder.block, *model.decoder.block)]
    assert shared.gathered == 2 * (whole.parameters - sum(blocks)) + 4 * max(blocks)
    assert whole.received == round(2 * whole.parameters * (n - 1) / n)
    assert shared.received == round(3 * whole.parameters * (n - 1) / n)


SIZES = [word for name, value in T5_SIZES.items() for word in (f"--{name}", str(value))]
GPT_SIZES = ["--n_embd", "12", "--n_head", "2", "--n_layer", "2"]


@pytest.mark.parametrize("script, line", [
    (train_t5, ["--dataset", "rte", "--from_scratch", "--model", "small", "--n_ctx", "9", *SIZES]),
    (train_t5, ["--from_scratch", "--model", "small", "--n_ctx", "9", *SIZES]),
    (pretrain_t5, [*OF_TEXT, "--n_ctx", "20", *SIZES]), (train, ["--desc", "x", "--n_ctx", "9", *GPT_SIZES]),
    (pretrain, [*OF_TEXT, "--n_ctx", "9", "--n_merges", "50", *GPT_SIZES])],
    ids=["t5", "cloze", "t5, text", "gpt", "gpt, text"])
def test_every_script_counts_without_data_and_weights(script, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = script.main([*line, "--dry_run", "2", "--n_gpu", "4", "--n_batch", "2", "--shard"])
    out = capsys.readouterr().out
    assert "2 processes, sharing the model" in out and "2 towers a process" in out
    assert f"{found.memory / 1e9:.3f} GB" in out and min(found) > 0
    assert not list(tmp_path.iterdir())
    assert run_script(script.main, [*line, "--dry_run", "3", "--n_gpu", "2"]) == 2
    assert "--dry_run 3 processes share --n_gpu 2 towers" in capsys.readouterr().err


def test_the_targets_of_candidate_answers_are_counted_as_long_as_they_may_be(capsys):
    line = ["--from_scratch", "--model", "small", "--n_ctx", "9", *SIZES, "--dry_run", "1"]
    said = []
    for more in ([], ["--form", "answer"], ["--form", "answer", "--n_target", "17"]):
        train_t5.main([*line, *more])
        said += re.findall(r"targets of (\d+)", capsys.readouterr().out)
    assert said == ["3", "512", "17"]


def plans(model):
    """{(devices, whether activations are checkpointed): Plan} of pre-training on one sequence of 512 tokens."""
    def batch_loss(model):
        src, tgt = torch.ones(1, 512, dtype=torch.int64), torch.ones(1, 114, dtype=torch.int64)
        return loss.t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, 1e-4)

    def of(n, again, loss_of):
        args = options(dry_run=n, shard=n > 1, checkpoint_activations=again)
        return plan.count(args, lambda: T5(**T5_CONFIGS[model]),
                          lambda model: [*model.encoder.block, *model.decoder.block], opt.Adafactor, loss_of)

    found = {}
    for again in (False, True):
        found[1, again] = of(1, again, batch_loss)
        for n in DEVICES[1:]:  # whose towers are the same
            tower = found[1, again]
            found[n, again] = of(n, again, lambda model: model.shared.weight.sum())._replace(
                activations=tower.activations, operations=tower.operations)
    return found


def table(model, found):
    """The lines of docs/scale.md on a model."""
    for n in DEVICES:
        kept, again = found[n, False], found[n, True]
        fixed = kept.memory - kept.activations
        fits = [max(int((capacity - RESERVE) * 1e9 - fixed) // of.activations, 0)
                for capacity in CAPACITIES for of in (kept, again)]
        numbers = [kept.parameters, kept.gradients, kept.state, kept.gathered, kept.activations, again.activations]
        yield (f"| {model} | {n} | " + " | ".join(f"{x / 1e9:.2f}" for x in numbers)
               + " | " + " | ".join(f"{a or 'no'} / {b or 'no'}" for a, b in (fits[:2], fits[2:])) + " |")


@pytest.mark.parametrize("model", ["3b", "11b"])
def test_the_document_says_what_is_counted(root, model):
    text = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    for line in table(model, plans(model)):
        assert line in text
