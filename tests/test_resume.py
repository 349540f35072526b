"""Runs that are killed, stopped, or spread over processes end where an undisturbed run ends."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from cloze_data import options, write_data_dir
from sklearn.utils import shuffle

import train
from formats.errors import BadInput
from formats.files import save_tensors, write_atomically
from training import loop
from utils import read_log, run_script

KILLS = int(os.environ.get("KILLS", "3"))  # the full harness: KILLS=20 python -m pytest tests/test_resume.py


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_vocabulary):
    """A folder with data, and a function that makes command lines for runs in it."""
    folder = tmp_path_factory.mktemp("resume")
    data_dir = write_data_dir(folder / "data", n_valid_file=140)

    def argv(**changes):
        return options(folder, **dict(data_dir=data_dir, vocabulary=small_vocabulary, n_iter=3, save_every=4) | changes)

    argv.folder = folder
    return argv


@pytest.fixture(scope="module")
def undisturbed(work):
    """Final state and log of a run nobody disturbed: 131 training stories, 16 updates an epoch."""
    train.main(work(desc="whole"))
    return outcome(work, "whole")


def outcome(work, desc):
    """(checkpoint, evaluations without times) of a run."""
    saved = torch.load(work.folder / "save" / desc / "checkpoint", weights_only=True)
    lines = read_log(work.folder / "log" / f"{desc}.jsonl")[1:]
    return saved, [{k: v for k, v in line.items() if k != "time"} for line in lines]


def equal(a, b):
    """Bit for bit, through dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_outcome(work, desc, undisturbed):
    saved, lines = outcome(work, desc)
    whole, whole_lines = undisturbed
    assert lines == whole_lines
    for part in ("model", "optimizer", "n_updates", "n_epochs", "best_score"):
        assert equal(saved[part], whole[part]), part
    best = [torch.load(work.folder / "save" / d / "best_params", weights_only=True) for d in (desc, "whole")]
    assert equal(*best)
    assert not list((work.folder / "save" / desc).glob("*.tmp"))


