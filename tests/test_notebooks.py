"""The notebooks run from top to bottom as they stand, and so do the README's Python blocks."""


import re
import subprocess
import sys

import nbformat
import pytest
from cloze_data import options, write_data_dir
from conftest import write_small_vocabulary
from nbclient import NotebookClient
from pretraining import stories

import model_pytorch
import t5_pytorch
from pretrain_t5 import learn_vocabulary

NAMES = ["gpt", "t5"]


def read(root, name):
    return nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_nothing_floods_a_cell(root, name, tmp_path, monkeypatch):
    if (root / "model" / "params_0.npy").exists() or (root / "model" / "t5-small").exists():
        pytest.skip("with the released weights in model/ a notebook takes long")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook's own files go
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(root, name)
    nbformat.validate(notebook)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3",
                            resources={"metadata": {"path": str(root / "notebooks")}})
    client.execute()
    pictures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error"
            data = output.get("data", {})
            pictures += "image/png" in data
            text = output.get("text", "") or data.get("text/plain", "")
            assert len(text) < 4000, (cell.source, text[:400])
            if output.get("name") == "stderr":
                assert "Traceback" not in text
    assert pictures >= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs(root, name):
    for cell in read(root, name).cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)
        assert max(map(len, cell.source.splitlines())) <= 120


MODULES = ["model_pytorch", "t5_pytorch", "t5_decoding", "loss", "opt", "text_utils", "datasets", "utils", "explore",
           "analysis", "train"]
FOREIGN = ("utils", "datasets", "analysis", "toy", "loss")


def in_another_folder(root, folder, code):
    """Run Python code in a folder that holds files of our names; return what it prints."""
    for name in FOREIGN:
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong file')\n")
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300,
                         env={"PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(folder)})
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_notebook_elsewhere_beside_files_of_our_names_finds_ours(root, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(root)!r})
import explore, analysis, train, train_t5, pretrain, pretrain_t5, toy.stories, utils, datasets
import importlib
for name in {MODULES}:
    before = sys.modules[name]
    importlib.reload(before)          # importing twice, as after an edit
    print(name, before.__file__)
"""
    lines = in_another_folder(root, tmp_path, code).splitlines()
    files = {name: root / f"{name}.py" for name in MODULES} | {"explore": root / "explore" / "__init__.py"}
    assert lines == [f"{name} {path}" for name, path in files.items()]


def test_a_library_called_datasets_may_be_there_before(root, tmp_path):
    """It stays what it is, and every script works beside it: a run of training reads the Story Cloze Test."""
    write_data_dir(tmp_path / "data")
    encoder, bpe = write_small_vocabulary(tmp_path)
    argv = options(tmp_path, str(tmp_path / "data"), (encoder, bpe), n_iter=1, submit=True, analysis=True)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "datasets.py").write_text("load_dataset = 'theirs'\n")
    scripts = "train train_t5 pretrain pretrain_t5 predict generate analysis demo reproduce benchmark explore".split()
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "library")!r})
import datasets
sys.path.insert(0, {str(root)!r})
import {", ".join(scripts)}, toy.stories, toy.glue
print(datasets.load_dataset, sys.modules["datasets"] is datasets)
train.main({argv!r})
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         env={"PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "theirs True" and lines[-1].startswith("ROCStories Test Accuracy:")


def python_blocks(root):
    """The README's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_s_python_runs_as_it_stands(root, tmp_path, monkeypatch):
    """With small models in the folders that it names, and in place of the released sizes."""
    blocks = python_blocks(root)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, {folder for block in blocks for folder in re.findall(r'"(model/[\w-]*)"', block)})
    monkeypatch.setattr(model_pytorch, "DEFAULT_CONFIG", SMALL)
    monkeypatch.setattr(model_pytorch.TransformerModel.__init__, "__defaults__", (93 + 40, 40))
    monkeypatch.setattr(model_pytorch.load_openai_pretrained_model, "__defaults__",
                        (-1, -1, 2, 18, "./model/", "./", False, None))
    monkeypatch.setitem(t5_pytorch.T5_CONFIGS, "small", T5_SIZES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


SMALL = model_pytorch.DEFAULT_CONFIG | dict(n_embd=18, n_head=3, n_layer=2)
T5_SIZES = dict(dim=12, d_ff=20, enc_num_tokens=256, dec_num_tokens=256, enc_depth=2, dec_depth=2, enc_heads=2,
                dec_heads=2, enc_dim_head=5, dec_dim_head=5)


def make_stand_ins(folder, names):
    """Write a small GPT to model/ and a small T5 to every other folder in names."""
    for name in {"model/", *names}:
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        if name.rstrip("/") == "model":
            write_small_vocabulary(path)
            model_pytorch.export_openai_model(model_pytorch.LMModel(SMALL, vocab=93 + 40, n_ctx=40), str(path))
        else:
            (path / "spiece.model").write_bytes(learn_vocabulary(stories(100), 60))
            t5_pytorch.export_t5_model(t5_pytorch.T5(**T5_SIZES), str(path))
