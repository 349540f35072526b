"""Text of any length as ids in files: the ids of the whole, preparations that are killed, damaged files, orders."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pretraining import argv, stories, write_text

import pretrain
import pretrain_t5
from formats.errors import BadInput, warn_once
from formats.files import load_tensors
from tasks.processes import encode_chunks
from text_utils import TextEncoder
from training import corpus, pretraining, token_files
from training.loop import SeededOrders, Shuffled
from utils import read_log, run_script

GPT = dict(n_merges=60, n_ctx=10, n_batch=16, n_iter=2, n_warmup=3, held_out=0.05, lr=3e-3, n_embd=12, n_head=2,
           n_layer=2)
T5 = dict(n_pieces=60, n_ctx=40, n_batch=8, n_iter=2, n_warmup=20, held_out=0.05, d_model=12, d_ff=20, n_head=2, d_kv=5,
          n_layer=2, dropout=0.1)
KINDS = pytest.mark.parametrize("script, sizes", [(pretrain, GPT), (pretrain_t5, T5)], ids=["gpt", "t5"])


class Letters:
    """An encoder whose ids are the letters' numbers."""

    decoder = dict.fromkeys(range(128))

    def encode(self, texts, verbose=True):
        return [[ord(c) for c in text] for text in texts]

    def __len__(self):
        return 128


@pytest.fixture
def text(tmp_path):
    """Three files, one packed, and the ids that Letters gives them, 10 at the end of a line."""
    (tmp_path / "in").mkdir()
    lines = [[f"file {k} line {i} " + "x" * (i % 7) for i in range(40 + k)] for k in range(3)]
    for k in (0, 2):
        (tmp_path / "in" / f"{k}.txt").write_text("\n".join(lines[k]))
    (tmp_path / "in" / "1.txt.gz").write_bytes(gzip.compress("\n\n".join(lines[1]).encode()))
    return str(tmp_path / "in"), [i for of_file in lines for line in of_file for i in [*map(ord, line.strip()), 10]]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(token_files, "CHUNK", 50)
    monkeypatch.setattr(token_files, "BLOCK", 3)


def encoded(folder, text, n_ids=128, n_processes=1, encoder=None):
    token_files.encode(str(folder), "text", [text], encoder or Letters(), n_ids, 10, n_processes)
    return token_files.load(str(folder), "text")


@pytest.mark.parametrize("n_processes", [1, 3])
@pytest.mark.parametrize("n_ids, dtype", [(128, "uint16"), (70_000, "int32")])
def test_the_ids_are_those_of_the_text(tmp_path, text, small_blocks, n_ids, dtype, n_processes):
    tokens = encoded(tmp_path / "out", text[0], n_ids, n_processes)
    assert tokens[:].tolist() == text[1] and tokens.dtype == dtype and len(tokens) == len(text[1])
    assert tokens[5:9].tolist() == text[1][5:9] and tokens[len(tokens):].tolist() == []
    rows = tokens.cut(7)
    whole = corpus.cut_sequences(text[1], 7)
    assert rows.shape == whole.shape and rows.size == whole.size
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(rows[np.array([9, 2, 9])], whole[[9, 2, 9]])
    np.testing.assert_array_equal(np.asarray(rows[:-30][4:11]), whole[:-30][4:11])
    np.testing.assert_array_equal(np.concatenate(list(corpus.pieces_of(rows[3:], size=25))), whole[3:].ravel())


class Dies(Letters):
    """Fails after some lists of texts."""

    def __init__(self, n):
        self.n = n

    def encode(self, texts, verbose=True):
        self.n -= 1
        if self.n < 0:
            raise KeyboardInterrupt
        return super().encode(texts)


@pytest.mark.parametrize("n_chunks", [0, 1, 4, 20, 30])
def test_a_preparation_that_was_killed_goes_on(tmp_path, text, small_blocks, capsys, n_chunks):
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path / "out", text[0], encoder=Dies(n_chunks))
    done = json.loads((tmp_path / "out" / "text.json").read_text())["blocks"] if n_chunks > 2 else []
    assert len(done) == n_chunks // 3
    with open(tmp_path / "out" / "text.ids", "ab") as f:
        f.write(b"half a block")
    rest = Dies(1000)
    assert encoded(tmp_path / "out", text[0], encoder=rest)[:].tolist() == text[1]
    assert ("tokens are there; going on" in capsys.readouterr().out) == (n_chunks > 2)
    fresh = Dies(1000)
    encoded(tmp_path / "fresh", text[0], encoder=fresh)
    assert rest.n == fresh.n + n_chunks // 3 * 3  # what was done is not done again
    assert (tmp_path / "out" / "text.ids").read_bytes() == (tmp_path / "fresh" / "text.ids").read_bytes()


def test_a_finished_file_is_not_made_again(tmp_path, text, small_blocks):
    encoded(tmp_path / "out", text[0])
    assert encoded(tmp_path / "out", text[0], encoder=Dies(0))[:].tolist() == text[1]


