"""Small cloze files in ROCStories' format, and options for a model that trains in a second."""

import csv

import numpy as np
from pretraining import argv

from datasets import COLUMNS, TEST_FILE, VALID_FILE

WORDS = "low new lower newer a cat sat on the mat and it was glad".split()


def write_csv(path, rows, header=COLUMNS, encoding="utf-8", **kwargs):
    """Write rows (lists of fields) under a header."""
    with open(path, "w", newline="", encoding=encoding) as f:
        csv.writer(f, **kwargs).writerows([header, *rows])


def rows(n, seed=0):
    """n plausible rows: the right ending repeats a word of the story."""
    g = np.random.default_rng(seed)
    out = []
    for i in range(n):
        sentences = [" ".join(g.choice(WORDS, g.integers(2, 5))).capitalize() + "." for _ in range(4)]
        endings = [" ".join(g.choice(WORDS, g.integers(1, 4))) + ", it's " + w for w in ("glad.", "low!")]
        answer = int(g.integers(1, 3))
        out.append([f"id-{seed}-{i}", *sentences, *(endings if answer == 1 else endings[::-1]), str(answer)])
    return out


def write_data_dir(folder, n_valid_file=40, n_test_file=21):
    """Write both files; return the folder as a string."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / VALID_FILE, rows(n_valid_file, 1))
    write_csv(folder / TEST_FILE, rows(n_test_file, 2))
    return str(folder)


def options(folder, data_dir, vocabulary, **changes):
    """Command-line options of a tiny run from scratch whose files all go under `folder`; None removes an option."""
    settings = dict(desc="tiny", data_dir=data_dir, encoder_path=vocabulary[0], bpe_path=vocabulary[1], n_transfer=-1,
                    n_embd=12, n_head=2, n_layer=2, n_valid=9, n_batch=4, n_gpu=2, n_iter=2, lr=1e-3, device="cpu",
                    log_dir=str(folder / "log"), save_dir=str(folder / "save"),
                    submission_dir=str(folder / "submission")) | changes
    argv = []
    for name, value in settings.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv += [f"--{name}", str(value)]
    return argv


def t5_line(folder, vocabulary, **settings):
    """A function of changed options returning the command line of a tiny T5 run from scratch on such files.

    Args:
        folder: all files go there; it is the function's .folder. vocabulary: the bytes of a spiece.model.
        settings: options by name that the runs have besides.
    """
    data_dir, model_dir = write_data_dir(folder / "data"), folder / "t5"
    model_dir.mkdir()
    (model_dir / "spiece.model").write_bytes(vocabulary)

    def line(**changes):
        usual = dict(data_dir=data_dir, model_dir=model_dir, from_scratch=True, n_valid=9, n_batch=4, n_gpu=2, n_iter=2,
                     submission_dir=folder / "submission")
        return argv(folder, usual | settings | changes)

    line.folder = folder
    return line
