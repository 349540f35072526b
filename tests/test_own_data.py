"""The user's own data: from files and from Python, its classes and scores, and its answers to bad input."""

import json

import numpy as np
import pandas as pd
import pytest

from formats.errors import BadInput, MissingInput
from tasks.own_data import own_examples, parse_columns

TEXTS = ['said "no"', "null", "n/a", "NaN", "a, b", "\u2028"]


def write(path, header, rows):
    """Write rows in the form that the path's name says; fields hold no tab and no line end."""
    if path.suffix == ".tsv":
        text = "".join("\t".join(row) + "\n" for row in [header, *rows])
    elif path.suffix == ".csv":
        pd.DataFrame(rows, columns=header).to_csv(path, index=False)
        return str(path)
    else:
        text = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl"])
def test_texts_and_labels_are_read_as_written(tmp_path, kind):
    labels = ["yes", "no", "n/a", "yes", "null", "no"]
    train = write(tmp_path / f"train{kind}", ["id", "sentence", "y"], [[str(i), t, y] for i, (t, y) in enumerate(
        zip(TEXTS, labels, strict=True))])
    test = write(tmp_path / f"test{kind}", ["sentence"], [["only a text"]])
    task, splits = own_examples("classification", train, train, test, {"text": "sentence", "label": "y"})
    assert splits["train"].texts == splits["valid"].texts == {"text": TEXTS} and splits["train"].labels == labels
    assert splits["test"].texts == {"text": ["only a text"]} and splits["test"].labels is None
    assert task.classes == ("n/a", "no", "null", "yes") and task.head == ("classification", 4)
    assert task.metrics == ("acc",) and list(splits) == ["train", "valid", "test"]


