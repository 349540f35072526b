"""The files of a GPT: OpenAI's ten .npy pieces, or the Hub's model.safetensors or pytorch_model.bin, as arrays by name.

Knows the formats, not the model; gpt_weights puts the arrays in place.
"""

import json
import os
import re
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from formats.config_files import check_rates, check_sizes, check_values, read_config, write_config
from formats.errors import OPENAI_MODEL, BadInput, MissingInput
from formats.files import is_lfs_pointer, read_text, write_atomically
from formats.lstm_files import holds_lstm
from formats.mapped import Pieces
from formats.tensor_files import find_tensor_files, merge_copies, plain_names, read_tensors, require_floats

N_FILES = 10
WHERE_FROM = f"{OPENAI_MODEL}, or train without it (--n_transfer -1)"
LAYER_NAMES = ["attn.c_attn.w", "attn.c_attn.b", "attn.c_proj.w", "attn.c_proj.b", "ln_1.g", "ln_1.b",
               "mlp.c_fc.w", "mlp.c_fc.b", "mlp.c_proj.w", "mlp.c_proj.b", "ln_2.g", "ln_2.b"]


OPENAI_SIZES = (512, 40478, 768, 12)  # n_ctx, n_vocab, n_embd, n_layer
EPSILON = 1e-5
TOKENS = ("tokens_embed.weight", "lm_head.weight", "lm_head.decoder.weight")  # one matrix
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|position_ids")  # masks and counts, which are no weights
HEADS = ("multiple_choice_head.", "score.")  # of transformers' classifiers
CHOICE_HEAD = re.compile(r"multiple_choice_head\.(summary|linear)\.(weight|bias)")  # ours: MultipleChoiceHead.linear
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "swish", "silu": "swish"}  # theirs -> ours
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


class Released(NamedTuple):
    """A released GPT: its arrays by parameter name, its sizes, and what its configuration says.

    The arrays are tensors of the type that they have in the file, or Pieces of such, mapped from it. The names are
    TransformerModel's, with 'positions' [n_ctx, n_embd] and 'tokens' [n_vocab, n_embd] in place of embed.weight.
    n_head and afn are None where neither a config.json nor OpenAI's sizes tell. choice_head holds
    the 'weight' [1, n_embd] and 'bias' [1] of a multiple-choice head, if there is one; left_out the names of the
    file's tensors that are in no array; dropouts the rates that config.json gives.
    """

    arrays: dict
    n_ctx: int
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int | None = None
    afn: str | None = None
    choice_head: dict = {}
    left_out: tuple = ()
    dropouts: dict = {}


def released_shapes(n_ctx, n_vocab, n_embd, n_layer):
    """Return the shapes of a released model in file order: positions, tokens, then 12 per layer."""
    d = n_embd
    layer = [[1, d, 3 * d], [3 * d], [1, d, d], [d], [d], [d], [1, d, 4 * d], [4 * d], [1, 4 * d, d], [d], [d], [d]]
    return [[n_ctx, d], [n_vocab, d]] + layer * n_layer


def layer_names(n_layer):
    """Return the parameter names of n_layer layers in file order, 'h.0.attn.c_attn.w' first."""
    return [f"h.{i}.{name}" for i in range(n_layer) for name in LAYER_NAMES]


