"""A small model, pre-trained on toy stories, learns a toy set to clearly above chance, from its files to the report.

The settings are the demo's (demo.py --tasks), which takes minutes: here the model is smaller and reads fewer stories,
and the pairs, which take a better model, are of two topics.
"""

import re

import pytest

import demo
import pretrain
import train
from toy import glue, stories

SMALL = {"n_embd": 48, "n_layer": 2, "lr": 4e-3}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """The folder of the pre-trained model."""
    folder = tmp_path_factory.mktemp("toy")
    stories.write_text(str(folder / "stories.txt"), 3000, 42)
    pretrain.main(demo.command_line(demo.GPT_PRETRAIN | SMALL | {
        "desc": "pretrained", "text": folder / "stories.txt", "model_dir": folder / "model",
        "log_dir": folder / "log", "save_dir": folder / "save"}))
    return folder / "model"


@pytest.fixture
def fine_tune(model_dir, tmp_path):
    """A function that fine-tunes the model on a toy set with the settings of the demo; it returns the Outcome."""
    def run(name, n_topics=None, **changes):
        glue.write_data_dir(str(tmp_path / "glue"), n_train=600, n_dev=200, n_test=50, n_topics=n_topics)
        return train.main(demo.command_line(demo.TASK_FINETUNE | SMALL | {
            "n_transfer": 2, "desc": name, "dataset": name, "data_dir": tmp_path / "glue", "model_dir": model_dir,
            "n_valid": 50, "log_dir": tmp_path / "log", "save_dir": tmp_path / "save", "submit": True,
            "analysis": True, "submission_dir": tmp_path / "submission"} | changes))

    return run


def test_whether_a_story_goes_well_is_learned(fine_tune, tmp_path, capsys):
    outcome = fine_tune("sst2", n_iter=4, lm_coef=0)
    assert outcome.accuracies["valid"] > 70  # chance: 50, with 3.5 points of deviation; the best possible: 100
    out = capsys.readouterr().out
    assert f"SST-2 Valid Accuracy: {outcome.accuracies['valid']:.2f}" in out and "acc 91.3" in out
    right = [label for _, label in glue.examples("SST-2", 50, 7, "test")]
    lines = (tmp_path / "submission" / "SST-2.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[0]) for line in lines] == list(range(50))
    assert sum(int(line.split("\t")[1]) == label for line, label in zip(lines, right, strict=True)) > 32


# name -> (least value of the first metric, its title); by chance that is 50 for RTE, at most 67 for MRPC and 0 for
# STS-B, with deviations of 3.5, 3.5 and 7 points; the best possible is 100
PAIRS = {"rte": (70, "Accuracy"), "mrpc": (80, "F1"), "stsb": (50, "Pearson Correlation")}


@pytest.mark.parametrize("name", PAIRS)
def test_what_two_texts_have_to_do_with_each_other_is_learned(fine_tune, name, capsys):
    least, title = PAIRS[name]
    outcome = fine_tune(name, n_topics=2, n_iter=8, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, clf_pdrop=0)
    assert outcome.accuracies["valid"] > least
    assert f" Valid {title}: {outcome.accuracies['valid']:.2f}" in capsys.readouterr().out


def test_the_demo_shows_them_beside_chance_and_no_pre_training(model_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TASKS", {name: demo.TASKS[name] for name in ("rte", "stsb")})
    monkeypatch.setitem(demo.GPT_VARIANTS, "pre-trained", {"n_transfer": 2})
    settings = demo.TASK_FINETUNE | SMALL | {"model_dir": model_dir, "n_iter": 1, "n_valid": 20}
    for _ in range(2):
        demo.show_tasks(str(tmp_path), settings, 42, quick=True)
    out = capsys.readouterr().out
    assert out.count("$ python train.py") == 4 and out.count("already there") == 4 and out.count("toy.glue") == 1
    tables = re.findall(r"^    rte +Accuracy +50 +(\d+\.\d) +(\d+\.\d)\n    stsb +Pearson Correlation +0 +(-?\d+\.\d) +"
                        r"(-?\d+\.\d)$", out, re.MULTILINE)
    assert len(tables) == 2 and tables[0] == tables[1]
