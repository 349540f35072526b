"""Fine-tune T5: on the paper's tasks, on your own pairs of texts, or on the Story Cloze Test.

    python train_t5.py --dataset rte --desc rte --model small --model_dir DIR --submit --analysis --data_dir glue_data
    python train_t5.py --dataset own --train_file a.tsv --valid_file b.tsv --metric rouge --desc mine --model_dir DIR
    python train_t5.py --dataset cb --data_dir DATA --show 3
    python train_t5.py --dataset rocstories --desc t5 --model small --model_dir DIR --submit --analysis --data_dir DATA

A task is judged by the texts that the model generates, see training/text_to_text.py. The cloze task of train.py is here
too, in the style of the paper's COPA, or with the right ending as the target: training/choosing.py.

DIR holds spiece.model and a released checkpoint: the Hub's model.safetensors, or Google's model.ckpt-* files. At the
end save/<desc>/ is such a folder too, with the best parameters: predict.py, generate.py and transformers read it.
A story becomes
    rocstories choice1: <ending 1> choice2: <ending 2> sentence: <story>   ->   choice1 | choice2
and the prediction is the target with the larger log-probability. With --form answer it becomes
    rocstories sentence: <story>   ->   <the right ending>
and the prediction is the ending with the larger mean log-probability of its tokens. Writes the files that train.py
writes. Its tr_cost and va_cost are the cross entropy of choosing by these numbers, in nats per example.
"""

import os
import sys
import zlib
from functools import partial

import numpy as np
import torch

import analysis
import fast.t5
import loss
import opt
from fast.devices import moved_to
from fast.memory import give_back_free_pages
from formats import t5_vocabulary
from formats.errors import BadInput, warn
from formats.hub import local_folder
from formats.initial_values import filled
from t5_pytorch import (
    PAD,
    T5,
    T5_CONFIGS,
    copy_t5_vocabulary,
    export_t5_model,
    load_t5_pretrained_model,
    read_t5_config,
    shift_right,
)
from text_utils import SentencePieceEncoder
from training import choosing, distributed, finetuning, loop, options, plan, runs, sharding, text_to_text
from training.finetuned import t5_files_of_run
from utils import OneLineParser, require_ranges, run_script

Z_LOSS = 1e-4  # the original's coefficient of the squared log normaliser, in training only


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="train_t5.py", description="Fine-tune T5 on tasks as text to text.")
    options.add_run_options(p, n_iter=10, n_batch=8, n_gpu=4, needs_desc=False)
    text_to_text.add_options(p)
    model = p.add_argument_group("the model")
    model.add_argument("--model_dir", default="model/t5/",
                       help="folder with vocabulary and checkpoint, or OWNER/NAME of a repository on the Hub")
    model.add_argument("--model", choices=tuple(T5_CONFIGS),
                       help="released size (default: what config.json in model_dir says); flan-t5 has those of v1_1")
    model.add_argument("--from_scratch", action="store_true", help="load no weights; sizes as below may be given")
    options.add_t5_size_options(model, "with --from_scratch")
    model.add_argument("--dropout", type=float, default=0.1, help="dropout probability")
    model.add_argument("--n_ctx", type=int, default=512, help="source tokens at most; longer ones are cut")
    o = p.add_argument_group("the optimizer")
    o.add_argument("--lr", type=float, default=1e-3, help="constant rate of Adafactor")
    o.add_argument("--label_smoothing", type=float, default=0.0,
                   help="share of the target's probability that is spread over the vocabulary")
    return p.parse_args(argv)


def check_args(args, world):
    """Check the options before any work starts.

    Raises:
        BadInput: naming the option, its value and the allowed values.
    """
    require_ranges(args, options.RUN_RANGES | {"dropout": options.BELOW_ONE, "n_ctx": (8, None), "lr": (0, None),
                                              "n_valid": (1, None), "label_smoothing": (0, 1)})
    options.check_run_options(args, world)
    text_to_text.check_options(args)
    given = options.given_t5_sizes(args)
    if given and not args.from_scratch:
        raise BadInput(f"--{given[0]} sets the size of a model without weights: give --from_scratch too")
    require_ranges(args, options.t5_size_ranges(args))
    args.model_dir = local_folder(args.model_dir)


def model_config(args, n_tokens):
    """Return the constructor arguments of the T5 that the options describe.

    Args:
        n_tokens: ids of the vocabulary, sentinels included; a model from scratch has that many rows, rounded up
            to a multiple of 128 as in the original.
    Raises:
        MissingInput, BadInput: neither --model nor config.json, or sizes missing.
    """
    if args.model:
        config = T5_CONFIGS[args.model]
    elif args.from_scratch and args.d_model:
        config = T5_CONFIGS["small"]
    else:
        config = read_t5_config(args.model_dir)
    if args.from_scratch:
        config = options.own_t5_size(config, args, n_tokens)
    elif config["enc_num_tokens"] < n_tokens:
        raise BadInput(f"{args.model_dir}: the vocabulary has {n_tokens} ids with the sentinels, but the model only "
                       f"{config['enc_num_tokens']}; the two do not belong together")
    return config | {"dropout": args.dropout}


