"""Pre-train GPT-1 as a language model on plain text, as the paper describes; the authors released no code for it.

    python pretrain.py --desc books --text BOOK.txt BOOK2.txt --model_dir my_model

learns a vocabulary from the text files, trains on sequences of n_ctx tokens that lie one after another in the text,
and writes the parameters that do best on the held-out part, with the vocabulary, in OpenAI's released format:
    my_model/           encoder_bpe_40000.json, vocab_40000.bpe, params_0.npy to params_9.npy, params_shapes.json,
                        config.json
    log/<desc>.jsonl    the arguments, then one line per evaluation: mean cost in nats per token and perplexity
                        (tr_: the first sequences of the training part, as many as are held out; va_: held out)
    save/<desc>/        the vocabulary, best_params, what --resume continues from, and what --keep_at keeps
`python train.py --model_dir my_model --n_embd ... --n_head ... --n_layer ...` then fine-tunes it. With --init_dir
the training starts from another model folder and keeps its vocabulary. (Radford et al. 2018, section 4.1.)
"""

import json
import os
import sys
import tempfile
import zlib
from collections import Counter
from importlib.metadata import version

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import fast.gpt
import opt
from ablations.lstm import export_lstm, load_pretrained_lstm, make_model
from fast.devices import moved_to
from fast.memory import give_back_free_pages
from formats import gpt_vocabulary
from formats.errors import BadInput, warn
from formats.files import write_atomically, write_bytes
from formats.gpt_files import read_pretrained
from formats.hub import local_folder
from formats.initial_values import filled
from formats.lstm_files import FILE as LSTM_FILE
from formats.lstm_files import read_lstm
from formats.words import english_tokenizer
from loss import word_loss
from model_pytorch import LMModel, export_openai_model, load_openai_pretrained_model
from text_utils import TextEncoder
from training import corpus, distributed, kept, loop, options, plan, pretraining, runs, sharding, token_files
from training.precision import for_evaluation
from utils import OneLineParser, require_ranges, run_script

VOCABULARY = gpt_vocabulary.OPENAI_FILES
LEARN_FROM = 100_000_000  # bytes of a text on the disk; the vocabulary is learned from at most so many, spread evenly
UNKNOWN, NEWLINE = gpt_vocabulary.UNKNOWN, "\n</w>"


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="pretrain.py", description="Pre-train GPT-1 on plain text. The defaults are the paper's.")
    options.add_run_options(p, n_iter=100, n_batch=64, n_gpu=1)
    data, model = pretraining.add_corpus_options(p, "its vocabulary is kept")
    data.add_argument("--n_merges", type=int, default=40000, help="byte-pair merges to learn")
    data.add_argument("--n_chars", type=int, default=238, help="characters in the vocabulary, the most frequent ones")
    model.add_argument("--n_ctx", type=int, default=512, help="tokens of a sequence, and positions of a new model")
    options.add_gpt_size_options(model)
    model.add_argument("--init_std", type=float, default=0.02,
                       help="standard deviation of the initial weights; a narrow model learns sooner from e.g. 0.06")
    o = options.add_adam_options(p, lr=2.5e-4, lr_schedule="warmup_cosine")
    o.add_argument("--n_warmup", type=int, default=2000, help="updates spent warming up")
    args = p.parse_args(argv)
    options.settle_architecture(args)
    return args


def check_args(args, world):
    """Check the options, and that they fit the model in --init_dir, before any work starts.

    Returns:
        n_positions: rows of position embeddings, n_ctx or those of the model in --init_dir.
    Raises:
        BadInput, MissingInput: naming the option, its value and the allowed values.
    """
    require_ranges(args, options.RUN_RANGES | options.GPT_SIZE_RANGES | options.ADAM_RANGES | pretraining.CORPUS_RANGES
                   | {"n_merges": (1, None), "n_chars": (1, None), "n_ctx": (2, None), "n_warmup": (0, None),
                      "init_std": (1e-9, 1)})
    options.check_run_options(args, world)
    options.check_gpt_sizes(args)
    pretraining.check_corpus_options(args, (*VOCABULARY, "params_shapes.json", LSTM_FILE))
    pretraining.source_folder(args, VOCABULARY)
    if args.init_dir is None:
        return args.n_ctx
    args.init_dir = local_folder(args.init_dir)
    if args.architecture == "lstm":
        released, size = read_lstm(args.init_dir), "n_unit"
    else:
        released, size = read_pretrained(args.init_dir), "n_layer"
        options.settle_heads(args.n_head, args.afn, released, args.init_dir)
    if (args.n_embd, getattr(args, size)) != (released.n_embd, getattr(released, size)):
        raise BadInput(f"--n_embd {args.n_embd} --{size} {getattr(args, size)} do not fit the model in "
                       f"{args.init_dir}: give --n_embd {released.n_embd} --{size} {getattr(released, size)}")
    if args.n_ctx > released.n_ctx:
        raise BadInput(f"--n_ctx is {args.n_ctx}, allowed is 2 to {released.n_ctx}, the positions in {args.init_dir}")
    n_pieces = len(gpt_vocabulary.read_folder(args.init_dir)[0])
    if n_pieces != released.n_vocab:
        raise BadInput(f"{args.init_dir}: the vocabulary has {n_pieces} pieces, but the weights have "
                       f"{released.n_vocab} tokens; the two do not belong together")
    return released.n_ctx


