"""What both sides of a row are given: sizes, batches of random words, and how much of the work is useful.

Batches have the shape of ROCStories with OpenAI's vocabulary: stories of about 41 tokens (sd 9, at most 64), endings of
8.7 (at most 17). Useful work is 6 operations (2 without gradients) for each weight of a matrix and each token that is
not padding.

Letters in the shape comments: b sequences or examples, t positions, s positions of a source.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from fast.memory import give_back_free_pages, keep_freed_memory, lay_large_blocks_apart
from t5_pytorch import EOS, PAD, T5_CONFIGS
from training.answering import batches, pad
from training.precision import one_update
from training.span_corruption import corrupt, random_spans_helper

N_SPECIAL, STORY_CTX, TEXT_CTX = 3, 77, 512
SAME_MALLOC = "BENCHMARK_SAME_MALLOC"  # how the processes of a row are told of --same_malloc

FULL = dict(n_embd=768, n_head=12, n_layer=12, n_vocab=40478, stories=8, sequences=2, length=TEXT_CTX, new_tokens=64,
            t5={}, t5_batch=16, source=60, target=20, t5_sequences=4, examples=1497, updates=138, compiler="inductor",
            gain=1, answered=dict(batch=32, labels=(256, (27, 11, 8, 66)), answers=(64, (175, 65, 60, 512)),
                                  summaries=(16, (900, 400, 100, 512)), longest=(2, 30, 128)))
# Odd sizes that are done in no time. This compiler compiles nothing: it shows that the traced model works. The gain of
# the blocks' weights makes what is decoded depend on more than the last token.
TINY = dict(n_embd=60, n_head=3, n_layer=2, n_vocab=203, stories=3, sequences=2, length=37, new_tokens=7,
            t5=dict(dim=48, enc_num_tokens=512, dec_num_tokens=512, enc_depth=2, dec_depth=2, enc_heads=3, dec_heads=3,
                    enc_dim_head=16, dec_dim_head=16, d_ff=80),
            t5_batch=3, source=19, target=9, t5_sequences=2, examples=9, updates=2, compiler="eager", gain=6,
            answered=dict(batch=3, labels=(7, (9, 3, 3, 19)), answers=(7, (12, 4, 3, 19)),
                          summaries=(5, (17, 9, 5, 19)), longest=(2, 6, 9)))


class Case(NamedTuple):
    """The conditions of a measurement.

    Attributes:
        size: FULL or TINY. device: 'cpu' or 'cuda'. precision: 'fp32' or 'bf16'.
    """

    size: dict
    device: str = "cpu"
    precision: str = "fp32"

    def autocast(self, enabled=True):
        """The context of a forward pass: bfloat16 where the precision says so."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled and self.precision == "bf16")


class Work(NamedTuple):
    """What one side of a row does.

    Attributes:
        run: function that does the work once.
        numbers: function returning the tensor that all sides have to agree on in float32 (without dropout, from the
            same weights), or None where the models differ. Whole numbers agree exactly.
        operations: useful floating-point operations in the work; 0 where nobody counts them.
        bytes_read: of weights that a decoding of one sequence has to read, each once a token; 0 elsewhere.
    """

    run: Callable
    numbers: Callable | None = None
    operations: float = 0
    bytes_read: float = 0


# --- GPT

def cloze_batch(n, n_vocab, seed=0):
    """Return x int [n, 2, 77, 2], m [n, 2, 77], y [n]: examples of ROCStories' lengths and random words."""
    g = np.random.default_rng(seed)
    x, m = np.zeros((n, 2, STORY_CTX, 2), np.int64), np.zeros((n, 2, STORY_CTX), np.float32)
    x[..., 1] = n_vocab + N_SPECIAL + np.arange(STORY_CTX)
    for i in range(n):
        story = g.integers(1, n_vocab, int(np.clip(g.normal(41, 9), 10, 64)))
        for k in range(2):
            ending = g.integers(1, n_vocab, int(np.clip(g.normal(8.7, 2.2), 3, 17)))
            tokens = [n_vocab, *story, n_vocab + 1, *ending, n_vocab + 2][:STORY_CTX - 1]
            tokens[-1] = n_vocab + 2
            x[i, k, :len(tokens), 0] = tokens
            m[i, k, :len(tokens)] = 1
    return torch.from_numpy(x), torch.from_numpy(m), torch.from_numpy(g.integers(0, 2, n))


def story_batches(case, n):
    """Return n batches (x, m, y) of cloze_batch on the case's device."""
    return [[part.to(case.device) for part in cloze_batch(case.size["stories"], case.size["n_vocab"], seed)]
            for seed in range(n)]


