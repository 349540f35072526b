"""The options that several training scripts share, in groups, with their ranges.

A script calls the add_ functions it needs, then require_ranges with the ranges of the same groups.
"""

import os
import sys

from ablations.lstm import ARCHITECTURES, N_UNIT
from fast.blas import forced_library
from fast.rates import say_where_bf16_is_slow
from formats.errors import BadInput
from model_pytorch import ACT_FNS
from opt import SCHEDULES
from t5_pytorch import FEED_FORWARD_KINDS
from utils import device_names, require_ranges

PRECISIONS = ("fp32", "bf16")
BELOW_ONE = (0, 1 - 1e-9)
WINDOWS_HAS_NOT = '<>:"|?*'  # in the names of files

RUN_RANGES = {"n_iter": (1, None), "n_batch": (1, None), "n_gpu": (1, None), "seed": (0, 2 ** 32 - 1),
              "save_every": (0, None)}
ADAM_RANGES = {"lr": (0, None), "l2": (0, None), "b1": BELOW_ONE, "b2": BELOW_ONE, "e": (0, None)}
GPT_SIZE_RANGES = {"n_embd": (1, None), "n_head": (1, None), "n_layer": (1, None), "embd_pdrop": BELOW_ONE,
                   "attn_pdrop": BELOW_ONE, "resid_pdrop": BELOW_ONE}

# what an LSTM has no use for: option -> values that are let pass, its default among them
LSTM_HAS_NOT = {"n_head": (12,), "n_layer": (12, 1), "afn": ("gelu",), "attn_pdrop": (0.1, 0)}
ALL_LAYERS = 12  # the default of --n_transfer

# option of the T5 scripts -> arguments of T5 it sets, for a model of one's own size
T5_SIZES = {"d_model": ("dim",), "d_ff": ("d_ff",), "n_head": ("enc_heads", "dec_heads"),
            "d_kv": ("enc_dim_head", "dec_dim_head"), "n_layer": ("enc_depth", "dec_depth")}


def add_run_options(parser, n_iter, n_batch, n_gpu, needs_desc=True):
    """Add the options that every training script has, with the given defaults.

    needs_desc: False where something can be done without a run; the script then asks for --desc itself.
    """
    run = parser.add_argument_group("the run")
    run.add_argument("--desc", required=needs_desc, help="name of the run; names its log and save folder")
    run.add_argument("--log_dir", default="log/", help="folder for <desc>.jsonl, the log")
    run.add_argument("--save_dir", default="save/", help="folder for <desc>/best_params and <desc>/checkpoint")
    run.add_argument("--seed", type=int, default=42, help="fixes initial weights, order and dropout")
    run.add_argument("--n_iter", type=int, default=n_iter, help="epochs")
    run.add_argument("--n_batch", type=int, default=n_batch, help="examples per tower")
    run.add_argument("--n_gpu", type=int, default=n_gpu,
                     help="towers (the original's word for the parts of an update): one update takes n_batch * n_gpu "
                          "examples, on however many devices there are")
    add_device_option(run)
    run.add_argument("--precision", choices=PRECISIONS, default="fp32",
                     help="bf16: matrix products in bfloat16; weights and optimizer stay float32, but evaluation reads "
                          "a copy of the weights in bfloat16")
    add_plain_option(run)
    run.add_argument("--shard", action="store_true",
                     help="share the model out among torchrun's processes: each holds its part of the parameters, "
                          "gradients and optimizer state; implies --plain")
    run.add_argument("--checkpoint_activations", action="store_true",
                     help="keep of each block its input alone and run it again in the backward pass: the same numbers, "
                          "less memory, more time")
    run.add_argument("--dry_run", type=int, nargs="?", const=1, metavar="N",
                     help="print what an update takes on N processes (1), memory above all, and end: counted without "
                          "data and weights")
    run.add_argument("--compile", action="store_true",
                     help="compile the plain text's blocks with torch.compile (minutes at first); implies --plain")
    run.add_argument("--save_every", type=int, default=100,
                     help="updates between checkpoints, besides the one after each epoch; 0: only those")
    run.add_argument("--resume", action="store_true", help="continue from <desc>/checkpoint if there is one")
    run.add_argument("--init_from", metavar="FILE or FOLDER",
                     help="start a new run from another's parameters: its folder in save/, its best_params or its "
                          "checkpoint; sizes and vocabulary have to be the same")


