"""Repeat a published fine-tuning of GPT-1 with several seeds, and report it beside the published numbers.

    python reproduce.py --data_dir DATA --seeds 10                              the Story Cloze Test
    python reproduce.py --dataset cola --data_dir glue_data --seeds 3           another task of the paper
    python reproduce.py --t5 small --dataset glue --data_dir DATA --model_dir DIR --n_updates 20000
    python reproduce.py --t5 small --dataset rocstories --data_dir DATA --n_updates 460 -- --form answer
    python reproduce.py --ablations                         table 5 on toy sets; see claims/ablations.py for real data
    python reproduce.py --layers                            figure 2 (left); see claims/layers.py
    python reproduce.py --zero_shot                         figure 2 (right); see claims/zero_shot_curves.py
    python reproduce.py --data_dir TOY --seeds 2 --out toy -- --n_transfer -1 --n_embd 96 --n_head 4 --n_layer 3

First it checks weights and data and estimates the time, then it runs train.py with the authors' defaults (and with
the options after --, if any) once per seed. Started again, it skips the seeds that are finished and resumes the one
that is not. Everything lies in the folder --out:
    log/reproduce-<seed>.jsonl, save/reproduce-<seed>/, submission/reproduce-<seed>/    what train.py writes
    runs/reproduce-<seed>.json      inputs, machine and time of a seed
    report.md, report.json, accuracies.png      after every seed, what has been measured so far

With --t5 it evaluates a released T5 on the paper's tasks as it stands (T5 1.0 was trained on all of them), then
fine-tunes it for --n_updates and evaluates again; train_t5.py's files lie in --out, and what it found is printed beside
the paper's numbers.
"""

import contextlib
import datetime
import gc
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shlex
import statistics
import sys
import time
from typing import NamedTuple

import torch

import analysis
import download_model
import train
import train_t5
from ablations.lstm import make_model
from claims import ablations, layers, zero_shot_curves
from formats import checks
from formats.errors import BadInput, MissingInput, warn
from formats.files import load_tensors, write_atomically
from model_pytorch import DoubleHeadModel
from tasks import story_cloze
from tasks.gpt_tasks import GPT_TASKS
from tasks.metrics import TITLES
from training import distributed, finetuning, loop, task_data
from training.precision import autocast, for_evaluation
from utils import OneLineParser, Stopped, reached_epoch, read_log, require_ranges, run_script

N_STORIES = 1871  # in each of the two files of ROCStories
RELEASED_SIZE = (40478, 768)  # tokens and width of OpenAI's model
PAPER, AUTHORS = 86.5, 85.8
PUBLISHED = [  # test accuracies in percent that others measured
    ("paper (Radford et al. 2018), best single run", PAPER),
    ("the authors' TensorFlow code, median of ten runs", AUTHORS),
    ("2018 PyTorch port, a single run with batch 20", 85.84),
    ("a Chainer port with batch 16, median of ten runs (range 84.87 to 87.49)", 86.72),
    ("best before the paper (Chaturvedi et al. 2017)", 77.6),
]
PACKAGES = ("torch", "numpy", "spacy", "ftfy", "scikit-learn", "safetensors")
LONG_ENOUGH = 60  # seconds of updates on which the time of an update is estimated
OURS = ("desc", "dataset", "seed", "log_dir", "save_dir", "submission_dir", "submit", "analysis", "resume", "data_dir",
        "model_dir")  # options of train.py that are set here


class Inputs(NamedTuple):
    """What is trained on: lines that describe it, how it departs from the published setting, {file: git blob id}."""

    lines: list
    departures: list
    blobs: dict


