"""T5 models that transformers wrote, in every form of file, give us its logits; and what we write gives it ours."""

import json
import shutil

import pytest
import torch
from hub_files import (
    FORMS,
    SIZES,
    T5S,
    again,
    same_gpt,
    same_t5,
    their_gpt,
    their_t5,
    transformers,
    with_prefix,
)
from safetensors.torch import load_file, save_file
from small_t5 import near, odd_batch, small_model

from fast import t5 as fast_t5
from fast.known import knows
from formats.errors import BadInput, MissingInput
from model_pytorch import (
    LMModel,
)
from t5_decoding import generate
from t5_pytorch import PAD, T5, export_t5_model, load_t5_pretrained_model, read_t5_config


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", T5S)
def test_t5_gives_transformers_logits(tmp_path, kind, form):
    theirs = their_t5(kind)
    theirs.save_pretrained(tmp_path)
    FORMS[form](tmp_path)
    ours = T5.from_pretrained(tmp_path)
    assert not ours.training and ours.encoder.dropout.p == 0.2
    assert ours.tie_logits == (kind not in ("v1.1", "unusual")) and ours.scale_logits == (kind == "v1.0")
    if "float16" not in form:
        assert same_t5(theirs, ours)
    assert same_t5(again(tmp_path) if "float16" in form else theirs.float(), ours) and knows(ours)


def test_t5_in_parts_of_transformers_own_making(tmp_path):
    theirs = their_t5("v1.1")
    theirs.save_pretrained(tmp_path, max_shard_size="9KB")
    parts = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(parts) > 2
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    lost = dict(content, weight_map=content["weight_map"] | {"shared.other": parts[0].name})
    index.write_text(json.dumps(lost))
    with pytest.raises(BadInput, match=f"{parts[0].name}: lacks 'shared.other', which the index lists in it"):
        T5.from_pretrained(tmp_path)
    index.write_text(json.dumps(dict(content, weight_map=content["weight_map"] | {"x": "../other.safetensors"})))
    with pytest.raises(BadInput, match="index.json: 'x' is in '../other.safetensors', expected the plain name"):
        T5.from_pretrained(tmp_path)
    index.write_text('{"weight_map": []}')
    with pytest.raises(BadInput, match="index.json: has no weight_map"):
        T5.from_pretrained(tmp_path)
    index.unlink()
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    parts[1].unlink()
    with pytest.raises(MissingInput, match=f"has {len(parts) - 1} of the parts"):
        T5.from_pretrained(tmp_path)
    index.write_text(json.dumps(content))
    with pytest.raises(MissingInput, match=f"{parts[1].name}: not found, but model.safetensors.index.json lists"):
        T5.from_pretrained(tmp_path)


