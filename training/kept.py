"""The parameters that a pre-training run keeps on its way (--keep_at), and reading them back.

    save/<desc>/update_<n>      parameters after n updates, with the options of the run; --init_from reads them too

Such a file holds no optimizer, a third of a checkpoint. Its vocabulary lies beside it.
"""

import os
import re
import zlib

from ablations.lstm import make_model
from formats.errors import BadInput, MissingInput
from formats.files import load_tensors, remove_leftovers, save_tensors
from formats.gpt_vocabulary import OPENAI_FILES
from model_pytorch import DEFAULT_CONFIG, LMModel
from text_utils import TextEncoder

__all__ = ["add_keep_option", "kept_files", "load_kept", "move_away", "save_kept", "updates_to_keep"]


def add_keep_option(group):
    """Add --keep_at."""
    group.add_argument("--keep_at", type=int, nargs="*", metavar="UPDATE",
                       help="keep the parameters after these updates in <desc>/update_<n>, for zero_shot.py; without "
                            "numbers after 1, 2, 4, 8, ... and the last one; default: none are kept")


def check_keep_option(args):
    """Raise BadInput where --keep_at names an update before the first."""
    if args.keep_at and min(args.keep_at) < 1:
        raise BadInput(f"--keep_at has {min(args.keep_at)}, allowed is 1, the first update, or more")


def updates_to_keep(keep_at: list[int] | None, total: int) -> set[int]:
    """Return the numbers of the updates whose parameters are kept.

    Args:
        keep_at: the option; [] for powers of two and the last update. total: updates of the run.
    Raises:
        BadInput: there are not so many updates.
    """
    if keep_at is None:
        return set()
    if not keep_at:
        return {2 ** i for i in range(total.bit_length())} | {total}
    if max(keep_at) > total:
        raise BadInput(f"--keep_at has {max(keep_at)}, but the run has only {total} updates; leave out what is beyond")
    return set(keep_at)


def path_of(folder, n_updates):
    """Return the file of the parameters after so many updates in the folder of a run."""
    return os.path.join(folder, f"update_{n_updates}")


def save_kept(folder, n_updates, parameters, options):
    """Write the parameters after so many updates, atomically."""
    path = path_of(folder, n_updates)
    remove_leftovers(path)
    save_tensors(path, {"n_updates": n_updates, "options": options, "model": parameters})


def kept_files(folder: str) -> dict[int, str]:
    """Return {number of updates: file} of what a run kept, in the order of the updates."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    found = sorted(int(match[1]) for match in (re.fullmatch(r"update_([1-9][0-9]*)", name) for name in names) if match)
    return {n: path_of(folder, n) for n in found}


def move_away(folder):
    """Rename what an earlier run of this name kept, so that it is not taken for this one's."""
    for path in kept_files(folder).values():
        os.replace(path, path + ".previous")


def load_kept(path: str) -> tuple[LMModel, TextEncoder, dict]:
    """Return the model, in evaluation mode, its encoder, and the options of its run.

    Args:
        path: a file that pretrain.py --keep_at wrote, with the vocabulary beside it.
    Raises:
        MissingInput, BadInput: a file is absent, damaged or not of a GPT, or the two do not belong together.
    """
    saved, folder = load_tensors(path), os.path.dirname(path)
    try:
        options, parameters = saved["options"], saved["model"]
        rows = len(parameters["transformer.embed.weight"])
        data = b""
        for name in OPENAI_FILES:
            with open(os.path.join(folder, name), "rb") as f:
                data += f.read()
        if options["vocabulary"] != zlib.crc32(data):
            raise BadInput(f"{path}: the vocabulary beside it is not that of its run; give the run's own folder")
        encoder = TextEncoder.from_folder(folder)
        model = make_model(LMModel, DEFAULT_CONFIG | options, rows, rows - len(encoder))
        model.load_state_dict(parameters)
    except FileNotFoundError as error:
        raise MissingInput(f"{error.filename}: not found; expected the vocabulary of the run beside {path}") from None
    except (KeyError, TypeError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise BadInput(f"{path}: is not what pretrain.py --keep_at writes ({str(error).splitlines()[0][:100]}); keep "
                       "it again") from None
    return model.eval(), encoder, options
