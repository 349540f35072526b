"""Reading and writing the released weights, bit for bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from gpt_golden import no_dropout
from safetensors.numpy import save_file

from formats.gpt_files import read_pretrained
from model_pytorch import (
    DoubleHeadModel,
    LMModel,
    TransformerModel,
    export_openai_model,
    load_openai_pretrained_model,
    tf_name,
)

N_VOCAB, N_SPECIAL, N_CTX = 61, 3, 16


@pytest.fixture
def expected(golden):
    return np.load(golden / "gpt" / "release_tiny" / "expected.npz")


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the released tiny model that a test may damage."""
    copy = tmp_path / "model"
    shutil.copytree(golden / "gpt" / "release_tiny", copy)
    (copy / "expected.npz").unlink()
    return copy


def tiny(n_ctx=N_CTX, n_special=N_SPECIAL, n_layer=3):
    torch.manual_seed(7)
    return TransformerModel(no_dropout(n_embd=32, n_head=4, n_layer=n_layer), N_VOCAB + n_special + n_ctx, n_ctx)


def load(model, path, n_transfer=3, **kwargs):
    np.random.seed(42)
    arguments = dict(n_ctx=N_CTX, n_special=N_SPECIAL, n_transfer=n_transfer, n_embd=32, path=str(path))
    return load_openai_pretrained_model(model, **arguments | kwargs)


def hub_file(folder, path, prefix="", extras=True):
    """Write the weights of a released folder as the Hub's model.safetensors."""
    arrays = {}
    for name, value in read_pretrained(str(folder)).arrays.items():
        name = {"positions": "positions_embed.weight", "tokens": "tokens_embed.weight"}.get(name, name)
        for suffix, hub in ((".w", ".weight"), (".g", ".weight"), (".b", ".bias")):
            if name.endswith(suffix):
                name = name.removesuffix(suffix) + hub
        arrays[prefix + name] = np.asarray(value)
    if extras:
        arrays["lm_head.weight"] = arrays[prefix + "tokens_embed.weight"].copy()
        for i in range(3):
            arrays[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 40, 40), np.float32))
    save_file(arrays, path)


@pytest.mark.parametrize("form", ["released", "hub", "hub file with prefix"])
@pytest.mark.parametrize("n_transfer", [3, 1, 0, -1])
def test_loading_is_bit_exact(folder, expected, tmp_path, n_transfer, form):
    path = folder
    if form == "hub":
        path = tmp_path / "hub"
        path.mkdir()
        hub_file(folder, path / "model.safetensors")
    elif form != "released":
        path = tmp_path / "other.safetensors"
        hub_file(folder, path, prefix="transformer.")
    model, untouched = tiny(), tiny().state_dict()
    report = load(model, path, n_transfer)
    want = json.loads(str(expected["loaded"]))[f"n_transfer={n_transfer}"]
    assert report["loaded"] == want["loaded"]
    assert report["fresh"] == [n for n in want["kept_init"] if "clf" not in n]
    for name, p in model.state_dict().items():
        if tf_name(name) in report["loaded"]:
            # n_transfer 1 holds what any loading puts into we and layer 0
            file = "n_transfer3" if n_transfer == 3 else "n_transfer1"
            value = expected[f"{file}/param/{tf_name(name)}"]
            np.testing.assert_array_equal(p.numpy(), value.reshape(p.shape))
        else:
            assert torch.equal(p, untouched[name])


def test_it_says_what_was_loaded(folder, capsys):
    load(tiny(), folder, 1)
    line = capsys.readouterr().out
    assert "loaded 13 of 37 variables" in line and "24 variables" in line and "model/h1/attn/c_attn/w:0" in line
    load(tiny(), folder, 3, verbose=False)
    assert capsys.readouterr().out == ""


def test_defaults_load_every_position_and_no_special_row(folder):
    model = LMModel(no_dropout(n_embd=32, n_head=4, n_layer=3), N_VOCAB + 40, 40)
    load_openai_pretrained_model(model, n_transfer=3, n_embd=32, path=str(folder))
    weights = read_pretrained(str(folder)).arrays
    np.testing.assert_array_equal(model.transformer.embed.weight.detach(),
                                  np.concatenate([weights["tokens"], weights["positions"]]))


@pytest.mark.parametrize("n_special", [0, 3])
def test_a_model_written_and_read_again_is_identical(tmp_path, n_special):
    torch.manual_seed(3)
    model = LMModel(no_dropout(n_embd=18, n_head=3, n_layer=2), 53 + n_special + 11, 11)
    export_openai_model(model, str(tmp_path / "out"), n_special)
    again = LMModel(no_dropout(n_embd=18, n_head=3, n_layer=2), 53 + n_special + 11, 11)
    load_openai_pretrained_model(again, n_special=n_special, n_transfer=2, n_embd=18, path=str(tmp_path / "out"))
    for name, p in model.state_dict().items():
        q = again.state_dict()[name]
        if n_special and p.size(0) == 53 + n_special + 11:
            p, q = (torch.cat([t[:53], t[53 + n_special:]]) for t in (p, q))  # special rows are fresh
        assert torch.equal(p, q), name


