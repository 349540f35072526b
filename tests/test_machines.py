"""Several machines: started as docs/scale.md says, here over loopback; processes that die; torchrun's restarts."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta

import pytest
import torch
from pretraining import T5_SIZES, argv, costs, write_text

import pretrain_t5
from formats.files import load_tensors
from training import distributed

SETTINGS = dict(n_pieces=60, n_ctx=12, n_batch=4, n_gpu=4, n_iter=1, dropout=0, n_warmup=10 ** 8, save_every=1,
                **T5_SIZES | dict(n_layer=1))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of one process, beside which the others run."""
    folder = tmp_path_factory.mktemp("machines")
    write_text(folder, 40)
    pretrain_t5.main(line(folder, desc="alone"))
    return folder


def line(folder, desc, **changes):
    return argv(folder, SETTINGS | dict(text=folder / "text40_0.txt", desc=desc, model_dir=folder / f"out_{desc}")
                | changes)


def documented(root, which):
    """The options between torchrun and the script in one of docs/scale.md's command lines."""
    text = (root / "docs" / "scale.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [shlex.split(options) for options in re.findall(r"^torchrun (.*?) \w+\.py", text, re.MULTILINE)]
    return next(options for options in found if which in options)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def started(folder, *machines):
    """Start one torchrun for each list of its options and of the script's; end what is left of them."""
    processes = []
    try:
        for options, of_script in machines:
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *options, pretrain_t5.__file__, *of_script], cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        yield processes
    finally:
        for process in processes:
            for pid in [*workers(process), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def workers(process):
    """The processes that a torchrun has started, in their order."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


def wait_for(path, *processes):
    end = time.monotonic() + 120
    while not path.exists() and time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(0.02)
    assert path.exists(), [process.communicate()[0][-2000:] for process in processes if process.poll() is not None]


def ended_as_alone(folder, desc):
    assert costs(folder, desc) == [pytest.approx(line, abs=1e-4) for line in costs(folder, "alone")]
    ours, theirs = (load_tensors(str(folder / "save" / name / "best_params")) for name in (desc, "alone"))
    # On average, as four towers are added in another order, and Adafactor moves by much what has hardly a gradient.
    n = sum(map(torch.numel, theirs.values()))
    assert sum((ours[name] - theirs[name]).abs().sum() for name in theirs) < 5e-5 * n
    assert (folder / f"out_{desc}" / "model.safetensors").is_file()


def test_two_machines_lose_a_process_and_three_processes_go_on(alone, root):
    def machine(options, n):
        options = [*options]
        options[options.index("--rdzv_endpoint") + 1] = f"127.0.0.1:{port}"
        options[options.index("--rdzv_id") + 1] = name
        options[options.index("--nproc_per_node") + 1] = str(n)
        return [*options, "--local_addr", "127.0.0.1"], line(alone, "two", shard=True, resume=True)

    options, port, name = documented(root, "--nnodes"), free_port(), uuid.uuid4().hex
    with started(alone, machine(options, 2), machine(options, 2)) as (one, two):
        wait_for(alone / "save" / "two" / "checkpoint", one, two)
        os.kill(workers(two)[-1], signal.SIGKILL)
        out = [process.communicate(timeout=120)[0] for process in (one, two)]
        assert one.returncode and two.returncode and "continue from the last checkpoint with --resume" in out[0]
    reached = load_tensors(str(alone / "save" / "two" / "checkpoint"))["n_updates"]
    assert 0 < reached < costs(alone, "alone")[-1]["n_updates"]
    port, name = free_port(), uuid.uuid4().hex
    with started(alone, machine(options, 2), machine(options, 1)) as (one, two):
        out = [process.communicate(timeout=120)[0] for process in (one, two)]
        assert one.returncode == two.returncode == 0, out
    assert f"continuing after update {reached}" in "".join(out)
    ended_as_alone(alone, "two")


@pytest.mark.parametrize("first", [0, 2])
def test_nothing_of_an_earlier_start_stands_in_torchrun_s_store(monkeypatch, first):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=20))
    store, starts = torch.distributed.HashStore(), []
    store.set_timeout(distributed.PATIENCE)
    for _ in range(3):  # the first one's questions and answers are there when the others begin
        found = {}

        def start(rank, found=found):
            found[rank] = distributed.store_of_this_start(store, rank, 3)

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(3)]
        for rank in (first, *{0, 1, 2} - {first}):
            threads[rank].start()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        assert not found[0].check(["address"])
        found[0].set("address", f"of start {len(starts)}")
        assert {part.get("address") for part in found.values()} == {b"of start %d" % len(starts)}
        starts.append(found)


def test_a_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=0.1))
    with pytest.raises(RuntimeError, match="process 1 did not come"):
        distributed.store_of_this_start(torch.distributed.HashStore(), 0, 2)


def test_torchrun_restarts_by_itself(alone, root):
    options = documented(root, "--max_restarts")
    assert options[options.index("--nproc_per_node") + 1] == "2"
    with started(alone, (options, line(alone, "restarted", shard=True, resume=True))) as (process,):
        wait_for(alone / "save" / "restarted" / "checkpoint", process)
        os.kill(workers(process)[0], signal.SIGKILL)
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0, out
    assert re.search(r"continuing after update [1-9]", out)
    ended_as_alone(alone, "restarted")
