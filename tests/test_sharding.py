"""--shard: models shared out among processes end where one does, and their checkpoints are read by any number."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from cloze_data import options, rows, write_data_dir
from pretraining import T5_SIZES, argv, costs, same_parameters, stop_after, write_text
from small_gpt import small_model

import opt
import pretrain_t5
from formats.errors import BadInput
from formats.files import load_tensors
from pretrain_t5 import learn_vocabulary
from training import sharding
from training.distributed import World
from utils import run_script

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(n, file, *arguments, folder):
    """Run a file with n processes on this machine; return its errors."""
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n),
                          file, *map(str, arguments)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
                         timeout=240)
    return run.returncode, run.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root):
    """What tests/sharded_training.py tells: {processes: [results of each process]}. The second reads the first's."""
    folder, told = tmp_path_factory.mktemp("sharded"), {}
    for n in (2, 4):
        status, err = torchrun(n, root / "tests" / "sharded_training.py", folder, folder=folder)
        assert status == 0, err[-3000:]
        told[n] = json.loads((folder / f"{n}.json").read_text())
    return told


CASES = pytest.mark.parametrize("n, name", [(2, "gpt"), (2, "t5_v1_0"), (2, "t5_v1_1"), (4, "gpt"), (4, "t5_v1_0")])


@CASES
def test_processes_that_share_a_model_end_where_one_does(trained, n, name):
    """Three towers: one of the processes runs one that does not count."""
    first = trained[n][0][name]
    assert first["same names"] and first["moved"] > 1e-3 and first["difference"] < 1e-5


@CASES
def test_each_holds_its_share_alone(trained, n, name):
    """Of parameters, gradients and state; a few rows more where n does not divide them. Adafactor's means over all rows
    are on each, and in models this small they are half of its state."""
    whole = trained[n][0][name]["whole bytes"]
    for of_process in trained[n]:
        *ours, state = of_process[name]["bytes"]
        assert all(mine < theirs / n * 1.2 + 500 for mine, theirs in zip(ours, whole, strict=False))
        assert state < (whole[2] / n * 1.2 + 500 if name == "gpt" else whole[2] * 0.75)
    parameters, gradients = (sum(one[name]["bytes"][i] for one in trained[n]) for i in range(2))
    assert [parameters, gradients] == whole[:2]


@pytest.mark.parametrize("name", ["gpt", "t5_v1_0"])
def test_another_number_of_processes_goes_on(trained, name):
    four = trained[4][0][name]
    assert four["read"] < 1e-5 and four["trained on"] < 2e-5
    assert "read" not in trained[2][0][name]


@pytest.mark.parametrize("n", [2, 4])
def test_processes_decode_together_though_their_answers_end_apart(trained, n):
    assert all(one["greedy"] and one["beam"] for one in trained[n])


# ---- the scripts

@pytest.fixture
def t5_text(tmp_path):
    """A function of changed options that returns a command line of pretrain_t5.py."""
    text = write_text(tmp_path, 60)

    def line(**changes):
        sizes = dict(text=text, n_pieces=60, n_ctx=12, n_batch=4, n_gpu=2, n_iter=1, **T5_SIZES)
        return argv(tmp_path, sizes | changes)

    line.folder = tmp_path
    return line


