"""Fine-tune T5 on the Story Cloze Test as text to text, in the style of the T5 paper's COPA.

    python train_t5.py --dataset rocstories --desc t5 --model small --model_dir DIR --submit --analysis --data_dir DATA

DIR holds spiece.model and a released checkpoint: the Hub's model.safetensors, or Google's model.ckpt-* files.
An example becomes
    rocstories choice1: <ending 1> choice2: <ending 2> sentence: <story>   ->   choice1 | choice2
and the prediction is the target with the larger log-probability. Writes the files that train.py writes. Its
tr_cost and va_cost are the cross entropy of choosing between the two targets, in nats per example.
"""

import sys
import zlib

import numpy as np
import torch
import torch.nn.functional as F

import opt
from fast.matmul import linear
from formats.errors import BadInput
from loss import linear_cross_entropy
from t5_pytorch import (
    EOS,
    FEED_FORWARD_KINDS,
    PAD,
    SIZE_OPTIONS,
    T5,
    T5_CONFIGS,
    load_t5_pretrained_model,
    own_size,
    read_t5_config,
    shift_right,
)
from text_utils import SentencePieceEncoder
from training import distributed, finetuning, loop
from utils import OneLineParser, require_ranges, run_script, warn

TARGETS = ("choice1", "choice2")
Z_LOSS = 1e-4  # the original's coefficient of the squared log normaliser, in training only


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="train_t5.py", description="Fine-tune T5 on a cloze task as text to text.")
    loop.add_options(p, n_iter=10, n_batch=8, n_gpu=4)
    finetuning.add_task_options(p)
    model = p.add_argument_group("the model")
    model.add_argument("--model_dir", default="model/t5/", help="folder with spiece.model and the checkpoint")
    model.add_argument("--model", choices=tuple(T5_CONFIGS),
                       help="released size (default: what config.json in model_dir says); flan-t5 has those of v1_1")
    model.add_argument("--from_scratch", action="store_true", help="load no weights; sizes as below may be given")
    model.add_argument("--d_model", type=int, help="width (with --from_scratch)")
    model.add_argument("--d_ff", type=int, help="inner width of the feed-forward layers (with --from_scratch)")
    model.add_argument("--n_head", type=int, help="attention heads (with --from_scratch)")
    model.add_argument("--d_kv", type=int, help="size of a head (with --from_scratch)")
    model.add_argument("--n_layer", type=int, help="blocks of each stack (with --from_scratch)")
    model.add_argument("--feed_forward", choices=FEED_FORWARD_KINDS, help="feed-forward layer (with --from_scratch)")
    model.add_argument("--dropout", type=float, default=0.1, help="dropout probability")
    model.add_argument("--n_ctx", type=int, default=512, help="source tokens at most; longer ones are cut")
    o = p.add_argument_group("the optimizer")
    o.add_argument("--lr", type=float, default=1e-3, help="constant rate of Adafactor")
    return p.parse_args(argv)


def check_args(args, world):
    """Check the options before any work starts.

    Raises:
        BadInput: naming the option, its value and the allowed values.
    """
    require_ranges(args, loop.RANGES | {"dropout": (0, 1 - 1e-9), "n_ctx": (8, None), "lr": (0, None)})
    loop.check_options(args, world)
    finetuning.check_task_options(args)
    given = [name for name in (*SIZE_OPTIONS, "feed_forward") if getattr(args, name) is not None]
    if given and not args.from_scratch:
        raise BadInput(f"--{given[0]} sets the size of a model without weights: give --from_scratch too")
    require_ranges(args, {name: (1, None) for name in given if name != "feed_forward"})


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
        config = own_size(config, args, n_tokens)
    elif config["enc_num_tokens"] < n_tokens:
        raise BadInput(f"{args.model_dir}: spiece.model has {n_tokens} ids with the sentinels, but the model only "
                       f"{config['enc_num_tokens']}; the two do not belong together")
    return config | {"dropout": args.dropout}


def cloze_texts(split):
    """Return the source texts of a split (stories, endings 1, endings 2, ...)."""
    return [f"rocstories choice1: {one} choice2: {two} sentence: {story}"
            for story, one, two in zip(*split[:3], strict=True)]


