"""The training loop that train.py, train_t5.py and pretrain.py share: towers, evaluations, checkpoints.

A script gives it a model, an optimizer, a function from example numbers to a loss, and a function
that evaluates. The loop knows nothing about what is learned.

Nothing random is carried from one update to the next: the order of the examples follows from the
seed, and dropout is seeded by (seed, update, tower). A checkpoint therefore needs no random state,
and a run may be continued on another number of processes.
"""

import contextlib
import math
import os
import signal
import zlib
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from fast import blas
from fast.at_rest import WeightsAtRest
from fast.memory import give_back_free_pages, keep_freed_memory, lay_large_blocks_apart, usual_memory
from formats import progress
from formats.errors import BadInput, warn
from formats.files import load_tensors, make_path, remove_leftovers, save_tensors, write_bytes
from training import kept, sharding
from training.precision import autocast, one_update
from utils import ResultLogger, Stopped, read_log

# Options that say where and how to run, not what is computed: they may differ when a run is resumed.
FREE_ON_RESUME = {"resume", "submit", "analysis", "save_every", "device", "log_dir", "save_dir", "submission_dir",
                  "data_dir", "model_dir", "encoder_path", "bpe_path", "out", "text", "valid_text", "compile",
                  "train_file", "valid_file", "test_file", "cache_dir", "token_dir", "show", "show_split",
                  "checkpoint_activations", "dry_run"}

# What older checkpoints do not note, and had
BEFORE = {"architecture": "transformer", "n_unit": None, "keep_at": None, "shard": False}

# What a checkpoint notes besides the options -> what is said where it differs
FROM_DATA = {"data": "the training and validation data are not those of then",
             "vocabulary": "the vocabulary is not that of then"}


def paths(args):
    """Return the run's files: {'log': ..., 'best': ..., 'checkpoint': ...}."""
    return {"log": os.path.join(args.log_dir, f"{args.desc}.jsonl"),
            "best": os.path.join(args.save_dir, args.desc, "best_params"),
            "checkpoint": os.path.join(args.save_dir, args.desc, "checkpoint")}


class Outcome(NamedTuple):
    """What a training run did, for those who call a script's main from Python.

    Attributes:
        accuracies: {'valid': best validation accuracy, 'test': test accuracy, with --submit}, in percent; empty for
            pre-training. Of a task that is judged otherwise: its first metric, which heads repr too. Parts of the data
            that are told apart follow: 'valid_mismatched', 'test_high'.
        log: a pandas.DataFrame, one row for each evaluation, its columns those of the log; None in the processes
            other than the first.
        paths: {'log', 'best', 'checkpoint', and 'submission' or 'model_dir' where there is one: path}.
        model: with the parameters that did best, in evaluation mode.
        encoder: its TextEncoder or SentencePieceEncoder.
    """

    accuracies: dict
    log: Any
    paths: dict
    model: torch.nn.Module
    encoder: Any

    def __repr__(self):
        logged = [] if self.log is None else [name.removeprefix("va_") for name in self.log if name.startswith("va_")]
        of_parts = tuple(f"{name}_" for name in logged)  # acc_high is of a part of the examples
        metric = next((name for name in logged if name not in ("cost", "acc", "ppl")
                       and not name.startswith(of_parts)), "accuracy")
        parts = [f"{name} {metric} {value:.2f} %" for name, value in self.accuracies.items()]
        if self.log is not None and len(self.log):
            last = self.log.iloc[-1]
            parts.insert(0, f"{last['n_updates']:.0f} updates in {last['n_epochs']:.0f} epochs")
            parts += [f"{name} {last[name]:.4g}" for name in ("va_ppl",) if name in last]
        return f"Outcome({', '.join([*parts, self.paths['log']])})"


def outcome(args, model, encoder, world, accuracies=None, **more_paths):
    """Return the Outcome of a run that has ended; more_paths: what it wrote besides its log and parameters."""
    import pandas as pd  # here: pre-training on a server has no other need of it
    log = pd.DataFrame(read_log(paths(args)["log"])[1:]) if world.is_first else None
    if log is not None and "va_acc" in log:
        accuracies = {"valid": float(log["va_acc"].max())} | (accuracies or {})
    return Outcome(accuracies or {}, log, paths(args) | more_paths, model.eval(), encoder)


