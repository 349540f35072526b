"""Fine-tuning T5 to choose among candidate answers: the Story Cloze Test, COPA, multiple choices of one's own.

A question has two forms (--form):
    choices     rocstories choice1: <ending 1> choice2: <ending 2> sentence: <story>   ->   choice1 | choice2
    answer      rocstories sentence: <story>   ->   <the right ending>
The form choices is in the style of the paper's COPA; the prediction is the target with the larger log-probability. In
the form answer it is the candidate with the larger mean log-probability of its tokens. The end of the sequence is one
of these: it belongs to the target, and the mean over all of them is minus the loss that training lowers.

All data sets here have the form answer. Only rocstories has the form choices here: COPA's is a task of text_to_text.py,
which is judged by the texts that the model generates, and so are pairs of one's own.
"""

import json
import os
import zlib
from functools import partial
from typing import NamedTuple

import torch

from formats.errors import BadInput
from formats.files import write_atomically
from t5_pytorch import PAD
from tasks.own_data import own_examples
from tasks.t5_published import PUBLISHED, SIZES
from tasks.t5_submission import file_name, write_predictions
from tasks.t5_tasks import TASKS
from training import answering, finetuning, loop
from training.precision import for_evaluation
from utils import read_log

TARGETS = ("choice1", "choice2")
TARGET_LENGTH = 512  # tokens of a candidate at most


class Candidates(NamedTuple):
    """A split: n inputs, the c candidate targets of each, and the number of the right one; None: that is not known."""

    inputs: list[str]
    targets: list[tuple[str, ...]]
    labels: list[int] | None


def cloze_candidates(split, form) -> Candidates:
    """Candidates of a split of the Story Cloze Test: (stories, endings 1, endings 2, labels)."""
    *texts, labels = split
    if form == "answer":
        inputs, targets = [f"rocstories sentence: {story}" for story in texts[0]], list(zip(*texts[1:], strict=True))
    else:
        inputs = [f"rocstories choice1: {one} choice2: {two} sentence: {story}"
                  for story, one, two in zip(*texts, strict=True)]
        targets = [TARGETS] * len(inputs)
    return Candidates(inputs, targets, [int(label) for label in labels])


def copa_candidates(features) -> Candidates:
    """Candidates of COPA, in the form answer: the prefix, premise and question of the paper's form, without choices."""
    labels = [one["label"] for one in features]
    return Candidates([f"copa premise: {one['premise']} question: {one['question']}" for one in features],
                      [(one["choice1"], one["choice2"]) for one in features], None if -1 in labels else labels)


def own_candidates(split) -> Candidates:
    """Candidates of a tasks.glue_files.Split with context, choice1, choice2, ...: the context is the input."""
    context, *choices = split.texts.values()
    labels = None if split.labels is None else [int(label) - 1 for label in split.labels]
    return Candidates(context, list(zip(*choices, strict=True)), labels)


def read_splits(args, splits=("train", "valid", "test")) -> dict[str, Candidates]:
    """Return {'train', 'valid', and 'test' where there is one: Candidates}, of those that are asked for.

    Raises:
        MissingInput, BadInput: see the readers.
    """
    if args.dataset == "rocstories":
        read = dict(zip(("train", "valid", "test"), finetuning.read_splits(args), strict=True))
        return {name: cloze_candidates(read[name], args.form) for name in splits}
    if args.dataset == "copa":
        return {name: copa_candidates(TASKS["copa"].read(args.data_dir, name)) for name in splits
                if name != "test" or args.submit or args.show is not None}
    _, read = own_examples("multiple_choice", args.train_file, args.valid_file, args.test_file, seed=args.seed)
    return {name: own_candidates(read[name]) for name in splits if name in read}


def show(args):
    """Print the first examples of a split as text, a JSON object a line, as text_to_text.show does for tasks."""
    splits = read_splits(args, (args.show_split,))
    if args.show_split not in splits:
        raise BadInput(f"--show_split {args.show_split}: give --{args.show_split}_file")
    split = splits[args.show_split]
    for row in range(min(args.show, len(split.inputs))):
        target = None if split.labels is None else split.targets[row][split.labels[row]]
        shown = {"task": args.dataset, "input": split.inputs[row], "target": target}
        shown |= {"candidates": split.targets[row]} if args.form == "answer" else {}
        print(json.dumps(shown, ensure_ascii=False))


def score(args, log_probs, candidates):
    """What chooses a candidate: its log-probability, in the form answer the mean over its tokens.

    Args:
        log_probs: [b, c]; candidates: int [b, c, t], padded with PAD.
    """
    if args.form != "answer":
        return log_probs
    return log_probs / (candidates != PAD).sum(-1).to(log_probs)


class Encoded(NamedTuple):
    """As Candidates, in ids that end in EOS: inputs int32 [n][s], targets int32 [n][c][t], labels int64 [n] or None."""

    inputs: list
    targets: list
    labels: torch.Tensor | None


