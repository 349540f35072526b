"""What only Linux has is simulated to be absent, as on macOS and Windows: nothing needs it."""

import builtins
import ctypes
import os
import sys
from argparse import Namespace

import pytest
import torch

import fast.memory
import reproduce
from formats.errors import BadInput
from formats.files import write_bytes
from training import distributed, options

MEMORY = (fast.memory.lay_large_blocks_apart, fast.memory.keep_freed_memory, fast.memory.give_back_free_pages)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_than_on_linux_the_c_library_is_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    for function in MEMORY:
        function()
    with fast.memory.usual_memory():
        pass


@pytest.mark.parametrize("library", [lambda name: Namespace(), lambda name: (_ for _ in ()).throw(OSError("no such"))])
def test_another_c_library_on_linux_has_none_of_the_settings(monkeypatch, library):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", library)
    for function in MEMORY:
        function()


def test_a_processor_has_a_name_without_proc(monkeypatch):
    real = builtins.open

    def without_proc(path, *args, **kwargs):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", without_proc)
    assert f"{os.cpu_count()} CPUs" in reproduce.machine(torch.device("cpu"))["hardware"]


@pytest.mark.parametrize("name", ["a:b", "what?", "a|b"])
def test_names_that_windows_cannot_store_are_refused_there(monkeypatch, name):
    args = Namespace(desc=name, n_gpu=1, plain=False, compile=False, precision="fp32", shard=False,
                     checkpoint_activations=False, dry_run=None)
    world = distributed.World(0, 1, torch.device("cpu"))
    options.check_run_options(args, world)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BadInput, match="^--desc is .*Windows has no files"):
        options.check_run_options(args, world)
    options.check_run_options(Namespace(**vars(args) | {"desc": "a_b"}), world)


def test_a_file_that_another_program_holds_open_stays_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def held(source, target):  # as Windows does
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(BadInput, match="could not be written"):
        write_bytes(str(path), b"after")
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
