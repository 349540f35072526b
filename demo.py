"""The papers' claim in minutes, on any machine, with nothing downloaded.

    python demo.py              toy stories -> pre-training -> released format -> fine-tuning -> accuracies
    python demo.py --t5         the same with T5
    python demo.py --seeds 5    fine-tune with 5 seeds: medians and ranges (--seed is the first of them)
    python demo.py --full       also fine-tune with 0, 1, 2, ... transferred layers
    python demo.py --tasks      also fine-tune on toy sets for classification, entailment and similarity

Calls toy.stories, pretrain.py, train.py, generate.py and analysis.py as anybody would from a shell, and prints each
command. Everything is written under --out; what is there already from the same settings is used again.
"""

import itertools
import os
import shlex
import statistics
import sys
import time

import numpy as np

import analysis
import generate
import pretrain
import pretrain_t5
import train
import train_t5
from formats.errors import BadInput, warn
from tasks import metrics, story_cloze
from tasks.gpt_tasks import GPT_TASKS
from toy import glue, stories
from utils import OneLineParser, reached_epoch, require_ranges, run_script

# GPT gets half of the grammar's topics, so that half the stories and half the time show the claim
STORIES = {"gpt": {"n_text": 10000, "n_cloze": 1500, "n_topics": 12},
           "t5": {"n_text": 24000, "n_cloze": 1871, "n_topics": 24}}
# The narrow width makes larger initial weights and rates learn sooner; the rest are the scripts' defaults.
GPT = {"n_embd": 96, "n_head": 4, "n_layer": 3}
NO_DROPOUT = {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0}
GPT_PRETRAIN = GPT | NO_DROPOUT | {
    "n_ctx": 104, "n_merges": 1400, "n_chars": 80, "n_batch": 10, "n_iter": 1, "lr": 4e-3, "n_warmup": 60,
    "init_std": 0.06, "held_out": 0.02, "save_every": 0}
# So narrow a model cannot spare what dropout takes: with it accuracy is lower, and differs by much more from seed to
# seed. Twice this rate washes out what pre-training has taught, above all without the LM term; small updates are many
# in the same time. docs/claims.md has the numbers.
GPT_FINETUNE = GPT | NO_DROPOUT | {"clf_pdrop": 0, "n_ctx": 104, "n_gpu": 1, "n_iter": 2, "n_valid": 200, "lr": 1e-3,
                                   "save_every": 0}
# variant -> options of train.py
GPT_VARIANTS = {"from scratch": {"n_transfer": -1},
                "pre-trained, no LM term": {"n_transfer": GPT["n_layer"], "lm_coef": 0},
                "pre-trained": {"n_transfer": GPT["n_layer"]}}
# the toy sets of --tasks: data set -> (metric, its value by chance in percent); the best is 100, see toy/glue.py
TASKS = {"sst2": ("acc", 50), "rte": ("acc", 50), "mrpc": ("acc", 50), "stsb": ("pearson", 0)}
TASK_FINETUNE = GPT | {"n_ctx": 104, "n_gpu": 1, "n_batch": 16, "n_iter": 3, "lr": 2e-3, "save_every": 0}
T5 = {"d_model": 96, "d_ff": 192, "n_head": 4, "d_kv": 24, "n_layer": 2}
T5_PRETRAIN = T5 | {"n_pieces": 1000, "n_ctx": 104, "n_batch": 16, "n_iter": 2, "n_warmup": 4000, "dropout": 0,
                    "held_out": 0.02, "save_every": 0}
T5_FINETUNE = {"form": "answer", "n_iter": 3, "lr": 3e-3, "save_every": 0}
T5_VARIANTS = {"from scratch": T5 | {"from_scratch": True}, "pre-trained": {}}
OTHER_FORM = """
With both endings in the input and choice1 or choice2 as the target (train_t5.py without --form answer) a model of this
size stays at chance: pre-training has taught it which texts are likely, and nothing of weighing one against another."""


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="demo.py", description="Pre-train and fine-tune on toy stories, with and without.")
    p.add_argument("--out", default="demo/", help="folder for everything")
    p.add_argument("--seed", type=int, default=42, help="fixes stories, weights and order")
    p.add_argument("--seeds", type=int, default=1, help="seeds of fine-tuning, --seed and those after it")
    p.add_argument("--quick", action="store_true", help="few stories and one epoch: shows the path, not the claim")
    p.add_argument("--full", action="store_true", help="also accuracy against transferred layers (layers.png)")
    p.add_argument("--tasks", action="store_true", help="also the toy sets for the paper's other kinds of tasks")
    p.add_argument("--t5", action="store_true", help="T5 instead of GPT")
    return p.parse_args(argv)


