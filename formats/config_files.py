"""config.json: what a model's folder says about it. Each value is obeyed, or refused in one line that names it."""

import json
import os

from formats.errors import BadInput
from formats.files import is_lfs_pointer, read_text, write_atomically

AGAIN = "copy or download it again"


def read_json(path):
    """Return the JSON object in a file.

    Raises:
        BadInput: not UTF-8, not JSON, or not an object.
    """
    if is_lfs_pointer(path):
        raise BadInput(f"{path}: is a Git LFS pointer, not the data; {AGAIN}")
    text = read_text(path, AGAIN)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({str(error)[:100]}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds a JSON {type(value).__name__}, expected an object; {AGAIN}")
    return value


def read_config(folder, name="config.json"):
    """Return (the JSON object in a folder's configuration, its path); ({}, path) where there is none."""
    path = os.path.join(folder, name)
    return (read_json(path) if os.path.isfile(path) else {}), path


def write_config(folder, config):
    """Write config.json to a folder."""
    with write_atomically(os.path.join(folder, "config.json")) as temporary, open(temporary, "w") as f:
        json.dump(config, f, indent=2)


def check_values(config, path, wanted):
    """Raise BadInput for a value of a configuration that is there and not what is supported.

    Args:
        config: a JSON object. path: its file, for the message.
        wanted: {key: tuple of the values supported}, the one to name first.
    """
    for key, values in wanted.items():
        # True == 1 in Python, and 12.0 == 12; a configuration that means it says it in the same type
        if key in config and not any(config[key] == value and type(config[key]) is type(value) for value in values):
            found = json.dumps(config[key])
            raise BadInput(f"{path}: {key} is {found[:80]}{'...' if len(found) > 80 else ''}, supported is "
                           f"{' or '.join(json.dumps(value) for value in values)}")


def check_sizes(config, path, names):
    """Raise BadInput unless each of the names is a whole number from 1 to 2^24 in a configuration."""
    for name in names:
        if type(config.get(name)) is not int or not 0 < config[name] < 1 << 24:
            raise BadInput(f"{path}: {name} is {json.dumps(config.get(name))[:80]}, expected a whole number above 0")


def check_rates(config, path, names):
    """Raise BadInput for a dropout rate that is there and not from 0 to below 1."""
    for name in names:
        if name in config and (type(config[name]) not in (int, float) or not 0 <= config[name] < 1):
            raise BadInput(f"{path}: {name} is {json.dumps(config[name])[:80]}, expected a number from 0 to below 1")