def encode(args, encoder, splits, show):
    """Return {name: Encoded} of {name: Candidates}; what is too long is cut, and counted in one warning."""
    inputs = [text for split in splits.values() for text in split.inputs]
    inputs = iter(answering.encode(encoder, inputs, args.n_ctx, "sources", "--n_ctx", show))
    texts = [text for split in splits.values() for one in split.targets for text in one]
    distinct = list(dict.fromkeys(texts))
    length = args.n_target or TARGET_LENGTH
    ids = dict(zip(distinct, answering.encode(encoder, distinct, length, "targets", "--n_target",
                                                 show and args.form == "answer"), strict=True))
    return {name: Encoded([next(inputs) for _ in split.inputs],
                          [[ids[text] for text in one] for one in split.targets],
                          None if split.labels is None else torch.tensor(split.labels))
            for name, split in splits.items()}


def pad_candidates(targets):
    """Return int64 [b, c, t] of b lists of c arrays of ids."""
    return answering.pad([ids for one in targets for ids in one]).unflatten(0, (len(targets), -1))


def finetune(args, model, encoder, world, optimizer, training_loss, log_probs, vocabulary, files):
    """Train to give the right candidate, choose, and predict; return a loop.Outcome.

    Args:
        training_loss: function of (src [b, s], targets [b, t]) returning the mean over b * t positions.
        log_probs: function of (model, src [b, s], candidates [b, c, t]) returning their log-probabilities, [b, c].
        vocabulary, files: see loop.train.
    """
    texts = read_splits(args)
    splits = encode(args, encoder, texts, world.is_first)
    train, valid = splits["train"], splits["valid"]
    splits["train part"] = Encoded(train.inputs[:args.n_valid], train.targets[:args.n_valid], None)
    right = [one[label] for one, label in zip(train.targets, train.labels.tolist(), strict=True)]
    longest = max(map(len, right))  # the loss is a mean over padding too, whatever the towers hold

    def tower_loss(rows):
        src, targets = (answering.pad([ids[i] for i in rows]) for ids in (train.inputs, right))
        return training_loss(src, targets) * (targets.shape[1] / longest)

    def logits(*names):
        """Logits [n, c] of each of some splits, the weights converted once for all of them."""
        converted = for_evaluation(model, args.precision)

        def of(split, rows):
            candidates = pad_candidates(split.targets[rows])
            found = log_probs(converted, answering.pad(split.inputs[rows]), candidates)
            return score(args, found.float(), candidates.to(found.device))

        return [finetuning.choose(partial(of, split), len(split.inputs), len(split.targets[0]),
                                  args.n_batch * args.n_gpu, world, True) for split in map(splits.get, names)]

    evaluate = finetuning.make_evaluation(args, partial(logits, "train part", "valid"), train.labels, valid.labels)
    n_train, n_iter = len(train.inputs), args.n_iter
    if args.n_updates == 0:  # for evaluation alone, which takes nothing from it
        n_train = args.n_batch * args.n_gpu
    elif args.n_updates is not None:
        n_iter = -(-args.n_updates // loop.updates_per_epoch(n_train, args))
    loop.train(args, model, optimizer, loop.draw_orders(n_iter, n_train), tower_loss, evaluate, world,
               fingerprint_of(args, splits), vocabulary, files, n_updates=args.n_updates, eval_every=args.eval_every)
    if args.dataset == "rocstories":
        return finetuning.finish(args, model, encoder, world, lambda: logits("test")[0], splits["test"].labels)
    finetuning.load_best(args, model, world)
    accuracies, paths = {}, {}
    if args.submit and "test" in splits:
        (found,), labels = logits("test"), splits["test"].labels
        accuracies = {} if labels is None else {"test": finetuning.cost_and_accuracy(found, labels)[1]}
        paths = {"submission": os.path.join(args.submission_dir, file_name(args.dataset, "test"))}
        if world.is_first:
            write_submission(args, paths["submission"], found.argmax(1).tolist())
    return loop.outcome(args, model, encoder, world, accuracies, **paths)


def fingerprint_of(args, splits):
    """A number that tells training and validation examples from others; of the form choices it is the one of old."""
    parts = [splits["train"], splits["valid"]]
    inputs = [[ids.tolist() for ids in part.inputs] for part in parts]
    labels = [part.labels.tolist() for part in parts]
    more = [[[ids.tolist() for ids in one] for one in part.targets] for part in parts if args.form == "answer"]
    return zlib.crc32(repr((inputs, *labels, *more)).encode())


def write_submission(args, path, predictions):
    """Write the predicted choices: COPA's in SuperGLUE's form; of one's own data index, and the choice from 1 on."""
    if args.dataset == "copa":
        task = TASKS["copa"]
        examples = task.read(args.data_dir, "test")
        write_predictions(path, "copa", task, examples, [task.labels[k] for k in predictions])
        return
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write("index\tprediction\n")
        f.writelines(f"{i}\t{k + 1}\n" for i, k in enumerate(predictions))


def report(args, outcome, size):
    """Print the accuracies of a run of COPA or one's own data, in the form answer, beside the paper's for a size."""
    best = max(read_log(loop.paths(args)["log"])[1:], key=lambda line: line["va_acc"])
    line = f"{args.dataset} accuracy: {best['va_acc']:.2f} on validation after {best['n_updates']} updates"
    size = SIZES.index(size) if size in SIZES else None
    theirs = PUBLISHED.get(args.dataset, {}).get("accuracy", ())
    if size is not None and size < len(theirs):
        line += f"; paper, {SIZES[size]}, in the form choices: {theirs[size]} on test (table 14)"
    print(line)
    if "test" in outcome.accuracies:
        print(f"{args.dataset} accuracy: {outcome.accuracies['test']:.2f} on test")