def test_two_parts_with_one_tensor_are_refused(tmp_path):
    their_t5("v1.0").save_pretrained(tmp_path)
    for part in (1, 2):
        shutil.copy(tmp_path / "model.safetensors", tmp_path / f"model-0000{part}-of-00002.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="holds '.*', which .*model-00001-of-00002.safetensors holds too"):
        T5.from_pretrained(tmp_path)


def of_version_4(folder, tied):
    """Make of version 5's config.json what version 4 writes."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("scale_decoder_outputs", None)
    config.update(tie_word_embeddings=tied, transformers_version="4.23.1", torch_dtype="float32")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("tied", [True, False])
def test_tie_word_embeddings_in_the_meaning_of_version_4(tmp_path, tied):
    their_t5("v1.0" if tied else "v1.1").save_pretrained(tmp_path)
    of_version_4(tmp_path, tied)
    ours = T5.from_pretrained(tmp_path)
    assert ours.tie_logits == ours.scale_logits == tied
    assert same_t5(again(tmp_path), ours)
    of_version_4(tmp_path, not tied)
    with pytest.raises(BadInput, match="lm_head.weight"):
        T5.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_t5_finds_the_tied_matrix_under_each_name(tmp_path, name):
    theirs = their_t5("v1.0")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")                   # a copy
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    lone = dict(tensors)
    del lone["shared.weight"]
    save_file(lone, tmp_path / "model.safetensors")
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    tensors[name][3, 4] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    of_version_4(tmp_path, True)
    with pytest.raises(BadInput, match=f"{name} differs from shared.weight"):
        T5.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["transformer.", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.",
                                    "module._orig_mod.transformer."])
def test_prefixes_are_taken_off(tmp_path, prefix):
    theirs = their_t5("v1.1")
    theirs.save_pretrained(tmp_path)
    with_prefix(tmp_path, prefix)
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    gpt = their_gpt("OpenAIGPTLMHeadModel")
    gpt.save_pretrained(tmp_path / "gpt")
    with_prefix(tmp_path / "gpt", prefix)
    assert same_gpt(gpt, LMModel.from_pretrained(tmp_path / "gpt"))


def test_files_of_models_with_compiled_parts(tmp_path):
    theirs, gpt = their_t5("v1.1"), their_gpt("OpenAIGPTLMHeadModel")
    for model, folder, part in ((theirs, tmp_path, "block.1."), (gpt, tmp_path / "gpt", "h.1.")):
        model.save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        save_file({name.replace(part, part + "_orig_mod."): t for name, t in tensors.items()},
                  folder / "model.safetensors")
        assert any("._orig_mod." in name for name in load_file(folder / "model.safetensors"))
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    assert same_gpt(gpt, LMModel.from_pretrained(tmp_path / "gpt"))


def test_one_name_twice_is_refused_unless_equal(tmp_path):
    theirs = their_t5("v1.0")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "encoder.final_layer_norm.weight"
    tensors["module." + name] = tensors[name].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    tensors["module." + name] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=f"two different tensors for {name}"):
        T5.from_pretrained(tmp_path)


def test_an_encoder_alone_is_loaded_and_the_decoder_named_as_fresh(tmp_path, capsys):
    theirs = their_t5("v1.0", transformers.T5EncoderModel)
    theirs.save_pretrained(tmp_path)
    ours = small_model(enc_depth=2, dec_depth=3)
    before = {name: p.clone() for name, p in ours.named_parameters()}
    report = load_t5_pretrained_model(ours, tmp_path)
    assert report["fresh"] == [name for name in before if name.startswith("decoder.")]
    assert all(torch.equal(p, before[name]) for name, p in ours.named_parameters() if name in report["fresh"])
    assert "decoder" in capsys.readouterr().err
    src, _ = odd_batch()
    with torch.no_grad():
        wanted = theirs(src, attention_mask=(src != PAD).long()).last_hidden_state * (src != PAD)[..., None]
        assert near(ours.encode(src, src != PAD), wanted, 1e-5)
        assert near(T5.from_pretrained(tmp_path).encode(src, src != PAD), wanted, 1e-5)


def test_the_head_of_another_task_is_named_as_left_out(tmp_path, capsys):
    theirs = their_t5("v1.0", transformers.T5ForSequenceClassification, num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours = T5(**read_t5_config(tmp_path))
    report = load_t5_pretrained_model(ours, tmp_path)
    assert len(report["left_out"]) == 4 and not report["fresh"]
    assert all(name.startswith("classification_head.") for name in report["left_out"])
    assert "classification_head" in capsys.readouterr().err


@pytest.mark.parametrize("key, value, answer", [
    ("model_type", "umt5", "supported is"), ("feed_forward_proj", "gated-silu", 'supported is "relu" or "gated-gelu"'),
    ("dense_act_fn", "gelu", 'supported is "gelu_new"'), ("is_gated_act", False, "supported is true"),
    ("pad_token_id", 1, "supported is 0"), ("eos_token_id", 2, "supported is 1"),
    ("decoder_start_token_id", 5, "supported is 0"), ("layer_norm_epsilon", "small", "expected a number"),
    ("relative_attention_num_buckets", 0, "expected a whole number"), ("d_kv", None, "expected a whole number"),
    ("scale_decoder_outputs", None, "supported is true or false"), ("tie_word_embeddings", 1, "supported is"),
    ("is_decoder", True, "supported is false"), ("d_model", 10 ** 30, "expected a whole number"),
])
def test_what_config_json_says_is_obeyed_or_refused_in_one_line(tmp_path, key, value, answer):
    their_t5("v1.1").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(BadInput) as error:
        T5.from_pretrained(tmp_path)
    line = str(error.value)
    assert "\n" not in line and f"config.json: {key} is {json.dumps(value)[:80]}" in line and answer in line


def test_generation_config_counts_too(tmp_path):
    their_t5("v1.0").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 7}')
    with pytest.raises(BadInput, match="generation_config.json: decoder_start_token_id is 7, supported is 0"):
        T5.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [dict(epsilon=1e-5), dict(max_distance=64), dict(scale_logits=False),
                                    dict(enc_heads=7, enc_dim_head=3, dec_heads=7, dec_dim_head=3)])
def test_a_t5_that_config_json_does_not_describe_is_refused(tmp_path, change):
    their_t5("v1.0").save_pretrained(tmp_path)
    model = T5(**read_t5_config(tmp_path) | change)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(BadInput, match="config.json: describes|of another shape"):
        load_t5_pretrained_model(model, tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_mt5_is_read_where_its_meaning_is_known(tmp_path):
    torch.manual_seed(1)
    config = transformers.MT5Config(**SIZES)
    theirs = transformers.MT5ForConditionalGeneration(config).eval()
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(53, 20))
    theirs.save_pretrained(tmp_path)
    ours = T5.from_pretrained(tmp_path)
    assert not ours.tie_logits and not ours.scale_logits and same_t5(theirs, ours)
    of_version_4(tmp_path, False)
    assert same_t5(theirs, T5.from_pretrained(tmp_path))
    of_version_4(tmp_path, True)
    with pytest.raises(BadInput, match="tie_word_embeddings is true, supported for mt5 is false"):
        T5.from_pretrained(tmp_path)


UNUSUAL = dict(num_buckets=12, max_distance=17, epsilon=0.02)
OURS = {"v1.0": {}, "v1.1": dict(feed_forward="gated-gelu", tie_logits=False),
        "tied v1.1": dict(feed_forward="gated-gelu", scale_logits=False), "unusual": UNUSUAL}


@pytest.mark.parametrize("kind", OURS)
def test_an_exported_t5_is_read_by_transformers_and_by_us(tmp_path, kind):
    ours = small_model(**OURS[kind])
    with torch.no_grad():
        for p in ours.parameters():
            p += 0.2 * torch.randn_like(p)
    export_t5_model(ours, tmp_path)
    theirs = again(tmp_path)
    assert same_t5(theirs, ours)
    # version 4 scales where it ties and ties where it is told to; what it is told not to tie has to be in the file
    tied, tensors = json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"], load_file(
        tmp_path / "model.safetensors")
    assert tied == ours.scale_logits and ("lm_head.weight" in tensors) == (not tied)
    assert tied or torch.equal(tensors["lm_head.weight"], ours.logits_weight())
    src, _ = odd_batch()
    # its cache has as many layers as the encoder, and this decoder has more
    wanted = theirs.generate(src, attention_mask=(src != PAD).long(), max_new_tokens=9, do_sample=False,
                             use_cache=False)[:, 1:]
    found = generate(ours, src, src != PAD, 9)
    assert torch.equal(found[:, :wanted.shape[1]], wanted) and not found[:, wanted.shape[1]:].any()
    back = T5.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), back.parameters(), strict=True))
    assert (back.tie_logits, back.scale_logits) == (ours.tie_logits, ours.scale_logits) and same_t5(theirs, back)
    theirs.save_pretrained(tmp_path / "their own")
    last = T5.from_pretrained(tmp_path / "their own")
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), last.parameters(), strict=True))


def test_scaled_logits_of_ones_own_cannot_be_exported(tmp_path):
    with pytest.raises(BadInput, match="tie_logits=False and scale_logits=True"):
        export_t5_model(small_model(tie_logits=False, scale_logits=True), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [UNUSUAL, dict(scale_logits=False), dict(tie_logits=False, scale_logits=True)])
def test_fast_t5_obeys_unusual_values(changes):
    model = small_model(**changes)
    src, tgt = odd_batch(s=40)
    assert knows(model)
    plain = model(src, tgt, src != PAD)
    hidden = fast_t5.hidden_states(model, src, tgt, src != PAD)
    assert near(hidden @ model.logits_weight().t(), plain, 1e-5)
    assert torch.equal(fast_t5.generate(model, src, src != PAD, 25), generate(model, src, src != PAD, 25))
    usual = small_model(**({"tie_logits": False} if "tie_logits" in changes else {}))
    if "num_buckets" not in changes:
        usual.load_state_dict(model.state_dict())
    assert not near(usual(src, tgt, src != PAD), plain, 1e-3)


@pytest.mark.parametrize("wrong, line", [
    (dict(num_buckets=7), "num_buckets is 7"), (dict(max_distance=16), "max_distance is 16"),
    (dict(epsilon=-1), "epsilon is -1")])
def test_values_a_t5_cannot_have(wrong, line):
    with pytest.raises(BadInput, match=line):
        small_model(**wrong)
