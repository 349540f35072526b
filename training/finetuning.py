"""What train.py and train_t5.py share besides the loop: the task, choosing among endings, the submission."""

import os
import re

import numpy as np
import torch
import torch.nn.functional as F

from fast.at_rest import WeightsAtRest
from formats import progress
from formats.errors import BadInput
from formats.files import write_atomically
from loss import mean_task_loss, task_losses
from tasks import metrics, scores, story_cloze, submissions
from training import loop, sharding
from utils import read_log

# of train_t5.py, as train.py has all of gpt_tasks.GPT_TASKS:
# name -> (reader of data_dir, name of the submission file); analysis.REPORTS has a report on each
DATASETS = {"rocstories": (story_cloze.rocstories, "ROCStories.tsv")}


def add_submission_options(data):
    """Add what is done with the predictions to a group of options."""
    data.add_argument("--submission_dir", default="submission/", help="folder for the predictions on the test "
                      "file; a folder of its own for each run, as the names of the files are fixed")
    data.add_argument("--submit", action="store_true", help="predict the test file with the best parameters")
    data.add_argument("--analysis", action="store_true", help="print the accuracies (needs --submit)")


def check_submission_options(args):
    """Check the options of add_submission_options.

    Raises:
        BadInput: naming the option.
    """
    if args.analysis and not args.submit:
        raise BadInput("--analysis needs the predictions: give --submit too")


def read_splits(args):
    """Return train, valid and test of the data set asked for, each (stories, endings 1, endings 2, labels)."""
    try:
        return DATASETS[args.dataset][0](args.data_dir, n_valid=args.n_valid)
    except BadInput as error:  # the reader names its argument, which is an option here
        raise BadInput(re.sub("^n_valid ", "--n_valid ", str(error))) from None


def choose(logits_of, n_examples, n_choices, n_batch, world, verbose=False, desc=None):
    """Return float32 [n_examples, n_choices], a logit for every choice of every example.

    Args:
        logits_of: function of a slice of example numbers returning [n, n_choices] logits.
        n_batch: examples at a time. The batches are shared out among the processes.
        verbose: show a progress bar. desc: what it is called.
    """
    logits = torch.zeros(n_examples, n_choices, device=world.device)
    starts = world.share(range(0, n_examples, n_batch))
    with WeightsAtRest():
        for start, counts in progress.bar(starts, unit="batch", desc=desc, show=verbose and world.is_first):
            rows = slice(start, min(start + n_batch, n_examples))
            found = logits_of(rows).float()
            if counts:
                logits[rows] = found
    return world.sum(logits)


def cost_and_accuracy(logits, labels):
    """Mean cross entropy per example in nats, and accuracy in percent, of logits [n, c] and labels [n]."""
    labels = torch.as_tensor(labels, device=logits.device).long()
    cost = F.cross_entropy(logits.float(), labels).item()
    return cost, 100 * ((logits.argmax(1) == labels).sum().item() / max(len(labels), 1))  # not every device has float64


def cost_and_metrics(task, logits, examples, apart=True):
    """Return (mean cost per example in nats, {metric: percent}) of logits [n, c].

    Args:
        task: see gpt_tasks.Task. examples: the n Examples.
        apart: also the first metric of each of the task's groups, as <metric>_<group>.
    """
    y = torch.as_tensor(examples.targets(np.arange(len(logits))), device=logits.device)
    cost = mean_task_loss(task_losses(logits, y), y).item()
    if task.score_range is None:
        predictions = logits.argmax(1)
    else:
        predictions = scores.expected(logits, task.score_range[0])
    predictions, labels = predictions.cpu().numpy(), examples.labels[:len(logits)]
    found = metrics.of(task.metrics, predictions, labels)
    if apart:
        found |= metrics.by_group(task.metrics[0], task.groups, examples.groups, predictions, labels)
    return cost, found


