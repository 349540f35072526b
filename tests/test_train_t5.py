"""Fine-tuning T5 from the command line."""

import json
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from cloze_data import rows, t5_line, write_csv, write_data_dir

import train_t5
from datasets import COLUMNS, TEST_FILE, VALID_FILE
from formats.files import load_tensors
from pretrain_t5 import learn_vocabulary
from t5_pytorch import EOS, PAD, T5, export_t5_model, shift_right
from text_utils import SentencePieceEncoder
from training import answering
from utils import read_log, run_script

SIZES = dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2)


def tiny(n_tokens=256, **changes):
    torch.manual_seed(3)
    both = dict(num_tokens=n_tokens, depth=2, heads=3, dim_head=5)
    return T5(dim=18, d_ff=30, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()}, **changes)


@pytest.fixture(scope="module")
def vocabulary():
    """The bytes of a SentencePiece model that covers the stories of cloze_data."""
    lines = [" ".join(row[1:7]) for row in rows(150)] + ["rocstories choice1: b choice2: c sentence: a"] * 20
    return learn_vocabulary(lines, 60)


@pytest.fixture
def setup(tmp_path, vocabulary):
    """A function of changed options that returns the command line of a tiny run from scratch."""
    return t5_line(tmp_path, vocabulary, **SIZES)


def test_a_run_writes_log_parameters_submission_and_accuracies(setup, capsys):
    train_t5.main(setup(submit=True, analysis=True))
    out = capsys.readouterr().out
    lines = read_log(setup.folder / "log" / "tiny.jsonl")[1:]
    assert [(line["n_epochs"], line["n_updates"]) for line in lines] == [(1, 3), (2, 6)]
    best = max(line["va_acc"] for line in lines)
    assert f"ROCStories Valid Accuracy: {best:.2f}\n" in out and "ROCStories Test Accuracy:  " in out
    predictions = (setup.folder / "submission" / "ROCStories.tsv").read_text().split("\n")
    assert predictions[0] == "index\tprediction" and len(predictions) == 23
    folder = setup.folder / "save" / "tiny"
    best, saved = load_tensors(folder / "best_params"), T5.from_pretrained(folder)
    assert all(torch.equal(p, saved.state_dict()[name]) for name, p in best.items())
    assert saved.encoder.dropout.p == 0.1
    assert (folder / "spiece.model").read_bytes() == (setup.folder / "t5" / "spiece.model").read_bytes()
    assert SentencePieceEncoder.from_folder(folder).encode(["choice1"])


def test_released_sizes_come_from_config_json(setup, capsys):
    model = tiny()
    export_t5_model(model, str(setup.folder / "t5"))
    sizes = dict.fromkeys(SIZES)
    train_t5.main(setup(from_scratch=None, **sizes, lr=0, n_iter=1))
    assert f"loaded {len(list(model.parameters()))} variables" in capsys.readouterr().out
    saved = torch.load(setup.folder / "save" / "tiny" / "best_params", weights_only=True)
    assert all(torch.equal(saved[name], p) for name, p in model.state_dict().items())


def test_towers_equal_one_big_batch_and_resuming_changes_nothing(setup):
    """The sources of a tower are padded to its own longest, and the loss is a mean over equal targets."""
    for desc, n_batch, n_gpu in (("one", 8, 1), ("four", 2, 4)):
        train_t5.main(setup(desc=desc, n_batch=n_batch, n_gpu=n_gpu, dropout=0))
    one, four = (torch.load(setup.folder / "save" / desc / "checkpoint", weights_only=True)["model"]
                 for desc in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=2e-4, rtol=2e-4)
    before = (setup.folder / "log" / "one.jsonl").read_text()
    train_t5.main(setup(desc="one", n_batch=8, n_gpu=1, dropout=0, resume=True))
    assert (setup.folder / "log" / "one.jsonl").read_text() == before


def test_the_task_can_be_learned(setup):
    """Right endings end in `glad`, wrong ones in `low`: accuracy rises far above chance."""
    write_data_dir(setup.folder / "data", n_valid_file=200)
    train_t5.main(setup(n_iter=14, n_valid=40, dropout=0, lr=0.02, d_model=32, d_kv=8, n_head=4, d_ff=64))
    assert max(line["va_acc"] for line in read_log(setup.folder / "log" / "tiny.jsonl")[1:]) > 85


