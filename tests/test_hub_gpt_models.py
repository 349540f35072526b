"""GPT models that transformers wrote give us its logits, and ours it theirs; wrapped models; names on the Hub."""

import json

import pytest
import torch
from conftest import write_small_vocabulary
from hub_files import (
    FORMS,
    gpt_ids,
    gpt_input,
    same_gpt,
    their_gpt,
    their_t5,
    transformers,
)
from safetensors.torch import load_file, save_file
from small_gpt import enlarge, small_lm
from small_gpt import small_model as small_double
from small_t5 import near, small_model

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
from t5_pytorch import T5
from text_utils import TextEncoder

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
