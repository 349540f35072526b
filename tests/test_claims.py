"""The experiments of GPT-1's section 5 on tiny toy sets: what is run, recorded, reported and drawn."""

import json
import statistics

import pytest
from task_files import write_task

import reproduce
import train
from claims import ablations, grid, layers, published, toy_models
from formats.errors import BadInput
from tasks.gpt_tasks import GPT_TASKS
from utils import read_log, run_script

TINY = ["--", "--n_iter", "1", "--n_batch", "4", "--n_gpu", "2", "--n_valid", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with tiny toy data and both models, and toy_models set to their sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_models, "SIZES", {"n_embd": 16, "n_head": 2, "n_layer": 2})
        patch.setattr(toy_models, "LSTM_SIZES", {"architecture": "lstm", "n_embd": 16, "n_unit": 19})
        patch.setattr(toy_models, "PRETRAIN", toy_models.PRETRAIN | {"n_merges": 60, "n_warmup": 2})
        tiny = {"n_text": 200, "n_cloze": 30, "n_topics": 4}
        assert toy_models.STORIES.keys() == tiny.keys()  # the demo's have the same form
        for name, value in (("STORIES", tiny), ("N_TRAIN", 24), ("N_DEV", 16)):
            patch.setattr(toy_models, name, value)
        yield tmp_path_factory.mktemp("claims")


def results_in(path):
    return [grid.Result(**result) for result in json.loads(path.read_text())]


@pytest.fixture(scope="module")
def ablated(work):
    """What reproduce.py --ablations returned for two seeds of one set."""
    return reproduce.main(["--ablations", "--out", str(work), "--seeds", "2", "--datasets", "sst2", *TINY])


def test_the_four_variants_are_run_as_the_paper_has_them(work, ablated):
    assert {(result.setting, result.seed) for result in ablated} == {
        (name, seed) for name in published.VARIANTS for seed in (42, 43)}
    headers = {path.stem: read_log(path)[0] for path in (work / "log").glob("sst2-*-42.jsonl")}
    assert {desc: (h["architecture"], h["n_transfer"], h["lm_coef"], h["model_dir"].rpartition("-")[2], h["n_iter"])
            for desc, h in headers.items()} == {
        "sst2-full-42": ("transformer", 2, 0.5, "transformer", 1),
        "sst2-without-auxiliary-lm-42": ("transformer", 2, 0, "transformer", 1),
        "sst2-without-pre-training-42": ("transformer", -1, 0.5, "transformer", 1),
        "sst2-lstm-42": ("lstm", 1, 0.5, "lstm", 1)}


def test_the_report_is_of_what_the_logs_say(work, ablated):
    assert results_in(work / "ablations.json") == ablated
    text = (work / "ablations.md").read_text()
    for name in published.VARIANTS:
        found = []
        for seed in (42, 43):
            lines = read_log(work / "log" / f"sst2-{name.lower().replace(' ', '-')}-{seed}.jsonl")[1:]
            found.append(max(line["va_acc"] for line in lines))
        middle = statistics.median(found)
        assert f"| {name} | {middle:.1f} ({min(found):.1f} to {max(found):.1f}) | {middle:.1f} |" in text
    assert "| full | 45.4 | 91.3 | 82.3 | 82.0 | 70.3 | 81.8 | 88.1 | 56.0 | 74.7 |" in text
    assert "sst2 (valid, accuracy)" in text and "only its order compares" in text
    assert (work / "ablations.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list((work / "save").glob("sst2-*/checkpoint")) + list((work / "save").glob("sst2-*/best_params"))


def test_what_is_recorded_is_not_run_again(work, ablated, monkeypatch, capsys):
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained again"))
    argv = ["--ablations", "--out", str(work), "--seeds", "2", "--datasets", "sst2"]
    assert reproduce.main([*argv, *TINY]) == ablated
    assert "finished already: 8 of 8" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"sst2-full-42.json: was run differently: --lr 0.001 then, 0.5 now"):
        reproduce.main([*argv, *TINY, "--lr", "0.5"])


def test_one_that_fails_does_not_stop_the_others(work, ablated, monkeypatch, capfd):
    real = train.main

    def some(argv):
        if "rocstories-full-42" in argv:
            raise BadInput("the loss is nan")
        return real(argv)

    monkeypatch.setattr(train, "main", some)
    argv = ["--ablations", "--out", str(work), "--seeds", "1", "--datasets", "sst2", "rocstories", *TINY]
    assert run_script(reproduce.main, argv) == 2
    err = capfd.readouterr().err.strip().split("\n")[-1]
    assert "1 of 8 fine-tunings failed, the first is rocstories, full, seed 42: the loss is nan" in err
    rows = [row.split(" | ") for row in (work / "ablations.md").read_text().split("\n") if row.startswith("| ")]
    assert rows[0] == ["| ", "sst2 (valid, accuracy)", "rocstories (test, accuracy)", "mean |"]
    assert rows[2][2] == "" and rows[2][3] == " |" and rows[3][2] != ""
    found = results_in(work / "ablations.json")
    assert {(result.dataset, result.split) for result in found} == {("sst2", "valid"), ("rocstories", "test")}


