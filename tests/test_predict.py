"""predict.py and load_finetuned: what they need is in the folder of the run, and they say what --submit says."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from cloze_data import options, write_data_dir
from task_files import write_task

import explore
import predict
import train
from formats.errors import BadInput, MissingInput
from tasks.gpt_tasks import GPT_TASKS
from training import finetuned
from utils import run_script

WORDS = "low new old lower newer warm cold dry wet tall".split()
SIZES = dict(n_embd=12, n_head=2, n_layer=2, n_transfer=-1, n_batch=4, n_gpu=1, n_iter=1, n_ctx=30)


def rows(kind, n=24):
    """Rows of one's own data, as columns."""
    g = np.random.default_rng(5)

    def texts():
        return [" ".join(g.choice(WORDS, g.integers(1, 5))) for _ in range(n)]

    columns = {"classification": {"text": texts()}, "entailment": {"premise": texts(), "hypothesis": texts()},
               "similarity": {"text1": texts(), "text2": texts()},
               "multiple_choice": {"context": texts()} | {f"choice{k}": texts() for k in (1, 2, 3)}}[kind]
    labels = {"classification": ["so \"so\"", "good", "bad"], "entailment": ["no", "yes"],
              "similarity": ["0.5", "3", "2.25"], "multiple_choice": ["1", "2", "3"]}[kind]
    return columns | {"label": [labels[i % len(labels)] for i in range(n)]}