def prepare_blocks(args, *lists, dynamic):
    """Do to the blocks in some lists of modules what --compile and --checkpoint_activations with --plain ask for.

    dynamic: their lengths vary. Without --plain the functions of fast/ see to --checkpoint_activations.
    """
    for block in (block for blocks in lists for block in blocks):
        if args.compile:
            block.compile(dynamic=dynamic)
        if args.checkpoint_activations and args.plain:  # a partial of a method, which a copy of the model makes its own
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def seed_tower(seed, update, tower):
    """Seed torch's generators for one tower of one update, whichever process runs it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, update, tower]).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def stop_signals():
    """Yield a list that holds the name of SIGINT or SIGTERM once one has come; the second kills as usual."""
    received = []

    def note(number, frame):
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
                previous[number] = signal.signal(number, note)
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def draw_orders(n_iter, n_train):
    """Return int64 [n_iter, n_train], a shuffled order for each epoch, from NumPy's global generator.

    Drawn right after the special embedding rows, these are the orders of the original for the same seed.
    """
    return np.stack([np.random.permutation(n_train) for _ in range(n_iter)])


class SeededOrders:
    """A shuffled order for each epoch, made when it is asked for: for data sets of millions of examples.

    orders[epoch] is an int64 array of the numbers 0 .. n_train - 1; of more than `drawn` examples a Shuffled, which
    takes no memory.
    """

    drawn = 1 << 20

    def __init__(self, seed, n_iter, n_train):
        self.seed, self.n_iter, self.n_train = seed, n_iter, n_train

    def __len__(self):
        return self.n_iter

    def __getitem__(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.n_train) if self.n_train <= self.drawn else Shuffled(rng, self.n_train)


class Shuffled:
    """The numbers 0 .. n - 1 in a random order that is computed, and kept nowhere: a slice of it is an int64 array.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of an even count of bits: the right half goes to the
    left, and a random function of it changes the other half. A number of n or more goes through it again, until it is
    below n.

    Args:
        rng: draws the keys of the rounds.
    """

    def __init__(self, rng, n):
        self.n, self.half = n, np.uint64(max(1, math.ceil((n - 1).bit_length() / 2)))
        self.keys = rng.integers(1 << 64, size=6, dtype=np.uint64)

    def __len__(self):
        return self.n

    def __getitem__(self, places):
        numbers = self._permuted(np.arange(*places.indices(self.n), dtype=np.uint64))
        while len(outside := np.nonzero(numbers >= self.n)[0]):
            numbers[outside] = self._permuted(numbers[outside])
        return numbers.astype(np.int64)

    def _permuted(self, numbers):
        mask = (np.uint64(1) << self.half) - np.uint64(1)
        left, right = numbers >> self.half, numbers & mask
        for key in self.keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: spreads all bits
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << self.half) | right


def updates_per_epoch(n_train, args):
    """Return how many updates n_train examples make; the last, partial batch is dropped.

    Raises:
        BadInput: not even one.
    """
    if n_train < args.n_batch * args.n_gpu:
        raise BadInput(f"--n_batch {args.n_batch} times --n_gpu {args.n_gpu} is more than the {n_train} training "
                       "examples, so that an epoch would have no update; lower one of them")
    return n_train // (args.n_batch * args.n_gpu)


def load_checkpoint(path, model, optimizer, options, world):
    """Restore model and optimizer from `path`; return {'n_updates', 'n_epochs', 'best_score'} and its library.

    The library is the one that made its matrix products (see fast/blas.py), None where no CPU made them.

    A run that is finished and only predicts (--submit) may be given other data, with a warning.

    Raises:
        BadInput: the file is damaged, or was written with other options (each is named with both values) or data.
    """
    saved = load_tensors(path)
    try:
        theirs = BEFORE | saved["options"]
        differ = [f"--{name} {theirs.get(name)!r} then, {value!r} now" for name, value in options.items()
                  if name not in FREE_ON_RESUME and name not in FROM_DATA and theirs.get(name) != value]
        # a checkpoint of before they were noted has some of them not
        others = [what for name, what in FROM_DATA.items() if name in theirs and theirs[name] != options[name]]
        if others == [FROM_DATA["data"]] and options.get("submit") and saved["n_epochs"] >= options["n_iter"]:
            warn(f"{path}: the run is finished, but {others[0]} (they are not needed to predict)")
        else:
            differ += others
        if differ:
            raise BadInput(f"{path}: written with other options or data: {'; '.join(differ)}; give the same, "
                           "or another --desc (--init_from starts a new run from these parameters), or start afresh "
                           "without --resume")
        if "folder" in saved:
            sharding.load_checkpoint(path, saved, model, optimizer, world)
        else:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        # before it was noted, fast functions always took oneDNN
        made_by = theirs.get("matmul", "mkl" if options["plain"] else "onednn")
        return {name: saved[name] for name in ("n_updates", "n_epochs", "best_score")}, made_by
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BadInput(f"{path}: is not a checkpoint of this model ({str(error).splitlines()[0][:120]}); "
                       "start afresh without --resume, or give another --desc") from None


def settle_library(args, world, made_by, path):
    """Choose the library of a run's matrix products for all its processes, see fast/blas.py; return its name.

    Args:
        made_by: the library of the checkpoint at `path`, or None.
    Returns:
        None on a GPU, where neither is at work; "mkl" with --plain, which leaves all products to torch.
    """
    if world.device.type != "cpu":
        return None
    if args.plain:
        return "mkl"
    return blas.settle(world.gather(blas.of_this_machine())[0], made_by, path)


def fingerprint_of(model):
    """Return a number that tells a model's parameters from others."""
    value = 0
    for p in model.parameters():
        value = zlib.crc32(p.detach().cpu().contiguous().numpy(), value)
    return value


