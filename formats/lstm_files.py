"""The files of a pre-trained LSTM, the Transformer's rival in GPT-1's ablations: config.json and lstm.safetensors.

The format is ours, as OpenAI's holds Transformers alone and the authors released no LSTM. Knows the names, not the
model; ablations.lstm puts the arrays in place.
"""

import os
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from formats.config_files import check_rates, check_sizes, check_values, read_config, write_config
from formats.errors import BadInput, MissingInput
from formats.files import write_atomically
from formats.tensor_files import read_tensors, require_floats

FILE = "lstm.safetensors"
MODEL_TYPE = "gpt-lstm"
SIZES = ("n_ctx", "n_vocab", "n_embd", "n_unit")
RATES = ("embd_pdrop", "resid_pdrop")
AGAIN = "make it again with pretrain.py --architecture lstm"


class PretrainedLSTM(NamedTuple):
    """A pre-trained LSTM: float32 arrays by parameter name, its sizes and its dropouts.

    The names are those of a TransformerModel whose only block is an LSTM, with 'positions' [n_ctx, n_embd] and
    'tokens' [n_vocab, n_embd] in place of embed.weight.
    """

    arrays: dict[str, np.ndarray]
    n_ctx: int
    n_vocab: int
    n_embd: int
    n_unit: int
    dropouts: dict[str, float]


def shapes(n_ctx: int, n_vocab: int, n_embd: int, n_unit: int) -> dict[str, list[int]]:
    """Return {name: shape} of what lstm.safetensors holds."""
    return {"positions": [n_ctx, n_embd], "tokens": [n_vocab, n_embd], "h.0.lstm.weight_ih_l0": [4 * n_unit, n_embd],
            "h.0.lstm.weight_hh_l0": [4 * n_unit, n_unit], "h.0.lstm.bias_ih_l0": [4 * n_unit],
            "h.0.lstm.bias_hh_l0": [4 * n_unit], "h.0.c_proj.w": [n_unit, n_embd], "h.0.c_proj.b": [n_embd]}


def holds_lstm(folder: str) -> bool:
    """Whether a folder holds the file of a pre-trained LSTM."""
    return os.path.isfile(os.path.join(folder, FILE))


def read_lstm(folder: str) -> PretrainedLSTM:
    """Return the pre-trained LSTM in a folder.

    Raises:
        MissingInput, BadInput: a file is absent or damaged, or the two do not belong together.
    """
    path = os.path.join(folder, FILE)
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected a folder that pretrain.py --architecture lstm wrote; to train "
                           "an LSTM from scratch give --n_transfer -1")
    config, file = read_config(folder)
    if not config:
        raise MissingInput(f"{file}: not found, or empty; {AGAIN}")
    check_values(config, file, {"model_type": (MODEL_TYPE,)})
    check_sizes(config, file, SIZES)
    check_rates(config, file, RATES)
    tensors, expected = read_tensors(path), shapes(*(config[name] for name in SIZES))
    foreign = next((name for name in tensors if name not in expected), None)
    if foreign is not None:
        raise BadInput(f"{path}: holds {foreign[:80]}, which no LSTM of ours has; {AGAIN}")
    for name, shape in expected.items():
        if name not in tensors or list(tensors[name].shape) != shape:
            what = list(tensors[name].shape) if name in tensors else "not there"
            raise BadInput(f"{path}: {name} is {what}, expected {shape} by {file}; {AGAIN}")
    require_floats(tensors, path)
    return PretrainedLSTM({name: tensors[name].float().numpy() for name in expected},
                          *(config[name] for name in SIZES), {name: config[name] for name in RATES if name in config})


def write_lstm(folder: str, tensors: dict[str, torch.Tensor], dropouts: dict[str, float]) -> None:
    """Write a pre-trained LSTM to a folder, made if missing.

    Args:
        tensors: {name: tensor}, named as PretrainedLSTM.arrays. dropouts: {'embd_pdrop': ..., 'resid_pdrop': ...}.
    Raises:
        BadInput: the folder cannot be written.
    """
    n_ctx, n_embd = tensors["positions"].shape
    sizes = n_ctx, len(tensors["tokens"]), n_embd, len(tensors["h.0.c_proj.w"])
    write_config(folder, {"model_type": MODEL_TYPE, **dict(zip(SIZES, sizes, strict=True)), **dropouts})
    with write_atomically(os.path.join(folder, FILE)) as temporary:
        save_file({name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()},
                  temporary, metadata={"format": "pt"})