@pytest.mark.parametrize("plain", [False, True])
def test_log_probabilities_are_those_of_each_pair_alone(plain):
    model = tiny(n_tokens=50).eval()
    src = answering.pad([[5, 6, 7, 8, EOS], [9, EOS], [4, 4, 3, EOS]])
    candidates = answering.pad([[11, 12, EOS], [13, EOS]])
    with torch.no_grad():
        got = train_t5.target_log_probs(Namespace(plain=plain), model, src, candidates)
        for i in range(3):
            length = int((src[i] != PAD).sum())
            for k, n in ((0, 3), (1, 2)):
                target = candidates[k:k + 1, :n]
                log_p = model(src[i:i + 1, :length], shift_right(target)).log_softmax(-1)
                torch.testing.assert_close(got[i, k], log_p[0, torch.arange(n), target[0]].sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("case", ["t5_v1_0", "t5_v1_1"])
def test_training_loss_is_the_original_s(golden, case, plain):
    import numpy as np

    import t5_pytorch
    z = np.load(golden / "t5" / case / "golden.npz")
    gated = case == "t5_v1_1"
    both = dict(num_tokens=96, depth=2, heads=4, dim_head=8)
    model = T5(dim=32, d_ff=64, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()},
               feed_forward="gated-gelu" if gated else "relu", tie_logits=not gated)
    t5_pytorch.load_t5_pretrained_model(model, str(golden / "t5" / case / "checkpoint"))
    inputs, targets = (torch.from_numpy(z[k]).long() for k in ("inputs", "targets"))
    args = Namespace(plain=plain, label_smoothing=0.0, checkpoint_activations=False)
    loss = train_t5.training_loss(args, model, inputs, targets)
    assert loss.item() == pytest.approx(float(z["loss_train"]), rel=1e-5)
    loss.backward()
    for name, p in model.named_parameters():
        want = z["grad_train/" + t5_pytorch.checkpoint_names(name, rms_norm=gated)[0]]
        want = want.T if p.grad.shape == want.shape[::-1] and not name.endswith(("shared.weight",)) else want
        if p.grad.shape == want.shape and p.ndim == 2 and p.shape[0] == p.shape[1]:
            want = z["grad_train/" + t5_pytorch.checkpoint_names(name, rms_norm=gated)[0]].T
        np.testing.assert_allclose(p.grad, want, atol=1e-4 * np.abs(want).max() + 1e-6, rtol=0, err_msg=name)


BAD = {
    "no vocabulary": (lambda f: (f / "t5" / "spiece.model").unlink(), {}, "spiece.model"),
    "bad vocabulary": (lambda f: (f / "t5" / "spiece.model").write_bytes(b"x" * 99), {}, "spiece.model"),
    "no sizes": (None, dict.fromkeys(SIZES), "config.json"),
    "no weights": (None, dict(from_scratch=None, model="small", **dict.fromkeys(SIZES)), "t5"),
    "size without from_scratch": (None, dict(from_scratch=None), "--d_model.*--from_scratch"),
    "model": (None, dict(model="huge"), "--model.*huge.*small"),
    "dropout": (None, dict(dropout=1), "--dropout is 1"),
    "n_head": (None, dict(n_head=0), "--n_head is 0"),
    "label_smoothing": (None, dict(label_smoothing=1.1), "--label_smoothing is 1.1"),
    "analysis": (None, dict(analysis=True), "--submit"),
    "no data": (None, dict(data_dir="nowhere"), "cs.rochester.edu"),
    "header": (lambda f: write_csv(f / "data" / VALID_FILE, rows(3), header=[*COLUMNS[:-1], "Answer"]), {},
               "AnswerRightEnding"),
    "answer": (lambda f: write_csv(f / "data" / TEST_FILE, [[*rows(1)[0][:-1], "0"]]), {}, "row 2.*'0'"),
    "n_batch": (None, dict(n_batch=40), "--n_batch 40.*31"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gets_one_line(setup, capfd, kind):
    damage, changes, message = BAD[kind]
    if damage:
        damage(setup.folder)
    before = sorted(setup.folder.rglob("*"))
    try:
        status = run_script(train_t5.main, setup(**changes))
    except SystemExit as error:
        status = error.code
    lines = [line for line in re.split(r"[\r\n]+", capfd.readouterr().err) if line.strip() and "text/s" not in line]
    assert status == 2 and len(lines) == 1 and re.search(message, lines[0]), lines
    assert sorted(setup.folder.rglob("*")) == before


def test_a_vocabulary_larger_than_the_model_is_refused(setup, capfd):
    export_t5_model(tiny(n_tokens=128), str(setup.folder / "t5"))
    assert run_script(train_t5.main, setup(from_scratch=None, **dict.fromkeys(SIZES))) == 2
    assert "160 ids" in capfd.readouterr().err
    config = json.load(open(setup.folder / "t5" / "config.json"))
    assert config["vocab_size"] == 128


def test_label_smoothing_is_used_with_and_without_plain(setup):
    ends = {}
    for desc, changes in (("fast", dict(label_smoothing=0.2)), ("plain", dict(label_smoothing=0.2, plain=True)),
                          ("none", {})):
        train_t5.main(setup(desc=desc, dropout=0, n_iter=1, **changes))
        ends[desc] = torch.load(setup.folder / "save" / desc / "checkpoint", weights_only=True)["model"]
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    largest = (ends["none"][name] - ends["fast"][name]).abs().max()
    assert largest > 1e-5 and (ends["plain"][name] - ends["fast"][name]).abs().max() < 0.02 * largest


def test_sources_longer_than_n_ctx_are_cut_with_one_warning(setup, capfd):
    train_t5.main(setup(n_ctx=20, n_iter=1))
    assert capfd.readouterr().err.count("warning") == 1


def test_two_processes_end_where_one_does(setup):
    train_t5.main(setup(desc="one", dropout=0))
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                          train_t5.__file__, *setup(desc="two", dropout=0)], capture_output=True, text=True, timeout=99)
    assert run.returncode == 0, run.stderr
    one, two = (torch.load(setup.folder / "save" / desc / "checkpoint", weights_only=True)["model"]
                for desc in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=0)
    assert len(read_log(setup.folder / "log" / "two.jsonl")) == 3  # logged once
