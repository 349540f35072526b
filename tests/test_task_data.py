"""Every data set by train.py: training, --show, and the encoded data that are kept on disk."""

import json
import mmap
import multiprocessing
import os
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from cloze_data import options
from task_files import write_task
from test_own_data import write

import train
from datasets import rocstories
from formats.errors import BadInput
from model_pytorch import make_task_head
from tasks import encoded_files, encoding
from tasks.encoding import encode_texts
from tasks.gpt_tasks import GPT_TASKS
from tasks.layout import transform_roc
from text_utils import TextEncoder
from training import task_data
from utils import encode_dataset, read_log, run_script

OWN = {
    "classification": (["text"], [["low cat", "x"], ["new mat", "y"]]),
    "entailment": (["premise", "hypothesis"], [["low", "cat", "x"], ["new", "mat", "y"]]),
    "similarity": (["text1", "text2"], [["low", "cat", "0.5"], ["new", "mat", "3"], ["a", "b", "1"]]),
    "multiple_choice": (["context", "choice1", "choice2"], [["low", "cat", "mat", "2"], ["new", "a", "b", "choice1"]]),
}


@pytest.fixture
def argv(tmp_path, small_vocabulary):
    """A function of changed options that returns the command line of a tiny run."""
    def words(**changes):
        columns = changes.pop("columns", None)
        line = options(tmp_path, **dict(data_dir=str(tmp_path / "data"), vocabulary=small_vocabulary, n_iter=1,
                                        n_embd=8, n_layer=1) | changes)
        return line + (["--columns", *columns] if columns else [])

    return words


def own_files(folder, task, n=12):
    header, rows = OWN[task]
    return write(folder / "own.tsv", [*header, "label"], rows * n)


@pytest.mark.parametrize("name", GPT_TASKS)
def test_every_data_set_trains(tmp_path, argv, name, capsys):
    write_task(tmp_path / "data", name)
    outcome = train.main(argv(dataset=name))
    task, line = GPT_TASKS[name], read_log(tmp_path / "log" / "tiny.jsonl")[-1]
    assert {f"{part}_{key}" for part in ("tr", "va") for key in ("cost", *task.metrics)} <= line.keys()
    head = make_task_head(task.head, 3, train.parse_args(argv()))
    assert type(outcome.model.task_head) is type(head)
    assert outcome.model.task_head.linear.weight.shape == head.linear.weight.shape
    err = capsys.readouterr().err
    assert ("other numbers of examples than in the published data" in err) == (name != "rocstories")


@pytest.mark.parametrize("task", OWN)
def test_own_data_train(tmp_path, argv, task):
    path = own_files(tmp_path, task)
    outcome = train.main(argv(dataset="own", task=task, train_file=path))
    metric = "va_pearson" if task == "similarity" else "va_acc"
    assert np.isfinite(outcome.log[metric]).all() and len(outcome.log)


@pytest.mark.parametrize("task", OWN)
def test_own_data_train_from_python(tmp_path, argv, task):
    header, rows = OWN[task]
    frame = pd.DataFrame(rows * 12, columns=[*header, "label"])
    path = own_files(tmp_path, task)
    of_files = train.main(argv(dataset="own", task=task, train_file=path, valid_file=path))
    outcome = train.main(argv(dataset="own", task=task, desc="rows"), train=frame.to_dict("list"), valid=frame)
    values = [name for name in of_files.log if name != "time"]
    pd.testing.assert_frame_equal(outcome.log[values], of_files.log[values])
    if task == "classification":  # numbers, and rows that no file could hold
        numbers = frame.assign(label=frame["label"].map({"x": 1, "y": 2}))
        outcome = train.main(argv(dataset="own", task=task, desc="numbers"), train=numbers)
        described = json.loads((tmp_path / "save" / "numbers" / "task.json").read_text())
        assert described["task"]["classes"] == ["1", "2"]
        dated = frame.assign(day=pd.Timestamp("2026-11-26"), note=pd.NA)  # which nobody reads
        train.main(argv(dataset="own", task=task, desc="dated"), train=dated)
        for source, message in ((3, "train is int, expected"), ([], "train: is empty"), (frame[:0], "train: is empty"),
                                ([{"text": "a", "label": "x"}, {"text": "b", "label": {1}}], "^train: row 2")):
            with pytest.raises(BadInput, match=message):
                train.main(argv(dataset="own", task=task), train=source)
        with pytest.raises(BadInput, match="--train_file is for your own data"):
            train.main(argv(), train=frame)