@pytest.mark.parametrize("damage", ["byte", "short", "json", "absent"])
def test_a_damaged_file_is_mended_from_the_block_on(tmp_path, text, small_blocks, capsys, damage):
    ids = tmp_path / "out" / "text.ids"
    encoded(tmp_path / "out", text[0])
    data = bytearray(ids.read_bytes())
    if damage == "byte":
        data[len(data) // 2] ^= 1
        ids.write_bytes(data)
    elif damage == "short":
        ids.write_bytes(data[:-3])
    elif damage == "json":
        (tmp_path / "out" / "text.json").write_text("{")
    else:
        ids.unlink()
    assert encoded(tmp_path / "out", text[0])[:].tolist() == text[1]
    captured = capsys.readouterr()
    assert captured.err.count("warning: ") >= 1
    assert ("going on" in captured.out) == (damage in ("byte", "short"))


def test_an_empty_text_and_a_bad_line_get_one_line(tmp_path, small_blocks):
    (tmp_path / "in.txt").write_text("\n \n")
    with pytest.raises(BadInput, match="nothing but blank lines"):
        encoded(tmp_path / "out", str(tmp_path / "in.txt"))
    (tmp_path / "bad.txt").write_bytes(b"good\n" * 30 + b"b\xe9se\n")
    with pytest.raises(BadInput, match="bad.txt: line 31 is not UTF-8 at byte 1"):
        encoded(tmp_path / "out2", str(tmp_path / "bad.txt"), n_processes=2)


def test_a_lost_process_loses_no_text(monkeypatch, capsys):
    """The encoder kills the process that works for the parent, once."""
    warn_once.cache_clear()  # another test may have lost a process too
    parent = os.getpid()

    class Kills(Letters):
        def encode(self, texts, verbose=True):
            if os.getpid() != parent and "7" in texts[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(texts)

    chunks = [[f"{i}", "x" * i] for i in range(30)]
    found = list(encode_chunks(iter(chunks), Kills(), 2, np.int32))
    assert [ids.tolist() for ids, _ in found] == [[ord(c) for text in chunk for c in text] for chunk in chunks]
    assert "encoding goes on in one process" in capsys.readouterr().err


# ---- whole runs

def run_of(script, folder, **changes):
    settings = dict(text=write_text(folder), valid_text=None) | changes
    outcome = script.main(argv(folder, settings))
    log = [{name: value for name, value in line.items() if name != "time"} for line in
           read_log(folder / "log" / "tiny.jsonl")[1:]]
    return log, {name: p.clone() for name, p in outcome.model.state_dict().items()}


@KINDS
def test_a_run_from_files_is_the_run_from_memory(tmp_path, script, sizes, monkeypatch, small_blocks):
    for name in "ab":
        (tmp_path / name).mkdir()
    other = write_text(tmp_path, 30, seed=1)
    log, parameters = run_of(script, tmp_path / "a", valid_text=[other], **sizes)
    log_of_files, of_files = run_of(script, tmp_path / "b", valid_text=[other], token_dir=tmp_path / "ids", **sizes)
    assert log == log_of_files
    assert all(torch.equal(p, of_files[name]) for name, p in parameters.items())
    # large texts take the same way without being told; here the ids lie in the folder of the run
    (tmp_path / "c").mkdir()
    monkeypatch.setattr(pretraining, "LARGE", 1000)
    assert run_of(script, tmp_path / "c", valid_text=[other], **sizes)[0] == log
    assert list((tmp_path / "c" / "save" / "tiny" / "tokens").glob("*/text.ids"))


@KINDS
def test_a_second_run_reads_what_the_first_encoded(tmp_path, script, sizes, monkeypatch):
    found = []
    for name in "abc":
        (tmp_path / name).mkdir()
        if name == "b":
            monkeypatch.setattr(token_files, "encode_chunks", None)
        if name == "c":
            sizes = sizes | {"n_merges" if script is pretrain else "n_pieces": 50}
            with pytest.raises(TypeError):
                run_of(script, tmp_path / name, text=found[0][0], token_dir=tmp_path / "ids", **sizes)
            return
        text = found[0][0] if found else write_text(tmp_path)
        found.append((text, run_of(script, tmp_path / name, text=text, token_dir=tmp_path / "ids", **sizes)[0]))
    assert found[0][1] == found[1][1]


def test_the_vocabulary_comes_from_parts_spread_evenly(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(["ab cd"] * 200 + ["ab ef"] * 200))
    monkeypatch.setattr(pretrain, "LEARN_FROM", 300)
    sizes = GPT | dict(n_merges=3, n_ctx=4)
    run_of(pretrain, tmp_path, text=[tmp_path / "text.txt"], token_dir=tmp_path / "ids", **sizes)
    assert {"ab</w>", "cd</w>", "ef</w>"} <= set(TextEncoder.from_folder(tmp_path / "out").encoder)
    assert [part for part, _ in corpus.read_parts([tmp_path / "text.txt"], every=150)] == ["ab cd", "ab cd", "ab ef"]


@KINDS
def test_two_processes_end_as_one_and_the_first_encodes(tmp_path, root, script, sizes):
    settings = sizes | dict(text=write_text(tmp_path), n_gpu=2, n_batch=8, token_dir=tmp_path / "ids")
    (tmp_path / "one").mkdir()
    log, parameters = run_of(script, tmp_path / "one", **settings)
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                          str(root / f"{script.__name__}.py"),
                          *argv(tmp_path, settings | dict(token_dir=tmp_path / "new"))],
                         cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = load_tensors(str(tmp_path / "save" / "tiny" / "best_params"))
    for name, p in found.items():
        torch.testing.assert_close(p, parameters[name], atol=1e-5 * max(1, p.abs().max().item()), rtol=0)
    ids, = (tmp_path / "ids").glob("*/text.ids")
    assert [path.read_bytes() for path in (tmp_path / "new").glob("*/text.ids")] == [ids.read_bytes()]


def test_a_process_that_waits_for_a_folder_nobody_makes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "PATIENCE", 0)
    with pytest.raises(BadInput, match="--token_dir must be a folder that all machines share"):
        token_files.wait_for(str(tmp_path / "absent"), "text")


