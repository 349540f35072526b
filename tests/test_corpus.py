"""The text that pre-training reads: files, folders, patterns, gzip; what is held out; texts with nothing to merge."""

import gzip
import io
import re

import numpy as np
import pytest
from pretraining import argv, stories, write_text

import pretrain
import pretrain_t5
from formats import progress
from formats.errors import BadInput, MissingInput
from training import corpus
from utils import read_log, run_script


@pytest.fixture
def books(tmp_path):
    """A folder of books and other things."""
    folder = tmp_path / "books"
    for name, content in {"b.txt": b"two", "a.txt": "on\u00e9\n".encode(), "c.md": b"no", ".d.txt": b"no",
                          "more/e.txt.gz": gzip.compress("thre\u00e9\r\nfour\n".encode() * 3)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(*paths):
    return [part for part, _ in corpus.read_parts(list(map(str, paths)))]


def test_files_folders_patterns_and_packed_files(books):
    packed = ["threé", "four"] * 3
    assert read(books) == ["oné", "two", *packed]
    assert read(books / "*.txt") == ["oné", "two"]
    assert read(books / "**" / "*.txt*") == ["oné", "two", *packed]
    assert read(books / "more" / "e.txt.gz", books / "a.txt") == [*packed, "oné"]
    (books / "[x].txt").write_text("brackets")  # a file's own name goes first
    assert read(books / "[x].txt") == ["brackets"]
    (books / "packed").write_bytes(gzip.compress(b"whatever its name"))
    assert read(books / "packed") == ["whatever its name"]


def test_what_stands_for_no_file_gets_one_line(books, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no .txt or .txt.gz files"):
        corpus.find_files([str(books), str(tmp_path / "empty")])
    for path in ("nowhere.txt", "*.none"):
        with pytest.raises(MissingInput, match="not found.*--text"):
            corpus.find_files([str(books / path)])


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:40] + b"xxxx" + b[44:],
                                    lambda b: b[:-8] + b"12345678", lambda b: b + b"more"])
def test_a_damaged_packed_file_gets_one_line(tmp_path, damage):
    whole = gzip.compress(" ".join(map(str, range(3000))).encode())
    (tmp_path / "a.txt.gz").write_bytes(damage(whole))
    with pytest.raises(BadInput, match="a.txt.gz: is a damaged gzip file"):
        read(tmp_path / "a.txt.gz")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"good\nb\xffd"))
    with pytest.raises(BadInput, match="a.txt.gz: line 2 is not UTF-8 at byte 1"):
        read(tmp_path / "a.txt.gz")


def test_the_bar_over_packed_files_ends_at_its_end(books, monkeypatch):
    bars, real = [], progress.bar
    monkeypatch.setattr(progress, "bar", lambda *args, **kwargs: bars.append(real(*args, **kwargs)) or bars[-1])
    monkeypatch.setattr("sys.stderr", io.StringIO())
    read(books)
    assert bars[0].n == bars[0].total > 0


@pytest.fixture(params=[pretrain, pretrain_t5], ids=lambda s: s.__name__)
def script(request):
    return request.param


@pytest.fixture
def line(script, tmp_path):
    """A function of changed options that returns the command line of a tiny run."""
    sizes = dict(n_embd=12, n_head=2, n_layer=2, n_merges=60, n_warmup=1, n_ctx=10) if script is pretrain else \
        dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2, n_pieces=60, n_ctx=12)
    return lambda **changes: argv(tmp_path, sizes | dict(n_batch=4, n_iter=1, held_out=0.05) | changes)


def data(script, line):
    """The sequences to train on and those held out, of a command line."""
    args = script.parse_args(line)
    length = [] if script is pretrain else [script.random_spans_helper(12, 0.15, 3)[0]]
    return script.load_data(args, args.log_dir, *length)[1:]


def test_one_text_in_any_form_is_one_text(script, line, tmp_path):
    text = stories(60)
    (tmp_path / "books").mkdir()
    for i in range(3):
        path, content = tmp_path / "books" / f"{i}.txt", ("\n".join(text[20 * i:20 * i + 20]) + "\n").encode()
        if i == 1:
            path.with_suffix(".txt.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    want = data(script, line(text=write_text(tmp_path, 60)))
    for given in (tmp_path / "books", tmp_path / "books" / "*", sorted((tmp_path / "books").iterdir())):
        found = data(script, line(text=given))
        assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))


