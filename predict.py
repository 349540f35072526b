"""Use what train.py or train_t5.py fine-tuned, or a released T5: label rows, answer inputs, or write vectors of texts.

    python predict.py --desc NAME --file F [--out O]
    python predict.py --model_dir DIR --model small --file F --beams 4 --scores         a released T5
    python predict.py --desc NAME --file F --vectors V.npy

reads save/NAME/ alone (parameters, vocabulary and task are there) and F. Of a GPT, F is a .csv, .tsv or .jsonl file
with the columns of the task: text; premise, hypothesis; text1, text2; or context, choice1, choice2, ...; or as the
task's own files name them. A row for each of F's goes, tab-separated, to O or to the screen:
    classes             label, the most probable one, and p_<class>, the probability of each
    multiple choice     label, the number of the choice from 1, and p_1, p_2, ...
    scores              score
Of a T5, F has an input on each line, task's words in front, as train_t5.py --show prints it; or it is a .tsv file
(input; a target is left alone), or a .csv or .jsonl file with the column input, or what --columns, --template and the
run's own say. A line for each of F's is the answer; with --scores in front of it, and a tab, its log-probability: the
sum over its tokens, EOS included, in nats, of each one's given the input and those before it, without a length penalty.
--vectors writes float32 [rows, width] instead, see vectors_of.

In Python, with explore.load_finetuned("save/NAME"): predict(finetuned, rows).
"""

import contextlib
import csv
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

import explore
import fast.gpt
import fast.t5
from fast.at_rest import WeightsAtRest
from fast.devices import without_cudnn_attention
from fast.known import knows
from formats import progress
from formats.errors import BadInput, warn
from formats.files import write_atomically
from formats.hub import local_folder
from t5_pytorch import T5, T5_CONFIGS
from tasks import scores
from tasks.encoding import encode_split
from tasks.examples import Examples
from tasks.files import shown
from tasks.fitting import fit
from tasks.glue_files import GLUE_TASKS, Split
from tasks.gpt_tasks import Task
from tasks.own_data import COLUMNS, parse_columns, unlabelled
from tasks.story_cloze import ENDINGS, SENTENCES
from tasks.text_pairs import KINDS, read_inputs
from training import answering, distributed, options
from training.finetuned import Finetuned, load_finetuned, load_released_t5
from training.precision import dtype_of, for_evaluation
from utils import OneLineParser, require_ranges, run_script

__all__ = ["predict", "vectors_of"]

NLI_TASKS = ("snli", "scitail")  # whose files name their columns as MNLI's do
OF_T5 = ("beams", "scores", "template", "decode_length")  # options of no use to a GPT


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="predict.py", description="Label rows, answer inputs, or write vectors of texts.")
    p.add_argument("--desc", help="name of the run of train.py or train_t5.py")
    p.add_argument("--model_dir", help="in place of --desc: folder of a released T5, or OWNER/NAME on the Hub")
    p.add_argument("--model", choices=tuple(T5_CONFIGS), help="its size (default: what its config.json says)")
    p.add_argument("--file", required=True, help="rows: a .csv, .tsv or .jsonl file; for a T5 also lines of text")
    p.add_argument("--out", help="file to write; default: the screen")
    p.add_argument("--vectors", metavar="V.npy", help="write a vector for each row's text to this file instead: the "
                   "mean over its tokens of the last hidden states (of a T5's encoder)")
    p.add_argument("--save_dir", default="save/", help="folder with the run's folder")
    p.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="names of the columns where they are others, "
                   "such as text=sentence; of a T5 input=COLUMN")
    p.add_argument("--n_batch", type=int, default=32, help="rows at a time")
    p.add_argument("--precision", "--dtype", choices=options.PRECISIONS, default="fp32",
                   help="bf16: weights and matrix products in bfloat16, in half of the memory")
    options.add_device_option(p)
    options.add_plain_option(p)
    t5 = p.add_argument_group("answers of a T5")
    t5.add_argument("--beams", type=int, help="hypotheses of a beam search; 1: greedy (default: as the run's task was "
                                              "judged)")
    t5.add_argument("--decode_length", type=int, help="tokens of an answer at most (default: the run's)")
    t5.add_argument("--scores", action="store_const", const=True,
                    help="write the log-probability of each answer in front of it: of all its tokens, EOS included, in "
                         "nats, without a length penalty")
    t5.add_argument("--template", metavar="TEXT", help="make the input of several columns, such as 'question: {q} "
                                                       "context: {c}' (default: the run's)")
    args = p.parse_args(argv)
    require_ranges(args, {"n_batch": (1, None)} | {name: (1, None) for name in ("beams", "decode_length")
                                                   if getattr(args, name) is not None})
    if (args.desc is None) == (args.model_dir is None):
        raise BadInput("give one of --desc, a run's name, and --model_dir, the folder of a released T5")
    if args.model is not None and args.model_dir is None:
        raise BadInput(f"--model {args.model} goes with --model_dir; a run's folder tells its size")
    return args


