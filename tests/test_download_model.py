"""download_model.py: verified files only, and a broken transfer goes on where it stopped.

A small stand-in repository is served from a folder and over loopback HTTP; nothing else is contacted. What concerns
the Hub is in test_download_from_hub.py.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from servers import Server, blob_id, serving

import download_model
import utils
from formats import checks, transfers
from formats.checks import Wanted

BASE = "http://127.0.0.1:9/not-asked/"


@pytest.fixture
def repository():
    """{name: bytes} of a stand-in for OpenAI's folder; the sizes are odd and differ."""
    rng = random.Random(7)
    return {"params_0.npy": rng.randbytes(700_001), "params_1.npy": rng.randbytes(100_003),
            "params_shapes.json": b"[[5, 7]]", "vocab_40000.bpe": b"#version\na b\n"}


@pytest.fixture
def files(repository):
    return {name: Wanted(BASE, "git", blob_id(data), len(data)) for name, data in repository.items()}


@pytest.fixture
def server(repository, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Server(repository)) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.is_dir() else {}


def run(argv, files, capsys):
    """main(argv) as the script runs it: (exit status, stdout, stderr lines without progress bars)."""
    status = utils.run_script(lambda argv: download_model.main(argv, files), [str(word) for word in argv])
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if "B/s" not in line and line.strip()]


# The table