def start(work, *launcher, **changes):
    return subprocess.Popen([sys.executable, *launcher, train.__file__, *work(**changes)], cwd=work.folder,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for(path, process, seconds=60):
    """Wait until a file is there (or the process has ended)."""
    end = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def test_killed_at_random_moments_and_resumed_it_is_bit_for_bit_the_same(work, undisturbed):
    random = np.random.default_rng(2018)
    for _ in range(KILLS):
        process = start(work, desc="killed", resume=True)
        log = work.folder / "log" / "killed.jsonl"
        seen = log.stat().st_mtime_ns if log.exists() else None
        while process.poll() is None and (not log.exists() or log.stat().st_mtime_ns == seen):
            time.sleep(0.005)                     # until the loop has begun
        time.sleep(random.uniform(0, 0.7))
        process.kill()
        process.wait()
    for leftover in (work.folder / "save" / "killed").glob("*.tmp"):
        leftover.unlink()                         # what a kill in the middle of writing leaves behind
    train.main(work(desc="killed", resume=True))
    same_outcome(work, "killed", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_one_line(work, undisturbed, number):
    desc = f"signal{int(number)}"
    process = start(work, desc=desc, save_every=0)
    wait_for(work.folder / "log" / f"{desc}.jsonl", process)
    time.sleep(0.2)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    last = err.replace("\r", "\n").strip().split("\n")[-1]
    assert process.returncode == 130 and "Traceback" not in err
    assert signal.Signals(number).name in last and "--resume" in last
    assert 0 < torch.load(work.folder / "save" / desc / "checkpoint", weights_only=True)["n_updates"] < 48
    train.main(work(desc=desc, resume=True, save_every=0))
    same_outcome(work, desc, undisturbed)


def test_resuming_a_finished_run_changes_nothing(work, undisturbed):
    before = (work.folder / "save" / "whole" / "best_params").read_bytes()
    train.main(work(desc="whole", resume=True))
    same_outcome(work, "whole", undisturbed)
    assert (work.folder / "save" / "whole" / "best_params").read_bytes() == before


def test_other_options_are_refused_with_both_values(work, undisturbed, capfd):
    assert run_script(train.main, work(desc="whole", resume=True, lr=0.5, n_batch=2, n_gpu=4)) == 2
    line = capfd.readouterr().err.replace("\r", "\n").strip().split("\n")[-1]
    for part in ("--lr 0.001 then, 0.5 now", "--n_batch 4 then, 2 now", "--n_gpu 2 then, 4 now"):
        assert part in line
    assert run_script(train.main, work(desc="whole", resume=True, n_valid=20)) == 2
    same_outcome(work, "whole", undisturbed)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_gets_one_line(work, undisturbed, capfd, content):
    path = work.folder / "save" / "damaged" / "checkpoint"
    path.parent.mkdir(exist_ok=True)
    whole = (work.folder / "save" / "whole" / "checkpoint").read_bytes()
    path.write_bytes(whole[:-500] if content is None else content)
    assert run_script(train.main, work(desc="damaged", resume=True)) == 2
    line = capfd.readouterr().err.replace("\r", "\n").strip().split("\n")[-1]
    assert "checkpoint" in line and "Traceback" not in line


def test_nothing_that_could_execute_is_loaded(work, undisturbed, capfd):
    class Attack:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    path = work.folder / "save" / "attack" / "checkpoint"
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": Attack()}, path)
    assert run_script(train.main, work(desc="attack", resume=True)) == 2
    assert not os.path.exists("hacked")


def test_a_failed_write_leaves_the_last_good_file(tmp_path, monkeypatch):
    path = str(tmp_path / "best_params")
    save_tensors(path, {"a": torch.ones(3)})
    good = (tmp_path / "best_params").read_bytes()

    def full_disk(value, where):
        open(where, "wb").write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(BadInput, match="best_params: could not be written.*unchanged"):
        save_tensors(path, {"a": torch.zeros(3)})
    assert (tmp_path / "best_params").read_bytes() == good and os.listdir(tmp_path) == ["best_params"]
    with pytest.raises(KeyError), write_atomically(path):
        raise KeyError  # somebody else's error passes through
    assert os.listdir(tmp_path) == ["best_params"]


def test_a_real_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(BadInput, match="could not be written"), write_atomically(str(tmp_path / "x")):
        with open("/dev/full", "w") as f:
            f.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
NO_DROPOUT = dict(embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, clf_pdrop=0)


def test_two_processes_end_where_one_does(work):
    train.main(work(desc="one", submit=True, **NO_DROPOUT))
    submission = (work.folder / "submission" / "ROCStories.tsv").read_text()
    (work.folder / "submission" / "ROCStories.tsv").unlink()
    process = start(work, *TORCHRUN, desc="two", submit=True, **NO_DROPOUT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    (one, one_lines), (two, two_lines) = outcome(work, "one"), outcome(work, "two")
    assert len(one_lines) == len(two_lines) == 3  # logged once
    for a, b in zip(one_lines, two_lines, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for name in one["model"]:
        if not name.endswith(("c_attn.b", "task_head.linear.bias")):  # zero gradients: Adam moves them by noise
            torch.testing.assert_close(one["model"][name], two["model"][name], atol=1e-6, rtol=0, msg=name)
    assert (work.folder / "submission" / "ROCStories.tsv").read_text() == submission


def test_a_dead_process_ends_the_run_and_another_number_continues(work, undisturbed):
    process = start(work, *TORCHRUN, desc="dead")
    wait_for(work.folder / "save" / "dead" / "checkpoint", process)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and "--resume" in err
    train.main(work(desc="dead", resume=True))  # one process goes on
    saved, lines = outcome(work, "dead")
    whole, whole_lines = undisturbed
    assert [line["n_updates"] for line in lines] == [line["n_updates"] for line in whole_lines]
    assert saved["n_updates"] == whole["n_updates"]


LEAVING = """
import atexit, os
from training import distributed
def gloo_threads():
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)
atexit.register(lambda: os.write(1, b"then %d\\n" % gloo_threads()))  # the last of the calls at exit
world = distributed.join("cpu")
import torch._dynamo  # as --compile does
world.wait()
os.write(1, b"some now\\n" if gloo_threads() else b"none now\\n")
"""


def test_no_thread_of_the_group_outlives_it(tmp_path):
    if not os.path.exists("/proc/self/task"):
        pytest.skip("no /proc here")
    (tmp_path / "leaving.py").write_text(LEAVING)
    out = subprocess.run([sys.executable, *TORCHRUN, tmp_path / "leaving.py"], capture_output=True, text=True,
                         timeout=120)
    assert out.returncode == 0, out.stderr
    assert sorted(out.stdout.split("\n")) == ["", "some now", "some now", "then 0", "then 0"]


def test_more_processes_than_towers_are_refused(work):
    process = start(work, *TORCHRUN, desc="many", n_gpu=1)
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and "2 processes share --n_gpu 1 towers" in err


def test_the_order_of_examples_is_the_original_s():
    """One seed: NumPy's generator draws the special rows, then sklearn's shuffle for each epoch."""
    np.random.seed(42)
    np.random.randn(3, 12)
    ours = loop.draw_orders(3, 29)
    np.random.seed(42)
    np.random.randn(3, 12)
    for order in ours:
        assert shuffle(np.arange(29), random_state=np.random.mtrand._rand).tolist() == order.tolist()