def check_outputs(args):
    """Raise BadInput where what is written cannot be, or would take the place of what is read."""
    if args.vectors is not None:
        unused = [f"--{name}" for name in ("out", "beams", "scores", "decode_length")
                  if getattr(args, name) is not None]
        if unused:
            raise BadInput(f"{', '.join(unused)}: of no use with --vectors, which labels and answers nothing")
        if not args.vectors.endswith(".npy"):
            raise BadInput(f"--vectors is {args.vectors}, expected the name of a file that ends in .npy")
    for option in ("out", "vectors"):
        path = getattr(args, option)
        if path is not None and os.path.isdir(path):
            raise BadInput(f"--{option} is {path}, a folder; expected the name of a file")
        if path is not None and all(map(os.path.exists, (path, args.file))) and os.path.samefile(path, args.file):
            raise BadInput(f"--{option} {path} is the --file, which would be lost; give another name")


def task_of(finetuned: Finetuned) -> Task:
    """Return the Task of a fine-tuned model, without what only its training data have."""
    known = finetuned.settings["task"]
    score_range = known["score_range"] and tuple(known["score_range"])
    return Task(known["name"], known["transformation"], tuple(known["texts"]), tuple(known["classes"]), (), {}, "", {},
                None, None, {}, score_range=score_range, cut=known["cut"], n_context=known["n_context"])


def rows_of(finetuned: Finetuned, source: Any, columns: dict | None = None) -> Split:
    """Read rows for a GPT; see encoded."""
    task = task_of(finetuned)
    general = COLUMNS.get(task.transformation, ())
    if task.transformation == "multiple_choice" and task.n_context == 1:
        general = (*general, *(f"choice{k}" for k in range(1, len(task.texts))))
    joined = {}  # what the columns are called in the task's own files
    if task.name == "rocstories":  # which have the story in four columns
        joined = dict(zip(task.texts, (SENTENCES, *([ending] for ending in ENDINGS)), strict=True))
    elif task.name in GLUE_TASKS or task.name in NLI_TASKS:
        joined = {name: [column] for name, column in GLUE_TASKS.get(task.name, GLUE_TASKS["mnli"]).texts.items()}
    return unlabelled(source, task.texts, general if len(general) == len(task.texts) else task.texts, columns, joined)


def encoded(finetuned: Finetuned, source: Any, columns: dict | None = None, verbose: bool = True) -> Examples:
    """Read rows and encode them, cut to the model's positions; what was cut is counted in a warning.

    Args:
        source: a path, a DataFrame, a dict of lists or a list of dicts. columns: see own_data.unlabelled.
    """
    task, split, settings = task_of(finetuned), rows_of(finetuned, source, columns), finetuned.settings
    examples, n_cut = fit(encode_split(task, split, finetuned.encoder, verbose), settings["n_ctx"], task.cut,
                          settings["n_ctx_asked"])
    if n_cut:
        warn(f"{n_cut:,} of {len(split):,} rows are longer than the model's {settings['n_ctx']} positions and were cut")
    return examples


@torch.no_grad()
def logits_of(finetuned: Finetuned, examples: Examples, n_batch: int = 32, precision: str = "fp32",
              plain: bool = False, verbose: bool = True) -> torch.Tensor:
    """Return float32 [n, k], the task logits of examples, on the CPU."""
    model = for_evaluation(finetuned.model, precision)
    device = next(model.parameters()).device
    task_logits = model.task_logits if plain else lambda x: fast.gpt.task_logits(model, x)
    found = []
    with WeightsAtRest():
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


