"""Models that transformers wrote, in every form of file, give us its logits; and what we write gives it ours."""

import json
import shutil

import pytest
import torch
from conftest import write_small_vocabulary
from safetensors.torch import load_file, save_file
from small_gpt import enlarge, small_lm
from small_gpt import small_model as small_double
from small_t5 import near, odd_batch, small_model

from fast import t5 as fast_t5
from fast.gpt import task_logits
from fast.known import knows
from formats.errors import BadInput, MissingInput
from formats.gpt_files import read_pretrained
from formats.hub import local_folder
from model_pytorch import (
    ACT_FNS,
    DoubleHeadModel,
    LMModel,
    dotdict,
    export_hub_model,
    export_openai_model,
    load_openai_pretrained_model,
)
from t5_decoding import generate
from t5_pytorch import PAD, T5, export_t5_model, load_t5_pretrained_model, read_t5_config
from text_utils import TextEncoder

transformers = pytest.importorskip("transformers")
SIZES = dict(vocab_size=53, d_model=20, d_kv=7, d_ff=29, num_layers=2, num_decoder_layers=3, num_heads=3,
             decoder_start_token_id=0, dropout_rate=0.2)
V1_1 = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
T5S = {"v1.0": {}, "v1.1": V1_1, "tied v1.1": V1_1, "tied v1.0 without scale": dict(tie_word_embeddings=False),
       "unusual": dict(V1_1, relative_attention_num_buckets=12, relative_attention_max_distance=17,
                       layer_norm_epsilon=0.02, num_layers=3, num_decoder_layers=1, d_kv=6)}
GPT_SIZES = dict(vocab_size=93, n_positions=19, n_embd=36, n_layer=2, n_head=4, resid_pdrop=0.3)


def their_t5(kind, cls=None, **changes):
    """A T5 of transformers with weights that all matter; 'v1.1' has logits of its own, as the released ones have."""
    torch.manual_seed(0)
    config = transformers.T5Config(**{**SIZES, **T5S[kind], **changes})
    model = (cls or transformers.T5ForConditionalGeneration)(config).eval()
    with torch.no_grad():
        if kind in ("v1.1", "unusual") and cls is None:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(53, 20))
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


def as_bin(folder, **options):
    """Put pytorch_model.bin in the place of model.safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def as_bin_parts(folder):
    """The same in two parts, with their index."""
    tensors = load_file(folder / "model.safetensors")
    where = {}
    for part, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"pytorch_model-{part:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in names}, folder / file)
        where.update(dict.fromkeys(names, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()


def as_type(folder, dtype):
    tensors = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_prefix(folder, prefix):
    tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


FORMS = {
    "safetensors": lambda folder: None,
    "bin": as_bin,
    "older bin": lambda folder: as_bin(folder, _use_new_zipfile_serialization=False),
    "bin in parts": as_bin_parts,
    "float16": lambda folder: as_type(folder, torch.float16),
    "bfloat16": lambda folder: as_type(folder, torch.bfloat16),
}


def t5_logits(model, src, tgt):
    """Of transformers' model or of ours."""
    with torch.no_grad():
        if isinstance(model, T5):
            return model(src, tgt, src != PAD)
        return model(input_ids=src, decoder_input_ids=tgt, attention_mask=(src != PAD).long()).logits


def again(folder):
    """What transformers computes of a folder."""
    return transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def same_t5(theirs, ours):
    src, tgt = odd_batch()
    return near(t5_logits(ours, src, tgt), t5_logits(theirs, src, tgt), 2e-5)


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


# GPT


