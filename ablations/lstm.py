"""The LSTM that GPT-1's ablations put in the Transformer's place (Radford et al. 2018, section 5 and table 5).

"a single layer 2048 unit LSTM using the same framework": the embedding, tied with the softmax, the heads, pre-training
and fine-tuning stay, and one LSTM stands where the blocks stood. The authors released neither code nor weights of it,
so the rest is ours: torch.nn.LSTM as it initialises itself, then a linear layer from its units to the width of the
embedding and dropout, as at the end of an MLP. It reads what the blocks read, positions included.

The models stay an LMModel and a DoubleHeadModel whose transformer.h holds the LSTM alone. Each sequence is a row of
its own and begins with a state of zeros. fast/ does not know an LSTM: the plain text runs.

Letters in the shape comments: those of model_pytorch.py, and u units.
"""

from typing import Any

import numpy as np
import torch
import torch.nn as nn

from formats.errors import BadInput
from formats.lstm_files import read_lstm, write_lstm
from formats.tensor_files import Report
from model_pytorch import DEFAULT_CONFIG, Conv1D, LMModel, dotdict, tf_name

__all__ = ["ARCHITECTURES", "LSTM", "N_UNIT", "export_lstm", "load_language_model", "load_pretrained_lstm",
           "make_model"]

ARCHITECTURES = ("transformer", "lstm")
N_UNIT = 2048


