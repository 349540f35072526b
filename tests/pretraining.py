"""Small texts, and options for pre-training runs that end in a second."""

import random

import torch

from formats.files import load_tensors
from utils import read_log

T5_SIZES = dict(d_model=18, d_ff=30, n_head=3, d_kv=5, n_layer=2)

NAMES, PLACES = "Ann Tom Zoë Max Ida Rob".split(), "the park|the zoo|school|a café|the lake".split("|")
THINGS, FEELINGS = "cake kite drum lamp book coat".split(), "happy sad proud tired angry".split()


def stories(n, seed=0):
    """n short stories, one a line."""
    rng = random.Random(seed)

    def story():
        name, place, thing = rng.choice(NAMES), rng.choice(PLACES), rng.choice(THINGS)
        return (f"{name} wanted a {thing}. So {name} went to {place}, and looked for it. \"A {thing}!\" said {name} at "
                f"{place}. {name} was {rng.choice(FEELINGS)} now.")

    return [story() for _ in range(n)]


def write_text(folder, n=100, seed=0):
    """Write n stories to a file; return its path as a string."""
    path = folder / f"text{n}_{seed}.txt"
    path.write_text("\n".join(stories(n, seed)) + "\n", encoding="utf-8")
    return str(path)


def argv(folder, settings):
    """A command line whose files all go under `folder`, from options by name; None leaves one out."""
    settings = dict(desc="tiny", device="cpu", log_dir=folder / "log", save_dir=folder / "save",
                    model_dir=folder / "out") | settings
    line = []
    for name, value in settings.items():
        if value is True:
            line.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            line += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            line += [f"--{name}", str(value)]
    return line


def stop_after(monkeypatch, optimizer, updates):
    """Make an optimizer class raise KeyboardInterrupt in the step after `updates` ones."""
    step, count = optimizer.step, iter(range(updates))

    def counted(self, closure=None):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return step(self, closure)

    monkeypatch.setattr(optimizer, "step", counted)


def costs(folder, desc):
    """The evaluations in a run's log, without times."""
    return [{name: value for name, value in line.items() if name != "time"}
            for line in read_log(folder / "log" / f"{desc}.jsonl")[1:]]


def same_parameters(a, b, limit):
    """Compare the parameters in two files, but for those without a gradient, which Adam moves by noise."""
    a, b = load_tensors(str(a)), load_tensors(str(b))
    assert a.keys() == b.keys()
    for name in b:
        if not name.endswith(("c_attn.b", "task_head.linear.bias")):
            torch.testing.assert_close(a[name], b[name], atol=limit, rtol=0, msg=name)
