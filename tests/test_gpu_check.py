"""The one command for a GPU runs, every check of it, on a CPU and on the stand-in for a GPU."""

import json

import pytest
import standin

from benchmarks import gpu_check
from formats.errors import BadInput

# torch sees the stand-in's parameters as meta tensors, and says that to copy into them does nothing
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")


def test_every_check_runs_and_holds_on_a_cpu(tmp_path, capsys):
    gpu_check.main(["--device", "cpu", "--small", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {result["check"] for result in found["results"]} == set(gpu_check.CHECKS)
    assert all(result["holds"] is not False for result in found["results"]) and found["about"]["device"] == "cpu"
    assert len(capsys.readouterr().out.splitlines()) == len(found["results"]) > 40


def test_checks_run_on_what_says_that_it_is_a_gpu(capsys):
    with standin.installed():
        gpu_check.main(["--small", "--checks", "goldens_gpt", "goldens_t5", "device_against_cpu", "resume", "waits"])
    out = capsys.readouterr().out
    assert "FAILS" not in out and "waits of an update" in out


def test_what_fails_or_raises_is_said_and_the_others_run(monkeypatch, capsys):
    def broken(size, device):
        yield gpu_check.below("too much", 2.0, 1.0)
        raise ValueError("no such thing")

    monkeypatch.setitem(gpu_check.CHECKS, "waits", broken)
    with pytest.raises(BadInput, match="^2 of 4 results do not hold"):
        gpu_check.main(["--device", "cpu", "--small", "--checks", "waits", "cudnn_attention"])
    out = capsys.readouterr().out
    assert "too much" in out and "waits: ValueError: no such thing" in out and "cuDNN off" in out


def test_without_a_gpu_it_refuses_in_one_line(monkeypatch):
    with pytest.raises(BadInput, match="^--device cuda: this torch sees no CUDA device; use --device cpu$"):
        gpu_check.main([])
    with pytest.raises(BadInput, match="add --small$"):
        gpu_check.main(["--device", "cpu"])


def test_when_its_time_is_over_it_says_what_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "MINUTES", -1)
    gpu_check.main(["--device", "cpu", "--small", "--checks", "resume"])
    assert "left out" in capsys.readouterr().out