def test_layers_from_the_embedding_alone_to_all(work):
    argv = ["--layers", "--out", str(work), "--seeds", "2", "--datasets", "sst2", "rocstories", *TINY]
    found = reproduce.main(argv)
    assert {(r.dataset, r.setting, r.seed) for r in found} == {
        (dataset, name, seed) for dataset in ("sst2", "rocstories") for name in ("0 layers", "1 layer", "2 layers")
        for seed in (42, 43)}
    assert [read_log(work / "log" / f"sst2-{name}-43.jsonl")[0]["n_transfer"]
            for name in ("0-layers", "1-layer", "2-layers")] == [0, 1, 2]
    text = (work / "layers.md").read_text()
    values = grid.values_of(found, "rocstories", "1 layer")
    assert f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" in text
    assert "mnli 72 to 82" in text and (work / "layers.png").stat().st_size > 5000


def test_on_other_data_the_paper_s_numbers_stand_beside(work, ablated, tmp_path, capsys):
    argv = ["--ablations", "--out", str(tmp_path), "--seeds", "1", "--datasets", "sst2", "--data_dir",
            str(work / "data"), "--model_dir", str(work / "model-transformer"), *TINY]
    found = reproduce.main(argv)
    assert {result.setting for result in found} == set(published.VARIANTS[:3])  # no weights of an LSTM were given
    assert "no --lstm_dir" in capsys.readouterr().err
    text = (tmp_path / "ablations.md").read_text()
    assert "GLUE's server" in text and "toy" not in text
    with_lstm = ablations.of_lstm(str(work / "model-lstm"))
    assert (with_lstm["n_unit"], with_lstm["n_ctx"], with_lstm["n_embd"]) == (19, 104, 16)


# the real files' layouts, a task for each metric and head: Matthews, Pearson, and a set with two dev and two test files
TASKS = ("cola", "stsb", "mnli", "race")
SMALLER = [*TINY, "--n_ctx", "40"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a few rows of some tasks, as their real files have them."""
    folder = tmp_path_factory.mktemp("data")
    for name in TASKS:
        write_task(folder, name)
    return str(folder)


def test_the_ablations_are_run_on_the_real_layouts_with_all_four_rows(work, ablated, files, tmp_path, capsys):
    found = reproduce.main(["--ablations", "--out", str(tmp_path), "--seeds", "1", "--datasets", *TASKS[:3],
                            "--data_dir", files, "--model_dir", str(work / "model-transformer"),
                            "--lstm_dir", str(work / "model-lstm"), *SMALLER])
    assert {(r.dataset, r.setting, r.metric) for r in found} == {
        (name, setting, metric) for name, metric in zip(TASKS, ("matthews", "pearson", "acc"), strict=False)
        for setting in published.VARIANTS}
    assert "no --lstm_dir" not in capsys.readouterr().err
    text = (tmp_path / "ablations.md").read_text()
    assert "cola (valid, Matthews Correlation)" in text and "stsb (valid, Pearson Correlation)" in text
    assert read_log(tmp_path / "log" / "mnli-lstm-42.jsonl")[0]["n_unit"] == 19


def test_the_layers_are_run_on_the_paper_s_two_tasks_as_their_files_are(work, ablated, files, tmp_path):
    argv = ["--layers", "--out", str(tmp_path), "--seeds", "1", "--data_dir", files,
            "--model_dir", str(work / "model-transformer"), *SMALLER]
    found = reproduce.main(argv)
    assert {(r.dataset, r.setting) for r in found} == {
        (name, setting) for name in layers.DATASETS for setting in ("0 layers", "1 layer", "2 layers")}
    text = (tmp_path / "layers.md").read_text()
    assert "race (valid, accuracy)" in text and "toy" not in text and (tmp_path / "layers.png").stat().st_size > 5000
    record = next((tmp_path / "runs").glob("race-*.json"))
    record.write_text(record.read_text().replace('"split": "valid"', '"split": "test"'))
    with pytest.raises(BadInput, match="its value is of test, now of valid"):  # the two in one table would be a lie
        reproduce.main(argv)


def test_the_published_numbers_hang_together():
    assert set(published.TABLE_5) <= set(GPT_TASKS) and set(layers.DATASETS) == set(published.FIGURE_2_LEFT)
    for i, average in enumerate(published.AVERAGES):
        assert statistics.fmean(row[i] for row in published.TABLE_5.values()) == pytest.approx(average, abs=0.07)
    for task in set(published.TABLE_5) - {"mnli"}:  # of which table 5 prints one number for two
        assert published.TABLE_5[task][0] == GPT_TASKS[task].published[GPT_TASKS[task].metrics[0]]


@pytest.mark.parametrize(("wrong", "said"), [
    (["--seeds", "0"], "--seeds is 0, allowed is from 1"),
    (["--", "--lm_coef", "0"], "--lm_coef after --: reproduce.py --ablations sets this itself"),
    (["--data_dir", "nowhere", "--model_dir", "nowhere"], "nowhere: no pretrained model there")])
def test_mistakes_get_one_line(tmp_path, capfd, wrong, said):
    assert run_script(reproduce.main, ["--ablations", "--out", str(tmp_path / "out"), *wrong]) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
