"""download_model.py and the Hub: what is chosen, what is checked, what breaks, and what is said about it.

huggingface_hub itself talks to a stand-in for the Hub over loopback; nothing else is contacted.
"""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys

import huggingface_hub
import huggingface_hub.hf_api
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from servers import HubServer, serving

import download_model
import utils
from formats import checks, hub, transfers
from formats.errors import BadInput, MissingInput

REPOSITORY = "somebody/their-t5"
RECORD = download_model.RECORD


def saved(seed, **options):
    """Bytes of a small file of torch.save."""
    f = io.BytesIO()
    torch.save({"shared.weight": torch.randn(31, 7, generator=torch.Generator().manual_seed(seed))}, f, **options)
    return f.getvalue()


def tensors(seed, rows=31):
    """Bytes of a small safetensors file."""
    generator = torch.Generator().manual_seed(seed)
    return safetensors.torch.save({"shared.weight": torch.randn(rows, 7, generator=generator)})


def index_of(*parts):
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": {f"tensor.{i}": part
                                                                    for i, part in enumerate(parts)}}).encode()


SAFE_PARTS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
TORCH_PARTS = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
SETTINGS = {"config.json": b'{"d_model": 7}', "generation_config.json": b'{"eos_token_id": 1}',
            "tokenizer_config.json": b"{}"}
T5_VOCABULARY = {"spiece.model": b"pieces", "tokenizer.json": b'{"model": {}}'}
OTHERS = {"README.md": b"# A model", ".gitattributes": b"*.bin filter=lfs", "tf_model.h5": b"h5",
          "onnx/model.safetensors": b"elsewhere", "model.fp16.safetensors": b"a variant",
          "training_args.bin": b"pickle"}
ONE_SAFE = {"model.safetensors": tensors(1)}
MANY_SAFE = {"model.safetensors.index.json": index_of(*SAFE_PARTS)} | {
    name: tensors(seed) for seed, name in enumerate(SAFE_PARTS)}
ONE_TORCH = {"pytorch_model.bin": saved(3)}
OLD_TORCH = {"pytorch_model.bin": saved(4, _use_new_zipfile_serialization=False)}
MANY_TORCH = {"pytorch_model.bin.index.json": index_of(*TORCH_PARTS)} | {
    name: saved(seed) for seed, name in enumerate(TORCH_PARTS)}
T5 = SETTINGS | T5_VOCABULARY


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in for the Hub with one repository, which the library and the script talk to; an empty cache."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(HubServer({REPOSITORY: {"main": T5 | ONE_SAFE | OTHERS}})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()  # proxies are read when a session begins
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def go_offline(monkeypatch):
    return lambda: (monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True), huggingface_hub.close_session())


@pytest.fixture
def command(folder, capsys):
    """A function that runs the script for REPOSITORY into `folder`: (status, standard output, lines of errors)."""
    def run(*argv):
        words = [str(word) for word in argv]
        words += [] if "--model" in words else ["--model", REPOSITORY]
        words += [] if "--model_dir" in words else ["--model_dir", str(folder)]
        status = utils.run_script(download_model.main, words)
        out, err = capsys.readouterr()
        return status, out, [line for line in err.splitlines() if "B/s" not in line and line.strip()]
    return run