def add_device_option(parser):
    """Add --device."""
    parser.add_argument("--device", choices=device_names(), default="auto",
                        help="auto: the accelerator that torch sees (cuda: NVIDIA or ROCm, mps: Apple, xpu: Intel), "
                             "else the CPU")


def add_plain_option(parser):
    """Add --plain."""
    parser.add_argument("--plain", action="store_true",
                        help="run the papers' text as it stands, without fast/: the same numbers, slower")


def check_dry_run(args, ranges):
    """Check the options that --dry_run looks at.

    Raises:
        BadInput: naming the option.
    """
    require_ranges(args, {"dry_run": (1, None), "n_batch": (1, None), "n_gpu": (1, None)} | ranges)
    args.plain = args.plain or args.shard
    if getattr(args, "architecture", "transformer") != "transformer":
        raise BadInput(f"--dry_run does not count --architecture {args.architecture}: leave out one of them")
    if args.dry_run > args.n_gpu:
        raise BadInput(f"--dry_run {args.dry_run} processes share --n_gpu {args.n_gpu} towers: give --n_gpu "
                       f"{args.dry_run} and a smaller --n_batch")


def check_run_options(args, world):
    """Check what only several options together can tell, and let --compile and --shard imply --plain.

    Raises:
        BadInput: a run name that is no file name, or more processes than towers; or see forced_library.
    """
    forced_library()
    if not args.desc or args.desc in (".", "..") or os.path.basename(args.desc) != args.desc or "\0" in args.desc:
        raise BadInput(f"--desc is {args.desc!r}, expected a plain name without slashes")
    if world.size > args.n_gpu:
        raise BadInput(f"{world.size} processes share --n_gpu {args.n_gpu} towers; start at most {args.n_gpu}, or give "
                       f"--n_gpu {world.size} and a smaller --n_batch")
    if sys.platform == "win32" and set(args.desc) & set(WINDOWS_HAS_NOT):
        raise BadInput(f"--desc is {args.desc!r}, but Windows has no files with any of {WINDOWS_HAS_NOT} in their "
                       "names; give another name")
    if args.shard and getattr(args, "architecture", "transformer") != "transformer":
        raise BadInput(f"--shard does not go with --architecture {args.architecture}: leave out one of them")
    for option in ("shard", "checkpoint_activations"):
        if args.compile and getattr(args, option):
            raise BadInput(f"--{option} and --compile do not go together: leave out one of them")
    args.plain = args.plain or args.compile or args.shard
    say_where_bf16_is_slow(world.device, args.precision)


def add_adam_options(parser, lr, lr_schedule):
    """Add the options of opt.OpenAIAdam that fine-tuning and pre-training share; return the group."""
    o = parser.add_argument_group("the optimizer")
    o.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    o.add_argument("--lr_schedule", choices=tuple(SCHEDULES), default=lr_schedule, help="course of the rate")
    o.add_argument("--max_grad_norm", type=float, default=1.0, help="limit of the global gradient norm; 0: none")
    o.add_argument("--l2", type=float, default=0.01, help="weight decay of all but biases and gains")
    o.add_argument("--b1", type=float, default=0.9, help="Adam's decay rate of the mean")
    o.add_argument("--b2", type=float, default=0.999, help="Adam's decay rate of the square")
    o.add_argument("--e", type=float, default=1e-8, help="Adam's epsilon")
    return o


def add_gpt_size_options(group):
    """Add architecture, sizes, activation and dropouts of a GPT; see settle_architecture."""
    group.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0],
                       help="lstm: one layer of an LSTM in the place of the blocks, the paper's ablation")
    group.add_argument("--n_unit", type=int, help=f"units of the LSTM (default: {N_UNIT:,})")
    group.add_argument("--n_embd", type=int, default=768, help="width of the hidden states")
    group.add_argument("--n_head", type=int, default=12, help="attention heads")
    group.add_argument("--n_layer", type=int, default=12, help="blocks; of an LSTM 1")
    group.add_argument("--afn", choices=tuple(ACT_FNS), default="gelu", help="activation function")
    for part, where in (("embd", "entries of the embedding matrix"), ("attn", "attention weights"),
                        ("resid", "outputs of attention and MLP")):
        group.add_argument(f"--{part}_pdrop", type=float, default=0.1, help=f"dropout probability of {where}")


