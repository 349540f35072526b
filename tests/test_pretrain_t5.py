"""Pre-training T5: its vocabulary, its loss, what it writes, its answers to bad input."""

import math
import os
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cloze_data import options, write_data_dir
from pretraining import argv, stop_after, stories, write_text
from t5_vocabularies import write_tokenizer

import opt
import pretrain_t5
import train_t5
from formats.errors import BadInput
from formats.files import load_tensors
from t5_pytorch import EOS, FEED_FORWARD_KINDS, T5, T5_CONFIGS, load_t5_pretrained_model, read_t5_config, shift_right
from text_utils import SentencePieceEncoder
from training import corpus
from training.span_corruption import corrupt, random_spans_helper
from utils import read_log, run_script

SIZES = dict(d_model=12, d_ff=20, n_head=2, d_kv=5, n_layer=2, dropout=0.1)


def settings(folder, **changes):
    """Options of a tiny run, with two spans a sequence: a single one would always be its end."""
    return dict(text=write_text(folder), n_pieces=60, n_ctx=40, n_batch=8, n_iter=2, n_warmup=20, held_out=0.05,
                **SIZES) | changes


@pytest.fixture
def run(tmp_path):
    """A function that pre-trains a tiny model with changed options; .argv gives the command line instead."""
    def go(**changes):
        pretrain_t5.main(go.argv(**changes))
        return tmp_path

    go.argv, go.folder = lambda **changes: argv(tmp_path, settings(tmp_path, **changes)), tmp_path
    return go


def log_of(folder, desc="tiny"):
    lines = read_log(folder / "log" / f"{desc}.jsonl")
    return [{k: v for k, v in line.items() if k != "time"} for line in lines[1:]]


def test_the_vocabulary_has_t5_s_special_pieces_and_does_not_vary():
    data = pretrain_t5.learn_vocabulary(stories(100), 60)
    assert data == pretrain_t5.learn_vocabulary(stories(100), 60)


def test_a_long_text_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(pretrain_t5, "MAX_LINES", 40)
    lines = stories(100)
    assert pretrain_t5.learn_vocabulary(lines, 50) == pretrain_t5.learn_vocabulary(lines[::3], 50)


@pytest.mark.parametrize("line", ["ж\tж", "ж ▅", " ж ".join(stories(12_000))],
                         ids=["tab", "the library's sign", "1.2 MB"])
def test_no_line_is_left_out_of_the_vocabulary(tmp_path, line):
    (tmp_path / "spiece.model").write_bytes(pretrain_t5.learn_vocabulary([*stories(50), *[line] * 5], 60))
    assert 2 not in SentencePieceEncoder.from_folder(tmp_path).encode(["жж"], verbose=False)[0]


def test_a_text_of_one_line_gives_the_ids_of_the_whole(run, monkeypatch):
    text = run.folder / "line.txt"
    text.write_text(" ".join(stories(100)), encoding="utf-8")
    found = []
    for part in (1 << 16, 100):
        monkeypatch.setattr(corpus, "PART", part)
        args = pretrain_t5.parse_args(run.argv(text=text, init_dir=found and run.folder / "init" or None))
        encoder, train, held_out = pretrain_t5.load_data(args, str(run.folder / "init"), 30)
        found.append(np.concatenate([train, held_out]).ravel().tolist())
    assert found[0] == found[1] == encoder.encode([text.read_text()], verbose=False)[0][:len(found[0])]


def test_training_goes_on_from_a_tokenizer_json(run):
    folder = run()
    write_tokenizer(folder / "out" / "spiece.model", folder / "out")
    want = SentencePieceEncoder(folder / "out" / "spiece.model")
    (folder / "out" / "spiece.model").unlink()
    run(desc="on", init_dir=folder / "out", model_dir=folder / "on", n_iter=1, **dict.fromkeys(SIZES))
    got = SentencePieceEncoder(folder / "on" / "spiece.model")
    assert got.encode(stories(5), verbose=False) == want.encode(stories(5), verbose=False) and len(got) == len(want)


