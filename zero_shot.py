"""What a language model knows of four tasks before anything is fine-tuned (GPT-1 paper, section 5 and figure 2, right).

    python zero_shot.py --model_dir model/ --data_dir DATA           # the released weights, or those of pretrain.py
    python zero_shot.py --desc books lstm --data_dir DATA            # all that runs of pretrain.py --keep_at kept
    python reproduce.py --zero_shot                                  # both architectures on toy tasks, several seeds

DATA holds the folders CoLA, SST-2, RACE and DPRD (train.c.txt and test.c.txt of Rahman and Ng), or some of them, named
by --tasks. The paper's heuristics, with log p the log-probability of a token given those before it:
    cola    mean log p of the sentence against a threshold. The paper does not say which: here the one that is best on
            train.tsv, or --threshold.
    sst2    `very` is appended; is `positive` or `negative` the more probable next word?
    race    the option with the highest mean log p, after article and question
    dpr     each candidate in the pronoun's place; the highest mean log p of what comes after it

It prints a table and writes log/<name>_zero_shot.jsonl: the options, then a line for each model and task with its
metric, in percent, and `normalised`: 0 for guessing and 1 for the best single model of then, see TASKS. --picture draws
that over the updates of the runs.

In Python, with what explore.load_gpt returns: acceptability_scores, sentiment_scores, answer_scores, pronoun_scores;
evaluate makes a line of the log, draw the picture.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import explore
import fast.gpt
from fast.at_rest import WeightsAtRest
from fast.devices import without_cudnn_attention
from formats import progress
from formats.errors import BadInput, MissingInput, warn
from formats.gpt_files import read_pretrained
from formats.hub import local_folder
from formats.lstm_files import holds_lstm
from generate import load_gpt
from model_pytorch import ACT_FNS, LMModel
from pictures.lines import Line, Panel, draw_lines
from t5_decoding import evaluation_mode
from tasks import metrics
from tasks.glue_files import find_file, read_glue
from tasks.pronouns import read_dpr
from tasks.race_files import LETTERS, read_race
from text_utils import TextEncoder
from training import distributed, kept, options
from utils import OneLineParser, ResultLogger, require_ranges, run_script

__all__ = ["TASKS", "acceptability_scores", "answer_scores", "best_threshold", "draw", "evaluate", "judge",
           "mean_log_probs", "print_table", "pronoun_scores", "read", "sentiment_scores", "substituted"]

APPENDED, SENTIMENT_WORDS = "very", ("negative", "positive")


class Scored(NamedTuple):
    """Token ids of a text, of which those from number `first` on are scored, given all before them."""

    ids: Sequence[int]
    first: int


def mean_log_probs(model: LMModel, examples: Sequence[Sequence[Scored]], n_batch: int = 16, plain: bool = False,
                   verbose: bool = False) -> np.ndarray:
    """The mean log-probability of the scored tokens of each text, in nats.

    Args:
        model: a GPT with a language-model head; nothing is dropped, whatever its mode.
        examples: for each example its candidates' texts, as many for all.
        n_batch: examples at a time, those of like lengths together.
        plain: run the papers' text; else fast.gpt.token_log_probs, which computes shared beginnings once.
        verbose: show progress.
    Returns:
        float64 [examples, candidates].
    Raises:
        BadInput: a text has no token before the first scored one, none to score, or more tokens than the model has
            positions; or the numbers of candidates differ.
    """
    n_words, n_ctx = model.transformer.n_vocab - model.transformer.n_ctx, model.transformer.n_ctx
    for number, texts in enumerate(examples):
        if len(texts) != len(examples[0]):
            raise BadInput(f"examples[{number}] has {len(texts)} candidates, expected {len(examples[0])} as the first")
        for text in texts:
            if not 1 <= text.first < len(text.ids) <= n_ctx:
                raise BadInput(f"examples[{number}] has a text of {len(text.ids)} tokens, scored from number "
                               f"{text.first} on; expected a token before the scored ones, one to score, and at most "
                               f"{n_ctx} tokens, the positions of the model")
    values = np.zeros((len(examples), len(examples[0]) if examples else 0))
    order = sorted(range(len(examples)), key=lambda i: max(len(text.ids) for text in examples[i]))
    with evaluation_mode(model), torch.no_grad(), WeightsAtRest():
        for start in progress.bar(range(0, len(order), n_batch), unit="batch", show=verbose):
            numbers = order[start:start + n_batch]
            x, wanted = _layout([examples[i] for i in numbers], n_words)
            if plain:
                device = model.transformer.embed.weight.device
                found = torch.stack([_plain_log_probs(model, of_one.to(device)) for of_one in x]).where(wanted, 0)
            else:
                found = fast.gpt.token_log_probs(model, x, wanted)
            values[numbers] = (found.double().sum(-1) / wanted.sum(-1)).numpy()
    return values


def _plain_log_probs(model, x):
    """Log-probabilities [c, t] of the tokens of x int [c, t, 2], on the CPU; what padding says means nothing."""
    return explore.token_log_probs(model, explore.Batch(x, torch.ones_like(x[..., 0], dtype=torch.bool), [])).cpu()


def _layout(examples, n_words):
    """Return x int64 [b, c, t, 2], padded with token 0 on the right, and bool [b, c, t], True at scored tokens."""
    t = max(len(text.ids) for texts in examples for text in texts)
    x = torch.zeros(len(examples), len(examples[0]), t, 2, dtype=torch.int64)
    wanted = torch.zeros(x.shape[:3], dtype=torch.bool)
    x[..., 1] = n_words + torch.arange(t)
    for i, texts in enumerate(examples):
        for k, text in enumerate(texts):
            x[i, k, :len(text.ids), 0] = torch.tensor(text.ids)
            wanted[i, k, text.first:len(text.ids)] = True
    return x, wanted


def _fitted(model, examples, what):
    """Cut texts that are longer than the model's positions at their beginning; say how many."""
    n_ctx = model.transformer.n_ctx
    fitted = [[Scored(text.ids[-n_ctx:], max(text.first - max(len(text.ids) - n_ctx, 0), 1)) for text in texts]
              for texts in examples]
    n_cut = sum(any(len(text.ids) > n_ctx for text in texts) for texts in examples)
    if n_cut:
        warn(f"{n_cut:,} of {len(examples):,} {what} are longer than the model's {n_ctx} positions and were cut")
    return fitted