def pad(sequences, device):
    """Return int64 [b, longest], the lists of ids padded with PAD."""
    longest = max(map(len, sequences))
    return torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in sequences], device=device)


def training_loss(model, src, targets):
    """Return the original's training loss: cross entropy and z-loss of real tokens over the number of all positions.

    Args:
        src: int [b, s]; targets: int [b, t], both padded with PAD.
    """
    hidden = model.hidden_states(src, shift_right(targets), src != PAD, targets != PAD).flatten(0, 1)  # [b*t, d]
    scale = (targets != PAD).flatten().float() / targets.numel()
    return linear_cross_entropy(hidden, model.logits_weight(), targets.flatten(), scale, Z_LOSS)


def target_log_probs(model, src, candidates):
    """Return [b, c], the log-probability of each candidate target given each source.

    Args:
        src: int [b, s]; candidates: int [c, t], both padded with PAD.
    """
    (b, _), (c, t) = src.shape, candidates.shape
    mask = src != PAD
    memory = model.encode(src, mask).repeat_interleave(c, 0)                     # [b, s, d] -> [bc, s, d]
    targets = candidates.repeat(b, 1)                                            # [bc, t]
    hidden = model.decoder(model.embed_target(shift_right(targets)), targets != PAD, memory,
                           mask.repeat_interleave(c, 0))                         # [bc, t, d]
    logits = linear(model.before_logits(hidden), model.logits_weight()).float()
    log_p = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=PAD)
    return log_p.view(b, c, t).sum(-1)


def main(argv=None):
    """Run what the options ask for; see the top of this file."""
    args = parse_args(argv)
    world = distributed.join(args.device)
    check_args(args, world)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    encoder = SentencePieceEncoder.from_folder(args.model_dir)
    model = T5(**model_config(args, encoder.n_tokens))
    if args.from_scratch:
        if world.is_first:
            print("loaded nothing (--from_scratch)")
    else:
        report = load_t5_pretrained_model(model, args.model_dir)
        if world.is_first:
            print(f"loaded {len(report['loaded'])} variables from {args.model_dir}")
            if args.model and not encoder.is_released:
                warn(f"{args.model_dir}: spiece.model is not the vocabulary of the released T5 models (its sha256 "
                     "differs); python download_model.py brings that one")
    model.to(world.device)

    splits = finetuning.read_splits(args)
    sources = [encoder.encode(cloze_texts(split)) for split in splits]
    cut = sum(len(ids) >= args.n_ctx for split in sources for ids in split)
    if cut and world.is_first:
        warn(f"{cut} of {sum(map(len, sources))} sources have {args.n_ctx} tokens or more and were cut (--n_ctx)")
    sources = [[[*ids[:args.n_ctx - 1], EOS] for ids in split] for split in sources]
    target_ids = [[*ids, EOS] for ids in encoder.encode(list(TARGETS), verbose=False)]
    candidates = pad(target_ids, world.device)                                   # [2, t]
    (trY, vaY) = (torch.as_tensor(split[3], device=world.device).long() for split in splits[:2])
    inputs = {"train": sources[0][:args.n_valid], "valid": sources[1], "test": sources[2]}
    optimizer = opt.Adafactor(model.parameters(), lr=args.lr)
    if args.compile:
        for block in (*model.encoder.block, *model.decoder.block):
            block.compile(dynamic=True)

    def tower_loss(rows):
        src = pad([sources[0][i] for i in rows], world.device)
        return training_loss(model, src, candidates[trY[rows]])

    def logits(split):
        def of(rows):
            return target_log_probs(model, pad(inputs[split][rows], world.device), candidates)
        # one context for all batches: the weights are converted once
        with torch.no_grad(), loop.autocast(world.device, args.precision):
            return finetuning.choose(of, len(inputs[split]), len(TARGETS), args.n_batch * args.n_gpu, world, True)

    evaluate = finetuning.make_evaluation(args, logits, trY, vaY)
    orders = loop.draw_orders(args.n_iter, len(sources[0]))
    fingerprint = zlib.crc32(repr((sources[:2], trY.tolist(), vaY.tolist())).encode())
    loop.train(args, model, optimizer, orders, tower_loss, evaluate, world, fingerprint)
    if args.submit:
        finetuning.submit(args, model, world, lambda: logits("test"))


if __name__ == "__main__":
    sys.exit(run_script(main))