def parse_args(argv):
    """Return (options, words after -- for train.py); see --help."""
    cut = argv.index("--") if "--" in argv else len(argv)
    p = OneLineParser(prog="reproduce.py", usage="reproduce.py [options] [-- options of train.py]",
                      description="Fine-tune with several seeds and report. Options after -- go to train.py.")
    p.add_argument("--dataset", choices=tuple(GPT_TASKS), default="rocstories", help="the task")
    p.add_argument("--data_dir", default="data/", help="folder with its files, for the default ROCStories' two")
    p.add_argument("--model_dir", default="model/", help="folder with OpenAI's weights and vocabulary")
    p.add_argument("--seeds", type=int, default=10, help="how many fine-tunings")
    p.add_argument("--first_seed", type=int, default=42, help="seed of the first; the others follow one by one")
    p.add_argument("--out", default="reproduction/", help="folder for everything written; at full size a seed takes "
                   "1.9 GB (checkpoint 1.4, best parameters 0.5)")
    p.add_argument("--delete_checkpoints", action="store_true",
                   help="delete each finished seed's checkpoint; its best parameters stay")
    p.add_argument("--unverified", action="store_true",
                   help="accept weights of the released size that are not OpenAI's files; the report says so")
    args, extra = p.parse_args(argv[:cut]), argv[cut + 1:]
    require_ranges(args, {"seeds": (1, 1000), "first_seed": (0, 2 ** 32 - 1 - args.seeds)})
    for word in extra:
        if word.split("=")[0].removeprefix("--") in OURS and word.startswith("--"):
            raise BadInput(f"{word} after --: reproduce.py sets this itself (allowed before --: --data_dir, "
                           "--model_dir, --first_seed)")
    if distributed.world_size() > 1:
        raise BadInput("reproduce.py runs as one process; start it with python, without torchrun")
    return args, extra


def train_command(args, extra, seed):
    """Return the command line of train.py for one seed, a list of words."""
    desc = f"reproduce-{seed}"
    return ["--desc", desc, "--dataset", args.dataset, "--seed", str(seed), "--data_dir", args.data_dir,
            "--model_dir", args.model_dir, "--log_dir", os.path.join(args.out, "log"),
            "--save_dir", os.path.join(args.out, "save"),
            "--submission_dir", os.path.join(args.out, "submission", desc), "--submit", "--resume", *extra]


# What is there before


def check_data(run):
    """Read the data and say what it is.

    Args:
        run: options of train.py.
    Returns:
        Inputs. Other row counts and one-sided answers get a warning.
    Raises:
        MissingInput, BadInput: see story_cloze.rocstories and the other readers.
    """
    if run.dataset != "rocstories":
        return check_task_data(run)
    lines, departures, blobs = [], [], {}
    for name in (story_cloze.VALID_FILE, story_cloze.TEST_FILE):
        path = os.path.join(run.data_dir, name)
        labels = story_cloze._rocstories(path)[3]
        n, second = len(labels), float(labels.mean())
        lines.append(f"{name}: {n} stories, the right ending is the first in {100 - 100 * second:.1f}% and the second "
                     f"in {100 * second:.1f}%")
        if n != N_STORIES:
            departures.append(f"{name} has {n} stories, ROCStories {N_STORIES}")
        if abs(second - 0.5) > 2 / n ** 0.5:  # four standard deviations of a fair coin
            departures.append(f"{name} has its right endings in the second place in {100 * second:.1f}%, "
                              "expected about half")
        blobs[name] = checks.git_blob_id(path)
    splits = finetuning.read_splits(run)
    lines.append("split: " + ", ".join(f"{len(split[0])} {name}" for name, split in
                                       zip(("train", "valid", "test"), splits, strict=True)))
    return Inputs(lines, departures, blobs)


def check_task_data(run):
    """As check_data, for the tasks other than the Story Cloze Test."""
    task, splits = task_data.read_splits(run)
    lines = [f"{name}: {len(split):,} examples, {os.path.basename(split.path)}" for name, split in splits.items()]
    departures = [f"{name} has {len(split):,} examples, the published data {task.sizes[name]:,}"
                  for name, split in splits.items() if len(split) != task.sizes.get(name, len(split))]
    if "test" not in splits:
        raise MissingInput(f"{run.data_dir}: has no test split of {run.dataset}; put its file there")
    blobs = {}
    for name, paths in task.files(run.data_dir).items():
        ids = sorted(checks.git_blob_id(path) for path in paths)
        blobs[name] = ids[0] if len(ids) == 1 else hashlib.sha1(" ".join(ids).encode(),
                                                               usedforsecurity=False).hexdigest()
    return Inputs(lines, departures, blobs)


