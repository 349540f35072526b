"""A writer of TensorFlow's checkpoints, to make some that are wrong in one place and right in all others."""

import os

import google_crc32c

FLOAT32, STRING, INT32, BFLOAT16 = 1, 7, 3, 14


def varint(number):
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, value):
    """One protobuf field: an int as varint, bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked_crc(data):
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def entry(kind, shape, shard, offset, data, size=None, extra=b""):
    dims = b"".join(field(2, field(1, length)) for length in shape)
    size = len(data) if size is None else size
    return (field(1, kind) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)
            + varint(6 << 3 | 5) + masked_crc(data) + extra)


def block(pairs):
    """Prefix-compressed entries with one restart point, as leveldb lays them out."""
    out, last = b"", b""
    for key, value in pairs:
        shared = len(os.path.commonprefix([last, key]))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + bytes(4) + (1).to_bytes(4, "little")


def table(blocks, kind=0, change=lambda contents: contents):
    """An .index of these blocks of (key, value) pairs; change() alters contents before the checksum."""
    out, handles = b"", []
    for pairs in blocks:
        contents = change(block(pairs))
        handles.append((pairs[-1][0], varint(len(out)) + varint(len(contents))))
        out += contents + bytes([kind]) + masked_crc(contents + bytes([kind]))
    contents = block(handles)
    handle = varint(len(out)) + varint(len(contents))
    out += contents + b"\0" + masked_crc(contents + b"\0")
    return out + (varint(0) + varint(0) + handle).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