def texts_of(finetuned: Finetuned, source: Any, columns: dict | None = None, template: str | None = None) -> list[str]:
    """Return a text for each row: a T5's input; a GPT's texts, joined by blanks.

    Args:
        source: for a T5 a path, see text_pairs.read_inputs, or a list of texts; for a GPT see predict.
        columns: {our name: theirs}, for a T5 {"input": theirs}. template: for a T5; None: the run's.
    Raises:
        MissingInput, BadInput: see text_pairs.read_inputs and own_data.unlabelled.
    """
    if not isinstance(finetuned.model, T5):
        return [" ".join(texts) for texts in zip(*rows_of(finetuned, source, columns).texts.values(), strict=True)]
    if not isinstance(source, (str, os.PathLike)):
        if not isinstance(source, (list, tuple)) or not all(isinstance(text, str) for text in source) or not source:
            raise BadInput(f"the inputs are {shown(source)}, expected the path of a file, or a list of texts")
        return list(source)
    path, column = os.fspath(source), (columns or {}).get("input")
    given = column is not None or template is not None
    if not given and os.path.splitext(path)[1].lower() in KINDS:  # a file of lines holds inputs that are made already
        column, template = finetuned.settings["column"], finetuned.settings["template"]
        given = column != "input" or template is not None
    return read_inputs(path, column or "input", template, given)


def answers_of(finetuned: Finetuned, texts: list[str], world: distributed.World, beams: int | None = None,
               decode_length: int | None = None, n_batch: int = 32, precision: str = "fp32", plain: bool = False,
               scores: bool = True, verbose: bool = True) -> pd.DataFrame:
    """Return a T5's answers to inputs: a table with the columns answer and, with `scores`, log_probability.

    Args:
        beams, decode_length: None: the run's. Else see answering.answer, which says what log_probability is.
    """
    known, encoder = finetuned.settings, finetuned.encoder
    answering.warn_of_unknown_signs(encoder, texts, "inputs")
    inputs = answering.encode(encoder, texts, known["n_ctx"], "inputs", "the run's --n_ctx", verbose=verbose)
    ids, log_p = answering.answer(for_evaluation(finetuned.model, precision), inputs, world,
                                  decode_length or known["decode_length"], beams or known["beams"], n_batch, plain,
                                  scores, verbose)
    table = {"answer": [encoder.decode(row) for row in ids]}
    return pd.DataFrame(table | ({"log_probability": log_p} if scores else {}))


@torch.no_grad()
def vectors_of(finetuned: Finetuned, texts: list[str], n_batch: int = 32, precision: str = "fp32", plain: bool = False,
               verbose: bool = True) -> np.ndarray:
    """Return float32 [n, d], a vector for each text: the mean over its tokens of the last hidden states.

    Those of a T5 are its encoder's, after the final norm, EOS's among them; those of a GPT what its last block returns
    for the text alone, without special tokens. So does explore.sentence_vectors; here texts of like length are computed
    together, by the fast functions, and longer ones are cut to the model's positions, with a warning.

    Args:
        finetuned: what explore.load_finetuned returns.
        texts: strings. n_batch: texts at a time. plain: without fast/.
    Raises:
        BadInput: a text without tokens, for a GPT.
    """
    model = for_evaluation(finetuned.model, precision)
    if isinstance(model, T5):
        rows = answering.encode(finetuned.encoder, texts, finetuned.settings["n_ctx"], "texts", "the run's --n_ctx",
                                verbose=verbose)
    else:
        n_ctx, rows = finetuned.settings["n_ctx"], finetuned.encoder.encode(texts, verbose=verbose)
        n_cut = sum(len(ids) > n_ctx for ids in rows)
        if n_cut:
            warn(f"{n_cut:,} of {len(rows):,} texts are longer than the model's {n_ctx} positions and were cut")
        rows = [ids[:n_ctx] for ids in rows]
        empty = next((i for i, ids in enumerate(rows) if not ids), None)
        if empty is not None:
            raise BadInput(f"text {empty + 1} of {len(rows)} is {shown(texts[empty])}, without tokens; a vector needs "
                           "one at least: correct or remove the row")
    order, found = sorted(range(len(rows)), key=lambda i: -len(rows[i])), [None] * len(rows)
    is_fast = not plain and knows(model)
    with WeightsAtRest():
        for start in progress.bar(range(0, len(order), n_batch), unit="batch", show=verbose):
            numbers = order[start:start + n_batch]
            some = explore.batch_of_ids(model, [list(map(int, rows[i])) for i in numbers])
            if isinstance(model, T5):
                states = fast.t5.encode(model, some.x, some.mask) if is_fast else model.encode(some.x, some.mask)
            else:
                states = fast.gpt.hidden_states(model.transformer, some.x)[0] if is_fast else model.transformer(some.x)
            for i, vector in zip(numbers, explore.means(states, some.mask).float().cpu(), strict=True):
                found[i] = vector
    return torch.stack(found).numpy()