def acceptability_scores(model: LMModel, encoder: TextEncoder, sentences: list[str], **how: Any) -> np.ndarray:
    """CoLA: the mean log-probability of each sentence's tokens; the first one, which nothing predicts, does not count.

    Args:
        model, encoder: of explore.load_gpt. how: n_batch, plain, verbose of mean_log_probs.
    Returns:
        float64 [n].
    Raises:
        BadInput: a sentence has fewer than two tokens.
    """
    rows = encoder.encode(sentences, verbose=False)
    for sentence, row in zip(sentences, rows, strict=True):
        if len(row) < 2:
            raise BadInput(f"the sentence {sentence[:40]!r} has {len(row)} tokens, expected two or more, as the first "
                           "is predicted by nothing; leave it out")
    return mean_log_probs(model, _fitted(model, [[Scored(row, 1)] for row in rows], "sentences"), **how)[:, 0]


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the largest Matthews correlation, half-way between two scores; of equals the lowest.

    Args:
        scores: [n]. labels: [n], 0 or 1; a sentence with a score above the threshold is taken for 1.
    """
    known, totals = np.unique(scores, return_inverse=True)
    ones = np.bincount(totals, weights=np.asarray(labels) == 1)
    counts = np.bincount(totals)
    tp, predicted = (np.concatenate([[0], values[::-1].cumsum()])[::-1] for values in (ones, counts))  # above each cut
    n, positive = counts.sum(), ones.sum()
    spread = np.sqrt(predicted * (n - predicted) * positive * (n - positive))
    matthews = np.divide(n * tp - predicted * positive, spread, out=np.zeros(len(tp)), where=spread > 0)
    edges = np.concatenate([[known[0] - 1], known, [known[-1] + 1]])
    best = int(matthews.argmax())
    return float((edges[best] + edges[best + 1]) / 2)


def sentiment_scores(model: LMModel, encoder: TextEncoder, texts: list[str], appended: str = APPENDED,
                     words: tuple[str, str] = SENTIMENT_WORDS, **how: Any) -> np.ndarray:
    """SST-2: the log-probabilities of two words as the next one after each text and `very`.

    Args:
        model, encoder: of explore.load_gpt. appended: what is added to each text.
        words: for negative and for positive; one token each. how: see acceptability_scores.
    Returns:
        float64 [n, 2].
    Raises:
        BadInput: a word has several tokens, so that the two cannot be compared.
    """
    ends = encoder.encode(list(words), verbose=False)
    for word, ids in zip(words, ends, strict=True):
        if len(ids) != 1 or encoder.decoder.get(ids[0]) == "<unk>":
            raise BadInput(f"the vocabulary has {len(ids)} tokens for {word!r}, expected one, so that it is compared "
                           "as the next word; give other --sentiment_words")
    very, = encoder.encode([appended], verbose=False)
    rows = encoder.encode(texts, verbose=False)
    examples = [[Scored([*row, *very, *end], len(row) + len(very)) for end in ends] for row in rows]
    return mean_log_probs(model, _fitted(model, examples, "texts"), **how)


def answer_scores(model: LMModel, encoder: TextEncoder, articles: list[str], questions: list[str],
                  choices: list[Sequence[str]], **how: Any) -> np.ndarray:
    """RACE: the mean log-probability of each option's tokens, given article and question.

    Nothing stands between article, question and option. The article alone is cut, at its end, where they are too long.

    Args:
        model, encoder: of explore.load_gpt. articles, questions: [n]. choices: [n], the options of each question.
        how: see acceptability_scores.
    Returns:
        float64 [n, options].
    """
    n_ctx, n_cut, examples = model.transformer.n_ctx, 0, []
    distinct = list(dict.fromkeys(articles))
    ids = dict(zip(distinct, encoder.encode(distinct, verbose=False), strict=True))
    asked = encoder.encode(questions, verbose=False)
    flat = iter(encoder.encode([option for options in choices for option in options], verbose=False))
    for article, question, options_ in zip(articles, asked, choices, strict=True):
        rows = [next(flat) for _ in options_]
        if not all(rows):
            raise BadInput(f"one of the options {list(options_)!r:.80} has no tokens; give it a word, or leave it out")
        room = max(n_ctx - len(question) - max(map(len, rows)), 0)
        n_cut += len(ids[article]) > room
        context = [*ids[article][:room], *question]
        examples.append([Scored([*context, *row], len(context)) for row in rows])
    if n_cut:
        warn(f"{n_cut:,} of {len(examples):,} articles are longer than the model's {n_ctx} positions allow; cut")
    return mean_log_probs(model, _fitted(model, examples, "questions"), **how)


def substituted(example: dict) -> list[tuple[str, str]]:
    """A Winograd schema with each candidate in the pronoun's place, the first one: [(text up to it, the rest)].

    Args:
        example: 'sentence', 'pronoun', 'candidates', as tasks.pronouns.read_dpr returns them.
    Raises:
        BadInput: the pronoun is no word of the sentence, or nothing comes after it.
    """
    sentence, pronoun = example["sentence"], example["pronoun"]
    match = re.search(rf"(?<!\w){re.escape(pronoun)}(?!\w)", sentence)
    if match is None or not sentence[match.end():].strip():
        wrong = "is no word of it" if match is None else "is its last word"
        raise BadInput(f"the pronoun {pronoun!r} {wrong}: {sentence[:80]!r}; correct or remove the example")
    return [(sentence[:match.start()] + name, sentence[match.end():]) for name in example["candidates"]]


def pronoun_scores(model: LMModel, encoder: TextEncoder, examples: list[dict], **how: Any) -> np.ndarray:
    """DPRD: the mean log-probability of what comes after each candidate in the pronoun's place.

    Args:
        model, encoder: of explore.load_gpt. examples: see substituted. how: see acceptability_scores.
    Returns:
        float64 [n, candidates].
    """
    parts = [pair for example in examples for pair in substituted(example)]
    before, after = (encoder.encode(list(texts), verbose=False) for texts in zip(*parts, strict=True))
    flat = [Scored([*start, *rest], len(start)) for start, rest in zip(before, after, strict=True)]
    n = len(examples[0]["candidates"])
    return mean_log_probs(model, _fitted(model, [flat[i:i + n] for i in range(0, len(flat), n)], "sentences"), **how)


class Data(NamedTuple):
    """A task's examples: the arguments of its function, their labels, and those of train.tsv for CoLA."""

    arguments: tuple
    labels: np.ndarray
    train: Any = None


