"""T5's checkpoints: the names of the variables, reading Google's and the Hub's files, writing the Hub's.

Knows the formats, not the model, which it only asks for its parameters. t5_pytorch offers the same functions.
"""

import glob
import json
import os
import re

import torch
from safetensors.torch import load_file, save_file

from formats import tf_checkpoint
from formats.errors import BadInput, MissingInput
from formats.files import write_atomically

PAD, EOS, START = 0, 1, 0
IGNORED = -100  # a label that the losses leave out, as F.cross_entropy does
NUM_BUCKETS, MAX_DISTANCE = 32, 128
FEED_FORWARD_KINDS = ("relu", "gated-gelu")


def checkpoint_names(name, rms_norm=False):
    """The names a parameter of T5 has in the two kinds of released checkpoints.

        encoder.block.0.layer.0.layer_norm.scale
            encoder/block_000/layer_000/layer_norm/scale    encoder.block.0.layer.0.layer_norm.weight

    Args:
        name: as in model.named_parameters().
        rms_norm: the newer TensorFlow names of the norms (version 1.1).
    Returns:
        (TensorFlow's name, the Hub's name in T5ForConditionalGeneration).
    """
    hub = name.replace(".scale", ".weight").replace("decoder.logits.", "lm_head.")
    hub = hub.replace("coder.embedding.", "coder.embed_tokens.")
    tf = re.sub(r"(block|layer)\.(\d+)", lambda m: f"{m[1]}_{int(m[2]):03d}", name).replace(".", "/")
    tf = re.sub(r"(wi|wi_0|wi_1|wo|logits)/weight$", r"\1/kernel", tf)
    tf = tf.replace("shared/weight", "shared/embedding").removesuffix("/weight")
    if rms_norm:
        tf = re.sub(r"(final_)?layer_norm/scale", "rms_norm/scale", tf)
    return tf, hub


def load_t5_pretrained_model(model, path, fresh=()):
    """Copy a released checkpoint into `model`. Names, count and shapes are checked before anything is.

    Args:
        model: a T5 of the checkpoint's size; see T5_CONFIGS.
        path: a TensorFlow checkpoint (folder or prefix, as tf_checkpoint.read_checkpoint), or the Hub's
            model.safetensors (the file, or a folder with it or with its parts model-0000x-of-0000y).
        fresh: names of parameters that the checkpoint may lack; they keep their values.
    Returns:
        {"loaded": [parameter names], "fresh": [parameter names left as they were]}.
    Raises:
        MissingInput: nothing at path.
        BadInput: damaged, or not the checkpoint of this model; the model is untouched.
    """
    path = os.fspath(path)
    files = _hub_files(path)
    if files:
        tensors = _read_hub(files, tied=model.tie_logits)
        names = {name: checkpoint_names(name)[1] for name, _ in model.named_parameters()}
    else:
        try:
            tensors = tf_checkpoint.read_checkpoint(path)
        except MissingInput as error:
            raise MissingInput(f"{error}; or give a folder with the Hub's model.safetensors") from None
        rms_norm = any("rms_norm/" in name for name in tensors)
        names = {name: checkpoint_names(name, rms_norm)[0] for name, _ in model.named_parameters()}
        tensors = {name: tensor if tensor.dim() < 2 or name.endswith("embedding") else tensor.t()  # [in, out]
                   for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    loaded = [name for name in parameters if names[name] in tensors or name not in fresh]
    lacking = [names[name] for name in loaded if names[name] not in tensors]
    foreign = sorted(tensors.keys() - set(names.values()))
    misfits = [f"{names[name]} {list(tensors[names[name]].shape)} instead of {list(parameters[name].shape)}"
               for name in loaded
               if names[name] in tensors and tensors[names[name]].shape != parameters[name].shape]
    problems = [f"{what} {len(found)}, such as {found[0]}" for what, found in (
        ("variables lacking:", lacking), ("unknown:", foreign), ("of another shape:", misfits)) if found]
    if problems:
        raise BadInput(f"{path}: is not a checkpoint of this model ({'; '.join(problems)}); build the T5 with "
                       "the entry of T5_CONFIGS that the checkpoint was made with")
    with torch.no_grad():
        for name in loaded:
            parameters[name].copy_(tensors[names[name]])
    return {"loaded": loaded, "fresh": [name for name in parameters if name not in loaded]}


def _hub_files(path):
    """The .safetensors files at path: itself, or a folder's model.safetensors, or its parts."""
    if path.endswith(".safetensors"):
        return [path]
    whole = os.path.join(path, "model.safetensors")
    if os.path.isfile(whole):
        return [whole]
    parts = sorted(glob.glob(os.path.join(glob.escape(path), "model-*-of-*.safetensors")))
    if parts and len(parts) != int(re.search(r"(\d+)\.safetensors$", parts[0])[1]):
        raise MissingInput(f"{path}: has {len(parts)} of the parts that {os.path.basename(parts[0])} belongs to; "
                           "download the others too")
    return parts


def _read_hub(files, tied):
    """Read {name: tensor} of the Hub's layout, without the copies and leftovers some files contain."""
    tensors = {}
    for file in files:
        if not os.path.isfile(file):
            raise MissingInput(f"{file}: not found; expected model.safetensors of a T5 from the Hugging Face Hub")
        try:
            tensors.update(load_file(file))
        except Exception as error:  # the library raises its own type, OSError or ValueError
            raise BadInput(f"{file}: cannot be read as safetensors ({str(error).splitlines()[0][:150]}); "
                           "download it again") from None
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] + ["lm_head.weight"] * tied
    for name in copies:
        if name in tensors and "shared.weight" in tensors and tensors[name].equal(tensors["shared.weight"]):
            del tensors[name]
    # An early conversion of version 1.0 kept a bias table that cross-attention never had a use for.
    tensors.pop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None)
    return tensors


