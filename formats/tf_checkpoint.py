"""Reads TensorFlow Saver V2 checkpoints, the form of Google's released T5 models, without TensorFlow.

    variables = read_checkpoint("t5-small/")      # {"decoder/block_000/...": tensor, ...}

A checkpoint with the prefix P is `P.index` and the data files `P.data-00000-of-0000N` ("shards").
The index is a sorted string table as leveldb writes it: blocks of prefix-compressed entries, an index
block that says where they are, and a footer that says where the index block is. The first key is empty
and holds a BundleHeaderProto; every other key is a variable's name and holds a BundleEntryProto: type,
shape, and where its raw little-endian values lie in which shard. Formats: tensorflow/core/protobuf/
tensor_bundle.proto and leveldb's doc/table_format.md. All checksums are CRC-32C, "masked" as there.
"""

import glob
import math
import os
import re
from typing import NamedTuple

import google_crc32c
import numpy as np
import torch

from formats import progress
from formats.errors import BadInput, MissingInput
from formats.mapped import MappedFiles

FOOTER_SIZE, TRAILER_SIZE = 48, 5  # bytes; every block is followed by its kind (1 byte) and checksum (4)
TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
LONGEST_NAME, MOST_DIMENSIONS = 1024, 8
TYPES = {1: torch.float32, 14: torch.bfloat16}  # of tensorflow/core/framework/types.proto
OTHER_TYPES = {2: "float64", 3: "int32", 7: "string", 9: "int64", 10: "bool", 19: "float16"}
NOT_WEIGHTS = re.compile(r"global_step|.*_slot_(v|vr|vc)", re.DOTALL)  # the step; Adafactor's accumulators
DOWNLOAD = "copy or download the checkpoint again"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
ENTRY_FIELDS = {1: VARINT, 2: BYTES, 3: VARINT, 4: VARINT, 5: VARINT, 6: FIXED32, 7: BYTES}


class _Malformed(Exception):
    """What is wrong with an index, for _read_index to report with the file's name."""


class _Variable(NamedTuple):
    """One BundleEntryProto: where a variable lies and what it is."""

    dtype: torch.dtype
    shape: tuple
    shard: int
    offset: int
    size: int
    checksum: int


def read_checkpoint(path):
    """Read every weight of a TensorFlow checkpoint and check it.

    Args:
        path: a folder (its newest step, by the `checkpoint` file TensorFlow keeps there; without that
            file the only checkpoint in it), or a prefix such as `t5/model.ckpt-1000000`, or its .index.
    Returns:
        {variable name: tensor}, in the checkpoint's order (sorted by name), float32 or bfloat16 as
        stored. `global_step` and the optimizer's `*_slot_v`, `*_slot_vr`, `*_slot_vc` are left out.
        The tensors are private views of the memory-mapped files: writing to one changes no file.
    Raises:
        MissingInput: a file is not there.
        BadInput: a file is truncated, damaged, foreign, or holds what T5 checkpoints do not.
    """
    prefix = _find_prefix(path)
    n_shards, variables = _read_index(prefix + ".index")
    shards = [_map_shard(prefix, shard, n_shards) for shard in range(n_shards)]
    tensors, files = {}, MappedFiles()
    total = sum(variable.size for variable in variables.values())
    with progress.bar(total=total, unit="B", desc="checkpoint") as bar:
        for name, (dtype, shape, shard, offset, size, checksum) in variables.items():
            file, data = shards[shard]
            end = offset + size
            if end > len(data):
                raise BadInput(f"{file}: has {len(data)} bytes, expected at least {end} for the variable "
                                     f"{name}; it is truncated or of another index; {DOWNLOAD}")
            values = torch.from_numpy(data[offset:end])
            if _checksum(values.numpy(), bar) != checksum:
                raise BadInput(f"{file}: bytes {offset} to {end}, variable {name}, lack the checksum "
                                     f"expected by the index; they are damaged or of another; {DOWNLOAD}")
            if offset % dtype.itemsize:
                tensors[name] = values.clone().view(dtype).view(shape)  # each has to start at a multiple of its size
            else:
                tensors[name] = values.view(dtype).view(shape)
            files.give_back(values)
    return tensors


def list_variables(path):
    """Return {variable name: (torch.dtype, shape as a tuple)} of what read_checkpoint(path) would return.

    Reads and checks the index only. Raises as read_checkpoint does.
    """
    _, variables = _read_index(_find_prefix(path) + ".index")
    return {name: (variable.dtype, variable.shape) for name, variable in variables.items()}