def read_words(paths, verbose=True, every=1):
    """Split text files into words as TextEncoder does, with a word for every line break.

    Args:
        paths, verbose, every: see corpus.read_parts.
    Returns:
        words: the distinct words, in the order in which they first occur.
        numbers: int32 [number of words in the text], indices into `words`.
    Raises:
        BadInput: there is no text; see also corpus.read_parts.
    """
    index, numbers = {}, []
    for of_part in corpus.read_words(english_tokenizer(), paths, verbose, every):
        numbers.append(np.array([index.setdefault(word, len(index)) for word in of_part], dtype=np.int32))
    if not numbers:
        raise BadInput(f"{', '.join(map(str, paths))}: nothing but blank lines; give some text")
    return list(index), np.concatenate(numbers)


def learn_vocabulary(words, counts, n_merges, n_chars):
    """Learn a byte-pair vocabulary (Sennrich et al. 2016) with the tokenizers library.

    Args:
        words: distinct words. counts: how often each occurs.
        n_merges: merges to learn; fewer where the text has no more. n_chars: the most frequent characters.
    Returns:
        encoder: {piece: id} in OpenAI's order: `<unk>`, the characters, the characters that end a word, the merges'
            pieces, the newline.
        merges: list of pairs of pieces, the first one first.
    """
    frequency = Counter()
    for word, count in zip(words, counts, strict=True):
        for c in word.strip():  # leaves out the line break, which is a piece of its own
            frequency[c] += int(count)
    chars = sorted(frequency, key=lambda c: (-frequency[c], c))[:n_chars]
    known = set(chars)
    # The library numbers final characters in the order of a randomly seeded hash map, and the numbers break ties
    # between equally frequent pairs. As special tokens they have fixed numbers, and the merges do not vary.
    base = [UNKNOWN, *chars, *(c + "</w>" for c in chars)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(base) + n_merges, special_tokens=base, initial_alphabet=[], end_of_word_suffix="</w>",
        show_progress=False)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    # Words with other characters stay out: the trainer would learn from them with the characters removed.
    kept = [(word, int(count)) for word, count in zip(words, counts, strict=True) if known.issuperset(word)]
    tokenizer.train_from_iterator((" ".join([word] * min(10000, count - done)) for word, count in kept
                                   for done in range(0, count, 10000)), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = dict.fromkeys([*base, *(left + right for left, right in merges), NEWLINE])
    return {piece: i for i, piece in enumerate(pieces)}, merges


def write_vocabulary(folder, encoder, merges):
    """Write what learn_vocabulary returned to `folder`, in the format and under the names of OpenAI's files."""
    with write_atomically(os.path.join(folder, VOCABULARY[0])) as temporary, open(temporary, "w") as f:
        json.dump(encoder, f)
    with write_atomically(os.path.join(folder, VOCABULARY[1])) as temporary, \
            open(temporary, "w", encoding="utf-8", newline="\n") as f:
        f.write("#version: 0.2\n")
        f.writelines(f"{left} {right}\n" for left, right in merges)


def copy_vocabulary(source, folder):
    """Copy the vocabulary of one folder to another, there in OpenAI's two files.

    Raises:
        MissingInput, BadInput: see formats.gpt_vocabulary.read_folder; nothing is copied then.
    """
    encoder, merges = gpt_vocabulary.read_folder(source)
    paths = gpt_vocabulary.find_files(source)
    if tuple(map(os.path.basename, paths)) != VOCABULARY:
        write_vocabulary(folder, encoder, merges)
        return
    for path in paths:
        with open(path, "rb") as f, write_atomically(os.path.join(folder, os.path.basename(path))) as temporary, \
                open(temporary, "wb") as copy:
            copy.write(f.read())


def encode_words(encoder, words, numbers):
    """Return int32 [tokens], the ids of a text that read_words has split; each distinct word is encoded once."""
    ids = [encoder.word_ids(word) for word in words]
    flat = np.array([i for of_word in ids for i in of_word], dtype=np.int32)
    lengths = np.array([len(of_word) for of_word in ids])
    starts = np.cumsum(lengths) - lengths
    # token j of the text is piece j - first[k] of its word k, whose pieces begin at starts[k] of `flat`
    lengths, starts = lengths[numbers], starts[numbers]
    first = np.cumsum(lengths) - lengths
    return flat[np.repeat(starts - first, lengths) + np.arange(lengths.sum())]


def load_data(args, folder):
    """Read the text, learn the vocabulary or copy it from --init_dir or --init_from, and encode the text.

    Args:
        folder: where the vocabulary is written to, if there is none to copy.
    Returns:
        encoder: a TextEncoder. train, held_out: int32 [n, n_ctx], token ids.
    """
    words, numbers = read_words(args.text)
    source = pretraining.source_folder(args, VOCABULARY)
    if source is None:
        write_vocabulary(folder, *learn_vocabulary(words, np.bincount(numbers), args.n_merges, args.n_chars))
    else:
        copy_vocabulary(source, folder)
    encoder = TextEncoder.from_folder(folder)
    ids = encode_words(encoder, words, numbers)
    warn_of_unknown(np.count_nonzero(ids == 0), len(ids))
    valid_ids = encode_words(encoder, *read_words(args.valid_text)) if args.valid_text else None
    return encoder, *pretraining.hold_out(args, ids, valid_ids, args.n_ctx)


def warn_of_unknown(unknown, n):
    """Warn where more than one in a thousand of n tokens is `<unk>`, id 0."""
    if unknown > 0.001 * n:
        warn(f"{unknown:,} of {n:,} tokens are {UNKNOWN}: characters outside the vocabulary (--n_chars)")


def load_data_on_disk(args, folder, world):
    """As load_data, for text that need not fit into memory: its ids go to files in --token_dir.

    Returns:
        encoder: a TextEncoder. train: token_files.Rows [n, n_ctx]. held_out: int32 [n, n_ctx].
    """
    source = pretraining.source_folder(args, VOCABULARY)

    def make_vocabulary(place):
        if source is not None:
            copy_vocabulary(source, place)
            return
        words, numbers = read_words(args.text, every=-(-token_files.n_bytes(args.text) // LEARN_FROM))
        write_vocabulary(place, *learn_vocabulary(words, np.bincount(numbers), args.n_merges, args.n_chars))

    made_from = [args.n_merges, args.n_chars, LEARN_FROM] if source is None else \
        [zlib.crc32(repr(gpt_vocabulary.read_folder(source)).encode())]
    encoder, ids, valid_ids = pretraining.encode_on_disk(
        args, world, folder, make_vocabulary, TextEncoder.from_folder,
        ["gpt", *map(version, ("ftfy", "spacy")), made_from], lambda encoder: encoder.word_ids(corpus.NEWLINE)[0])
    warn_of_unknown(ids.n_zero, len(ids))
    return encoder, *pretraining.hold_out(args, ids, valid_ids, args.n_ctx)


def main(argv=None):
    """Run what the options ask for, see the top of this file; return a loop.Outcome."""
    args = parse_args(argv)
    if args.dry_run is not None:
        return dry_run(args)
    world = distributed.join(args.device)
    n_positions = check_args(args, world)
    with runs.alone(args, world, os.path.join(args.model_dir, VOCABULARY[0])):
        outcome = run(args, world, n_positions)
    give_back_free_pages()
    return outcome


def dry_run(args):
    """Count what an update takes, print that and return it; see training/plan.py."""
    sizes = ("n_ctx", "n_merges", "n_chars")
    options.check_dry_run(args, options.GPT_SIZE_RANGES | {name: (2, None) for name in sizes})
    options.check_gpt_sizes(args)
    n_vocab = args.n_merges + 2 * args.n_chars + 2  # with the unknown piece and the newline
    return plan.of_gpt(args, lambda: LMModel(args, n_vocab + args.n_ctx, args.n_ctx), [args.n_batch, args.n_ctx, 2],
                       lambda model, x: model.loss(x))


def run(args, world, n_positions):
    """Train and write the model, with options that are checked, see check_args; return a loop.Outcome."""
    start = runs.starting_parameters(args)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:  # the run's own keeps its vocabulary until all is checked
        encoder, train, held_out = load_data_on_disk(args, folder, world) if pretraining.is_on_disk(args) else \
            load_data(args, folder)
        vocabulary = pretraining.read_files(folder, VOCABULARY)
    n_vocab = len(encoder.encoder)
    n_updates_total = loop.updates_per_epoch(len(train), args) * args.n_iter
    if args.n_warmup >= n_updates_total:
        raise BadInput(f"--n_warmup is {args.n_warmup}, but the run has only {n_updates_total} updates; lower it, for "
                       f"example to {n_updates_total // 20}, or give more text or epochs")
    kept.updates_to_keep(args.keep_at, n_updates_total)  # refuses what is beyond the end
    unigram = corpus.unigram_perplexity(train, held_out[:, 1:], n_vocab)
    if world.is_first:
        print(f"{train.size:,} tokens to train on, {held_out.size:,} held out (unigram perplexity {unigram:.1f}), "
              f"{n_vocab:,} in the vocabulary, {n_updates_total:,} updates")

    if args.init_from is not None:
        n_positions = runs.n_positions(start, n_vocab)
        if args.n_ctx > n_positions:
            raise BadInput(f"--n_ctx is {args.n_ctx}, allowed is 2 to {n_positions}, the positions in {start.path}")
    is_lstm = args.architecture == "lstm"

    def empty():
        return make_model(LMModel, args, n_vocab + n_positions, n_positions)

    def fill(model):
        if args.init_from is not None:
            runs.load(model, start, None, verbose=world.is_first)
        elif args.init_dir is None:
            return [name for name, _ in model.named_parameters()]
        elif is_lstm:
            load_pretrained_lstm(model, args.init_dir, verbose=world.is_first)
        else:
            load_openai_pretrained_model(model, n_transfer=args.n_layer, n_embd=args.n_embd, path=args.init_dir,
                                         verbose=world.is_first)
        return []

    def make():
        model = filled(empty, fill)
        if args.init_from is None and args.init_dir is None:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if p.ndim > 1 and ".lstm." not in name:  # which torch draws by its number of units
                        p *= args.init_std / 0.02
        return model

    model = sharding.build(args, world, make, empty, runs.resumes(args))
    optimizer = opt.OpenAIAdam(model.parameters(), lr=args.lr, schedule=args.lr_schedule,
                               warmup=args.n_warmup / n_updates_total, t_total=n_updates_total, b1=args.b1, b2=args.b2,
                               e=args.e, l2=args.l2, max_grad_norm=args.max_grad_norm)
    loop.prepare_blocks(args, model.transformer.h, dynamic=False)
    positions = torch.arange(args.n_ctx) + n_vocab

    def inputs(ids):
        tokens = torch.from_numpy(np.asarray(ids)).long()
        return torch.stack([tokens, positions.expand_as(tokens)], -1)                   # [b, t] -> [b, t, 2]

    def tower_loss(rows):
        x = inputs(train[rows])
        if args.plain:
            return model.loss(*moved_to(model, x))
        return fast.gpt.lm_loss(model, x, args.checkpoint_activations)

    def cost(part):
        sequences = train[:len(held_out)] if part == "tr" else held_out
        converted = for_evaluation(model, args.precision)
        return pretraining.mean_cost([sequences], lambda ids: sum_of_losses(args, converted, inputs(ids), n_vocab),
                                     len(sequences) * (args.n_ctx - 1), args, world)

    pretraining.train(args, model, optimizer, train, held_out, tower_loss, pretraining.make_evaluation(cost, unigram),
                      world, vocabulary)
    model = sharding.gathered(model, empty, loop.paths(args)["best"], world)
    if world.is_first:
        for name, data in vocabulary.items():
            write_bytes(os.path.join(args.model_dir, name), data)
        (export_lstm if is_lstm else export_openai_model)(model, args.model_dir)
        sizes = f"--architecture lstm --n_unit {args.n_unit}" if is_lstm else \
            f"--n_head {args.n_head} --n_layer {args.n_layer} --n_transfer {args.n_layer} --afn {args.afn}"
        pretraining.print_ending(args, "train.py", f" --n_embd {args.n_embd} --n_ctx {n_positions} {sizes}")
    return loop.outcome(args, model, encoder, world, model_dir=args.model_dir)


def sum_of_losses(args, model, x, n_vocab):
    """The sum of the cross entropies of tokens 1 .. t-1 of x int [b, t, 2], in nats, a scalar.

    Unlike LMModel.loss it predicts among the n_vocab tokens alone: a position is no word, and has probability 0.
    """
    if args.plain:
        x, = moved_to(model, x)
        return word_loss(model(x), x, n_vocab)
    return fast.gpt.lm_word_loss(model, x)


if __name__ == "__main__":
    sys.exit(run_script(main))
