"""The demonstration in its quick form, the pictures, and the README's promises."""

import re

import pytest

import analysis
import demo
from formats.errors import BadInput
from utils import read_log, run_script


def test_quick_demo_end_to_end_and_again(tmp_path, capsys):
    argv = ["--quick", "--out", str(tmp_path), "--seed", "3", "--full"]
    demo.main(argv)
    out = capsys.readouterr().out
    folder = tmp_path / "seed3-quick"
    for variant in demo.GPT_VARIANTS:
        assert re.search(rf"^ +{variant} +\d+\.\d$", out, re.MULTILINE)
    for name in ("curves.png", "layers.png"):
        assert (folder / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {read_log(path)[0]["n_transfer"] for path in (folder / "log").glob("gpt-*.jsonl")} == {-1, 0, 1, 2, 3}
    assert "$ python train.py" in out and "--data_dir DATA" in out and "A cloze:" in out
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("best_params")}
    assert len(times) == 7  # pre-training and six fine-tunings
    demo.main(argv)
    again = capsys.readouterr().out
    assert again.count("already there") == 6 and "$ python train.py" not in again
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("best_params")}
    table = out[out.index("Accuracy on"):].split("\n\n")[0]
    assert table in again


def test_quick_demo_of_t5(tmp_path, capsys):
    demo.main(["--quick", "--t5", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    for variant in demo.T5_VARIANTS:
        assert re.search(rf"^ +{variant} +\d+\.\d$", out, re.MULTILINE)
    assert (tmp_path / "seed42-quick" / "curves-t5.png").is_file()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--seed", "-1"], ["--full", "--t5"]])
def test_mistakes_get_one_line(tmp_path, capfd, wrong):
    assert run_script(demo.main, ["--out", str(tmp_path), *wrong]) == 2
    assert capfd.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def write_log(path, n_transfer, accuracies):
    lines = [{"n_transfer": n_transfer, "time": 0}]
    lines += [{"n_epochs": i, "n_updates": 10 * i, "tr_cost": 0.6, "va_cost": 0.7, "tr_acc": 50, "va_acc": a}
              for i, a in enumerate(accuracies, 1)]
    path.write_text("".join(f"{line}\n".replace("'", '"') for line in lines))
    return str(path)


def test_pictures_from_any_logs(tmp_path, capsys):
    logs = [write_log(tmp_path / f"{i}.jsonl", i % 3 - 1, [50 + i, 60 + i]) for i in range(5)]
    for extra in ([], ["--layers"]):
        out = str(tmp_path / f"picture{len(extra)}.svg")
        analysis.main([*logs, *extra, "--out", out])
        svg = open(out).read()
        assert svg.startswith("<?xml") and len(svg) > 5000
    with pytest.raises(BadInput, match="picture"):
        analysis.main([*logs, "--out", "picture.doc"])
    (tmp_path / "empty.jsonl").write_text('{"n_transfer": 1}\n')
    with pytest.raises(BadInput, match="no evaluation"):
        analysis.main([str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "x.png")])