def settle_architecture(args):
    """Give the options of add_gpt_size_options, and n_transfer where there is one, the values that they mean together.

    An LSTM has one layer, and runs as plain text: fast/ does not know it.

    Raises:
        BadInput: an option that the architecture has no use for, naming it.
    """
    if args.architecture == "transformer":
        if args.n_unit is not None:
            raise BadInput(f"--n_unit is {args.n_unit}, but it is for an LSTM: give --architecture lstm too")
        return
    for name, values in LSTM_HAS_NOT.items():
        if getattr(args, name) not in values:
            raise BadInput(f"--{name} is {getattr(args, name)}, but an LSTM has one layer and no attention; leave it "
                           "out")
    if args.compile:
        raise BadInput("--compile is for the Transformer's blocks; leave it out for an LSTM")
    args.n_unit = N_UNIT if args.n_unit is None else args.n_unit
    args.n_layer, args.plain = 1, True
    if getattr(args, "n_transfer", None) == ALL_LAYERS:
        args.n_transfer = 1


def check_gpt_sizes(args):
    """Raise BadInput where n_head does not divide n_embd."""
    if args.architecture == "lstm":
        require_ranges(args, {"n_unit": (1, None)})
    elif args.n_embd % args.n_head:
        raise BadInput(f"--n_head is {args.n_head}, which does not divide --n_embd {args.n_embd}")


def settle_heads(n_head, afn, released, folder):
    """Return (n_head, afn) of a GPT to be loaded: what was asked for, else what its folder says.

    Args:
        n_head, afn: the options, or None. released: the Released model. folder: its name, for messages.
    Raises:
        BadInput: the two contradict each other, or nothing says how many heads there are.
    """
    for option, given, known in (("n_head", n_head, released.n_head), ("afn", afn, released.afn)):
        if None not in (given, known) and given != known:
            raise BadInput(f"--{option} is {given}, but the model in {folder} (width {released.n_embd}) has {known}; "
                           f"give --{option} {known}")
    n_head = released.n_head if n_head is None else n_head
    if n_head is None:
        raise BadInput(f"{folder}: has no config.json, and the weights do not tell the number of attention heads; "
                       "give --n_head")
    if released.n_embd % n_head:
        raise BadInput(f"--n_head is {n_head}, which does not divide the width {released.n_embd} of the weights in "
                       f"{folder}")
    return n_head, afn or released.afn or "gelu"


def add_t5_size_options(group, note):
    """Add the sizes of a T5 of one's own; note: when they may be given."""
    group.add_argument("--d_model", type=int, help=f"width ({note})")
    group.add_argument("--d_ff", type=int, help=f"inner width of the feed-forward layers ({note})")
    group.add_argument("--n_head", type=int, help=f"attention heads ({note})")
    group.add_argument("--d_kv", type=int, help=f"size of a head ({note})")
    group.add_argument("--n_layer", type=int, help=f"blocks of each stack ({note})")
    group.add_argument("--feed_forward", choices=FEED_FORWARD_KINDS,
                       help=f"feed-forward layer; with gated-gelu the logits have weights of their own ({note})")


def given_t5_sizes(args):
    """Return the names of the options of add_t5_size_options that were given."""
    return [name for name in (*T5_SIZES, "feed_forward") if getattr(args, name) is not None]


def t5_size_ranges(args):
    """Return the ranges of those that were given."""
    return {name: (1, None) for name in given_t5_sizes(args) if name != "feed_forward"}


def own_t5_size(config, args, n_tokens):
    """Return constructor arguments of T5 changed by the options that were given, for a model without weights.

    Args:
        config: constructor arguments to start from.
        args: parsed options of add_t5_size_options, each None where not given.
        n_tokens: ids of the vocabulary, sentinels included; rounded up to a multiple of 128, as in the original.
    """
    config = dict(config)
    for option, arguments in T5_SIZES.items():
        if getattr(args, option) is not None:
            config.update(dict.fromkeys(arguments, getattr(args, option)))
    if args.feed_forward is not None:
        config.update(feed_forward=args.feed_forward, tie_logits=args.feed_forward == "relu", scale_logits=None)
    config.update(dict.fromkeys(("enc_num_tokens", "dec_num_tokens"), -(-n_tokens // 128) * 128))
    return config