def test_a_process_that_waits_for_one_that_has_ended_says_so(tmp_path, text, small_blocks, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path / "out", text[0], encoder=Dies(7))
    monkeypatch.setattr(token_files, "STALLED", 0.3)
    with pytest.raises(BadInput, match="text.json: the first process.* seems to have ended: start again"):
        token_files.wait_for(str(tmp_path / "out"), "text")


def test_a_full_disk_gets_one_line(tmp_path, text, small_blocks):
    os.makedirs(tmp_path / "out")
    os.symlink("/dev/full", tmp_path / "out" / "text.ids")
    with pytest.raises(BadInput, match="text.ids: could not be written .*what is encoded is kept"):
        encoded(tmp_path / "out", text[0])


def test_a_killed_script_goes_on(tmp_path, root, capfd):
    """SIGKILL in the middle of the encoding, then the same command again."""
    text = tmp_path / "long.txt"
    text.write_text("\n".join(stories(20_000)), encoding="utf-8")
    line = argv(tmp_path, GPT | dict(text=text, token_dir=tmp_path / "ids", n_iter=1, n_batch=512, n_warmup=1))
    code = ("import sys, pretrain; from training import token_files; token_files.BLOCK = 1; "
            "token_files.CHUNK = 20_000; sys.exit(pretrain.run_script(pretrain.main))")
    process = subprocess.Popen([sys.executable, "-c", code, *line], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        noted = list((tmp_path / "ids").glob("*/text.json"))
        if noted and json.loads(noted[0].read_text())["blocks"]:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert process.wait() == -signal.SIGKILL
    assert not json.loads(noted[0].read_text())["complete"]
    assert run_script(pretrain.main, line) == 0, capfd.readouterr().err
    assert "tokens are there; going on from file 1 of 1" in capfd.readouterr().out
    encoder = TextEncoder.from_folder(tmp_path / "out")
    whole, = encoder.encode([text.read_text(encoding="utf-8")], verbose=False)
    found = token_files.load(os.path.dirname(noted[0]), "text")[:].tolist()
    assert found[:len(whole)] == whole


# ---- orders without an index

@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 4097])
def test_an_order_that_is_computed_has_every_number_once(n):
    order = Shuffled(np.random.default_rng(5), n)
    found = np.concatenate([order[i:i + 7] for i in range(0, n, 7)])
    assert len(order) == n and sorted(found) == list(range(n))
    np.testing.assert_array_equal(order[:], found)


def test_computed_orders_vary_with_the_epoch_and_look_random():
    orders = SeededOrders(1, 2, 5000)
    orders.drawn = 100
    a, b = orders[0][:], orders[1][:]
    assert isinstance(orders[0], Shuffled) and isinstance(SeededOrders(1, 2, 5000)[0], np.ndarray)
    np.testing.assert_array_equal(a, SeededOrders.__getitem__(orders, 0)[:])
    assert (a == b).mean() < 0.01
    for order in (a, b):
        ranks = np.corrcoef(np.arange(5000), order)[0, 1], np.corrcoef(order[:-1], order[1:])[0, 1]
        assert np.abs(ranks).max() < 5 / np.sqrt(5000)
        assert abs((np.diff(order) == 1).mean()) < 0.01


def test_memory_does_not_grow_with_the_text(tmp_path, root):
    """The checks of 80 MB of ids take a few MB, in a process of their own."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("this system tells no peak of memory")
    n = 40_000_000
    ids = np.random.default_rng(0).integers(1, 5000, n // 8, dtype=np.uint16)
    np.concatenate([ids] * 8).tofile(tmp_path / "text.ids")
    code = f"""
import numpy as np
from training import corpus, token_files

def kilobytes(name):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name))

rows = token_files.TokenFile({str(tmp_path / "text.ids")!r}, np.uint16, 0, {n}).cut(50)
held_out = np.asarray(rows[-100:])
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
before = kilobytes("VmRSS")
assert corpus.find_repeated(rows, held_out).all()
corpus.unigram_perplexity(rows, held_out, 5000)
rows[np.arange(0, len(rows), 5000)]
print(kilobytes("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 120_000  # kB; the ids in memory as int32 would be 160,000, as int64 320,000