def contents(folder):
    """{file name: bytes} without the record."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != RECORD} if folder.is_dir() else {}


def refused(answer, *words):
    status, out, err = answer
    assert status == 2 and out == "" and len(err) == 1, answer
    for word in words:
        assert str(word) in err[0], err[0]


# What is chosen


GPT_VOCABULARY = {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n"}
STRAY = {"model-00001-of-00002.safetensors": b"of another set"}
SECOND_SET = STRAY | {"model-00002-of-00002.safetensors": b"of another set too"}


@pytest.mark.parametrize(("there", "chosen"), [
    (ONE_SAFE, ONE_SAFE), (MANY_SAFE, MANY_SAFE), (ONE_TORCH, ONE_TORCH), (MANY_TORCH, MANY_TORCH),
    (ONE_SAFE | MANY_SAFE | ONE_TORCH, ONE_SAFE), (MANY_SAFE | ONE_TORCH | MANY_TORCH, MANY_SAFE),
    (MANY_SAFE | STRAY, MANY_SAFE), (MANY_SAFE | SECOND_SET, MANY_SAFE),
    (ONE_TORCH | {SAFE_PARTS[0]: b"alone"}, ONE_TORCH),
    (GPT_VOCABULARY | ONE_SAFE, GPT_VOCABULARY | ONE_SAFE)])
def test_what_is_there_is_chosen(server, command, folder, there, chosen):
    server.repositories[REPOSITORY]["main"] = T5 | OTHERS | there
    status, out, err = command()
    assert (status, err) == (0, []), err
    assert contents(folder) == T5 | chosen
    assert f"{len(T5 | chosen)} files, {len(T5 | chosen)} of them fetched now" in out
    server.asked.clear()
    assert "0 of them fetched now" in command()[1] and server.asked == []
    status, out, err = command("--verify")
    assert (status, err) == (0, []) and "as the Hub gave size and hash of each for somebody/their-t5 at commit" in out


def test_no_weights_that_are_read_here(server, command, folder):
    for there, words in (({}, "tf_model.h5"), ({"adapter_model.safetensors": b""}, "adapter_model.safetensors"),
                         (dict.fromkeys(SAFE_PARTS, b""), "3 parts without model.safetensors.index.json"),
                         ({name: MANY_SAFE[name] for name in list(MANY_SAFE)[:3]}, "without all the parts"),
                         ({"onnx/pytorch_model.bin": b""}, "expected model.safetensors or pytorch_model.bin")):
        server.repositories[REPOSITORY]["main"] = T5 | OTHERS | there
        refused(command(), f"{REPOSITORY}: no weights that are read here", words)
        assert not folder.exists()


def test_an_index_that_names_what_is_not_there(server, command, folder):
    server.repositories[REPOSITORY]["main"] = T5 | MANY_SAFE | {
        "model.safetensors.index.json": index_of(*SAFE_PARTS, "model-00004-of-00003.safetensors")}
    refused(command(), "model.safetensors.index.json names model-00004-of-00003.safetensors, which is not there")
    assert set(contents(folder)) == {"model.safetensors.index.json"}


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"a": 5}}', b"\xff\xff",
    b'{"weight_map": {"a": ["x"]}}', b"[" * 100_000, index_of("../x"), index_of("a/b"), index_of(""), index_of("..")])
def test_an_index_is_not_trusted(tmp_path, data):
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(BadInput, match="index.json: not an index"):
        hub.indexed_parts(str(tmp_path / "index.json"))


def test_every_name_of_ours_is_a_repository(server, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"gpt": (download_model.GPT_REPOSITORY, "model"), REPOSITORY: (REPOSITORY, "model/somebody/their-t5")} | {
        name: (repository, f"model/{name}") for name, (repository, _) in download_model.T5_MODELS.items()}
    assert len(names) == 17
    server.repositories = {repository: {"main": T5 | {"model.safetensors": tensors(seed)}}
                           for seed, (repository, _) in enumerate(names.values())}
    for name, (repository, place) in names.items():
        status = utils.run_script(download_model.main, ["--model", name, "--from", "hub"])
        assert status == 0, name
        assert contents(tmp_path / place).keys() >= {"model.safetensors"}
        assert (tmp_path / place / "model.safetensors").read_bytes() == \
            server.repositories[repository]["main"]["model.safetensors"]


def test_a_branch_a_tag_or_a_commit(server, command, folder):
    server.repositories[REPOSITORY] = {"main": T5 | ONE_SAFE, "v1": T5 | {"model.safetensors": tensors(9)},
                                       "refs/pr/4": T5 | ONE_TORCH}
    assert command("--revision", "v1")[0] == 0
    assert contents(folder) == server.repositories[REPOSITORY]["v1"]
    commit = server.commit_of(REPOSITORY, "v1")
    assert f"at commit {commit[:12]}" in command("--verify")[1]
    assert command()[0] == 0
    assert contents(folder) == T5 | ONE_SAFE
    assert command("--revision", commit)[0] == 0
    assert contents(folder) == server.repositories[REPOSITORY]["v1"]
    assert command("--revision", "refs/pr/4", "--model_dir", folder / "pr")[0] == 0
    assert contents(folder / "pr") == T5 | ONE_TORCH
    refused(command("--revision", "v2"), f"{REPOSITORY} on {server.url}: no revision v2")


def test_a_renamed_repository(server, command, folder):
    server.renamed["old/name"] = REPOSITORY
    assert command("--model", "old/name")[0] == 0
    assert command("--model", "old/name", "--verify")[0] == command("--verify")[0] == 0
    assert contents(folder) == T5 | ONE_SAFE


# What breaks


def test_transfers_cut_in_the_middle(server, command, folder):
    big = random.Random(3).randbytes(900_001)
    server.repositories[REPOSITORY]["main"] = T5 | {"pytorch_model.bin": big, "config.json": b'{"d_model": 7}' * 1}
    digest = hashlib.sha256(big).hexdigest()
    server.files[digest] = big
    server.plan = [None] * 5 + [("reset", 200_000), ("reset", 0), 300_000]
    refused(command("--retries", "0"), f"{server.url}/{REPOSITORY}/resolve/", "/pytorch_model.bin: the transfer broke",
            "200,000 bytes of the file are here already")
    assert contents(folder) == T5 | {"pytorch_model.bin.part": big[:200_000]}
    refused_lines = command("--verify")
    assert refused_lines[0] == 2 and f"{folder}/pytorch_model.bin: missing (a part of it is there)" in refused_lines[2]
    assert command("--retries", "0")[0] == 0
    assert contents(folder) == T5 | {"pytorch_model.bin": big}
    assert [asked for name, asked in server.asked if name == digest] == [
        None, "bytes=200000-", "bytes=200000-", "bytes=500000-"]


def test_a_small_file_cut_in_the_middle(server, command, folder):
    server.plan = [5, None]
    assert command("--retries", "0")[0] == 0
    assert contents(folder) == T5 | ONE_SAFE
    assert [asked for _, asked in server.asked[:2]] == [None, "bytes=5-"]


def test_a_busy_hub_is_asked_again(server, command, folder, monkeypatch):
    monkeypatch.setattr(transfers.time, "sleep", lambda seconds: None)
    server.busy = 3
    assert command()[0] == 0
    server.busy = 9
    shutil.rmtree(folder)
    refused(command("--retries", "2"), "the transfer broke 3 time(s) without progress", "503")


def test_altered_on_the_way(server, command, folder):
    right = ONE_SAFE["model.safetensors"]
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"what was here before")
    digest = hashlib.sha256(right).hexdigest()
    for data in (right[:-1] + b"\1", b"version https://git-lfs.github.com/spec/v1\noid"):
        server.files[digest] = data
        refused(command("--retries", "0"), "model.safetensors: ")
        assert contents(folder) == T5 | {"model.safetensors": b"what was here before"}
    server.files[digest] = right
    assert command()[0] == 0 and contents(folder) == T5 | ONE_SAFE
    config = f"{server.commit_of(REPOSITORY, 'main')}/config.json"
    server.files[config], before = b'{"d_model": 8}', (folder / "config.json")
    before.unlink()
    refused(command(), "config.json: altered: found the git hash")


def test_a_part_of_another_version_is_fetched_anew(server, command, folder):
    folder.mkdir()
    (folder / "model.safetensors.part").write_bytes(tensors(8)[:300])
    assert command("--retries", "0")[0] == 0
    assert contents(folder) == T5 | ONE_SAFE


def test_tokens(server, command, folder, monkeypatch):
    server.private.add(REPOSITORY)
    refused(command(), f"{REPOSITORY} on {server.url}: no such repository, or a private one", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(command(), "the token is not valid", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", server.OTHER)
    refused(command(), "no such repository, or a private one")
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    server.tokens.clear()
    server.moves = True
    assert command()[0] == 0 and contents(folder) == T5 | ONE_SAFE
    stored = [token for path, token in server.tokens if path.startswith("/store/")]
    # what lies with others is asked for without the token
    assert len(stored) == len(T5 | ONE_SAFE) and set(stored) == {None}
    assert {token for path, token in server.tokens if not path.startswith("/store/")} == {f"Bearer {server.TOKEN}"}


def test_gated(server, command, folder, monkeypatch):
    server.gated.add(REPOSITORY)
    refused(command(), f"{REPOSITORY} on {server.url}: gated; accept its conditions on {server.url}/{REPOSITORY}")
    monkeypatch.setenv("HF_TOKEN", server.OTHER)
    refused(command(), "gated")
    monkeypatch.setenv("HF_TOKEN", server.TOKEN)
    assert command()[0] == 0


def test_no_such_repository_no_network_no_hub(server, command, folder, monkeypatch):
    refused(command("--model", "nobody/nothing"), f"nobody/nothing on {server.url}: no such repository")
    with monkeypatch.context() as patch:
        for answer in ([], {}, {"id": REPOSITORY, "siblings": None}, {"id": REPOSITORY, "sha": None, "siblings": []}):
            patch.setattr("servers.HubHandler.info", lambda *args, answer=answer: answer)
            refused(command(), "does not answer as the Hub does")
    closed = HubServer({})
    closed.server_close()
    monkeypatch.setattr(constants, "ENDPOINT", closed.url)
    refused(command(), f"{REPOSITORY} on {closed.url}: no answer (", "HF_ENDPOINT")
    assert not folder.exists()


def test_too_little_space(server, command, folder, monkeypatch):
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    refused(command(), "bytes are to come and 100 are free there")
    assert not contents(folder)


def test_a_folder_that_holds_another_model(server, command, folder):
    folder.mkdir()
    for name, words in (("model.safetensors.index.json", None), ("vocab.json", "is not part of"),
                        ("pytorch_model.bin", None), ("encoder_bpe_40000.json", None)):
        (folder / name).write_bytes(b"{}")
        if words:
            refused(command(), folder / name, words, REPOSITORY)
            assert set(contents(folder)) == {"model.safetensors.index.json", name}
            (folder / name).unlink()
    assert command()[0] == 0
    server.repositories["another/t5"] = {"main": T5 | ONE_TORCH}
    refused(command("--model", "another/t5"), f"{folder}: holds {REPOSITORY}; choose another --model_dir")
    refused(command("--model", "another/t5", "--verify"), f"{folder}: holds {REPOSITORY}, not another/t5")
    (folder / RECORD).unlink()
    refused(command("--model", "another/t5"), folder / "model.safetensors", "is not part of another/t5")


def test_a_mirror_that_lists_no_hashes(server, command, folder):
    server.hashes = False
    status, out, err = command()
    assert status == 0 and err == [f"warning: {folder}: no hashes of these files are known, so only their form is "
                                   "checked"]
    assert contents(folder) == T5 | ONE_SAFE and not (folder / RECORD).exists()


# The cache and offline mode


def test_the_cache_is_used(server, command, folder, go_offline, monkeypatch):
    huggingface_hub.snapshot_download(REPOSITORY)  # as transformers and others fill it
    server.asked.clear()
    assert command()[0] == 0 and server.asked == []
    assert contents(folder) == T5 | ONE_SAFE
    go_offline()
    shutil.rmtree(folder)
    status, out, err = command()
    assert status == 0 and len(err) == 1 and "could not be asked for a newer version" in err[0]
    assert contents(folder) == T5 | ONE_SAFE
    assert command("--verify")[0] == 0
    shutil.rmtree(folder)
    refused(command("--revision", "v1"), f"{REPOSITORY} at revision v1: not in the Hub's cache", "HF_HUB_OFFLINE")
    refused(command("--model", "google/flan-t5-small"), "google/flan-t5-small: not in the Hub's cache")


def test_a_damaged_cache_is_not_taken(server, command, folder, go_offline):
    huggingface_hub.snapshot_download(REPOSITORY)
    right = ONE_SAFE["model.safetensors"]
    blobs = os.path.join(constants.HF_HUB_CACHE, "models--somebody--their-t5", "blobs")
    with open(os.path.join(blobs, hashlib.sha256(right).hexdigest()), "wb") as f:
        f.write(right[:-1] + b"\1")
    assert command()[0] == 0 and contents(folder) == T5 | ONE_SAFE
    go_offline()
    shutil.rmtree(folder)
    status, out, err = command()
    assert status == 2 and "model.safetensors: altered: found the sha256 hash" in err[-1]
    assert contents(folder) == T5


def test_a_whole_folder_needs_no_network(server, command, folder, go_offline):
    assert command()[0] == 0
    go_offline()
    status, out, err = command()
    assert status == 0 and "0 of them fetched now" in out and len(err) == 1
    (folder / "spiece.model").write_bytes(b"other")
    refused(command(), "not in the Hub's cache")


def test_the_librarys_variables(server, folder, tmp_path, root):
    """HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and HF_HUB_OFFLINE of a new process."""
    server.private.add(REPOSITORY)
    environment = {**os.environ, "HF_ENDPOINT": server.url + "/", "HF_TOKEN": server.TOKEN,
                   "HF_HUB_CACHE": str(tmp_path / "cache")}

    def script(**changed):
        return subprocess.run([sys.executable, "download_model.py", "--model", REPOSITORY, "--model_dir", str(folder)],
                              cwd=root, env=environment | changed, capture_output=True, text=True, timeout=120)

    done = script()
    assert done.returncode == 0 and contents(folder) == T5 | ONE_SAFE, done.stderr
    (folder / "config.json").unlink()
    done = script(HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(tmp_path / "cache") in done.stderr


# A name in place of a folder


def test_a_name_in_place_of_a_folder(server, folder, tmp_path, go_offline):
    """local_folder: the library's cache, with the files that wanted_names chooses."""
    server.repositories[REPOSITORY]["main"] = T5 | MANY_SAFE | ONE_TORCH | OTHERS
    server.repositories[REPOSITORY]["v1"] = T5 | ONE_TORCH
    found = hub.local_folder(REPOSITORY)
    assert {name: open(os.path.join(found, name), "rb").read() for name in os.listdir(found)} == T5 | MANY_SAFE
    assert set(os.listdir(hub.local_folder(REPOSITORY, "v1"))) == set(T5 | ONE_TORCH)
    server.repositories[REPOSITORY]["v2"] = T5
    for name, revision, words in (("nobody/nothing", None, "no such repository"), (REPOSITORY, "v9", "no revision v9"),
                                  (REPOSITORY, "v2", "no weights that are read here")):
        with pytest.raises((BadInput, MissingInput), match=words):
            hub.local_folder(name, revision)
    go_offline()
    assert hub.local_folder(REPOSITORY) == found
    with pytest.raises(MissingInput, match="HF_HUB_OFFLINE forbids"):
        hub.local_folder("google/flan-t5-small")


