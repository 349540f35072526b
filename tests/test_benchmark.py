"""The benchmark measures something, and both sides do the same work."""

import json

import pytest
import torch

import benchmark
from utils import run_script


def test_quick_rows(tmp_path, capsys):
    out = tmp_path / "results.json"
    benchmark.main(["--quick", "--rows", "gpt-train-fp32", "t5-beam4-1", "--pairs", "1", "--out", str(out)])
    table = capsys.readouterr().out
    assert "gpt-train-fp32" in table and "t5-beam4-1" in table
    rows = json.load(open(out))["rows"]
    assert all(r["ours_s"] > 0 and r["theirs_s"] > 0 and r["memory_ratio"] > 0 and r["share"] > 0 for r in rows)


@pytest.mark.parametrize("row", benchmark.ROWS)
def test_every_row_of_ours_runs(row):
    pytest.importorskip("transformers")
    for side in ("ours", "theirs"):
        torch.manual_seed(0)
        run, operations = benchmark.ROWS[row](side, benchmark.QUICK, "cpu")
        run()
        assert operations > 0 or side == "theirs"


def test_both_t5_decode_the_same_tokens():
    size = benchmark.QUICK | {"new_tokens": 6}
    ours, _ = benchmark.t5_decode("ours", size, "cpu", 2, 1)
    theirs, _ = benchmark.t5_decode("theirs", size, "cpu", 2, 1)
    assert ours().tolist() == theirs()[:, 1:].tolist()


def test_batches_have_the_shape_of_rocstories():
    x, m, y = benchmark.cloze_batch(500, 40478)
    real = m.sum((1, 2)).mean()
    assert 100 < real < 112 and x.shape == (500, 2, 77, 2) and 0.4 < y.float().mean() < 0.6


def test_unknown_rows_are_refused(capsys):
    with pytest.raises(SystemExit):
        run_script(benchmark.main, ["--rows", "gpt-fly"])
    assert capsys.readouterr().err.count("\n") == 1