def their_gpt(cls, **changes):
    torch.manual_seed(3)
    model = getattr(transformers, cls)(transformers.OpenAIGPTConfig(**{**GPT_SIZES, **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


def gpt_ids(b=3, t=17, v=93):
    return torch.randint(v, (b, t), generator=torch.Generator().manual_seed(4))


def gpt_input(model, ids):
    """[b, t] -> our [b, t, 2]."""
    transformer = model.transformer
    return torch.stack([ids, transformer.n_vocab - transformer.n_ctx + torch.arange(ids.shape[1]).expand_as(ids)], -1)


@torch.no_grad()
def same_gpt(theirs, ours):
    """Whether hidden states and, where there are some, logits are the same."""
    ids = gpt_ids()
    x, output = gpt_input(ours, ids), theirs(ids, output_hidden_states=True)
    same = near(ours.transformer(x), output.hidden_states[-1], 1e-5)
    if hasattr(output, "logits"):
        same = same and near(ours(x)[..., :93], output.logits, 1e-5)
    return same


CLASSES = ["OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", CLASSES)
def test_gpt_gives_transformers_logits(tmp_path, cls, form, capsys):
    theirs = their_gpt(cls)
    theirs.save_pretrained(tmp_path)
    FORMS[form](tmp_path)
    ours = LMModel.from_pretrained(tmp_path)
    assert not ours.training and ours.transformer.h[0].attn.n_head == 4
    assert ours.transformer.h[1].mlp.dropout.p == 0.3
    if "float16" in form:
        theirs = getattr(transformers, cls).from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert same_gpt(theirs, ours) and knows(ours)
    assert ("multiple_choice_head" in capsys.readouterr().err) == (cls == "OpenAIGPTDoubleHeadsModel")


@torch.no_grad()
def test_the_multiple_choice_head_is_ours(tmp_path):
    theirs = their_gpt("OpenAIGPTDoubleHeadsModel")
    theirs.save_pretrained(tmp_path)
    ours = DoubleHeadModel.from_pretrained(tmp_path, clf_token=92, n_special=0)
    ids = gpt_ids(b=6).view(3, 2, 17).clamp(max=91)
    at = torch.tensor([[16, 3], [0, 9], [11, 12]])
    ids.scatter_(2, at[..., None], 92)
    x = torch.stack([ids, 93 + torch.arange(17).expand_as(ids)], -1)
    output = theirs(ids, mc_token_ids=at)
    lm_logits, choices = ours(x)
    assert near(choices, output.mc_logits, 1e-5)
    assert near(lm_logits.view(3, 2, 16, -1)[..., :93], output.logits[:, :, :-1], 1e-5)
    assert near(task_logits(ours, x), output.mc_logits, 1e-5)
    special = DoubleHeadModel.from_pretrained(tmp_path)  # with the paper's three special tokens
    assert special.task_head.clf_token == 95 and special.transformer.n_vocab == 93 + 3 + 19
    assert torch.equal(special.task_head.linear.weight, theirs.multiple_choice_head.summary.weight)
    other = DoubleHeadModel.from_pretrained(tmp_path, "inference")
    assert other.task_head.linear.weight.shape == (3, 36)
    with pytest.raises(BadInput, match="clf_token is None, expected an id from 0 to 92"):
        DoubleHeadModel.from_pretrained(tmp_path, n_special=0)
    with pytest.raises(BadInput, match="clf_token is 96, expected an id from 0 to 95"):
        DoubleHeadModel.from_pretrained(tmp_path, clf_token=96)


def test_a_classifier_of_transformers_is_left_out(tmp_path, capsys):
    theirs = their_gpt("OpenAIGPTForSequenceClassification", num_labels=3)
    theirs.save_pretrained(tmp_path)
    ours = LMModel.from_pretrained(tmp_path)
    assert "score.weight left out" in capsys.readouterr().err
    report = load_openai_pretrained_model(ours, n_transfer=2, n_embd=36, path=tmp_path)
    assert report["left_out"] == ["score.weight"] and not report["fresh"]
    assert "left out: score.weight" in capsys.readouterr().out
    ids = gpt_ids()
    with torch.no_grad():
        assert near(ours.transformer(gpt_input(ours, ids)), theirs.transformer(ids).last_hidden_state, 1e-5)


def test_gpt_finds_the_tokens_under_each_name(tmp_path):
    theirs = their_gpt("OpenAIGPTLMHeadModel")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tokens = tensors.pop("transformer.tokens_embed.weight")
    tensors["transformer.h.1.attn.bias"] = torch.ones(1, 1, 19, 19, dtype=torch.uint8)
    tensors["position_ids"] = torch.arange(19)
    usual = "transformer.tokens_embed.weight"
    for names in (["lm_head.weight"], ["lm_head.decoder.weight"], [usual, "lm_head.weight"]):
        copies = {name: tokens.clone() for name in names}
        save_file(tensors | copies, file)
        assert same_gpt(theirs, LMModel.from_pretrained(tmp_path))
    copies["lm_head.weight"][1, 2] += 1
    save_file(tensors | copies, file)
    with pytest.raises(BadInput, match="lm_head.weight differs from tokens_embed.weight"):
        LMModel.from_pretrained(tmp_path)
    save_file(tensors | {"lm_head.weight": tokens, "h.0.attn.c_attn.lora_A.weight": torch.ones(3)}, file)
    with pytest.raises(BadInput, match="holds h.0.attn.c_attn.lora_A.w, which no GPT has"):
        LMModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("key, value", [
    ("n_embd", 48), ("n_layer", 3), ("vocab_size", 96), ("n_positions", 512), ("n_special", 3), ("afn", "tanh"),
    ("layer_norm_epsilon", 1e-6), ("model_type", "gpt2"), ("n_head", 5), ("n_head", "4"), ("resid_pdrop", 1)])
def test_what_gpts_config_json_says_is_obeyed_or_refused_in_one_line(tmp_path, key, value):
    their_gpt("OpenAIGPTLMHeadModel").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(BadInput) as error:
        LMModel.from_pretrained(tmp_path)
    assert f"config.json: {key} is {json.dumps(value)}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("afn", ["gelu", "relu", "silu", "swish"])
def test_each_activation_of_transformers_gpt(tmp_path, afn):
    theirs = their_gpt("OpenAIGPTLMHeadModel", afn=afn, n_head=3)
    theirs.save_pretrained(tmp_path)
    assert same_gpt(theirs, LMModel.from_pretrained(tmp_path))


class Pieces(dotdict):
    """What export_hub_model asks of an encoder."""


def pieces_for(n_vocab, folder):
    """An encoder of n_vocab pieces, made of the small vocabulary of the tests."""
    small = TextEncoder(*write_small_vocabulary(folder))
    pieces = [*small.encoder, *(f"piece{i}" for i in range(n_vocab - len(small.encoder)))]
    return Pieces(encoder={piece: i for i, piece in enumerate(pieces[:n_vocab])}, bpe_ranks=small.bpe_ranks)


@pytest.mark.parametrize("afn", ACT_FNS)
def test_an_exported_gpt_is_read_by_transformers_and_by_us(tmp_path, afn):
    ours = enlarge(small_lm(n_vocab=97, n_ctx=23, afn=afn), 4).eval()
    encoder = pieces_for(97, tmp_path)
    folder = tmp_path / "out"
    export_hub_model(ours, folder, encoder)
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(theirs).__name__ == "OpenAIGPTLMHeadModel"
    ids = gpt_ids(v=97)
    with torch.no_grad():
        wanted = ours(gpt_input(ours, ids))[..., :97]
        assert near(theirs(ids).logits, wanted, 1e-5)
        back = LMModel.from_pretrained(folder)
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), back.parameters(), strict=True))
        new = theirs.generate(ids[:, :5], max_new_tokens=9, do_sample=False, pad_token_id=0)
        for t in range(5, new.shape[1]):
            assert torch.equal(new[:, t], ours(gpt_input(ours, new[:, :t]))[:, -1, :97].argmax(-1))
    for tokenizer in (transformers.AutoTokenizer.from_pretrained(folder),
                      transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))):
        small = TextEncoder(tmp_path / "encoder_bpe_40000.json", tmp_path / "vocab_40000.bpe")
        for text in ("The newer, the lower!", "low 12 new-er ones", "a\nb"):
            assert tokenizer(text)["input_ids"] == [i for i in small.encode([text])[0] if small.decoder[i] != "\n</w>"]
    theirs.save_pretrained(tmp_path / "their own")
    last = LMModel.from_pretrained(tmp_path / "their own")
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), last.parameters(), strict=True))


