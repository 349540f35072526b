"""Submissions: GLUE's file names and words, the probabilities beside them, and what analysis.py reads in them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
from formats.errors import BadInput
from tasks import submissions
from tasks.examples import Examples, Texts
from tasks.gpt_tasks import GPT_TASKS

# the names and words of GLUE's server, as T5's script for submissions writes them
GLUE_WORDS = {
    "cola": ("CoLA.tsv", ["0", "1"]), "sst2": ("SST-2.tsv", ["0", "1"]), "mrpc": ("MRPC.tsv", ["0", "1"]),
    "qqp": ("QQP.tsv", ["0", "1"]), "wnli": ("WNLI.tsv", ["0", "1"]),
    "mnli": ("MNLI-m.tsv", ["entailment", "neutral", "contradiction"]),
    "qnli": ("QNLI.tsv", ["entailment", "not_entailment"]), "rte": ("RTE.tsv", ["entailment", "not_entailment"]),
    "stsb": ("STS-B.tsv", None), "rocstories": ("ROCStories.tsv", ["0", "1"])}


def examples_of(task, n):
    index = np.arange(n) + (np.arange(n) > 1)  # row 2 of the file was left out
    return Examples(task.transformation, Texts(np.zeros(0, np.uint16), np.zeros(1, np.int64)),
                    np.zeros((n, len(task.texts)), np.int32), np.zeros((n, len(task.texts)), np.int32), None,
                    task.score_range, index, 50, task.n_context)


def read(path):
    return [line.split("\t") for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("name", GPT_TASKS)
def test_files_have_the_names_and_words_of_the_server(tmp_path, name):
    task = GPT_TASKS[name]
    file, words = GLUE_WORDS.get(name, (task.submission["test"], list(task.classes)))
    assert task.submission["test"] == file
    logits = torch.randn(7, task.n_out, generator=torch.Generator().manual_seed(0))
    path = str(tmp_path / "new" / file)
    submissions.write_submission(path, task, examples_of(task, 7), logits)
    header, *rows = read(path)
    assert header == ["index", "prediction"] and [row[0] for row in rows] == list("0134567")
    names, *probabilities = read(submissions.probabilities_path(path))
    p = logits.softmax(1)
    np.testing.assert_allclose([[float(value) for value in row[1:]] for row in probabilities], p, atol=1e-6)
    assert [row[0] for row in probabilities] == [row[0] for row in rows]
    if name == "stsb":
        assert names == ["index", *(f"p_{score}" for score in range(6))]
        np.testing.assert_allclose([float(row[1]) for row in rows], p @ torch.arange(6.0), atol=6e-4)
    else:
        assert names == ["index", *(f"p_{word}" for word in task.classes)]
        assert [row[1] for row in rows] == [words[k] for k in logits.argmax(1)]
    if name != "rocstories":
        assert [*analysis.read_predictions(path).items()] == [(int(i), word) for i, word in rows]


def test_mnli_has_three_files():
    assert GPT_TASKS["mnli"].submission == {"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"}


def write_log(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in ({"desc": "x"}, *lines)))


def test_a_report_prints_valid_test_where_it_is_public_and_the_published_number(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    write_log(log, {"n_updates": 1, "va_cost": 0.7, "va_acc": 50.0}, {"n_updates": 2, "va_cost": 0.6, "va_acc": 75.0})
    folder = tmp_path / "SciTailV1.1" / "tsv_format"
    folder.mkdir(parents=True)
    (folder / "scitail_1.0_test.tsv").write_text("a\tb\tentails\nc\td\tneutral\ne\tf\tneutral\n")
    task = GPT_TASKS["scitail"]
    path = tmp_path / "SciTail.tsv"
    words = [task.classes[k] for k in (0, 0, 1)]
    path.write_text("index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words)))
    labels = task.read(str(tmp_path), "test").labels
    right = 100 * np.mean([word == label for word, label in zip(words, labels, strict=True)])
    assert analysis.REPORTS["scitail"](str(tmp_path), str(path), str(log)) == (75.0, pytest.approx(right))
    assert capsys.readouterr().out.splitlines() == [
        "SciTail Valid Accuracy: 75.00", f"SciTail Test Accuracy: {right:.2f}",
        "SciTail published (Radford et al. 2018): acc 88.3"]
    for text, message in (("index\tprediction\n0\tneutral\n", "1 predictions, but not of the 3 examples"),
                          ("index\tprediction\n0\tno\n1\tno\n2\tno\n", "a prediction that the task does not know"),
                          ("0\tneutral\n", "is not a submission file"),
                          ("index\tprediction\nx\tneutral\n", "is not a submission file")):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            analysis.REPORTS["scitail"](str(tmp_path), str(path), str(log))


def test_a_report_without_public_labels_says_so(tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    write_log(log, {"n_updates": 1, "va_cost": 0.7, "va_f1": 60.0, "va_acc": 55.0},
              {"n_updates": 2, "va_cost": 0.6, "va_f1": 50.0, "va_acc": 70.0})
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC" / "test.tsv").write_text("index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n")
    path = tmp_path / "MRPC.tsv"
    path.write_text("index\tprediction\n0\t1\n")
    assert analysis.REPORTS["mrpc"](str(tmp_path), str(path), str(log)) == (60.0, None)
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["MRPC Valid F1: 60.00", "MRPC Valid Accuracy: 55.00"] and len(out) == 3
    assert out[2] == "MRPC published (Radford et al. 2018): f1 82.3 (published on GLUE's hidden test labels)"
    with pytest.raises(BadInput, match="holds no va_matthews"):
        analysis.best_evaluation(str(log), "va_matthews")