def train(args, model, optimizer, orders, tower_loss, evaluate, world, fingerprint=0, vocabulary=0, files=None,
          n_updates=None, eval_every=None, keep_at=()):
    """Train for args.n_iter epochs, or for n_updates; log, keep the best parameters, write checkpoints.

    Every update takes n_gpu towers of n_batch examples; the towers are shared out among the processes, a process
    runs its towers in turn, and the gradient is the mean over towers. The last partial batch of an epoch is
    dropped. Evaluation comes after each epoch and, in the first, at updates 1000, 2000, 4000, ...

    Args:
        args: parsed options, with those of add_options.
        model: on world.device. optimizer: over its parameters.
        orders: n_iter arrays of example numbers, one order for each epoch; see draw_orders and SeededOrders.
        tower_loss: function of example numbers [n_batch] returning their mean loss, a scalar tensor.
        evaluate: function returning (values to log, score); higher scores are better. A value of None is undefined.
        world: see distributed.World.
        fingerprint: a number that tells the training data from others, checked on resume and between processes.
        vocabulary: a number that tells the vocabulary from others, noted for who starts from these parameters.
        files: {name: bytes} of what belongs to the run and is kept in its folder, written when all is checked.
        n_updates: updates in all, at most those of the epochs; None: all of them. 0: evaluate, as it stands.
        eval_every: evaluate after so many updates, and at the end, and at no other time.
        keep_at: numbers of the updates after which the parameters are kept, see training/kept.py.
    Raises:
        BadInput: the loss is not finite, a file cannot be written, a checkpoint does not fit, or the processes have
            other data or parameters.
        Stopped: SIGINT or SIGTERM came; a checkpoint has been written.
    """
    file = paths(args)
    order = orders[0]
    per_epoch = updates_per_epoch(len(order), args)
    total = per_epoch * len(orders) if n_updates is None else n_updates
    options = dict(vars(args))
    options["data"], options["vocabulary"] = int(fingerprint), int(vocabulary)
    state = {"n_updates": 0, "n_epochs": 0, "best_score": -math.inf}
    resumed = args.resume and os.path.isfile(file["checkpoint"])
    if world.any(resumed) and world.any(not resumed):
        raise BadInput(f"{file['checkpoint']}: only some of the processes find this checkpoint; --save_dir must be a "
                       "folder that all machines share")
    made_by = None
    if resumed:
        state, made_by = load_checkpoint(file["checkpoint"], model, optimizer, options, world)
        if state["n_epochs"] >= args.n_iter and n_updates is None:
            total = state["n_updates"]
    options["matmul"] = settle_library(args, world, made_by, file["checkpoint"])
    if world.size > 1:
        world.agree({"the fingerprint of the training and validation data": options["data"],
                     "the fingerprint of the vocabulary": options["vocabulary"], "the number of updates": total,
                     "the library of matrix products": options["matmul"],
                     "the fingerprint of the parameters": None if world.in_step else fingerprint_of(model)})
    logger = None
    if world.is_first:
        for path in file.values():
            remove_leftovers(make_path(path))
        for path in (file["checkpoint"], file["best"]):
            if not resumed and os.path.isfile(path):  # another run's: never to be taken for this one's
                os.replace(path, path + ".previous")
                if path == file["best"]:
                    warn(f"{path}: of an earlier run called {args.desc}; it is kept as {path}.previous, and the log "
                         "begins anew")
        if not resumed:
            kept.move_away(os.path.dirname(file["checkpoint"]))
        for name, data in (files or {}).items():
            write_bytes(os.path.join(os.path.dirname(file["checkpoint"]), name), data)
        keep = (lambda line: line.get("n_updates", 0) <= state["n_updates"]) if resumed else None
        logger = ResultLogger(file["log"], keep=keep, **options)
        if args.resume:
            print(f"continuing after update {state['n_updates']}" if resumed
                  else f"no checkpoint at {file['checkpoint']}: starting from the beginning")
    n_batch_train, begin = args.n_batch * args.n_gpu, state["n_updates"]

    def require_finite_parameters():
        require_finite(sharding.size_of(model, world))

    def save_checkpoint():
        require_finite_parameters()
        if world.is_first:
            remove_leftovers(file["checkpoint"])
        if args.shard:
            sharding.save_checkpoint(file["checkpoint"], {**state, "options": options}, model, optimizer, world)
        elif world.is_first:
            save_tensors(file["checkpoint"], {**state, "options": options, "model": model.state_dict(),
                                              "optimizer": optimizer.state_dict()})

    def require_finite(values):
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise BadInput(f"after update {state['n_updates']}: {wrong[0]}; stopped, the last checkpoint stays; "
                           "lower --lr or look at the weights that were loaded")

    def log():
        model.eval()
        with torch.no_grad(), world.together(), WeightsAtRest():
            values, score = evaluate()
        require_finite({name: value for name, value in values.items() if value is not None})
        model.train()
        if score > state["best_score"]:
            state["best_score"] = score
            parameters = sharding.parameters_of(model, world)
            if world.is_first:
                remove_leftovers(file["best"])
                save_tensors(file["best"], parameters)
        if world.is_first:
            logger.log(n_epochs=state["n_epochs"], n_updates=state["n_updates"], **values)
            progress.write(f"epoch {state['n_epochs']}  update {state['n_updates']}  "
                           + "  ".join(f"{name} {'undefined' if value is None else format(value, '.4g')}"
                                      for name, value in values.items()))

    def mean_loss(tower, counts):
        """Add a tower's share, 0 if it does not count, to the gradients and return it; nothing of its graph stays."""
        if len(towers) > 1 and world.device.type == "cpu":
            give_back_free_pages()
        seed_tower(args.seed, state["n_updates"], tower)
        with autocast(world.device, args.precision, keep_weights=not world.in_step):
            loss = tower_loss(rows[tower * args.n_batch:(tower + 1) * args.n_batch]) / args.n_gpu
        loss = loss if counts else loss * 0
        loss.backward()
        return loss.detach()

    towers = world.share(range(args.n_gpu))
    lay_large_blocks_apart()
    model.train()
    shown = dict(total=total, initial=state["n_updates"], unit="update", leave=True, show=world.is_first)
    if total == 0:
        log()
    with usual_memory(), stop_signals() as signals, progress.bar(**shown) as bar:
        while state["n_updates"] < total:
            epoch, batch = divmod(state["n_updates"], per_epoch)
            if batch == 0 or state["n_updates"] == begin:
                order = orders[epoch]
            rows = order[batch * n_batch_train:(batch + 1) * n_batch_train]
            # the sum over several towers has a place that stays
            optimizer.zero_grad(set_to_none=len(towers) == 1 or world.in_step)
            total_loss = torch.zeros((), device=world.device)
            # of a large model a tower may take long, and the bar of the updates stands still until the first one
            tells = world.is_first and state["n_updates"] == begin
            with one_update(world.device), world.together():
                for tower, counts in progress.bar(towers, unit="tower", desc="first update", show=tells):
                    total_loss += mean_loss(tower, counts)
            loss = world.sum(total_loss).item()
            if not math.isfinite(loss):
                raise BadInput(f"update {state['n_updates'] + 1} (epoch {epoch + 1}, batch {batch + 1}): the loss is "
                               f"{loss}; stopped before the update, the last checkpoint stays; look at the weights "
                               f"and at examples {sorted(np.hstack(rows).tolist())[:8]}..., or lower --lr")
            if not world.in_step:
                world.sum_gradients(model.parameters())
            with world.together():
                optimizer.step()
            keep_freed_memory()  # from the second update on
            state["n_updates"] += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

            if state["n_updates"] in keep_at:  # before the checkpoint, so that none is missing after a resumption
                require_finite_parameters()
                parameters = sharding.parameters_of(model, world)
                if world.is_first:
                    kept.save_kept(os.path.dirname(file["checkpoint"]), state["n_updates"], parameters, options)
            thousands, rest = divmod(state["n_updates"], 1000)
            epoch_ends, ends = state["n_updates"] % per_epoch == 0, state["n_updates"] == total
            state["n_epochs"] += epoch_ends
            if ends or (state["n_updates"] % eval_every == 0 if eval_every else
                        epoch_ends or (epoch == 0 and rest == 0 and math.log2(thousands).is_integer())):
                log()
            stop = world.any(signals)
            if epoch_ends or ends or stop or (args.save_every and state["n_updates"] % args.save_every == 0):
                save_checkpoint()
            if stop:
                world.wait()  # for the first process to have saved
                raise Stopped(f"stopped by {(signals or ['another process'])[0]} after update {state['n_updates']} of "
                              f"{total}; continue with --resume")
    optimizer.zero_grad()
    if logger:
        logger.close()
