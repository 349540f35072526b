"""The toy setting of the experiments: toy stories and sets, and the two small models that are pre-trained on them."""

import os

import pretrain
from demo import call, command_line
from formats.lstm_files import holds_lstm
from toy import glue, stories

DATASETS = ("rocstories", "sst2")  # the cloze, and whether a story goes well
SIZES = {"n_embd": 96, "n_head": 4, "n_layer": 3}
LSTM_SIZES = {"architecture": "lstm", "n_embd": 96, "n_unit": 256}
PRETRAIN = {"n_ctx": 104, "n_merges": 1400, "n_chars": 80, "n_batch": 10, "n_iter": 1, "lr": 4e-3, "n_warmup": 60,
            "init_std": 0.06, "embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0, "held_out": 0.02, "save_every": 0}
FINETUNE = {"n_ctx": 104, "lr": 2e-3, "save_every": 0}
N_TEXT, N_CLOZE, N_TRAIN, N_DEV = 24000, 1871, 1500, 400
SEED = 42  # of stories and pre-training


def write_data(out: str) -> tuple[str, str]:
    """Write toy stories and sets into a folder unless they are there; return (text file, data folder)."""
    text, data = os.path.join(out, "stories.txt"), os.path.join(out, "data")
    if not os.path.isfile(text):  # written last
        glue.write_data_dir(data, N_TRAIN, N_DEV, N_DEV, SEED)
        stories.main(["--data_dir", data, "--text", text, "--n_text", str(N_TEXT), "--n_cloze", str(N_CLOZE), "--seed",
                      str(SEED)])
    return text, data


def pretrained(out: str, text: str, architecture: str) -> str:
    """Pre-train a model on the toy stories unless it is there, or go on where that stopped; return its folder."""
    folder = os.path.join(out, f"model-{architecture}")
    is_lstm = architecture == "lstm"
    if not (holds_lstm(folder) if is_lstm else os.path.isfile(os.path.join(folder, "params_shapes.json"))):
        call(pretrain, command_line(
            {"desc": f"pretrain-{architecture}", "text": text, "model_dir": folder, "seed": SEED, "resume": True,
             "log_dir": os.path.join(out, "log"), "save_dir": os.path.join(out, "save")}
            | PRETRAIN | (LSTM_SIZES if is_lstm else SIZES)))
    return folder