def padded_to_longest(x, m):
    """Return ids [b, 2, t] and mask [b, 2, t] of a batch of stories, cut to its longest sequence, as a collator pads.

    Args:
        x: int [b, 2, 77, 2]; m: [b, 2, 77].
    """
    t = int(m.sum(-1).max())
    return x[:, :, :t, 0], m[:, :, :t]


def text_ids(case):
    """Return int [b, t] of random words on the case's device: what pre-training reads."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(1, case.size["n_vocab"], (case.size["sequences"], case.size["length"]), generator=g).to(
        case.device)


def prompts(case, batch):
    """Return int [batch, 20] of random words on the case's device."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(1, case.size["n_vocab"], (batch, 20), generator=g).to(case.device)


def gpt_weights(size, head=True):
    """Weights of a GPT that take part in a matrix product for every token."""
    return 12 * size["n_layer"] * size["n_embd"] ** 2 + head * size["n_vocab"] * size["n_embd"]


class Kind(NamedTuple):
    """What the examples of a task of GPT-1's paper look like.

    Attributes:
        head: task_head_type of our model. parts: (mean, sd, lowest, highest) of each part's length in tokens; an
            example is of all of them, a multiple choice of the first and one of the others each time.
        n_examples: in a batch. n_ctx: positions; the first part is cut to what they leave.
    """

    head: str | tuple
    parts: tuple
    n_examples: int = 32
    n_ctx: int = 128


# About as long as SST-2's sentences, SNLI's pairs and QQP's questions, 32 in an update as in the paper; and as RACE's
# articles with their questions, of which two make 8 sequences.
KINDS = {"classification": Kind(("classification", 2), ((21, 9, 3, 60),)),
         "entailment": Kind(("classification", 3), ((16, 6, 4, 60), (9, 3, 2, 30))),
         "similarity": Kind(("similarity", 2), ((13, 6, 4, 60), (13, 6, 4, 60))),
         "race": Kind("multiple_choice", ((370, 90, 150, 560), *[(7, 3, 1, 20)] * 4), n_examples=2, n_ctx=TEXT_CTX)}


def task_batch(case, kind, seed=0):
    """Return x int [n, c, t, 2] (or [n, t, 2]), m of its shape without the last axis, and y int [n], random words.

    Args:
        kind: a key of KINDS. The tiny sizes have parts a tenth as long, so that they are done in no time.
    """
    of, g, n_vocab = KINDS[kind], np.random.default_rng(seed), case.size["n_vocab"]
    share = 1 if case.size["length"] == TEXT_CTX else 0.1
    examples = []
    for _ in range(of.n_examples):
        lengths = [max(1, int(share * np.clip(g.normal(mean, sd), low, high))) for mean, sd, low, high in of.parts]
        lengths[0] = min(lengths[0], of.n_ctx - 3 - max(lengths[1:], default=0))
        parts = [g.integers(1, n_vocab, length).tolist() for length in lengths]
        orders = {"classification": [parts], "entailment": [parts], "similarity": [parts, parts[::-1]]}.get(
            kind, [[parts[0], choice] for choice in parts[1:]])
        examples.append([[n_vocab, *order[0], *([n_vocab + 1, *order[1]] if order[1:] else []), n_vocab + 2]
                         for order in orders])
    t = max(len(sequence) for sequences in examples for sequence in sequences)
    x = np.zeros((len(examples), len(examples[0]), t, 2), np.int64)
    m = np.zeros(x.shape[:3], np.float32)
    x[..., 1] = n_vocab + N_SPECIAL + np.arange(t)
    for i, sequences in enumerate(examples):
        for k, sequence in enumerate(sequences):
            x[i, k, :len(sequence), 0], m[i, k, :len(sequence)] = sequence, 1
    if x.shape[1] == 1:
        x, m = x[:, 0], m[:, 0]
    n_labels = 4 if kind == "race" else of.head[1]
    return [torch.from_numpy(part).to(case.device) for part in (x, m, g.integers(0, n_labels, len(x)))]


# --- T5

def t5_config(size):
    """The constructor arguments of the size's T5: T5-small, or a tiny one."""
    return T5_CONFIGS["small"] | size["t5"]