def read_t5_config(path):
    """Return the constructor arguments of T5 that config.json in a folder of the Hub's layout describes.

    Raises:
        MissingInput, BadInput: absent, or not the configuration of a T5.
    """
    file = os.path.join(path, "config.json")
    if not os.path.isfile(file):
        raise MissingInput(f"{file}: not found; copy it from the model's folder on the Hugging Face Hub")
    try:
        with open(file, encoding="utf-8") as f:
            config = json.load(f)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: is not JSON in UTF-8 ({str(error)[:100]}); download it again") from None
    # what older configurations leave out
    config = {"feed_forward_proj": "relu", "tie_word_embeddings": True, "dropout_rate": 0.1, **config} \
        if isinstance(config, dict) else {}
    config.setdefault("num_decoder_layers", config.get("num_layers"))
    sizes = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers", "vocab_size")
    wrong = [name for name in sizes if type(config.get(name)) is not int or not 0 < config[name] < 1 << 24]
    wrong += ["feed_forward_proj"] * (config.get("feed_forward_proj") not in FEED_FORWARD_KINDS)
    wrong += ["tie_word_embeddings"] * (type(config.get("tie_word_embeddings")) is not bool)
    rate = config.get("dropout_rate")
    wrong += ["dropout_rate"] * (type(rate) not in (int, float) or not 0 <= rate < 1)
    if wrong:
        raise BadInput(f"{file}: {wrong[0]} is {config.get(wrong[0])!r}; expected the configuration of a T5")
    both = {"num_tokens": config["vocab_size"], "heads": config["num_heads"], "dim_head": config["d_kv"]}
    return dict(dim=config["d_model"], d_ff=config["d_ff"], dropout=config["dropout_rate"],
                feed_forward=config["feed_forward_proj"], tie_logits=config["tie_word_embeddings"],
                enc_depth=config["num_layers"], dec_depth=config["num_decoder_layers"],
                **{f"{side}_{name}": value for side in ("enc", "dec") for name, value in both.items()})


def export_t5_model(model, path):
    """Write a T5 to the folder `path` in the Hub's layout: config.json and model.safetensors.

    load_t5_pretrained_model and transformers' T5ForConditionalGeneration read it.

    Raises:
        BadInput: source and target differ in embedding, heads or inner width, which the layout cannot say; or the
            folder cannot be written.
    """
    def sizes(stack):
        layers = stack.block[0].layer
        attention = layers[0].SelfAttention
        return {"num_heads": attention.heads, "d_kv": attention.q.weight.shape[0] // attention.heads,
                "d_ff": layers[-1].DenseReluDense.wo.weight.shape[1]}

    if not model.tie_token_emb or sizes(model.encoder) != sizes(model.decoder):
        raise BadInput("the Hub's layout knows one embedding, and two stacks of the same heads and inner width; "
                       "this T5 differs")
    gated = model.encoder.block[0].layer[-1].DenseReluDense.gated
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
              "vocab_size": len(model.shared.weight), "d_model": model.dim, **sizes(model.encoder),
              "num_layers": len(model.encoder.block), "num_decoder_layers": len(model.decoder.block),
              "feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": model.tie_logits,
              "dropout_rate": model.encoder.dropout.p, "layer_norm_epsilon": 1e-6,
              "relative_attention_num_buckets": NUM_BUCKETS, "relative_attention_max_distance": MAX_DISTANCE,
              "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": START}
    with write_atomically(os.path.join(path, "config.json")) as temporary, open(temporary, "w") as f:
        json.dump(config, f, indent=2)
    tensors = {checkpoint_names(name)[1]: parameter.detach().contiguous()
               for name, parameter in model.named_parameters()}
    with write_atomically(os.path.join(path, "model.safetensors")) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
