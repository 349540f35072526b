"""Progress bars: a bar on a terminal, a few lines in a log file, nothing where there is no stream."""

import ast
import gc
import io
import os
import re
import subprocess
import sys
import time

import pytest
import tqdm.notebook
import tqdm.std
from cloze_data import options, write_data_dir

import train
import utils
from formats import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A list whose only item is the time in seconds that the bars see."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(capsys, monkeypatch):
    """A function that returns what came to standard error, which is no terminal. No bar of another test is open."""
    gc.collect()
    monkeypatch.setattr(progress.Lines, "n_open", 0)
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize("total", [7, 19, 20, 21, 1000, 12345])
def test_a_log_file_gets_a_line_every_five_percent(log, clock, total):
    for _ in progress.bar(range(total), unit="batch"):
        clock[0] += 59 * 20 / max(total, 20)
    lines = log().split("\n")[:-1]
    assert len(lines) == min(total, 20) and lines[-1].startswith(f"batch: {total:,} of {total:,} (100%), ")


def test_long_work_is_heard_of_before_its_first_five_percent(log, clock):
    for _ in progress.bar(range(8235), unit="update"):
        clock[0] += 84
        if clock[0] - 100 > 3600:
            break
    lines = log().split("\n")[:-1]
    assert [int(line.split()[1]) for line in lines] == [1, 3, 6, 12, 24]
    assert lines[0] == "update: 1 of 8,235 (0%), 0.0119/s, 192:07:36 left"


def test_a_line_tells_count_rate_and_estimate(log, clock):
    with progress.bar(total=2000, initial=1000, unit="update") as bar:
        for i in range(100):
            clock[0] += 0.5
            bar.set_postfix(loss=f"{i / 100:.2f}", refresh=False)
            bar.update()
    assert log() == "update: 1,100 of 2,000 (55%), 2/s, 07:30 left, loss 0.99\n"


def test_bytes_are_counted_as_such(log, clock):
    with progress.bar(total=50_000_000, unit="B", desc="read") as bar:
        clock[0] += 10
        bar.update(20_000_000)
    assert log() == "read: 20.0MB of 50.0MB (40%), 2.00MB/s, 00:15 left\n"


def test_work_of_unknown_length_gets_a_line_a_minute(log, clock):
    for _ in progress.bar(iter(range(130)), unit="text"):
        clock[0] += 1
    assert log().split("\n") == ["text: 60, 1/s", "text: 120, 1/s", ""]


def test_short_work_says_nothing(log, clock, monkeypatch):
    for _ in progress.bar(range(1000), unit="batch"):
        clock[0] += 0.0029
    assert list(utils.iter_data(list(range(10)), n_batch=4, verbose=True)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert log() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in progress.bar(range(1000), unit="batch"):
        pass
    assert sys.stderr.getvalue() == ""


def test_a_bar_inside_the_work_of_another_says_little(log, clock):
    """Nothing where it takes less than a minute, and then a line a minute."""
    with progress.bar(total=2, unit="update") as outer:
        for _ in range(2):
            for _ in progress.bar(range(30), unit="batch"):
                clock[0] += 1
            outer.update()
        for _ in progress.bar(range(500), unit="batch", desc="valid"):
            clock[0] += 0.5
    for _ in progress.bar(range(3), unit="text"):  # afterwards one is heard again
        clock[0] += 5
    lines = log().split("\n")
    assert [line.split(":")[0] for line in lines] == ["update", "update", *["valid"] * 4, *["text"] * 3, ""]
    assert lines[2] == "valid: 120 of 500 (24%), 2/s, 03:10 left"


def test_a_bar_left_before_its_end_silences_nobody(log, clock):
    for _ in progress.bar(range(9), unit="batch"):
        break
    for _ in progress.bar(range(2), unit="text"):
        clock[0] += 5
    assert log().count("text") == 2


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed_stream()])
def test_without_a_stream_nothing_is_written(clock, capsys, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    n = 0
    for _ in progress.bar(range(30), unit="batch"):
        clock[0] += 10
        n += 1
    assert n == 30 and capsys.readouterr().out == ""


def test_a_reader_who_goes_away_ends_the_lines_and_not_the_work(clock, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    for _ in progress.bar(range(30), unit="batch"):
        clock[0] += 10


def test_a_terminal_and_a_notebook_get_tqdm_s_own(monkeypatch):
    assert isinstance(progress.bar(range(3), unit="batch"), progress.Lines)
    assert isinstance(progress.bar(range(3), unit="batch", show=False), progress.Lines)
    given = []

    class OfNotebook(tqdm.notebook.tqdm_notebook):
        def __new__(cls, *args, **kwargs):
            given.append(kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "tqdm", OfNotebook)
        progress.bar(range(3), unit="batch")
    assert given[0]["leave"] is False and given[0]["delay"] == 1
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress.bar(range(3), unit="batch"), tqdm.std.tqdm)


@pytest.mark.parametrize("leave", [False, True])
def test_an_inner_bar_leaves_nothing_on_a_terminal(monkeypatch, leave):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in progress.bar(range(2), unit="batch", leave=leave):
        time.sleep(1.1)  # tqdm's bar comes after a second
    seen = sys.stderr.getvalue()
    assert "batch" in seen
    assert (seen.split("\r")[-1].strip() == "") is not leave


def test_a_run_writes_few_lines_into_a_log_file(tmp_path, small_vocabulary):
    argv = options(tmp_path, write_data_dir(tmp_path / "data", 140), small_vocabulary, n_batch=1, n_gpu=1, n_iter=3,
                   submit=True)  # 393 updates
    with open(tmp_path / "err", "w+") as err:
        subprocess.run([sys.executable, train.__file__, *argv], check=True, stdout=subprocess.DEVNULL, stderr=err)
        err.seek(0)
        lines = err.read().split("\n")
    assert len(lines) < 45 and not re.search(r"[\r\x1b]|it/s", "".join(lines))


def test_how_far_the_first_update_is_stands_in_a_log_file(tmp_path, small_vocabulary, capfd, monkeypatch):
    seconds = iter(range(100, 10 ** 6, 25))  # between two looks at the clock
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(seconds)))
    train.main(options(tmp_path, write_data_dir(tmp_path / "data"), small_vocabulary, n_batch=3, n_gpu=4, n_iter=1))
    lines = [line for line in capfd.readouterr().err.split("\n") if line.startswith("first update: ")]
    assert [line.split(",")[0] for line in lines] == ["first update: 3 of 4 (75%)"]
    assert lines[0].endswith(" left")


def test_every_bar_of_the_project_comes_from_one_place(root):
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != "tests" and not f.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            if name.endswith(".py") and not path.endswith(os.path.join("formats", "progress.py")):
                with open(path, encoding="utf-8") as f:
                    imported = [node for node in ast.walk(ast.parse(f.read()))
                                if isinstance(node, (ast.Import, ast.ImportFrom))]
                assert "tqdm" not in " ".join(map(ast.unparse, imported)), path