def words(**given):
    return [word for name, value in given.items() for word in ([f"--{name}"] if value is True else
                                                               [f"--{name}", str(value)])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_vocabulary):
    """A function from a kind of own data to (folder, Outcome, Finetuned); each is trained once."""
    made = {}

    def trained(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            pd.DataFrame(rows(kind)).to_csv(folder / "rows.csv", index=False)
            outcome = train.main(words(
                desc="mine", dataset="own", task=kind, train_file=folder / "rows.csv", valid_file=folder / "rows.csv",
                test_file=folder / "rows.csv", encoder_path=small_vocabulary[0], bpe_path=small_vocabulary[1],
                log_dir=folder / "log", save_dir=folder / "save", submission_dir=folder / "submission", submit=True,
                analysis=True, **SIZES))
            made[kind] = folder, outcome, explore.load_finetuned(str(folder / "save" / "mine"))
        return made[kind]

    return trained


KINDS = ["classification", "entailment", "similarity", "multiple_choice"]
P_COLUMNS = {"classification": ["bad", "good", 'so "so"'], "entailment": ["no", "yes"], "multiple_choice": "123"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_labelled_as_submit_does(trained, kind, capsys):
    folder, outcome, _ = trained(kind)
    without_labels = pd.DataFrame(rows(kind)).drop(columns="label")
    without_labels.to_csv(folder / "new.tsv", sep="\t", index=False)
    alone = folder / "elsewhere" / "mine"
    shutil.copytree(folder / "save" / "mine", alone)
    (alone / "checkpoint").unlink()
    predict.main(["--desc", "mine", "--save_dir", str(folder / "elsewhere"), "--file", str(folder / "new.tsv"), "--out",
                  str(folder / "out.tsv"), "--device", "cpu"])
    assert f"wrote {folder / 'out.tsv'}: 24 rows" in capsys.readouterr().out
    lines = [line.split("\t") for line in (folder / "out.tsv").read_text().splitlines()]
    submitted = [line.split("\t") for line in (folder / "submission" / "own.tsv").read_text().splitlines()]
    assert len(lines) == len(submitted) == 25
    if kind == "similarity":
        assert lines[0] == ["score"]
        assert [f"{float(score):.3f}" for score, in lines[1:]] == [score for _, score in submitted[1:]]
        assert all(0 <= float(score) <= 3 for score, in lines[1:])
        return
    assert lines[0] == ["label", *(f"p_{name}" for name in P_COLUMNS[kind])]
    assert [line[0] for line in lines[1:]] == [label for _, label in submitted[1:]]
    beside = (folder / "submission" / "own.probabilities.tsv").read_text().splitlines()
    assert beside[0].split("\t") == ["index", *lines[0][1:]]
    probabilities = np.array([line[1:] for line in lines[1:]], dtype=float)
    np.testing.assert_allclose(probabilities, [[float(p) for p in line.split("\t")[1:]] for line in beside[1:]],
                               atol=2e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert [line[0] for line in lines[1:]] == [P_COLUMNS[kind][k] for k in probabilities.argmax(1)]
    assert outcome.accuracies["test"] == pytest.approx(100 * np.mean(
        [line[0] == label for line, label in zip(lines[1:], rows(kind)["label"], strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_notebook_loads_model_encoder_and_class_names_in_one_call(trained, kind):
    folder, outcome, loaded = trained(kind)
    model, encoder, class_names, _ = loaded
    for name, value in outcome.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert encoder.encoder == outcome.encoder.encoder and encoder.bpe_ranks == outcome.encoder.bpe_ranks
    assert not model.training and class_names == tuple(P_COLUMNS.get(kind, ()))
    assert len(repr(loaded)) < 200 and f"Finetuned(own: {kind} into " in repr(loaded)
    table = predict.predict(loaded, pd.DataFrame(rows(kind)))
    plain = predict.logits_of(loaded, predict.encoded(loaded, rows(kind), verbose=False), n_batch=5, plain=True,
                              verbose=False)
    for name, values in predict.table_of(loaded, plain).items():
        if name != "label":
            np.testing.assert_allclose(table[name], values, atol=1e-5)


def test_columns_are_found_by_the_names_given(trained, capsys):
    folder, _, loaded = trained("classification")
    renamed = {"y": [1, 2], "review": ["low", "new old"]}
    with pytest.raises(BadInput, match="^the rows: lacks the column text; found 'y, review'"):
        predict.predict(loaded, renamed)
    table = predict.predict(loaded, renamed, {"text": "review"})
    assert list(table) == ["label", "p_bad", "p_good", 'p_so "so"'] and len(table) == 2
    pd.DataFrame(renamed).to_csv(folder / "renamed.csv", index=False)
    capsys.readouterr()
    predict.main(["--desc", "mine", "--save_dir", str(folder / "save"), "--file", str(folder / "renamed.csv"),
                  "--columns", "text=review"])
    assert capsys.readouterr().out.splitlines()[0] == "label\tp_bad\tp_good\tp_so \"so\""


def test_a_row_longer_than_the_model_is_cut_and_counted(trained, capsys):
    _, _, loaded = trained("entailment")
    table = predict.predict(loaded, [{"premise": "low " * 500, "hypothesis": "new"}, {"premise": "", "hypothesis": ""}])
    assert len(table) == 2 and table["p_no"].between(0, 1).all()
    assert re.search(r"warning: 1 of 2 rows are longer than the model's \d+ positions and were cut",
                     capsys.readouterr().err)


def refused(argv, capsys):
    capsys.readouterr()
    assert run_script(predict.main, argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_what_cannot_be_labelled_is_refused_in_one_line(trained, tmp_path, capsys):
    folder, _, _ = trained("multiple_choice")
    argv = ["--desc", "mine", "--save_dir", str(tmp_path), "--file", str(tmp_path / "rows.csv"), "--out",
            str(tmp_path / "out.tsv")]
    assert "task.json: not found; expected the folder of a run of train.py" in refused(argv, capsys)
    run = tmp_path / "mine"
    shutil.copytree(folder / "save" / "mine", run)
    assert "rows.csv: not found" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_text("context,choice1,choice2\na,b,c\n")
    assert "rows.csv: lacks the column choice3" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_text("context,choice1,choice2,choice3,choice4\na,b,c,d,e\n")
    assert "row 2 has a choice4" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_text("context,choice1,choice2,choice3\na,b,c\n")
    assert "row 2 has 3 fields, expected 4" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_bytes(b"context,choice1,choice2,choice3\na,b,c,\xe9\n")
    assert "row 2 is not UTF-8" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_text("context,choice1,choice2,choice3\n")
    assert "has a header but no examples" in refused(argv, capsys)
    (tmp_path / "rows.csv").write_text("context,choice1,choice2,choice3\na,b,c,d\n")
    for options_, message in ((["--n_batch", "0"], "--n_batch is 0"), (["--columns", "text=a"], "--columns has")):
        assert message in refused([*argv, *options_], capsys)
    assert "a folder" in refused([*argv[:-1], str(tmp_path)], capsys)
    assert not (tmp_path / "out.tsv").exists()
    settings = json.loads((run / "task.json").read_text())
    for change, message in (({"sizes": settings["sizes"] | {"n_embd": 14}}, "does not fit task.json"),
                            ({"sizes": settings["sizes"] | {"afn": "tanh"}}, "lacks afn"),
                            ({"n_ctx": "30"}, "lacks n_ctx"), ({"task": []}, "not as train.py writes it"),
                            ({"task": settings["task"] | {"head": "regression"}}, "task_head_type is 'regression'")):
        (run / "task.json").write_text(json.dumps(settings | change))
        assert message in refused(argv, capsys)
    (run / "task.json").write_text(json.dumps(settings)[:-20])
    assert "not as train.py writes it" in refused(argv, capsys)
    (run / "task.json").write_text(json.dumps(settings))
    (run / "best_params").unlink()
    with pytest.raises(MissingInput, match="best_params: not found"):
        finetuned.load_finetuned(str(run))


def test_a_story_cloze_run_labels_endings(tmp_path, small_vocabulary):
    data = write_data_dir(tmp_path / "data")
    train.main(options(tmp_path, data, small_vocabulary, submit=True))
    new = {"context": ["low new", "old"], "choice1": ["a", "b"], "choice2": ["c", "d"]}
    loaded = explore.load_finetuned(str(tmp_path / "save" / "tiny"))
    table = predict.predict(loaded, new)
    assert list(table) == ["label", "p_1", "p_2"] and set(table["label"]) <= {"1", "2"}
    own_names = dict(zip(("story", "ending1", "ending2"), new.values(), strict=True))
    pd.testing.assert_frame_equal(predict.predict(loaded, own_names), table)


@pytest.mark.parametrize("name", [name for name in GPT_TASKS if name not in ("race", "scitail")])
def test_a_task_s_own_test_file_holds_rows_to_label(tmp_path, name):
    task, data_dir = GPT_TASKS[name], write_task(tmp_path, name)
    known = {key: getattr(task, key) for key in ("name", "transformation", "texts", "classes", "score_range", "cut",
                                                 "n_context")}
    rows = predict.rows_of(SimpleNamespace(settings={"task": known}), task.files(data_dir)["test"][0])
    more = {"n_valid": 9} if name == "rocstories" else {}
    assert rows.texts == task.read(data_dir, "test", **more).texts and rows.labels is None


def test_loading_needs_nothing_of_our_datasets_py(root, trained, tmp_path):
    folder, _, _ = trained("classification")
    (tmp_path / "datasets.py").write_text("raise SystemExit('the wrong file')\n")
    code = (f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]; import explore; "
            f"print(explore.load_finetuned({str(folder / 'save' / 'mine')!r}))")
    environment = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment,
                         cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.startswith("Finetuned(own: classification into"), run.stderr