def shown(capsys, line):
    capsys.readouterr()
    assert train.main(line) is None
    return [json.loads(row) for row in capsys.readouterr().out.splitlines()]


def test_show_prints_what_the_model_reads(tmp_path, argv, capsys, small_vocabulary):
    """The very example of the issue, in each transformation; no weights, no --desc, nothing written."""
    encoder = TextEncoder(*small_vocabulary)
    start, delimiter, classify = range(len(encoder), len(encoder) + 3)
    a, b = encoder.encode(["low cat.", "new mat"], verbose=False)

    def shows(task, row):
        path = write(tmp_path / "a.jsonl", [*OWN[task][0], "label"], [row, [*row[:-1], OWN[task][1][0][-1]]])
        line = argv(dataset="own", task=task, train_file=path, valid_file=path, show=1, desc=None, n_transfer=2,
                    model_dir="nowhere")
        before = sorted(tmp_path.rglob("*"))
        rows = shown(capsys, line)
        assert sorted(tmp_path.rglob("*")) == before and len(rows) == 1
        for sequence in rows[0]["sequences"]:
            assert sequence["text"] == encoder_with_special.decode(sequence["ids"])
        return [sequence["ids"] for sequence in rows[0]["sequences"]], rows[0]["label"], rows[0]["sequences"][0]["text"]

    encoder_with_special = TextEncoder(*small_vocabulary)
    train.add_special_tokens(encoder_with_special)
    assert shows("classification", ["low cat.", "y"]) == (
        [[start, *a, classify]], "y", "_start_ low cat . _classify_")
    assert shows("entailment", ["low cat.", "new mat", "y"]) == (
        [[start, *a, delimiter, *b, classify]], "y", "_start_ low cat . _delimiter_ new mat _classify_")
    ids, label, _ = shows("similarity", ["low cat.", "new mat", "2.25"])
    assert ids == [[start, *a, delimiter, *b, classify], [start, *b, delimiter, *a, classify]] and label == 2.25
    ids, label, _ = shows("multiple_choice", ["low cat.", "new mat", "low cat.", "choice2"])
    assert ids == [[start, *a, delimiter, *b, classify], [start, *a, delimiter, *a, classify]] and label == 2


@pytest.mark.parametrize("name", GPT_TASKS)
def test_show_of_every_data_set(tmp_path, argv, capsys, name):
    write_task(tmp_path / "data", name)
    task = GPT_TASKS[name]
    for split in ("train", "valid", "test"):
        rows = shown(capsys, argv(dataset=name, show=5, show_split=split))
        read = task.read(str(tmp_path / "data"), split, **({"n_valid": 9} if name == "rocstories" else {}))
        assert len(rows) == 5
        for i, row in enumerate(rows):
            n = {"similarity": 2, "multiple_choice": task.n_out}.get(task.transformation, 1)
            assert len(row["sequences"]) == n
            if read.labels is None:
                assert row["label"] is None and split == "test"
            elif task.transformation == "multiple_choice":
                assert row["label"] == task.classes.index(read.labels[i]) + 1
            else:
                assert row["label"] == (read.labels[i] if task.score_range is None else float(read.labels[i]))


def test_show_cuts_as_training_does(tmp_path, argv, capsys):
    path = write(tmp_path / "a.tsv", ["premise", "hypothesis", "label"], [["a " * 40, "b", "x"], ["c", "d", "y"]])
    rows = shown(capsys, argv(dataset="own", task="entailment", train_file=path, valid_file=path, show=2, n_ctx=12))
    assert [len(row["sequences"][0]["ids"]) for row in rows] == [12, 5]
    assert rows[0]["sequences"][0]["text"].endswith("a _delimiter_ b _classify_")