def make_task_evaluation(args, task, splits, logits_of):
    """Return the function that loop.train calls to evaluate a run of train.py: what it logs, and the score.

    Logged are tr_cost and tr_<metric> of the first n_valid training examples, va_cost and va_<metric> of valid, and
    with a part's name behind them (va_acc_high) those of the task's groups and of other validation splits: MNLI's
    mismatched one. The score is the first metric on valid.

    Args:
        task: see gpt_tasks.Task. splits: {name: Examples}.
        logits_of: function of {name in splits: n} that returns {name: [n, c] logits of its first n examples}.
    """
    numbers = {"train": min(args.n_valid, len(splits["train"]))}
    numbers |= {name: len(examples) for name, examples in splits.items() if name.startswith("valid")}

    def evaluate():
        values = {}
        for name, logits in logits_of(numbers).items():
            part = name.removeprefix("valid").removeprefix("train")  # '', or '_mismatched'
            kind = "tr" if name == "train" else "va"
            cost, found = cost_and_metrics(task, logits, splits[name], apart=name == "valid")
            values |= {f"{kind}_{key}{part}": value for key, value in ({"cost": cost} | found).items()}
        return values, values[f"va_{task.metrics[0]}"]

    return evaluate


def make_evaluation(args, logits_of_both, train_labels, valid_labels):
    """Return the function that loop.train calls to evaluate.

    As in the original, the training part is represented by its first n_valid examples.

    Args:
        logits_of_both: function returning the [n, c] logits of the first n_valid training examples, and of valid's.
        train_labels, valid_labels: int [n], all of them.
    """
    def evaluate():
        of_train, of_valid = logits_of_both()
        tr_cost, tr_acc = cost_and_accuracy(of_train, train_labels[:args.n_valid])
        va_cost, va_acc = cost_and_accuracy(of_valid, valid_labels)
        return dict(tr_cost=tr_cost, va_cost=va_cost, tr_acc=tr_acc, va_acc=va_acc), va_acc

    return evaluate


def write_submission(path, predictions):
    """Write the predicted choices, one row per test example, as the original does: index, prediction."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write("index\tprediction\n")
        f.writelines(f"{i}\t{int(prediction)}\n" for i, prediction in enumerate(predictions))


def load_best(args, model, world):
    """Put the best parameters of the run into the model, and set it to eval mode."""
    path = loop.paths(args)["best"]
    if world.any(not os.path.isfile(path)):  # which also waits for the first process to have written them
        raise BadInput(f"{path}: not found by every process; --save_dir must be a folder that all machines share")
    sharding.load_parameters(model, path, world)
    model.eval()


def finish(args, model, encoder, world, test_logits, test_labels):
    """End a run: put the best parameters into the model and, with --submit, predict the test split and write that.

    Args:
        test_logits: function without arguments returning [n, c] logits of the test split. test_labels: int [n].
    Returns:
        see loop.Outcome.
    """
    load_best(args, model, world)
    if not args.submit:
        return loop.outcome(args, model, encoder, world)
    path = os.path.join(args.submission_dir, DATASETS[args.dataset][1])
    logits = test_logits()
    if world.is_first:
        write_submission(path, logits.argmax(1).tolist())
    return loop.outcome(args, model, encoder, world, {"test": cost_and_accuracy(logits, test_labels)[1]},
                        submission=path)


def finish_task(args, task, splits, model, encoder, world, logits_of):
    """End a run of train.py: as finish, for any task and all of its test splits.

    What was measured on validation stands in the log and is not computed again.

    Args:
        task: see gpt_tasks.Task. splits: {name: Examples}. logits_of: see make_task_evaluation.
    Returns:
        see loop.Outcome; its accuracies are the task's first metric, for 'test' only where the split has labels, and
        the same of parts: 'test_high', 'valid_mismatched'.
    """
    load_best(args, model, world)
    first, values, written = task.metrics[0], {}, {}
    lines = read_log(loop.paths(args)["log"]) if world.is_first else []
    if lines := [line for line in lines if isinstance(line, dict) and f"va_{first}" in line]:
        values = _of_parts("valid", f"va_{first}", max(lines, key=lambda line: line[f"va_{first}"]))
    tests = {split: name for split, name in task.submission.items() if args.submit and split in splits}
    for split, logits in logits_of({split: len(splits[split]) for split in tests}).items():
        written[split] = os.path.join(args.submission_dir, tests[split])
        if world.is_first:
            submissions.write_submission(written[split], task, splits[split], logits)
        if split == "test" and splits[split].labels is not None:
            values |= _of_parts("test", first, cost_and_metrics(task, logits, splits[split])[1])
    more = {"submission": written["test"]} if "test" in written else {}
    return loop.outcome(args, model, encoder, world, values, **more)


def _of_parts(split, first, found):
    """Return {'valid': percent, 'valid_high': percent, ...} of {'va_acc': percent, 'va_acc_high': percent, ...}."""
    return {name.replace(first, split, 1): value for name, value in found.items()
            if name == first or name.startswith(f"{first}_")}