@torch.no_grad()
def test_an_exported_double_head_model_keeps_its_special_tokens_and_its_head(tmp_path):
    ours = enlarge(small_double(), 4).eval()
    folder = tmp_path / "out"
    with pytest.raises(BadInput, match="97 pieces, but the model has 100 rows"):
        export_hub_model(ours, folder, pieces_for(97, tmp_path))
    assert not folder.exists()
    export_hub_model(ours, folder, pieces_for(100, tmp_path))
    theirs = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(folder).eval()
    ids = gpt_ids(b=6).view(3, 2, 17)
    ids[..., 16] = 99
    x = torch.stack([ids, 100 + torch.arange(17).expand_as(ids)], -1)
    output = theirs(ids, mc_token_ids=torch.full((3, 2), 16))
    lm_logits, choices = ours(x)
    assert near(output.mc_logits, choices, 1e-5)
    assert near(output.logits[:, :, :-1], lm_logits.view(3, 2, 16, -1)[..., :100], 1e-5)
    back = DoubleHeadModel.from_pretrained(folder, clf_token=99, n_special=0)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), back.parameters(), strict=True))


def test_the_released_format_says_heads_and_activation_beside_it(tmp_path):
    ours = small_lm(n_head=4, afn="swish")
    export_openai_model(ours, str(tmp_path))
    released = read_pretrained(tmp_path)
    assert (released.n_head, released.afn) == (4, "swish")
    back = LMModel.from_pretrained(tmp_path)
    ids = gpt_ids()
    with torch.no_grad():
        assert torch.equal(ours.eval()(gpt_input(ours, ids)), back(gpt_input(back, ids)))
    for change, line in ((dict(n_head=3), "n_head is 3, but the model in .* has 4 heads"),
                         (dict(afn="gelu"), "afn is gelu, but the model in .* has swish")):
        other = small_lm(**dict(n_head=4, afn="swish") | change)
        with pytest.raises(BadInput, match=line):
            load_openai_pretrained_model(other, n_transfer=2, n_embd=36, path=str(tmp_path))
    (tmp_path / "config.json").unlink()
    assert read_pretrained(tmp_path).n_head is None
    with pytest.raises(BadInput, match="has no config.json"):
        LMModel.from_pretrained(tmp_path)


