"""formats/locks.py: one process at a time, the second is told who is there, the dead block nobody."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from formats import locks
from formats.errors import BadInput, warn_once
from formats.locks import locked

HOLD = "import sys; from formats.locks import locked\nwith locked(sys.argv[1]): print('held', flush=True); input()"
COUNT = """
import sys, time
from formats.errors import BadInput
from formats.locks import locked
for _ in range(30):
    while True:
        try:
            with locked(sys.argv[1]):
                n = int(open(sys.argv[2]).read())
                time.sleep(0.0005)
                open(sys.argv[2], "w").write(str(n + 1))
            break
        except BadInput as error:
            assert "is at work there" in str(error), error
"""


@pytest.fixture
def holder(root):
    """A function that starts a process which holds a path's lock until a line comes in."""
    started = []

    def start(path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=root, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["folder", "file", "no file yet"])
def test_the_second_is_told_who_is_there(tmp_path, holder, kind):
    path = tmp_path if kind == "folder" else tmp_path / "log" / "a.jsonl"
    if kind == "file":
        path.parent.mkdir()
        path.write_text("kept")
    process = holder(path)
    with pytest.raises(BadInput, match=f"^{re.escape(str(path))}: process {process.pid} on .* is at work there; "
                                       "give another --desc$"), locked(path, remedy="give another --desc"):
        pytest.fail("two at once")
    process.communicate("\n")
    with locked(path):
        pass
    left = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert left == ({"a.jsonl"} if kind == "file" else set())


def test_a_killed_holder_blocks_nobody(tmp_path, holder):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".lock").read_text().startswith(f"process {process.pid} ")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_body_gives_the_lock_back(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
    with locked(tmp_path), pytest.raises(BadInput, match=f"process {os.getpid()} "), locked(str(tmp_path)):
        pytest.fail("two at once")


def test_several_processes_take_turns(tmp_path, root):
    """The file is removed at each end: who opened it before must not take that for the lock."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path), str(counter)], cwd=root)
                 for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "90"


def test_without_locks_a_line_says_so(tmp_path, monkeypatch, capsys):
    def refuse(f, operation):
        raise OSError(errno.ENOLCK, "No locks available")
    for name, value, words in (("fcntl", None, "this system has no file locks"),
                               ("fcntl.flock", refuse, "this file system has no locks (No locks available)")):
        warn_once.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(f"{locks.__name__}.{name}", value)
            with locked(tmp_path), locked(tmp_path):
                pass
        assert re.fullmatch(f"warning: {re.escape(str(tmp_path))}: {re.escape(words)}.*\n", capsys.readouterr().err)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BadInput, match=r"\.lock: cannot be written"), locked(tmp_path):
        pytest.fail("not locked")