def test_another_text_is_held_out(script, line, tmp_path, capsys):
    text, valid = write_text(tmp_path, 80, 0), write_text(tmp_path, 30, 9)
    train_part, held_out = data(script, line(text=text, valid_text=valid))
    # nothing of --text is held out, and the vocabulary is its own
    assert np.array_equal(train_part, np.concatenate(data(script, line(text=text))))
    script.main(line(text=text, valid_text=valid))
    header, *lines = read_log(tmp_path / "log" / "tiny.jsonl")
    assert header["valid_text"] == [valid] and lines
    assert len(held_out) > 5 and f"{held_out.size:,} held out" in capsys.readouterr().out
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("one")
    assert run_script(script.main, line(desc="b", text=text, valid_text=tiny, model_dir=tmp_path / "other")) == 2
    assert "--valid_text gives no sequence" in capsys.readouterr().err
    assert run_script(script.main, line(desc="b", text=text, valid_text="no", model_dir=tmp_path / "other")) == 2
    assert "no: not found" in capsys.readouterr().err


def test_held_out_sequences_that_are_trained_on_get_a_warning(script, line, tmp_path, capsys):
    text = write_text(tmp_path, 80)
    (tmp_path / "another.txt").write_text("\n".join(story[::-1] for story in stories(30, 9)))
    (tmp_path / "twice.txt").write_text((tmp_path / "text80_0.txt").read_text() * 2)
    seen = []
    for i, changes in enumerate((dict(text=text, valid_text=tmp_path / "another.txt"),
                                 dict(text=text, valid_text=text), dict(text=tmp_path / "twice.txt"))):
        script.main(line(desc=str(i), model_dir=tmp_path / f"out{i}", **changes))
        seen += [re.findall(r"warning: (\d+) of the (\d+) held-out sequences also stand in", capsys.readouterr().err)]
    assert not seen[0] and seen[1][0][0] == seen[1][0][1] and int(seen[2][0][0]) > 0


@pytest.mark.parametrize("chunk", [7, 50, 1 << 20])
def test_repeated_sequences_are_counted_wherever_they_begin(chunk):
    rng = np.random.default_rng(5)
    train_part, held_out = rng.integers(0, 9, (30, 11)), rng.integers(0, 9, (7, 11))
    text = train_part.ravel()
    held_out[1], held_out[2], held_out[4], held_out[6] = text[:11], text[-11:], text[47:58], text[48:59]
    windows = {tuple(text[i:i + 11]) for i in range(len(text) - 10)}
    want = sum(tuple(row) in windows for row in held_out.tolist())
    found = corpus.find_repeated(train_part, held_out, size=chunk)
    assert found.sum() == want == 4 and found[[1, 2, 4, 6]].all()
    of_four = [corpus.find_repeated(train_part, held_out, rank, 4, chunk) for rank in range(4)]
    np.testing.assert_array_equal(np.logical_or.reduce(of_four), found)
    assert chunk > 50 or max(part.sum() for part in of_four) < 4  # each looks through a part of the text
    assert not corpus.find_repeated(train_part[:0], held_out).any()
    held_out[1, 10] = (held_out[1, 10] + 1) % 9
    assert corpus.find_repeated(train_part, held_out, size=chunk).sum() == 3


@pytest.mark.parametrize("text", ["a b c a b " * 40, "😀 🎉 " * 60, "a " * 200], ids=["letters", "emoji", "one letter"])
def test_a_text_with_nothing_to_merge_trains_without_merges(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    pretrain.main(argv(tmp_path, dict(text=path, n_embd=12, n_head=2, n_layer=1, n_ctx=10, n_batch=4, n_iter=2,
                                      n_warmup=1, held_out=0.1)))
    assert (tmp_path / "out" / "vocab_40000.bpe").read_text() == "#version: 0.2\n"
    words = text.split()
    encoder = pretrain.TextEncoder.from_folder(str(tmp_path / "out"))
    ids = encoder.encode([text], verbose=False)[0]
    assert len(ids) == len(words) and len(set(ids)) == len(set(words)) and 0 not in ids