REFUSED = {
    "no task": (dict(dataset="own", train_file="x.csv"), "--dataset own needs --task"),
    "no file": (dict(dataset="own", task="entailment"), "--dataset own needs --train_file"),
    "own option": (dict(dataset="rte", task="entailment"), "--task is for your own data: give --dataset own"),
    "columns": (dict(dataset="own", task="entailment", train_file="x.csv", columns=["text=a"]),
                "--columns has 'text=a'"),
    "show": (dict(show=0), "--show is 0"), "no folder": (dict(dataset="rte"), "RTE.train.tsv: not found; --data_dir"),
    "no race": (dict(dataset="race"), "RACE.train: holds no middle or high folder"),
    "show a split": (dict(dataset="own", task="classification", show=1, show_split="test"), "there is no test split"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_data_options_get_one_line(tmp_path, argv, capsys, what):
    changes, message = REFUSED[what]
    if what == "show a split":
        changes = changes | {"train_file": own_files(tmp_path, "classification")}
    for more in ({}, {"show": 1}):
        assert run_script(train.main, argv(**more | changes)) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert re.search(message, err), err


def test_a_run_needs_a_name_where_nothing_is_shown(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(argv(desc=None))
    assert caught.value.code == 2 and "--desc" in capsys.readouterr().err


# Large data: kept on disk, encoded by several processes


def loaded(line, encoder):
    return task_data.load_data(train.parse_args(line), encoder)


def same(one, other):
    for name, a in one.splits.items():
        b = other.splits[name]
        for x, y in zip(encoded_files._arrays(a).values(), encoded_files._arrays(b).values(), strict=True):
            assert (x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y))
        assert np.array_equal(a.kept, b.kept) and (a.transformation, a.score_range, a.n_vocab, a.n_context) == (
            b.transformation, b.score_range, b.n_vocab, b.n_context)
    assert list(one.splits) == list(other.splits) and one.task.classes == other.task.classes


@pytest.mark.parametrize("name", ["race", "stsb", "mnli", "own"])
def test_large_data_are_kept_and_loaded_the_next_time(tmp_path, argv, small_vocabulary, monkeypatch, name, capsys):
    encoder = TextEncoder(*small_vocabulary)
    line = argv(dataset=name)
    if name == "own":
        line = argv(dataset=name, task="classification", train_file=own_files(tmp_path, "classification"))
    else:
        write_task(tmp_path / "data", name)
    small = loaded(line, encoder)
    assert not (tmp_path / "save").exists()  # small data are not kept
    monkeypatch.setattr(task_data, "KEPT_FROM", 100)
    first = loaded(line, encoder)
    files = sorted((tmp_path / "save" / "encoded").iterdir())
    monkeypatch.setattr(task_data, "read_splits", lambda *_: pytest.fail("read again"))
    second = loaded(line, encoder)
    same(small, first)
    same(first, second)
    ids = second.splits["train"].texts.ids
    assert isinstance(ids.base, (np.memmap, mmap.mmap)) and not ids.flags.writeable
    assert "cannot be used" not in capsys.readouterr().err
    assert sorted((tmp_path / "save" / "encoded").iterdir()) == files
    batch, again = (data.splits["train"].layout(slice(3, 7)) for data in (first, second))
    assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))


def test_other_files_vocabularies_and_options_have_other_names(tmp_path, small_vocabulary):
    encoder, names = TextEncoder(*small_vocabulary), set()
    path = tmp_path / "a.tsv"
    for content in (b"a", b"b"):
        path.write_bytes(content)
        for split in ("train", "valid"):
            for option in ("rte", "wnli"):
                names.add(encoded_files.fingerprint_of({split: [str(path)]}, encoder, option))
    encoder.decoder[0] = "x"
    names.add(encoded_files.fingerprint_of({split: [str(path)]}, encoder, option))
    assert len(names) == 9 and all(len(name) == 32 for name in names)