def command_line(options):
    """Return the list of words for a dict of options; True stands for an option without a value."""
    words = []
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def call(script, words):
    """Print a script's command and run it; return what it returns."""
    name = f"-m {script.__name__}" if "." in script.__name__ else f"{script.__name__}.py"
    print(f"\n$ python {name} {shlex.join(words)}", flush=True)
    return script.main(words)


def finished(script, words, submission):
    """True if a run with exactly these options has come to its last epoch and written its submission."""
    args = script.parse_args(words)
    header = reached_epoch(os.path.join(args.log_dir, f"{args.desc}.jsonl"), args.n_iter)
    return header is not None and os.path.isfile(submission) \
        and all(header.get(name) == value for name, value in vars(args).items())


def make_stories(folder, settings, seed, quick):
    """Write toy stories and cloze files once; return their paths (text file, data folder). settings: of STORIES."""
    text, data = os.path.join(folder, "stories.txt"), os.path.join(folder, "data")
    if not os.path.isfile(text):  # written last
        options = {"data_dir": data, "text": text, "seed": seed} | settings
        call(stories, command_line(options | ({"n_text": 1500, "n_cloze": 600} if quick else {})))
    print(f"\nA toy story: {stories.unlabelled(1, seed, settings['n_topics'])[0]}")
    row = stories.cloze(1, seed, "test", settings["n_topics"])[0]
    print(f"A cloze: {' '.join(row[1:5])}\n    1: {row[5]}\n    2: {row[6]}\n    right: {row[7]}")
    return text, data


def fine_tune(script, folder, desc, options):
    """Fine-tune unless this very run is there already; return (log, for each test story whether it was right)."""
    data_dir = os.path.join(folder, "data")
    log, file = run_once(script, folder, desc, {"dataset": "rocstories", "data_dir": data_dir} | options,
                         "ROCStories.tsv")
    labels = story_cloze._rocstories(os.path.join(data_dir, story_cloze.TEST_FILE))[3]
    return log, np.array(analysis.read_submission(file)) == labels


def run_once(script, folder, desc, options, submission):
    """Fine-tune unless this very run is there already; return the paths of its log and of its submission."""
    submission_dir = os.path.join(folder, "submission", desc)
    words = command_line({"desc": desc} | options | {
        "submit": True, "analysis": True, "log_dir": os.path.join(folder, "log"),
        "save_dir": os.path.join(folder, "save"), "submission_dir": submission_dir})
    file = os.path.join(submission_dir, submission)
    if finished(script, words, file):
        print(f"\n{desc}: already there")
    else:
        call(script, words)
    return os.path.join(folder, "log", f"{desc}.jsonl"), file


def show_tasks(folder, settings, seed, quick):
    """Fine-tune on the toy sets, from scratch and pre-trained, and print what was reached on their dev files."""
    data_dir, table = os.path.join(folder, "glue"), []
    if not os.path.isfile(os.path.join(data_dir, "STS-B", "test.tsv")):  # written last
        options = {"data_dir": data_dir, "seed": seed, "n_topics": STORIES["gpt"]["n_topics"]}
        call(glue, command_line(options | ({"n_train": 96, "n_dev": 40} if quick else {})))
    for name, (metric, chance) in TASKS.items():
        row = []
        for variant in ("from scratch", "pre-trained"):
            options = {"dataset": name, "data_dir": data_dir, "seed": seed} | settings | GPT_VARIANTS[variant]
            log, _ = run_once(train, folder, f"gpt-{name}-{variant.replace(' ', '-')}-{seed}", options,
                              GPT_TASKS[name].submission["test"])
            row.append(analysis.best_evaluation(log, f"va_{metric}")[f"va_{metric}"])
        table.append(f"    {name:<8}{metrics.TITLES[metric]:<22}{chance:>6}{row[0]:>14.1f}{row[1]:>13.1f}")
    print("\nToy sets, on their dev files, in percent (the best possible: 100)\n"
          f"    {'':<30}{'chance':>6}{'from scratch':>14}{'pre-trained':>13}")
    print("\n".join(table))


def show_sample(folder, model_dir):
    """Let the pre-trained GPT continue the beginning of a story nobody has shown it."""
    test, _, _, _ = story_cloze._rocstories(os.path.join(folder, "data", story_cloze.TEST_FILE))
    beginning = ".".join(test[0].split(".")[:2]) + "."
    call(generate, ["--model_dir", model_dir, "--n_head", str(GPT["n_head"]), "--n_tokens", "30",
                    "--temperature", "0.5", "--prompt", beginning])


