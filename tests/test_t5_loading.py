"""load_t5_pretrained_model: both kinds of released files, bit for bit, and what is wrong with others."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from formats.errors import BadInput, MissingInput
from t5_pytorch import T5, checkpoint_names, load_t5_pretrained_model

VERSIONS = {"t5_v1_0": {}, "t5_v1_1": dict(feed_forward="gated-gelu", tie_logits=False)}
SIZE = dict(dim=32, enc_num_tokens=96, enc_depth=2, enc_heads=4, enc_dim_head=8,
            dec_num_tokens=96, dec_depth=2, dec_heads=4, dec_dim_head=8, d_ff=64)


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def make(version, **changes):
    return T5(**{**SIZE, **VERSIONS[version], **changes})


def assert_is_golden(model, golden, version):
    """Every parameter equals the original's variable of its name, bit for bit."""
    with np.load(golden / "t5" / version / "golden.npz") as file:
        originals = {key.removeprefix("param/"): file[key] for key in file.files if key.startswith("param/")}
    rms_norm = version == "t5_v1_1"
    for name, parameter in model.named_parameters():
        expected = torch.from_numpy(originals.pop(checkpoint_names(name, rms_norm)[0]))
        found = parameter.detach() if expected.dim() < 2 or name == "shared.weight" else parameter.detach().t()
        assert torch.equal(found, expected), name
    assert not originals


@pytest.mark.parametrize("where", ["checkpoint", "checkpoint/model.ckpt-1000000", "hf", "hf/model.safetensors"])
def test_loads_bit_for_bit(golden, version, where):
    model = make(version)
    report = load_t5_pretrained_model(model, str(golden / "t5" / version / where))
    assert_is_golden(model, golden, version)
    assert report == {"loaded": [name for name, _ in model.named_parameters()], "fresh": [],
                      "left_out": []}


def test_loads_a_path_object_and_into_bfloat16(golden):
    model = make("t5_v1_1").bfloat16()  # this checkpoint is stored in bfloat16, so nothing is rounded
    load_t5_pretrained_model(model, golden / "t5" / "t5_v1_1" / "checkpoint")
    assert model.shared.weight.dtype == torch.bfloat16
    assert_is_golden(model.float(), golden, "t5_v1_1")


def test_names_cover_both_layouts(golden, version):
    model = make(version)
    names = [checkpoint_names(name, version == "t5_v1_1") for name, _ in model.named_parameters()]
    with np.load(golden / "t5" / version / "golden.npz") as file:
        assert {tf for tf, _ in names} == {k.removeprefix("param/") for k in file.files if k.startswith("param/")}
    assert {hub for _, hub in names} == set(load_file(golden / "t5" / version / "hf" / "model.safetensors"))
    tf, hub = checkpoint_names("decoder.block.11.layer.2.DenseReluDense.wi_0.weight")
    assert tf == "decoder/block_011/layer_002/DenseReluDense/wi_0/kernel"
    assert hub == "decoder.block.11.layer.2.DenseReluDense.wi_0.weight"


def test_loads_parts_and_passes_over_copies_and_leftovers(golden, tmp_path):
    tensors = load_file(golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(32, 4)
    names = sorted(tensors)
    for part, some in enumerate((names[:20], names[20:]), 1):
        save_file({name: tensors[name] for name in some}, tmp_path / f"model-{part:05d}-of-00002.safetensors")
    model = make("t5_v1_0")
    load_t5_pretrained_model(model, str(tmp_path))
    assert_is_golden(model, golden, "t5_v1_0")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingInput, match="has 1 of the parts that model-00001-of-00002.safetensors belongs to"):
        load_t5_pretrained_model(model, str(tmp_path))


def test_other_logits_than_the_embedding_are_not_dropped(golden, tmp_path):
    tensors = load_file(golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="lm_head.weight differs from shared.weight"):
        load_t5_pretrained_model(make("t5_v1_0"), str(tmp_path))


@pytest.mark.parametrize("kind", ["checkpoint", "hf"])
@pytest.mark.parametrize("changes, complaint", [
    (dict(d_ff=65), r"of another shape: 8, such as .*wi\S* \[65?6?4?, 32\] instead of \[65, 32\]"),
    (dict(enc_depth=3), "lacking: 8, such as encoder.block.002.layer"),
    (dict(dec_depth=1), "unknown: 13, such as decoder.block.001.layer"),
    (dict(feed_forward="gated-gelu"), "lacking: 8, such as .*wi_0.*; unknown: 4, such as .*wi"),
    (dict(tie_logits=False), "lacking: 1, such as (decoder/logits/kernel|lm_head.weight)"),
])
def test_a_checkpoint_of_another_model_is_refused_untouched(golden, kind, changes, complaint):
    model = make("t5_v1_0", **changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if kind == "hf":
        complaint = complaint.replace(".00", r"\.")
    with pytest.raises(BadInput, match=complaint) as error:
        load_t5_pretrained_model(model, str(golden / "t5" / "t5_v1_0" / kind))
    assert "\n" not in str(error.value) and "T5_CONFIGS" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["checkpoint", "hf"])