def _read_cola(data_dir, split="valid"):
    found = read_glue("cola", data_dir, split)
    train = _read_cola(data_dir, "train") if split == "valid" else None
    return Data((found.texts["sentence"],), np.array([label == "acceptable" for label in found.labels], int), train)


def _read_sst2(data_dir):
    found = read_glue("sst2", data_dir, "valid")
    return Data((found.texts["sentence"],), np.array([SENTIMENT_WORDS.index(label) for label in found.labels]))


def _read_race(data_dir):
    article, question, *choices = read_race(data_dir, "valid").texts.values()
    labels = [LETTERS.index(label) for label in read_race(data_dir, "valid").labels]
    return Data((article, question, list(zip(*choices, strict=True))), np.array(labels))


def _read_dpr(data_dir):
    path = find_file(data_dir, ("DPRD", "DPR", "dpr"), ("test.c.txt",), "dpr")
    examples = read_dpr(path)
    for example in examples:
        try:
            substituted(example)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
    return Data((examples,), np.array([example["label"] for example in examples]))


class Task(NamedTuple):
    """One of the figure's tasks.

    Attributes:
        title: as the figure calls it. read: function of the data folder that returns its Data.
        scores: function of (model, encoder, *arguments). metric: name in tasks.metrics.METRICS.
        chance: of guessing. best: of the best single model before GPT-1; both in percent, for `normalised`.
    """

    title: str
    read: Callable[[str], Data]
    scores: Callable[..., np.ndarray]
    metric: str
    chance: float
    best: float


