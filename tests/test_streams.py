"""Standard streams that are closed, full, left by their reader, or unable to carry some characters."""

import io
import os
import subprocess
import sys

import pytest
from cloze_data import options, write_data_dir
from conftest import write_small_vocabulary
from test_generate import model_of

import analysis
import generate
import train
from formats import streams
from formats.errors import BadInput
from model_pytorch import export_openai_model
from toy import stories
from utils import read_log, run_script


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_small_vocabulary(folder)
    export_openai_model(model_of(), str(folder))
    return folder


@pytest.fixture
def training(tmp_path, small_vocabulary):
    """The command of a tiny run that predicts."""
    line = options(tmp_path, write_data_dir(tmp_path / "data"), small_vocabulary, submit=True, analysis=True)
    return [sys.executable, train.__file__, *line]


def shell(command, redirections, folder, **environment):
    """Run a command in bash with redirections; return (its own status, standard output as bytes, standard error)."""
    script = f'"$@" {redirections}; exit ${{PIPESTATUS[0]}}'
    process = subprocess.run(["bash", "-c", script, "bash", *map(str, command)], cwd=folder, capture_output=True,
                             env=os.environ | environment, timeout=120)
    return process.returncode, process.stdout, process.stderr.decode()


def finished(folder):
    return len(read_log(folder / "log" / "tiny.jsonl")) == 3 and (folder / "save" / "tiny" / "best_params").exists() \
        and (folder / "submission" / "ROCStories.tsv").exists()


@pytest.mark.parametrize("redirections, status", [
    ("| true", 0), ("| head -1", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("2>&1 | true", 0),
    ("> /dev/full", 2), ("> /dev/full 2>&1", 2), ("2> /dev/full", 0)])
def test_training_loses_nothing(training, tmp_path, redirections, status):
    if "full" in redirections and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    found, _, err = shell(training, redirections, tmp_path)
    assert found == status and "Traceback" not in err and "Exception ignored" not in err and finished(tmp_path)
    if redirections == "> /dev/full":
        assert err == ("train.py: standard output could not be written (No space left on device); what was to be "
                       "printed is lost, the files are written\n")


@pytest.mark.parametrize("command", [
    [stories.__file__, "--data_dir", "d", "--text", "t", "--n_text", "3", "--n_cloze", "3"],
    [train.__file__, "--help"], [analysis.__file__, "nowhere.jsonl"], [generate.__file__, "--prompt", ""]])
@pytest.mark.parametrize("redirections", ["| true", ">&- 2>&-", "> /dev/full"])
def test_no_script_gives_a_traceback(tmp_path, command, redirections):
    mistake = "nowhere.jsonl" in command or "--prompt" in command
    found, _, err = shell([sys.executable, *command], redirections, tmp_path)
    assert "Traceback" not in err and "Exception" not in err
    silent = stories.__file__ in command
    assert found == (2 if mistake or ("full" in redirections and not silent) else 0)


def test_generation_ends_when_nobody_reads(model_dir, tmp_path):
    command = [sys.executable, generate.__file__, "--model_dir", model_dir, "--n_head", "3", "--n_tokens", "2"]
    found, out, err = shell(["bash", "-c", 'yes "a low" | "$@"', "bash", *command], "| head -1", tmp_path)
    assert out.startswith(b"a low") and err == ""   # and it came to an end
    found, out, err = shell([*command, "--prompt", "low"], "> /dev/full", tmp_path)
    assert found == 2 and err.startswith("generate.py: standard output could not be written (No space left")


@pytest.mark.parametrize("encoding, shown", [("ascii", b"caf\\xe9"), ("latin-1", b"caf\xe9"),
                                             ("utf-8", "café".encode())])
def test_what_the_terminal_cannot_show_is_written_as_an_escape(capfd, encoding, shown):
    raw = io.BytesIO()
    output = streams.Output(io.TextIOWrapper(raw, encoding=encoding))
    print("café", file=output)
    assert raw.getvalue() == shown + b"\n" and output.error is None


def generation(model_dir, *words):
    return [sys.executable, generate.__file__, "--model_dir", model_dir, "--n_head", "3", "--n_tokens", "2", *words]


def test_a_terminal_of_another_encoding(model_dir, tmp_path):
    want = shell(generation(model_dir, "--prompt", "café low"), "", tmp_path, LC_ALL="C.UTF-8")
    assert want[0] == 0 and want[2] == ""
    for environment in (dict(PYTHONIOENCODING="ascii"),
                        dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")):
        for command, redirections in ((generation(model_dir, "--prompt", "café low"), ""),
                                      (generation(model_dir), "<<< 'café low'")):
            assert shell(command, redirections, tmp_path, **environment) == want


def test_bytes_that_are_no_utf_8_get_one_line(model_dir, tmp_path):
    for environment in (dict(LC_ALL="C.UTF-8"), dict(PYTHONIOENCODING="ascii"), dict(PYTHONUTF8="1")):
        found, out, err = shell(generation(model_dir), r"< <(printf 'low\n\xe9t\xe9\n')", tmp_path, **environment)
        assert found == 2 and out.count(b"\n") == 1
        assert err == ("generate.py: standard input: line 2 is not UTF-8 at byte 0; convert it, for example with "
                       "iconv\n")
    found, out, err = shell(["bash", "-c", '"$@" --prompt "$(printf "\\xe9t\\xe9")"', "bash", *generation(model_dir)],
                            "", tmp_path)
    assert found == 2 and err == ("generate.py: --prompt is not UTF-8 (found '\\udce9t\\udce9'); set the terminal to "
                                  "UTF-8\n")


def test_a_prompt_of_surrogates_gets_one_line(capfd):
    for prompt in ("\ud800", "a\udce9"):
        assert run_script(generate.main, ["--prompt", prompt]) == 2
        assert "--prompt is not UTF-8" in capfd.readouterr().err
    assert streams.argument("caf\udcc3\udca9", "--prompt") == "café"  # bytes of UTF-8 under a locale without it


def test_a_terminal_that_sends_no_utf_8(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("low\n\udce9\n"))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    lines = streams.input_lines("prompt> ")
    assert next(lines) == "low" and sys.stdout.getvalue() == ""  # no prompt where the answers go to a file
    with pytest.raises(BadInput, match="standard input is not UTF-8"):
        next(lines)


def test_a_byte_order_mark_is_no_word(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufefflow\r\nnew".encode())))
    assert list(streams.input_lines("")) == ["low", "new"]


def test_streams_come_back(capsys):
    before = sys.stdin, sys.stdout, sys.stderr
    assert run_script(lambda argv: print("seen")) == 0
    with pytest.raises(SystemExit):
        run_script(train.main, ["--nonsense"])
    assert before == (sys.stdin, sys.stdout, sys.stderr) and capsys.readouterr().out == "seen\n"