@pytest.mark.parametrize("damage", ["cut", "a bit", "missing", "no json", "other json"])
def test_damaged_encoded_data_are_made_again(tmp_path, argv, small_vocabulary, monkeypatch, damage, capsys):
    monkeypatch.setattr(task_data, "KEPT_FROM", 100)
    write_task(tmp_path / "data", "rte")
    encoder, line = TextEncoder(*small_vocabulary), argv(dataset="rte", cache_dir=str(tmp_path / "kept"))
    first = loaded(line, encoder)
    ids = next((tmp_path / "kept").glob("*.train.ids.npy"))
    described = next((tmp_path / "kept").glob("*.json"))
    content = ids.read_bytes()
    if damage == "missing":
        ids.unlink()
    elif damage.endswith("json"):
        described.write_text("{" if damage == "no json" else '{"splits": [1]}')
    else:
        ids.write_bytes(content[:-5] if damage == "cut" else content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    capsys.readouterr()
    same(first, loaded(line, encoder))
    assert "cannot be used" in capsys.readouterr().err
    same(first, loaded(line, encoder))
    assert "cannot be used" not in capsys.readouterr().err


def test_encoded_data_that_cannot_be_kept_stop_no_run(tmp_path, argv, small_vocabulary, monkeypatch, capsys):
    monkeypatch.setattr(task_data, "KEPT_FROM", 100)
    write_task(tmp_path / "data", "rte")
    (tmp_path / "kept").write_text("a file where the folder should be")
    data = loaded(argv(dataset="rte", cache_dir=str(tmp_path / "kept")), TextEncoder(*small_vocabulary))
    assert len(data.splits["train"]) == 24 and "the encoded data are not kept" in capsys.readouterr().err


TEXTS = [f"low newer {'cat ' * (i % 7)}{i}" for i in range(120)] + ["", "x" * 400]


@pytest.mark.parametrize("start_method", [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()])
def test_processes_encode_as_one_does(small_vocabulary, monkeypatch, start_method, capsys):
    encoder = TextEncoder(*small_vocabulary)
    monkeypatch.setattr(encoding, "CHUNK", 300)
    one = encode_texts(TEXTS, encoder, n_processes=1)
    two = encode_texts(TEXTS, encoder, n_processes=2, start_method=start_method)
    assert np.array_equal(one.ids, two.ids) and np.array_equal(one.offsets, two.offsets)
    assert [one.ids[a:b].tolist() for a, b in zip(one.offsets, one.offsets[1:], strict=False)] == encoder.encode(
        TEXTS, verbose=False)
    assert "goes on in one process" not in capsys.readouterr().err


class Dies:
    """An encoder that ends the process it was sent to, and works in this one."""

    decoder = {0: "a"}

    def __init__(self):
        self.home = os.getpid()

    def encode(self, texts, verbose=True):
        if os.getpid() != self.home:
            os._exit(1)
        return [[0] * len(text) for text in texts]


def test_one_process_goes_on_where_others_die(monkeypatch, capsys):
    monkeypatch.setattr(encoding, "CHUNK", 300)
    texts = encode_texts(TEXTS, Dies(), n_processes=2)
    assert texts.lengths.tolist() == [len(text) for text in TEXTS]
    assert "goes on in one process" in capsys.readouterr().err


def test_the_fingerprint_of_story_cloze_is_that_of_older_checkpoints(tmp_path, argv, small_vocabulary):
    """The checksum of transform_roc's arrays, one after the other."""
    write_task(tmp_path / "data", "rocstories")
    encoder, args = TextEncoder(*small_vocabulary), train.parse_args(argv())
    data, n_ctx = train.load_data(args, encoder)
    value = 0
    for *fields, labels in encode_dataset(rocstories(args.data_dir, n_valid=args.n_valid)[:2], encoder=encoder):
        for array in (*transform_roc(*fields, args.n_ctx // 2 - 2, n_ctx, len(encoder)), labels):
            value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    assert task_data.fingerprint_of(data, n_ctx) == value
