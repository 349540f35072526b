"""Reading ROCStories, splitting and laying it out as the original does."""

import json
import re

import numpy as np
import pytest
from cloze_data import rows, write_csv, write_data_dir

from datasets import COLUMNS, TEST_FILE, VALID_FILE, _rocstories, rocstories
from formats.errors import BadInput, MissingInput
from formats.files import make_path
from train import longest, transform_roc
from utils import ResultLogger, encode_dataset, iter_data, read_log


def test_transform_equals_the_original(golden):
    z = np.load(golden / "gpt" / "transform_roc.npz")
    n_vocab = json.loads(str(z["config"])).get("n_vocab")
    cases = json.loads(str(z["cases"]))
    assert len(cases) == 5
    for case in cases:
        splits = {k: [case["inputs"][k][f] for f in ("x1", "x2", "x3")] for k in ("train", "valid", "test")}
        max_len = case["n_ctx_arg"] // 2 - 2
        n_ctx = min(longest(splits.values(), max_len), case["n_ctx_arg"])
        assert (max_len, n_ctx) == (case["max_len"], case["n_ctx"])
        for split, fields in splits.items():
            want = z[f"{case['name']}/{split}/X"]
            X, M = transform_roc(*fields, max_len, n_ctx, n_vocab or int(want[0, 0, 0, 0]))
            np.testing.assert_array_equal(X, want)
            np.testing.assert_array_equal(M, z[f"{case['name']}/{split}/M"])
            assert X.dtype == np.int32 and M.dtype == np.float32


def test_split_equals_the_original(golden, tmp_path):
    z = np.load(golden / "gpt" / "transform_roc.npz")
    write_csv(tmp_path / VALID_FILE,
              [[str(i), f"s{i}", "b", "c", "d", f"r{i}", f"w{i}", str(i % 2 + 1)] for i in range(1871)])
    write_csv(tmp_path / TEST_FILE, rows(3))
    train, valid, test = rocstories(str(tmp_path))
    assert [int(s.split()[0][1:]) for s in train[0]] == z["split_train"].tolist()
    assert [int(s.split()[0][1:]) for s in valid[0]] == z["split_valid"].tolist()
    assert [int(s[1:]) for s in valid[1]] == z["split_valid"].tolist()
    assert (valid[3] == z["split_valid"] % 2).all() and valid[3].dtype == np.int32
    assert len(train[0]) == 1497 and len(valid[0]) == 374 and len(test[0]) == 3
    assert len(rocstories(str(tmp_path), n_train=100)[0][0]) == 100


def test_rows_are_read_as_written(tmp_path):
    row = ["x", 'She said, "no".', "It's fine.", "C", "D", "First, ending", "", "2"]
    for kwargs in ({}, {"encoding": "utf-8-sig"}, {"lineterminator": "\n"}):  # csv's default line end is CRLF
        write_csv(tmp_path / "a.csv", [row, row, ["y", "", "", "", "", "☃", "🙂", "1"]], **kwargs)
        st, ct1, ct2, y = _rocstories(str(tmp_path / "a.csv"))
        assert st == ["She said, \"no\". It's fine. C D"] * 2 + ["   "]  # a duplicate row stays
        assert ct1 == ["First, ending"] * 2 + ["☃"] and ct2 == ["", "", "🙂"] and y.tolist() == [1, 1, 0]


def test_columns_may_come_in_any_order(tmp_path):
    order = [7, 2, 1, 4, 3, 6, 5, 0]
    shuffled = [[row[i] for i in order] for row in rows(5)]
    write_csv(tmp_path / "a.csv", rows(5))
    write_csv(tmp_path / "b.csv", shuffled, header=[COLUMNS[i] for i in order])
    for a, b in zip(_rocstories(str(tmp_path / "a.csv")), _rocstories(str(tmp_path / "b.csv")), strict=True):
        assert list(a) == list(b)


