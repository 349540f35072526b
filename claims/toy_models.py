"""The toy setting of the experiments: toy stories and sets, and the two small models that are pre-trained on them."""

import os

import demo
import pretrain
from formats.lstm_files import holds_lstm
from toy import glue, stories

DATASETS = ("rocstories", "sst2")  # the cloze, and whether a story goes well
# those of the demonstration; the LSTM has about as many parameters as the Transformer's blocks
SIZES, STORIES = demo.GPT, demo.STORIES["gpt"]
LSTM_SIZES = {"architecture": "lstm", "n_embd": SIZES["n_embd"], "n_unit": 256}
PRETRAIN = {name: value for name, value in demo.GPT_PRETRAIN.items() if name not in SIZES}
# with train.py's dropout, which the demonstration leaves out: the numbers in docs/claims.md were measured so
FINETUNE = {"n_ctx": 104, "n_gpu": 1, "n_iter": 2, "lr": 1e-3, "save_every": 0}
N_TRAIN, N_DEV = 1000, 400  # of the other set
SEED = 42  # of stories and pre-training


def write_data(out: str) -> tuple[str, str]:
    """Write toy stories and sets into a folder unless they are there; return (text file, data folder)."""
    text, data = os.path.join(out, "stories.txt"), os.path.join(out, "data")
    if not os.path.isfile(text):  # written last
        glue.write_data_dir(data, N_TRAIN, N_DEV, N_DEV, SEED, n_topics=STORIES["n_topics"])
        demo.call(stories, demo.command_line({"data_dir": data, "text": text, "seed": SEED} | STORIES))
    return text, data


def pretrained(out: str, text: str, architecture: str) -> str:
    """Pre-train a model on the toy stories unless it is there, or go on where that stopped; return its folder."""
    folder = os.path.join(out, f"model-{architecture}")
    is_lstm = architecture == "lstm"
    if not (holds_lstm(folder) if is_lstm else os.path.isfile(os.path.join(folder, "params_shapes.json"))):
        demo.call(pretrain, demo.command_line(
            {"desc": f"pretrain-{architecture}", "text": text, "model_dir": folder, "seed": SEED, "resume": True,
             "log_dir": os.path.join(out, "log"), "save_dir": os.path.join(out, "save")}
            | PRETRAIN | (LSTM_SIZES if is_lstm else SIZES)))
    return folder
