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
import tempfile
import zlib

import numpy as np
import sentencepiece
import torch

import fast.t5
import loss
import opt
from fast.devices import moved_to
from fast.memory import give_back_free_pages
from formats import progress
from formats.errors import BadInput, is_first_process
from formats.files import write_bytes
from formats.hub import local_folder
from formats.initial_values import filled
from t5_pytorch import EOS, T5, T5_CONFIGS, export_t5_model, load_t5_pretrained_model, read_t5_config, shift_right
from text_utils import N_SENTINELS, SentencePieceEncoder
from training import corpus, distributed, kept, loop, options, plan, pretraining, runs, sharding, token_files
from training.precision import for_evaluation
from training.span_corruption import corrupt, random_spans_helper
from utils import OneLineParser, require_ranges, run_script

MAX_LINES = 1_000_000  # the vocabulary is learned from at most so many, spread evenly over the text
LEARN_FROM = 20_000_000  # bytes of a text on the disk that the vocabulary is learned from, spread evenly over it
Z_LOSS = 1e-4  # the original's coefficient of the squared log normaliser, in training only


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="pretrain_t5.py", description="Pre-train T5 by span corruption on plain text.")
    options.add_run_options(p, n_iter=1, n_batch=128, n_gpu=1)
    data, model = pretraining.add_corpus_options(p, "its sizes and its vocabulary are kept")
    data.add_argument("--n_pieces", type=int, default=32000, help="pieces of the vocabulary to learn")
    data.add_argument("--n_ctx", type=int, default=512, help="tokens of an input, sentinels and EOS included")
    data.add_argument("--noise_density", type=float, default=0.15, help="share of the tokens that are corrupted")
    data.add_argument("--mean_noise_span_length", type=float, default=3.0, help="tokens of a span, on average")
    model.add_argument("--model", choices=tuple(T5_CONFIGS), default="small", help="sizes of a new model")
    options.add_t5_size_options(model, "default: that of --model")
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
    sizes = options.given_t5_sizes(args) + ["dropout"] * (args.dropout is not None)
    require_ranges(args, options.RUN_RANGES | pretraining.CORPUS_RANGES | options.t5_size_ranges(args)
                   | ({} if args.dropout is None else {"dropout": options.BELOW_ONE})
                   | {"n_pieces": (4, None), "n_ctx": (4, None), "noise_density": (1e-9, 0.5),
                      "mean_noise_span_length": (1, None), "n_warmup": (1, None)})
    options.check_run_options(args, world)
    if args.init_dir is not None:
        args.init_dir = local_folder(args.init_dir)
    if args.init_dir is not None and sizes:
        raise BadInput(f"--{sizes[0]} has no effect with --init_dir, whose config.json gives the sizes: leave it out")
    pretraining.check_corpus_options(args, ("spiece.model", "model.safetensors"))
    pretraining.source_folder(args, ["spiece.model"])
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
            raise BadInput(f"{args.init_dir}: the vocabulary has {n_tokens} ids with the sentinels, but the model only "
                           f"{config['enc_num_tokens']}; the two do not belong together")
        return config
    config = options.own_t5_size(T5_CONFIGS[args.model], args, n_tokens)
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
    lines = lines[::-(-len(lines) // MAX_LINES)]

    def sentences():
        """The lines in short parts: the trainer's time grows with the square of a long passage that occurs twice.

        It leaves out, in silence, what is too long or holds its own signs, a tab or U+2585.
        """
        for line in lines:
            words = line.replace("\u2585", " ").split()
            for start in range(0, len(words), 100):
                yield " ".join(words[start:start + 100])

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(), model_writer=model, model_type="unigram", vocab_size=n_pieces, pad_id=0,
            eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, max_sentence_length=4 * max(map(len, lines)))  # in bytes
    except RuntimeError as error:
        limit = re.search(r"(<=|required_chars\. \d+ vs) (\d+)", str(error))
        allowed = f"allowed is at {'most' if limit[1] == '<=' else 'least'} {limit[2]}" if limit else str(error)[-150:]
        raise BadInput(f"--n_pieces is {n_pieces}, for this text {allowed}") from None
    return model.getvalue()


def read_text(paths, every=1):
    """Return the parts of text files, or the first of `every` so many, see corpus.read_parts.

    Raises:
        BadInput: there are none; see also corpus.read_parts.
    """
    parts = [part for part, _ in corpus.read_parts(paths, every=every)]
    if not parts:
        raise BadInput(f"{', '.join(paths)}: nothing but blank lines; give some text")
    return parts


def encode(encoder, parts):
    """Return int32 [tokens], the ids of parts of a text one after another."""
    return np.concatenate([np.array(encoder.encode([part], verbose=False)[0], dtype=np.int32)
                           for part in progress.bar(parts, desc="encode", unit="line", show=is_first_process())])


def load_data(args, folder, tokens_length):
    """Read the text, learn the vocabulary or copy it from --init_dir or --init_from, and encode the text.

    Args:
        folder: where spiece.model is written to.
    Returns:
        encoder: a SentencePieceEncoder. train, held_out: int32 [n, tokens_length], raw token ids.
    """
    lines = read_text(args.text)
    path = os.path.join(folder, "spiece.model")
    write_bytes(path, of_source(args) or learn_vocabulary(lines, args.n_pieces))
    encoder = SentencePieceEncoder(path)
    valid_ids = encode(encoder, read_text(args.valid_text)) if args.valid_text else None
    return encoder, *pretraining.hold_out(args, encode(encoder, lines), valid_ids, tokens_length)


def of_source(args):
    """Return the bytes of the vocabulary that is kept, that of --init_dir or --init_from; None for a new one.

    Raises:
        BadInput: its sentinels are not where T5 has them.
    """
    source = pretraining.source_folder(args, ["spiece.model"])
    if source is None:
        return None
    encoder = SentencePieceEncoder.from_folder(source)
    if encoder.sentinels != [encoder.n_tokens - 1 - i for i in range(N_SENTINELS)]:
        raise BadInput(f"{source}: the vocabulary does not end in {N_SENTINELS} sentinels that count down, as T5's "
                       f"does (it has {len(encoder.sentinels)}); span corruption needs these")
    return encoder.data


def load_data_on_disk(args, folder, tokens_length, world):
    """As load_data, for text that need not fit into memory: its ids go to files in --token_dir.

    Returns:
        encoder: a SentencePieceEncoder. train: token_files.Rows [n, tokens_length]. held_out: int32 [n, tokens_length].
    """
    data = of_source(args)

    def make_vocabulary(place):
        every = -(-token_files.n_bytes(args.text) // LEARN_FROM)
        write_bytes(os.path.join(place, "spiece.model"),
                    data or learn_vocabulary(read_text(args.text, every), args.n_pieces))

    encoder, ids, valid_ids = pretraining.encode_on_disk(
        args, world, folder, make_vocabulary, SentencePieceEncoder.from_folder,
        ["t5", sentencepiece.__version__, [args.n_pieces, LEARN_FROM] if data is None else [zlib.crc32(data)]])
    return encoder, *pretraining.hold_out(args, ids, valid_ids, tokens_length)


def mean_loss(args, model, src, targets, z_loss=0.0):
    """The mean over all target tokens of cross entropy + z_loss * logsumexp^2, a scalar: plain or by fast.t5.

    Args:
        src: int [b, s]; targets: int [b, t], both without padding.
    """
    if args.plain:
        src, targets = moved_to(model, src, targets)
        return loss.t5_loss(model(src, shift_right(targets)), targets, z_loss)
    return fast.t5.training_loss(model, src, targets, z_loss, padded=False, recompute=args.checkpoint_activations)


def main(argv=None):
    """Run what the options ask for, see the top of this file; return a loop.Outcome."""
    args = parse_args(argv)
    if args.dry_run is not None:
        return dry_run(args)
    world = distributed.join(args.device)
    tokens_length, _ = check_args(args, world)
    with runs.alone(args, world, os.path.join(args.model_dir, "spiece.model")):
        outcome = run(args, world, tokens_length)
    give_back_free_pages()
    return outcome


def dry_run(args):
    """Count what an update takes, print that and return it; see training/plan.py."""
    options.check_dry_run(args, {"n_ctx": (4, None), "n_pieces": (4, None)} | options.t5_size_ranges(args))
    n_target = random_spans_helper(args.n_ctx, args.noise_density, args.mean_noise_span_length)[1]
    return plan.of_t5(args, model_config(args, args.n_pieces + N_SENTINELS), args.n_ctx, n_target)


def run(args, world, tokens_length):
    """Train and write the model, with options that are checked, see check_args; return a loop.Outcome."""
    start = runs.starting_parameters(args)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:  # the run's own keeps its vocabulary until all is checked
        encoder, train, held_out = load_data_on_disk(args, folder, tokens_length, world) \
            if pretraining.is_on_disk(args) else load_data(args, folder, tokens_length)
        vocabulary = pretraining.read_files(folder, sorted(os.listdir(folder)))
    n_updates_total = loop.updates_per_epoch(len(train), args) * args.n_iter
    kept.updates_to_keep(args.keep_at, n_updates_total)  # refuses what is beyond the end

    def corrupted(rows, rng):
        return corrupt(np.asarray(rows), encoder.sentinel(0), EOS, args.noise_density, args.mean_noise_span_length, rng)

    def tensors(arrays):
        return [torch.from_numpy(array).long() for array in arrays]

    rng = np.random.default_rng(args.seed)
    parts = {"tr": corrupted(train[:len(held_out)], rng), "va": corrupted(held_out, rng)}
    known = corrupted(train[:20000], rng)[1]  # enough targets for the baseline's frequencies
    unigram = corpus.unigram_perplexity(known, parts["va"][1], encoder.n_tokens)
    if world.is_first:
        print(f"{train.size:,} tokens to train on, {held_out.size:,} held out; inputs of {parts['va'][0].shape[1]} and "
              f"targets of {parts['va'][1].shape[1]} tokens (unigram perplexity of the targets {unigram:.1f}); "
              f"{encoder.n_tokens:,} in the vocabulary, {n_updates_total:,} updates")

    config = model_config(args, encoder.n_tokens)

    def empty():
        return T5(**config)

    def fill(model):
        if args.init_from is not None:
            runs.load(model, start, None, verbose=world.is_first)
            return []
        if args.init_dir is None:
            return [name for name, _ in model.named_parameters()]
        report = load_t5_pretrained_model(model, args.init_dir)
        if world.is_first:
            print(f"loaded {len(report['loaded'])} variables from {args.init_dir}")
        return report["fresh"]

    model = sharding.build(args, world, lambda: filled(empty, fill), empty, runs.resumes(args))
    optimizer = opt.Adafactor(model.parameters(), lr=lambda step: opt.rsqrt_schedule(step, args.n_warmup))
    loop.prepare_blocks(args, model.encoder.block, model.decoder.block, dynamic=False)

    def tower_loss(rows):
        seed = torch.randint(1 << 62, ()).item()  # from the generator that loop.train seeds for this tower
        src, targets = tensors(corrupted(train[rows], np.random.default_rng(seed)))
        return mean_loss(args, model, src, targets, Z_LOSS)

    def cost(part):
        converted = for_evaluation(model, args.precision)

        def sum_of_losses(*arrays):
            src, targets = tensors(arrays)
            return mean_loss(args, converted, src, targets) * targets.numel()

        return pretraining.mean_cost(parts[part], sum_of_losses, parts[part][1].size, args, world)

    pretraining.train(args, model, optimizer, train, held_out, tower_loss, pretraining.make_evaluation(cost, unigram),
                      world, vocabulary)
    model = sharding.gathered(model, empty, loop.paths(args)["best"], world)
    if world.is_first:
        write_bytes(os.path.join(args.model_dir, "spiece.model"), vocabulary["spiece.model"])
        export_t5_model(model, args.model_dir)
        pretraining.print_ending(args, "train_t5.py")
    return loop.outcome(args, model, encoder, world, model_dir=args.model_dir)


if __name__ == "__main__":
    sys.exit(run_script(main))
