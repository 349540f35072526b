"""T5's checkpoints: the names of the variables, reading Google's and the Hub's files, writing the Hub's.

Knows the formats, not the model, which it only asks for its parameters and sizes. t5_pytorch offers the same functions.
"""

import os
import re

import torch
from safetensors.torch import save_file

from formats import tf_checkpoint
from formats.config_files import check_rates, check_sizes, check_values, read_config, write_config
from formats.errors import BadInput, MissingInput, warn
from formats.files import write_atomically
from formats.mapped import copy_into
from formats.tensor_files import (
    Report,
    find_tensor_files,
    merge_copies,
    plain_names,
    read_tensors,
    require_floats,
    same,
)

PAD, EOS, START = 0, 1, 0
IGNORED = -100  # a label that the losses leave out, as F.cross_entropy does
NUM_BUCKETS, MAX_DISTANCE, EPSILON = 32, 128, 1e-6
FEED_FORWARD_KINDS = ("relu", "gated-gelu")
VOCABULARY = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one matrix
LOGITS = "lm_head.weight"
OTHER_HEADS = ("classification_head.", "classifier.", "qa_outputs.")  # of transformers' other T5 classes
# An early conversion of version 1.0 kept a bias table that cross-attention never had a use for.
LEFTOVER = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


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


def load_t5_pretrained_model(model: torch.nn.Module, path: str, fresh: tuple = ()) -> Report:
    """Copy a released checkpoint into `model`. Names, count and shapes are checked before anything is.

    Args:
        model: a T5 of the checkpoint's size; see T5_CONFIGS and read_t5_config.
        path: a TensorFlow checkpoint (folder or prefix, as tf_checkpoint.read_checkpoint), or the Hub's
            model.safetensors or pytorch_model.bin (the file, or a folder with it or with its parts).
        fresh: names of parameters that the checkpoint may lack; they keep their values. Where the checkpoint is an
            encoder alone, those of the decoder may be lacking too.
    Returns:
        {"loaded": [parameter names], "fresh": [parameter names left as they were], "left_out": [names in the
        file of what a T5 does not have: the heads of transformers' classifiers]}.
    Raises:
        MissingInput: nothing at path.
        BadInput: damaged, or not the checkpoint of this model, or config.json beside it says that the numbers would
            be others; the model is untouched.
    """
    path, left_out = os.fspath(path), []
    parameters = dict(model.named_parameters())
    if path.endswith((".safetensors", ".bin")) or find_tensor_files(path)[0] and not path.endswith(".index"):
        tensors, left_out = _read_hub(path, model)
        names = {name: checkpoint_names(name)[1] for name in parameters}
        if not any(name.startswith("decoder.") or name == LOGITS for name in tensors):
            fresh = [*fresh, *(name for name in parameters if name.startswith("decoder."))]
    else:
        try:
            tensors = tf_checkpoint.read_checkpoint(path)
        except MissingInput as error:
            raise MissingInput(f"{error}; or give a folder with the Hub's model.safetensors or "
                               "pytorch_model.bin") from None
        rms_norm = any("rms_norm/" in name for name in tensors)
        names = {name: checkpoint_names(name, rms_norm)[0] for name in parameters}
        tensors = {name: tensor if tensor.dim() < 2 or name.endswith("embedding") else tensor.t()  # [in, out]
                   for name, tensor in tensors.items()}
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
                       "the entry of T5_CONFIGS that the checkpoint was made with, or with read_t5_config")
    require_floats(tensors, path)
    _require_config(model, path, with_logits="decoder.logits.weight" not in fresh)
    copy_into([(parameters[name], tensors.pop(names[name])) for name in loaded])
    kept = [name for name in parameters if name not in loaded]
    if left_out or any(name.startswith("decoder.block.") for name in kept):
        warn(f"{path}: {len(kept)} variables are not in it and stay as they were ({', '.join(kept[:1])}...); "
             f"{len(left_out)} in it are left out ({', '.join(left_out[:1])}...)")
    return Report(loaded=loaded, fresh=kept, left_out=left_out)


def _read_hub(path, model):
    """Return ({name: tensor} of the Hub's layout as the model has them, [names of heads left out])."""
    tensors = plain_names(read_tensors(path), path)
    tensors.pop(LEFTOVER, None)
    left_out = [name for name in tensors if name.startswith(OTHER_HEADS)]
    for name in left_out:
        del tensors[name]
    tied = EMBEDDINGS if model.tie_token_emb else EMBEDDINGS[2:]
    weight = merge_copies(tensors, (*tied, LOGITS) if model.tie_logits else tied, path)
    if weight is not None:
        tensors[tied[0]] = weight
    return tensors, left_out