def test_every_script_ends_where_one_process_does(tmp_path, small_vocabulary, monkeypatch, root, t5_text):
    """pretrain_t5.py goes on from what one process left; the two processes of pretrain.py share three towers, so that
    one of them runs a tower that does not count. Adafactor's rates are small: it moves by much what has
    hardly a gradient."""
    data_dir = write_data_dir(tmp_path / "data")
    (tmp_path / "t5").mkdir()
    texts = [" ".join(row[1:7]) for row in rows(150)] + ["choice1: choice2: sentence:"] * 20
    (tmp_path / "t5" / "spiece.model").write_bytes(learn_vocabulary(texts, 60))
    for name, n in (("train", 24), ("valid", 7), ("test", 5)):
        lines = [f"{row[1]}\t{row[5]}\n" for row in rows(n, seed=n)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    gpt = dict(n_embd=12, n_head=2, n_layer=2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    folder = tmp_path / "submission"

    def lines(desc, shard):
        more = dict(desc=desc, shard=shard)
        out = dict(model_dir=tmp_path / f"gpt_{desc}")
        own = {f"{name}_file": tmp_path / f"{name}.tsv" for name in ("train", "valid", "test")}
        return {
            "train": options(tmp_path, data_dir, small_vocabulary, submit=True, clf_pdrop=0, **gpt | more),
            "pretrain": argv(tmp_path, dict(text=write_text(tmp_path, 60), n_merges=60, n_ctx=10, n_batch=10, n_gpu=3,
                                            n_iter=1, n_warmup=3, held_out=0.05) | gpt | out | more
                             | dict(desc=f"text_{desc}")),
            "train_t5": argv(tmp_path, dict(dataset="own", model_dir=tmp_path / "t5", from_scratch=True, n_batch=4,
                                            n_gpu=2, n_iter=1, decode_length=5, dropout=0, lr=1e-5, submit=True,
                                            submission_dir=folder) | own | T5_SIZES | more | dict(desc=f"t5_{desc}")),
            "pretrain_t5": t5_text(dropout=0, n_warmup=10 ** 5, save_every=4, model_dir=tmp_path / f"t5_{desc}_out",
                                   **more | dict(desc=f"t5_text_{desc}"))}

    for script, line in lines("one", False).items():
        importlib.import_module(script).main(line)
    expected = {folder / name: (folder / name).read_text() for name in ("ROCStories.tsv", "own.tsv")}
    with monkeypatch.context() as patch:
        stop_after(patch, opt.Adafactor, 5)
        assert run_script(pretrain_t5.main, lines("two", True)["pretrain_t5"]) == 130
    for path in expected:
        path.unlink()
    todo = lines("two", True)
    todo["pretrain_t5"].append("--resume")
    (tmp_path / "lines.json").write_text(json.dumps(list(todo.items())))
    status, err = torchrun(2, root / "tests" / "scripts_in_turn.py", tmp_path / "lines.json", folder=tmp_path)
    assert status == 0, err[-3000:]
    assert all(path.read_text() == text for path, text in expected.items())
    for kind in ("", "text_", "t5_", "t5_text_"):
        assert costs(tmp_path, f"{kind}two")[-1] == pytest.approx(costs(tmp_path, f"{kind}one")[-1], abs=1e-3), kind
        of_one, of_two = (tmp_path / "save" / f"{kind}{desc}" / "best_params" for desc in ("one", "two"))
        same_parameters(of_two, of_one, 1e-4)
    for folders in (("gpt_one", "gpt_two"), ("t5_one_out", "t5_two_out")):
        ours, theirs = ({path.name: path.stat().st_size for path in (tmp_path / name).iterdir()} for name in folders)
        assert ours == theirs
    folders = [path for path in (tmp_path / "save" / "t5_text_two").iterdir() if path.is_dir()]
    assert len(folders) == 1 and len(list(folders[0].iterdir())) == 2  # a file a process


# ---- bad states

@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that one process wrote, and a function that reads it into another model; they are compared."""
    world, path = World(0, 1, torch.device("cpu")), str(tmp_path / "checkpoint")

    def pair(seed):
        model = small_model(seed)
        return model, opt.Adafactor(model.parameters(), min_dim_size_to_factor=7)

    model, optimizer = pair(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    optimizer.step()

    def save(n_updates):
        sharding.save_checkpoint(path, {"n_updates": n_updates, "options": {}}, model, optimizer, world)

    save(7)

    def read():
        other, of_other = pair(1)
        sharding.load_checkpoint(path, load_tensors(path), other, of_other, world)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert all(torch.equal(value, of_other.state[b][name]) for name, value in optimizer.state[a].items())
        assert of_other.param_groups[0]["step"] == 1
        return other

    folder, = tmp_path.glob("checkpoint.update7.*")
    read.path, read.folder, read.save = path, folder, save
    return read


def test_a_checkpoint_comes_back_whole(checkpoint):
    model = checkpoint()
    found = sharding.read_parameters(checkpoint.path, load_tensors(checkpoint.path))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, found[name]) for name, p in model.named_parameters())


def missing(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def changed(file):
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage, answer", [(missing, "not found, though the checkpoint names it"),
                                            (cut, r"[\d,]+ bytes found, expected [\d,]+"),
                                            (changed, "does not fit its checksum")])
def test_a_damaged_checkpoint_gets_one_line(checkpoint, damage, answer):
    file, = checkpoint.folder.iterdir()
    damage(file)
    with pytest.raises(BadInput, match=f"{file.name}: {answer}.*--resume") as error:
        checkpoint()
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_was_not_finished_is_none(checkpoint, monkeypatch):
    """Whatever the process dies in, `checkpoint` names a whole one, and the next save clears up."""
    dies = {(sharding.os, "replace"): "checkpoint.update8.*.tmp", (sharding, "save_tensors"): "checkpoint.update8.*"}
    for (module, name), left in dies.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(8)
        assert len(list(checkpoint.folder.parent.glob(left))) == 1
        checkpoint()
    previous = checkpoint.folder.parent / "checkpoint.previous"  # an earlier run's, which keeps its folder
    previous.write_bytes((checkpoint.folder.parent / "checkpoint").read_bytes())
    checkpoint.save(8)
    checkpoint.save(9)
    folders = sorted(path.name[:18] for path in checkpoint.folder.parent.iterdir() if path.is_dir())
    assert folders == ["checkpoint.update7", "checkpoint.update9"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(checkpoint, monkeypatch):
    monkeypatch.setattr(sharding.os, "urandom", lambda n: bytes(n))
    (checkpoint.folder.parent / "checkpoint.update8.00000000.tmp").write_text("in the way of the folder")
    monkeypatch.setattr(sharding, "_remove_others", lambda path: None)
    with pytest.raises(BadInput, match="could not be written.*the checkpoint before is unchanged"):
        checkpoint.save(8)
    checkpoint()


def test_a_checkpoint_of_another_model_gets_one_line(checkpoint):
    saved = load_tensors(checkpoint.path)
    model = small_model(n_layer=1)
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(BadInput, match="is not a checkpoint of this model .*h.1"):
        sharding.load_checkpoint(checkpoint.path, saved, model, opt.Adafactor(model.parameters()), world)


def test_a_run_needs_the_same_options_and_starts_another(t5_text, capfd):
    """A run with --shard and one process, without torchrun, is a run as any other."""
    folder = t5_text.folder
    line = t5_text(shard=True, save_every=4, desc="whole", model_dir=folder / "whole")
    assert run_script(pretrain_t5.main, line) == 0
    pretrain_t5.main(t5_text())
    same_parameters(folder / "save" / "whole" / "best_params", folder / "save" / "tiny" / "best_params", 1e-5)
    capfd.readouterr()
    assert run_script(pretrain_t5.main, t5_text(resume=True, desc="whole")) == 2
    assert "--shard True then, False now" in capfd.readouterr().err
    assert run_script(pretrain_t5.main, t5_text(shard=True, compile=True, desc="x", model_dir=folder / "x")) == 2
    assert "--shard and --compile do not go together" in capfd.readouterr().err
    path = folder / "save" / "whole" / "checkpoint"
    start = t5_text(init_from=path, desc="on", model_dir=folder / "on")
    assert run_script(pretrain_t5.main, start) == 0
    file = next((folder / "save" / "whole" / load_tensors(str(path))["folder"]).iterdir())
    changed(file)
    assert run_script(pretrain_t5.main, t5_text(init_from=path, desc="no", model_dir=folder / "no")) == 2
    assert "does not fit its checksum" in capfd.readouterr().err.strip().split("\n")[-1]


def test_what_is_shared_out_otherwise_is_refused():
    class Placed(torch.nn.Parameter):
        placements = ("columns",)

        def to_local(self):
            raise AssertionError

    p = Placed(torch.ones(3))
    p.placements = [type("Columns", (), {"is_shard": lambda self, dim: False, "__repr__": lambda self: "columns"})()]
    for kind in (opt.Adafactor, lambda p: opt.OpenAIAdam(p, 1, "warmup_linear", 0, 9)):
        with pytest.raises(BadInput, match="shared out as .*columns.*, expected by its rows"):
            kind([p])
