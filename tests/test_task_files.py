"""Reading the tasks' files: tables of text row by row, and GLUE's folders as T5's own reader reads them."""

import json

import numpy as np
import pytest

from formats.errors import BadInput, MissingInput
from tasks.files import open_csv, open_tsv, read_jsonl, require_text
from tasks.glue_files import GLUE_TASKS, read_glue

SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def write_golden(folder, name, file):
    """Write a raw file of the golden; return its path."""
    path = folder / file["path"]
    path.parent.mkdir(exist_ok=True, parents=True)
    lines = ([file["header"]] if file["header"] else []) + file["rows"]
    text = "\ufeff" * bool(file.get("byte_order_mark")) + "".join("\t".join(row) + "\n" for row in lines)
    path.write_bytes(text.encode())
    if "dev_ids" in file:
        (path.parent / "dev_ids.tsv").write_text("".join("\t".join(row) + "\n" for row in file["dev_ids"]))
    return path


@pytest.fixture(scope="module")
def glue(golden):
    return json.loads((golden / "tasks" / "glue_files.json").read_text(encoding="utf-8"))


def test_glue_s_files_are_read_as_t5_s_reader_reads_them(glue, tmp_path, capsys):
    """The texts, the labels and the numbering, with its gaps, are those of tensorflow-datasets."""
    seen = set()
    for key, task in glue.items():
        name, _, part = key.partition("_")
        for split, file in task["files"].items():
            write_golden(tmp_path, name, file)
            ours = SPLITS[split] + ("_mismatched" if part == "mismatched" else "")
            seen.add((name, ours))
            for data_dir in (tmp_path, (tmp_path / file["path"]).parent):  # glue_data/ and the task's own folder
                read = read_glue(name, str(data_dir), ours)
                want = [example["features"] for example in file["examples"]]
                assert read.index.tolist() == [features["idx"] for features in want]
                dropped = file.get("rows_dropped_by_reader") or []
                assert not set(read.index.tolist()) & set(dropped)
                assert len(read) == len(want) and read.index.dtype == np.int64
                for field, texts in read.texts.items():
                    assert texts == [features[field] for features in want]
                classes = GLUE_TASKS[name].classes
                if read.labels is None:
                    assert {features["label"] for features in want} == {-1}
                elif split == "test":  # MRPC's .txt has labels that T5 does not look at
                    assert name == "mrpc" and read.labels == [classes[int(row[0])] for row in file["rows"]]
                elif classes is None:
                    assert [np.float32(label) for label in read.labels] == [np.float32(f["label"]) for f in want]
                else:
                    assert [classes.index(label) for label in read.labels] == [f["label"] for f in want]
    assert seen == {(name, split) for name, task in GLUE_TASKS.items() for split in task.files}
    err = capsys.readouterr().err
    assert "QQP/train.tsv: 1 row of another width" in err and "QQP/train.tsv: 1 row without a label" in err


def test_the_two_forms_of_mrpc_give_the_same_pairs(glue, tmp_path):
    files = glue["mrpc"]["files"]
    for split in ("train", "test"):
        write_golden(tmp_path, "mrpc", files[split])
    one = {split: read_glue("mrpc", str(tmp_path), split) for split in ("train", "valid", "test")}
    header, folder = files["train"]["header"], tmp_path / "made" / "MRPC"
    folder.mkdir(parents=True)
    for name, split in (("train", "train"), ("dev", "valid")):  # as GLUE's script makes them, byte-order mark included
        rows = [files["train"]["rows"][i] for i in one[split].index]
        (folder / f"{name}.tsv").write_text("\ufeff" + "".join("\t".join(row) + "\n" for row in [header, *rows]))
    (folder / "test.tsv").write_text("".join("\t".join(row) + "\n" for row in [
        ["index", *header[1:]], *([str(i), *row[1:]] for i, row in enumerate(files["test"]["rows"]))]))
    for split, read in one.items():
        other = read_glue("mrpc", str(folder), split)
        assert other.texts == read.texts and other.labels == (None if split == "test" else read.labels)
        assert other.index.tolist() == list(range(len(read)))
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(MissingInput, match="dev_ids.tsv.*not found.*mrpc_dev_ids.tsv"):
        read_glue("mrpc", str(tmp_path), "valid")


def test_lines_end_in_line_feeds_alone(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufefftext\tn\r\nform\ffeed\u2028 \u0085\v\t1\r\n\"open\tnull\n\n\n".encode())
    table = open_tsv(str(path))
    assert table.header == ["text", "n"]
    assert list(table.rows) == [(2, ["form\ffeed\u2028 \u0085\v", "1"]), (3, ['"open', "null"])]
    path.write_text("a\n\nn/a\n")
    assert list(open_tsv(str(path), width=1, header=False).rows) == [(1, ["a"]), (2, [""]), (3, ["n/a"])]


def test_commas_and_json_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"a, ""b""\nc",null\r\n\r\nNaN,n/a\r\n,\r\n')
    assert list(open_csv(str(path)).rows) == [(2, ['a, "b"\nc', "null"]), (4, ["NaN", "n/a"])]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\nb", "n": 1}\n\n{"text": "\\u2028"}\n')
    records = list(read_jsonl(str(path)))
    assert records == [(1, {"text": "a\nb", "n": 1}), (3, {"text": "\u2028"})]
    assert require_text(str(path), 3, records[1][1], "text") == "\u2028"