def _find_prefix(path):
    """Return the prefix of the checkpoint that `path` (see read_checkpoint) means; its .index exists."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return os.path.join(path, _newest_in(path))
    prefix = path.removesuffix(".index")
    if not os.path.isfile(prefix + ".index"):
        raise MissingInput(f"{prefix}.index: not found; expected a TensorFlow checkpoint: give its "
                                 "folder, its prefix (such as model.ckpt-1000000) or its .index file")
    return prefix


def _newest_in(folder):
    """Return the prefix, without the folder, of the newest checkpoint in `folder`."""
    state = os.path.join(folder, "checkpoint")
    indexes = filter(os.path.isfile, glob.glob(os.path.join(glob.escape(folder), "*.index")))
    prefixes = sorted(os.path.basename(index).removesuffix(".index") for index in indexes)
    found = _some(prefixes)
    if not prefixes:
        raise MissingInput(f"{folder}: found no .index file, expected a TensorFlow checkpoint "
                                 "(P.index and P.data-00000-of-0000N); give the folder that holds one")
    if not os.path.isfile(state):
        if len(prefixes) > 1:
            raise BadInput(f"{folder}: found the checkpoints {found}, and no file named checkpoint "
                                 "that says which is the newest; give the prefix of one")
        return prefixes[0]
    try:
        with open(state, "rb") as f:
            text = f.read(1 << 13).decode("utf-8", errors="replace")  # the line sought is the first
    except OSError as error:
        raise BadInput(f"{state}: cannot be read ({error.strerror}); check its permissions") from None
    match = re.search(r'^model_checkpoint_path: *"([^"\n]*)"\r?$', text, re.MULTILINE)
    if match is None:
        raise BadInput(f'{state}: found no line model_checkpoint_path: "P", expected what TensorFlow '
                             f"writes; delete it, or give the prefix of a checkpoint ({found})")
    prefix = match[1]
    if not prefix.isprintable() or re.search(r"[/\\]", prefix):
        raise BadInput(f"{state}: model_checkpoint_path is {prefix[:200]!r}, expected the plain name "
                             f"of a checkpoint in this folder; give the prefix of one ({found})")
    if prefix not in prefixes:
        raise MissingInput(f"{os.path.join(folder, prefix)}.index: not found, though {state} expects "
                                 f"it; found {found}; {DOWNLOAD}, or give the prefix of one")
    return prefix


def _some(names):
    """Return the first names of a list for a message."""
    return (", ".join(names[:3]) or "none") + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _map_shard(prefix, shard, n_shards):
    """Return (file name, its bytes as a memory-mapped uint8 array that can be written privately)."""
    file = f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"
    if not os.path.isfile(file):
        found = sorted(map(os.path.basename, glob.glob(glob.escape(prefix) + ".data-*")))
        raise MissingInput(f"{file}: not found; the index expects {n_shards} data file(s), found "
                                 f"{_some(found)}; {DOWNLOAD}")
    try:
        if os.path.getsize(file) == 0:  # an empty file cannot be mapped
            return file, np.empty(0, np.uint8)
        return file, np.memmap(file, np.uint8, mode="c")
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); check its permissions") from None


def _checksum(data, bar=None):
    """Return the masked CRC-32C of bytes or a uint8 array, taken a megabyte at a time."""
    crc = 0
    for start in range(0, len(data), 1 << 20):
        chunk = bytes(data[start:start + (1 << 20)])
        crc = google_crc32c.extend(crc, chunk)
        if bar is not None:
            bar.update(len(chunk))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_index(path):
    """Return (number of shards, {name: _Variable}) of the weights that an .index file lists."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.path.getsize(path) - FOOTER_SIZE))
            footer = f.read(FOOTER_SIZE)
            if len(footer) < FOOTER_SIZE or not footer.endswith(TABLE_MAGIC):  # before a huge one is read
                raise _Malformed("does not end as an index does: it is truncated or foreign")
            f.seek(0)
            return _parse_index(f.read(), footer)
    except _Malformed as error:
        raise BadInput(f"{path}: {error}; expected the index of a TensorFlow V2 checkpoint; "
                             f"{DOWNLOAD}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _parse_index(index, footer):
    """Return (number of shards, {name: _Variable}) from the bytes of an index; raises _Malformed."""
    (_, _, offset, size), _ = _numbers(footer, 0, 4)  # the first two: the meta-index, which is empty
    n_shards, last, variables = None, None, {}
    for _, handle in _entries(_block(index, offset, size)):
        (offset, size), _ = _numbers(handle, 0, 2)
        for key, value in _entries(_block(index, offset, size)):
            if n_shards is None:
                n_shards = _header(key, value)
            elif key <= last:
                raise _Malformed(f"the name {key[:80]!r} comes after {last[:80]!r}, not in order")
            elif key.startswith(b"\0"):
                raise _Malformed("it holds slices of a partitioned variable; save the variables whole")
            elif not (name := key.decode("utf-8", errors="surrogateescape")).isprintable():
                raise _Malformed(f"the name {key[:80]!r} is not text")
            elif not NOT_WEIGHTS.fullmatch(name):
                variables[name] = _variable(name, value, n_shards)
            last = key
    if not variables:
        raise _Malformed("it lists no variable but steps and optimizer slots")
    return n_shards, variables


def _header(key, value):
    """Return the number of shards from the first entry of an index."""
    if key:
        raise _Malformed(f"it starts with {key[:80]!r}, not with a header")
    header = dict(_message(value, {1: VARINT, 2: VARINT}))
    if header.get(2, 0) != 0:
        raise _Malformed("it was written on a big-endian machine, which is not supported")
    if not 1 <= header.get(1, 1) <= 99999:
        raise _Malformed(f"its header says {header[1]} shards")
    return header.get(1, 1)


def _variable(name, value, n_shards):
    """Return the _Variable of one entry, after checking that its numbers fit together."""
    entry = dict(_message(value, ENTRY_FIELDS))  # fields left out are 0
    if 7 in entry:
        raise _Malformed(f"{name} is a partitioned variable; save it whole")
    kind, shard, offset, size, checksum = (entry.get(field, 0) for field in (1, 3, 4, 5, 6))
    if kind not in TYPES:
        raise _Malformed(f"{name} is of type {OTHER_TYPES.get(kind, kind)}, not float32 or bfloat16")
    if shard >= n_shards:
        raise _Malformed(f"{name} is in shard {shard}, counted from 0, of {n_shards}")
    dims = [dim for _, dim in _message(entry.get(2, b""), {2: BYTES})][:MOST_DIMENSIONS + 1]
    shape = tuple(dict(_message(dim, {1: VARINT})).get(1, 0) for dim in dims)
    if size == 0 or len(shape) > MOST_DIMENSIONS or math.prod(shape) * TYPES[kind].itemsize != size:
        raise _Malformed(f"{name} has the shape {list(shape)} of {TYPES[kind]}, which {size} bytes do not fit")
    return _Variable(TYPES[kind], shape, shard, offset, size, checksum)


def _block(index, offset, size):
    """Return the contents of one block, checksum verified."""
    end = offset + size
    if end + TRAILER_SIZE > len(index) - FOOTER_SIZE:
        raise _Malformed(f"a block reaches to byte {end} of {len(index)}")
    if _checksum(index[offset:end + 1]) != int.from_bytes(index[end + 1:end + TRAILER_SIZE], "little"):
        raise _Malformed(f"the block from byte {offset} to {end} lacks its checksum")
    if index[end] != 0:
        raise _Malformed(f"the block at byte {offset} is compressed (kind {index[end]}, expected 0)")
    return index[offset:end]


def _entries(block):
    """Yield (key, value) of a block; each key is stored as what differs from the one before it."""
    n_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (n_restarts + 1)  # a list of "restarts", for seeking, closes the block
    if end < 0:
        raise _Malformed("a block is too short")
    at, key = 0, b""
    while at < end:
        (n_shared, n_new, n_value), at = _numbers(block, at, 3)
        value_at = at + n_new
        if n_shared > len(key) or value_at + n_value > end or n_shared + n_new > LONGEST_NAME:
            raise _Malformed("the lengths of an entry do not fit its block")
        key = key[:n_shared] + block[at:value_at]
        at = value_at + n_value
        yield key, block[value_at:at]


def _numbers(data, at, count):
    """Return ([`count` numbers, stored 7 bits a byte from data[at] on], the position after them)."""
    numbers = []
    for _ in range(count):
        number = shift = 0
        while shift <= 63 and at < len(data):
            number |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                break
        else:
            raise _Malformed("a number is cut off")
        numbers.append(number)
    return numbers, at


def _message(data, wires):
    """Yield (field number, value) of a protocol-buffer message, for the fields in `wires`.

    Args:
        wires: {field number: its wire type}; other fields are skipped.
    """
    at = 0
    while at < len(data):
        (tag,), at = _numbers(data, at, 1)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            (value,), at = _numbers(data, at, 1)
        else:
            if wire == BYTES:
                (size,), at = _numbers(data, at, 1)
            else:
                size = {FIXED32: 4, FIXED64: 8}.get(wire, len(data) + 1)
            value, at = data[at:at + size], at + size
        if at > len(data) or wires.get(field, wire) != wire:
            raise _Malformed("an entry is not the message it should be")
        if field in wires:
            yield field, int.from_bytes(value, "little") if wire == FIXED32 else value
