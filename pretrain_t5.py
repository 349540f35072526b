"""Pre-train T5 on plain text by span corruption, as the T5 paper's baseline does.

    python pretrain_t5.py --desc books --text BOOK.txt BOOK2.txt --model_dir my_t5 --model small

learns a SentencePiece vocabulary from the text files, cuts the text into sequences that fill n_ctx tokens after
corruption, draws new spans each time a sequence is used, and writes the parameters that do best on the held-out part:
    my_t5/              spiece.model, config.json, model.safetensors in the Hub's layout
    log/<desc>.jsonl    the arguments, then one line per evaluation: mean cost in nats per target token and perplexity
                        (tr_: the first sequences of the training part, as many as are held out; va_: held out)
    save/<desc>/        spiece.model, best_params, and what --resume continues from
`python train_t5.py --model_dir my_t5` then fine-tunes it. With --init_dir the training starts from another such folder
and keeps its sizes and its vocabulary. (Raffel et al. 2019, sections 3.1.2 and 3.1.4.)
"""

import io
import os
import re
import sys
import zlib

import numpy as np
import sentencepiece
import torch
from tqdm import tqdm

import opt
from formats.errors import BadInput
from formats.files import load_tensors, write_atomically
from loss import linear_cross_entropy
from t5_pytorch import (
    EOS,
    FEED_FORWARD_KINDS,
    SIZE_OPTIONS,
    T5,
    T5_CONFIGS,
    export_t5_model,
    load_t5_pretrained_model,
    own_size,
    read_t5_config,
    shift_right,
)
from text_utils import N_SENTINELS, SentencePieceEncoder
from training import corpus, distributed, loop
from training.span_corruption import corrupt, random_spans_helper
from utils import OneLineParser, require_ranges, run_script

MAX_LINES = 1_000_000  # the vocabulary is learned from at most so many, spread evenly over the text
Z_LOSS = 1e-4  # the original's coefficient of the squared log normaliser, in training only


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="pretrain_t5.py", description="Pre-train T5 by span corruption on plain text.")
    loop.add_options(p, n_iter=1, n_batch=128, n_gpu=1)
    data = p.add_argument_group("data")
    data.add_argument("--text", nargs="+", required=True, metavar="FILE", help="plain text files in UTF-8")
    data.add_argument("--held_out", type=float, default=0.01, help="share of the text, its end, for evaluation")
    data.add_argument("--n_pieces", type=int, default=32000, help="pieces of the vocabulary to learn")
    data.add_argument("--n_ctx", type=int, default=512, help="tokens of an input, sentinels and EOS included")
    data.add_argument("--noise_density", type=float, default=0.15, help="share of the tokens that are corrupted")
    data.add_argument("--mean_noise_span_length", type=float, default=3.0, help="tokens of a span, on average")
    model = p.add_argument_group("the model")
    model.add_argument("--model_dir", required=True, help="folder to write the model to")
    model.add_argument("--init_dir", help="folder of a model to start from; its sizes and its vocabulary are kept")
    model.add_argument("--model", choices=tuple(T5_CONFIGS), default="small", help="sizes of a new model")
    model.add_argument("--d_model", type=int, help="width (default: that of --model, as for the next four)")
    model.add_argument("--d_ff", type=int, help="inner width of the feed-forward layers")
    model.add_argument("--n_head", type=int, help="attention heads")
    model.add_argument("--d_kv", type=int, help="size of a head")
    model.add_argument("--n_layer", type=int, help="blocks of each stack")
    model.add_argument("--feed_forward", choices=FEED_FORWARD_KINDS,
                       help="feed-forward layer; with gated-gelu the logits have weights of their own")
    model.add_argument("--dropout", type=float, help="dropout probability (default: that of --model)")
    o = p.add_argument_group("the optimizer")
    o.add_argument("--n_warmup", type=int, default=10000, help="update n has the rate 1 / sqrt(max(n, n_warmup))")
    return p.parse_args(argv)


