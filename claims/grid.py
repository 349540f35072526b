"""Fine-tunings for every task, setting and seed of an experiment: run, recorded, not run again, put into a table."""

import contextlib
import datetime
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import train
from claims import toy_models
from demo import call, command_line
from formats.errors import BadInput, MissingInput, warn
from formats.files import write_atomically
from pictures.dots import median_and_range
from tasks.gpt_tasks import GPT_TASKS
from tasks.metrics import TITLES
from training import distributed, loop
from utils import OneLineParser, require_ranges

OURS = {"desc", "dataset", "seed", "log_dir", "save_dir", "submission_dir", "submit", "resume", "data_dir", "model_dir",
        "n_transfer", "lm_coef", "architecture"}  # options of train.py that are set here


class Setting(NamedTuple):
    """A row of the table or a point of the line: its name, and options of train.py."""

    name: str
    options: dict


class Result(NamedTuple):
    """What a fine-tuning came to: its task, setting and seed, the metric, its value in percent, and of which split."""

    dataset: str
    setting: str
    seed: int
    metric: str
    value: float
    split: str
    seconds: float


def parse_args(argv: list[str], flag: str, datasets: tuple[str, ...], lstm: bool) -> tuple:
    """Return (options, words after -- for train.py).

    Args:
        flag: the option of reproduce.py that asks for this experiment. datasets: its tasks on real data.
        lstm: whether an LSTM is wanted too.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    p = OneLineParser(prog="reproduce.py", usage=f"reproduce.py --{flag} [options] [-- options of train.py]")
    p.add_argument(f"--{flag}", action="store_true", help="this experiment")
    p.add_argument("--data_dir", help="the folder of the tasks' folders; without it toy sets are made in --out")
    p.add_argument("--datasets", nargs="+", choices=tuple(GPT_TASKS), metavar="NAME",
                   help=f"the tasks (default: {' '.join(datasets)}; of the toy sets {' '.join(toy_models.DATASETS)})")
    p.add_argument("--model_dir", default="model/", help="with --data_dir: folder with OpenAI's weights and vocabulary")
    if lstm:
        p.add_argument("--lstm_dir", help="with --data_dir: folder with an LSTM that pretrain.py --architecture lstm "
                       "made; without it there is no row for it")
    p.add_argument("--seeds", type=int, default=3, help="fine-tunings of each kind")
    p.add_argument("--first_seed", type=int, default=42, help="seed of the first; the others follow one by one")
    p.add_argument("--out", default="reproduction/claims/", help="folder for everything written; the "
                   "experiments on toy sets share data and models there")
    p.add_argument("--keep", action="store_true", help="keep each run's parameters (0.5 GB each at full size)")
    args, extra = p.parse_args(argv[:cut]), argv[cut + 1:]
    require_ranges(args, {"seeds": (1, 1000), "first_seed": (0, 2 ** 32 - 1 - args.seeds)})
    for word in extra:
        if word.startswith("--") and word.split("=")[0].removeprefix("--") in OURS:
            raise BadInput(f"{word} after --: reproduce.py --{flag} sets this itself")
    if distributed.world_size() > 1:
        raise BadInput("reproduce.py runs as one process; start it with python, without torchrun")
    args.datasets = args.datasets or list(datasets if args.data_dir else toy_models.DATASETS)
    return args, extra


def run_all(args, extra: list[str], data_dir: str, settings: list[Setting],
            report: Callable[[list[Result]], None], split: str = "test") -> list[Result]:
    """Fine-tune with every task, setting and seed, seed by seed; what is recorded is not run again.

    Args:
        args: see parse_args. extra: options of train.py for all. report: called with all results after each seed.
        split: whose value counts; valid's, where a task has no public labels of test.
    Raises:
        BadInput: a run was recorded with other options; or some failed: the others have been run and reported.
        Stopped: by a signal; the same command goes on.
    """
    cells = [(seed, dataset, setting) for seed in range(args.first_seed, args.first_seed + args.seeds)
             for dataset in args.datasets for setting in settings]
    commands = [_command(args, extra, data_dir, *cell) for cell in cells]
    found = [_read(args.out, command, split) for command in commands]
    left, results, failures = found.count(None), [result for result in found if result is not None], []
    if results:
        print(f"finished already: {len(results)} of {len(cells)} fine-tunings")
    start, done = time.monotonic(), 0
    for (seed, dataset, setting), command, known in zip(cells, commands, found, strict=True):
        if known is None:
            try:
                results.append(_run(args, command, dataset, setting, seed, split))
            except (BadInput, MissingInput) as error:
                failures.append(f"{dataset}, {setting.name}, seed {seed}: {error}")
                warn(f"{failures[-1]}; the others go on")
                continue
            done += 1
            to_go = datetime.timedelta(seconds=round((time.monotonic() - start) / done * (left - done)))
            print(f"{dataset}, {setting.name}, seed {seed}: {results[-1].metric} {results[-1].value:.2f}; "
                  f"{left - done} to go, about {to_go}")
        if results and (dataset, setting) == cells[-1][1:]:
            report(results)
    if failures:
        if results:
            report(results)
        raise BadInput(f"{len(failures)} of {len(cells)} fine-tunings failed, the first is {failures[0]}; the same "
                       "command again tries them once more")
    return results


def _command(args, extra, data_dir, seed, dataset, setting):
    """Return the command line of train.py for one fine-tuning."""
    name = setting.name.lower().replace(" ", "-")
    desc = f"{dataset}-{name}-{seed}"
    return [*command_line({"desc": desc, "dataset": dataset, "seed": seed, "data_dir": data_dir}
                          | setting.options
                          | {"submit": True, "resume": True, "log_dir": os.path.join(args.out, "log"),
                             "save_dir": os.path.join(args.out, "save"),
                             "submission_dir": os.path.join(args.out, "submission", desc)}), *extra]


def _options_of(command):
    """Return the options of a command that matter for its result, as JSON has them."""
    run = vars(train.parse_args(command))
    return json.loads(json.dumps({name: value for name, value in run.items() if name not in loop.FREE_ON_RESUME}))


def _record_of(out, command):
    return os.path.join(out, "runs", f"{train.parse_args(command).desc}.json")


def _read(out, command, split):
    """Return the Result of a recorded run, None where there is none; split: see run_all."""
    path = _record_of(out, command)
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
        result, options = Result(**record["result"]), dict(record["options"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    differ = [f"--{name} {options.get(name)!r} then, {value!r} now" for name, value in _options_of(command).items()
              if options.get(name) != value]
    if split == "valid" and result.split != split:
        differ.append(f"its value is of {result.split}, now of {split}")
    if differ:
        raise BadInput(f"{path}: was run differently: {'; '.join(differ)[:300]}; give the same, or another --out")
    return result


def _run(args, command, dataset, setting, seed, split):
    """Fine-tune, record what came of it, and delete what is needed no more."""
    start = time.monotonic()
    outcome = call(train, command)
    split = split if split in outcome.accuracies else "valid"
    result = Result(dataset, setting.name, seed, GPT_TASKS[dataset].metrics[0], outcome.accuracies[split], split,
                    time.monotonic() - start)
    with write_atomically(_record_of(args.out, command)) as path, open(path, "w", encoding="utf-8") as f:
        json.dump({"result": result._asdict(), "options": _options_of(command)}, f, indent=1)
    for name in ("checkpoint",) if args.keep else ("checkpoint", "best"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(outcome.paths[name])
    del outcome
    gc.collect()  # a model may be kept by reference cycles, and the next run wants the device's memory
    return result


def values_of(results: list[Result], dataset: str, setting: str) -> list[float]:
    """Return the values of one task and setting, a number for each seed."""
    return [result.value for result in sorted(results, key=lambda result: result.seed)
            if (result.dataset, result.setting) == (dataset, setting)]


def heading(results: list[Result], dataset: str) -> str:
    """Return a task with its metric and split, such as 'sst2 (valid, accuracy)'."""
    first = next(result for result in results if result.dataset == dataset)
    return f"{dataset} ({first.split}, {'accuracy' if first.metric == 'acc' else TITLES[first.metric]})"


def table(results: list[Result], datasets: list[str], settings: list[str]) -> list[list[str]]:
    """Return rows of a table: a header, then for each setting the median and range on each task, and their mean.

    The mean is of the medians, where every task has one.
    """
    there = [dataset for dataset in datasets if any(result.dataset == dataset for result in results)]
    rows = [["", *(heading(results, dataset) for dataset in there), "mean"]]
    for setting in settings:
        found = [values_of(results, dataset, setting) for dataset in there]
        if any(found):
            mean = f"{statistics.fmean(map(statistics.median, found)):.1f}" if all(found) else ""
            rows.append([setting, *(median_and_range(values) if values else "" for values in found), mean])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """Return rows, the first of them a header, as a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def write_report(out: str, name: str, text: str, results: list[Result]) -> None:
    """Write NAME.md, and NAME.json with every result."""
    with write_atomically(os.path.join(out, f"{name}.md")) as path, open(path, "w", encoding="utf-8") as f:
        f.write(text)
    with write_atomically(os.path.join(out, f"{name}.json")) as path, open(path, "w", encoding="utf-8") as f:
        json.dump([result._asdict() for result in results], f, indent=1)
