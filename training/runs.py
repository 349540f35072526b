"""A run before its first update: it alone is at work in its folder, its processes agree, and where it starts from."""

import contextlib
import os
from typing import NamedTuple

from fast import blas
from fast.devices import without_cudnn_attention
from formats.errors import BadInput, MissingInput
from formats.files import load_tensors, make_path
from formats.locks import locked
from formats.mapped import load_state_dict
from training import loop, sharding
from utils import Stopped

# Options that the processes of one run may have of their own: where things are, and what the first alone does. That
# the files hold the same is checked by loop.train.
MAY_DIFFER = {"log_dir", "save_dir", "submission_dir", "data_dir", "model_dir", "init_dir", "encoder_path", "bpe_path",
              "text", "valid_text", "train_file", "valid_file", "test_file", "cache_dir", "init_from", "save_every",
              "analysis", "device"}
NOT_IN_SHAPES = ("n_head", "afn")  # options of a GPT that its parameters' shapes do not tell


class Start(NamedTuple):
    """Parameters that a run starts from: their file, {name: tensor}, and the options of their run where known."""

    path: str
    parameters: dict
    options: dict


@contextlib.contextmanager
def alone(args, world, *more):
    """Keep other runs out of this run's folder and log while the body runs; its processes agree on their options.

    The library of matrix products that the run settles on, see fast/blas.py, is that of the body alone; and there is
    no attention of cuDNN's in it, see fast.devices.without_cudnn_attention.

    Args:
        more: other files that this run will write.
    Raises:
        BadInput: another run is at work there, or the processes were started with different options.
        Stopped: in the other processes, where the first is refused.
    """
    world.agree({f"--{name}": value for name, value in vars(args).items() if name not in MAY_DIFFER}
                | {f"the environment variable {blas.VARIABLE}": blas.forced_library()})
    refusal = None
    with contextlib.ExitStack() as stack:
        if world.is_first:
            file = loop.paths(args)
            try:
                stack.enter_context(_folder_of(file["checkpoint"]))
                for path in (os.path.dirname(file["checkpoint"]), file["log"], *more):
                    stack.enter_context(_folder_of(path))
                    stack.enter_context(locked(path, "wait until it ends, or give another --desc"))
            except BadInput as error:
                refusal = error
        refused = world.any(refusal is not None)
        if refusal is not None:
            raise refusal
        if refused:
            raise Stopped("the first process of this run was refused, see its message")
        stack.enter_context(blas.of_one_run())
        stack.enter_context(without_cudnn_attention())
        yield


@contextlib.contextmanager
def _folder_of(path):
    """Make the folder of a file for the body; afterwards remove what was made and is still empty."""
    folder, made = os.path.dirname(path), []
    while folder and not os.path.isdir(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    make_path(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                os.rmdir(folder)


def resumes(args):
    """Whether a run goes on from its checkpoint."""
    return args.resume and os.path.isfile(loop.paths(args)["checkpoint"])


def starting_parameters(args):
    """Return the Start of a run: of the checkpoint that --resume continues, else of --init_from, else None.

    Raises:
        MissingInput, BadInput: --init_from holds no parameters, or was run with other options that matter.
    """
    if resumes(args):
        return _read(loop.paths(args)["checkpoint"], sharding.shapes)
    if args.init_from is None:
        return None
    start = _read(file_of(args.init_from))
    differ = [f"--{name} {start.options[name]} then, {getattr(args, name)} now" for name in NOT_IN_SHAPES
              if hasattr(args, name) and start.options.get(name, getattr(args, name)) != getattr(args, name)]
    if differ:
        raise BadInput(f"--init_from {start.path}: its run had other options: {'; '.join(differ)}; give the same")
    return start


def file_of(path):
    """Return the file of parameters that --init_from means."""
    names = [path] if not os.path.isdir(path) else [os.path.join(path, name) for name in ("best_params", "checkpoint")]
    found = next(filter(os.path.isfile, names), None)
    if found is None:
        what = "holds neither best_params nor checkpoint" if names[1:] else "not found"
        raise MissingInput(f"--init_from {path}: {what}; expected the folder of a run in save/, or its best_params or "
                           "checkpoint")
    return found


def _read(path, of_folder=sharding.read_parameters):
    """Return the Start in best_params or a checkpoint. A checkpoint beside best_params knows the options.

    of_folder: what reads the parameters of a checkpoint of --shard, which are in a folder beside it.
    """
    saved = load_tensors(path, mapped=True)
    if isinstance(saved, dict) and "folder" in saved:
        return Start(path, of_folder(path, saved), saved["options"])
    if isinstance(saved, dict) and isinstance(saved.get("model"), dict) and isinstance(saved.get("options"), dict):
        return Start(path, saved["model"], saved["options"])
    if not isinstance(saved, dict) or not all(hasattr(value, "shape") for value in saved.values()):
        raise BadInput(f"{path}: holds no parameters; expected best_params or checkpoint of a run")
    beside, options = os.path.join(os.path.dirname(path), "checkpoint"), {}
    if os.path.basename(path) == "best_params" and os.path.isfile(beside):
        options = load_tensors(beside).get("options", {})
    return Start(path, saved, options)


def n_positions(start, n_rows):
    """Return how many positions a GPT's parameters have: the rows of `we` besides the n_rows of tokens.

    Raises:
        BadInput: it has no `we`, or no positions.
    """
    we = start.parameters.get("transformer.embed.weight")
    if we is None or len(we) <= n_rows:
        found = "is not of a GPT" if we is None else f"has {len(we)} rows of embeddings"
        raise BadInput(f"{start.path}: {found}, expected the parameters of a GPT with {n_rows} tokens and positions; "
                       "give those of a run of this script with this vocabulary")
    return len(we) - n_rows


def load(model, start, vocabulary, verbose=True):
    """Put the parameters of a Start into a model.

    Args:
        vocabulary: the number that tells this vocabulary from others, see loop.train; None: it is that run's.
        verbose: print one line on what was loaded.
    Raises:
        BadInput: they do not fit, or belong to another vocabulary.
    """
    if vocabulary is not None and start.options.get("vocabulary", vocabulary) != vocabulary:
        raise BadInput(f"{start.path}: its run had another vocabulary, and its parameters mean nothing with this one; "
                       "give that vocabulary")
    try:
        load_state_dict(model, start.parameters)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()[:200] or str(error)[:200]
        raise BadInput(f"{start.path}: does not fit the model that the options describe ({reason}); give the sizes of "
                       "its run") from None
    if verbose:
        print(f"loaded {len(start.parameters)} parameters from {start.path}")