def check_weights(run, n_vocab, unverified):
    """Check weights and vocabulary against what the authors published, and say what they are.

    Args:
        run: options of train.py, checked. n_vocab: tokens of the pretrained model, None where there is none.
        unverified: accept files of the released size that are not OpenAI's.
    Raises:
        BadInput: naming the first file that is not as published.
    """
    paths = {"encoder_bpe_40000.json": run.encoder_path, "vocab_40000.bpe": run.bpe_path}
    wanted = {}
    if n_vocab is None:
        line = "weights: none, trained from scratch"
    else:
        wanted, verified = download_model.wanted_files(run.model_dir, not os.path.isfile(run.encoder_path))
        paths = {name: os.path.join(run.model_dir, name) for name in wanted} | paths
        if os.path.isfile(run.model_dir):
            paths["model.safetensors"] = run.model_dir
        if (n_vocab, run.n_embd) != RELEASED_SIZE:
            line = f"weights: not OpenAI's, {n_vocab} tokens and n_embd {run.n_embd}"
        else:
            problems = [f"{paths[name]}: {problem}" for name in wanted
                        if (problem := checks.problem_of(paths[name], wanted[name]))]
            if problems and not unverified:
                raise BadInput(f"{problems[0]}{f' (and {len(problems) - 1} more)' if problems[1:] else ''}; bring "
                               "OpenAI's files with download_model.py, or give --unverified to use these")
            line = f"weights: of the released size, but {len(problems)} files are NOT those that were published"
            if not problems:
                return Inputs([f"weights: {verified}"], [], _blobs(paths))
    return Inputs([line], [line], _blobs(paths))


def _blobs(paths):
    return {name: checks.git_blob_id(path) for name, path in paths.items() if os.path.isfile(path)}


def changed_options(run):
    """Return the options that differ from the authors' defaults in more than folders, as words."""
    defaults = vars(train.parse_args(["--desc", run.desc, "--dataset", run.dataset, "--seed", str(run.seed)]))
    return [f"--{name} {value}" for name, value in vars(run).items()
            if name not in loop.FREE_ON_RESUME and value != defaults[name]]


def machine(device):
    """Return {'hardware': ..., 'versions': {...}} without anything that names the machine."""
    if device.type != "cpu":
        named = getattr(torch.get_device_module(device.type), "get_device_name", lambda: device.type)  # "mps" has none
        hardware = f"{named()} (1 used of {torch.accelerator.device_count()})"
    else:
        name = platform.processor() or platform.machine()
        with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), name)
        hardware = f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"hardware": hardware, "versions": {"python": platform.python_version()} | versions}


# Seeds that were begun


def run_files(args, run):
    """Return the paths of a seed: 'log', 'best', 'checkpoint', 'submission', and 'record', which is ours."""
    return loop.paths(run) | {"record": os.path.join(args.out, "runs", f"{run.desc}.json"),
                              "submission": os.path.join(run.submission_dir,
                                                         GPT_TASKS[run.dataset].submission["test"])}


def read_record(path):
    """Return what write_record wrote; None where there is nothing or no JSON."""
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"blobs", "machines", "finished"} <= record.keys() else None


