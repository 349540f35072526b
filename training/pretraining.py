"""What pretrain.py and pretrain_t5.py share besides the loop: where the model goes, evaluation, the ending."""

import os
import shutil
import zlib

import numpy as np
import torch

from formats import locks
from formats.errors import BadInput, MissingInput, warn
from formats.files import make_path
from training import corpus, kept, loop, runs, sharding, token_files

LARGE = 200_000_000  # bytes of text; more of it is encoded on the disk


def add_corpus_options(parser, what_is_kept):
    """Add the options about text and folders; return the group of the data and the group of the model."""
    data = parser.add_argument_group("data")
    data.add_argument("--text", nargs="+", required=True, metavar="FILE",
                      help="plain text files in UTF-8, packed by gzip or not, folders of .txt files, or patterns")
    data.add_argument("--held_out", type=float, default=0.01, help="share of the text, its end, for evaluation")
    data.add_argument("--valid_text", nargs="+", metavar="FILE",
                      help="evaluate on this text, and train on all of --text; the vocabulary is learned from --text")
    data.add_argument("--token_dir", metavar="DIR",
                      help="encode the text into files in this folder, once and by all cores; a run that was stopped "
                           f"goes on there (default: in memory up to {LARGE // 1_000_000} MB of text, above it tokens/ "
                           "in the folder of the run)")
    kept.add_keep_option(data)
    model = parser.add_argument_group("the model")
    model.add_argument("--model_dir", required=True, help="folder to write the model to")
    model.add_argument("--init_dir", help=f"folder of a model to start from; {what_is_kept}")
    return data, model


CORPUS_RANGES = {"held_out": (1e-9, 0.5)}


def check_corpus_options(args, names):
    """Check that the text is there, and that no model is where the new one goes.

    Args:
        names: files that a model folder has.
    Raises:
        MissingInput, BadInput: naming the file.
    """
    kept.check_keep_option(args)
    corpus.find_files([*args.text, *(args.valid_text or [])])
    continues = args.resume and os.path.isfile(loop.paths(args)["checkpoint"])
    taken = [name for name in names if os.path.exists(os.path.join(args.model_dir, name))]
    if taken and not continues:
        raise BadInput(f"--model_dir {args.model_dir} holds a model already ({taken[0]}), which would be lost; "
                       "give another folder, or delete that one")


def hold_out(args, ids, valid_ids, length):
    """Return the sequences to train on and those held out, each int32 [n, length].

    Args:
        ids, valid_ids: int32 [tokens] or a TokenFile, of --text and --valid_text; valid_ids None: the end of --text is
            held out. Of a TokenFile the sequences to train on are token_files.Rows.
    Raises:
        BadInput: see corpus.hold_out.
    """
    def cut(ids):
        return ids.cut(length) if isinstance(ids, token_files.TokenFile) else corpus.cut_sequences(ids, length)

    train, held_out = corpus.hold_out(cut(ids), args.held_out, None if valid_ids is None else cut(valid_ids))
    return train, np.asarray(held_out)


def is_on_disk(args):
    """Whether the text becomes files of ids, as --token_dir is given or there is much of it."""
    return args.token_dir is not None or token_files.n_bytes(args.text) > LARGE


def encode_on_disk(args, world, folder, make_vocabulary, read_encoder, settings, line_end=None):
    """Encode --text and --valid_text into --token_dir, or find them there; the first process does it, the others wait.

    Args:
        folder: the vocabulary is copied there.
        make_vocabulary: function of a folder; writes the files of the vocabulary there.
        read_encoder: function of that folder returning the encoder.
        settings: JSON values that the vocabulary and the ids follow from, besides the text.
        line_end: function of the encoder returning the id of the end of a line, or None where it has none.
    Returns:
        encoder; TokenFile of --text; TokenFile of --valid_text or None.
    Raises:
        BadInput, MissingInput: see token_files.encode and wait_for.
    """
    within = args.token_dir or os.path.join(args.save_dir, args.desc, "tokens")
    place = token_files.folder_of(within, args.text, settings)
    texts = {"text": (place, args.text)}
    if args.valid_text:
        of_both = settings, os.path.basename(place)  # a vocabulary is learned from --text
        texts["valid"] = token_files.folder_of(within, args.valid_text, *of_both), args.valid_text
    vocabulary = os.path.join(place, "vocabulary")
    if not world.is_first:
        token_files.wait_for(place, "text")
    elif not os.path.isdir(vocabulary):
        make_path(vocabulary)
        with locks.locked(place, "wait until it ends: what it makes is used then"):
            if not os.path.isdir(vocabulary):  # another run may have made it just now
                shutil.rmtree(vocabulary + ".tmp", ignore_errors=True)
                os.mkdir(vocabulary + ".tmp")
                make_vocabulary(vocabulary + ".tmp")
                os.replace(vocabulary + ".tmp", vocabulary)
    shutil.copytree(vocabulary, folder, dirs_exist_ok=True)
    encoder = read_encoder(folder)
    for name, (place, paths) in texts.items():
        if world.is_first:
            token_files.encode(place, name, paths, encoder, len(encoder), line_end(encoder) if line_end else None)
        else:
            token_files.wait_for(place, name)
    found = {name: token_files.load(place, name) for name, (place, _) in texts.items()}
    return encoder, found["text"], found.get("valid")


