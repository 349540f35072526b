"""The files of a released GPT: OpenAI's ten .npy pieces, or the Hub's model.safetensors, as arrays by name.

Knows the formats, not the model; model_pytorch.load_openai_pretrained_model puts the arrays in place.
"""

import json
import os
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from formats.errors import OPENAI_MODEL, BadInput, MissingInput
from formats.files import is_lfs_pointer, read_text, write_atomically

N_FILES = 10
WHERE_FROM = f"{OPENAI_MODEL}, or train without it (--n_transfer -1)"
LAYER_NAMES = ["attn.c_attn.w", "attn.c_attn.b", "attn.c_proj.w", "attn.c_proj.b", "ln_1.g", "ln_1.b",
               "mlp.c_fc.w", "mlp.c_fc.b", "mlp.c_proj.w", "mlp.c_proj.b", "ln_2.g", "ln_2.b"]


class Released(NamedTuple):
    """A released GPT: its arrays by parameter name, and its sizes.

    The names are TransformerModel's, with 'positions' [n_ctx, n_embd] and 'tokens' [n_vocab, n_embd] in place of
    embed.weight.
    """

    arrays: dict
    n_ctx: int
    n_vocab: int
    n_embd: int
    n_layer: int


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
        values = np.load(path, mmap_mode="r", allow_pickle=False)
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
    """Return {name: array} of OpenAI's format, with 'positions' and 'tokens' in place of embed.weight."""
    shapes = _read_shapes(os.path.join(path, "params_shapes.json"))
    ends = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in shapes])
    sizes = [int(ends[-1]) // N_FILES + (i < ends[-1] % N_FILES) for i in range(N_FILES)]  # as np.array_split cuts
    files = [_open_params(os.path.join(path, f"params_{i}.npy"), size) for i, size in enumerate(sizes)]
    first = np.cumsum([0, *sizes])  # where each file begins

    def values(start, end):
        pieces = [f[max(start - a, 0):end - a] for f, a in zip(files, first, strict=False)
                  if a < end and start < a + len(f)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    names = ["positions", "tokens", *layer_names((len(shapes) - 2) // len(LAYER_NAMES))]
    return {name: values(start, end).reshape(shape[-2:])
            for name, shape, start, end in zip(names, shapes, [0, *ends[:-1]], ends, strict=True)}


def _read_hub(path):
    """Return {name: array} of the Hub's model.safetensors (openai-community/openai-gpt), named as in _read_released."""
    weights = {}
    try:
        with safe_open(path, framework="np") as f:
            for name in f.keys():  # noqa: SIM118 (not a dict)
                ours = name.removeprefix("transformer.")
                if ours.endswith(".attn.bias") or ours == "lm_head.weight":
                    continue  # a mask, and the tied copy of the tokens
                ours = {"tokens_embed.weight": "tokens", "positions_embed.weight": "positions"}.get(ours, ours)
                for hub, tf in ((".weight", ".g" if ".ln_" in ours else ".w"), (".bias", ".b")):
                    if ours.endswith(hub):
                        ours = ours.removesuffix(hub) + tf
                weights[ours] = f.get_tensor(name)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: is truncated or not a safetensors file ({str(error)[:100]}, "
                       f"{os.path.getsize(path):,} bytes found); {WHERE_FROM}") from None
    missing = [name for name in ("positions", "tokens") if name not in weights]
    if missing or weights["positions"].ndim != 2 or weights["tokens"].ndim != 2:
        raise BadInput(f"{path}: holds no GPT (no positions_embed.weight [n_ctx, n_embd] and tokens_embed.weight "
                       f"[n_vocab, n_embd]); found {', '.join(list(weights)[:4])}; {WHERE_FROM}")
    (n_ctx, d), n_vocab = weights["positions"].shape, weights["tokens"].shape[0]
    n_layer = len({name.split(".")[1] for name in weights if name.startswith("h.")})
    names = ["positions", "tokens", *layer_names(n_layer)]
    for name, shape in zip(names, released_shapes(n_ctx, n_vocab, d, n_layer), strict=True):
        found = weights.get(name)
        if found is None or list(found.shape) != shape[-2:] or found.dtype != np.float32:
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise BadInput(f"{path}: {name} is {what}, expected float32 {shape[-2:]}; {WHERE_FROM}")
    return {name: weights[name] for name in names}


def read_pretrained(path):
    """Return the Released model of a folder in OpenAI's format, or of a Hub safetensors file or folder.

    Nothing is unpickled; OpenAI's files are memory-mapped.

    Raises:
        MissingInput, BadInput: a file absent, truncated, of another type, or of shapes that do not add up.
    """
    hub = os.path.join(path, "model.safetensors")
    if os.path.isfile(path):
        arrays = _read_hub(path)
    elif os.path.isfile(os.path.join(path, "params_shapes.json")):
        arrays = _read_released(path)
    elif os.path.isfile(hub):
        arrays = _read_hub(hub)
    else:
        raise MissingInput(f"{path}: no pretrained model there (neither params_shapes.json nor model.safetensors); "
                           f"{WHERE_FROM}")
    n_ctx, n_embd = arrays["positions"].shape
    return Released(arrays, n_ctx, len(arrays["tokens"]), n_embd, (len(arrays) - 2) // len(LAYER_NAMES))


def write_released(path, flat, shapes):
    """Write the float32 vector `flat` and its list of shapes to the folder `path` in OpenAI's format.

    Raises:
        BadInput: the folder cannot be written.
    """
    for i, piece in enumerate(np.array_split(flat, N_FILES)):
        with write_atomically(os.path.join(path, f"params_{i}.npy")) as temporary, open(temporary, "wb") as f:
            np.save(f, piece)
    with write_atomically(os.path.join(path, "params_shapes.json")) as temporary, open(temporary, "w") as f:
        json.dump(shapes, f)