def write_json(path, value):
    """Write `value` as JSON, atomically."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def is_finished(args, run, blobs):
    """Whether a seed needs no more work: recorded as finished, logged to its last epoch, predicted.

    Raises:
        BadInput: the folder holds this seed with other options or other data or weights.
    """
    files, record = run_files(args, run), read_record(run_files(args, run)["record"])
    header = next(iter(read_log(files["log"])), None) if os.path.isfile(files["log"]) else None
    header = header if isinstance(header, dict) else {}  # a log that was cut short before its first line was whole
    differ = [f"--{name} {header.get(name)!r} then, {value!r} now" for name, value in vars(run).items()
              if header and name not in loop.FREE_ON_RESUME and header.get(name) != value]
    if record is not None:
        differ += [f"another {name} then" for name in blobs.keys() | record["blobs"].keys()
                   if record["blobs"].get(name) != blobs.get(name)]
    if differ:
        raise BadInput(f"{files['log']}: seed {run.seed} was run differently: {'; '.join(sorted(differ))}; "
                       "give the same, or another --out")
    return bool(record and record["finished"] and reached_epoch(files["log"], run.n_iter)
                and os.path.isfile(files["submission"]))


def seconds_per_seed(run, n_updates=3):
    """Estimate how long one fine-tuning takes, from a few updates and an evaluation batch of the model itself.

    The model has fresh weights, which cost the same. Reading weights and writing files is not counted.

    Returns:
        (seconds per seed, seconds per update).
    """
    device = distributed.join(run.device).device
    encoder = train.load_encoder(run)
    n_vocab = len(encoder.encoder)
    (task, splits), n_ctx = train.load_data(run, encoder)
    n_train = len(splits["train"])
    total = loop.updates_per_epoch(n_train, run) * run.n_iter
    classify = n_vocab + len(train.SPECIAL) - 1
    model = make_model(DoubleHeadModel, run, classify, task.head, n_vocab + len(train.SPECIAL) + n_ctx, n_ctx)
    model.to(device)
    optimizer = train.make_optimizer(run, model, total)
    X, M, Y = (torch.from_numpy(array) for array in splits["train"].layout(slice(run.n_batch * run.n_gpu)))

    def timed(work):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    def update():
        optimizer.zero_grad()
        for rows in torch.arange(len(X)).split(run.n_batch):
            with autocast(device, run.precision):
                loss = train.training_loss(run, model, X[rows], M[rows], Y[rows])
            (loss / run.n_gpu).backward()
        optimizer.step()

    times = [timed(update)]  # the first one also allocates memory
    while len(times) <= n_updates and sum(times) < LONG_ENOUGH:
        times.append(timed(update))
    per_update = statistics.median(times[1:] or times)
    model.eval()
    converted = for_evaluation(model, run.precision)
    per_example = min(timed(lambda: train.task_logits(run, converted, X)) for _ in range(2)) / len(X)
    n_valid = sum(len(examples) for name, examples in splits.items() if name.startswith("valid"))
    n_test = sum(len(splits[name]) for name in task.submission if name in splits)
    evaluated = run.n_iter * (min(run.n_valid, n_train) + n_valid) + n_test
    return total * per_update + evaluated * per_example, per_update


# Running and reporting


def logged_epochs(path):
    """Return how many epochs a log has come to; 0 where it is absent or empty."""
    lines = read_log(path) if os.path.isfile(path) else []
    return max((line.get("n_epochs", 0) for line in lines if isinstance(line, dict)), default=0)


def run_seed(args, command, run, blobs):
    """Fine-tune with one seed, or go on where that was interrupted, and record it.

    Raises:
        Stopped: by a signal; the checkpoint has been written.
        BadInput, MissingInput: see train.main.
    """
    files = run_files(args, run)
    record = read_record(files["record"]) or {"machines": []}
    if os.path.isfile(files["checkpoint"]) \
            and logged_epochs(files["log"]) < load_tensors(files["checkpoint"]).get("n_epochs", 0):
        warn(f"{files['log']}: lacks epochs that the checkpoint has behind it; seed {run.seed} starts afresh")
        delete_checkpoint(run)
    resumed = os.path.isfile(files["checkpoint"])
    here = machine(distributed.join(run.device).device)
    # machines of which some part of the result comes
    machines = [m for m in record["machines"] if resumed and m != here] + [here]
    record = {"seed": run.seed, "blobs": blobs, "machines": machines, "finished": False}
    write_json(files["record"], record)
    start = time.monotonic()
    try:
        train.main(command)
    except Stopped as error:
        raise Stopped(f"seed {run.seed}: {str(error).split(';')[0]}; the same command again continues there") from None
    # of a resumed run nobody knows how long it took before
    write_json(files["record"], record | {"finished": True, "resumed": resumed,
                                          "seconds": None if resumed else time.monotonic() - start})
    gc.collect()  # a model may be kept by reference cycles, and the next seed wants the device's memory


def delete_checkpoint(run):
    """Delete what --resume would continue from; a finished seed needs it no more."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(loop.paths(run)["checkpoint"])