def _require_config(model, path, with_logits):
    """Raise BadInput where config.json beside the weights says what the model does not do and no shape shows."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    if not os.path.isfile(os.path.join(folder, "config.json")):
        return
    config = _read_config(path, look=False)  # whose logits are tied shows in the shapes
    first, last = model.encoder.block[0].layer[0].SelfAttention, model.encoder.block[0].layer[-1].DenseReluDense
    wanted = {"scale_logits": config.get("scale_logits", config["tie_logits"]), "enc_heads": config["enc_heads"],
              "max_distance": config.get("max_distance", MAX_DISTANCE), "epsilon": config.get("epsilon", EPSILON),
              "feed_forward": config["feed_forward"]}
    found = {"scale_logits": model.scale_logits, "enc_heads": first.heads, "max_distance": first.max_distance,
             "epsilon": model.encoder.final_layer_norm.epsilon, "feed_forward": FEED_FORWARD_KINDS[last.gated]}
    for name in wanted if with_logits else list(wanted)[1:]:
        if found[name] != wanted[name]:
            raise BadInput(f"{os.path.join(folder, 'config.json')}: describes a T5 with {name} {wanted[name]}, but the "
                           f"model has {found[name]}; build it with read_t5_config")


def read_t5_config(path: str) -> dict:
    """Return the constructor arguments of T5 that config.json in a folder of the Hub's layout describes.

    Every value that changes numbers is used or refused; those that all released models share are left out.
    tie_word_embeddings means two things. In transformers 4: the logits come from the embedding, and only then what
    they are made of is scaled. Version 5 writes scale_decoder_outputs for the second, and ties what the
    weights do not hold a second time: there the folder's weights are looked at.

    Args:
        path: the folder, or a file of weights in it.
    Raises:
        MissingInput, BadInput: absent, or not the configuration of a T5, or a value that is not supported.
    """
    return _read_config(path, look=True)


def _read_config(path, look):
    """As read_t5_config; without `look` no file of weights is opened, and tie_logits may be wrong."""
    folder = path if os.path.isdir(path) or not os.path.isfile(path) else os.path.dirname(path)
    config, file = read_config(folder)
    if not os.path.isfile(file):
        raise MissingInput(f"{file}: not found; copy it from the model's folder on the Hugging Face Hub")
    check_values(config, file, {"model_type": ("t5", "mt5"), "tie_word_embeddings": (True, False),
                                "scale_decoder_outputs": (True, False), "is_decoder": (False,)})
    multilingual = config.get("model_type") == "mt5"
    # what older configurations leave out
    config = {"feed_forward_proj": "gated-gelu" if multilingual else "relu", "dropout_rate": 0.1,
              "tie_word_embeddings": not multilingual, "relative_attention_num_buckets": NUM_BUCKETS,
              "relative_attention_max_distance": MAX_DISTANCE, "layer_norm_epsilon": EPSILON, **config}
    if config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config.get("num_layers")
    check_sizes(config, file, ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "num_decoder_layers", "vocab_size",
                               "relative_attention_num_buckets", "relative_attention_max_distance"))
    check_rates(config, file, ("dropout_rate", "layer_norm_epsilon"))
    check_values(config, file, {"feed_forward_proj": FEED_FORWARD_KINDS})
    gated = config["feed_forward_proj"] == "gated-gelu"
    check_values(config, file, {"is_gated_act": (gated,), "dense_act_fn": ("gelu_new" if gated else "relu",)})
    for values, where in ((config, file), read_config(folder, "generation_config.json")):
        check_values(values, where, {"pad_token_id": (PAD, None), "eos_token_id": (EOS, [EOS], None),
                                     "decoder_start_token_id": (START, None)})
    tie_logits, scale_logits = _logits(config, file, multilingual, path if look else None)
    both = {"num_tokens": config["vocab_size"], "heads": config["num_heads"], "dim_head": config["d_kv"]}
    unusual = {"scale_logits": (scale_logits, tie_logits), "epsilon": (config["layer_norm_epsilon"], EPSILON),
               "num_buckets": (config["relative_attention_num_buckets"], NUM_BUCKETS),
               "max_distance": (config["relative_attention_max_distance"], MAX_DISTANCE)}
    return dict(dim=config["d_model"], d_ff=config["d_ff"], dropout=config["dropout_rate"],
                feed_forward=config["feed_forward_proj"], tie_logits=tie_logits,
                enc_depth=config["num_layers"], dec_depth=config["num_decoder_layers"],
                **{f"{side}_{name}": value for side in ("enc", "dec") for name, value in both.items()},
                **{name: value for name, (value, usual) in unusual.items() if value != usual})


def _logits(config, file, multilingual, path):
    """Return (tie_logits, scale_logits) of a configuration and the weights at a path; see read_t5_config."""
    tied = config["tie_word_embeddings"]
    version = str(config.get("transformers_version", "")).split(".")[0]
    of_5 = "scale_decoder_outputs" in config or version.isdecimal() and int(version) >= 5
    if not of_5:
        if multilingual and tied:
            raise BadInput(f"{file}: tie_word_embeddings is true, supported for mt5 is false: what made this file is "
                           "not known, and transformers 4 and 5 compute different logits of it")
        return tied, tied
    own = None if path is None else _holds_own_logits(path)
    scaled = False if multilingual else config.get("scale_decoder_outputs", tied)
    return tied if own is None else not own, scaled


def _holds_own_logits(path):
    """Whether the weights at a path hold logits that are not the embedding; None where there are no weights."""
    if not find_tensor_files(path)[0]:
        return None
    tensors = plain_names(read_tensors(path), path)
    embedding = next((tensors[name] for name in EMBEDDINGS if name in tensors), None)
    return LOGITS in tensors and embedding is not None and not same(tensors[LOGITS], embedding)


def export_t5_model(model: torch.nn.Module, path: str) -> None:
    """Write a T5 to the folder `path` in the Hub's layout: config.json and model.safetensors.

    load_t5_pretrained_model and T5ForConditionalGeneration of transformers 4 and 5 read it: the same logits.

    Raises:
        BadInput: the layout cannot say what the model is: source and target differ in embedding, heads or inner width,
            or logits of its own are scaled; or the folder cannot be written.
    """
    def sizes(stack):
        layers = stack.block[0].layer
        attention = layers[0].SelfAttention
        return {"num_heads": attention.heads, "d_kv": attention.q.weight.shape[0] // attention.heads,
                "d_ff": layers[-1].DenseReluDense.wo.weight.shape[1]}

    if not model.tie_token_emb or sizes(model.encoder) != sizes(model.decoder):
        raise BadInput("the Hub's layout knows one embedding, and two stacks of the same heads and inner width; "
                       "this T5 differs")
    if model.scale_logits and not model.tie_logits:
        raise BadInput("the Hub's layout knows no logits of their own that are scaled; this T5 has tie_logits=False "
                       "and scale_logits=True")
    first, last = model.encoder.block[0].layer[0].SelfAttention, model.encoder.block[0].layer[-1].DenseReluDense
    # Version 4 scales where it ties, so it is told not to tie where nothing is scaled. Then it wants the logits'
    # weights in the file. Version 5 finds that they are the embedding's and ties them.
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
              "vocab_size": len(model.shared.weight), "d_model": model.dim, **sizes(model.encoder),
              "num_layers": len(model.encoder.block), "num_decoder_layers": len(model.decoder.block),
              "feed_forward_proj": FEED_FORWARD_KINDS[last.gated], "tie_word_embeddings": model.scale_logits,
              "scale_decoder_outputs": model.scale_logits, "dropout_rate": model.encoder.dropout.p,
              "layer_norm_epsilon": model.encoder.final_layer_norm.epsilon,
              "relative_attention_num_buckets": first.relative_attention_bias.num_embeddings,
              "relative_attention_max_distance": first.max_distance,
              "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": START}
    write_config(path, config)
    tensors = {checkpoint_names(name)[1]: parameter.detach().contiguous()
               for name, parameter in model.named_parameters()}
    if not model.scale_logits:
        tensors.setdefault(LOGITS, tensors["shared.weight"].clone())
    with write_atomically(os.path.join(path, "model.safetensors")) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def copy_t5_vocabulary(source: str, folder: str) -> None:
    """Copy the files of T5's vocabulary, in whichever form they are there, from one folder to another."""
    for name in VOCABULARY:
        if os.path.isfile(os.path.join(source, name)):
            with open(os.path.join(source, name), "rb") as f, \
                    write_atomically(os.path.join(folder, name)) as temporary, open(temporary, "wb") as copy:
                copy.write(f.read())
