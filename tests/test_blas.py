"""Which library multiplies: the rule, the variable that forces it, and that a run keeps to its own."""

import os
import subprocess
import sys

import pytest
import torch
from cloze_data import options, write_data_dir

import generate
import train
from fast import blas, matmul, rates
from formats.errors import BadInput, warn_once
from training.options import PRECISIONS
from utils import read_log, run_script

BOTH = pytest.mark.skipif(not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
                          reason="this torch has one library only")


@pytest.fixture(autouse=True)
def free_choice(monkeypatch):
    monkeypatch.delenv(blas.VARIABLE, raising=False)


@BOTH
@pytest.mark.parametrize("maker, name", [("AuthenticAMD", "onednn"), ("HygonGenuine", "onednn"),
                                         ("GenuineIntel", "mkl"), ("", "mkl")])
def test_the_processor_s_maker_decides(monkeypatch, maker, name):
    monkeypatch.setattr(blas, "maker", lambda: maker)
    assert blas.in_force() == name
    taken = []
    product = matmul.product
    monkeypatch.setattr(matmul, "product", lambda name, *rest: taken.append(name) or product(name, *rest))
    matmul.matmul(torch.randn(7, 5), torch.randn(5, 11))
    assert taken == [name]
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert blas.in_force() == "mkl"  # torch's own, as nothing was measured


def test_this_processor_has_a_maker_where_linux_tells_it():
    text = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
    if "vendor_id" in text:
        assert blas.maker() and blas.maker() in text


