"""Before a run's first update: it is alone in its folder, its processes agree, and it may start from another run."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cloze_data import options, rows, write_csv, write_data_dir
from pretraining import argv, write_text
from task_files import write_task

import pretrain
import pretrain_t5
import train
import train_t5
from datasets import TEST_FILE, VALID_FILE
from formats.files import load_tensors
from formats.locks import locked
from pretrain_t5 import learn_vocabulary
from training import loop
from utils import read_log, run_script

T5_SIZES = dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2)
GPT_SIZES = dict(n_embd=12, n_head=2, n_layer=2)


@pytest.fixture
def lines(tmp_path, small_vocabulary):
    """{script: function of changed options that returns the command line of a tiny run}."""
    data_dir, text = write_data_dir(tmp_path / "data"), write_text(tmp_path)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(
        learn_vocabulary([" ".join(row[1:7]) for row in rows(150)] + ["choice1: choice2: sentence:"] * 20, 60))
    t5 = dict(data_dir=data_dir, model_dir=tmp_path / "t5", from_scratch=True, n_valid=9, n_batch=4, n_gpu=2, n_iter=2,
              submission_dir=tmp_path / "submission", **T5_SIZES)
    gpt_text = dict(text=text, n_merges=60, n_ctx=10, n_batch=16, n_iter=2, n_warmup=3, held_out=0.05, **GPT_SIZES)
    t5_text = dict(text=text, n_pieces=60, n_ctx=12, n_batch=16, n_iter=2, **T5_SIZES)
    return {train: lambda **changes: options(tmp_path, data_dir, small_vocabulary, **changes),
            train_t5: lambda **changes: argv(tmp_path, t5 | changes),
            pretrain: lambda **changes: argv(tmp_path, gpt_text | changes),
            pretrain_t5: lambda **changes: argv(tmp_path, t5_text | changes)}


SCRIPTS = pytest.mark.parametrize("script", [train, train_t5, pretrain, pretrain_t5], ids=lambda s: s.__name__)


def refused(script, line, capfd):
    """Run a script that has to end with one line, and return the line."""
    capfd.readouterr()
    assert run_script(script.main, line) == 2
    err = capfd.readouterr().err.strip().split("\n")
    assert "Traceback" not in err[-1]
    return err[-1]


# ---- alone

@SCRIPTS
def test_a_second_run_of_one_name_is_refused(lines, tmp_path, script, capfd):
    first = subprocess.Popen([sys.executable, script.__file__, *lines[script](n_iter=100000)], cwd=tmp_path,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "log" / "tiny.jsonl").exists() and first.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        for changes in ({}, {"resume": True}, {"save_dir": tmp_path / "elsewhere"}):
            line = refused(script, lines[script](**changes), capfd)
            assert f"process {first.pid} " in line and "tiny" in line and "--desc" in line
        assert not (tmp_path / "elsewhere").exists()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert run_script(script.main, lines[script]()) == 0  # what a dead process left blocks nobody
    finally:
        with contextlib.suppress(ProcessLookupError):
            first.kill()
        first.wait()
    left = [path.name for folder in ("log", "save") for path in (tmp_path / folder).rglob("*.lock")]
    assert left == [] and not list((tmp_path / "save").rglob("*.tmp"))


def test_two_runs_do_not_write_one_model_folder(lines, tmp_path, capfd):
    for script, name in ((pretrain, pretrain.VOCABULARY[0]), (pretrain_t5, "spiece.model")):
        (tmp_path / "out").mkdir(exist_ok=True)
        with locked(str(tmp_path / "out" / name)):
            assert name in refused(script, lines[script](desc="another"), capfd)
    assert not (tmp_path / "save").exists()


def test_leftovers_of_a_killed_save_go_with_the_next(lines, tmp_path):
    for folder, name in (("save/tiny", "checkpoint.abc123_z.tmp"), ("save/tiny", "best_params.abc123_z.tmp"),
                         ("log", "tiny.jsonl.abc123_z.tmp")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_bytes(b"half")
    mine = [tmp_path / "save" / "tiny" / name for name in ("checkpoint.mine.tmp", "notes.abc123_z.tmp")]
    for path in mine:
        path.write_bytes(b"kept")
    train.main(lines[train]())
    assert sorted(tmp_path.rglob("*.tmp")) == sorted(mine)


# ---- from another run's parameters

def initial(monkeypatch, script, line):
    """The parameters with which a run begins."""
    seen = {}

    def instead(args, model, *rest, **kwargs):
        seen.update({name: value.clone() for name, value in model.state_dict().items()})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", instead)
        assert run_script(script.main, line) == 130
    return seen


@SCRIPTS
def test_a_run_starts_from_another_s_parameters(lines, tmp_path, script, monkeypatch, capfd):
    script.main(lines[script](desc="first"))
    run = tmp_path / "save" / "first"
    best, checkpoint = load_tensors(str(run / "best_params")), load_tensors(str(run / "checkpoint"))["model"]
    assert "copied" not in str(best)
    other = dict(desc="second", n_batch=8, n_iter=1, n_gpu=1, model_dir=tmp_path / "out2")
    if script in (train, train_t5):
        del other["model_dir"]
    for path, want in ((run, best), (run / "best_params", best), (run / "checkpoint", checkpoint)):
        found = initial(monkeypatch, script, lines[script](init_from=path, **other))
        assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    script.main(lines[script](init_from=run, **other))
    header, *rest = read_log(tmp_path / "log" / "second.jsonl")
    assert header["init_from"] == str(run) and header["n_batch"] == 8 and rest
    if script in (pretrain, pretrain_t5):  # the vocabulary is the first run's
        for name in pretrain.VOCABULARY if script is pretrain else ["spiece.model"]:
            assert (tmp_path / "out2" / name).read_bytes() == (run / name).read_bytes()


@SCRIPTS
def test_parameters_that_do_not_fit_get_one_line(lines, tmp_path, script, capfd):
    script.main(lines[script](desc="first"))
    new = dict(desc="second", model_dir=tmp_path / "out2") if script in (pretrain, pretrain_t5) else dict(desc="second")
    run = tmp_path / "save" / "first"
    assert "nowhere: not found" in refused(script, lines[script](init_from=tmp_path / "nowhere", **new), capfd)
    wrong = dict(n_layer=3)
    assert "give the sizes of its run" in refused(script, lines[script](init_from=run, **new | wrong), capfd)
    (tmp_path / "empty").mkdir()
    assert "neither best_params nor checkpoint" in refused(script, lines[script](init_from=tmp_path / "empty", **new),
                                                           capfd)
    assert not (tmp_path / "save" / "second").exists()


def test_what_shapes_do_not_tell_is_compared_too(lines, tmp_path, capfd):
    train.main(lines[train](desc="first"))
    run = tmp_path / "save" / "first"
    line = refused(train, lines[train](desc="second", init_from=run, n_head=3, afn="relu"), capfd)
    assert "--n_head 2 then, 3 now" in line and "--afn gelu then, relu now" in line
    encoder = tmp_path / "encoder.json"
    args = train.parse_args(lines[train]())
    with open(args.encoder_path) as f:
        encoder.write_text(f.read().replace('"a":', '"X":'))
    line = refused(train, lines[train](desc="second", init_from=run, encoder_path=encoder), capfd)
    assert "another vocabulary" in line


@pytest.mark.parametrize("script", [train, train_t5], ids=lambda s: s.__name__)
def test_a_resumed_run_from_another_s_parameters_is_the_undisturbed_one(lines, tmp_path, script, monkeypatch):
    script.main(lines[script](desc="first"))
    start = dict(init_from=tmp_path / "save" / "first", n_iter=3)
    script.main(lines[script](desc="whole", **start))
    evaluations, real = [], loop.save_tensors

    def stop(path, value):
        real(path, value)
        if path.endswith("checkpoint"):
            evaluations.append(path)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_tensors", stop)
        assert run_script(script.main, lines[script](desc="halved", **start)) == 130
    script.main(lines[script](desc="halved", resume=True, **start))
    a, b = (load_tensors(str(tmp_path / "save" / desc / "checkpoint"))["model"] for desc in ("whole", "halved"))
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- a finished run's sizes are its own

def submission(tmp_path):
    """The predicted choices."""
    return [row.split("\t")[1] for row in (tmp_path / "submission" / "ROCStories.tsv").read_text().split("\n")[1:-1]]


@pytest.mark.parametrize("script", [train, train_t5], ids=lambda s: s.__name__)
def test_predictions_do_not_depend_on_what_else_is_in_the_files(lines, tmp_path, script, capfd):
    script.main(lines[script](submit=True))
    before = submission(tmp_path)
    story = rows(1)[0]
    story[1] = story[1] + " the mat was low" * 30
    write_csv(tmp_path / "data" / TEST_FILE, [story, *rows(21, 2), story])
    script.main(lines[script](submit=True, resume=True))
    assert submission(tmp_path)[1:-1] == before
    # nor on what the run was trained on, once it is finished
    write_csv(tmp_path / "data" / VALID_FILE, [*rows(50, 1), story])
    capfd.readouterr()
    script.main(lines[script](submit=True, resume=True))
    assert submission(tmp_path)[1:-1] == before
    assert "the run is finished, but the training and validation data are not those of then" in capfd.readouterr().err
    assert "training and validation data" in refused(script, lines[script](resume=True), capfd)


def test_an_unfinished_run_does_not_go_on_with_other_data(lines, tmp_path, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_tensors", lambda path, value, real=loop.save_tensors: (
            real(path, value), path.endswith("checkpoint") and signal.raise_signal(signal.SIGINT)))
        assert run_script(train.main, lines[train](n_iter=3)) == 130
    write_csv(tmp_path / "data" / VALID_FILE, rows(50, 1))
    line = refused(train, lines[train](n_iter=3, resume=True, submit=True), capfd)
    assert "the training and validation data are not those of then" in line and "--data" not in line


def test_a_story_that_does_not_fit_keeps_its_endings(capsys):
    sizes = dict(max_len=50, n_ctx=20, n_vocab=60)
    X, M = train.transform_roc([list(range(1, 31)), [7]], [[40, 41], [8]], [[42], [9]], **sizes)
    assert X[0, 0, :, 0].tolist() == [60, *range(1, 16), 61, 40, 41, 62] and M[0, 0].all()
    assert X[0, 1, :, 0].tolist() == [60, *range(1, 16), 61, 42, 62, 0] and M[0, 1].sum() == 19
    assert X[1, 1, :5, 0].tolist() == [60, 7, 61, 9, 62]
    X, _ = train.transform_roc([[1] * 9], [[2] * 30], [[3]], **sizes)
    assert X[0, 0, :, 0].tolist() == [60, *[1] * 9, 61, *[2] * 8, 62]


# ---- processes

def start_two(script, first, second, tmp_path, **environment):
    """Start two processes with different command lines; return their statuses and what they say on standard error."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    both = []
    for rank, line in enumerate((first, second)):
        variables = dict(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        both.append(subprocess.Popen([sys.executable, script.__file__, *line], cwd=tmp_path, text=True,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                     env=os.environ | variables | environment))
    return [(p.communicate(timeout=120)[1], p.returncode) for p in both]


def test_processes_with_other_options_are_stopped(lines, tmp_path):
    line = lines[train]
    for err, status in start_two(train, line(), line(lr=0.5, seed=7), tmp_path):
        assert status == 2 and "Traceback" not in err
        assert "--lr is 0.001 in process 0 and 0.5 in process 1" in err
        assert "--seed is 42 in process 0 and 7 in process 1" in err
    assert not (tmp_path / "log").exists()


def test_processes_with_other_data_are_stopped(lines, tmp_path):
    a, b = write_text(tmp_path, 60, 1), write_text(tmp_path, 60, 2)
    line = lines[pretrain]
    for err, status in start_two(pretrain, line(text=[a, b], n_gpu=2, n_batch=4),
                                 line(text=[b, a], n_gpu=2, n_batch=4), tmp_path):
        assert status == 2 and "Traceback" not in err
        assert "the fingerprint of the training and validation data is" in err
    assert not (tmp_path / "log" / "tiny.jsonl").exists()


def test_processes_with_other_parameters_are_stopped(lines, tmp_path):
    for desc, seed in (("a", 1), ("b", 2)):
        train_t5.main(lines[train_t5](desc=desc, seed=seed))
    line = lines[train_t5]
    for err, status in start_two(train_t5, line(init_from=tmp_path / "save" / "a"),
                                 line(init_from=tmp_path / "save" / "b"), tmp_path):
        assert status == 2 and "the fingerprint of the parameters is" in err and "of the training" not in err


def test_processes_that_agree_train_and_hold_one_lock(lines, tmp_path, capfd):
    line = lines[train](log_dir=tmp_path / "log")
    assert [status for _, status in start_two(train, line, line, tmp_path)] == [0, 0]
    with locked(str(tmp_path / "save" / "tiny")):
        results = start_two(train, line, line, tmp_path)
    assert results[0][1] == 2 and f"process {os.getpid()} " in results[0][0]
    assert results[1][1] == 130 and re.search("first process .* was refused", results[1][0])


CACHED_RUN = """
import os
import sys
from training import task_data
import train
task_data.KEPT_FROM, read_and_encode = 100, task_data._read_and_encode

def noting(*args):
    with open("encoded", "a") as f:
        f.write(os.environ["RANK"] + chr(10))
    return read_and_encode(*args)

task_data._read_and_encode = noting
train.main(sys.argv[1:])
"""


def test_the_first_process_encodes_and_the_others_load_what_it_kept(tmp_path, small_vocabulary, root):
    """With a cache that is not there yet, with one that is, and as one process does."""
    write_task(tmp_path / "data", "race")
    script = SimpleNamespace(__file__=str(tmp_path / "cached.py"))
    Path(script.__file__).write_text(CACHED_RUN)

    def line(desc):
        return options(tmp_path, str(tmp_path / "data"), small_vocabulary, dataset="race", desc=desc, n_iter=1,
                       n_embd=8, n_layer=1, cache_dir=str(tmp_path / "kept"))

    for desc in ("first", "next"):
        for err, status in start_two(script, line(desc), line(desc), tmp_path, PYTHONPATH=str(root)):
            assert status == 0, err
        assert (tmp_path / "encoded").read_text() == "0\n"
    train.main(line("alone"))
    logs = [read_log(tmp_path / "log" / f"{desc}.jsonl") for desc in ("first", "next", "alone")]
    assert len({log[0]["data"] for log in logs}) == 1
    for log in logs[1:]:
        assert log[1]["va_cost"] == pytest.approx(logs[0][1]["va_cost"], rel=1e-5)


@pytest.mark.parametrize("variables, message", [
    (dict(WORLD_SIZE="2", RANK="0"), "MASTER_ADDR, MASTER_PORT are not set"),
    (dict(WORLD_SIZE="2"), "RANK, MASTER_ADDR, MASTER_PORT are not set"),
    (dict(WORLD_SIZE=""), "WORLD_SIZE is ''"),
    (dict(WORLD_SIZE="two"), "WORLD_SIZE is 'two'"),
    (dict(WORLD_SIZE="0"), "WORLD_SIZE is '0'"),
    (dict(WORLD_SIZE="2", RANK="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"), "RANK is '2'"),
    (dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="x"), "MASTER_PORT is 'x'"),
    (dict(SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="1"), "srun bash -c 'RANK=$SLURM_PROCID"),
])
def test_variables_left_in_the_environment_are_named(lines, capfd, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = refused(train, lines[train](), capfd)
    assert message in line and ("srun" in line or "unset" in line)


def test_a_port_in_use_is_named(lines, capfd, monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = str(s.getsockname()[1])
        for name, value in dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
            monkeypatch.setenv(name, value)
        line = refused(train, lines[train](), capfd)
    assert f"MASTER_PORT {port}" in line and "in use" in line.lower()


def test_a_stale_rank_silences_nobody(lines, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    train.main(lines[train](n_ctx=12))
    assert "warning: " in capfd.readouterr().err