BAD = {
    "empty.tsv": (b"", "is empty"), "blank.tsv": (b"\n\r\n", "is empty"), "mark.tsv": (b"\xef\xbb\xbf", "is empty"),
    "latin.tsv": (b"a\tb\nx\ty\ncaf\xe9\tz\n", "row 3 is not UTF-8.*0xe9"),
    "wide.tsv": (b"a\tb\nx\ty\nx\ty\tz\n", "row 3 has 3 fields, expected 2 as in the header"),
    "hole.tsv": (b"a\tb\nx\ty\n\nx\ty\n", "row 3 has 1 field, expected 2"),
    "nul.tsv": (b"a\tb\nx\0\ty\n", "row 2 holds a NUL"), "wide.utf16.tsv": ("a\tb\n".encode("utf-16"), "row 1.*UTF-8"),
    "pointer.tsv": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "empty.csv": (b"", "is empty"), "latin.csv": (b"a,b\nx,y\ncaf\xe9,z\n", "row 3 is not UTF-8.*0xe9"),
    "wide.csv": (b"a,b\nx,y,z\n", "row 2 has 3 fields"), "open.csv": (b'a,b\nx,y\n"z,1\n', "row 3 is not CSV"),
    "huge.csv": (b"a,b\n" + b"x" * 140_000 + b",1\n", "row 2 is not CSV.*limit"),
    "commas.csv": (b"a,b\n,\nx,y\n", "row 2 holds nothing but commas, and row 3 has text"),
    "empty.jsonl": (b"", "is empty"), "cut.jsonl": (b'{"a": 1}\n{"a": ', "row 2 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "row 1 is not JSON"), "list.jsonl": (b'["a"]', "row 1 is .*expected a JSON object"),
    "latin.jsonl": (b'{"a": "caf\xe9"}', "row 1 is not UTF-8.*0xe9"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_gets_one_line(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    kind, path = name.rsplit(".", 1)[1], str(tmp_path / name)
    with pytest.raises(BadInput, match=message) as caught:
        list(read_jsonl(path) if kind == "jsonl" else (open_csv if kind == "csv" else open_tsv)(path).rows)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_columns_are_found_by_name_once(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("b\ta\tb\n1\t2\t3\n")
    assert open_tsv(str(path)).places(["a"]) == [1]
    for names, message in ((["a", "c"], "lacks the column c; found 'b, a, b'; expected a, c"), (["b"], "b 2 times")):
        with pytest.raises(BadInput, match=message):
            open_tsv(str(path)).places(names)
    with pytest.raises(MissingInput, match="nowhere.tsv: not found"):
        open_tsv(str(tmp_path / "nowhere.tsv"))
    with pytest.raises(MissingInput, match="is a folder"):
        open_tsv(str(tmp_path))


BAD_GLUE = {
    "unknown label": ("rte", "0\ta\tb\tentailment\n1\ta\tb\tneutral\n", "row 3 has the label 'neutral', expected"),
    "a number for a word": ("qnli", "0\ta\tb\t1\n", "row 2 has the label '1', expected entailment or not_entailment"),
    "a word for a number": ("wnli", "0\ta\tb\tentailment\n", "row 2 has the label 'entailment', expected 0 or 1"),
    "no labels": ("rte", "0\ta\tb\t\n1\ta\tb\t-\n", "no examples with a label"),
    "header alone": ("rte", "", "no examples"), "short": ("rte", "0\ta\tb\n", "row 2 has 3 fields, expected 4"),
    "score": ("stsb", "\t" * 7 + "a\tb\t5.1\n", "row 2 has the score '5.1', expected a number from 0 to 5"),
    "score nan": ("stsb", "\t" * 7 + "a\tb\tnan\n", "row 2 has the score 'nan'"),
    "score text": ("stsb", "\t" * 7 + "a\tb\thigh\n", "row 2 has the score 'high'"),
    "cola's width": ("cola", "gj04\t1\ta sentence\n", "row 1 has 3 fields, expected 4"),
    "cola's label": ("cola", "gj04\tx\t*\ta sentence\n", "row 1 has the label 'x', expected 0 or 1"),
}


@pytest.mark.parametrize("kind", BAD_GLUE)
def test_a_bad_glue_file_gets_one_line(glue, tmp_path, kind):
    name, text, message = BAD_GLUE[kind]
    header = glue[name]["files"]["train"]["header"]
    (tmp_path / "train.tsv").write_text(("\t".join(header) + "\n" if header else "") + text)
    with pytest.raises(BadInput, match=message) as caught:
        read_glue(name, str(tmp_path), "train")
    assert "train.tsv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_column_or_file_is_named(glue, tmp_path):
    (tmp_path / "train.tsv").write_text("index\tsentence1\tlabel\n0\ta\tentailment\n")
    with pytest.raises(BadInput, match="lacks the column sentence2; found 'index, sentence1, label'"):
        read_glue("rte", str(tmp_path), "train")
    with pytest.raises(MissingInput, match=r"RTE.dev.tsv: not found; --data_dir has to be rte's folder"):
        read_glue("rte", str(tmp_path), "valid")
