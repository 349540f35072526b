"""Fine-tune GPT-1 on a task of its paper, as OpenAI's finetune-transformer-lm does, or on your own data.

    python train.py --dataset rocstories --desc rocstories --submit --analysis --data_dir DATA
    python train.py --dataset mnli --desc mnli --data_dir glue_data
    python train.py --dataset own --task classification --train_file train.csv --desc mine
    python train.py --dataset mnli --data_dir glue_data --show 3      prints examples as the model reads them, and ends

reads OpenAI's weights from model/ and the data set's files from DATA, trains 3 epochs, keeps the
parameters that do best on the validation part by the task's first metric (see tasks/gpt_tasks.py), and writes
    log/<desc>.jsonl            the arguments, then one line per evaluation (costs are means per example)
    save/<desc>/best_params     a state dict (torch.load(..., weights_only=True))
    save/<desc>/checkpoint      what --resume continues from
    save/<desc>/task.json       the task and the sizes; beside it the vocabulary: predict.py needs this folder alone
    submission/ROCStories.tsv   with --submit: the predictions on the test file, under the name that GLUE wants
With --analysis it prints the metrics on the validation part and, where its labels are public, on the test file, and the
published numbers.
"""

import argparse
import os
import sys
import zlib
from functools import partial

import numpy as np
import torch

import analysis
import fast.gpt
import opt
from ablations.lstm import load_pretrained_lstm, make_model
from fast.devices import moved_to
from fast.memory import give_back_free_pages
from formats.errors import BadInput
from formats.gpt_files import WHERE_FROM, read_pretrained
from formats.gpt_weights import not_loaded
from formats.hub import local_folder
from formats.initial_values import filled
from formats.lstm_files import read_lstm
from loss import double_head_loss
from model_pytorch import DoubleHeadModel, load_openai_pretrained_model
from tasks.layout import SPECIAL, longest, transform_roc  # noqa: F401 (the original's name, here as it was there)
from text_utils import TextEncoder
from training import distributed, finetuned, finetuning, loop, options, plan, runs, sharding, task_data
from training.precision import for_evaluation
from utils import OneLineParser, require_ranges, run_script

VOCABULARY = ("encoder_bpe_40000.json", "vocab_40000.bpe")

def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="train.py", description="Fine-tune GPT-1, as finetune-transformer-lm does.")
    options.add_run_options(p, n_iter=3, n_batch=8, n_gpu=4, needs_desc=False)
    finetuning.add_submission_options(task_data.add_data_options(p))
    model = p.add_argument_group("the model")
    model.add_argument("--model_dir", default="model/",
                       help="folder with weights and vocabulary, or OWNER/NAME of a repository on the Hugging Face Hub")
    model.add_argument("--encoder_path", help="vocabulary (default: that in model_dir, encoder_bpe_40000.json)")
    model.add_argument("--bpe_path", help="merges (default: those in model_dir, vocab_40000.bpe)")
    model.add_argument("--n_transfer", type=int, default=options.ALL_LAYERS,
                       help="pretrained layers to load; 0: the embedding alone; -1: nothing, train from scratch")
    model.add_argument("--n_ctx", type=int, default=512, help="positions at most; the data may need fewer")
    options.add_gpt_size_options(model)
    model.add_argument("--clf_pdrop", type=float, default=0.1, help="dropout probability of the classifier's input")
    o = options.add_adam_options(p, lr=6.25e-5, lr_schedule="warmup_linear")
    o.add_argument("--opt", choices=("adam",), default="adam", help="the optimizer: opt.OpenAIAdam")
    o.add_argument("--lr_warmup", type=float, default=0.002, help="share of all updates spent warming up")
    o.add_argument("--lm_coef", type=float, default=0.5, help="weight of the language-model loss; 0: none")
    o.add_argument("--vector_l2", action="store_true", help="decay biases and gains too")
    args = p.parse_args(argv)
    if args.desc is None and args.show is None:
        p.error("the following arguments are required: --desc")
    options.settle_architecture(args)
    args.encoder_path = args.encoder_path or os.path.join(args.model_dir, VOCABULARY[0])
    args.bpe_path = args.bpe_path or os.path.join(args.model_dir, VOCABULARY[1])
    return args


def find_folder(args):
    """Put the local folder in the place of --model_dir, and of the vocabulary's default paths."""
    named, args.model_dir = args.model_dir, local_folder(args.model_dir)
    for option, name in zip(("encoder_path", "bpe_path"), VOCABULARY, strict=True):
        if getattr(args, option) == os.path.join(named, name):
            setattr(args, option, os.path.join(args.model_dir, name))


def load_encoder(args):
    """Return the TextEncoder of --encoder_path and --bpe_path, or of the vocabulary that --model_dir holds."""
    paths = args.encoder_path, args.bpe_path
    if paths == tuple(os.path.join(args.model_dir, name) for name in VOCABULARY):
        return TextEncoder.from_folder(args.model_dir)
    return TextEncoder(*paths)