GOOD = ",".join(COLUMNS) + "\n"
BAD_FILES = {
    "empty": (b"", "empty"),
    "header only": (GOOD.encode(), "no stories"),
    "no header": (b"a,b,c,d,e,f,g,1\n", "row 1"),
    "column missing": (GOOD.replace("InputSentence3,", "").encode() + b"a,b,c,e,f,g,1\n", "InputSentence3"),
    "column twice": (GOOD.replace("\n", ",InputSentence2\n").encode() + b"a,b,c,d,e,f,g,1,h\n",
                     "InputSentence2 2 times"),
    "commas alone in the middle": ((GOOD + "a,b,c,d,e,f,g,1\n,,,,,,,\na,b,c,d,e,f,g,1\n").encode(),
                                   "row 3 holds nothing but commas, and row 4 has text"),
    "commas alone": ((GOOD + ",,,,,,,\n").encode(), "no stories"),
    "short row": ((GOOD + "a,b,c,d,e,f,g,1\n" + "a,b,c\n").encode(), "row 3 has 3 fields, expected 8"),
    "long row": ((GOOD + "a,b,c,d,e,f,g,1,9\n").encode(), "row 2 has 9 fields"),
    "answer 3": ((GOOD + "a,b,c,d,e,f,g,3\n").encode(), "row 2.*'3', expected 1 or 2"),
    "answer empty": ((GOOD + "a,b,c,d,e,f,g,\n").encode(), "row 2.*'', expected 1 or 2"),
    "latin-1": ((GOOD + "a,caf\u00e9,c,d,e,f,g,1\n").encode("latin-1"), "not UTF-8.*0xe9"),
    "utf-16": ((GOOD + "a,b,c,d,e,f,g,1\n").encode("utf-16"), "not UTF-8"),
    "NUL": ((GOOD + "a,b\0,c,d,e,f,g,1\n").encode(), "row 2.*NUL"),
    "open quote": ((GOOD + 'a,"b,c,d,e,f,g,1\n').encode(), "row 2"),
    "huge field": ((GOOD + "a," + "b" * 200_000 + ",c,d,e,f,g,1\n").encode(), "row 2"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_one_line(tmp_path, kind):
    content, message = BAD_FILES[kind]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        _rocstories(str(tmp_path / "a.csv"))
    assert "a.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [",,,,,,,\r\n" * 3, ", ,,\t,,,,\n,,\n\n,,,,,,,,,,", ",,,,,,,\n,\n,\n\n"])
def test_rows_of_commas_at_the_end_are_skipped_with_one_notice(tmp_path, capsys, end):
    (tmp_path / "a.csv").write_bytes((GOOD + "a,b,c,d,e,f,g,1\n\na,,,,,,,2\n" + end).encode())
    for _ in range(2):  # both readings of a run: one notice
        assert _rocstories(str(tmp_path / "a.csv"))[3].tolist() == [0, 1]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(r"a\.csv: [23] rows at its end with nothing but commas \(from row 5 on", err)


def test_other_columns_may_occur_twice_or_have_no_name(tmp_path):
    write_csv(tmp_path / "a.csv", [[*row, "x", "", "", "y"] for row in rows(3)], header=[*COLUMNS, "n", "", "", "n"])
    write_csv(tmp_path / "b.csv", rows(3))
    for a, b in zip(_rocstories(str(tmp_path / "a.csv")), _rocstories(str(tmp_path / "b.csv")), strict=True):
        assert list(a) == list(b)


def test_a_missing_file_says_where_to_ask(tmp_path):
    with pytest.raises(MissingInput, match="cs.rochester.edu/nlp/rocstories") as caught:
        rocstories(str(tmp_path))
    assert VALID_FILE in str(caught.value) and TEST_FILE in str(caught.value) and "demo.py" in str(caught.value)


@pytest.mark.parametrize("n_valid", [0, 40, 41])
def test_n_valid_must_leave_training_stories(tmp_path, n_valid):
    with pytest.raises(BadInput, match="1 to 39"):
        rocstories(write_data_dir(tmp_path), n_valid=n_valid)


class Lengths:
    def encode(self, texts):
        return [[len(text)] for text in texts]


def test_encode_dataset_takes_both_forms():
    train, test = (["a", "bb"], ["ccc", ""], np.array([0, 1])), (["dddd"], ["e"], np.array([1]))
    for encoded in (encode_dataset(train, test, encoder=Lengths()), encode_dataset((train, test), encoder=Lengths())):
        assert encoded[0][:2] == [[[1], [2]], [[3], [0]]] and encoded[1][:2] == [[[4]], [[1]]]
        assert encoded[0][2] is train[2]
    assert encode_dataset(train, encoder=Lengths())[0][0] == [[1], [2]]


def test_iter_data():
    a, b = np.arange(7), np.arange(7) * 10
    assert [x.tolist() for x in iter_data(a, n_batch=3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [(x.tolist(), y.tolist()) for x, y in iter_data(a, b, n_batch=3, truncate=True)] == [
        ([0, 1, 2], [0, 10, 20]), ([3, 4, 5], [30, 40, 50])]
    assert len(list(iter_data(a, n_batch=2, max_batches=2))) == 2
    assert list(iter_data(a[:2], n_batch=3, truncate=True)) == []


def test_result_logger(tmp_path):
    path = str(tmp_path / "deep" / "run.jsonl")
    log = ResultLogger(path, lr=0.1)
    log.log(n_updates=3)
    log.log(n_updates=5)
    log.close()
    with open(path, "a") as f:
        f.write('{"n_updates": 7, "cut')  # a crash in the middle of a line
    lines = read_log(path)
    assert [line.get("n_updates") for line in lines] == [None, 3, 5] and lines[0]["lr"] == 0.1
    assert all("time" in line for line in lines)
    log = ResultLogger(path, keep=lambda line: line["n_updates"] <= 3, lr=0.2)
    log.log(n_updates=4)
    log.close()
    assert [line.get("n_updates") for line in read_log(path)] == [None, 3, 4]
    assert read_log(path)[0]["lr"] == 0.1
    assert make_path(str(tmp_path / "x" / "y")) and (tmp_path / "x").is_dir()