def test_other_sentinels_than_t5_s_get_one_line(run, capsys):
    folder = run()
    write_tokenizer(folder / "out" / "spiece.model", folder / "out", n_sentinels=7)
    (folder / "out" / "spiece.model").unlink()
    args = pretrain_t5.parse_args(run.argv(init_dir=folder / "out"))
    with pytest.raises(BadInput, match=r"does not end in 100 sentinels that count down, as T5's does \(it has 7\)"):
        pretrain_t5.load_data(args, str(folder / "on"), 30)
    assert not (folder / "on").exists()


@pytest.mark.parametrize("n_pieces, answer", [(4, "allowed is at least"), (5000, "allowed is at most")])
def test_an_impossible_number_of_pieces_gets_one_line(n_pieces, answer):
    with pytest.raises(BadInput, match=f"--n_pieces is {n_pieces}, for this text {answer} [0-9]+$"):
        pretrain_t5.learn_vocabulary(stories(100), n_pieces)


def test_sequences_follow_the_text_and_fill_the_input(run):
    args = pretrain_t5.parse_args(run.argv(n_ctx=50))
    length = pretrain_t5.check_args(args, torch_world())[0]
    assert length == random_spans_helper(50)[0]
    encoder, train, held_out = pretrain_t5.load_data(args, str(run.folder), length)
    ids = [i for line in encoder.encode(stories(100), verbose=False) for i in line]
    both = np.concatenate([train, held_out])
    assert both.ravel().tolist() == ids[:both.size] and len(ids) - both.size < length
    inputs, _ = corrupt(train, encoder.sentinel(0), EOS, 0.15, 3.0, np.random.default_rng(0))
    assert inputs.shape[1] == 50


def torch_world():
    return pretrain_t5.distributed.World(0, 1, torch.device("cpu"))


def plain_losses(model, src, targets):
    """Logits and cross entropies of the target tokens by the plain path."""
    logits = model(src, shift_right(targets))
    return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")


@pytest.mark.parametrize("plain", [False, True])
def test_the_loss_is_the_original_s(plain):
    torch.manual_seed(3)
    model = T5(dim=8, enc_num_tokens=30, dec_num_tokens=30, enc_depth=1, dec_depth=1, enc_heads=2, dec_heads=2)
    src, targets = torch.randint(2, 30, (3, 7)), torch.randint(2, 30, (3, 5))
    logits, losses = plain_losses(model, src, targets)
    args = Namespace(plain=plain, checkpoint_activations=False)
    found = pretrain_t5.mean_loss(args, model, src, targets, 1e-4)
    torch.testing.assert_close(found, losses.mean() + 1e-4 * logits.logsumexp(-1).square().mean())
    torch.testing.assert_close(pretrain_t5.mean_loss(args, model, src, targets), losses.mean())


def test_the_folder_holds_the_best_parameters_in_the_hub_s_layout(run, monkeypatch):
    # the high rate at the end spoils the model again, so that the best parameters are not the last
    monkeypatch.setattr(opt, "rsqrt_schedule", lambda step, warmup: 0.1 if step < 60 else 0.8)
    folder = run(n_iter=5)
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "config.json", "model.safetensors", "spiece.model"]
    lines = log_of(folder)
    assert [set(line) for line in lines] == 5 * [{"n_epochs", "n_updates", "tr_cost", "va_cost", "tr_ppl", "va_ppl",
                                                  "unigram_ppl"}]
    best = min(line["va_ppl"] for line in lines)
    assert best < lines[-1]["va_ppl"]
    encoder = SentencePieceEncoder.from_folder(str(folder / "out"))
    assert encoder.n_tokens == 160
    config = read_t5_config(str(folder / "out"))
    assert config == dict(
        dim=12, d_ff=20, dropout=0.1, feed_forward="relu", tie_logits=True, enc_depth=2, dec_depth=2,
        enc_num_tokens=256, dec_num_tokens=256, enc_heads=2, dec_heads=2, enc_dim_head=5, dec_dim_head=5)
    model = T5(**config)
    load_t5_pretrained_model(model, str(folder / "out"))
    args = pretrain_t5.parse_args(run.argv())
    _, train, held_out = pretrain_t5.load_data(args, str(folder / "again"), random_spans_helper(40)[0])
    rng = np.random.default_rng(args.seed)
    corrupt(train[:len(held_out)], encoder.sentinel(0), EOS, 0.15, 3.0, rng)
    src, targets = map(torch.from_numpy, corrupt(held_out, encoder.sentinel(0), EOS, 0.15, 3.0, rng))
    with torch.no_grad():
        losses = plain_losses(model.eval(), src, targets)[1]
    assert math.exp(losses.mean().item()) == pytest.approx(best, rel=1e-5)


