"""Fine-tuning T5 on tasks as text to text: options, examples, batches, evaluation by decoding, predictions.

What a task is stands in tasks/t5_tasks.py; data of one's own in tasks/text_pairs.py.
"""

import json
import math
import os
import zlib
from typing import NamedTuple

import numpy as np

from formats.errors import BadInput, warn
from formats.files import save_tensors
from t5_pytorch import T5_CONFIGS
from tasks import t5_metrics
from tasks.t5_published import PUBLISHED, SIZES
from tasks.t5_submission import file_name, write_predictions
from tasks.t5_tasks import MIXTURES, TASKS, Task, evaluate, read_examples
from tasks.text_pairs import COLUMNS, METRICS, own_task
from training import loop, sharding
from training.answering import DECODE_LENGTH, answer, encode, pad, warn_of_unknown_signs
from training.mixing import MixedOrders, PackedOrders, epoch_length
from training.precision import for_evaluation
from utils import read_log, require_ranges

UNDEFINED = -1e9     # the score of a metric that is not defined: below every other
OWN = "own"
OF_OWN = ("train_file", "valid_file", "test_file", "columns", "template", "metric")
OF_DECODING = ("pack", "decode_length", "mixing_limit", "mixing_temperature", "select")
FORMS = {"choices": ("rocstories", "copa"), "answer": ("rocstories", "copa", OWN)}  # of questions; see choosing.py