def test_blob_id_is_gits(tmp_path):
    for data, expected in ((b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
                           (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a")):
        (tmp_path / "file").write_bytes(data)
        assert checks.git_blob_id(tmp_path / "file") == expected


def test_openais_vocabulary_passes(openai_vocabulary):
    checked = {name: checks.problem_of(str(openai_vocabulary / name), wanted)
               for name, wanted in download_model.OPENAI_FILES.items() if (openai_vocabulary / name).exists()}
    assert {"encoder_bpe_40000.json", "vocab_40000.bpe"} <= set(checked)
    assert set(checked.values()) == {None}
    assert all(os.path.getsize(openai_vocabulary / name) == download_model.OPENAI_FILES[name].least_size
               for name in checked)


def test_tables():
    assert sum(wanted.least_size for name, wanted in download_model.OPENAI_FILES.items()
               if name.startswith("params_") and name.endswith(".npy")) == 4 * 116_534_784
    assert len({wanted.expected for wanted in download_model.OPENAI_FILES.values()}) == 13
    for name, wanted in download_model.OPENAI_FILES.items():
        assert wanted.base.startswith("https://") and wanted.base.endswith("/") and os.path.basename(name) == name
        assert wanted.check == "git" and re.fullmatch("[0-9a-f]{40}", wanted.expected)
    assert len(download_model.T5_MODELS) == 15


def test_t5_sizes_are_those_of_the_model_file():
    t5_pytorch = pytest.importorskip("t5_pytorch")
    for name, (_, millions) in download_model.T5_MODELS.items():
        with torch.device("meta"):
            model = t5_pytorch.T5(**t5_pytorch.T5_CONFIGS[name.removeprefix("t5-").replace("flan-t5", "v1_1")])
        assert sum(p.numel() for p in model.parameters()) // 1_000_000 == millions, name


# Transfers


def test_from_a_folder(repository, files, folder, tmp_path, capsys):
    source = tmp_path / "clone"
    source.mkdir()
    for name, data in repository.items():
        (source / name).write_bytes(data)
    folder.mkdir()
    # An earlier, broken transfer. What it brought is not read again: the source's copy of that is spoilt here.
    (folder / "params_0.npy.part").write_bytes(repository["params_0.npy"][:5000])
    (source / "params_0.npy").write_bytes(bytes(5000) + repository["params_0.npy"][5000:])
    status, out, err = run(["--source", source, "--model_dir", folder], files, capsys)
    assert (status, err) == (0, []) and "4 files, 4 of them fetched now" in out
    assert contents(folder) == repository
    status, out, _ = run(["--source", source, "--model_dir", folder], files, capsys)
    assert status == 0 and "4 files, 0 of them" in out


def test_a_folder_that_lacks_a_file_or_is_none(repository, files, folder, tmp_path, capsys):
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "params_0.npy").write_bytes(repository["params_0.npy"])
    status, _, err = run(["--source", tmp_path / "clone", "--model_dir", folder], files, capsys)
    assert status == 2 and len(err) == 1 and "clone/params_1.npy: not found" in err[0]
    assert set(contents(folder)) == {"params_0.npy"}
    status, _, err = run(["--source", tmp_path / "nowhere", "--model_dir", folder], files, capsys)
    assert status == 2 and len(err) == 1 and "nowhere: not a folder" in err[0]


def test_http(repository, files, folder, server, capsys):
    status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
    assert (status, err) == (0, [])
    assert contents(folder) == repository
    assert server.asked == [(name, None) for name in repository]
    run(["--source", server.url, "--model_dir", folder], files, capsys)
    assert len(server.asked) == 4  # all there: nothing is asked for again


def test_without_source_each_file_comes_from_its_own_address(repository, folder, server):
    files = {name: Wanted(server.url, "sha256", hashlib.sha256(data).hexdigest()) for name, data in repository.items()}
    assert transfers.download(str(folder), files) == list(repository)
    assert contents(folder) == repository


def test_a_cut_transfer_goes_on_in_the_same_run(repository, files, folder, server):
    server.plan = [300_000, 200_000, "error", 0, None]
    transfers.download(str(folder), files, server.url, pause=0)
    assert contents(folder) == repository
    assert [asked for name, asked in server.asked if name == "params_0.npy"] == [
        None, "bytes=300000-", "bytes=500000-", "bytes=500000-", "bytes=500000-"]


def test_a_cut_transfer_goes_on_in_the_next_run(repository, files, folder, server, capsys):
    server.plan = [None, 40_000, "error"]
    status, _, err = run(["--source", server.url, "--model_dir", folder, "--retries", 0], files, capsys)
    assert status == 2 and len(err) == 1
    assert server.url + "params_1.npy: the transfer broke" in err[0] and "40,000 bytes" in err[0]
    assert contents(folder) == {"params_0.npy": repository["params_0.npy"],
                                "params_1.npy.part": repository["params_1.npy"][:40_000]}
    status, _, err = run(["--verify", "--model_dir", folder], files, capsys)
    assert status == 2 and f"{folder}/params_1.npy: missing (a part of it is there)" in err
    server.asked.clear()
    assert run(["--source", server.url, "--model_dir", folder], files, capsys)[0] == 0
    assert contents(folder) == repository
    assert server.asked[0] == ("params_1.npy", "bytes=40000-")


def test_only_transfers_that_bring_nothing_are_counted(repository, files, folder, server):
    server.plan = [100_000] * 7
    transfers.download(str(folder), files, server.url, retries=0, pause=0)
    assert contents(folder) == repository
    (folder / "params_0.npy").unlink()
    server.asked.clear()
    server.files, server.plan = dict(repository), [50_000, *["error"] * 3, 50_000, *["error"] * 9]
    with pytest.raises(utils.BadInput, match=r"broke 4 time\(s\) without progress \(the server answers 503"):
        transfers.download(str(folder), files, server.url, retries=3, pause=0)
    assert len(server.asked) == 1 + 3 + 1 + 4


def test_random_cuts(repository, files, tmp_path, server):
    rng = random.Random(11)
    for number in range(20):
        folder = tmp_path / str(number)
        cuts = [rng.randrange(1, 300_000) for _ in range(12)]
        server.plan = [rng.choice([cut, cut, "error", "whole", "other range"]) for cut in cuts]
        transfers.download(str(folder), files, server.url, retries=12, pause=0)
        assert contents(folder) == repository


@pytest.mark.parametrize("act", ["whole", "other range"])
def test_a_server_that_does_not_resume(repository, files, folder, server, act):
    folder.mkdir()
    (folder / "params_0.npy.part").write_bytes(repository["params_0.npy"][:400_000])
    server.plan = [act]
    transfers.download(str(folder), files, server.url, retries=0)
    assert contents(folder) == repository


def test_a_server_that_gives_no_length(repository, files, folder, server):
    server.plan = ["no length"] * 4
    transfers.download(str(folder), files, server.url, retries=0)
    assert contents(folder) == repository


def test_a_reset_or_a_silence_keeps_what_came(repository, files, folder, server, monkeypatch):
    """After less than a piece of CHUNK bytes; a transfer that brings something is not counted."""
    monkeypatch.setattr(transfers, "TIMEOUT", 0.5)
    server.plan = [("reset", 200_000), ("silent", 200_000), ("reset", 200_000), None, ("silent", 70_000)]
    transfers.download(str(folder), files, server.url, retries=0, pause=0)
    assert contents(folder) == repository
    assert server.asked[:6] == [("params_0.npy", None), ("params_0.npy", "bytes=200000-"),
                                ("params_0.npy", "bytes=400000-"), ("params_0.npy", "bytes=600000-"),
                                ("params_1.npy", None), ("params_1.npy", "bytes=70000-")]


def test_a_reply_without_a_length_that_ends_early_is_tried_again(repository, files, folder, server):
    server.plan = [("no length", 250_000), ("no length", 250_000), None]
    transfers.download(str(folder), files, server.url, retries=0, pause=0)
    assert contents(folder) == repository
    assert [asked for name, asked in server.asked if name == "params_0.npy"] == [
        None, "bytes=250000-", "bytes=500000-"]
    (folder / "params_0.npy").unlink()
    server.asked.clear()
    server.plan = [("whole, no length", 999)] * 4
    with pytest.raises(utils.BadInput, match=r"broke 3 time\(s\) without progress \(the connection ended after 999"):
        transfers.download(str(folder), files, server.url, retries=2, pause=0)
    assert len(server.asked) == 4


def test_chunks_that_end_early_are_tried_again(repository, files, folder, server):
    server.plan = [("chunked", 250_000), ("chunked", 250_000), ("chunked", None)]
    transfers.download(str(folder), files, server.url, retries=0, pause=0)
    assert contents(folder) == repository and len(server.asked) == 3 + 3


def test_a_part_that_is_already_whole(repository, files, folder, server):
    folder.mkdir()
    (folder / "params_0.npy.part").write_bytes(repository["params_0.npy"])
    transfers.download(str(folder), files, server.url, retries=0)
    assert contents(folder) == repository
    assert server.asked[:2] == [("params_0.npy", "bytes=700001-"), ("params_1.npy", None)]


@pytest.mark.parametrize("part", [b"from another version", bytes(700_001), bytes(800_000)])
@pytest.mark.parametrize("over_http", [True, False])
def test_a_part_of_something_else_is_fetched_anew(repository, files, folder, server, tmp_path, part, over_http):
    for at in (tmp_path / "clone", folder):
        at.mkdir()
    for name, data in repository.items():
        (tmp_path / "clone" / name).write_bytes(data)
    (folder / "params_0.npy.part").write_bytes(part)
    transfers.download(str(folder), files, server.url if over_http else str(tmp_path / "clone"), retries=0)
    assert contents(folder) == repository


def test_altered_files_never_take_the_name(repository, files, folder, server, capsys):
    folder.mkdir()
    (folder / "params_0.npy").write_bytes(b"what was here before")
    right = repository["params_0.npy"]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 700001\n"
    for data, words in ((right[:-1] + b"\0", "altered: found the git hash"), (right[:-1], "truncated: found 700,000"),
                        (right + b"\0", "altered"), (pointer, "a Git LFS pointer of"), (b"", "truncated: found 0")):
        server.files = {**repository, "params_0.npy": data}
        status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
        assert status == 2 and len(err) == 1 and "params_0.npy: " + words in err[0], err
        assert contents(folder) == {"params_0.npy": b"what was here before"}
    server.files, server.plan = {**repository, "params_0.npy": right[:-1] + b"\0"}, [300_000] * 50
    server.asked.clear()
    with pytest.raises(utils.BadInput, match="altered"):  # always cut and always wrong: twice, then no more
        transfers.download(str(folder), files, server.url, pause=0)
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=600000-"] * 2
    server.files, server.plan = repository, []
    assert run(["--source", server.url, "--model_dir", folder], files, capsys)[0] == 0
    assert contents(folder) == repository


def test_refusals(files, folder, server, capsys):
    del server.files["params_0.npy"]
    port_of_nobody = Server({})
    port_of_nobody.server_close()
    for source, words in ((server.url, "params_0.npy: the server has no such file (404)"),
                          (port_of_nobody.url, "the transfer broke 1 time(s) without progress"),
                          ("http://[", "not an address"), ("ftp://127.0.0.1/", "not a folder")):
        status, _, err = run(["--source", source, "--model_dir", folder, "--retries", 0], files, capsys)
        assert status == 2 and len(err) == 1 and words in err[0], (source, err)
        assert contents(folder) == {}


def test_a_folder_that_cannot_be_written(files, folder, server, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"kept")
    (folder / "params_0.npy").mkdir(parents=True)  # a folder where a file should be
    for place in (tmp_path / "file", folder):
        status, _, err = run(["--source", server.url, "--model_dir", place], files, capsys)
        assert status == 2 and len(err) == 1 and str(place) in err[0], err
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a file on a full disk")
def test_a_full_disk(files, folder, server, capsys):
    folder.mkdir()
    (folder / "params_0.npy.part").symlink_to("/dev/full")
    status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
    assert status == 2 and len(err) == 1 and "could not be written" in err[0], err


def test_killed_in_the_middle(repository, files, folder, server, capsys):
    """SIGKILL while the bytes come in; then the same command again, which asks for the rest only."""
    wanted = {name: tuple(value) for name, value in files.items()}
    script = ("import json, sys, download_model as d\n"
              "files = {name: d.Wanted(*value) for name, value in json.loads(sys.argv[1]).items()}\n"
              "d.main(sys.argv[2:], files)")
    command = [sys.executable, "-c", script, json.dumps(wanted), "--source", server.url, "--model_dir", str(folder)]
    server.plan = ["slow"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=os.path.dirname(download_model.__file__))
    part = folder / "params_0.npy.part"
    deadline = time.time() + 60
    while (not part.exists() or part.stat().st_size == 0) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    size = part.stat().st_size
    assert 0 < size < 700_001 and not (folder / "params_0.npy").exists()
    server.asked.clear()
    assert run(["--source", server.url, "--model_dir", folder], files, capsys)[0] == 0
    assert contents(folder) == repository  # and no lock
    assert server.asked[0] == ("params_0.npy", f"bytes={size}-")


def test_too_little_space_is_said_before_the_first_byte(files, folder, server, capsys, monkeypatch):
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda path: SimpleNamespace(free=700_000))
    status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
    needed = sum(wanted.least_size for wanted in files.values())
    assert status == 2 and len(err) == 1 and f"{needed:,} bytes are to come and 700,000 are free there" in err[0], err
    assert server.asked == [] and not folder.exists()


def test_the_second_into_one_folder_is_told_of_the_first(repository, files, folder, server, capsys):
    """And what the first is about stays whole; a lock that a killed process left behind blocks nobody."""
    folder.mkdir()
    held = subprocess.Popen([sys.executable, "-c", "import sys; from formats.locks import locked\n"
                             "with locked(sys.argv[1]): print('held', flush=True); input()", str(folder)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.path.dirname(download_model.__file__))
    assert held.stdout.readline() == b"held\n"
    (folder / "params_0.npy.part").write_bytes(repository["params_0.npy"][:5000])
    status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
    assert status == 2 and len(err) == 1, err
    assert err[0].startswith(f"{os.path.basename(sys.argv[0])}: {folder}: process {held.pid} on ")
    assert err[0].endswith("choose another --model_dir")
    assert server.asked == [] and (folder / "params_0.npy.part").stat().st_size == 5000
    held.kill()
    held.communicate()
    assert run(["--source", server.url, "--model_dir", folder], files, capsys)[0] == 0
    assert contents(folder) == repository and server.asked[0] == ("params_0.npy", "bytes=5000-")


def test_ctrl_c_is_one_line(files, folder, server, capsys, monkeypatch):
    def interrupted(source):
        raise KeyboardInterrupt
    monkeypatch.setattr(transfers, "_read", interrupted)
    status, _, err = run(["--source", server.url, "--model_dir", folder], files, capsys)
    assert status == 2 and len(err) == 1 and "run the same command again" in err[0]


# --verify


def test_verify_names_every_bad_file(repository, files, folder, capsys):
    folder.mkdir()
    for name, data in repository.items():
        (folder / name).write_bytes(data)
    status, out, err = run(["--verify", "--model_dir", folder], files, capsys)
    assert (status, err) == (0, []) and "4 files, all as they should be" in out
    (folder / "params_0.npy").write_bytes(repository["params_0.npy"][:999])
    (folder / "params_1.npy").write_bytes(b"x" + repository["params_1.npy"][1:])
    (folder / "params_shapes.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
    (folder / "vocab_40000.bpe").unlink()
    before = contents(folder)
    status, out, err = run(["--verify", "--model_dir", folder], files, capsys)
    assert status == 2 and out == "" and len(err) == 5
    for line, name, words in zip(err, files, (
            "truncated: found 999 bytes, expected at least 700,001", "altered: found the git hash",
            "a Git LFS pointer of 64 bytes", "missing"), strict=False):
        assert line.startswith(f"{folder}/{name}: {words}"), line
    assert "4 of 4 files" in err[4] and "without --verify" in err[4]
    assert contents(folder) == before
    assert run(["--verify", "--model_dir", folder / "nowhere"], files, capsys)[0] == 2


def test_verify_the_real_table_on_a_toy_folder(golden, tmp_path, capsys):
    (tmp_path / "params_0.npy").write_bytes(b"\x93NUMPY" + bytes(1000))
    status, _, err = run(["--verify", "--model_dir", tmp_path], None, capsys)
    assert status == 2 and len(err) == 14
    assert f"{tmp_path}/params_0.npy: truncated: found 1,006 bytes, expected at least 46,613,916" in err


def test_random_damage_to_safetensors_is_words_not_a_traceback(folder):
    folder.mkdir()
    wanted = Wanted(BASE, "safetensors", 38)
    safetensors.numpy.save_file({"shared.weight": np.zeros((5, 7), "f"), "decoder.w": np.zeros(3, "e")},
                                folder / "model.safetensors")
    right, rng = (folder / "model.safetensors").read_bytes(), random.Random(5)
    found = set()
    for _ in range(int(os.environ.get("FUZZ_CASES", 150))):
        data, at = bytearray(right), rng.randrange(120)
        data[at:at + rng.randrange(9)] = rng.choice((b"", b"\xff" * 8, b"\0" * 5, rng.randbytes(6)))
        (folder / "model.safetensors").write_bytes(data)
        problem = checks.problem_of(str(folder / "model.safetensors"), wanted)
        found.add((problem or "right").split(":")[0])
        assert problem is None or "\n" not in problem
    assert "truncated or altered" in found


def test_options(files, capsys):
    for argv, words in ((["--model", "t5-tiny"], "--model t5-tiny: expected gpt, t5-small"),
                        (["--retries", "-1"], "--retries is -1"), (["--from", "nowhere"], "nowhere"),
                        (["--model", "t5-small", "--from", "openai"], "leave --from out"),
                        (["--revision", "v1"], "--revision chooses"),
                        (["--model", "t5-small", "--verify", "--revision", "v1"], "--revision chooses"),
                        (["--model", "../x"], "not the name of a repository"),
                        (["--model", "a/b/c", "--verify"], "not the name of a repository")):
        try:
            status, _, err = run(argv, files, capsys)
        except SystemExit as error:
            status, err = error.code, capsys.readouterr().err.splitlines()
        assert status == 2 and len(err) == 1 and words in err[0], (argv, err)


def test_the_script_verifies_as_a_command(root, tmp_path):
    done = subprocess.run([sys.executable, "download_model.py", "--model", "flan-t5-small", "--verify", "--model_dir",
                           str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [f"download_model.py: {tmp_path}: no weights that are read here: expected "
                                        "model.safetensors or pytorch_model.bin, in one file or in parts with their "
                                        "index; found no weights at all"]
