"""Pre-training a GPT: the vocabulary it learns, the sequences it makes, what it writes, its answers to bad input."""

import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from cloze_data import options, write_data_dir
from pretraining import argv, stop_after, stories, write_text
from tokenizers import Tokenizer, models, pre_tokenizers

import opt
import pretrain
import train
from formats.errors import BadInput
from formats.files import load_tensors
from formats.words import english_tokenizer
from model_pytorch import ACT_FNS, LMModel, dotdict, export_hub_model, load_openai_pretrained_model
from text_utils import TextEncoder, read_encoder, read_merges
from training import corpus
from utils import read_log, run_script

SIZES = dict(n_embd=12, n_head=2, n_layer=2)


@pytest.fixture
def run(tmp_path):
    """A function that pre-trains a tiny model with changed options; .argv gives the command line instead."""
    def line(**changes):
        return argv(tmp_path, dict(text=write_text(tmp_path), n_merges=60, n_ctx=10, n_batch=16, n_iter=2, n_warmup=3,
                                   held_out=0.05, lr=3e-3, **SIZES) | changes)

    def go(**changes):
        pretrain.main(line(**changes))
        return tmp_path

    go.argv, go.folder = line, tmp_path
    return go


def log_of(folder, desc="tiny"):
    lines = read_log(folder / "log" / f"{desc}.jsonl")
    return [{k: v for k, v in line.items() if k != "time"} for line in lines[1:]]


def encoder_of(folder):
    return TextEncoder(*(str(folder / name) for name in pretrain.VOCABULARY))


# ---- the vocabulary