# The paper prints neither the figure's numbers nor the models that are its 1. These are the best results before GPT-1
# in its tables 3 and 4, RACE's of nine models together (BiAttention MRU), and for DPRD that of Peng et al. (2015): from
# memory, and not checked against the papers. They move `normalised` alone.
TASKS = {
    "sst2": Task("sentiment analysis", _read_sst2, sentiment_scores, "acc", 50, 93.2),
    "dpr": Task("winograd schema resolution", _read_dpr, pronoun_scores, "acc", 50, 76.4),
    "cola": Task("linguistic acceptability", _read_cola, acceptability_scores, "matthews", 0, 35.0),
    "race": Task("question answering", _read_race, answer_scores, "acc", 25, 53.3),
}


def read(name: str, data_dir: str, n_examples: int | None = None) -> Data:
    """Return the examples of a task, the first n_examples of them.

    Raises:
        MissingInput, BadInput: see the readers in tasks/.
    """
    data = TASKS[name].read(data_dir)
    if n_examples is not None:
        data = Data(tuple(values[:n_examples] for values in data.arguments), data.labels[:n_examples], data.train)
    return data


def evaluate(model: LMModel, encoder: TextEncoder, name: str, data: Data, threshold: float | None = None,
             best: float | None = None, **how: Any) -> dict:
    """Judge a model on a task.

    Args:
        model, encoder: of explore.load_gpt. name: a key of TASKS. data: see read.
        threshold: CoLA's; None: the best on its train.tsv. best: what `normalised` takes for 1; None: the task's.
        how: n_batch, plain, verbose, and for sst2 words.
    Returns:
        {'task', 'metric', 'value' in percent, 'normalised', 'n' examples}, and 'threshold' for cola.
    """
    task, more = TASKS[name], {}
    scores = task.scores(model, encoder, *data.arguments, **how)
    if name == "cola":
        if threshold is None:
            threshold = best_threshold(acceptability_scores(model, encoder, *data.train.arguments, **how),
                                       data.train.labels)
        predictions, more = (scores > threshold).astype(int), {"threshold": threshold}
    else:
        predictions = scores.argmax(1)
    value = metrics.of([task.metric], predictions, data.labels)[task.metric]
    normalised = (value - task.chance) / ((task.best if best is None else best) - task.chance)
    return {"task": name, "metric": task.metric, "value": value, "normalised": normalised, "n": len(data.labels)} | more


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="zero_shot.py", description="Judge language models on four tasks without fine-tuning.")
    what = p.add_argument_group("what to judge, one of these")
    what.add_argument("--model_dir", help="folder of a model: the released one or pretrain.py's, or a name on the Hub")
    what.add_argument("--desc", nargs="+", help="names of runs of pretrain.py --keep_at: all that they kept")
    p.add_argument("--save_dir", default="save/", help="folder with the runs' folders")
    p.add_argument("--log_dir", default="log/", help="folder for <name>_zero_shot.jsonl")
    p.add_argument("--data_dir", required=True, help="folder with the folders CoLA, SST-2, RACE and DPRD, or some")
    p.add_argument("--picture", metavar="FILE", help="draw the runs' curves (.png, .svg, .pdf)")
    p.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="the tasks")
    p.add_argument("--n_examples", type=int, help="the first so many examples of each task (default: all)")
    p.add_argument("--threshold", type=float, help="of CoLA's mean log-probability (default: the best on train.tsv)")
    p.add_argument("--sentiment_words", nargs=2, default=list(SENTIMENT_WORDS), metavar=("NEGATIVE", "POSITIVE"),
                   help="the two words that may follow `very`")
    p.add_argument("--n_head", type=int, help="heads of the model, where its folder does not tell")
    p.add_argument("--afn", choices=tuple(ACT_FNS), help="its activation function, likewise")
    p.add_argument("--n_batch", type=int, default=16, help="examples at a time")
    options.add_device_option(p)
    options.add_plain_option(p)
    args = p.parse_args(argv)
    require_ranges(args, {"n_batch": (1, None)}
                   | {name: (1, None) for name in ("n_examples", "n_head") if getattr(args, name) is not None}
                   | ({"threshold": (-1000, 0)} if args.threshold is not None else {}))
    if (args.model_dir is None) == (args.desc is None):
        raise BadInput(f"{'nothing says' if args.desc is None else '--model_dir and --desc both say'} what to judge; "
                       "give one of --model_dir and --desc")
    if args.picture and args.desc is None:
        raise BadInput("--picture draws curves over the updates of a run; give --desc, or leave it out")
    return args