def measured(args, run):
    """Return {'seed', 'valid', 'test', 'parts', 'best_epoch', 'seconds', 'resumed'} of a finished seed, from its files.

    valid and test are the task's first metric, in percent; test is None where the labels are not public. parts has the
    same of a part of the examples, such as {'test, high': percent}.
    """
    files, record = run_files(args, run), read_record(run_files(args, run)["record"])
    task = GPT_TASKS[run.dataset]
    first, parts = task.metrics[0], {}
    if run.dataset == "rocstories":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints too, which after every seed would be too much
            valid, test = analysis.rocstories(args.data_dir, files["submission"], files["log"])
    else:
        found = analysis.measured(task, args.data_dir, files["submission"], files["log"])
        parts = {f"{split}, {name.removeprefix(first + '_')}": value
                 for split, values in zip(("valid", "test"), found, strict=True)
                 for name, value in (values or {}).items()
                 if name.startswith(f"{first}_")}
        valid, test = (values and values[first] for values in found)
    best = analysis.best_evaluation(files["log"], f"va_{first}")
    return {"seed": run.seed, "valid": valid, "test": test, "parts": parts, "best_epoch": best["n_epochs"],
            "seconds": record["seconds"], "resumed": record["resumed"]}


def without_folders(words):
    """Return a command in which absolute paths keep their last part only, so that it tells nothing of the machine."""
    def short(word):
        option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return option + sign + (".../" + os.path.basename(value.rstrip("/")) if os.path.isabs(value) else value)

    return shlex.join(map(short, words))


def report(args, argv, command, runs, inputs):
    """Write report.json, report.md and accuracies.png about the seeds that are finished; return the JSON's contents.

    Args:
        argv: our own command line. command: train.py's for the first seed.
        runs: options of train.py of the finished seeds. inputs: see check_data and check_weights.
    """
    seeds = [measured(args, run) for run in runs]
    task = GPT_TASKS[args.dataset]
    judged = "valid" if any(seed["test"] is None for seed in seeds) else "test"
    found = [seed[judged] for seed in seeds]
    published = PUBLISHED if args.dataset == "rocstories" else [
        (f"paper (Radford et al. 2018), {metric}", value) for metric, value in task.published.items()]
    machines = {}
    for run in runs:
        for m in read_record(run_files(args, run)["record"])["machines"]:
            machines.setdefault(json.dumps(m), m | {"seeds": []})["seeds"].append(run.seed)
    values = {
        "title": "Story Cloze Test" if args.dataset == "rocstories" else task.name,
        "metric": "accuracy" if task.metrics[0] == "acc" else TITLES[task.metrics[0]], "judged": judged,
        "caveat": "" if args.dataset == "rocstories" else task.caveat,
        "asked": args.seeds, "finished": len(seeds), "seeds": seeds,
        "median": statistics.median(found), "lowest": min(found), "highest": max(found),
        "departures": inputs.departures, "published": [{"source": s, "test": v} for s, v in published],
        "data_and_weights": inputs.lines, "git_blob_ids": inputs.blobs, "machines": list(machines.values()),
        "command": "python reproduce.py " + without_folders(argv),
        "train_command": "python train.py " + without_folders(command)}
    write_json(os.path.join(args.out, "report.json"), values)
    with write_atomically(os.path.join(args.out, "report.md")) as path, \
            open(path, "w", encoding="utf-8", errors="backslashreplace") as f:  # a folder's name may be any bytes
        f.write(markdown(values))
    lines = {f"paper, best run: {PAPER}": PAPER, f"authors' code, median: {AUTHORS}": AUTHORS} \
        if args.dataset == "rocstories" else {f"paper, {metric}: {value}": value
                                              for metric, value in task.published.items()}
    analysis.draw_seeds({seed["seed"]: seed[judged] for seed in seeds}, os.path.join(args.out, "accuracies.png"), lines,
                        title="not the published setting" if inputs.departures else None,
                        what=f"{judged} {values['metric']} (%)")
    return values


