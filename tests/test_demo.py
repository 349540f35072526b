"""The demonstration in its quick form, the pictures, and the README's promises."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import analysis
import demo
import train
from formats.errors import BadInput
from utils import read_log, run_script


def test_quick_demo_end_to_end_and_again(tmp_path, capsys):
    argv = ["--quick", "--out", str(tmp_path), "--seed", "3", "--full"]
    demo.main(argv)
    out = capsys.readouterr().out
    folder = tmp_path / "seed3-12topics-quick"
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


def test_a_run_is_finished_when_its_log_reaches_the_last_epoch(tmp_path):
    words = demo.command_line({"desc": "a", "log_dir": tmp_path, "n_iter": 2})
    log, submission = tmp_path / "a.jsonl", tmp_path / "ROCStories.tsv"
    submission.write_text("index\tprediction\n")
    header = json.dumps(vars(train.parse_args(words)) | {"data": 5})
    for lines, done in (([], False), ([header], False), ([header, '{"n_epochs": 0, "n_updates": 1000}'], False),
                        ([header, '{"n_epochs": 1}'], False), ([header, '{"n_epochs": 1}', '{"n_epochs": 2}'], True),
                        (["[]", '{"n_epochs": 2}'], False), ([header, '{"n_epochs": 2}', '{"n_ep'], True)):
        log.write_text("\n".join(lines))
        assert demo.finished(train, words, str(submission)) is done, lines
    assert not demo.finished(train, [*words, "--seed", "5"], str(submission))


def test_one_failed_seed_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    done, pictures = [], []
    monkeypatch.setattr(demo, "make_stories", lambda *args: ("text", "data"))
    monkeypatch.setattr(demo, "show_sample", lambda *args: None)
    monkeypatch.setattr(demo, "call", lambda *args: None)
    monkeypatch.setattr(demo.analysis, "draw_curves", lambda logs, out, labels: pictures.append(labels))

    def fine_tune(script, folder, desc, options):
        if options["seed"] == 4 and "scratch" in desc:
            raise BadInput("the loss is nan")
        done.append(desc)
        n_right = 60 + 10 * ("scratch" not in desc) + ("no-LM" in desc) + options["seed"]
        return desc, np.arange(100) < n_right

    monkeypatch.setattr(demo, "fine_tune", fine_tune)
    assert run_script(demo.main, ["--out", str(tmp_path), "--seed", "3", "--seeds", "3"]) == 2
    out, err = capfd.readouterr()
    assert len(done) == 3 * 3 - 1
    assert [{name: labels.count(name) for name in demo.GPT_VARIANTS} for labels in pictures] == [
        dict(zip(demo.GPT_VARIANTS, (2, 3, 3), strict=True))]
    assert re.search(r"from scratch +64.0 +\(63.0 to 65.0, 2 seeds\)", out)
    assert "gpt-from-scratch-4: the loss is nan" in err.strip().split("\n")[-1]
    assert re.search(r"pre-trained against from scratch: \+10.0 points \(\+\d.\d to \+\d\d.\d\), is more than ch", out)
    assert "pre-trained against pre-trained, no LM term: -1.0 points (-2.1 to +0.1), is not more than chance" in out


def names_in(*args):
    """The names at the ends of the lines of draw_curves."""
    texts = analysis.draw_curves(*args).axes[1].texts
    assert not any(text.get_parse_math() for text in texts)
    return [text.get_text() for text in texts]


def test_names_stand_in_the_picture_as_they_are(tmp_path):
    names = ["_a", "$x$", "b", "$", "\udce9"]
    logs = [write_log(tmp_path / f"{name}.jsonl", 1, [50]) for name in names]
    assert names_in(logs, str(tmp_path / "out.png")) == ["_a", "$x$", "b", "$", "\\udce9"]
    assert names_in(logs[:2], None, ["_one", "two"]) == ["_one", "two"]


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / folder / name for folder, name in (("x/log", "a"), ("y/log", "a"), ("y/log", "b"))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    assert names_in([write_log(path.with_suffix(".jsonl"), 1, [50]) for path in paths]) == ["x/log/a", "y/log/a", "b"]
    assert analysis.names_of(["a.jsonl", "a.jsonl", "c/a.jsonl"])[2] == "c/a"


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline", ""])
def test_a_backend_in_the_environment_is_no_obstacle(tmp_path, backend):
    """A notebook's terminal sets one, which the Python of that terminal need not have."""
    log = write_log(tmp_path / "a.jsonl", 1, [50])
    subprocess.run([sys.executable, analysis.__file__, log, "--out", tmp_path / "a.png"], check=True,
                   env=os.environ | {"MPLBACKEND": backend}, stdout=subprocess.DEVNULL)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_quick_demo_of_t5(tmp_path, capsys):
    demo.main(["--quick", "--t5", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    for variant in demo.T5_VARIANTS:
        assert re.search(rf"^ +{variant} +\d+\.\d$", out, re.MULTILINE)
    assert (tmp_path / "seed42-24topics-quick" / "curves-t5.png").is_file()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--seed", "-1"], ["--full", "--t5"], ["--tasks", "--t5"]])
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
