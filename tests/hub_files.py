"""Small models that transformers wrote, in the forms of file that people have them in, and what it computes of them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_t5 import near, odd_batch

from t5_pytorch import PAD, T5

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
