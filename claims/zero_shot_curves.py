"""Figure 2 (right) of GPT-1's paper: zero-shot performance over pre-training, of a Transformer and of an LSTM.

    python reproduce.py --zero_shot                         on toy stories and toy tasks, made for it
    python zero_shot.py --desc RUN LSTM_RUN --data_dir DATA --picture curves.png            after two real pre-trainings

The two have about as many parameters besides the embedding: 335,000 and 387,000. 1 on the toy tasks' scale is the best
there is, all examples right, see toy/questions.py.
"""

import json
import os
import statistics

import pandas as pd

import pretrain
import zero_shot
from claims import toy_models
from demo import call, command_line
from formats.errors import BadInput
from formats.files import write_atomically
from pictures.dots import median_and_range
from toy import questions
from training import distributed, options
from utils import OneLineParser, require_ranges

ARCHITECTURES = {"transformer": toy_models.SIZES, "lstm": toy_models.LSTM_SIZES}
BEST = 100  # of each metric on the toy tasks, in percent


def parse_args(argv):
    """Return the options; see reproduce.py --zero_shot --help."""
    p = OneLineParser(prog="reproduce.py", usage="reproduce.py --zero_shot [options]")
    p.add_argument("--zero_shot", action="store_true", help="this experiment")
    p.add_argument("--out", default="reproduction/zero_shot/", help="folder for everything written")
    p.add_argument("--seeds", type=int, default=3, help="pre-trainings of each architecture")
    p.add_argument("--first_seed", type=int, default=42, help="seed of the first; the others follow one by one")
    p.add_argument("--n_text", type=int, default=16000, help="stories to pre-train on")
    p.add_argument("--n", type=int, default=400, help="examples of each task")
    p.add_argument("--n_batch", type=int, default=10, help="sequences of an update")
    options.add_device_option(p)
    args = p.parse_args(argv)
    require_ranges(args, {"seeds": (1, 1000), "first_seed": (0, 2 ** 31), "n_text": (100, 1_000_000),
                          "n": (4, 100_000), "n_batch": (1, None)})
    return args


def write_data(args) -> tuple[str, str]:
    """Write the text and the toy tasks unless they are there; return (text file, data folder).

    Raises:
        BadInput: the folder holds those of other settings.
    """
    text, data_dir, noted = (os.path.join(args.out, name) for name in ("stories.txt", "data", "settings.json"))
    settings = {"n_text": args.n_text, "n": args.n, "n_batch": args.n_batch, "n_topics": toy_models.STORIES["n_topics"]}
    if os.path.isfile(text):  # written last
        found = None
        if os.path.isfile(noted):
            with open(noted, encoding="utf-8") as f:
                found = json.load(f)
        if found != settings:
            raise BadInput(f"{args.out}: holds text, tasks and models made with {found or 'unknown settings'}"
                           f", now {settings}; give the same, or another --out")
        return text, data_dir
    questions.write_data_dir(data_dir, args.n, args.n, toy_models.SEED, settings["n_topics"])
    with write_atomically(noted) as path, open(path, "w", encoding="utf-8") as f:
        json.dump(settings, f)
    questions.write_text(text, args.n_text, toy_models.SEED, settings["n_topics"])
    return text, data_dir


def pre_trained(args, text: str, architecture: str, seed: int) -> str:
    """Pre-train with --keep_at unless that is done, or go on where it stopped; return the folder of the run."""
    desc, save_dir = f"{architecture}-{seed}", os.path.join(args.out, "save")
    settings = {"desc": desc, "text": text, "model_dir": os.path.join(args.out, f"model-{desc}"), "seed": seed,
                "log_dir": os.path.join(args.out, "log"), "save_dir": save_dir, "resume": True, "device": args.device}
    settings |= toy_models.PRETRAIN | ARCHITECTURES[architecture] | {"n_batch": args.n_batch, "save_every": 200}
    last_written = "lstm.safetensors" if architecture == "lstm" else "params_shapes.json"
    if not os.path.isfile(os.path.join(settings["model_dir"], last_written)):
        call(pretrain, [*command_line(settings), "--keep_at"])
    return os.path.join(save_dir, desc)


def report(args, table: pd.DataFrame) -> str:
    """Write zero_shot.md, zero_shot.csv and zero_shot.png; return the text."""
    table.to_csv(os.path.join(args.out, "zero_shot.csv"), index=False)
    zero_shot.draw(table, os.path.join(args.out, "zero_shot.png"))
    last = table[table.n_updates == table.groupby("name")["n_updates"].transform("max")]
    lines = ["# Zero-shot performance (GPT-1, figure 2 right), on toy tasks", "",
             f"After the last update, {last.n_updates.max():,.0f}; median and range of {args.seeds} seed(s); Matthews "
             "correlation (chance 0) or accuracy in percent; in brackets 0 for guessing, 1 for all right.", "",
             "|task|chance|" + "|".join(ARCHITECTURES) + "|", "|---|---|" + "---|" * len(ARCHITECTURES)]
    for name in dict.fromkeys(table["task"]):
        cells = []
        for architecture in ARCHITECTURES:
            rows = last[(last.task == name) & (last.name == architecture)]
            cells.append(f"{median_and_range(list(rows.value))} [{statistics.median(rows.normalised):.2f}]"
                         if len(rows) else "not run")
        task = zero_shot.TASKS[name]
        lines.append(f"|{task.title} ({name}, {task.metric})|{task.chance}|" + "|".join(cells) + "|")
    text = "\n".join([*lines, "", "![over updates](zero_shot.png)", ""])
    with open(os.path.join(args.out, "zero_shot.md"), "w", encoding="utf-8") as f:
        f.write(text)
    return text


def main(argv: list[str]) -> pd.DataFrame:
    """Run reproduce.py --zero_shot, see the top of this file; return the table of zero_shot.judge, named by kind."""
    args = parse_args(argv)
    text, data_dir = write_data(args)
    data = {name: zero_shot.read(name, data_dir) for name in zero_shot.TASKS}
    device, tables = distributed.join(args.device).device, []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for architecture in ARCHITECTURES:
            folder = pre_trained(args, text, architecture, seed)
            table = zero_shot.judge(os.path.basename(folder), zero_shot.kept_models(folder, device), data,
                                    os.path.join(args.out, "log"), best=BEST, words=questions.FEELINGS)
            zero_shot.print_table(table)
            tables.append(table.assign(name=architecture, seed=seed))
    found = pd.concat(tables, ignore_index=True)
    print(report(args, found))
    print(f"wrote {os.path.join(args.out, 'zero_shot.md')}")
    return found