def markdown(values):
    """Return the report as Markdown."""
    def table(head, rows):
        rows = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)

    def percent(value):
        return "labels not public" if value is None else f"{value:.2f}"

    def duration(seed):
        return "unknown (resumed)" if seed["seconds"] is None else datetime.timedelta(seconds=round(seed["seconds"]))

    seeds, n, metric, judged = (values[name] for name in ("seeds", "finished", "metric", "judged"))
    best = max(seeds, key=lambda seed: seed[judged])
    parts_of_data = list(dict.fromkeys(name for seed in seeds for name in seed["parts"]))
    parts = [f"# {values['title']}: {n} of {values['asked']} fine-tunings finished"]
    if values["departures"]:
        parts.append("**This is not the published setting**, and its accuracies do not compare with the published "
                     "ones:\n\n" + "\n".join(f"- {line}" for line in values["departures"]))
    parts += [
        "## Measured here",
        table(["seed", f"valid {metric} (%)", f"test {metric} (%)", *parts_of_data, "best epoch", "time"],
              [[s["seed"], f"{s['valid']:.2f}", percent(s["test"]),
                *(f"{s['parts'][name]:.2f}" if name in s["parts"] else "" for name in parts_of_data), s["best_epoch"],
                duration(s)] for s in seeds]),
        f"{judged.capitalize()} {metric} of {n} seed(s): median {values['median']:.2f}, range "
        f"{values['lowest']:.2f} to {values['highest']:.2f}, best {best[judged]:.2f} (seed {best['seed']}). "
        "Each test prediction is made with the epoch that did best on the validation part.",
        f"![{judged} {metric} of every seed](accuracies.png)",
        f"## Published test {'accuracies' if metric == 'accuracy' else 'numbers'}, not measured here",
        *([f"Before you compare: {values['caveat']}."] if values["caveat"] else []),
        table(["source", f"test {metric} (%)"], [[p["source"], p["test"]] for p in values["published"]]),
        "## How",
        "Absolute paths are cut to their last part.",
        f"```\n{values['command']}\n```\n\nruns, for the first seed,\n\n```\n{values['train_command']}\n```",
        "\n".join(f"- {line}" for line in values["data_and_weights"])]
    for m in values["machines"]:
        parts.append(f"Seeds {', '.join(map(str, m['seeds']))}: {m['hardware']}; "
                     + ", ".join(f"{name} {version}" for name, version in m["versions"].items()))
    return "\n\n".join(parts) + "\n"


def reproduce_t5(argv):
    """Evaluate a released T5 on tasks, fine-tune it and evaluate it again; return the two loop.Outcome."""
    cut = argv.index("--") if "--" in argv else len(argv)
    p = OneLineParser(prog="reproduce.py", usage="reproduce.py --t5 SIZE [options] [-- options of train_t5.py]")
    p.add_argument("--t5", required=True, choices=train_t5.T5_CONFIGS, help="released size")
    p.add_argument("--dataset", default="glue", help="see train_t5.py --help")
    p.add_argument("--data_dir", default="data/", help="the folder of the tasks' folders")
    p.add_argument("--model_dir", default="model/t5/", help="folder with vocabulary and checkpoint")
    p.add_argument("--n_updates", type=int, default=0, help="of fine-tuning; 0: none")
    p.add_argument("--seed", type=int, default=42, help="of order and dropout")
    p.add_argument("--out", default="reproduction/", help="folder for everything written")
    args = p.parse_args(argv[:cut])
    require_ranges(args, {"n_updates": (0, None)})
    outcomes = []
    for desc, n_updates in (("released", 0), ("fine-tuned", args.n_updates))[:2 if args.n_updates else 1]:
        print(f"{desc}: {args.t5} on {args.dataset}, {n_updates} updates")
        outcomes.append(train_t5.main([
            "--desc", desc, "--model", args.t5, "--dataset", args.dataset, "--data_dir", args.data_dir, "--model_dir",
            args.model_dir, "--seed", str(args.seed), "--n_updates", str(n_updates), "--analysis", "--resume",
            *(word for kind, folder in (("log", "log"), ("save", "save"), ("submission", f"submission/{desc}"))
              for word in (f"--{kind}_dir", os.path.join(args.out, folder))),
            *["--submit"] * (args.dataset == "rocstories"), *argv[cut + 1:]]))  # whose report is on the test file
    return outcomes