class LSTM(nn.Module):
    """One layer of an LSTM in the place of all blocks: [b, t, d] -> [b, t, d]. A position sees those before it."""

    def __init__(self, n_embd: int, n_unit: int = N_UNIT, resid_pdrop: float = 0.1):
        super().__init__()
        self.lstm = nn.LSTM(n_embd, n_unit, batch_first=True)
        self.c_proj = Conv1D(n_embd, 1, n_unit)
        self.dropout = nn.Dropout(resid_pdrop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, t, d] -> [b, t, d]. The state is 0 before the first position of every row."""
        return self.dropout(self.c_proj(self.lstm(x)[0]))               # [b, t, d] -> [b, t, u] -> [b, t, d]


def make_model(kind: type, cfg: Any, *args: Any, **settings: Any) -> nn.Module:
    """Return an LMModel or a DoubleHeadModel, of blocks or of an LSTM.

    Args:
        kind: the class. cfg: its sizes as attributes; cfg.architecture, one of ARCHITECTURES, says which (where it is
            absent: the Transformer), and cfg.n_unit how many units the LSTM has.
        args, settings: the other arguments of the class.
    Raises:
        BadInput: there is no such architecture.
    """
    architecture = getattr(cfg, "architecture", ARCHITECTURES[0])
    if architecture not in ARCHITECTURES:
        raise BadInput(f"architecture is {architecture!r}, allowed are {', '.join(ARCHITECTURES)}")
    if architecture == "transformer":
        return kind(cfg, *args, **settings)
    model = kind(dotdict(cfg if isinstance(cfg, dict) else vars(cfg)) | {"n_layer": 0}, *args, **settings)
    model.transformer.h.append(LSTM(cfg.n_embd, cfg.n_unit, cfg.resid_pdrop))
    return model


def _lstm_of(model):
    """Return (the transformer of a model, its LSTM); refuse a model without one."""
    transformer = getattr(model, "transformer", model)
    if len(transformer.h) != 1 or not isinstance(transformer.h[0], LSTM):
        raise BadInput("the model is no LSTM: make one with ablations.lstm.make_model and architecture 'lstm'")
    return transformer, transformer.h[0]


def load_pretrained_lstm(model: nn.Module, path: str, n_ctx: int = -1, n_special: int = 0, n_transfer: int = 1,
                         verbose: bool = True) -> Report:
    """Copy a pre-trained LSTM into a model, as load_openai_pretrained_model does with a Transformer.

    Args:
        model: of make_model, with an LSTM. path: a folder that export_lstm wrote.
        n_ctx: positions to load; -1 for all. n_special: fresh rows N(0, 0.02) between tokens and positions, drawn from
            NumPy's global generator.
        n_transfer: 1 for all; 0 for the embedding alone; -1 for nothing.
        verbose: print one line on what was loaded.
    Returns:
        {'loaded': [names], 'fresh': [names], 'left_out': []} of the parameters.
    Raises:
        MissingInput, BadInput: see read_lstm; or model and weights do not fit. The model is then unchanged.
    """
    transformer, lstm = _lstm_of(model)
    if n_transfer not in (-1, 0, 1):
        raise BadInput(f"n_transfer is {n_transfer}, allowed is -1 to 1: an LSTM has one layer")
    parameters, new = dict(transformer.named_parameters()), {}
    if n_transfer >= 0:
        found = read_lstm(path)
        n_ctx = found.n_ctx if n_ctx < 0 else n_ctx
        ours = transformer.embed.embedding_dim, lstm.lstm.hidden_size
        if ours != (found.n_embd, found.n_unit):
            raise BadInput(f"n_embd is {ours[0]} and n_unit {ours[1]}, but the LSTM in {path} has {found.n_embd} and "
                           f"{found.n_unit}; give these, or n_transfer -1 for none of its weights")
        if n_ctx > found.n_ctx:
            raise BadInput(f"n_ctx is {n_ctx}, allowed is at most {found.n_ctx}, the positions in {path}")
        special = (np.random.randn(n_special, found.n_embd) * 0.02).astype(np.float32)
        we = np.concatenate([found.arrays["tokens"], special, found.arrays["positions"][:n_ctx]])
        if len(we) != transformer.n_vocab:
            raise BadInput(f"the model's we has {transformer.n_vocab} rows, but {path} with n_special {n_special} and "
                           f"n_ctx {n_ctx} gives {len(we)}; make the model with vocab={len(we)}")
        new["embed.weight"] = we
        new |= {name: found.arrays[name] for name in parameters if n_transfer and name.startswith("h.")}
        with torch.no_grad():
            for name, value in new.items():
                parameters[name].copy_(torch.from_numpy(value))
    if verbose:
        print(f"loaded {len(new)} of {len(parameters)} variables of an LSTM "
              + (f"from {path}; fresh: {n_special} special rows" if new else "(n_transfer -1)"))
    return Report(loaded=[tf_name(name) for name in new],
                  fresh=[tf_name(name) for name in parameters if name not in new], left_out=[])


def export_lstm(model: nn.Module, path: str, n_special: int = 0) -> None:
    """Write a model of an LSTM to a folder in our own format, see formats/lstm_files.py. Heads are left out.

    Args:
        model: an LMModel or DoubleHeadModel of make_model, or its transformer. path: the folder, made if missing.
        n_special: rows of `we` between tokens and positions, not written.
    Raises:
        BadInput: the model is no LSTM, or the folder cannot be written.
    """
    transformer, lstm = _lstm_of(model)
    we, n_ctx = transformer.embed.weight, transformer.n_ctx
    arrays = {"positions": we[-n_ctx:], "tokens": we[:len(we) - n_ctx - n_special],
              **{name: p for name, p in transformer.named_parameters() if name.startswith("h.")}}
    write_lstm(path, arrays, {"embd_pdrop": transformer.embd_dropout.p, "resid_pdrop": lstm.dropout.p})


def load_language_model(path: str, return_probs: bool = False) -> LMModel:
    """Return the pre-trained LSTM in a folder as an LMModel, in evaluation mode; as LMModel.from_pretrained does.

    Its encoder: text_utils.TextEncoder.from_folder(path).

    Raises:
        MissingInput, BadInput: see read_lstm.
    """
    found = read_lstm(path)
    cfg = DEFAULT_CONFIG | found.dropouts | {"architecture": "lstm", "n_embd": found.n_embd, "n_unit": found.n_unit}
    model = make_model(LMModel, cfg, found.n_vocab + found.n_ctx, found.n_ctx, return_probs)
    load_pretrained_lstm(model, path, verbose=False)
    return model.eval()
