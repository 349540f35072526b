"""What a run of train.py measures: parts of the data apart, each number computed once, from files to the report."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cloze_data import options
from task_files import write_task

import analysis
import train
from predict import predict
from tasks.encoding import encode_split
from tasks.gpt_tasks import GPT_TASKS
from tasks.metrics import by_group
from text_utils import TextEncoder
from training import finetuning
from training.finetuned import load_finetuned
from utils import read_log


@pytest.fixture
def run(tmp_path, small_vocabulary, monkeypatch):
    """A function that trains on a task's small files; returns (outcome, log without its header, Counter of examples).

    The Counter says how many examples of each split went through the model without a gradient; 'converted', how often
    the weights were converted.
    """
    def trained(name, **more):
        write_task(tmp_path / "data", name)
        if name == "mnli":  # the mismatched part has other labels, so that the two cannot be taken for one another
            path = tmp_path / "data" / "MNLI" / "dev_mismatched.tsv"
            path.write_text(path.read_text().replace("neutral\n", "contradiction\n"))
            (tmp_path / "data" / "diagnostic").mkdir()
            (tmp_path / "data" / "diagnostic" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tcat\n")
        counted, original, choose = Counter(), train.task_logits, train.finetuning.choose

        def counting(args, model, x):
            counted[counted["split"]] += len(x)
            return original(args, model, x)

        def noting(*args, **kwargs):
            counted["split"] = kwargs["desc"]
            return choose(*args, **kwargs)

        def converting(model, precision):
            counted["converted"] += 1
            return model

        monkeypatch.setattr(train, "task_logits", counting)
        monkeypatch.setattr(train.finetuning, "choose", noting)
        monkeypatch.setattr(train, "for_evaluation", converting)
        outcome = train.main(options(tmp_path, str(tmp_path / "data"), small_vocabulary, dataset=name, submit=True,
                                     analysis=True, n_embd=8, n_layer=1, n_iter=3, **more))
        del counted["split"]
        return outcome, read_log(outcome.paths["log"])[1:], counted

    return trained


@pytest.mark.parametrize("name, once", [("race", {"test": 8}), ("stsb", {"test": 7}), ("rocstories", {"test": 21}),
                                        ("mnli", {"test": 7, "test_mismatched": 7, "ax": 1})])
def test_nothing_is_computed_twice(run, name, once):
    """Each evaluation takes the training sample and the validation splits once, the end the test splits once."""
    _, lines, counted = run(name)
    assert len(lines) == 3
    valid = {"race": 12, "rocstories": 9}.get(name, 10)
    expected = {"train": 3 * 9, "valid": 3 * valid, "converted": 3 + 1} | once
    assert counted == expected | ({"valid_mismatched": 3 * 10} if name == "mnli" else {})


def test_the_first_metric_selects(tmp_path, small_vocabulary):
    task, data_dir, encoder = GPT_TASKS["mrpc"], write_task(tmp_path, "mrpc"), TextEncoder(*small_vocabulary)
    splits = {name: encode_split(task, task.read(data_dir, name), encoder, verbose=False)
              for name in ("train", "valid")}
    evaluate = finetuning.make_task_evaluation(SimpleNamespace(n_valid=5), task, splits, lambda numbers: {
        name: torch.arange(2.0 * n).sin().view(n, 2) for name, n in numbers.items()})
    values, score = evaluate()
    assert list(values) == ["tr_cost", "tr_f1", "tr_acc", "va_cost", "va_f1", "va_acc"] and score == values["va_f1"]


def labels_and_words(path, task, data_dir):
    """The labels of the test split and what a submission says of them, class numbers both."""
    words = list(analysis.read_predictions(path).values())
    labels = task.read(data_dir, "test").labels
    return np.array([[task.classes.index(word) for word in row] for row in (labels, words)])


def test_race_is_told_level_by_level(run, tmp_path, capsys):
    outcome, lines, _ = run("race")
    n = {"middle": 6, "high": 6}
    for line in lines:
        assert not any(name.startswith("tr_acc_") for name in line)
        assert line["va_acc"] == pytest.approx(sum(n[level] * line[f"va_acc_{level}"] for level in n) / 12)
    task, data_dir = GPT_TASKS["race"], str(tmp_path / "data")
    labels, words = labels_and_words(outcome.paths["submission"], task, data_dir)
    is_high = np.array(["high" in path for path in task.files(data_dir)["test"] for _ in range(2)])
    assert is_high.tolist() == [False] * 4 + [True] * 4
    test = {"test": 100 * (labels == words).mean(), "test_middle": 100 * (labels == words)[~is_high].mean(),
            "test_high": 100 * (labels == words)[is_high].mean()}
    best = max(lines, key=lambda line: line["va_acc"])
    valid = {name.replace("va_acc", "valid"): value for name, value in best.items() if name.startswith("va_acc")}
    assert list(valid) == ["valid", "valid_middle", "valid_high"]
    assert outcome.accuracies == pytest.approx(valid | test)
    assert "test_high accuracy" in repr(outcome)
    out = capsys.readouterr().out.splitlines()[-7:]
    titles = ["Accuracy", "Accuracy (middle)", "Accuracy (high)"]
    assert out == [f"RACE {split} {title}: {value:.2f}" for split, values in (("Valid", valid), ("Test", test))
                   for title, value in zip(titles, values.values(), strict=True)] + [
        "RACE published (Radford et al. 2018): acc 59.0, acc of middle schools 62.9, acc of high schools 57.4"]


def test_a_level_without_examples_has_no_number():
    labels = np.array([1, 1, 2])
    assert by_group("acc", ("middle", "high"), np.array([1, 1, 1]), labels, labels) == {"acc_high": 100.0}
    assert by_group("acc", ("middle", "high"), np.array([1, 0, 1]), np.array([1, 0, 0]), labels) == {
        "acc_middle": 0.0, "acc_high": 50.0}
    assert by_group("acc", (), None, labels, labels) == {}


def test_mnli_from_files_to_the_report(run, tmp_path, capsys):
    """Both validation parts at each evaluation, the three files of the server, and the report."""
    outcome, lines, _ = run("mnli")
    for line in lines:
        assert {"tr_cost", "va_cost", "va_cost_mismatched", "va_acc", "va_acc_mismatched"} <= line.keys()
    best = max(lines, key=lambda line: line["va_acc"])
    assert outcome.accuracies == {"valid": best["va_acc"], "valid_mismatched": best["va_acc_mismatched"]}
    task, finetuned = GPT_TASKS["mnli"], load_finetuned(str(tmp_path / "save" / "tiny"))
    for part, value in outcome.accuracies.items():
        split = task.read(str(tmp_path / "data"), part)
        words = predict(finetuned, split.texts)["label"]
        assert value == pytest.approx(100 * np.equal(words, split.labels).mean()), part
    assert len(set(outcome.accuracies.values())) == 2
    for file, n in (("MNLI-m", 7), ("MNLI-mm", 7), ("AX", 1)):
        rows = analysis.read_predictions(str(tmp_path / "submission" / f"{file}.tsv"))
        assert list(rows) == list(range(n)) and set(rows.values()) <= set(task.classes)
        header = (tmp_path / "submission" / f"{file}.probabilities.tsv").read_text().split("\n")[0]
        assert header == "index\tp_entailment\tp_neutral\tp_contradiction"
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"MNLI Valid Accuracy: {best['va_acc']:.2f}",
        f"MNLI Valid Accuracy (mismatched): {best['va_acc_mismatched']:.2f}",
        "MNLI published (Radford et al. 2018): acc 82.1, acc of mismatched 81.4 (published on GLUE's hidden test "
        "labels)"]
