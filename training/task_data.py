"""A task's data for GPT from the command line: its options, its splits read, encoded and kept, --show."""

import contextlib
import json
import os
import re
import tempfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from formats.errors import BadInput, MissingInput, warn
from formats.files import make_path
from tasks import encoded_files
from tasks.encoding import encode_split, first_examples
from tasks.examples import Examples
from tasks.fitting import fit, needed
from tasks.glue_files import Split
from tasks.gpt_tasks import GPT_TASKS, Task, check_sizes
from tasks.layout import SPECIAL
from tasks.own_data import COLUMNS, KINDS, own_examples, own_task, parse_columns, write_rows
from utils import require_ranges

OWN = "own"
OWN_OPTIONS = ("task", "train_file", "valid_file", "test_file", "columns")
KEPT_FROM = 3_000_000  # bytes of a data set's files; a smaller one is encoded in a few seconds
SHOWN_SPLITS = ("train", "valid", "test")


class Data(NamedTuple):
    """A task and its encoded splits, {'train', 'valid', ...: Examples}."""

    task: Task
    splits: dict[str, Examples]


def add_data_options(parser):
    """Add the options about the data set; return their group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=(*GPT_TASKS, OWN), default="rocstories",
                      help="the task; own: your own files, see --task")
    data.add_argument("--data_dir", default="data/", help="folder with the data set's files, or the folder above it")
    data.add_argument("--n_valid", type=int, default=374,
                      help="stories split off ROCStories' validation file; and training examples that tr_cost is of")
    data.add_argument("--cache_dir", help="folder for large data sets once encoded (default: encoded/ in --save_dir)")
    data.add_argument("--show", type=int, metavar="N",
                      help="print the first N examples as the model reads them, a line of JSON each, and end")
    data.add_argument("--show_split", choices=SHOWN_SPLITS, default="train", help="whose examples --show prints")
    own = parser.add_argument_group("own data (--dataset own)")
    own.add_argument("--task", choices=tuple(COLUMNS), help="what is learned, with the columns text; premise, "
                     "hypothesis; text1, text2; or context, choice1, choice2, ...; and label")
    for part, note in (("train", ""), ("valid", "; without it a tenth of train is held out"), ("test", "; labels are "
                       "not needed")):
        own.add_argument(f"--{part}_file", metavar="FILE", help=f"a {', '.join(KINDS)} file{note}")
    own.add_argument("--columns", nargs="+", metavar="NAME=COLUMN", help="names of the columns where they are others, "
                     "such as text=sentence label=y")
    return data


def check_data_options(args):
    """Check the options of add_data_options.

    Raises:
        BadInput: naming the option, its value and what is allowed.
    """
    require_ranges(args, {"n_valid": (1, None)} | ({} if args.show is None else {"show": (1, None)}))
    given = [name for name in OWN_OPTIONS if getattr(args, name) is not None]
    if args.dataset != OWN:
        if given:
            raise BadInput(f"--{given[0]} is for your own data: give --dataset own too")
        return
    for name in ("task", "train_file"):
        if getattr(args, name) is None:
            raise BadInput(f"--dataset own needs --{name}" + (f": {', '.join(COLUMNS)}" if name == "task" else ""))
    parse_columns(args.columns, args.task)


@contextlib.contextmanager
def as_files(**rows):
    """Yield the options that name the files of one's own data from Python; the files go when the run has ended.

    Args:
        rows: train, valid and test, each what own_data.write_rows takes, or None.
    Raises:
        BadInput: see own_data.write_rows; or what the run raises, with these names in the place of the files'.
    """
    given = {name: source for name, source in rows.items() if source is not None}
    with tempfile.TemporaryDirectory() if given else contextlib.nullcontext() as folder:
        paths = {name: make_path(os.path.join(folder, "rows", f"{name}.jsonl")) for name in given}
        for name, source in given.items():
            write_rows(paths[name], source, name)
        try:
            yield [word for name, path in paths.items() for word in (f"--{name}_file", path)]
        except BadInput as error:
            message = str(error)
            for name, path in paths.items():
                message = message.replace(path, name)
            raise BadInput(message) from None


def _paths(args):
    """Return {split: the files that hold it}."""
    if args.dataset == OWN:
        named = {"train": args.train_file, "valid": args.valid_file, "test": args.test_file}
        return {split: [path] for split, path in named.items() if path is not None}
    return GPT_TASKS[args.dataset].files(args.data_dir)


def read_splits(args) -> tuple[Task, dict[str, Split]]:
    """Read the data set asked for.

    Returns:
        its Task, and {'train', 'valid', and whatever else there is: Split}.
    Raises:
        MissingInput, BadInput: see the readers.
    """
    if args.dataset == OWN:
        return own_examples(args.task, args.train_file, args.valid_file, args.test_file,
                            parse_columns(args.columns, args.task), args.seed)
    task = GPT_TASKS[args.dataset]
    more = {}
    if args.dataset == "rocstories":
        more["n_valid"] = args.n_valid
    names = dict.fromkeys(("train", "valid", *_paths(args)))  # the first two have to be there
    try:
        splits = {name: task.read(args.data_dir, name, **more) for name in names}
    except BadInput as error:  # the reader names its argument, which is an option here
        raise BadInput(re.sub("^n_valid ", "--n_valid ", str(error))) from None
    check_sizes(task, {name: len(split) for name, split in splits.items()})
    return task, splits


def load_data(args, encoder: Any, world=None) -> Data:
    """Read and encode the data set asked for; a large one is kept in --cache_dir and loaded from there the next time.

    Args:
        encoder: a TextEncoder. world: where several processes of a run share the work, the first reads and encodes.
    Raises:
        MissingInput, BadInput: see read_splits.
    """
    paths = _paths(args)
    size = sum(os.path.getsize(path) for files in paths.values() for path in files if os.path.isfile(path))
    several = world is not None and world.size > 1
    if not (world.any(size > KEPT_FROM) if several else size > KEPT_FROM):
        return _read_and_encode(args, encoder)
    folder = args.cache_dir or os.path.join(args.save_dir, "encoded")
    options = [args.n_valid] if args.dataset == "rocstories" else []
    if args.dataset == OWN:
        options = [args.task, parse_columns(args.columns, args.task), args.seed]
    key = encoded_files.fingerprint_of(paths, encoder, args.dataset, *options)
    if several and not world.is_first:
        world.wait()
    cached = encoded_files.load(folder, key)
    if cached is None:
        data = _read_and_encode(args, encoder)
        _keep(folder, key, data)
    else:
        splits, more = cached
        task = own_task(args.task, **more) if args.dataset == OWN else GPT_TASKS[args.dataset]
        data = Data(task, splits)
        check_sizes(task, {name: len(split) for name, split in splits.items()})
    if several and world.is_first:
        world.wait()
    return data


def _keep(folder, key, data):
    """Write the encoded splits; where that fails the run goes on without."""
    more = {}
    if data.task.name == OWN:
        more = dict(texts=data.task.texts, classes=data.task.classes, score_range=data.task.score_range)
    try:
        encoded_files.save(folder, key, data.splits, **more)
    except BadInput as error:
        warn(f"the encoded data are not kept: {error}")


def _read_and_encode(args, encoder):
    task, splits = read_splits(args)
    return Data(task, {name: encode_split(task, split, encoder) for name, split in splits.items()})


def fit_data(args, data: Data, n_ctx: int | None = None) -> tuple[Data, int]:
    """Cut what is too long, and say how much that is.

    Args:
        n_ctx: positions that the parameters have already, where there are some; None: what the data need, up to
            --n_ctx.
    Returns:
        the data, and the positions of the longest sequence, or n_ctx.
    """
    task, splits = data
    released = task.cut == "released"
    longest = max(needed(examples, args.n_ctx, task.cut) for examples in splits.values())
    positions = n_ctx or longest
    # the rule of the released code alone depends on what was asked for
    fitted = {name: fit(examples, positions if n_ctx else args.n_ctx, task.cut, args.n_ctx)
              for name, examples in splits.items()}
    asked = {name: fit(examples, args.n_ctx, task.cut, args.n_ctx)[1] for name, examples in splits.items()}
    n_all = sum(map(len, splits.values()))
    if released and sum(asked.values()):
        warn(f"{sum(asked.values())} of {n_all} stories have a part longer than {args.n_ctx // 2 - 2} tokens, "
             f"which was cut (--n_ctx {args.n_ctx})")
    n_cut = {name: n for name, (_, n) in fitted.items() if n}
    if n_ctx and longest > n_ctx:
        what = "stories" if released else "examples"
        warn(f"{sum(n_cut.values())} {what} need up to {longest} positions and were cut, as the parameters have "
             f"{n_ctx}")
    elif n_cut and not released:
        what = "of whose articles the end was cut" if task.cut == "article" else "of which the longest text was cut"
        parts = ", ".join(f"{name} {n:,}" for name, n in n_cut.items())
        warn(f"{sum(n_cut.values()):,} of {n_all:,} examples are longer than {args.n_ctx} tokens (--n_ctx), {what} "
             f"({parts})")
    return Data(task, {name: examples for name, (examples, _) in fitted.items()}), positions


def fingerprint_of(data: Data, n_ctx: int) -> int:
    """Return a number that tells the training and validation examples from others.

    The Story Cloze Test's is of the arrays that transform_roc makes, so that older checkpoints can be resumed.

    Args:
        n_ctx: positions per sequence.
    """
    value = 0
    for name in ("train", "valid"):
        examples = data.splits[name]
        if data.task.cut == "released":
            arrays = _padded(examples, n_ctx)
        else:
            arrays = examples.texts.ids, examples.texts.offsets, examples.parts, examples.kept, examples.labels
        for array in arrays:
            value = zlib.crc32(np.ascontiguousarray(array), value)
    return value


def _padded(examples, n_ctx):
    """Return x int32 [n, c, n_ctx, 2], m float32 [n, c, n_ctx], y int32 [n] of all examples."""
    x, m, y = examples.layout(slice(None))
    after = n_ctx - x.shape[2]
    x, m = np.pad(x, ((0, 0), (0, 0), (0, after), (0, 0))), np.pad(m, ((0, 0), (0, 0), (0, after)))
    x[..., 1] = np.arange(n_ctx) + examples.n_vocab + len(SPECIAL)
    return x, m, y.astype(np.int32)


def show(args, encoder: Any) -> None:
    """Print the first --show examples of --show_split, one JSON object a line.

    Args:
        encoder: a TextEncoder that knows the special tokens.
    Raises:
        MissingInput: there is no such split; or see read_splits.
    """
    task, splits = read_splits(args)
    if args.show_split not in splits:
        raise MissingInput(f"{args.dataset}: there is no {args.show_split} split in "
                           f"{args.data_dir if args.dataset != OWN else 'the files given'}; it has {', '.join(splits)}")
    examples = encode_split(task, first_examples(splits[args.show_split], args.show), encoder, verbose=False)
    examples, _ = fit(examples, args.n_ctx, task.cut, args.n_ctx)
    for row in range(len(examples)):
        sequences = [ids.tolist() for ids in examples.sequences(row)]
        label = None if examples.labels is None else examples.labels[row].item()
        if label is not None and task.transformation == "multiple_choice":
            label += 1
        elif label is not None and task.score_range is None:
            label = task.classes[label]
        print(json.dumps({"sequences": [{"text": encoder.decode(ids), "ids": ids} for ids in sequences],
                          "label": label}))