def t5_batch(case, batch):
    """Return src [batch, s] and targets [batch, t] of random words, lengths about two thirds of the longest, padded."""
    g, n_tokens = torch.Generator().manual_seed(0), t5_config(case.size)["enc_num_tokens"]

    def rows(longest):
        ids = torch.randint(2, n_tokens - 128, (batch, longest), generator=g)
        lengths = torch.randint(longest // 3, longest + 1, (batch, 1), generator=g)
        lengths[0] = longest
        return (ids * (torch.arange(longest) < lengths)).to(case.device)

    return rows(case.size["source"]), rows(case.size["target"])


def answered(case, kind):
    """Return (sources, lengths): lists of ids as an evaluation has them, in a file's order, and tokens of each answer.

    Args:
        kind: 'labels', in the shape of SST-2: an answer of a word; 'answers', in the shape of SQuAD: of 5 tokens in the
            mean; 'summaries', in the shape of CNN/Daily Mail: of 72. Sources have random words and end in EOS.
    """
    size, n_tokens, g = case.size["answered"], t5_config(case.size)["enc_num_tokens"], np.random.default_rng(0)
    n, (mean, deviation, least, most) = size[kind]
    longest = dict(zip(("labels", "answers", "summaries"), size["longest"], strict=True))[kind]
    sources = [[*g.integers(2, n_tokens - 128, int(length) - 1).tolist(), EOS]
               for length in np.clip(g.normal(mean, deviation, n), least, most)]
    lengths = {"labels": np.full(n, 2), "answers": 1 + g.geometric(0.25, n),
               "summaries": g.normal(0.56, 0.17, n) * longest}[kind]
    return sources, torch.from_numpy(np.clip(lengths, 2, longest).astype(np.int64))


def answered_batches(case, sources, lengths, ordered, n_most=0):
    """Yield (numbers of the rows [b], src [b, s] padded with PAD, their lengths [b]), the batches of an evaluation.

    Args:
        ordered: the longest sources first; else in the file's order.
        n_most: rows of a batch of short sources, ordered ones; see answering.batches.
    """
    batch = case.size["answered"]["batch"]
    in_order, longest = torch.arange(len(sources)).split(batch), int(lengths.max())
    for rows in batches(sources, batch, n_most, longest) if ordered else in_order:
        rows = torch.as_tensor(rows)
        yield rows, pad([sources[i] for i in rows]).to(case.device), lengths[rows].to(case.device)


def ended(logits, rows):
    """Logits [b, ..., v] with EOS for certain in some rows, bool [b]; in place."""
    logits[rows] = -torch.inf
    logits[rows, ..., EOS] = 0
    return logits


def corrupted_batch(case):
    """Return src [b, s] and targets [b, t], text of random words after span corruption: no padding."""
    size, n_tokens = case.size, t5_config(case.size)["enc_num_tokens"]
    raw, _ = random_spans_helper(size["length"], 0.15, 3.0)
    g = np.random.default_rng(0)
    tokens = g.integers(2, n_tokens - 128, (size["t5_sequences"], raw))
    return [torch.from_numpy(part).long().to(case.device) for part in corrupt(tokens, n_tokens - 29, EOS, 0.15, 3.0, g)]


def t5_weights(size):
    """Weights of a T5 that take part in a matrix product for every source token, and for every target token."""
    c = t5_config(size)
    inner = c["enc_heads"] * c["enc_dim_head"]
    block = 4 * c["dim"] * inner + 2 * c["dim"] * c["d_ff"]
    source = c["enc_depth"] * block + c["dec_depth"] * 2 * c["dim"] * inner  # and the keys and values that cross
    return source, c["dec_depth"] * (block + 2 * c["dim"] * inner) + c["dec_num_tokens"] * c["dim"]


def t5_operations(case, src, targets, each=6):
    """Useful operations of a pass over src [b, s] and targets [b, t]; each: for a weight and a token."""
    source, target = t5_weights(case.size)
    return each * (source * int((src != PAD).sum()) + target * int((targets != PAD).sum()))


# --- both

def update(case, optimizer, losses, ours, clip=()):
    """Return the function that does one update: the mean of some losses, their gradients, the optimizer.

    Args:
        losses: functions without arguments, one for each tower.
        ours: with the settings of loop.train: training lays large blocks apart for its first update and keeps freed
            memory from then on (see fast/memory.py). --same_malloc gives both to both.
        clip: parameters whose gradients are clipped to a norm of 1, for an optimizer that does not do it.
    """
    def run():
        optimizer.zero_grad(set_to_none=len(losses) == 1)
        with one_update(torch.device(case.device)) if ours else contextlib.nullcontext():
            for loss in losses:
                if len(losses) > 1:
                    give_back_free_pages()
                with case.autocast():
                    value = loss() / len(losses)
                value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(clip, 1.0)
        optimizer.step()

    def run_as_loop():
        run()
        keep_freed_memory()

    if not ours and not os.environ.get(SAME_MALLOC):
        return run
    lay_large_blocks_apart()
    return run_as_loop


def without_dropout(model, function, *arguments):
    """Return the function that calls another, of the model in evaluation mode, and puts the model's mode back."""
    return partial(_without_dropout, model, partial(function, *arguments))


@torch.no_grad()
def _without_dropout(model, function):
    training = model.training
    model.eval()
    try:
        return function()
    finally:
        model.train(training)