def test_named_parameters_may_stay_fresh(golden, kind):
    model = make("t5_v1_0", tie_logits=False)
    before = model.decoder.logits.weight.detach().clone()
    report = load_t5_pretrained_model(model, str(golden / "t5" / "t5_v1_0" / kind), fresh=["decoder.logits.weight"])
    assert report["fresh"] == ["decoder.logits.weight"] and len(report["loaded"]) == 47
    assert torch.equal(model.decoder.logits.weight, before)


def test_missing_and_damaged_files_take_one_line(golden, tmp_path):
    model = make("t5_v1_0")
    with pytest.raises(MissingInput, match="model.safetensors"):
        load_t5_pretrained_model(model, str(tmp_path))
    with pytest.raises(MissingInput, match="nowhere.safetensors: not found"):
        load_t5_pretrained_model(model, str(tmp_path / "nowhere.safetensors"))
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 242043056\n"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read as safetensors") as error:
            load_t5_pretrained_model(model, str(tmp_path))
        assert "\n" not in str(error.value)
    whole = (golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        load_t5_pretrained_model(model, str(tmp_path))
    shutil.copytree(golden / "t5" / "t5_v1_0" / "checkpoint", tmp_path / "tf")
    data = tmp_path / "tf" / "model.ckpt-1000000.data-00001-of-00002"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(BadInput, match="data-00001-of-00002"):
        load_t5_pretrained_model(model, str(tmp_path / "tf"))


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content, complaint", [
    ({"a": Evil()}, "cannot be read as a file of tensors"), (Evil(), "cannot be read as a file of tensors"),
    ([torch.ones(2)], "it holds a list, not tensors by name"), ({"a": 3}, "'a' is a int, not a tensor"),
    ({3: torch.ones(2)}, "3 is a Tensor, not a tensor|cannot be read"), ({}, "not a checkpoint of this model"),
    ({"a": torch.ones(3).to_sparse()}, "'a' is no ordinary tensor|cannot be read"),
    ({"a": torch.ones(1).expand(1 << 40)}, "'a' has the shape .*for which there are no|it speaks of more"),
    ({"shared.weight\n": torch.ones(2)}, "which is no text"),
])
def test_a_bin_that_holds_no_tensors_of_a_t5_is_refused(tmp_path, content, complaint, zipped, capsys):
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match=complaint) as error:
        load_t5_pretrained_model(make("t5_v1_0"), tmp_path)
    assert "\n" not in str(error.value) and "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_other_types_of_numbers_are_refused(golden, tmp_path, dtype):
    tensors = load_file(golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"] = tensors["encoder.final_layer_norm.weight"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="final_layer_norm.weight is .*32], expected float32, float16 or bfloat16"):
        load_t5_pretrained_model(make("t5_v1_0"), tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".other"])
def test_one_file_may_have_any_name(golden, tmp_path, suffix):
    tensors = load_file(golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors")
    for save in (save_file, torch.save):
        path = tmp_path / f"weights{suffix}"
        save(tensors, path)
        if save is torch.save and suffix == ".safetensors":
            with pytest.raises(BadInput, match="cannot be read as safetensors"):
                load_t5_pretrained_model(make("t5_v1_0"), path)
            continue
        model = make("t5_v1_0")
        load_t5_pretrained_model(model, path)
        assert_is_golden(model, golden, "t5_v1_0")


def test_parts_of_two_models_and_strange_names_are_refused(golden, tmp_path):
    file = golden / "t5" / "t5_v1_0" / "hf" / "model.safetensors"
    for name in ("model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"):
        shutil.copy(file, tmp_path / name)
    with pytest.raises(BadInput, match="holds parts of 2 different models"):
        load_t5_pretrained_model(make("t5_v1_0"), tmp_path)
    shutil.copy(file, tmp_path / "model-a-of-b.safetensors")
    with pytest.raises(BadInput, match="the name of a part ends in numbers"):
        load_t5_pretrained_model(make("t5_v1_0"), tmp_path)