def check_args(args, world):
    """Check the options, and that they fit the weights, before any work starts.

    Returns:
        n_vocab of the pretrained model, or None where nothing is loaded.
    Raises:
        BadInput, MissingInput: naming the option, its value and the allowed values.
    """
    require_ranges(args, options.RUN_RANGES | options.GPT_SIZE_RANGES | options.ADAM_RANGES | {
        "n_ctx": (6, None), "n_transfer": (-1, args.n_layer), "clf_pdrop": options.BELOW_ONE, "lr_warmup": (0, 1),
        "lm_coef": (0, None)})
    options.check_run_options(args, world)
    task_data.check_data_options(args)
    finetuning.check_submission_options(args)
    options.check_gpt_sizes(args)
    find_folder(args)
    if args.n_transfer < 0 or args.init_from is not None:
        return None
    is_lstm = args.architecture == "lstm"
    released = read_lstm(args.model_dir) if is_lstm else read_pretrained(args.model_dir)
    if args.n_embd != released.n_embd:
        raise BadInput(f"--n_embd is {args.n_embd}, but the weights in {args.model_dir} have {released.n_embd}; "
                       f"give --n_embd {released.n_embd}, or --n_transfer -1 to train without them")
    if is_lstm and args.n_unit != released.n_unit:
        raise BadInput(f"--n_unit is {args.n_unit}, but the LSTM in {args.model_dir} has {released.n_unit}; give "
                       f"--n_unit {released.n_unit}, or --n_transfer -1 to train without its weights")
    if args.n_transfer > 0 and not is_lstm:
        options.settle_heads(args.n_head, args.afn, released, args.model_dir)
    if args.n_ctx > released.n_ctx:
        raise BadInput(f"--n_ctx is {args.n_ctx}, allowed is 6 to {released.n_ctx}, the positions in {args.model_dir}")
    if not is_lstm and args.n_transfer > released.n_layer:
        raise BadInput(f"--n_transfer is {args.n_transfer}, allowed is -1 to {released.n_layer}, the layers in "
                       f"{args.model_dir}")
    return released.n_vocab


def load_data(args, encoder, n_ctx=None, world=None):
    """Read, encode and cut the data set.

    Args:
        n_ctx: positions that the parameters have already, where there are some; None: what the data need.
        world: see task_data.load_data.
    Returns:
        (data, n_ctx): the task_data.Data; positions per sequence.
    """
    return task_data.fit_data(args, task_data.load_data(args, encoder, world), n_ctx)


def add_special_tokens(encoder):
    """Give the three special tokens the ids right after the vocabulary's."""
    for name in SPECIAL:
        encoder.encoder[name] = len(encoder.encoder)


def make_optimizer(args, model, n_updates_total):
    """Return the OpenAIAdam that the options describe."""
    return opt.OpenAIAdam(model.parameters(), lr=args.lr, schedule=args.lr_schedule, warmup=args.lr_warmup,
                          t_total=n_updates_total, b1=args.b1, b2=args.b2, e=args.e, l2=args.l2,
                          vector_l2=args.vector_l2, max_grad_norm=args.max_grad_norm)


def training_loss(args, model, x, m, y):
    """The mean loss of a batch, a scalar: by the plain text or by fast.gpt; see loss.double_head_loss."""
    if args.plain:
        x, m, y = moved_to(model, x, m, y)
        return double_head_loss(*model(x), x, m, y, args.lm_coef)[0]
    return fast.gpt.losses(model, x, m, y, args.lm_coef, args.checkpoint_activations)[0]


@torch.no_grad()
def task_logits(args, model, x):
    """The task logits of a batch, [b, c]: by the plain text or by fast.gpt."""
    if args.plain:
        return model.task_logits(*moved_to(model, x))
    return fast.gpt.task_logits(model, x)


def main(argv=None, train=None, valid=None, test=None):
    """Run what the options ask for, see the top of this file.

    Args:
        argv: the options' words; None: those of the command line.
        train, valid, test: rows of one's own data (--dataset own) in the place of the files: each a DataFrame, a dict
            of lists or a list of dicts.
    Returns:
        a loop.Outcome; None after --show, a plan.Plan after --dry_run.
    """
    with task_data.as_files(train=train, valid=valid, test=test) as words:
        return main_of_files([*(sys.argv[1:] if argv is None else argv), *words])


def main_of_files(argv):
    """As main, where all data are in files."""
    args = parse_args(argv)
    if args.show is not None:
        show(args)
        return None
    if args.dry_run is not None:
        return dry_run(args)
    world = distributed.join(args.device)
    n_vocab_pretrained = check_args(args, world)
    with runs.alone(args, world):
        outcome = run(args, world, n_vocab_pretrained)
    give_back_free_pages()
    return outcome


