"""Fine-tuning from the command line: what it writes, its options, and its answers to bad input."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cloze_data import options, rows, write_csv, write_data_dir
from conftest import write_small_vocabulary

import train
from datasets import TEST_FILE, VALID_FILE
from model_pytorch import ACT_FNS, LMModel, dotdict, export_hub_model, export_openai_model
from opt import SCHEDULES
from text_utils import TextEncoder
from training import finetuning
from training.distributed import World
from utils import read_log, run_script

TIMES = ("time", "log_dir", "save_dir", "submission_dir", "desc")


@pytest.fixture
def setup(tmp_path, small_vocabulary):
    """A function of changed options that returns the command line of a tiny run, and its folder."""
    data_dir = write_data_dir(tmp_path / "data")

    def argv(**changes):
        return options(tmp_path, **dict(data_dir=data_dir, vocabulary=small_vocabulary) | changes)

    argv.folder = tmp_path
    return argv


def log_of(setup, desc="tiny"):
    """The log's lines without times and paths."""
    lines = read_log(setup.folder / "log" / f"{desc}.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_a_run_writes_log_parameters_submission_and_accuracies(setup, capsys):
    train.main(setup(submit=True, analysis=True))
    out = capsys.readouterr().out
    header, *lines = log_of(setup)
    assert header["lr"] == 1e-3 and header["n_embd"] == 12
    # 31 training stories, 8 an update: 3 updates an epoch, the last 7 stories of an epoch dropped
    assert [(line["n_epochs"], line["n_updates"]) for line in lines] == [(1, 3), (2, 6)]
    assert all(set(line) == {"n_epochs", "n_updates", "tr_cost", "va_cost", "tr_acc", "va_acc"} for line in lines)
    state = torch.load(setup.folder / "save" / "tiny" / "best_params", weights_only=True)
    assert state["transformer.embed.weight"].shape[1] == 12
    predictions = (setup.folder / "submission" / "ROCStories.tsv").read_text().split("\n")
    assert predictions[0] == "index\tprediction" and len(predictions) == 23
    assert [row.split("\t")[0] for row in predictions[1:-1]] == [str(i) for i in range(21)]
    best = max(line["va_acc"] for line in lines)
    assert f"ROCStories Valid Accuracy: {best:.2f}\n" in out and "ROCStories Test Accuracy:  " in out


def test_costs_are_means_per_example_of_the_plain_path(setup):
    train.main(setup(n_iter=1, submit=True))
    args = train.parse_args(setup())
    encoder = train.TextEncoder(args.encoder_path, args.bpe_path)
    n_vocab = len(encoder.encoder)
    (_, splits), n_ctx = train.load_data(args, encoder)
    model = train.DoubleHeadModel(args, n_vocab + 2, "multiple_choice", n_vocab + 3 + n_ctx, n_ctx)
    finetuning.load_best(args, model, World(0, 1, torch.device("cpu")))
    X, _, Y = map(torch.from_numpy, splits["valid"].layout(slice(None)))
    with torch.no_grad():
        logits = model(X)[1]
    line = log_of(setup)[-1]
    losses = [-logits[i].log_softmax(0)[Y[i]].item() for i in range(9)]
    assert line["va_cost"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert line["va_acc"] == pytest.approx(100 * (logits.argmax(1) == Y).float().mean())
    predictions = (setup.folder / "submission" / "ROCStories.tsv").read_text().split("\n")[1:-1]
    with torch.no_grad():
        want = model(torch.from_numpy(splits["test"].layout(slice(None)).x))[1].argmax(1)
    assert [int(p.split("\t")[1]) for p in predictions] == want.tolist()


def test_the_seed_fixes_everything(setup):
    for desc, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(setup(desc=desc, seed=seed))
    a, b, c = (log_of(setup, desc) for desc in "abc")
    assert a == b and a[1:] != c[1:]
    saved = [torch.load(setup.folder / "save" / d / "checkpoint", weights_only=True)["model"] for d in "ab"]
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


def parameters(setup, desc):
    saved = torch.load(setup.folder / "save" / desc / "checkpoint", weights_only=True)
    return saved["model"], saved["n_updates"]


NO_DROPOUT = dict(embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, clf_pdrop=0)


def test_towers_equal_one_big_batch(setup):
    for desc, n_batch, n_gpu in (("one", 8, 1), ("four", 2, 4)):
        train.main(setup(desc=desc, n_batch=n_batch, n_gpu=n_gpu, **NO_DROPOUT))
    (one, updates), (four, others) = parameters(setup, "one"), parameters(setup, "four")
    assert updates == others == 6
    for name in one:
        if not name.endswith(("c_attn.b", "task_head.linear.bias")):  # zero gradients: Adam moves them by noise
            torch.testing.assert_close(one[name], four[name], atol=2e-5, rtol=0)


def changed_by(setup, **changes):
    """How far the final parameters move when options change."""
    base = setup.folder / "save" / "base" / "checkpoint"
    if not base.exists():
        train.main(setup(desc="base", n_iter=1))
    train.main(setup(desc="other", n_iter=1, **changes))
    a, b = parameters(setup, "base")[0], parameters(setup, "other")[0]
    return max((a[k] - b[k]).abs().max().item() for k in a if a[k].shape == b[k].shape)


@pytest.mark.parametrize("changes", [
    *(dict(lr_schedule=name) for name in SCHEDULES if name != "warmup_linear"),
    *(dict(afn=name) for name in ACT_FNS if name != "gelu"),
    dict(lm_coef=0), dict(max_grad_norm=0.001), dict(l2=0.5), dict(l2=0.5, vector_l2=True), dict(lr_warmup=0.5),
    dict(b1=0.5), dict(b2=0.9), dict(e=1e-3), dict(embd_pdrop=0), dict(attn_pdrop=0.4), dict(resid_pdrop=0),
    dict(clf_pdrop=0.5), dict(n_valid=12), dict(seed=3), dict(lr=3e-3), dict(n_head=3), dict(precision="bf16")])
def test_every_option_has_an_effect(setup, changes):
    assert changed_by(setup, **changes) > 1e-6


def test_sizes_and_context_are_those_asked_for(setup, capfd):
    train.main(setup(n_embd=20, n_head=4, n_layer=1, n_ctx=16, n_iter=1))
    state = parameters(setup, "tiny")[0]
    assert state["transformer.h.0.mlp.c_fc.w"].shape == (20, 80) and "transformer.h.1.ln_1.g" not in state
    assert len(state["transformer.embed.weight"]) == 93 + 3 + 15  # 2 * (16 // 2 - 2) + 3 positions
    err = capfd.readouterr().err
    assert err.count("warning") == 1 and "of 61 stories" in err and "longer than 6 tokens" in err


def pretrained(folder, vocabulary, n_ctx=64):
    """A small model in the released format, vocabulary included."""
    folder.mkdir()
    n_vocab = len(json.load(open(vocabulary[0])))
    torch.manual_seed(5)
    cfg = dotdict(n_embd=12, n_head=2, n_layer=2, afn="gelu", embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    model = LMModel(cfg, n_vocab + n_ctx, n_ctx)
    export_openai_model(model, str(folder))
    write_small_vocabulary(folder)
    return model


@pytest.mark.parametrize("n_transfer", [2, 1, 0])
def test_pretrained_layers_are_transferred(setup, small_vocabulary, n_transfer):
    source = pretrained(setup.folder / "model", small_vocabulary)
    train.main(setup(model_dir=str(setup.folder / "model"), encoder_path=None, bpe_path=None, n_ctx=64,
                     n_transfer=n_transfer, n_iter=1, lr=0))
    state = parameters(setup, "tiny")[0]
    same = [torch.equal(state[f"transformer.h.{i}.mlp.c_fc.w"], source.transformer.h[i].mlp.c_fc.w) for i in range(2)]
    assert same == [n_transfer > 0, n_transfer > 1]
    assert torch.equal(state["transformer.embed.weight"][:93], source.transformer.embed.weight[:93])


def test_a_vocabulary_in_the_hub_s_form_trains_as_openai_s(setup, small_vocabulary):
    folder = setup.folder / "model"
    pretrained(folder, small_vocabulary)
    settings = dict(model_dir=str(folder), encoder_path=None, bpe_path=None, n_ctx=64, n_transfer=2, n_iter=1)
    train.main(setup(**settings))
    for name, other in (("encoder_bpe_40000.json", "vocab.json"), ("vocab_40000.bpe", "merges.txt")):
        (folder / name).rename(folder / other)
    train.main(setup(desc="hub", **settings))
    states = [parameters(setup, desc)[0] for desc in ("tiny", "hub")]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def test_the_last_update_leaves_parameters_alone_as_in_the_original(setup):
    # warmup_linear is 0 at t = t_total: the original's own schedule, see SCHEDULES
    train.main(setup(n_iter=1, n_gpu=7))  # one update in all
    after, updates = parameters(setup, "tiny")
    args = train.parse_args(setup(n_iter=1, n_gpu=7))
    n_ctx = len(after["transformer.embed.weight"]) - 96
    torch.manual_seed(args.seed)
    before = train.DoubleHeadModel(args, 95, "multiple_choice", 96 + n_ctx, n_ctx).state_dict()
    assert updates == 1 and all(torch.equal(after[name], value) for name, value in before.items())
    train.main(setup(n_iter=1, n_gpu=7, desc="other", lr_schedule="warmup_constant", lr_warmup=0))
    moved = parameters(setup, "other")[0]
    assert not torch.equal(moved["transformer.h.0.attn.c_attn.w"], before["transformer.h.0.attn.c_attn.w"])


def test_the_plain_text_trains_to_the_same_parameters(setup, capfd):
    for desc, plain in (("fast", None), ("plain", True)):
        train.main(setup(desc=desc, plain=plain, submit=True, **NO_DROPOUT))
    (fast, _), (plain, updates) = parameters(setup, "fast"), parameters(setup, "plain")
    assert updates == 6
    for name in fast:
        if not name.endswith(("c_attn.b", "task_head.linear.bias")):  # zero gradients: Adam moves them by noise
            torch.testing.assert_close(fast[name], plain[name], atol=2e-5, rtol=0)
    (header, *a), (plain_header, *b) = (log_of(setup, desc) for desc in ("fast", "plain"))
    assert not header["plain"] and plain_header["plain"]
    for ours, theirs in zip(a, b, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    capfd.readouterr()
    assert run_script(train.main, setup(desc="fast", plain=True, resume=True, **NO_DROPOUT)) == 2
    assert "--plain False then, True now" in capfd.readouterr().err  # fixed on resume


def test_compiling_implies_the_plain_text(setup, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    train.main(setup(n_iter=1, compile=True))
    assert compiled == ["Block", "Block"] and log_of(setup)[0]["plain"]


BAD_OPTIONS = {
    "n_ctx": (dict(n_ctx=5), "--n_ctx is 5"), "n_embd": (dict(n_embd=13), "--n_head is 2.*--n_embd 13"),
    "n_head": (dict(n_head=0), "--n_head is 0"), "n_layer": (dict(n_layer=0), "--n_layer is 0"),
    "afn": (dict(afn="tanh"), "--afn.*tanh.*relu.*swish.*gelu"),
    "n_transfer": (dict(n_transfer=3), "--n_transfer is 3.*-1 to 2"),
    "dataset": (dict(dataset="boolq"), "--dataset.*boolq.*rocstories.*stsb.*own"),
    "lr_schedule": (dict(lr_schedule="x"), "--lr_schedule.*x.*warmup_linear.*warmup_cosine.*warmup_constant"),
    "opt": (dict(opt="sgd"), "--opt.*sgd.*adam"), "number": (dict(n_iter="many"), "--n_iter.*many"),
    "n_iter": (dict(n_iter=0), "--n_iter is 0"), "embd_pdrop": (dict(embd_pdrop=1), "--embd_pdrop is 1"),
    "clf_pdrop": (dict(clf_pdrop=-0.1), "--clf_pdrop is -0.1"), "lr": (dict(lr="nan"), "--lr is nan"),
    "n_valid": (dict(n_valid=40), "--n_valid is 40.*1 to 39"), "n_batch": (dict(n_batch=16), "--n_batch 16.*31"),
    "desc": (dict(desc="../x"), "--desc"), "unknown": (dict(n_layers=3), "--n_layers"),
    "analysis": (dict(analysis=True), "--submit"), "b2": (dict(b2=1), "--b2 is 1"),
    "seed": (dict(seed=-1), "--seed is -1"), "device": (dict(device="tpu"), "--device.*tpu"),
    "no weights": (dict(n_transfer=2, model_dir="nowhere"), "nowhere.*finetune-transformer-lm.*--n_transfer -1"),
    "no vocabulary": (dict(bpe_path="nowhere"), "nowhere.*finetune-transformer-lm"),
    "no data": (dict(data_dir="nowhere"), "cs.rochester.edu/nlp/rocstories.*cloze_test_val.*cloze_test_test.*demo.py"),
}


def refused(argv, capfd, message, folder):
    """Run and check: status 2, one line on standard error that matches, nothing written."""
    before = sorted(folder.rglob("*"))
    try:
        status = run_script(train.main, argv)
    except SystemExit as error:  # argparse
        status = error.code
    lines = [line for line in re.split(r"[\r\n]+", capfd.readouterr().err) if line.strip() and "text/s" not in line]
    assert status == 2 and len(lines) == 1, lines
    assert re.search(message, lines[0]), lines[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_get_one_line(setup, capfd, name):
    changes, message = BAD_OPTIONS[name]
    refused(setup(**changes), capfd, message, setup.folder)


def test_a_folder_of_the_hubs_form_trains_to_the_same_parameters(setup, small_vocabulary, monkeypatch):
    source = pretrained(setup.folder / "model", small_vocabulary)
    export_hub_model(source, setup.folder / "hub", TextEncoder(*small_vocabulary))
    monkeypatch.setattr("train.local_folder", lambda name: str(setup.folder / "hub") if name == "their/gpt" else name)
    runs = {}
    for desc, place in (("a", str(setup.folder / "model")), ("b", str(setup.folder / "hub")), ("c", "their/gpt")):
        train.main(setup(desc=desc, model_dir=place, encoder_path=None, bpe_path=None, n_ctx=64, n_transfer=2,
                         n_iter=1))
        runs[desc] = parameters(setup, desc)[0]
    for desc in "bc":
        assert all(torch.equal(p, runs["a"][name]) for name, p in runs[desc].items())


@pytest.mark.parametrize("changes, message", [
    (dict(n_ctx=65), "--n_ctx is 65.*6 to 64"), (dict(n_embd=24), "--n_embd is 24.*have 12.*--n_transfer -1"),
    (dict(n_layer=3, n_transfer=3), "--n_transfer is 3.*-1 to 2"), (dict(n_head=3), "--n_head is 3.*has 2"),
    (dict(afn="relu"), "--afn is relu.*has gelu")])
def test_options_that_do_not_fit_the_weights(setup, small_vocabulary, capfd, changes, message):
    pretrained(setup.folder / "model", small_vocabulary)
    refused(setup(**dict(model_dir=str(setup.folder / "model"), n_transfer=2, n_ctx=64) | changes), capfd, message,
            setup.folder)


def damaged_vocabulary(folder):
    encoder = json.load(open(folder / "encoder_bpe_40000.json"))
    encoder["<extra>"] = len(encoder)
    json.dump(encoder, open(folder / "encoder_bpe_40000.json", "w"))


DAMAGE = {
    "params missing": (lambda f: (f / "params_3.npy").unlink(), "params_3.npy.*not found.*finetune-transformer-lm"),
    "params cut": (lambda f: (f / "params_3.npy").write_bytes((f / "params_3.npy").read_bytes()[:-40]),
                   "params_3.npy.*found.*expected"),
    "params float64": (lambda f: np.save(f / "params_3.npy", np.load(f / "params_3.npy").astype(float)),
                       "params_3.npy.*float64.*float32"),
    "params pickled": (lambda f: np.save(f / "params_3.npy", np.array([{}]), allow_pickle=True), "params_3.npy"),
    "pointer": (lambda f: (f / "params_3.npy").write_text("version https://git-lfs.github.com/spec/v1\n"),
                "params_3.npy.*LFS"),
    "shapes": (lambda f: (f / "params_shapes.json").write_text("[[64, 12], [93, 12], [1]]"), "params_shapes.json"),
    "shapes missing": (lambda f: (f / "params_shapes.json").unlink(), "no pretrained model"),
    "merges missing": (lambda f: (f / "vocab_40000.bpe").unlink(), "vocab_40000.bpe.*not found"),
    "vocabulary missing": (lambda f: (f / "encoder_bpe_40000.json").unlink(), "encoder_bpe_40000.json.*not found"),
    "another vocabulary": (damaged_vocabulary, "94 pieces.*93 tokens"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_folder(setup, small_vocabulary, capfd, kind):
    folder = setup.folder / "model"
    pretrained(folder, small_vocabulary)
    DAMAGE[kind][0](folder)
    refused(setup(model_dir=str(folder), encoder_path=None, bpe_path=None, n_transfer=2, n_ctx=64), capfd,
            DAMAGE[kind][1], setup.folder)


@pytest.mark.parametrize("file", [VALID_FILE, TEST_FILE])
@pytest.mark.parametrize("content, message", [
    (None, "not found.*requested"), (b"", "empty"), (b"a,b\n1,2\n", "row 1.*InputStoryid"), (b"\xff\xfe", "UTF-8")])
def test_damaged_data(setup, capfd, file, content, message):
    path = setup.folder / "data" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(setup(), capfd, f"{file}.*{message}" if content is not None else message, setup.folder)


def test_wrong_answers_name_their_row(setup, capfd):
    bad = rows(5)
    bad[3][7] = "both"
    write_csv(setup.folder / "data" / TEST_FILE, bad)
    refused(setup(), capfd, f"{TEST_FILE}: row 5.*'both'.*1 or 2", setup.folder)


def test_a_loss_that_is_not_finite_stops_the_run(setup, small_vocabulary, capfd):
    folder = setup.folder / "model"
    pretrained(folder, small_vocabulary)
    train.main(setup())
    last_good = (setup.folder / "save" / "tiny" / "checkpoint").read_bytes()
    values = np.load(folder / "params_9.npy")
    values[-3] = np.nan
    np.save(folder / "params_9.npy", values)
    capfd.readouterr()
    argv = setup(model_dir=str(folder), n_transfer=2, n_ctx=64)
    assert run_script(train.main, argv) == 2
    message = capfd.readouterr().err.strip().split("\n")[-1]
    assert "update 1 (epoch 1, batch 1): the loss is nan" in message
    assert (setup.folder / "save" / "tiny" / "checkpoint.previous").read_bytes() == last_good
    assert not (setup.folder / "save" / "tiny" / "checkpoint").exists()


def test_an_unwritable_folder_gets_one_line(setup, capfd):
    (setup.folder / "log").write_text("a file, not a folder")
    assert run_script(train.main, setup()) == 2
    assert "log" in capfd.readouterr().err.strip().split("\n")[-1]


def test_a_stranger_s_shell(setup):
    """The script as a process: exit status, one line, no traceback; and help that explains every option."""
    def run(*argv):
        return subprocess.run([sys.executable, train.__file__,
                               *argv], capture_output=True, text=True, cwd=setup.folder, timeout=120)

    bad = run(*setup(data_dir="nowhere"))
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and bad.stderr.startswith("train.py: ")
    text = run("--help").stdout
    for name in ("desc", "dataset", "log_dir", "save_dir", "data_dir", "submission_dir", "submit", "analysis", "seed",
                 "n_iter", "n_batch", "max_grad_norm", "lr", "lr_warmup", "n_ctx", "n_embd", "n_head", "n_layer",
                 "embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop", "l2", "vector_l2", "n_gpu", "opt", "afn",
                 "lr_schedule", "encoder_path", "bpe_path", "n_transfer", "lm_coef", "b1", "b2", "e", "n_valid",
                 "model_dir"):
        assert f"--{name}" in text
    assert "(default: 6.25e-05)" in text