def check_args(args, world):
    """Check the options before any work starts.

    Returns:
        (tokens_length, targets_length), see span_corruption.random_spans_helper.
    Raises:
        BadInput, MissingInput: naming the option, its value and the allowed values.
    """
    sizes = [name for name in (*SIZE_OPTIONS, "feed_forward", "dropout") if getattr(args, name) is not None]
    ranges = {name: (0, 1 - 1e-9) if name == "dropout" else (1, None) for name in sizes if name != "feed_forward"}
    require_ranges(args, loop.RANGES | ranges | {
        "held_out": (1e-9, 0.5), "n_pieces": (4, None), "n_ctx": (4, None), "noise_density": (1e-9, 0.5),
        "mean_noise_span_length": (1, None), "n_warmup": (1, None)})
    loop.check_options(args, world)
    corpus.require_files(args.text)
    if args.init_dir is not None and sizes:
        raise BadInput(f"--{sizes[0]} has no effect with --init_dir, whose config.json gives the sizes: leave it out")
    continues = args.resume and os.path.isfile(loop.paths(args)["checkpoint"])
    taken = [name for name in ("spiece.model", "model.safetensors")
             if os.path.exists(os.path.join(args.model_dir, name))]
    if taken and not continues:
        raise BadInput(f"--model_dir {args.model_dir} holds a model already ({taken[0]}), which would be lost; "
                       "give another folder, or delete that one")
    lengths = random_spans_helper(args.n_ctx, args.noise_density, args.mean_noise_span_length)
    if args.n_ctx - 1 - lengths[0] * (1 - args.noise_density) > N_SENTINELS - 2:
        raise BadInput(f"--n_ctx {args.n_ctx} with --noise_density {args.noise_density} and --mean_noise_span_length "
                       f"{args.mean_noise_span_length} makes more spans than the {N_SENTINELS} sentinels can mark; "
                       "lower --n_ctx or raise --mean_noise_span_length")
    return lengths


def model_config(args, n_tokens):
    """Return the constructor arguments of the T5 that the options describe.

    Args:
        n_tokens: ids of the vocabulary, sentinels included; the rows of a new model are rounded up to a multiple of
            128, as in the original.
    Raises:
        MissingInput, BadInput: config.json in --init_dir is absent, or does not fit the vocabulary.
    """
    if args.init_dir is not None:
        config = read_t5_config(args.init_dir)
        if config["enc_num_tokens"] < n_tokens:
            raise BadInput(f"{args.init_dir}: spiece.model has {n_tokens} ids with the sentinels, but the model only "
                           f"{config['enc_num_tokens']}; the two do not belong together")
        return config
    config = own_size(T5_CONFIGS[args.model], args, n_tokens)
    return config if args.dropout is None else config | {"dropout": args.dropout}