def add_options(parser):
    """Add the options about data sets and what is done with the predictions. Those of no use to some are None."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", default="rocstories", metavar="NAME",
                      help=f"rocstories; {', '.join(TASKS)}; a mixture: {', '.join(MIXTURES)}, or names joined by "
                           f"commas; {OWN}: your files")
    data.add_argument("--data_dir", default="data/", help="folder with the data set's files, or the folder above it")
    data.add_argument("--form", choices=tuple(FORMS),
                      help="how a question with candidate answers is asked: choices, the input lists them and the "
                           "target names one (if nothing is given); answer, the target is the right one, and the "
                           f"likeliest is chosen ({', '.join(FORMS['answer'])}, which then has the columns context, "
                           "choice1, choice2, ..., label)")
    data.add_argument("--n_valid", type=int, default=374,
                      help="rocstories: stories split off for validation; and training examples that tr_cost is of")
    data.add_argument("--submission_dir", default="submission/", help="folder for the predictions on the test files")
    data.add_argument("--submit", action="store_true", help="predict the test files with the best parameters")
    data.add_argument("--analysis", action="store_true",
                      help="print the results beside the paper's (rocstories: needs --submit)")
    data.add_argument("--show", type=int, metavar="N",
                      help="print the first N examples as text and end; needs no model")
    data.add_argument("--show_split", choices=("train", "valid", "test"), default="train", help="of which split")
    own = parser.add_argument_group(f"--dataset {OWN}")
    own.add_argument("--train_file", metavar="F",
                     help=".tsv (input, target; no header), .csv or .jsonl with the columns input, target")
    own.add_argument("--valid_file", metavar="F", help="as --train_file, for validation")
    own.add_argument("--test_file", metavar="F", help="as --train_file, to predict; targets may be missing")
    own.add_argument("--columns", nargs=2, metavar=("INPUT", "TARGET"), help="other names of the columns")
    own.add_argument("--template", metavar="TEXT",
                     help="make the input of several columns, such as 'question: {q} context: {c}'")
    own.add_argument("--metric", nargs="+", choices=tuple(METRICS),
                     help="the first selects the best parameters (accuracy if none is given); f1 and exact_match "
                          "compare words as SQuAD does")
    tasks = parser.add_argument_group("data sets other than rocstories, which has the first two of these")
    tasks.add_argument("--n_updates", type=int, help="updates in all, in place of --n_iter; 0: evaluate only")
    tasks.add_argument("--eval_every", type=int, help="updates between evaluations, in place of one after each epoch")
    tasks.add_argument("--pack", action="store_const", const=True,
                       help="count n_batch in rows of --n_ctx input and --n_target target tokens, each filled with as "
                            "many examples as fit, as the original does")
    tasks.add_argument("--n_target", type=int, help="target tokens at most (the task's in the paper; own data: 512)")
    tasks.add_argument("--decode_length", type=int, help=f"tokens of an answer at most ({DECODE_LENGTH})")
    tasks.add_argument("--mixing_limit", type=int, help="K: tasks with more examples are drawn as if they had K")
    tasks.add_argument("--mixing_temperature", type=float, help="T: sizes count to the power 1/T (1)")
    tasks.add_argument("--select", metavar="NAME",
                       help="whose first metric selects the best parameters of a mixture: average (if nothing is "
                            "given); a task of it; each: as average, and besides the best for each task, which predict "
                            "its test set")


def is_task(args):
    """Whether the run is about tasks of this file, not of choosing.py."""
    return args.dataset != "rocstories" and args.form != "answer"


def chosen(args) -> dict[str, Task]:
    """Return {name: Task} of what --dataset asks for.

    Raises:
        BadInput: a name is not known, or one's own data lacks a file.
    """
    if args.dataset == OWN:
        files = {split: getattr(args, f"{split}_file") for split in ("train", "valid", "test")}
        needed = ["valid", *["train"] * (args.n_updates != 0), *["test"] * args.submit]
        needed = needed if args.show is None else [args.show_split]
        for split in needed:
            if files[split] is None:
                raise BadInput(f"--dataset {OWN} needs --{split}_file")
        given = args.columns is not None or args.template is not None
        return {OWN: own_task(files, args.columns or COLUMNS, args.template, given,
                              args.metric or ["accuracy"], 512)}
    names = [part for name in args.dataset.split(",") for part in MIXTURES.get(name, (name,))]
    for name in names:
        if name not in TASKS:
            raise BadInput(f"--dataset {args.dataset}: {name!r} is not known, allowed is rocstories, {OWN}, "
                           f"{', '.join(MIXTURES)}, {', '.join(TASKS)}, or several of the tasks joined by commas")
        if names.count(name) > 1:
            raise BadInput(f"--dataset {args.dataset}: {name} is there {names.count(name)} times")
    return {name: TASKS[name] for name in names}


def check_options(args):
    """Check the options of add_options.

    Raises:
        BadInput: naming the option, its value and what is allowed.
    """
    given = {name: limits for name, limits in {
        "n_updates": (0, None), "eval_every": (1, None), "n_target": (2, None), "decode_length": (1, None),
        "mixing_limit": (1, None), "mixing_temperature": (1e-3, None), "show": (1, None)}.items()
        if getattr(args, name) is not None}
    require_ranges(args, given)
    if args.form is not None and args.dataset not in FORMS[args.form]:
        raise BadInput(f"--form {args.form}: goes with --dataset {', '.join(FORMS[args.form])}, not with "
                       f"{args.dataset}")
    if not is_task(args):
        check_options_of_choosing(args)
        return
    names = chosen(args)
    if args.select not in (None, "average", "each", *names):
        raise BadInput(f"--select is {args.select!r}, allowed is average, each, {', '.join(names)}")
    unused = [f"--{name}" for name in OF_OWN if getattr(args, name) is not None]
    if args.dataset != OWN and unused:
        raise BadInput(f"{', '.join(unused)}: goes with --dataset {OWN}, not with {args.dataset}")


def check_options_of_choosing(args):
    """Check what choosing.py is asked for; see check_options."""
    if args.dataset == "rocstories" and args.analysis and not args.submit and args.show is None:
        raise BadInput("--analysis needs the predictions: give --submit too")
    files = ("train_file", "valid_file", "test_file") if args.dataset == OWN else ()
    unused = [f"--{name}" for name in (*OF_OWN, *OF_DECODING, *["n_target"] * (args.form != "answer"))
              if name not in files and getattr(args, name) is not None]
    if unused:
        raise BadInput(f"{', '.join(unused)}: of no use to --dataset {args.dataset}"
                       + f" in the form {args.form}" * (args.form is not None) + "; leave it out, or choose a task")
    for name in ("train_file", *["test_file"] * args.submit) if files else ():
        if getattr(args, name) is None:
            raise BadInput(f"--dataset {OWN} needs --{name}")


def trained_on(tasks):
    """The names of the tasks that take part in training: all that have a training set; in a mixture not WNLI."""
    return [name for name, task in tasks.items() if task.splits["train"] and (task.n_train != 0 or len(tasks) == 1)]


def show(args):
    """Print the first examples of a split of each task, a JSON object a line."""
    for name, task in chosen(args).items():
        shown = 0
        if not task.splits[args.show_split]:
            raise BadInput(f"--show_split {args.show_split}: {name} has no such split, only "
                           f"{', '.join(split for split, parts in task.splits.items() if parts)}")
        for part in task.splits[args.show_split]:
            for example in read_examples(task, args.data_dir, part, training=part == "train")[:args.show - shown]:
                print(json.dumps({"task": name, "input": example["inputs"], "target": example["targets"]},
                                 ensure_ascii=False))
                shown += 1


class Set(NamedTuple):
    """The examples of a set of a task. inputs: int32 arrays of ids, EOS included; targets as well, or None."""

    name: str
    task: Task
    part: str
    examples: list[dict]
    inputs: list[np.ndarray]
    targets: list[np.ndarray] | None = None

    @property
    def label(self) -> str:
        """What its metrics' names begin with besides the task: '' or 'mismatched_'."""
        return "mismatched_" if self.part.endswith("mismatched") else ""