def test_python_objects_are_read_as_files_are(tmp_path):
    rows = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [10, 9, 10]}
    path = write(tmp_path / "a.csv", list(rows), [list(map(str, row)) for row in zip(*rows.values(), strict=True)])
    frame = pd.DataFrame(rows)
    records = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    for source in (path, rows, frame, records, tmp_path / "a.csv"):
        task, splits = own_examples("entailment", source, source)
        assert task.classes == ("9", "10") and splits["train"].labels == ["10", "9", "10"]
        assert splits["valid"].texts == {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"]}
        assert task.transformation == "entailment" and task.texts == ("premise", "hypothesis")
    labels = own_examples("classification", {"text": ["a"] * 4, "label": [True, False, np.int64(1), 0.5]})[0].classes
    assert labels == ("0.5", "1", "false", "true")


def test_a_tenth_is_held_out_by_the_seed():
    rows = {"text": [f"t{i}" for i in range(57)], "label": ["a", "b", "c"] * 19}
    (task, one), (_, same), (_, other) = (own_examples("classification", rows, seed=seed) for seed in (1, 1, 2))
    assert len(one["valid"]) == 5 and len(one["train"]) == 52 and task.classes == ("a", "b", "c")
    assert sorted(one["train"].texts["text"] + one["valid"].texts["text"]) == sorted(rows["text"])
    for split in one.values():
        assert [f"t{i}" for i in split.index] == split.texts["text"] and (np.diff(split.index) > 0).all()
        assert [rows["label"][i] for i in split.index] == split.labels
    assert one["valid"].texts == same["valid"].texts != other["valid"].texts


@pytest.mark.parametrize("labels, classes, score_range", [
    (["0", "1", "1"], ("0", "1"), None), (["same", "1.5", "2"], ("1.5", "2", "same"), None),
    (["1e999", "1.5", "9" * 400], ("1.5", "1e999", "9" * 400), None),
    (["0", "5", "2.5"], (), (0, 5)), (["0.25", "0.75", "1"], (), (0, 1)), (["-3", "2", "1e1"], (), (-3, 10)),
    (["1", "2", "3"], (), (1, 3)), ([0.5, 3, 2.25], (), (0, 3))])
def test_similarity_is_of_classes_or_scores(labels, classes, score_range):
    task, splits = own_examples("similarity", {"text1": list("abc"), "text2": list("def"), "label": labels}, valid={
        "text1": ["a"], "text2": ["b"], "label": [labels[0]]})
    assert (task.classes, task.score_range) == (classes, score_range)
    assert task.metrics == (("acc",) if score_range is None else ("pearson", "spearman"))
    assert task.head == ("similarity", len(classes) if score_range is None else score_range[1] - score_range[0] + 1)


def test_the_right_choice_is_a_number_or_a_column():
    rows = {"context": list("abc"), "choice1": list("def"), "choice2": list("ghi"), "A3": list("jkl"),
            "label": [3, "choice1", "A3"]}
    task, splits = own_examples("multiple_choice", rows, rows, columns={"choice3": "A3"})
    assert splits["valid"].labels == ["3", "1", "3"] and task.classes == ("1", "2", "3")
    assert task.texts == ("context", "choice1", "choice2", "choice3") and task.n_out == 3
    assert splits["train"].texts["choice3"] == list("jkl")


def rows_of(**columns):
    return {"text": ["a", "b", "c"], "label": ["x", "y", "x"]} | columns


PAIRS = dict(text1=list("abc"), text2=list("def"))
CHOICES = dict(context=list("abc"), choice1=list("def"), choice2=list("ghi"))
BAD = {
    "no label": ("classification", {"text": ["a"]}, None, "train: lacks the column label; found 'text'"),
    "no text": ("entailment", {"premise": ["a"], "label": ["x"]}, None, "lacks the column hypothesis"),
    "one choice": ("multiple_choice", {"context": ["a"], "choice1": ["b"], "label": [1]}, None,
                   "lacks the column choice2"),
    "a blank label": ("classification", rows_of(label=["x", " ", "y"]), None, "row 1 has label ' ', expected a label"),
    "no value": ("classification", rows_of(label=["x", None, "y"]), None, "row 1 has label None"),
    "not a number": ("classification", rows_of(label=["x", float("nan"), "y"]), None, "row 1 has label nan"),
    "one class": ("classification", rows_of(label=["x"] * 3), None, "all 3 examples have the label 'x'"),
    "label in valid alone": ("classification", rows_of(), rows_of(label=["x", "y", "z"]),
                             "valid: row 2 has the label 'z', which no example of train has .it has 'x, y'"),
    "a word among scores": ("similarity", PAIRS | {"label": [1, 2.5, 3]}, PAIRS | {"label": [1, "high", 2]},
                            "valid: row 1 has the label 'high', expected a number"),
    "scores too far apart": ("similarity", PAIRS | {"label": [1, 2.5, 3000]}, None, "go from 1 to 3000"),
    "choice 3 of 2": ("multiple_choice", CHOICES | {"label": [1, 2, 3]}, None,
                      "row 2 has the label '3', expected 1 to 2 or the name"),
    "more choices in valid": ("multiple_choice", CHOICES | {"label": [1, 2, 1]},
                              CHOICES | {"choice3": list("jkl"), "label": [1, 2, 3]}, "row 0 has a choice3, but"),
    "lengths": ("classification", rows_of(label=["x"]), None, "columns have different lengths"),
    "a number for a text": ("classification", rows_of(text=["a", 3, "b"]), None, "row 1 has text 3, expected a text"),
    "half a character": ("classification", rows_of(text=["a", "\ud800", "b"]), None, "row 1 has a text with a NUL or"),
    "nothing": ("classification", [], None, "train: is empty"), "none": ("classification", rows_of(
        text=[], label=[]), None, "train: has a header but no examples"),
    "one example": ("classification", rows_of(text=["a"], label=["x"]), None, "all 1 examples"),
    "a number": ("classification", 3, None, "train is int, expected a path, a DataFrame"),
    "two columns of a name": ("classification", pd.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"]),
                              None, "two columns of one name"),
    "task": ("regression", rows_of(), None, "the task is 'regression', allowed are classification, entailment"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_data_get_one_line(what):
    transformation, train, valid, message = BAD[what]
    with pytest.raises(BadInput, match=message) as caught:
        own_examples(transformation, train, valid)
    assert "\n" not in str(caught.value)


BAD_FILES = {
    "a.txt": (b"text\tlabel\n", "ends in '.txt', expected .csv, .tsv, .jsonl"), "a.tsv": (b"", "is empty"),
    "b.tsv": (b"text\tlabel\na\tx\nb\n", "row 3 has 1 field, expected 2"),
    "c.tsv": (b"text\tlabel\ncaf\xe9\tx\n", "row 2 is not UTF-8"),
    "d.tsv": (b"text\tlabel\n", "has a header but no examples"), "a.csv": (b'text,label\n"a,x\n', "is not CSV"),
    "b.csv": (b"text,label,label\na,x,y\n", "has the column label 2 times"),
    "a.jsonl": (b'{"text": "a", "label": "x"}\n{"label": "x"}\n', "row 2 lacks the field 'text'"),
    "b.jsonl": (b'{"text": ["a"], "label": "x"}\n', "row 1 has text .*expected a text in quotes"),
    "c.jsonl": (b'{"text": "a", "label": null}\n', "row 1 has label None, expected a label"),
    "d.jsonl": (b'{"text": "a", "label": {"x": 1}}\n', "row 1 has label"),
    "e.jsonl": (b'{"text": "a"}\n', "lacks the column label"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_one_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        own_examples("classification", str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingInput, match="nowhere.csv: not found"):
        own_examples("classification", str(tmp_path / "nowhere.csv"))


def test_columns_are_renamed_by_words():
    assert parse_columns(["text=a=b", "label=y"], "classification") == {"text": "a=b", "label": "y"}
    assert parse_columns(["choice12=x"], "multiple_choice") == {"choice12": "x"}
    assert parse_columns(None, "similarity") == {}
    for word in ("text", "text=", "words=x", "choice1=x"):
        with pytest.raises(BadInput, match="--columns has .*expected NAME=COLUMN.*text, label"):
            parse_columns([word], "classification")


def test_long_texts_are_read(tmp_path):
    long = "word " * 20_000
    for kind in (".csv", ".tsv", ".jsonl"):
        path = write(tmp_path / f"a{kind}", ["text", "label"], [[long, "x"], ["b", "y"]])
        assert own_examples("classification", path, path)[1]["train"].texts["text"] == [long, "b"]