def print_table(right):
    """Print the test accuracies (percent) of each variant, and which differences are larger than chance.

    Args:
        right: {variant: {seed: for each test story whether it was right}}; the last one is compared with the others.
    """
    print("\nAccuracy on the toy test set in percent (chance: 50)")
    for variant, by_seed in right.items():
        values = [100 * of_stories.mean() for of_stories in by_seed.values()]
        spread = f"   ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
        print(f"    {variant:<26}{statistics.median(values):5.1f}{spread}")
    *others, last = right
    print()
    for other in others:
        seeds = sorted(right[last].keys() & right[other].keys())
        if not seeds:
            continue
        mean, low, high = metrics.difference(*(np.array([right[name][seed] for seed in seeds])
                                               for name in (last, other)))
        verdict = "is" if low > 0 or high < 0 else "is not"
        print(f"{last} against {other}: {mean:+.1f} points ({low:+.1f} to {high:+.1f}), {verdict} more than chance")
    n_seeds = max(map(len, right.values()))
    print("In brackets 95% intervals, for the choice of the test stories"
          + (" and of the seeds." if n_seeds > 1 else " alone; how much the seed changes shows --seeds 5."))


def main(argv=None):
    """Run the demonstration; see the top of this file."""
    args = parse_args(argv)
    require_ranges(args, {"seed": (0, 2 ** 31), "seeds": (1, 100)})
    if args.full and args.t5:
        raise BadInput("--full counts GPT's transferred layers; leave out --t5")
    if args.tasks and args.t5:
        raise BadInput("--tasks is for GPT's transformations; leave out --t5")
    begin = time.monotonic()
    script, kind = (train_t5, "t5") if args.t5 else (train, "gpt")
    settings = STORIES[kind]
    folder = os.path.join(args.out, f"seed{args.seed}-{settings['n_topics']}topics" + "-quick" * args.quick)
    text, data = make_stories(folder, settings, args.seed, args.quick)
    model_dir = os.path.join(folder, f"model-{kind}")
    quick = {"n_iter": 1, "n_valid": 100} if args.quick else {}

    if not os.path.isfile(os.path.join(model_dir, "model.safetensors" if args.t5 else "params_shapes.json")):
        options = {"desc": f"pretrain-{kind}", "text": text, "model_dir": model_dir, "seed": args.seed, "resume": True,
                   "log_dir": os.path.join(folder, "log"), "save_dir": os.path.join(folder, "save")}
        if args.t5:
            call(pretrain_t5, command_line(options | T5_PRETRAIN | ({"n_iter": 1} if args.quick else {})))
        else:
            call(pretrain, command_line(options | GPT_PRETRAIN))
    if not args.t5:
        show_sample(folder, model_dir)

    settings = (T5_FINETUNE if args.t5 else GPT_FINETUNE) | quick | {"model_dir": model_dir}
    variants = T5_VARIANTS if args.t5 else GPT_VARIANTS
    right, logs, failures = {variant: {} for variant in variants}, {}, []
    for seed in range(args.seed, args.seed + args.seeds):
        for variant, options in variants.items():
            desc = f"{kind}-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
            try:
                log, right[variant][seed] = fine_tune(script, folder, desc, settings | options | {"seed": seed})
            except BadInput as error:
                failures.append(f"{desc}: {error}")
                warn(f"{failures[-1]}; the others go on")
                continue
            logs.setdefault(variant, []).append(log)
    if failures and not all(right.values()):
        raise BadInput(failures[0])
    if args.full:
        layers = [*logs["from scratch"], *logs["pre-trained"]]
        for n, seed in itertools.product(range(GPT["n_layer"]), range(args.seed, args.seed + args.seeds)):
            desc = f"{kind}-{n}-layers-{seed}"
            layers.append(fine_tune(script, folder, desc, settings | {"n_transfer": n, "seed": seed})[0])
        analysis.draw_layers(layers, os.path.join(folder, "layers.png"))
    if args.tasks:
        show_tasks(folder, TASK_FINETUNE | quick | {"model_dir": model_dir}, args.seed, args.quick)
    curves = os.path.join(folder, "curves-t5.png" if args.t5 else "curves.png")
    analysis.draw_curves([log for of_variant in logs.values() for log in of_variant], curves,
                         [variant for variant, of_variant in logs.items() for _ in of_variant])

    print_table(right)
    if args.t5:
        print(OTHER_FORM)
    real = "train_t5.py --model small --model_dir model/t5-small" if args.t5 else "train.py"
    print(f"\nEverything is in {folder}: stories, model, logs, submissions, {os.path.basename(curves)}"
          + (", layers.png" if args.full else "") + f" ({time.monotonic() - begin:.0f} s)."
          f"\nThe same with the released weights and the real data:\n    python {real} --dataset rocstories "
          f"--desc rocstories --submit --analysis --data_dir DATA")
    if failures:
        raise BadInput(f"{len(failures)} fine-tunings failed: {failures[0]}")


if __name__ == "__main__":
    sys.exit(run_script(main))