def test_the_variable_forces_a_library_and_a_wrong_value_is_one_line(monkeypatch, capsys):
    for name in blas.LIBRARIES:
        monkeypatch.setenv(blas.VARIABLE, name)
        assert blas.in_force() == name
    monkeypatch.setenv(blas.VARIABLE, "blas")
    for main, line in ((train.main, ["--desc", "x"]), (generate.main, ["--prompt", "x"])):
        assert run_script(main, line) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "GPT_T5_MATMUL is 'blas', expected mkl or onednn" in err
    with pytest.raises(BadInput, match="GPT_T5_MATMUL"):
        matmul.matmul(torch.ones(1, 2), torch.ones(2, 1))
    monkeypatch.setenv(blas.VARIABLE, "onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(BadInput, match="has no oneDNN"):
        blas.in_force()


@pytest.fixture(scope="module")
def line(tmp_path_factory, small_vocabulary):
    """A function from changed options to the command line of a tiny run."""
    folder = tmp_path_factory.mktemp("library")
    data_dir = write_data_dir(folder / "data")

    def line(**changes):
        return options(folder, data_dir, small_vocabulary, **changes)

    line.folder = folder
    return line


def noted(line, desc):
    """The library in a run's log and in its checkpoint."""
    saved = torch.load(line.folder / "save" / desc / "checkpoint", weights_only=True)
    return read_log(line.folder / "log" / f"{desc}.jsonl")[0]["matmul"], saved["options"]["matmul"]


def parameters(line, desc):
    return torch.load(line.folder / "save" / desc / "checkpoint", weights_only=True)["model"]


def stop_after(monkeypatch, n_updates):
    """Let a run stop itself after some updates."""
    from training import loop
    step, count = train.opt.OpenAIAdam.step, [0]

    def counted(self, *args):
        count[0] += 1
        if count[0] == n_updates:
            os.kill(os.getpid(), loop.signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(train.opt.OpenAIAdam, "step", counted)


@BOTH
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("maker, name, other", [("AuthenticAMD", "onednn", "mkl"), ("GenuineIntel", "mkl", "onednn")])
def test_a_run_keeps_its_library_when_it_is_resumed_elsewhere(line, monkeypatch, capsys, maker, name, other, precision):
    makers = {"onednn": "AuthenticAMD", "mkl": "GenuineIntel"}
    monkeypatch.setattr(blas, "maker", lambda: maker)
    whole, cut = f"whole-{name}-{precision}", f"cut-{name}-{precision}"
    train.main(line(desc=whole, precision=precision))
    assert noted(line, whole) == (name, name) and blas.in_force() == name
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run_script(train.main, line(desc=cut, precision=precision)) == 130
    monkeypatch.setattr(blas, "maker", lambda: makers[other])
    capsys.readouterr()
    taken = []
    product = matmul.product
    monkeypatch.setattr(matmul, "product", lambda which, *rest: taken.append(which) or product(which, *rest))
    train.main(line(desc=cut, precision=precision, resume=True))
    err = capsys.readouterr().err
    assert f"made by {name}, and so are those to come" in err and f"GPT_T5_MATMUL={other}" in err
    assert noted(line, cut) == (name, name)
    assert precision == "bf16" or set(taken) == {name}
    assert all(torch.equal(a, b) for a, b in zip(parameters(line, whole).values(), parameters(line, cut).values(),
                                                 strict=True))
    assert blas.in_force() == other  # the run is over, and its choice with it


@BOTH
def test_the_variable_forces_a_resumed_run_too(line, monkeypatch, capsys):
    monkeypatch.setattr(blas, "maker", lambda: "AuthenticAMD")
    train.main(line(desc="forced", n_iter=1))
    saved = torch.load(line.folder / "save" / "forced" / "checkpoint", weights_only=True)
    saved["options"]["n_iter"] = 2
    torch.save(saved, line.folder / "save" / "forced" / "checkpoint")
    monkeypatch.setenv(blas.VARIABLE, "mkl")
    capsys.readouterr()
    train.main(line(desc="forced", resume=True))
    assert "made by onednn, those to come by mkl (GPT_T5_MATMUL)" in capsys.readouterr().err
    assert noted(line, "forced")[1] == "mkl"


def test_a_checkpoint_of_before_was_made_by_onednn(line, monkeypatch, capsys):
    monkeypatch.setattr(blas, "maker", lambda: "AuthenticAMD")
    train.main(line(desc="old"))
    path = line.folder / "save" / "old" / "checkpoint"
    saved = torch.load(path, weights_only=True)
    del saved["options"]["matmul"]
    torch.save(saved, path)
    monkeypatch.setattr(blas, "maker", lambda: "GenuineIntel")
    capsys.readouterr()
    train.main(line(desc="old", resume=True))
    assert "made by onednn, and so are those to come" in capsys.readouterr().err


def test_plain_text_is_multiplied_by_torch_s_own(line):
    train.main(line(desc="plain", plain=True, n_iter=1))
    assert noted(line, "plain") == ("mkl", "mkl")


def test_processes_that_would_choose_differently_are_refused(line):
    """torchrun starts both with one environment; a wrapper gives each its own."""
    code = ("import os, sys; os.environ['GPT_T5_MATMUL'] = ['mkl', 'onednn'][int(os.environ['RANK'])]; "
            "import train, utils; sys.exit(utils.run_script(train.main))")
    script = line.folder / "start.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                          str(script), *line(desc="two")], capture_output=True, text=True, timeout=120,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert "GPT_T5_MATMUL is 'mkl' in process 0 and 'onednn' in process 1" in run.stderr
    assert not (line.folder / "log" / "two.jsonl").exists()


# ---- bfloat16 without a unit for it

@pytest.mark.parametrize("measured, unit, said", [((300, 60), False, True), ((300, 60), True, False),
                                                  ((300, 310), False, False)])
def test_one_line_says_that_bf16_is_slower_without_a_unit(line, monkeypatch, capsys, measured, unit, said):
    warn_once.cache_clear()
    monkeypatch.setattr(rates, "has_bf16_unit", lambda: unit)
    monkeypatch.setattr(rates, "precision_rates", lambda: measured)
    for _ in range(2):
        train.main(line(desc="slow", n_iter=1, precision="bf16"))
    train.main(line(desc="slow", n_iter=1))
    err = capsys.readouterr().err
    assert err.count("no unit for bfloat16") == said
    assert not said or "60 GFLOP/s" in err and "300 in float32" in err


def test_the_unit_is_the_one_that_torch_sees(monkeypatch):
    for known, unit in (({"architecture": "x86_64", "avx512_bf16": True}, True), ({"architecture": "x86_64"}, False),
                        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": False}, True),
                        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}, False),
                        ({"architecture": "aarch64", "bf16": True}, True), ({"architecture": "aarch64"}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert rates.has_bf16_unit() is unit
    fp32, bf16 = rates.precision_rates(m=8, k=16, n=32)
    assert fp32 > 0 and bf16 > 0


def test_the_table_of_rates(monkeypatch):
    monkeypatch.setattr(rates, "SIZES", ((12, 20),))
    monkeypatch.setattr(rates, "TOTAL", 2000)
    rows = list(rates.compare_libraries())
    assert len(rows) == 9 and all(rate > 0 and ratio > 0 for *_, rate, ratio in rows)