@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(words, counts, encoder, merges) of 300 stories."""
    words, numbers = pretrain.read_words([write_text(tmp_path_factory.mktemp("text"), 300)], verbose=False)
    counts = np.bincount(numbers)
    return words, counts, *pretrain.learn_vocabulary(words, counts, 70, 238)


def test_each_merge_joins_a_most_frequent_pair(learned):
    words, counts, encoder, merges = learned
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words if word.strip()}
    count = dict(zip(words, counts.tolist(), strict=True))
    assert len(merges) == 70
    for left, right in merges:
        pairs = Counter()
        for word, parts in pieces.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] += count[word]
        assert pairs[left, right] == max(pairs.values())
        for parts in pieces.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i:i + 2] = [left + right]
                i += 1


def test_merges_do_not_vary_between_runs(learned):
    words, counts, encoder, merges = learned
    for _ in range(3):
        assert pretrain.learn_vocabulary(words, counts, 70, 238) == (encoder, merges)


def test_ids_are_in_openai_s_order(learned):
    words, counts, encoder, merges = learned
    pieces = list(encoder)
    assert list(encoder.values()) == list(range(len(encoder)))
    n_chars = next(i for i, piece in enumerate(pieces) if piece.endswith("</w>")) - 1
    chars = pieces[1:n_chars + 1]
    assert pieces[0] == "<unk>" and pieces[-1] == "\n</w>"
    assert pieces[n_chars + 1:2 * n_chars + 1] == [c + "</w>" for c in chars]
    assert pieces[2 * n_chars + 1:-1] == list(dict.fromkeys(a + b for a, b in merges))
    frequency = Counter("".join(word.strip() * n for word, n in zip(words, counts.tolist(), strict=True)))
    assert set(chars) == set(frequency)
    assert [frequency[c] for c in chars] == sorted(frequency.values(), reverse=True)


def test_text_encoder_segments_as_the_library_does(learned, tmp_path):
    words, counts, encoder, merges = learned
    pretrain.write_vocabulary(str(tmp_path), encoder, merges)
    ours = encoder_of(tmp_path)
    assert read_encoder(str(tmp_path / "encoder_bpe_40000.json")) == encoder
    assert list(read_merges(str(tmp_path / "vocab_40000.bpe"))) == merges
    library = Tokenizer(models.BPE(vocab=encoder, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    others = [word for line in stories(20, 7) for word in ours.words(line + " wonderland undoing parking, kites")]
    for word in {*words, *others} - {"\n "}:
        assert ours.bpe(word).split(" ") == library.encode(word).tokens, word
    assert ours.word_ids("\n ") == [encoder["\n</w>"]]


def test_rare_characters_stay_out(tmp_path):
    words, counts = ["ab", "abcd", "ñu", "\n "], [5, 9, 1, 30]
    encoder, merges = pretrain.learn_vocabulary(words, counts, 5, 2)
    assert [p for p in encoder if len(p) == 1] == ["a", "b"]
    assert merges == [("a", "b</w>")]  # not ("a", "b") of abcd, some of whose characters are left out
    pretrain.write_vocabulary(str(tmp_path), encoder, merges)
    assert encoder_of(tmp_path).word_ids("ñu") == [0, 0]


def test_merges_end_where_the_text_has_no_more(tmp_path):
    assert len(pretrain.learn_vocabulary(["abc", "ab"], [3, 4], 50, 238)[1]) == 3


# ---- the sequences

def test_ids_are_those_of_the_whole_text_at_once(learned, tmp_path):
    text = "\ufeff" + "\r\n".join([*stories(9), "", "  ", "a\u2014b\u2026 \u00b4x\u00b4 &amp; {cafe\u0301}", " end "])
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("utf-8"))
    pretrain.write_vocabulary(str(tmp_path), *learned[2:])
    encoder = encoder_of(tmp_path)
    words, numbers = pretrain.read_words([str(path)], verbose=False)
    ids = pretrain.encode_words(encoder, words, numbers)
    newline = encoder.encoder["\n</w>"]
    assert ids.tolist() == [*encoder.encode([text.lstrip("\ufeff")], verbose=False)[0], newline]
    assert np.count_nonzero(ids == newline) == 11
    assert len(set(words)) == len(words) < len(numbers)


def test_lines_of_any_kind_are_read(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffone \r\n\r\n  caf\u00e9\ttwo\n \n".encode())
    (tmp_path / "b").write_bytes(b"three")
    assert list(corpus.read_parts([str(tmp_path / "a"), str(tmp_path / "b")])) == [
        ("one", True), ("café\ttwo", True), ("three", True)]


def odd_lines(n, seed):
    """Lines of all lengths with blanks of all kinds, bytes of one to four to a character, and words of all lengths."""
    rng = random.Random(seed)
    words = ["a", "cat", "Zoë,", "dog.", "\u4e2d\u6587", "\U0001f642", "don't", ":)", "x" * 30, "\u2014", "=" * 12,
             "\ufeff"]
    blanks = [" "] * 12 + ["  ", "\t", "\u00a0", "\u2028", " \r ", "\u3000 ", "\x85"]
    return ["".join(rng.choice(words) + rng.choice(blanks) for _ in range(rng.choice((0, 1, 4, 30, 200))))
            for _ in range(n)]


@pytest.mark.parametrize("part", [1, 7, 40, 300])
def test_long_lines_are_cut_and_give_the_same_words(tmp_path, monkeypatch, part):
    path, tokenizer = str(tmp_path / "text"), english_tokenizer()
    lines = odd_lines(60, part)
    (tmp_path / "text").write_text("\n".join(lines), encoding="utf-8", newline="")

    def read():
        parts = list(corpus.read_parts([path], verbose=False))
        return parts, [word for of_part in corpus.read_words(tokenizer, [path], verbose=False) for word in of_part]

    whole, words = read()
    monkeypatch.setattr(corpus, "PART", part)
    parts, words_of_parts = read()
    assert words_of_parts == words and words.count("\n ") >= 40
    assert len(parts) > len(whole) == sum(ends for _, ends in parts)
    # a cut is at a blank, so a part may be longer by the words that have none between them that will do
    assert max(len(text) for text, _ in parts) < max(part, 1) + 200 < max(len(text) for text, _ in whole)


def test_a_line_without_a_blank_is_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 8)
    (tmp_path / "text").write_text("a" * 100 + "\n" + "b" * 30 + " c", encoding="utf-8")
    assert list(corpus.read_parts([str(tmp_path / "text")])) == [("a" * 100, True), ("b" * 30, False), ("c", True)]


@pytest.mark.parametrize("content, answer", [
    ("é " * 20 + "\nab " + "é " * 20 + "\udcff a", "line 2 is not UTF-8 at byte 63;"),
    ("é " * 20 + "\n\n" + "ab " * 20 + "\0", "line 3 holds a NUL byte"),
    ("\ufeffab\udcc3", "line 1 is not UTF-8 at byte 5;")])
def test_bad_bytes_in_a_long_line_are_counted_from_its_start(tmp_path, monkeypatch, content, answer):
    monkeypatch.setattr(corpus, "PART", 10)
    (tmp_path / "text").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=answer):
        list(corpus.read_parts([str(tmp_path / "text")]))


def test_sequences_follow_the_text_and_its_end_is_held_out(run):
    args = pretrain.parse_args(run.argv(n_ctx=7, held_out=0.1))
    encoder, train_part, held_out = pretrain.load_data(args, str(run.folder))
    ids = encoder.encode(["\n".join(stories(100))], verbose=False)[0]
    both = np.concatenate([train_part, held_out])
    assert both.ravel().tolist() == [*ids, encoder.encoder["\n</w>"]][:both.size] and len(ids) + 1 - both.size < 7
    assert len(held_out) == round(len(both) * 0.1)


def test_at_least_one_sequence_is_held_out_and_one_stays():
    sequences = np.arange(12).reshape(3, 4)
    assert [len(part) for part in corpus.hold_out(sequences, 1e-9)] == [2, 1]
    assert [len(part) for part in corpus.hold_out(sequences[:2], 0.9)] == [1, 1]
    with pytest.raises(BadInput, match="--text gives 1 sequences of 4 tokens"):
        corpus.hold_out(sequences[:1], 0.1)


def test_unigram_perplexity_by_hand():
    # counts plus one: 3, 2, 1 of 6
    found = corpus.unigram_perplexity(np.array([[0, 1, 0]]), np.array([[0, 2], [2, 1]]), 3)
    assert found == pytest.approx((3 / 6 * 1 / 6 * 1 / 6 * 2 / 6) ** (-1 / 4))


# ---- the run

def perplexity(model, sequences, n_vocab):
    """By the plain path: probabilities of the words alone."""
    x = torch.stack([torch.from_numpy(sequences).long(),
                     torch.arange(sequences.shape[1]).expand(sequences.shape) + n_vocab], -1)
    with torch.no_grad():
        p = model(x)[:, :-1]
    assert p[..., n_vocab:].abs().max() == 0
    return math.exp(-p.gather(2, x[:, 1:, :1]).log().mean().item())


def test_the_folder_holds_the_best_parameters_in_the_released_format(run, capsys):
    # a rate this high spoils the model again, so that the best parameters are not the last
    folder = run(n_iter=4, lr=0.3, lr_schedule="warmup_constant")
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(
        [*pretrain.VOCABULARY, "config.json", "params_shapes.json", *(f"params_{i}.npy" for i in range(10))])
    lines = log_of(folder)
    assert [set(line) for line in lines] == 4 * [{"n_epochs", "n_updates", "tr_cost", "va_cost", "tr_ppl", "va_ppl",
                                                  "unigram_ppl"}]
    assert min(line["va_ppl"] for line in lines) < lines[-1]["va_ppl"]
    args = pretrain.parse_args(run.argv())
    encoder, train_part, held_out = pretrain.load_data(args, str(folder / "again"))
    n_vocab = len(encoder.encoder)
    model = LMModel(dotdict(SIZES, afn="gelu", embd_pdrop=0, attn_pdrop=0, resid_pdrop=0), n_vocab + 10, 10, True)
    load_openai_pretrained_model(model, n_embd=12, n_transfer=2, path=str(folder / "out"))
    assert perplexity(model.eval(), held_out, n_vocab) == pytest.approx(min(line["va_ppl"] for line in lines), rel=1e-5)
    shown = re.search(r"unigram perplexity ([\d.]+)\)", capsys.readouterr().out)[1]
    assert float(shown) == pytest.approx(lines[0]["unigram_ppl"], abs=0.06)
    assert lines[0]["unigram_ppl"] == corpus.unigram_perplexity(train_part, held_out[:, 1:], n_vocab)


def test_it_learns_what_follows_what(run):
    last = log_of(run(n_iter=8, n_embd=24, lr=1e-2))[-1]
    assert last["va_ppl"] < last["unigram_ppl"] / 3 and last["tr_ppl"] < last["unigram_ppl"] / 3


def test_train_reads_the_folder(run, capsys):
    folder = run()
    data_dir = write_data_dir(folder / "data")
    train.main(options(folder, data_dir, (None, None), desc="tuned", model_dir=folder / "out", n_transfer=2, n_ctx=10))
    assert "loaded 25 of 25 variables" in capsys.readouterr().out
    assert len(log_of(folder, "tuned")) == 2


def test_continued_pre_training_starts_from_the_folder_and_keeps_its_vocabulary(run):
    folder = run()
    other = write_text(folder, 30, seed=9)
    run(desc="on", init_dir=folder / "out", model_dir=folder / "on", text=[write_text(folder), other], n_ctx=6, lr=0,
        n_merges=5)
    for name in (*pretrain.VOCABULARY, *(f"params_{i}.npy" for i in range(10)), "params_shapes.json",
                 "config.json"):
        assert (folder / "on" / name).read_bytes() == (folder / "out" / name).read_bytes(), name  # all 10 positions


def test_it_continues_from_a_folder_of_the_hubs_form(run):
    folder = run()
    out = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    model = LMModel.from_pretrained(folder / "out")
    export_hub_model(model, folder / "hub", TextEncoder(*(folder / "out" / name for name in pretrain.VOCABULARY)))
    run(desc="on", init_dir=folder / "hub", model_dir=folder / "on", lr=0)
    for name in ("params_3.npy", "params_shapes.json", "config.json", "vocab_40000.bpe"):
        assert (folder / "on" / name).read_bytes() == out[name], name
    assert json.loads((folder / "on" / pretrain.VOCABULARY[0]).read_text()) == json.loads(out[pretrain.VOCABULARY[0]])


def test_continued_pre_training_takes_a_vocabulary_in_the_hub_s_form(run):
    folder = run()
    want = encoder_of(folder / "out")
    for name, other in zip(pretrain.VOCABULARY, ("vocab.json", "merges.txt"), strict=True):
        os.rename(folder / "out" / name, folder / "out" / other)
    run(desc="on", init_dir=folder / "out", model_dir=folder / "on", n_iter=1)
    got = encoder_of(folder / "on")
    assert (got.encoder, got.bpe_ranks) == (want.encoder, want.bpe_ranks)


def test_several_files_are_one_text(run):
    text = run.argv()[run.argv().index("--text") + 1]
    lines = open(text, encoding="utf-8").read().split("\n")
    parts = []
    for i, part in enumerate((lines[:37], lines[37:])):
        parts.append(run.folder / f"part{i}")
        parts[-1].write_text("\n".join(part), encoding="utf-8")
    run()
    run(desc="parts", text=parts, model_dir=run.folder / "parts")
    assert log_of(run.folder) == log_of(run.folder, "parts")


def test_a_stopped_run_continues_bit_for_bit(run, monkeypatch, capsys):
    run(desc="whole", model_dir=run.folder / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, opt.OpenAIAdam, 11)
        assert run_script(pretrain.main, run.argv(save_every=5)) == 130
    assert not (run.folder / "out").exists()
    run(resume=True, save_every=7)
    assert "continuing after update 10" in capsys.readouterr().out
    assert log_of(run.folder) == log_of(run.folder, "whole")
    states = [load_tensors(str(run.folder / "save" / desc / "checkpoint")) for desc in ("tiny", "whole")]
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())
    for file in (run.folder / "whole").iterdir():
        assert (run.folder / "out" / file.name).read_bytes() == file.read_bytes()


def test_other_text_is_not_resumed(run, capsys):
    run()
    capsys.readouterr()
    kept = {name: (run.folder / "save" / "tiny" / name).read_bytes() for name in pretrain.VOCABULARY}
    assert run_script(pretrain.main, run.argv(resume=True, text=write_text(run.folder, 100, 5))) == 2
    err = capsys.readouterr().err
    assert "training and validation data are not those of then" in err and "--data" not in err
    # nor does a mistake found after the vocabulary is learned cost the run its own
    assert run_script(pretrain.main, run.argv(n_warmup=1000, text=write_text(run.folder, 90, 6),
                                              model_dir=run.folder / "other")) == 2
    assert kept == {name: (run.folder / "save" / "tiny" / name).read_bytes() for name in pretrain.VOCABULARY}


@pytest.mark.parametrize("changes", [
    *(dict(afn=name) for name in ACT_FNS if name != "gelu"),
    *(dict(lr_schedule=name) for name in opt.SCHEDULES if name != "warmup_cosine"),
    dict(n_ctx=9), dict(n_merges=50), dict(held_out=0.2), dict(n_chars=20), dict(lr=1e-3), dict(n_warmup=9),
    dict(max_grad_norm=0.01), dict(l2=1), dict(b1=0.5), dict(b2=0.9), dict(e=1e-2), dict(embd_pdrop=0),
    dict(attn_pdrop=0.5), dict(resid_pdrop=0), dict(n_head=3), dict(n_batch=8, n_gpu=2), dict(precision="bf16"),
    dict(seed=1)], ids=str)
def test_every_option_has_an_effect(run, changes, plain_log):
    assert abs(log_of(run(**dict(n_iter=1) | changes))[-1]["va_cost"] - plain_log["va_cost"]) > 1e-7


@pytest.fixture(scope="module")
def plain_log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    pretrain.main(argv(folder, dict(text=write_text(folder), n_merges=60, n_ctx=10, n_batch=16, n_iter=1, n_warmup=3,
                                    held_out=0.05, lr=3e-3, **SIZES)))
    return log_of(folder)[-1]


def test_two_processes_end_where_one_does(run):
    settings = dict(n_gpu=2, n_batch=8, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, n_iter=1, max_grad_norm=0,
                    keep_at=[1, 3])
    run(**settings)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, pretrain.__file__, *run.argv(desc="two", model_dir=run.folder / "two", **settings)],
                   check=True, timeout=120, cwd=run.folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = log_of(run.folder), log_of(run.folder, "two")
    assert len(two) == 1 and two[0]["va_cost"] == pytest.approx(one[0]["va_cost"], abs=1e-6)
    assert [[path.name for path in sorted((run.folder / "save" / desc).glob("update_*"))]
            for desc in ("tiny", "two")] == [["update_1", "update_3"]] * 2
    for i in range(10):
        files = [np.load(run.folder / desc / f"params_{i}.npy") for desc in ("out", "two")]
        # key biases have no gradient but rounding, by which Adam moves them as far as any
        assert np.mean(np.abs(files[0] - files[1]) > 1e-6) < 0.02


# ---- bad input

@pytest.mark.parametrize("changes, answer", [
    (dict(text="nowhere.txt"), "nowhere.txt: not found"),
    (dict(n_head=5), "--n_head is 5, which does not divide --n_embd 12"),
    (dict(n_ctx=1, lr=-1, held_out=0, n_chars=0), "--held_out is 0.0"),
    (dict(n_ctx=100000), "expected|sequences of 100000 tokens"),
    (dict(n_warmup=1000), "--n_warmup is 1000, but the run has only"),
    (dict(n_batch=5000), "--n_batch 5000 times --n_gpu 1 is more than"),
    (dict(init_dir="nowhere"), "nowhere: no pretrained model there"),
    (dict(afn="tanh"), "argument --afn: invalid choice"),
    (dict(desc="a/b"), "--desc is 'a/b'")])
def test_bad_options_get_one_line(run, capsys, changes, answer):
    one_line(lambda: pretrain.main(run.argv(**changes)), answer, capsys)
    assert not (run.folder / "out").exists() and not (run.folder / "log").exists()


def one_line(work, answer, capsys):
    capsys.readouterr()
    try:
        status = run_script(lambda _: work())
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err.split("\r")[-1].strip()
    assert status == 2 and re.search(answer, err) and "\n" not in err, err


@pytest.mark.parametrize("content, answer", [
    (b"", "nothing but blank lines"), (b" \n\r\n\t\n", "nothing but blank lines"),
    (b"good\n\nb\xffd\n", "line 3 is not UTF-8 at byte 1"), ("wide".encode("utf-16"), "line 1 is not UTF-8 at byte 0"),
    ("wide".encode("utf-16-le"), "line 1 holds a NUL byte"), (b"one short line", "two at least are needed")])
def test_bad_text_gets_one_line(run, capsys, content, answer):
    path = run.folder / "bad.txt"
    path.write_bytes(content)
    one_line(lambda: pretrain.main(run.argv(text=path)), answer, capsys)
    assert not (run.folder / "out").exists()


def test_a_model_that_is_there_is_not_overwritten(run, capsys):
    folder = run()
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    one_line(lambda: run(seed=7), "holds a model already", capsys)
    one_line(lambda: run(seed=7, desc="other", resume=True), "holds a model already", capsys)
    assert before == {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("changes, answer", [
    (dict(n_embd=24), "do not fit the model in .*: give --n_embd 12 --n_layer 2"),
    (dict(n_layer=3), "do not fit the model in .*: give --n_embd 12 --n_layer 2"),
    (dict(n_head=3), r"--n_head is 3, but the model in .* \(width 12\) has 2"),
    (dict(afn="relu"), "--afn is relu, but the model in .* has gelu"),
    (dict(n_ctx=11), "--n_ctx is 11, allowed is 2 to 10")])
def test_a_model_that_does_not_fit_gets_one_line(run, capsys, changes, answer):
    folder = run()
    one_line(lambda: run(init_dir=folder / "out", model_dir=folder / "on", desc="on", **changes), answer, capsys)


def test_a_vocabulary_of_another_model_gets_one_line(run, capsys):
    folder = run()
    path = folder / "out" / "encoder_bpe_40000.json"
    encoder = json.loads(path.read_text())
    path.write_text(json.dumps({piece: i for piece, i in encoder.items() if i < len(encoder) - 1}))
    one_line(lambda: run(init_dir=folder / "out", model_dir=folder / "on", desc="on"), "do not belong together", capsys)