def main(argv=None):
    """Run what the options ask for; see the top of this file."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--t5" in argv:
        return reproduce_t5(argv)
    for flag, experiment in (("--ablations", ablations), ("--layers", layers), ("--zero_shot", zero_shot_curves)):
        if flag in argv:
            return experiment.main(argv)
    args, extra = parse_args(argv)
    commands = [train_command(args, extra, args.first_seed + i) for i in range(args.seeds)]
    runs = [train.parse_args(command) for command in commands]
    n_vocab = train.check_args(runs[0], distributed.join(runs[0].device))
    data, weights = check_data(runs[0]), check_weights(runs[0], n_vocab, args.unverified)
    inputs = Inputs(*(a + b for a, b in zip(data[:2], weights[:2], strict=True)), data.blobs | weights.blobs)
    if options := changed_options(runs[0]):
        inputs.departures.append("options that are not the authors': " + " ".join(options))
    print("\n".join(inputs.lines))
    for line in inputs.departures:
        warn(line)
    finished = [run for run in runs if is_finished(args, run, inputs.blobs)]
    if args.delete_checkpoints:
        for run in finished:
            delete_checkpoint(run)
    todo = [(command, run) for command, run in zip(commands, runs, strict=True) if run not in finished]
    if finished:
        print(f"finished already: seeds {', '.join(str(run.seed) for run in finished)}")
    if todo:
        per_seed, per_update = seconds_per_seed(runs[0])
        print(f"estimate: {datetime.timedelta(seconds=round(per_seed * len(todo)))} for {len(todo)} seed(s), "
              f"{per_update:.3g} s per update")
    else:
        values = report(args, argv, commands[0], runs, inputs)
    failures = {}
    for i, (command, run) in enumerate(todo, 1):
        start = time.monotonic()
        print(f"seed {run.seed}, {i} of {len(todo)}")
        try:
            run_seed(args, command, run, inputs.blobs)
        except (BadInput, MissingInput) as error:
            failures[run.seed] = str(error)
            warn(f"seed {run.seed} failed, the others go on: {error}")
            continue
        finished = sorted([*finished, run], key=lambda run: run.seed)
        values = report(args, argv, commands[0], finished, inputs)
        if args.delete_checkpoints:
            delete_checkpoint(run)
        left = (time.monotonic() - start) * (len(todo) - i)
        mine = next(seed for seed in values["seeds"] if seed["seed"] == run.seed)
        test = "labels not public" if mine["test"] is None else f"{mine['test']:.2f}"
        print(f"seed {run.seed} is done: valid {mine['valid']:.2f}, test {test}; "
              f"about {datetime.timedelta(seconds=round(left))} to go")
    if finished:
        print(markdown(values))
        print(f"wrote {os.path.join(args.out, 'report.md')}")
    if failures:
        seed, message = next(iter(failures.items()))
        raise BadInput(f"{len(failures)} of {len(runs)} seeds failed, the first is seed {seed}: {message}; the same "
                       "command again tries them once more")


if __name__ == "__main__":
    sys.exit(run_script(main))