def learn_vocabulary(lines, n_pieces):
    """Learn a SentencePiece unigram vocabulary with T5's special pieces: pad 0, EOS 1, unknown 2.

    Args:
        lines: list of strings.
    Returns:
        bytes, the content of spiece.model.
    Raises:
        BadInput: the text has too little variety for so many pieces, or too much for so few.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines[::-(-len(lines) // MAX_LINES)]), model_writer=model, model_type="unigram",
            vocab_size=n_pieces, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, max_sentence_length=1 << 20, minloglevel=2)
    except RuntimeError as error:
        limit = re.search(r"(<=|required_chars\. \d+ vs) (\d+)", str(error))
        allowed = f"allowed is at {'most' if limit[1] == '<=' else 'least'} {limit[2]}" if limit else str(error)[-150:]
        raise BadInput(f"--n_pieces is {n_pieces}, for this text {allowed}") from None
    return model.getvalue()


def load_data(args, folder, tokens_length):
    """Read the text, learn the vocabulary or copy it from --init_dir, and encode the text.

    Args:
        folder: where spiece.model is written to.
    Returns:
        encoder: a SentencePieceEncoder. train, held_out: int32 [n, tokens_length], raw token ids.
    """
    path = os.path.join(folder, "spiece.model")
    lines = list(corpus.read_lines(args.text))
    if not lines:
        raise BadInput(f"{', '.join(args.text)}: nothing but blank lines; give some text")
    if args.init_dir is None:
        data = learn_vocabulary(lines, args.n_pieces)
    else:
        SentencePieceEncoder.from_folder(args.init_dir)  # answers a bad file before it is copied
        with open(os.path.join(args.init_dir, "spiece.model"), "rb") as f:
            data = f.read()
    write_bytes(path, data)
    encoder = SentencePieceEncoder(path)
    ids = [np.array(encoder.encode([line], verbose=False)[0], dtype=np.int32)
           for line in tqdm(lines, desc="encode", unit="line", leave=False, ncols=80)]
    return encoder, *corpus.hold_out(corpus.cut_sequences(np.concatenate(ids), tokens_length), args.held_out)


def write_bytes(path, data):
    """Write bytes to a file, atomically."""
    with write_atomically(path) as temporary, open(temporary, "wb") as f:
        f.write(data)


def token_losses(model, src, targets, z_loss=0.0):
    """Return the sum over all target tokens of cross entropy + z_loss * logsumexp^2, a scalar.

    Args:
        src: int [b, s]; targets: int [b, t], both without padding.
    """
    hidden = model.hidden_states(src, shift_right(targets)).flatten(0, 1)        # [b, t, d] -> [b*t, d]
    scale = torch.ones(len(hidden), device=src.device)
    return linear_cross_entropy(hidden, model.logits_weight(), targets.flatten(), scale, z_loss)


def main(argv=None):
    """Run what the options ask for; see the top of this file."""
    args = parse_args(argv)
    world = distributed.join(args.device)
    tokens_length, _ = check_args(args, world)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    folder = os.path.dirname(loop.paths(args)["checkpoint"])
    encoder, train, held_out = load_data(args, folder, tokens_length)
    n_updates_total = loop.updates_per_epoch(len(train), args) * args.n_iter

    def corrupted(rows, rng):
        return corrupt(rows, encoder.sentinel(0), EOS, args.noise_density, args.mean_noise_span_length, rng)

    def tensors(arrays):
        return [torch.from_numpy(array).long().to(world.device) for array in arrays]

    rng = np.random.default_rng(args.seed)
    parts = {"tr": corrupted(train[:len(held_out)], rng), "va": corrupted(held_out, rng)}
    known = corrupted(train[:20000], rng)[1]  # enough targets for the baseline's frequencies
    unigram = corpus.unigram_perplexity(known, parts["va"][1], encoder.n_tokens)
    if world.is_first:
        print(f"{train.size:,} tokens to train on, {held_out.size:,} held out; inputs of {parts['va'][0].shape[1]} and "
              f"targets of {parts['va'][1].shape[1]} tokens (unigram perplexity of the targets {unigram:.1f}); "
              f"{encoder.n_tokens:,} in the vocabulary, {n_updates_total:,} updates")

    model = T5(**model_config(args, encoder.n_tokens))
    if args.init_dir is not None:
        report = load_t5_pretrained_model(model, args.init_dir)
        if world.is_first:
            print(f"loaded {len(report['loaded'])} variables from {args.init_dir}")
    model.to(world.device)
    optimizer = opt.Adafactor(model.parameters(), lr=lambda step: opt.rsqrt_schedule(step, args.n_warmup))
    if args.compile:
        for block in (*model.encoder.block, *model.decoder.block):
            block.compile()

    def tower_loss(rows):
        seed = torch.randint(1 << 62, ()).item()  # from the generator that loop.train seeds for this tower
        src, targets = tensors(corrupted(train[rows], np.random.default_rng(seed)))
        return token_losses(model, src, targets, Z_LOSS) / targets.numel()

    def cost(inputs, targets):
        total = torch.zeros((), device=world.device)
        for start in range(world.rank * args.n_batch, len(inputs), world.size * args.n_batch):
            rows = slice(start, start + args.n_batch)
            with loop.autocast(world.device, args.precision):
                total += token_losses(model, *tensors((inputs[rows], targets[rows])))
        return world.sum(total).item() / targets.size

    def evaluate():
        tr_cost, va_cost = cost(*parts["tr"]), cost(*parts["va"])
        return dict(tr_cost=tr_cost, va_cost=va_cost, tr_ppl=corpus.perplexity_of(tr_cost),
                    va_ppl=corpus.perplexity_of(va_cost),
                    unigram_ppl=unigram), -va_cost

    fingerprint = zlib.crc32(held_out.tobytes(), zlib.crc32(train.tobytes()))
    orders = loop.SeededOrders(args.seed, args.n_iter, len(train))
    loop.train(args, model, optimizer, orders, tower_loss, evaluate, world, fingerprint)

    world.wait()  # the first process has written the best parameters
    model.load_state_dict(load_tensors(loop.paths(args)["best"], map_location=world.device))
    if world.is_first:
        with open(os.path.join(folder, "spiece.model"), "rb") as f:
            write_bytes(os.path.join(args.model_dir, "spiece.model"), f.read())
        export_t5_model(model, args.model_dir)
        print(f"wrote {args.model_dir}; fine-tune it with: python train_t5.py --desc NAME --data_dir DATA --submit "
              f"--analysis --model_dir {args.model_dir}")


if __name__ == "__main__":
    sys.exit(run_script(main))