def read_set(args, encoder, name, task, part, training, show) -> Set:
    """Read and encode a set."""
    examples = read_examples(task, args.data_dir, part, training)
    inputs, targets = ([example[side] for example in examples] for side in ("inputs", "targets"))
    if show:
        warn_of_unknown_signs(encoder, inputs + targets * training, f"texts of {name}, {part},")
    length = args.n_target or task.target_length
    return Set(name, task, part, examples, encode(encoder, inputs, args.n_ctx, f"inputs of {name}", "--n_ctx", show),
               encode(encoder, targets, length, f"targets of {name}", "--n_target", show) if training else None)


def decode(args, model, encoder, inputs, beams, world) -> list[str]:
    """The model's answers to inputs, arrays of ids, as texts in their order; see answering.answer."""
    answers, _ = answer(for_evaluation(model, args.precision), inputs, world, args.decode_length or DECODE_LENGTH,
                        beams, args.n_batch * args.n_gpu, args.plain, show=world.is_first)
    return [encoder.decode(ids) for ids in answers]


def score_sets(args, model, encoder, sets, world) -> dict[str, float | None]:
    """{"cola/matthews_corrcoef": value, ...} of some sets; None where a metric is undefined."""
    scores = {}
    for one in sets:
        texts = decode(args, model, encoder, one.inputs, one.task.beams, world)
        for metric, value in evaluate(one.task, one.examples, texts).items():
            scores[f"{one.name}/{one.label}{metric}"] = value if math.isfinite(value) else None
    return scores


def logged(scores, several):
    """(values to log, {task: its first metric}) of scores; the averages of GLUE and SuperGLUE where all is there."""
    first = {}
    for key, value in scores.items():
        first.setdefault(key.split("/")[0], value)
    values = {f"va_{key.replace('/', '_') if several else key.split('/')[1]}": value for key, value in scores.items()}
    if None not in scores.values():
        averages = {"va_glue_average": t5_metrics.average_glue(scores),
                    "va_super_glue_average": t5_metrics.average_super_glue(scores)}
        values |= {name: value for name, value in averages.items() if value is not None}
    return values, first


def selecting(first, select):
    """The number that selects the best parameters: of one task, or the mean over all."""
    values = [first[select]] if select in first else list(first.values())
    return UNDEFINED if not values or None in values else float(np.mean(values))