def mean_cost(arrays, batch_cost, n_tokens, args, world):
    """Return the mean cost of a token, in nats; the batches are shared out among the processes.

    Args:
        arrays: arrays of equal length, rows of examples.
        batch_cost: function of a batch of each array returning the sum over its tokens, a scalar tensor.
        n_tokens: tokens that are predicted in all.
    """
    total = torch.zeros((), device=world.device)
    for start, counts in world.share(range(0, len(arrays[0]), args.n_batch)):
        total += batch_cost(*(array[start:start + args.n_batch] for array in arrays)) * counts
    return world.sum(total).item() / n_tokens


def make_evaluation(cost, unigram):
    """Return the function that loop.train calls to evaluate.

    Args:
        cost: function of 'tr' or 'va' returning the mean cost of a token in nats.
        unigram: perplexity of predicting each token by its frequency.
    """
    def evaluate():
        tr_cost, va_cost = cost("tr"), cost("va")
        return dict(tr_cost=tr_cost, va_cost=va_cost, tr_ppl=corpus.perplexity_of(tr_cost),
                    va_ppl=corpus.perplexity_of(va_cost), unigram_ppl=unigram), -va_cost

    return evaluate


def source_folder(args, names):
    """Return the folder whose vocabulary is kept: that of --init_dir, or of the run of --init_from; None for a new one.

    Args:
        names: files of a vocabulary.
    Raises:
        MissingInput, BadInput: both are given, or there are no parameters or no vocabulary at --init_from.
    """
    if args.init_from is None:
        return args.init_dir
    if args.init_dir is not None:
        raise BadInput("--init_from and --init_dir both say where the parameters come from: give one of them")
    folder = os.path.dirname(runs.file_of(args.init_from)) or "."
    for name in names:
        if not os.path.isfile(os.path.join(folder, name)):
            raise MissingInput(f"--init_from {args.init_from}: there is no {name} beside the parameters; expected the "
                               "folder of a run of this script in save/, or a file in it")
    return folder


def read_files(folder, names):
    """Return {name: bytes} of some files of a folder."""
    files = {}
    for name in names:
        with open(os.path.join(folder, name), "rb") as f:
            files[name] = f.read()
    return files


def train(args, model, optimizer, train_part, held_out, tower_loss, evaluate, world, vocabulary):
    """Run the loop over sequences [n, length], then put the best parameters into the model.

    Warns of held-out sequences that are trained on too.

    Args:
        vocabulary: {name: bytes} of its files, which are kept in the folder of the run.
        The others are those of loop.train.
    """
    found = corpus.find_repeated(train_part, held_out, world.rank, world.size, verbose=world.is_first)
    repeated = torch.count_nonzero(world.sum(torch.as_tensor(found, dtype=torch.float32, device=world.device))).item()
    if repeated:
        warn(f"{repeated:,} of the {len(held_out):,} held-out sequences also stand in the text to train on; their "
             "perplexity tells what the model remembers, not what it has learned")
    fingerprint = 0
    for sequences in (train_part, held_out):
        for piece in corpus.pieces_of(sequences):
            fingerprint = zlib.crc32(np.ascontiguousarray(piece), fingerprint)
    orders = loop.SeededOrders(args.seed, args.n_iter, len(train_part))
    keep_at = kept.updates_to_keep(args.keep_at, loop.updates_per_epoch(len(train_part), args) * args.n_iter)
    loop.train(args, model, optimizer, orders, tower_loss, evaluate, world, fingerprint,
               vocabulary=zlib.crc32(b"".join(vocabulary.values())), files=vocabulary,
               keep_at=keep_at)
    world.wait()  # the first process has written the best parameters
    sharding.load_parameters(model, loop.paths(args)["best"], world)


def print_ending(args, script, options=""):
    """Say where the model is and how to fine-tune it."""
    print(f"wrote {args.model_dir}; fine-tune it with: python {script} --desc NAME --data_dir DATA --submit "
          f"--analysis --model_dir {args.model_dir}{options}")