def predict(finetuned: Finetuned, source: Any, columns: dict | None = None, n_batch: int = 32,
            verbose: bool = False) -> pd.DataFrame:
    """Label rows, or answer inputs.

    Args:
        finetuned: what explore.load_finetuned returns.
        source: the rows: a path, a DataFrame, a dict of lists or a list of dicts, with the task's columns. For a T5 the
            inputs: a path or a list of texts.
        columns: {our name: theirs} where the columns have other names. n_batch: rows at a time.
        verbose: show progress.
    Returns:
        a table with a row for each of source's: the columns label and p_<class>, or score; of a T5 see answers_of.
    Raises:
        MissingInput, BadInput: see own_data.unlabelled and text_pairs.read_inputs.
    """
    if isinstance(finetuned.model, T5):
        device = next(finetuned.model.parameters()).device
        return answers_of(finetuned, texts_of(finetuned, source, columns), distributed.World(0, 1, device),
                          n_batch=n_batch, verbose=verbose)
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


def t5_columns(words: list[str] | None) -> dict[str, str]:
    """Return {"input": column} of the words of --columns for a T5.

    Raises:
        BadInput: other words.
    """
    if not words:
        return {}
    name, _, column = words[0].partition("=")
    if len(words) > 1 or name != "input" or not column:
        raise BadInput(f"--columns has {shown(' '.join(words))}, expected input=COLUMN for a T5; --template makes the "
                       "input of several columns")
    return {"input": column}


@contextlib.contextmanager
def written(path: str | None) -> Iterator[Any]:
    """Yield an open file that becomes `path` at the end of the body, or standard output (None)."""
    if path is None:
        yield sys.stdout
        return
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        yield f


def write_answers(args, finetuned, world):
    """Answer the inputs in --file; see the top of this file."""
    texts = texts_of(finetuned, args.file, t5_columns(args.columns), args.template)
    with written(args.out) as f:  # which fails before the work
        table = answers_of(finetuned, texts, world, args.beams, args.decode_length, args.n_batch, args.precision,
                           args.plain, bool(args.scores))
        lines = [re.sub(r"[\r\n]", " ", answer) for answer in table["answer"]]
        if args.scores:
            lines = [f"{value:.6f}\t{line}" for value, line in zip(table["log_probability"], lines, strict=True)]
        f.writelines(line + "\n" for line in lines)
    return len(lines)


def write_vectors(args, finetuned):
    """Write the vectors of the texts in --file; see the top of this file."""
    columns = t5_columns(args.columns) if isinstance(finetuned.model, T5) else parse_columns(
        args.columns, finetuned.settings["task"]["transformation"])
    texts = texts_of(finetuned, args.file, columns, args.template)
    with write_atomically(args.vectors) as temporary, open(temporary, "wb") as f:
        np.save(f, vectors_of(finetuned, texts, args.n_batch, args.precision, args.plain), allow_pickle=False)
    return len(texts)


def write_labels(args, finetuned):
    """Label the rows in --file; see the top of this file."""
    columns = parse_columns(args.columns, finetuned.settings["task"]["transformation"])
    examples = encoded(finetuned, args.file, columns)
    write_table(table_of(finetuned, logits_of(finetuned, examples, args.n_batch, args.precision, args.plain)), args.out)
    return len(examples)


@without_cudnn_attention()
def main(argv: list | None = None) -> None:
    """Label, answer, or write vectors, as the command line says; see the top of this file."""
    args = parse_args(argv)
    check_outputs(args)
    if args.desc is None:
        finetuned = load_released_t5(local_folder(args.model_dir), args.model, dtype_of(args.precision))
    else:
        finetuned = load_finetuned(os.path.join(args.save_dir, args.desc), dtype_of(args.precision))
    is_t5 = isinstance(finetuned.model, T5)
    unused = [f"--{name}" for name in OF_T5 if getattr(args, name) is not None]
    if unused and not is_t5:
        raise BadInput(f"{', '.join(unused)}: of no use to {args.desc}, a GPT that labels rows")
    world = distributed.join(args.device)
    finetuned.model.to(world.device)
    if args.vectors is not None:
        n = write_vectors(args, finetuned)
    else:
        n = write_answers(args, finetuned, world) if is_t5 else write_labels(args, finetuned)
    path = args.vectors or args.out
    if path is not None:
        print(f"wrote {path}: {n:,} rows")


if __name__ == "__main__":
    sys.exit(run_script(main))