def test_it_learns(run):
    last = log_of(run(n_iter=8, d_model=24, d_ff=48, dropout=0, n_warmup=300))[-1]
    assert last["va_ppl"] < last["unigram_ppl"] / 2


@pytest.mark.parametrize("kind", FEED_FORWARD_KINDS)
def test_train_t5_reads_the_folder(run, capsys, kind):
    folder = run(n_iter=1, feed_forward=kind)
    line = options(folder, write_data_dir(folder / "data"), (None, None), desc="tuned", n_iter=1)
    sizes = ("--n_transfer", "--n_embd", "--n_head", "--n_layer")
    kept = [part for i, part in enumerate(line) if part not in sizes and line[i - 1] not in sizes]
    train_t5.main([*kept, "--model_dir", str(folder / "out")])
    assert re.search(r"loaded \d+ variables from", capsys.readouterr().out)
    assert len(log_of(folder, "tuned")) == 1


@pytest.mark.parametrize("kind", FEED_FORWARD_KINDS)
def test_transformers_reads_the_folder(run, kind):
    transformers = pytest.importorskip("transformers")
    folder = run(n_iter=1, feed_forward=kind)
    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = T5(**read_t5_config(str(folder / "out"))).eval()
    load_t5_pretrained_model(ours, str(folder / "out"))
    src, tgt = torch.randint(2, 160, (3, 9)), torch.randint(2, 160, (3, 4))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(input_ids=src, decoder_input_ids=tgt).logits, ours(src, tgt),
                                   atol=1e-5, rtol=1e-5)


def test_sizes_of_a_released_model(run):
    args = pretrain_t5.parse_args(run.argv(model="v1_1-small", **dict.fromkeys(SIZES)))
    wanted = T5_CONFIGS["v1_1-small"] | dict(enc_num_tokens=32128, dec_num_tokens=32128)
    assert pretrain_t5.model_config(args, 32100) == wanted