# --source and --verify


def test_from_a_clone(server, command, folder, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name, data in (T5 | MANY_SAFE | {"README.md": b""}).items():
        (clone / name).write_bytes(data)
    status, out, err = command("--source", clone)
    assert status == 0 and len(err) == 1 and "only their form is checked" in err[0]
    assert contents(folder) == T5 | MANY_SAFE and server.tokens == []
    (clone / SAFE_PARTS[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    status, out, err = command("--source", clone, "--model_dir", tmp_path / "b")
    assert status == 2 and f"{clone / SAFE_PARTS[1]}: a Git LFS pointer" in err[-1]
    refused(command("--source", tmp_path / "nowhere"), "nowhere: not a folder")
    refused(command("--source", server.url), "HF_ENDPOINT")
    assert command("--model_dir", tmp_path / "c")[0] == 0  # with its hashes, a folder that the script filled
    assert command("--source", tmp_path / "c", "--model_dir", tmp_path / "d")[::2] == (0, [])
    assert (tmp_path / "d" / RECORD).read_bytes() == (tmp_path / "c" / RECORD).read_bytes()


def test_verify_names_every_bad_file(server, command, folder):
    server.repositories[REPOSITORY]["main"] = T5 | MANY_TORCH
    command()
    server.tokens.clear()
    (folder / "config.json").write_bytes(b'{"d_model": 9}')
    (folder / TORCH_PARTS[0]).write_bytes(MANY_TORCH[TORCH_PARTS[0]][:-1] + b"\1")
    (folder / TORCH_PARTS[1]).unlink()
    status, out, err = command("--verify")
    assert (status, out) == (2, "") and server.tokens == []
    assert err[0].startswith(f"{folder}/config.json: altered: found the git hash") and len(err) == 4
    assert err[1].startswith(f"{folder}/{TORCH_PARTS[0]}: altered: found the sha256 hash")
    assert err[2] == f"{folder}/{TORCH_PARTS[1]}: missing" and "3 of 8 files" in err[3]
    with pytest.raises(BadInput, match="3 of 8 files"):  # without --model: what the record in the folder says
        download_model.main(["--verify", "--model_dir", str(folder)])


@pytest.mark.parametrize("there", [ONE_SAFE, MANY_SAFE, ONE_TORCH, MANY_TORCH])
def test_verify_without_a_record(command, folder, there):
    """What is whole in its form passes and is said to be no more than that; every cut file is named."""
    folder.mkdir()
    for name, data in (T5 | there).items():
        (folder / name).write_bytes(data)
    status, out, err = command("--verify")
    assert (status, err) == (0, [])
    assert "each whole in its form; their values were not checked, as no downloaded.json" in out
    for name in (T5 | there).keys() - {"spiece.model"}:
        right = (folder / name).read_bytes()
        for data in (right[:-1], right[:len(right) // 2], b""):
            (folder / name).write_bytes(data)
            refused((command("--verify")[0], "", command("--verify")[2][:1]), name)
        (folder / name).write_bytes(right)
    (folder / "config.json").unlink()
    assert f"{folder}/config.json: missing" in command("--verify")[2]


def test_verify_says_what_the_older_form_hides(command, folder):
    folder.mkdir()
    for name, data in (T5 | OLD_TORCH).items():
        (folder / name).write_bytes(data)
    assert "pytorch_model.bin is in torch's older form" in command("--verify")[1]


def test_verify_knows_how_large_our_names_are(command, folder):
    folder.mkdir()
    for name, data in (T5 | ONE_SAFE).items():
        (folder / name).write_bytes(data)
    err = command("--verify", "--model", "t5-small")[2]
    assert err[0].startswith(f"{folder}/spiece.model: truncated") and len(err) == 3
    assert err[1] == f"{folder}/model.safetensors: another model: found 217 values, expected at least 60,000,000"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(ONE_TORCH["pytorch_model.bin"])
    assert "expected at least 120,000,000" in command("--verify", "--model", "t5-small")[2][1]
    (folder / "pytorch_model.bin").unlink()
    for name, data in MANY_SAFE.items():
        (folder / name).write_bytes(data)
    refused(command("--verify", "--model", "t5-small"), "too small for the 60,000,000 values of t5-small")
    (folder / "config.json").write_bytes(b"{}")
    for name, data in ONE_SAFE.items():
        (folder / name).write_bytes(data)
    assert "config.json: altered: it has no d_model" in command("--verify", "--model", "t5-small")[2][0]


def test_random_damage_to_records_and_weights_is_one_line(server, command, folder):
    server.repositories[REPOSITORY]["main"] = T5 | ONE_TORCH
    command()
    rng, found = random.Random(5), set()
    for name in (RECORD, "pytorch_model.bin"):
        right = (folder / name).read_bytes()
        for _ in range(int(os.environ.get("FUZZ_CASES", 150)) // 2):
            data, at = bytearray(right), rng.randrange(len(right))
            data[at:at + rng.randrange(9)] = rng.choice((b"", b"\xff" * 8, b"}", b"\0" * 5, rng.randbytes(6)))
            (folder / name).write_bytes(data)
            if name == RECORD:
                status, _, err = command("--verify")
                assert status in (0, 2) and all("Traceback" not in line for line in err)
                found.add(err[-1].split(": ")[-1] if err else "whole")
            else:
                problem = checks.problem_of(str(folder / name), checks.by_form(name))
                found.add((problem or "whole").split(":")[0].split(" (")[0])
                assert problem is None or "\n" not in problem
        (folder / name).write_bytes(right)
    assert {"damaged; delete it, then run the same command again", "truncated or altered", "altered"} <= found


def test_reproduce_knows_the_hubs_gpt(server, command, folder):
    """wanted_files: OpenAI's files, the Hub's by their recorded hashes, or the number of values alone."""
    ours = download_model.OPENAI_FILES
    wanted, words = download_model.wanted_files(str(folder))
    assert words == "the Hub's model.safetensors, its number of values checked"
    assert wanted == download_model.VOCABULARY_FILES | {"model.safetensors": ("", "safetensors", 116_534_784, 1)}
    server.repositories[download_model.GPT_REPOSITORY] = {"main": SETTINGS | GPT_VOCABULARY | ONE_TORCH}
    assert command("--model", "gpt", "--from", "hub")[0] == 0
    wanted, words = download_model.wanted_files(str(folder))
    digest = hashlib.sha256(ONE_TORCH["pytorch_model.bin"]).hexdigest()
    assert wanted["pytorch_model.bin"] == ("", "sha256", digest, len(ONE_TORCH["pytorch_model.bin"]))
    assert wanted.keys() == download_model.VOCABULARY_FILES.keys() | {"pytorch_model.bin"}
    assert words.startswith("the Hub's (openai-community/openai-gpt at commit ") and words.endswith("by its hash")
    assert download_model.wanted_files(str(folder), True)[0].keys() == {
        *SETTINGS, *GPT_VOCABULARY, "pytorch_model.bin"}
    (folder / RECORD).unlink()
    wanted, words = download_model.wanted_files(str(folder), True)
    assert wanted.keys() == {"model.safetensors", "vocab.json", "merges.txt"} and words.endswith("is not verified")
    (folder / "params_shapes.json").write_bytes(b"")
    assert download_model.wanted_files(str(folder)) == (ours, "OpenAI's, every file verified by its git blob id")