def orders_of(args, train, target_length):
    """The orders in which loop.train takes the examples of some sets, numbered through, or their packed rows."""
    if not train:
        return [np.arange(args.n_batch * args.n_gpu)]  # for evaluation alone, which takes nothing from it
    sizes, temperature = [len(one.inputs) for one in train], args.mixing_temperature or 1.0
    lengths = np.array([(len(src), len(tgt)) for one in train
                        for src, tgt in zip(one.inputs, one.targets, strict=True)])
    n_rows, n_iter, limits = epoch_length(sizes, args.mixing_limit), args.n_iter, (args.n_ctx, target_length)
    if args.pack:
        n_rows = PackedOrders(MixedOrders(args.seed, 1, sizes, args.mixing_limit, temperature), lengths, limits).n_rows
    if args.n_updates is not None:
        n_iter = -(-args.n_updates // loop.updates_per_epoch(n_rows, args))
    orders = MixedOrders(args.seed, n_iter, sizes, args.mixing_limit, temperature)
    return PackedOrders(orders, lengths, limits) if args.pack else orders


def require_judgeable(one):
    """Raise BadInput where a set is too small for its metrics: a correlation needs two examples."""
    if len(one.examples) > 1:
        return
    try:
        evaluate(one.task, one.examples, [example["targets"] for example in one.examples])
    except ValueError as error:
        raise BadInput(f"{one.name}: the {one.part} set has {len(one.examples)} example, too few for its metric "
                       f"({str(error)[:80]}); give more, or another --metric") from None


def settings_of(args) -> dict:
    """What predict.py has to know of a run besides its model: see finetuned.T5_KINDS."""
    tasks = chosen(args) if is_task(args) else {}
    beams = {task.beams for task in tasks.values()}
    return {"model": "t5", "dataset": args.dataset, "n_ctx": args.n_ctx,
            "decode_length": args.decode_length or DECODE_LENGTH, "beams": beams.pop() if len(beams) == 1 else 1,
            "column": (args.columns or COLUMNS)[0], "template": args.template}


def finetune(args, model, encoder, world, optimizer, training_loss, vocabulary, files):
    """Train on the tasks of --dataset and evaluate by decoding; the best parameters are in the run's folder then.

    Args:
        training_loss: function of (src [b, s], targets [b, t]) returning the mean over b * t positions.
        vocabulary, files: see loop.train.
    """
    tasks, show = chosen(args), world.is_first
    names = trained_on(tasks) if args.n_updates != 0 else []
    if not names and args.n_updates != 0:
        raise BadInput(f"--dataset {args.dataset} has no training set; add tasks to train on, or give --n_updates 0")
    train = [read_set(args, encoder, name, tasks[name], "train", True, show) for name in names]
    valid = [read_set(args, encoder, name, task, part, False, show) for name, task in tasks.items()
             for part in task.splits["valid"] if task.metrics]
    for one in valid:
        require_judgeable(one)
    inputs = [ids for one in train for ids in one.inputs]
    targets = [ids for one in train for ids in one.targets]
    fingerprint = 0
    for ids in inputs + targets + [ids for one in valid for ids in one.inputs]:
        fingerprint = zlib.crc32(ids, fingerprint)
    # the original pads targets to this, and its loss is a mean over padding too
    full = args.n_target or max((one.task.target_length for one in train), default=1)
    orders = orders_of(args, train, full)

    def tower_loss(rows):
        numbers = np.concatenate(rows) if args.pack else rows
        src, tgt = (pad([ids[i] for i in numbers]) for ids in (inputs, targets))
        return training_loss(src, tgt) * (tgt.numel() / (len(rows) * full))

    def evaluation():
        values, first = logged(score_sets(args, model, encoder, valid, world), len(tasks) > 1)
        if args.select == "each":
            keep_best(args, model, first, tasks, world)
        return values, selecting(first, args.select)

    loop.train(args, model, optimizer, orders, tower_loss, evaluation, world, fingerprint, vocabulary, files,
               n_updates=args.n_updates, eval_every=args.eval_every)


def best_path(args, name):
    """The file of the parameters that did best on a task, with --select each."""
    return f"{loop.paths(args)['best']}_{name}"


def keep_best(args, model, first, names, world):
    """With --select each: write the parameters for each task on which they do better than all in the log so far."""
    parameters = sharding.parameters_of(model, world)
    if not world.is_first:
        return
    before = read_log(loop.paths(args)["log"])[1:]
    for name, value in first.items():
        known = [next(iter(values_of(line, name, names).values())) for line in before]
        if not before or (value is not None and all(old is None or value > old for old in known)):
            save_tensors(best_path(args, name), parameters)


def submit(args, model, encoder, world) -> dict[str, str]:
    """Predict the test sets of the tasks, and write them; {task and set: path}.

    The predictions are the model's; with --select each those of the parameters that did best on the task, which are in
    the model afterwards.
    """
    paths = {}
    for name, task in chosen(args).items():
        if args.select == "each" and task.metrics and task.splits["test"]:
            sharding.load_parameters(model, best_path(args, name), world)
        for part in task.splits["test"]:
            one = read_set(args, encoder, name, task, part, False, world.is_first)
            texts = decode(args, model, encoder, one.inputs, task.beams, world)
            path = os.path.join(args.submission_dir, file_name(name, part))
            if world.is_first:
                write_predictions(path, name, task, one.examples, texts)
            paths[f"{name}_{part}"] = path
        if not task.splits["test"]:
            warn(f"{name} has no test set; nothing is predicted for it")
    return paths


def values_of(line, name, names):
    """{metric: value} of a task in a line of the log of a run of several tasks, or of one."""
    start = f"va_{name}_" if len(names) > 1 else "va_"
    longer = tuple(f"va_{other}_" for other in names if other != name and other.startswith(name))
    return {key.removeprefix(start): value for key, value in line.items()
            if key.startswith(start) and not (longer and key.startswith(longer))}


def best_line(lines, names, select):
    """The line of the log with the best parameters: by one task, or by the mean over all that have a metric."""
    def score(line):
        values = {name: values_of(line, name, names) for name in names}
        return selecting({name: next(iter(found.values())) for name, found in values.items() if found}, select)

    return max(lines, key=score)


def released_size(model):
    """The key of T5_CONFIGS whose sizes a T5 has, or None."""
    attention, last = model.encoder.block[0].layer[0].SelfAttention, model.encoder.block[0].layer[-1].DenseReluDense
    d_ff, inner = last.wo.weight.shape[1], attention.q.weight.shape[0]
    found = dict(dim=model.dim, d_ff=d_ff, enc_heads=attention.heads, enc_dim_head=inner // attention.heads,
                 enc_depth=len(model.encoder.block), dec_depth=len(model.decoder.block), tie_logits=model.tie_logits,
                 feed_forward="gated-gelu" if last.gated else "relu")
    return next((name for name, config in T5_CONFIGS.items() if found.items() <= config.items()), None)


def report(args, size):
    """Print the best validation results in the run's log beside the paper's for a size, see released_size."""
    lines, names = read_log(loop.paths(args)["log"])[1:], chosen(args)
    size = SIZES.index(size) if size in SIZES else None
    print("best parameters on validation, in percent")
    for name in (*names, *(("glue", "super_glue") if len(names) > 1 else ())):
        best = best_line(lines, names, name if args.select == "each" else args.select)
        for metric, value in values_of(best, name, names).items():
            theirs = PUBLISHED.get(name, {}).get(metric, ())
            line = f"{name} {metric}: {'undefined' if value is None else format(value, '.2f')} on validation"
            line += f" after {best['n_updates']} updates"
            if size is not None and size < len(theirs):
                where = "validation" if name.startswith("squad") else "test"
                line += f"; paper, {SIZES[size]}: {theirs[size]} on {where} (table 14)"
            print(line)