def dry_run(args):
    """Count what an update on two choices of n_ctx positions takes, print that and return it; see training/plan.py."""
    options.check_dry_run(args, options.GPT_SIZE_RANGES | {"n_ctx": (6, None)})
    options.check_gpt_sizes(args)
    positions, plain = args.n_ctx, argparse.Namespace(plain=True, lm_coef=args.lm_coef)
    n_rows = 40478 + len(SPECIAL) + positions  # those of the released vocabulary
    return plan.of_gpt(args, lambda: DoubleHeadModel(args, 0, "multiple_choice", n_rows, positions),
                       [args.n_batch, 2, positions, 2],
                       lambda model, x: training_loss(plain, model, x, x[..., 0], x[:, 0, 0, 0]))


def show(args):
    """Print the first examples as the model reads them; see task_data.show. No weights are needed."""
    require_ranges(args, {"n_ctx": (6, None)})
    task_data.check_data_options(args)
    find_folder(args)
    encoder = load_encoder(args)
    add_special_tokens(encoder)
    task_data.show(args, encoder)


def run(args, world, n_vocab_pretrained):
    """Train and predict, with options that are checked, see check_args; return a loop.Outcome."""
    start = runs.starting_parameters(args)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    encoder = load_encoder(args)
    n_vocab = len(encoder.encoder)
    if n_vocab_pretrained not in (None, n_vocab):
        raise BadInput(f"{args.encoder_path}: has {n_vocab} pieces, but the weights in {args.model_dir} have "
                       f"{n_vocab_pretrained} tokens; the two do not belong together; {WHERE_FROM}")
    vocabulary = zlib.crc32(repr(sorted(encoder.decoder.items())).encode())
    add_special_tokens(encoder)
    data, n_ctx = load_data(args, encoder, start and runs.n_positions(start, n_vocab + len(SPECIAL)), world)
    task, splits = data
    n_updates_total = loop.updates_per_epoch(len(splits["train"]), args) * args.n_iter
    if args.submit and "test" not in splits:
        raise BadInput(f"--submit predicts the test split, but --dataset {args.dataset} has none here; "
                       + ("give --test_file" if args.dataset == task_data.OWN else "put its file into --data_dir"))

    what = dict(path=args.model_dir, n_ctx=n_ctx, n_special=len(SPECIAL),
                n_transfer=args.n_transfer if args.init_from is None else -1,
                verbose=world.is_first and args.init_from is None)

    def empty():
        return make_model(DoubleHeadModel, args, encoder.encoder["_classify_"], task.head,
                          vocab=n_vocab + len(SPECIAL) + n_ctx, n_ctx=n_ctx)

    def fill(model):
        if args.architecture == "lstm":
            report = load_pretrained_lstm(model, **what)
        else:
            report = load_openai_pretrained_model(model, n_embd=args.n_embd, **what)
        if args.init_from is not None:
            runs.load(model, start, vocabulary, verbose=world.is_first)
            return []
        return not_loaded(model, report)

    model = sharding.build(args, world, lambda: filled(empty, fill), empty, runs.resumes(args))
    optimizer = make_optimizer(args, model, n_updates_total)
    loop.prepare_blocks(args, model.transformer.h, dynamic=True)

    def laid_out(examples, rows):
        """On the CPU, where each batch is laid out before it is moved: fast/ then never waits for a GPU."""
        return [None if array is None else torch.from_numpy(array) for array in examples.layout(rows)]

    def tower_loss(rows):
        return training_loss(args, model, *laid_out(splits["train"], rows))

    def logits_of(numbers):
        """{split: the logits of its first n examples} of {split: n}, the weights converted once for all of them."""
        converted = for_evaluation(model, args.precision)

        def of_rows(split, rows):
            return task_logits(args, converted, laid_out(splits[split], rows)[0])

        return {split: finetuning.choose(partial(of_rows, split), n, task.n_out, args.n_batch * args.n_gpu, world,
                                         verbose=True, desc=split) for split, n in numbers.items()}

    orders = loop.draw_orders(args.n_iter, len(splits["train"]))
    loop.train(args, model, optimizer, orders, tower_loss, finetuning.make_task_evaluation(
        args, task, splits, logits_of), world, task_data.fingerprint_of(data, n_ctx),
               vocabulary, finetuned.files_of_run(args, task, encoder, n_ctx))
    outcome = finetuning.finish_task(args, task, splits, model, encoder, world, logits_of)
    if args.analysis and world.is_first and task.name in analysis.REPORTS:
        analysis.REPORTS[task.name](args.data_dir, outcome.paths["submission"], outcome.paths["log"])
    elif args.analysis and world.is_first:
        test = {task.metrics[0]: outcome.accuracies["test"]} if "test" in outcome.accuracies else None
        valid = {task.metrics[0]: outcome.accuracies["valid"]} if "valid" in outcome.accuracies else {}
        analysis.print_values(task.name, valid, test, {}, "")
    return outcome._replace(model=sharding.gathered(model, empty, outcome.paths["best"], world))


if __name__ == "__main__":
    sys.exit(run_script(main))