def test_openais_sizes_without_config_mean_twelve_heads_and_gelu(monkeypatch, tmp_path):
    ours = small_lm()
    export_openai_model(ours, str(tmp_path))
    (tmp_path / "config.json").unlink()
    monkeypatch.setattr("formats.gpt_files.OPENAI_SIZES", (23, 97, 36, 2))
    assert (read_pretrained(tmp_path).n_head, read_pretrained(tmp_path).afn) == (12, "gelu")


# state dicts of wrapped models


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_state_dicts_of_wrapped_models_load(prefix):
    for make in (small_lm, small_double, small_model):
        source, target = make(seed=1), make(seed=2)
        target.load_state_dict({prefix + name: p for name, p in source.state_dict().items()})
        assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_state_dicts_of_models_with_compiled_parts_load_both_ways():
    for make, parts in ((small_lm, lambda m: m.transformer.h), (small_model, lambda m: m.decoder.block)):
        source, target = make(seed=1), make(seed=2)
        parts(source)[1] = torch.compile(parts(source)[1])
        assert any("._orig_mod." in name for name in source.state_dict())
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))
        source.load_state_dict(source.state_dict())
        with pytest.raises(RuntimeError, match="Unexpected"):
            target.load_state_dict(source.state_dict() | {"more": torch.ones(1)})


# names of repositories


def test_paths_never_ask_the_hub_and_names_do(monkeypatch, tmp_path):
    def ask(name, revision=None):
        raise RuntimeError(f"asked for {name} {revision}")

    monkeypatch.setattr("huggingface_hub.model_info", ask)
    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "save").mkdir()
    for path in ("nowhere", "model/", "save/run", "./a/b", "a/b/c", str(tmp_path / "x"), "~/model"):
        assert local_folder(path) == path
    for load in (LMModel.from_pretrained, DoubleHeadModel.from_pretrained, T5.from_pretrained):
        with pytest.raises(BadInput, match="somebody/their-model: no such folder here; .*asked for .* v1"):
            load("somebody/their-model", revision="v1")
        with pytest.raises(MissingInput, match="nowhere"):
            load("nowhere")


def test_a_repository_is_read_from_where_the_library_put_it(monkeypatch, tmp_path):
    their_t5("v1.1").save_pretrained(tmp_path / "t5")
    their_gpt("OpenAIGPTDoubleHeadsModel").save_pretrained(tmp_path / "gpt")
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, revision: Pieces(
        siblings=[Pieces(rfilename=file.name) for file in (tmp_path / name.split("/")[1]).iterdir()]))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, allow_patterns: str(
        tmp_path / name.split("/")[1]))
    for load, name in ((T5.from_pretrained, "t5"), (LMModel.from_pretrained, "gpt"),
                       (DoubleHeadModel.from_pretrained, "gpt")):
        here, there = load(tmp_path / name), load(f"somebody/{name}")
        kept = [n for n, p in here.named_parameters() if "embed" not in n]  # DoubleHeadModel's special rows are fresh
        assert all(torch.equal(here.state_dict()[n], there.state_dict()[n]) for n in kept)