def test_writing_reproduces_the_released_files(folder, tmp_path):
    model = tiny(40, 0)
    load(model, folder, n_ctx=-1, n_special=-1)
    export_openai_model(model, str(tmp_path / "out"))
    for i in range(10):
        name = f"params_{i}.npy"
        np.testing.assert_array_equal(np.load(tmp_path / "out" / name), np.load(folder / name))
    assert json.load(open(tmp_path / "out" / "params_shapes.json")) == json.load(open(folder / "params_shapes.json"))


def test_released_file_sizes():
    total = 116_534_784
    assert [len(part) for part in np.array_split(np.empty(total, np.bool_), 10)] == [11_653_479] * 4 + [11_653_478] * 6


def test_state_dicts_of_the_2018_port_load(tmp_path):
    cfg = no_dropout(n_embd=18, n_head=3, n_layer=2)
    torch.manual_seed(1)
    ours = DoubleHeadModel(cfg, 55, "multiple_choice", vocab=56 + 11, n_ctx=11)
    theirs = dict(ours.state_dict())
    names = {"transformer.embed.weight", "transformer.h.1.attn.c_attn.w", "transformer.h.0.ln_2.g",
             "lm_head.decoder.weight", "task_head.linear.weight", "task_head.linear.bias"}
    assert names <= set(theirs)
    for i in range(2):  # the port keeps its causal mask among the weights
        theirs[f"transformer.h.{i}.attn.b"] = torch.ones(1, 1, 11, 11).tril()
    torch.save({f"module.{name}": value for name, value in theirs.items()}, tmp_path / "best_params")
    for saved in (theirs, torch.load(tmp_path / "best_params", weights_only=True)):
        torch.manual_seed(2)
        model = DoubleHeadModel(cfg, 55, "multiple_choice", vocab=56 + 11, n_ctx=11)
        model.load_state_dict(saved)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), ours.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict(theirs | {"transformer.h.0.attn.c_attn.b2": torch.ones(1)})
    lm = LMModel(cfg, vocab=67, n_ctx=11)
    lm.load_state_dict(dict(lm.state_dict()) | {"pos_emb_mask": torch.zeros(1, 1, 67)})


def test_a_mismatch_is_refused_and_changes_nothing(folder):
    cases = [(dict(n_transfer=4), "n_transfer is 4.*-1 to 3"), (dict(n_embd=48), "48.*32"), (dict(n_ctx=41), "41.*40"),
             (dict(n_special=2), "80 rows.*61 \\+ 2 \\+ 16"), (dict(n_transfer=-2), "-2")]
    for wrong, message in cases:
        model, before = tiny(), tiny().state_dict()
        with pytest.raises(ValueError, match=message):
            load(model, folder, **wrong)
        assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    with pytest.raises(ValueError, match="n_transfer is 4, allowed is -1 to 3, the layers"):
        load(tiny(n_layer=4), folder, n_transfer=4)


def damage(folder, kind):
    """Damage a released folder; return what the message must contain."""
    file = folder / "params_4.npy"
    values = np.load(file)
    if kind == "missing":
        file.unlink()
        return FileNotFoundError, ["params_4.npy", "not found", "finetune-transformer-lm", "--n_transfer -1"]
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "float64":
        np.save(file, values.astype(np.float64))
        return ValueError, ["params_4.npy", "float64", "float32"]
    elif kind == "short":
        np.save(file, values[:-7])
        return ValueError, ["params_4.npy", str(len(values) - 7), str(len(values))]
    elif kind == "pickled":
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46614044\n")
        return ValueError, ["params_4.npy", "Git LFS pointer", f"{len(values):,}"]
    elif kind == "text":
        file.write_text("hello")
    elif kind == "shapes":
        shapes = json.load(open(folder / "params_shapes.json"))
        shapes[5] = [33]
        json.dump(shapes, open(folder / "params_shapes.json", "w"))
        return ValueError, ["params_shapes.json", "shapes"]
    elif kind == "shapes cut":
        (folder / "params_shapes.json").write_text("[[40, 32], [61,")
        return ValueError, ["params_shapes.json", "JSON"]
    elif kind == "no folder":
        shutil.rmtree(folder)
        return FileNotFoundError, [str(folder), "finetune-transformer-lm", "--n_transfer -1"]
    return ValueError, ["params_4.npy", "found", f"{len(values):,} float32"]


KINDS = ["missing", "truncated", "empty", "float64", "short", "pickled", "pointer", "text", "shapes", "shapes cut",
         "no folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_gets_one_line(folder, kind):
    error, parts = damage(folder, kind)
    with pytest.raises(error) as caught:
        load(tiny(), folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("kind", ["truncated", "foreign", "missing layer", "float64"])
def test_a_damaged_safetensors_file_gets_one_line(folder, tmp_path, kind):
    path = tmp_path / "model.safetensors"
    hub_file(folder, path, extras=False)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "foreign":
        save_file({"a": np.zeros(3, np.float32)}, path)
    else:
        from safetensors.numpy import load_file
        arrays = load_file(path)
        if kind == "float64":
            arrays["h.1.ln_2.weight"] = arrays["h.1.ln_2.weight"].astype(np.float64)
        else:
            del arrays["h.1.ln_2.weight"]
        save_file(arrays, path)
    with pytest.raises(ValueError) as caught:
        load(tiny(), path)
    assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)