def test_continued_pre_training_starts_from_the_folder(run):
    folder = run()
    keep = dict.fromkeys(SIZES)
    run(desc="on", init_dir=folder / "out", model_dir=folder / "on", n_pieces=4, n_iter=1, n_warmup=10 ** 18, **keep)
    assert (folder / "on" / "spiece.model").read_bytes() == (folder / "out" / "spiece.model").read_bytes()
    models = [T5(**read_t5_config(str(folder / name))) for name in ("out", "on")]
    for model, name in zip(models, ("out", "on"), strict=True):
        load_t5_pretrained_model(model, str(folder / name))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_stopped_run_continues_bit_for_bit(run, monkeypatch, capsys):
    run(desc="whole", model_dir=run.folder / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, opt.Adafactor, 11)
        assert run_script(pretrain_t5.main, run.argv(save_every=5)) == 130
    assert not (run.folder / "out").exists()
    run(resume=True)
    assert "continuing after update 10" in capsys.readouterr().out
    assert log_of(run.folder) == log_of(run.folder, "whole")
    states = [load_tensors(str(run.folder / "save" / desc / "checkpoint")) for desc in ("tiny", "whole")]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())
    for file in (run.folder / "whole").iterdir():
        assert (run.folder / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.fixture(scope="module")
def plain_log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    pretrain_t5.main(argv(folder, settings(folder, n_iter=1)))
    return log_of(folder)[-1]


@pytest.mark.parametrize("changes", [
    dict(n_ctx=38), dict(n_pieces=50), dict(held_out=0.2), dict(noise_density=0.3), dict(mean_noise_span_length=1.5),
    dict(d_model=16), dict(d_ff=24), dict(n_head=3), dict(d_kv=6), dict(n_layer=1), dict(feed_forward="gated-gelu"),
    dict(dropout=0), dict(n_warmup=40), dict(n_batch=4, n_gpu=2), dict(precision="bf16"), dict(seed=1)], ids=str)
def test_every_option_has_an_effect(run, changes, plain_log):
    assert abs(log_of(run(**dict(n_iter=1) | changes))[-1]["va_cost"] - plain_log["va_cost"]) > 1e-7


def test_two_processes_end_where_one_does(run):
    changes = dict(n_gpu=2, n_batch=4, dropout=0, n_iter=1, n_warmup=10 ** 4)
    run(**changes)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, pretrain_t5.__file__, *run.argv(desc="two", model_dir=run.folder / "two", **changes)],
                   check=True, timeout=120, cwd=run.folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = log_of(run.folder), log_of(run.folder, "two")
    assert len(two) == 1 and two[0]["va_cost"] == pytest.approx(one[0]["va_cost"], abs=1e-6)


@pytest.mark.parametrize("changes, answer", [
    (dict(text="nowhere.txt"), "nowhere.txt: not found"),
    (dict(n_ctx=3, noise_density=0.9, dropout=1), "--dropout is 1.0, .*--n_ctx is 3, .*--noise_density is 0.9"),
    (dict(n_ctx=900, noise_density=0.5, mean_noise_span_length=1), "more spans than the 100 sentinels"),
    (dict(n_ctx=90000, mean_noise_span_length=2000), "sequences of"),
    (dict(n_batch=5000), "--n_batch 5000 times --n_gpu 1 is more than"),
    (dict(init_dir="nowhere"), "--d_model has no effect with --init_dir"),
    (dict(init_dir="nowhere") | dict.fromkeys(SIZES), "nowhere/spiece.model: vocabulary file not found"),
    (dict(n_pieces=9999), "--n_pieces is 9999, for this text allowed is at most"),
    (dict(model="tiny"), "argument --model: invalid choice")])
def test_bad_options_get_one_line(run, capsys, changes, answer):
    one_line(run.argv(**changes), answer, capsys)
    assert not (run.folder / "out").exists() and not (run.folder / "log").exists()


def one_line(line, answer, capsys):
    capsys.readouterr()
    try:
        status = run_script(pretrain_t5.main, line)
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err.split("\r")[-1].strip()
    assert status == 2 and re.search(answer, err) and "\n" not in err, err


@pytest.mark.parametrize("content, answer", [
    (b" \n\n", "nothing but blank lines"), (b"good\n\nb\xffd\n", "line 3 is not UTF-8 at byte 1")])
def test_bad_text_gets_one_line(run, capsys, content, answer):
    (run.folder / "bad.txt").write_bytes(content)
    one_line(run.argv(text=run.folder / "bad.txt"), answer, capsys)


def test_a_model_that_is_there_is_not_overwritten(run, capsys):
    folder = run(n_iter=1)
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    one_line(run.argv(seed=7), "holds a model already", capsys)
    assert before == {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_a_vocabulary_too_large_for_the_model_gets_one_line(run, capsys):
    folder = run(n_iter=1)
    (folder / "out" / "config.json").write_text(
        (folder / "out" / "config.json").read_text().replace('"vocab_size": 256', '"vocab_size": 128'))
    line = run.argv(init_dir=folder / "out", model_dir=folder / "on", desc="on", **dict.fromkeys(SIZES))
    one_line(line, "has 160 ids with the sentinels, but the model only 128", capsys)
