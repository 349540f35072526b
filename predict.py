"""Label new rows with a GPT that train.py fine-tuned.

    python predict.py --desc NAME --file F [--out O]

reads save/NAME/ alone (parameters, vocabulary, task and class names are there) and F, a .csv, .tsv or .jsonl file with
the columns of the task: text; premise, hypothesis; text1, text2; or context, choice1, choice2, ...; or as the task's
own files name them. It writes a row for each of F's, tab-separated, to O or to the screen:
    classes             label, the most probable one, and p_<class>, the probability of each
    multiple choice     label, the number of the choice from 1, and p_1, p_2, ...
    scores              score

In Python, with explore.load_finetuned("save/NAME"): predict(finetuned, rows).
"""

import csv
import os
import re
import sys
from typing import Any

import pandas as pd
import torch

import fast.gpt
from formats import progress
from formats.errors import BadInput, warn
from formats.files import write_atomically
from tasks import scores
from tasks.encoding import encode_split
from tasks.examples import Examples
from tasks.fitting import fit
from tasks.gpt_tasks import Task
from tasks.own_data import COLUMNS, parse_columns, unlabelled
from training import distributed, options
from training.finetuned import Finetuned, load_finetuned
from training.precision import dtype_of
from utils import OneLineParser, require_ranges, run_script

__all__ = ["predict"]


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="predict.py", description="Label new rows with a GPT that train.py fine-tuned.")
    p.add_argument("--desc", required=True, help="name of the run of train.py")
    p.add_argument("--file", required=True, help="rows to label: a .csv, .tsv or .jsonl file")
    p.add_argument("--out", help="file to write; default: the screen")
    p.add_argument("--save_dir", default="save/", help="folder with the run's folder")
    p.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="names of the columns where they are others, "
                   "such as text=sentence")
    p.add_argument("--n_batch", type=int, default=32, help="rows at a time")
    p.add_argument("--precision", "--dtype", choices=options.PRECISIONS, default="fp32",
                   help="bf16: weights and matrix products in bfloat16, in half of the memory")
    options.add_device_option(p)
    options.add_plain_option(p)
    args = p.parse_args(argv)
    require_ranges(args, {"n_batch": (1, None)})
    return args


def task_of(finetuned: Finetuned) -> Task:
    """Return the Task of a fine-tuned model, without what only its training data have."""
    known = finetuned.settings["task"]
    score_range = known["score_range"] and tuple(known["score_range"])
    return Task(known["name"], known["transformation"], tuple(known["texts"]), tuple(known["classes"]), (), {}, "", {},
                None, None, {}, score_range=score_range, cut=known["cut"], n_context=known["n_context"])


def encoded(finetuned: Finetuned, source: Any, columns: dict | None = None, verbose: bool = True) -> Examples:
    """Read rows and encode them, cut to the model's positions; what was cut is counted in a warning.

    Args:
        source: a path, a DataFrame, a dict of lists or a list of dicts. columns: see own_data.unlabelled.
    """
    task = task_of(finetuned)
    general = COLUMNS.get(task.transformation, ())
    if task.transformation == "multiple_choice" and task.n_context == 1:
        general = (*general, *(f"choice{k}" for k in range(1, len(task.texts))))
    split = unlabelled(source, task.texts, general if len(general) == len(task.texts) else task.texts, columns)
    settings = finetuned.settings
    examples, n_cut = fit(encode_split(task, split, finetuned.encoder, verbose), settings["n_ctx"], task.cut,
                          settings["n_ctx_asked"])
    if n_cut:
        warn(f"{n_cut:,} of {len(split):,} rows are longer than the model's {settings['n_ctx']} positions and were cut")
    return examples


@torch.no_grad()
def logits_of(finetuned: Finetuned, examples: Examples, n_batch: int = 32, plain: bool = False,
              verbose: bool = True) -> torch.Tensor:
    """Return float32 [n, k], the task logits of examples, on the CPU."""
    model = finetuned.model
    device = next(model.parameters()).device
    task_logits = model.task_logits if plain else lambda x: fast.gpt.task_logits(model, x)
    found = []
    for start in progress.bar(range(0, len(examples), n_batch), unit="batch", show=verbose):
        rows = slice(start, min(start + n_batch, len(examples)))
        found.append(task_logits(torch.from_numpy(examples.layout(rows).x).to(device)).float().cpu())
    return torch.cat(found)


def table_of(finetuned: Finetuned, logits: torch.Tensor) -> pd.DataFrame:
    """Return what is predicted from logits [n, k]: the columns label and p_<class>, or score."""
    task = finetuned.settings["task"]
    if task["score_range"] is not None:
        return pd.DataFrame({"score": scores.expected(logits, task["score_range"][0]).numpy()})
    names = finetuned.class_names
    if task["transformation"] == "multiple_choice":
        names = [str(k) for k in range(1, logits.size(1) + 1)]
    columns = {"label": [names[k] for k in logits.argmax(1).tolist()]}
    return pd.DataFrame(columns | dict(zip((f"p_{name}" for name in names), logits.softmax(1).numpy().T, strict=True)))


def predict(finetuned: Finetuned, source: Any, columns: dict | None = None, n_batch: int = 32,
            verbose: bool = False) -> pd.DataFrame:
    """Label rows.

    Args:
        finetuned: what explore.load_finetuned returns.
        source: the rows: a path, a DataFrame, a dict of lists or a list of dicts, with the task's columns.
        columns: {our name: theirs} where the columns have other names. n_batch: rows at a time.
        verbose: show progress.
    Returns:
        a table with a row for each of source's: the columns label and p_<class>, or score.
    Raises:
        MissingInput, BadInput: see own_data.unlabelled.
    """
    examples = encoded(finetuned, source, columns, verbose)
    return table_of(finetuned, logits_of(finetuned, examples, n_batch, verbose=verbose))


def write_table(table, path):
    """Write a table tab-separated, to a file or to the screen (None); a tab or line end in a name becomes a blank."""
    table = table.rename(columns=lambda name: re.sub(r"[\t\r\n]", " ", name))
    if "label" in table:
        table["label"] = table["label"].str.replace(r"[\t\r\n]", " ", regex=True)
    how = dict(sep="\t", index=False, float_format="%.6f", quoting=csv.QUOTE_NONE, quotechar="", lineterminator="\n")
    if path is None:
        sys.stdout.write(table.to_csv(**how))
        return
    with write_atomically(path) as temporary:
        table.to_csv(temporary, encoding="utf-8", **how)


def main(argv: list | None = None) -> None:
    """Label the rows of the file named on the command line; see the top of this file."""
    args = parse_args(argv)
    if args.out is not None and os.path.isdir(args.out):
        raise BadInput(f"--out is {args.out}, a folder; expected the name of a file")
    finetuned = load_finetuned(os.path.join(args.save_dir, args.desc), dtype_of(args.precision))
    columns = parse_columns(args.columns, finetuned.settings["task"]["transformation"])
    examples = encoded(finetuned, args.file, columns)
    finetuned.model.to(distributed.join(args.device).device)
    write_table(table_of(finetuned, logits_of(finetuned, examples, args.n_batch, args.plain)), args.out)
    if args.out is not None:
        print(f"wrote {args.out}: {len(examples):,} rows")


if __name__ == "__main__":
    sys.exit(run_script(main))