def check_models(args):
    """Refuse what cannot be judged before any text is read.

    Raises:
        MissingInput, BadInput: there is no model, or nothing was kept.
    """
    if args.model_dir is not None:
        args.model_dir = local_folder(args.model_dir)
        if not holds_lstm(args.model_dir):
            options.settle_heads(args.n_head, args.afn, read_pretrained(args.model_dir), args.model_dir)
    for desc in args.desc or ():
        folder = os.path.join(args.save_dir, desc)
        if not kept.kept_files(folder):
            raise MissingInput(f"{folder}: holds no update_<n>; expected a run of pretrain.py with --keep_at")


def judge(name: str, models: Iterable[tuple], data: dict[str, Data], log_dir: str, threshold: float | None = None,
          best: float | None = None, words: tuple[str, str] = SENTIMENT_WORDS, noted: dict | None = None,
          **how: Any) -> pd.DataFrame:
    """Judge models on some tasks and log it in <log_dir>/<name>_zero_shot.jsonl.

    Args:
        models: yields (number of updates or None, model, encoder). data: {task: Data}; see read.
        threshold, best: see evaluate. words: see sentiment_scores. noted: the first line of the log.
        how: n_batch, plain, verbose.
    Returns:
        a table with the columns name, n_updates and those of evaluate.
    """
    rows = []
    logger = ResultLogger(os.path.join(log_dir, f"{name}_zero_shot.jsonl"), **(noted or {}))
    with without_cudnn_attention():
        for n_updates, model, encoder in models:
            for task, of_task in data.items():
                more = {"words": words} if task == "sst2" else {}
                rows.append({"name": name, "n_updates": n_updates}
                            | evaluate(model, encoder, task, of_task, threshold, best, **more, **how))
                logger.log(**rows[-1])
    logger.close()
    return pd.DataFrame(rows)


