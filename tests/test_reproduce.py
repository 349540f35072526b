"""reproduce.py on toy data: its report, what it skips and resumes, what it refuses and never claims."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from cloze_data import rows, write_csv, write_data_dir
from conftest import write_small_vocabulary
from task_files import write_task

import analysis
import download_model
import opt
import reproduce
import train
from datasets import TEST_FILE, VALID_FILE
from formats import checks
from model_pytorch import LMModel, dotdict, export_openai_model
from tasks.gpt_tasks import GPT_TASKS
from toy import glue
from utils import read_log, run_script

TINY = "--n_transfer -1 --n_embd 12 --n_head 2 --n_layer 2 --n_valid 9 --n_batch 4 --n_gpu 2 --n_iter 2 --lr 0.001 " \
    "--device cpu"
DESCRIBED = ["encoder_bpe_40000.json", "task.json", "vocab_40000.bpe"]  # see training/finetuned.py


@pytest.fixture
def work(tmp_path, small_vocabulary):
    """A folder with toy data and a function that makes command lines of reproduce.py."""
    data_dir = write_data_dir(tmp_path / "data")

    def argv(*words, extra=TINY, seeds=2):
        encoder, bpe = small_vocabulary
        return ["--data_dir", data_dir, "--out", str(tmp_path / "out"), "--seeds", str(seeds), *words, "--",
                "--encoder_path", encoder, "--bpe_path", bpe, *extra.split()]

    argv.folder = tmp_path
    return argv


def written(work):
    return json.loads((work.folder / "out" / "report.json").read_text())


def accuracy_of(work, seed):
    """Test accuracy counted by hand from the submission and the answers in the CSV file."""
    lines = (work.folder / "out" / "submission" / f"reproduce-{seed}" / "ROCStories.tsv").read_text().split("\n")[1:-1]
    predictions = [int(line.split("\t")[1]) for line in lines]
    answers = [int(row[7]) - 1 for row in rows(21, 2)]
    assert len(predictions) == 21
    return 100 * sum(p == a for p, a in zip(predictions, answers, strict=True)) / 21


def evaluations(folder, desc):
    return [{k: v for k, v in line.items() if k != "time"} for line in read_log(folder / "log" / f"{desc}.jsonl")[1:]]


def never_trains(monkeypatch):
    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained again"))


def test_a_report_of_what_was_measured(work, capsys):
    reproduce.main(work())
    out, err = capsys.readouterr()
    values = written(work)
    assert [seed["seed"] for seed in values["seeds"]] == [42, 43] and values["finished"] == values["asked"] == 2
    for seed in values["seeds"]:
        assert seed["test"] == pytest.approx(accuracy_of(work, seed["seed"]))
        lines = evaluations(work.folder / "out", f"reproduce-{seed['seed']}")
        assert seed["valid"] == max(line["va_acc"] for line in lines)
        assert lines[seed["best_epoch"] - 1]["va_acc"] == seed["valid"]
        assert seed["seconds"] > 0 and not seed["resumed"]
    a, b = (seed["test"] for seed in values["seeds"])
    assert values["median"] == pytest.approx((a + b) / 2) and (values["lowest"], values["highest"]) == (min(a, b),
                                                                                                       max(a, b))
    text = (work.folder / "out" / "report.md").read_text()
    for seed in values["seeds"]:
        assert f"| {seed['seed']} | {seed['valid']:.2f} | {seed['test']:.2f} |" in text
    assert f"median {values['median']:.2f}, range {min(a, b):.2f} to {max(a, b):.2f}, best {max(a, b):.2f}" in text
    for number in ("86.5", "85.8", "85.84", "86.72", "84.87 to 87.49", "77.6"):  # beside them, as others' numbers
        assert number in text.split("not measured here")[1]
    assert f"torch {torch.__version__}" in text and "python 3." in text and "threads" in text
    assert "split: 31 train, 9 valid, 21 test" in text
    picture = (work.folder / "out" / "accuracies.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert re.search(r"estimate: \d+:\d\d:\d\d for 2 seed\(s\), .* s per update", out)
    # toy data must not pass for the published setting
    assert "not the published setting" in text and "40 stories, ROCStories 1871" in text and "--n_embd 12" in text
    assert f"{TEST_FILE} has 21 stories" in err and f"{VALID_FILE} has 40 stories" in err
    # nothing that tells of the machine
    for file in ("report.md", "report.json"):
        content = (work.folder / "out" / file).read_text()
        assert str(work.folder) not in content and os.uname().nodename not in content
    assert "--data_dir .../data" in text and "--seeds 2" in text and "--n_embd 12" in text and "--seed 42" in text


def test_each_seed_is_the_run_train_py_makes(work):
    reproduce.main(work(seeds=1))
    command = [word for word in reproduce.train_command(*reproduce.parse_args(work()), 42) if word != "--resume"]
    train.main([*command, "--save_dir", str(work.folder / "alone"), "--log_dir", str(work.folder / "alone"),
                "--submission_dir", str(work.folder / "alone")])
    alone = [{k: v for k, v in line.items() if k != "time"}
             for line in read_log(work.folder / "alone" / "reproduce-42.jsonl")[1:]]
    assert evaluations(work.folder / "out", "reproduce-42") == alone
    submission = work.folder / "out" / "submission" / "reproduce-42" / "ROCStories.tsv"
    assert (work.folder / "alone" / "ROCStories.tsv").read_text() == submission.read_text()


def test_finished_seeds_are_skipped_and_new_ones_added(work, monkeypatch, capsys):
    reproduce.main(work(seeds=1))
    trained, main = [], train.main
    monkeypatch.setattr(train, "main", lambda argv: trained.append(argv[argv.index("--seed") + 1]) or main(argv))
    reproduce.main(work("--delete_checkpoints"))
    assert trained == ["43"]
    first = written(work)
    never_trains(monkeypatch)
    (work.folder / "out" / "report.md").unlink()
    capsys.readouterr()
    reproduce.main(work())
    assert written(work)["seeds"] == first["seeds"] and (work.folder / "out" / "report.md").exists()
    out = capsys.readouterr().out
    assert "finished already: seeds 42, 43" in out and "estimate" not in out
    assert (work.folder / "out" / "report.md").read_text() in out
    for seed in (42, 43):  # deleted, though seed 42 was finished before that was asked for
        assert sorted(os.listdir(work.folder / "out" / "save" / f"reproduce-{seed}")) == ["best_params", *DESCRIBED]


def test_checkpoints_stay_unless_told_otherwise(work):
    reproduce.main(work(seeds=1))
    assert sorted(os.listdir(work.folder / "out" / "save" / "reproduce-42")) == ["best_params", "checkpoint",
                                                                                 *DESCRIBED]


def test_a_half_finished_seed_is_resumed(work, monkeypatch, capfd):
    reproduce.main(work())
    whole = written(work)
    other = work.folder / "other"
    step, calls = opt.OpenAIAdam.step, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4 + 6 + 4:  # the estimate's four, seed 42's six, and seed 43 in its second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(opt.OpenAIAdam, "step", interrupted)
    argv = work()
    argv[argv.index("--out") + 1] = str(other)
    assert run_script(reproduce.main, argv) == 130
    assert "seed 43: stopped by SIGTERM after update 4 of 6; the same command" in capfd.readouterr().err
    half = json.loads((other / "report.json").read_text())  # the report has what was measured, and no more
    assert [seed["seed"] for seed in half["seeds"]] == [42] and half["finished"] == 1 and half["asked"] == 2
    assert "1 of 2 fine-tunings finished" in (other / "report.md").read_text()
    calls.extend([1] * 100)
    before = len(calls)
    reproduce.main(argv)
    assert len(calls) - before == 4 + 2  # the estimate again, and the two updates that were left
    resumed = json.loads((other / "report.json").read_text())
    assert [(s["valid"], s["test"]) for s in resumed["seeds"]] == [(s["valid"], s["test"]) for s in whole["seeds"]]
    assert evaluations(other, "reproduce-43") == evaluations(work.folder / "out", "reproduce-43")
    assert [s["resumed"] for s in resumed["seeds"]] == [False, True] and resumed["seeds"][1]["seconds"] is None
    assert "unknown (resumed)" in (other / "report.md").read_text()


def test_one_long_update_is_enough_for_the_estimate(work, monkeypatch):
    step, calls = opt.OpenAIAdam.step, []
    monkeypatch.setattr(opt.OpenAIAdam, "step", lambda self, *args: calls.append(1) or step(self, *args))
    monkeypatch.setattr(reproduce, "LONG_ENOUGH", 0)
    reproduce.main(work(seeds=1))
    assert len(calls) == 1 + 6


def test_an_interrupted_seed_is_not_finished_whatever_its_log_holds(work):
    reproduce.main(work(seeds=1))
    log = work.folder / "out" / "log" / "reproduce-42.jsonl"
    header, *lines = log.read_text().splitlines()
    words = work(seeds=1)
    args, extra = reproduce.parse_args(words)
    run = train.parse_args(reproduce.train_command(args, extra, 42))
    blobs = written(work)["git_blob_ids"]
    assert reproduce.is_finished(args, run, blobs)
    for kept in ([], [header], [header, lines[0]], ["5", lines[1]]):
        log.write_text("".join(line + "\n" for line in kept))
        assert not reproduce.is_finished(args, run, blobs), kept
    for kept in ([], [header]):  # it is made again
        log.write_text("".join(line + "\n" for line in kept))
        reproduce.main(words)
        again = log.read_text().splitlines()
        assert json.loads(again[0])["seed"] == 42
        assert [json.loads(line)["va_cost"] for line in again[1:]] == [json.loads(line)["va_cost"] for line in lines]


def test_one_failed_seed_does_not_stop_the_others(work, monkeypatch, capfd):
    real = train.main

    def failing(words):
        if "43" in words:
            raise reproduce.BadInput("update 2: the loss is nan")
        real(words)

    monkeypatch.setattr(train, "main", failing)
    line = refused(work(seeds=3), capfd, "1 of 3 seeds failed, the first is seed 43: update 2: the loss is nan")[-1]
    assert "the same command again" in line
    assert [seed["seed"] for seed in written(work)["seeds"]] == [42, 44]
    monkeypatch.setattr(train, "main", real)
    reproduce.main(work(seeds=3))
    assert [seed["seed"] for seed in written(work)["seeds"]] == [42, 43, 44]


def test_a_lost_submission_is_made_again(work, monkeypatch):
    reproduce.main(work(seeds=1))
    path = work.folder / "out" / "submission" / "reproduce-42" / "ROCStories.tsv"
    before = path.read_text()
    path.unlink()
    reproduce.main(work(seeds=1))
    assert path.read_text() == before


def test_accuracies_come_from_the_files(work, monkeypatch):
    """A submission that was changed changes the report: nothing is remembered from the run."""
    reproduce.main(work(seeds=1))
    path = work.folder / "out" / "submission" / "reproduce-42" / "ROCStories.tsv"
    answers = [int(row[7]) - 1 for row in rows(21, 2)]
    path.write_text("index\tprediction\n" + "".join(f"{i}\t{a}\n" for i, a in enumerate(answers)))
    never_trains(monkeypatch)
    reproduce.main(work(seeds=1))
    assert written(work)["seeds"][0]["test"] == 100


def refused(argv, capfd, message):
    """Status 2 and one line that matches."""
    try:
        status = run_script(reproduce.main, argv)
    except SystemExit as error:  # argparse
        status = error.code
    lines = capfd.readouterr().err.strip().split("\n")
    assert status == 2 and re.search(message, lines[-1]), lines
    return lines


@pytest.mark.parametrize("words, extra, message", [
    (["--seeds", "0"], TINY, "--seeds is 0"), (["--seeds", "x"], TINY, "--seeds"), (["--x"], TINY, "--x"),
    (["--first_seed", "-1"], TINY, "--first_seed is -1"), ([], TINY + " --n_layers 3", "--n_layers"),
    ([], TINY + " --seed 3", "--seed after --"), ([], TINY + " --desc=x", "--desc=x after --"),
    ([], TINY + " --n_head 5", "--n_head is 5"), (["--data_dir", "nowhere"], TINY, "nowhere.*cs.rochester.edu"),
    (["--model_dir", "nowhere"], TINY.replace("-1", "2"), "nowhere.*finetune-transformer-lm")])
def test_bad_options_get_one_line(work, capfd, words, extra, message):
    assert len(refused(work(*words, extra=extra), capfd, message)) == 1
    assert not (work.folder / "out").exists()


@pytest.mark.parametrize("damage, message", [
    (lambda good: [*good[:3], good[3][:-1]], f"{TEST_FILE}: row 5 has 7 fields"),
    (lambda good: [*good[:3], [*good[3][:-1], "3"]], f"{TEST_FILE}: row 5 has AnswerRightEnding '3'")])
def test_bad_data_gets_one_line_and_nothing_is_written(work, capfd, damage, message):
    write_csv(work.folder / "data" / TEST_FILE, damage(rows(5)))
    assert len(refused(work(), capfd, message)) == 1
    assert not (work.folder / "out").exists()


def test_one_sided_answers_get_a_warning(work, capfd):
    write_csv(work.folder / "data" / TEST_FILE, [[*row[:7], "2"] for row in rows(21, 2)])
    reproduce.main(work(seeds=1))
    assert "second place in 100.0%" in capfd.readouterr().err
    assert "second place in 100.0%" in (work.folder / "out" / "report.md").read_text()


def test_another_setting_needs_another_folder(work, capfd):
    reproduce.main(work(seeds=1))
    before = (work.folder / "out" / "report.json").read_text()
    refused(work(seeds=1, extra=TINY + " --lr 0.5"), capfd, "seed 42 was run differently: --lr 0.001 then, 0.5 now")
    write_csv(work.folder / "data" / TEST_FILE, rows(22))
    refused(work(seeds=1), capfd, f"another {TEST_FILE} then")
    assert (work.folder / "out" / "report.json").read_text() == before


@pytest.fixture
def pretrained(work):
    """A small model in the released format with its vocabulary; options that use it."""
    folder = work.folder / "model"
    folder.mkdir()
    write_small_vocabulary(folder)
    torch.manual_seed(5)
    cfg = dotdict(n_embd=12, n_head=2, n_layer=2, afn="gelu", embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    export_openai_model(LMModel(cfg, 93 + 64, 64), str(folder))
    words = [word for word in work("--model_dir", str(folder), extra=TINY.replace("-1", "2") + " --n_ctx 64", seeds=1)]
    at = words.index("--encoder_path")
    return words[:at] + words[at + 4:]  # the vocabulary in model_dir


def test_weights_of_another_size_are_no_reproduction(work, pretrained, capfd):
    reproduce.main(pretrained)
    assert "weights: not OpenAI's, 93 tokens and n_embd 12" in (work.folder / "out" / "report.md").read_text()
    assert "params_9.npy" in written(work)["git_blob_ids"]


def test_weights_of_the_released_size_are_verified(work, pretrained, capfd, monkeypatch):
    monkeypatch.setattr(reproduce, "RELEASED_SIZE", (93, 12))
    refused(pretrained, capfd, "encoder_bpe_40000.json: truncated.*and 12 more.*--unverified")
    assert not (work.folder / "out").exists()
    reproduce.main(["--unverified", *pretrained])
    text = (work.folder / "out" / "report.md").read_text()
    assert "13 files are NOT those that were published" in text and "verified by" not in text
    # and with the ids that were published, they pass
    folder = work.folder / "model"
    table = {name: wanted._replace(expected=checks.git_blob_id(folder / name), least_size=1)
             for name, wanted in download_model.OPENAI_FILES.items()}
    monkeypatch.setattr(download_model, "OPENAI_FILES", table)
    reproduce.main(pretrained)
    text = (work.folder / "out" / "report.md").read_text()
    assert "OpenAI's, every file verified by its git blob id" in text and "NOT those" not in text
    with open(folder / "params_3.npy", "r+b") as f:
        f.seek(200)
        f.write(b"\1\2\3\4")
    refused(pretrained, capfd, "params_3.npy: altered")


def test_the_authors_setting_departs_in_nothing(small_vocabulary):
    run = train.parse_args(["--desc", "x", "--seed", "7", "--data_dir", "d", "--device", "cpu", "--save_every", "3"])
    assert reproduce.changed_options(run) == []
    assert reproduce.changed_options(train.parse_args(["--desc", "x", "--lr", "1"])) == ["--lr 1.0"]


def test_the_picture_has_a_dot_for_every_seed(tmp_path):
    axes = analysis.draw_seeds({44: 80.0, 42: 70.0, 43: 75.0}, str(tmp_path / "x.png"), {"paper": 86.5}).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"median: 75.00": [75, 75], "paper": [86.5, 86.5], "one seed": [70, 75, 80]}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["42", "43", "44"]


def test_as_a_process(work):
    run = subprocess.run([sys.executable, reproduce.__file__, "--help"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "--delete_checkpoints" in run.stdout


def test_another_task_stands_beside_its_published_number(tmp_path, small_vocabulary, capsys):
    glue.write_data_dir(str(tmp_path / "glue"), n_train=16, n_dev=6, n_test=5)
    argv = ["--dataset", "mrpc", "--data_dir", str(tmp_path / "glue"), "--out", str(tmp_path / "out"), "--seeds", "2",
            "--", "--encoder_path", small_vocabulary[0], "--bpe_path", small_vocabulary[1], *TINY.split()]
    reproduce.main(argv)
    text = (tmp_path / "out" / "report.md").read_text()
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert text.startswith("# mrpc: 2 of 2 fine-tunings finished") and values["judged"] == "valid"
    for seed in values["seeds"]:
        lines = evaluations(tmp_path / "out", f"reproduce-{seed['seed']}")
        assert seed["test"] is None and seed["valid"] == max(line["va_f1"] for line in lines)
        assert f"| {seed['seed']} | {seed['valid']:.2f} | labels not public |" in text
        submission = tmp_path / "out" / "submission" / f"reproduce-{seed['seed']}" / "MRPC.tsv"
        assert [line.split("\t")[0] for line in submission.read_text().splitlines()] == ["index", *"01234"]
    after = text.split("## Published test numbers, not measured here")[1]
    assert "hidden test labels" in after and "| paper (Radford et al. 2018), f1 | 82.3 |" in after
    assert "train has 16 examples, the published data 3,668" in text
    capsys.readouterr()
    reproduce.main(argv)
    assert "finished already: seeds 42, 43" in capsys.readouterr().out


PARTS = {"race": ["valid, middle", "valid, high", "test, middle", "test, high"], "mnli": ["valid, mismatched"]}


@pytest.mark.parametrize("name", [name for name in GPT_TASKS if name != "rocstories"])
def test_every_task_is_reported_beside_its_published_number(tmp_path, small_vocabulary, name):
    parts = PARTS.get(name, [])
    argv = ["--dataset", name, "--data_dir", write_task(tmp_path / "data", name), "--out", str(tmp_path / "out"),
            "--seeds", "1", "--", "--encoder_path", small_vocabulary[0], "--bpe_path", small_vocabulary[1],
            *TINY.split()]
    reproduce.main(argv)
    text, first = (tmp_path / "out" / "report.md").read_text(), GPT_TASKS[name].metrics[0]
    seed, = json.loads((tmp_path / "out" / "report.json").read_text())["seeds"]
    assert list(seed["parts"]) == parts
    header, _, row = (line.strip("| ").split(" | ") for line in text.split("## Measured here\n\n")[1].split("\n")[:3])
    assert header[3:-2] == parts and row[3:-2] == [f"{value:.2f}" for value in seed["parts"].values()]
    best = max(evaluations(tmp_path / "out", "reproduce-42"), key=lambda line: line[f"va_{first}"])
    assert [best[f"va_{first}_{part.split(', ')[1]}"] for part in parts if part.startswith("valid")] == [
        value for part, value in seed["parts"].items() if part.startswith("valid")]
    published = text.split("not measured here")[1].split("## How")[0]
    assert all(f", {metric} | {value} |" in published for metric, value in GPT_TASKS[name].published.items())
    assert GPT_TASKS[name].caveat in published
    assert seed["test"] is None or "labels not public" not in text