def training_loss(args, model, src, targets):
    """The mean loss of a batch, a scalar: by the plain text or by fast.t5; see loss.t5_loss.

    Args:
        src: int [b, s]; targets: int [b, t], both padded with PAD.
    """
    if args.plain:
        src, targets = moved_to(model, src, targets)
        logits = model(src, shift_right(targets), src != PAD, targets != PAD)
        return loss.t5_loss(logits, targets, Z_LOSS, args.label_smoothing)
    return fast.t5.training_loss(model, src, targets, Z_LOSS, label_smoothing=args.label_smoothing,
                                 recompute=args.checkpoint_activations)


@torch.no_grad()
def target_log_probs(args, model, src, candidates):
    """The log-probability of each candidate target given each source, [b, c]: by the plain text or by fast.t5.

    Args:
        src: int [b, s]; candidates: int [c, t], the same for all sources, or [b, c, t]; both padded with PAD.
    """
    if args.plain:
        src, candidates = moved_to(model, src, candidates)
        b, c = len(src), candidates.shape[-2]
        sources, targets = src.repeat_interleave(c, 0), candidates.expand(b, -1, -1).flatten(0, 1)  # [bc, s], [bc, t]
        logits = model(sources, shift_right(targets), sources != PAD, targets != PAD)
        return loss.target_log_probs(logits, targets).view(b, c)
    return fast.t5.target_log_probs(model, src, candidates)


def main(argv=None):
    """Run what the options ask for, see the top of this file; return a loop.Outcome, with --show nothing, with
    --dry_run a plan.Plan."""
    args = parse_args(argv)
    if args.show is not None:
        text_to_text.check_options(args)
        return text_to_text.show(args) if text_to_text.is_task(args) else choosing.show(args)
    if args.dry_run is not None:
        return dry_run(args)
    world = distributed.join(args.device)
    check_args(args, world)
    with runs.alone(args, world):
        outcome = run(args, world)
    give_back_free_pages()
    return outcome


def dry_run(args):
    """Count what an update on full inputs and targets takes, print that and return it; see training/plan.py."""
    options.check_dry_run(args, {"n_ctx": (8, None), "dropout": options.BELOW_ONE} | options.t5_size_ranges(args))
    n_target = 3  # choice1 and EOS
    if text_to_text.is_task(args):
        n_target = args.n_target or max(task.target_length for task in text_to_text.chosen(args).values())
    elif args.form == "answer":
        n_target = args.n_target or choosing.TARGET_LENGTH
    return plan.of_t5(args, model_config(args, 32100), args.n_ctx, n_target)


def run(args, world):
    """Train and predict, with options that are checked, see check_args; return a loop.Outcome."""
    start = runs.starting_parameters(args)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    encoder = SentencePieceEncoder.from_folder(args.model_dir)
    with open(t5_vocabulary.find_file(args.model_dir), "rb") as f:
        vocabulary = zlib.crc32(f.read())
    config = model_config(args, encoder.n_tokens)

    def empty():
        return T5(**config)

    def fill(model):
        if args.init_from is not None:
            runs.load(model, start, vocabulary, verbose=world.is_first)
            return []
        if args.from_scratch:
            if world.is_first:
                print("loaded nothing (--from_scratch)")
            return [name for name, _ in model.named_parameters()]
        report = load_t5_pretrained_model(model, args.model_dir)
        if world.is_first:
            print(f"loaded {len(report['loaded'])} variables from {args.model_dir}")
            if args.model and not encoder.is_released:
                warn(f"{args.model_dir}: the vocabulary is not that of the released T5 models (other pieces or "
                     "scores); python download_model.py brings that one")
        return report["fresh"]

    model = sharding.build(args, world, lambda: filled(empty, fill), empty, runs.resumes(args))
    optimizer = opt.Adafactor(model.parameters(), lr=args.lr)
    loop.prepare_blocks(args, model.encoder.block, model.decoder.block, dynamic=True)
    files = t5_files_of_run(text_to_text.settings_of(args))
    if text_to_text.is_task(args):
        text_to_text.finetune(args, model, encoder, world, optimizer, partial(training_loss, args, model), vocabulary,
                              files)
        finetuning.load_best(args, model, world)
        submissions = text_to_text.submit(args, model, encoder, world) if args.submit else {}
        if args.select == "each":
            finetuning.load_best(args, model, world)
        outcome = loop.outcome(args, model, encoder, world, **submissions)
    else:
        outcome = choosing.finetune(args, model, encoder, world, optimizer, partial(training_loss, args, model),
                                    partial(target_log_probs, args), vocabulary, files)
    model = sharding.gathered(model, empty, loop.paths(args)["best"], world)
    if world.is_first:  # the best parameters are in the model
        folder = os.path.dirname(loop.paths(args)["best"])
        copy_t5_vocabulary(args.model_dir, folder)
        export_t5_model(model, folder)
    if args.analysis and world.is_first:
        size = args.model or text_to_text.released_size(model)
        if text_to_text.is_task(args):
            text_to_text.report(args, size)
        elif args.dataset != "rocstories":
            choosing.report(args, outcome, size)
        else:
            analysis.REPORTS[args.dataset](args.data_dir, outcome.paths["submission"], outcome.paths["log"])
    return outcome._replace(model=model)


if __name__ == "__main__":
    sys.exit(run_script(main))