def _read_shapes(path):
    """Return the list in params_shapes.json after checking that it describes a GPT."""
    text = read_text(path, WHERE_FROM)
    try:
        shapes = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: is not JSON (is it a Git LFS pointer or cut short?); {WHERE_FROM}") from None
    sane = isinstance(shapes, list) and len(shapes) > 2 and all(
        isinstance(s, list) and s and all(type(n) is int and 0 < n < 1 << 31 for n in s) for s in shapes)
    if sane and len(shapes[0]) == len(shapes[1]) == 2:
        expected = released_shapes(shapes[0][0], shapes[1][0], shapes[0][1], (len(shapes) - 2) // 12)
        if shapes == expected:
            return shapes
    found = json.dumps(shapes)
    raise BadInput(f"{path}: the shapes are not those of a GPT; found {found[:80]}{'...' if len(found) > 80 else ''}, "
                   "expected positions [n_ctx, n_embd], tokens [n_vocab, n_embd], then 12 shapes for each layer")


def _open_params(path, expected):
    """Return the memory-mapped float32 vector in one params file of `expected` values."""
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected {expected:,} values; {WHERE_FROM}")
    if is_lfs_pointer(path):
        raise BadInput(f"{path}: is a Git LFS pointer of {os.path.getsize(path)} bytes instead of "
                       f"{expected:,} float32 values; {WHERE_FROM}")
    try:
        with open(path, "rb") as f:
            start = f.read(12)
        header = int.from_bytes(start[8:10 if start[6:7] == b"\1" else 12], "little")  # its length; NumPy takes it all
        values = np.load(path, mmap_mode="c", allow_pickle=False) if header < os.path.getsize(path) else None
    except Exception:  # a damaged header can raise nearly anything, down to the tokenizer's errors of Python itself
        values = None
    if not isinstance(values, np.ndarray):
        raise BadInput(f"{path}: is truncated, pickled or not a NumPy file ({os.path.getsize(path):,} bytes found, "
                       f"expected {expected:,} float32 values, {4 * expected + 128:,} bytes); {WHERE_FROM}")
    if values.dtype != np.dtype("<f4") or values.shape != (expected,):
        raise BadInput(f"{path}: holds {values.dtype} {list(values.shape)}, expected float32 [{expected}]; "
                       f"{WHERE_FROM}")
    return values


def _read_released(path):
    """Return {name: tensor or Pieces} of OpenAI's format, with 'positions' and 'tokens' in place of embed.weight."""
    shapes = _read_shapes(os.path.join(path, "params_shapes.json"))
    ends = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in shapes])
    sizes = [int(ends[-1]) // N_FILES + (i < ends[-1] % N_FILES) for i in range(N_FILES)]  # as np.array_split cuts
    files = [torch.from_numpy(_open_params(os.path.join(path, f"params_{i}.npy"), size))
             for i, size in enumerate(sizes)]
    first = np.cumsum([0, *sizes])  # where each file begins

    def values(start, end, shape):
        parts = [f[max(start - a, 0):end - a] for f, a in zip(files, first, strict=False)
                 if a < end and start < a + len(f)]
        return parts[0].view(shape) if len(parts) == 1 else Pieces(parts, shape)

    names = ["positions", "tokens", *layer_names((len(shapes) - 2) // len(LAYER_NAMES))]
    return {name: values(start, end, shape[-2:])
            for name, shape, start, end in zip(names, shapes, [0, *ends[:-1]], ends, strict=True)}


def _read_hub(path):
    """Return what the Hub's files hold (openai-community/openai-gpt), named as in _read_released.

    Returns:
        ({name: tensor}, {'weight' or 'bias' of a multiple-choice head: tensor}, [names left out]).
    """
    tensors = plain_names(read_tensors(path), path)
    tokens = merge_copies(tensors, TOKENS, path)
    found = {} if tokens is None else {"tokens": tokens}
    left_out = [name for name in tensors if name.startswith(HEADS)]
    head = {match[2]: tensors[name] for name in left_out if (match := CHOICE_HEAD.fullmatch(name))}
    for name, tensor in tensors.items():
        if name in left_out or BUFFERS.fullmatch(name):
            continue
        ours = "positions" if name == "positions_embed.weight" else name
        for hub, tf in ((".weight", ".g" if ".ln_" in ours else ".w"), (".bias", ".b")):
            if ours.endswith(hub):
                ours = ours.removesuffix(hub) + tf
        found[ours] = tensor
    missing = [name for name in ("positions", "tokens") if name not in found]
    if missing or found["positions"].dim() != 2 or found["tokens"].dim() != 2:
        raise BadInput(f"{path}: holds no GPT (no positions_embed.weight [n_ctx, n_embd] and tokens_embed.weight "
                       f"[n_vocab, n_embd]); found {', '.join(list(tensors)[:4])[:200]}; {WHERE_FROM}")
    (n_ctx, d), n_vocab = found["positions"].shape, found["tokens"].shape[0]
    n_layer = len({name.split(".")[1] for name in found if name.startswith("h.")})
    names = ["positions", "tokens", *layer_names(n_layer)]
    for name, shape in zip(names, released_shapes(n_ctx, n_vocab, d, n_layer), strict=True):
        if name not in found or list(found[name].shape) != shape[-2:]:
            what = list(found[name].shape) if name in found else "not there"
            raise BadInput(f"{path}: {name} is {what}, expected {shape[-2:]}; {WHERE_FROM}")
    foreign = next((name for name in found if name not in names), None)
    if foreign is not None:
        raise BadInput(f"{path}: holds {foreign[:80]}, which no GPT has; {WHERE_FROM}")
    require_floats(found, path)
    if {name: list(tensor.shape) for name, tensor in head.items()} != {"weight": [1, d], "bias": [1]}:
        head = {}
    return {name: found[name] for name in names}, head, left_out


def _read_gpt_config(path, sizes):
    """Return what config.json beside the weights says: {'n_head', 'afn'} and dropouts; {} where there is none.

    Args:
        sizes: n_ctx, n_vocab, n_embd, n_layer of the weights.
    Raises:
        BadInput: a value that is not supported or not that of the weights.
    """
    config, file = read_config(path if os.path.isdir(path) else os.path.dirname(path))
    if not os.path.isfile(file):
        return {"n_head": 12, "afn": "gelu"} if sizes == OPENAI_SIZES else {}
    check_values(config, file, {"model_type": ("openai-gpt",)})
    n_ctx, n_vocab, n_embd, n_layer = sizes
    check_values(config, file, {"n_positions": (n_ctx,), "n_ctx": (n_ctx,), "vocab_size": (n_vocab,),
                                "n_embd": (n_embd,), "n_layer": (n_layer,), "n_special": (0,),
                                "layer_norm_epsilon": (EPSILON,), "afn": tuple(ACTIVATIONS)})
    config = {"n_head": 12, "afn": "gelu", **config}  # as transformers takes what a configuration leaves out
    check_sizes(config, file, ("n_head",))
    check_rates(config, file, DROPOUTS)
    if n_embd % config["n_head"]:
        raise BadInput(f"{file}: n_head is {config['n_head']}, which does not divide the width {n_embd} of the weights")
    return {"n_head": config["n_head"], "afn": ACTIVATIONS[config["afn"]],
            "dropouts": {name: config[name] for name in DROPOUTS if name in config}}


def read_pretrained(path):
    """Return the Released model of a folder in OpenAI's format, or of the Hub's files (see find_tensor_files).

    Nothing is unpickled; all but the older pickle form of .bin is memory-mapped.

    Raises:
        MissingInput, BadInput: a file absent, truncated, of another type, or of shapes that do not add up; or a
            config.json beside it that says what the weights are not, or what is not supported.
    """
    path, head, left_out = os.fspath(path), {}, ()
    if os.path.isfile(os.path.join(path, "params_shapes.json")):
        arrays = _read_released(path)
    elif find_tensor_files(path)[0]:
        arrays, head, left_out = _read_hub(path)
    elif holds_lstm(path):
        raise BadInput(f"{path}: holds an LSTM, no GPT; train.py and pretrain.py take it with --architecture lstm, "
                       "ablations.lstm.load_language_model in Python")
    else:
        raise MissingInput(f"{path}: no pretrained model there (neither params_shapes.json nor model.safetensors nor "
                           f"pytorch_model.bin); {WHERE_FROM}")
    n_ctx, n_embd = arrays["positions"].shape
    sizes = n_ctx, len(arrays["tokens"]), n_embd, (len(arrays) - 2) // len(LAYER_NAMES)
    return Released(arrays, *sizes, **_read_gpt_config(path, sizes), choice_head=head, left_out=tuple(left_out))


def gpt_config(n_ctx, n_vocab, n_embd, n_layer, n_head, afn, **others):
    """Return the content of config.json, in transformers' words, for a GPT of these sizes."""
    return {"model_type": "openai-gpt", "vocab_size": n_vocab, "n_positions": n_ctx, "n_ctx": n_ctx, "n_embd": n_embd,
            "n_layer": n_layer, "n_head": n_head, "afn": afn, "layer_norm_epsilon": EPSILON, **others}


def write_released(path, flat, shapes, config):
    """Write the float32 vector `flat` and its list of shapes to the folder `path` in OpenAI's format.

    What the format does not say, heads and activation, is in config.json beside it (see gpt_config).

    Raises:
        BadInput: the folder cannot be written.
    """
    for i, piece in enumerate(np.array_split(flat, N_FILES)):
        with write_atomically(os.path.join(path, f"params_{i}.npy")) as temporary, open(temporary, "wb") as f:
            np.save(f, piece)
    write_config(path, config)
    with write_atomically(os.path.join(path, "params_shapes.json")) as temporary, open(temporary, "w") as f:
        json.dump(shapes, f)


def hub_name(name):
    """'h.0.attn.c_attn.w' -> 'h.0.attn.c_attn.weight', transformers' name of a parameter of a layer."""
    return re.sub(r"\.[wg]$", ".weight", re.sub(r"\.b$", ".bias", name))


def write_hub_model(path, arrays, config, encoder, head=None):
    """Write a GPT to the folder `path` as transformers keeps it; see model_pytorch.export_hub_model.

    Args:
        arrays: {name: tensor}, named as Released.arrays.
        config: see gpt_config.
        encoder: {piece: id} in .encoder and {(left, right): rank} in .bpe_ranks.
        head: None, or the 'weight' and 'bias' of a multiple-choice head.
    """
    names = {"positions": "positions_embed.weight", "tokens": "tokens_embed.weight"}
    tensors = {"transformer." + names.get(name, hub_name(name)): value for name, value in arrays.items()}
    tensors.update({f"multiple_choice_head.summary.{name}": value for name, value in (head or {}).items()})
    vocabulary = dict(sorted(encoder.encoder.items(), key=lambda item: item[1]))
    merges = sorted(encoder.bpe_ranks, key=encoder.bpe_ranks.get)
    part = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
            "merges": [list(pair) for pair in merges]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [
        {"id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"}, "model": part}
    settings = {"tokenizer_class": "OpenAIGPTTokenizer", "unk_token": "<unk>",
                "model_max_length": config["n_positions"]}
    write_config(path, config)
    for name, value in (("vocab.json", vocabulary), ("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        with write_atomically(os.path.join(path, name)) as temporary, open(temporary, "w") as f:
            json.dump(value, f)
    with write_atomically(os.path.join(path, "merges.txt")) as temporary, \
            open(temporary, "w", encoding="utf-8", newline="\n") as f:
        f.writelines(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)])
    with write_atomically(os.path.join(path, "model.safetensors")) as temporary:
        save_file({name: torch.as_tensor(value).detach().contiguous().clone() for name, value in tensors.items()},
                  temporary, metadata={"format": "pt"})