def kept_models(folder: str, device: torch.device) -> Iterator[tuple[int, LMModel, TextEncoder]]:
    """Yield (number of updates, model, encoder) of all that a run kept, one at a time."""
    for n_updates, path in kept.kept_files(folder).items():
        model, encoder, _ = kept.load_kept(path)
        yield n_updates, model.to(device), encoder


def print_table(table):
    """Print a row for each model: its metric on each task in percent, and in brackets normalised."""
    tasks = list(dict.fromkeys(table["task"]))
    print(table["name"].iloc[0])
    print("updates".ljust(12) + "".join(f"{task} ({table[table.task == task].metric.iloc[0]})".rjust(22)
                                        for task in tasks))
    for n_updates, rows in table.groupby(pd.to_numeric(table["n_updates"]).fillna(-1)):
        of_task = {row.task: f"{row.value:.1f} ({row.normalised:.2f})" for row in rows.itertuples()}
        print(("released" if n_updates < 0 else f"{n_updates:,.0f}").ljust(12)
              + "".join(of_task[task].rjust(22) for task in tasks))


def draw(table: pd.DataFrame, out: str | None = None) -> Any:
    """Draw `normalised` over updates, a panel for each task, as figure 2 (right) has it in one.

    Args:
        table: of judge, of several runs one under the other. Rows of one name, task and number of updates are seeds.
        out: path to write to.
    Returns:
        the Figure.
    """
    low, high = table["normalised"].min(), table["normalised"].max()
    ylim = min(-0.2, low - 0.04), max(1, high) + 0.04  # one scale for all tasks, and room for the markers
    panels = []
    for task in dict.fromkeys(table["task"]):
        of_task, lines = table[table.task == task], []
        for name in dict.fromkeys(of_task["name"]):
            seeds = of_task[of_task.name == name].groupby("n_updates")["normalised"].apply(list)
            lines.append(Line(name, list(seeds.index), list(seeds)))
        panels.append(Panel(lines, "updates of pre-training", "relative performance", title=TASKS[task].title, chance=0,
                            log_x=True, ylim=ylim))
    return draw_lines(panels, out)


def main(argv: list | None = None) -> pd.DataFrame:
    """Judge what the options ask for, see the top of this file; return the table."""
    args = parse_args(argv)
    check_models(args)
    data = {name: read(name, args.data_dir, args.n_examples) for name in args.tasks}
    device = distributed.join(args.device).device
    how = dict(data=data, log_dir=args.log_dir, threshold=args.threshold, words=tuple(args.sentiment_words),
               noted=vars(args), n_batch=args.n_batch, plain=args.plain, verbose=args.desc is None)
    if args.model_dir is not None:
        models = ((None, *load_gpt(args.model_dir, args.n_head, args.afn, device)) for _ in range(1))
        tables = [judge(os.path.basename(os.path.normpath(args.model_dir)), models, **how)]
    else:
        tables = [judge(desc, kept_models(os.path.join(args.save_dir, desc), device), **how) for desc in args.desc]
    for table in tables:
        print_table(table)
    found = pd.concat(tables, ignore_index=True)
    if args.picture:
        draw(found, args.picture)
    return found


if __name__ == "__main__":
    sys.exit(run_script(main))
