"""T5's vocabulary: a SentencePiece model, from spiece.model or from tokenizer.json, and its sentinels.

Both are Unigram vocabularies with the same pieces, scores and rules of normalization. A SentencePiece model is a
message in the wire format of protocol buffers (sentencepiece_model.proto), in which more pieces may simply follow
at the end.
"""

import base64
import binascii
import json
import os
import re
import struct

from formats.errors import BadInput
from formats.files import read_text
from formats.gpt_vocabulary import require_file

SPIECE, TOKENIZER = "spiece.model", "tokenizer.json"
WHERE_FROM = ("copy spiece.model from a T5 folder of the Hugging Face Hub (python download_model.py), or make a "
              "vocabulary of your own with pretrain_t5.py")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of pieces
SPECIAL = {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN}
BLANK = "\u2581"  # stands for a blank in a piece


def find_file(folder):
    """Return the path of the vocabulary in a folder: spiece.model, or tokenizer.json where that alone is there.

    Args:
        folder: a folder, or a file in it.
    """
    folder = os.path.dirname(folder) if os.path.isfile(folder) else folder
    spiece, tokenizer = os.path.join(folder, SPIECE), os.path.join(folder, TOKENIZER)
    return tokenizer if os.path.isfile(tokenizer) and not os.path.isfile(spiece) else spiece


def read(path):
    """Return (bytes, None) of a SentencePiece model, or (bytes, sentinels to append) of a tokenizer.json.

    Args:
        path: a tokenizer.json if its name ends in .json, else a SentencePiece model, which is not looked into.
    Raises:
        MissingInput, BadInput: absent, or no tokenizer.json of a T5.
    """
    require_file(path, WHERE_FROM)
    if os.fspath(path).endswith(".json"):
        return _model_of_tokenizer(path)
    with open(path, "rb") as f:
        return f.read(), None


def sentinels(n):
    """Return the bytes that append n sentinels to a SentencePiece model, the one of number 0 last.

    As in Google's code, the blank in front of a sentinel is a part of it.
    """
    return b"".join(_piece(f"{BLANK}<extra_id_{i}>", 0.0, USER_DEFINED) for i in reversed(range(n)))


def _model_of_tokenizer(path):
    """Return (bytes of a SentencePiece model, number of sentinels) of a tokenizer.json."""
    try:
        content = json.loads(read_text(path, WHERE_FROM))
        model, normalizer = content["model"], content.get("normalizer")
        if model["type"] != "Unigram" or model["unk_id"] != 2:
            raise ValueError(f"the model is {str(model['type'])[:40]!r} with unknown piece "
                             f"{str(model['unk_id'])[:40]!r}, expected 'Unigram' with 2")
        splits = _parts(content["pre_tokenizer"], "pretokenizers")
        if not any(part["type"] == "Metaspace" and part.get("prepend_scheme") != "never"
                   and part.get("add_prefix_space", True) for part in splits):
            raise ValueError("its words do not begin with the sign for a blank")
        charsmap = _charsmap(_parts(normalizer, "normalizers"))
        vocab = [(str(piece), float(score)) for piece, score in model["vocab"]]
        n_sentinels = 0
        while n_sentinels < len(vocab) and vocab[-1 - n_sentinels][0] == f"<extra_id_{n_sentinels}>":
            n_sentinels += 1
        n_bytes = sum(bool(re.fullmatch("<0x[0-9A-F]{2}>", piece)) for piece, _ in vocab) if model.get(
            "byte_fallback") else 0
        pieces = b"".join(_piece(piece, score, _type_of(piece, n_bytes > 0))
                          for piece, score in vocab[:len(vocab) - n_sentinels])
    except BadInput:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError,
            struct.error) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{path}: is no tokenizer.json of a T5 ({what[:150]}); {WHERE_FROM}") from None
    trainer = _field(2, _field(35, 1)) if n_bytes else b""  # byte_fallback
    return pieces + trainer + _field(3, _field(2, charsmap)), n_sentinels


def _parts(part, name):
    """Return a list of the parts of a normalizer or pre-tokenizer, which may be a sequence of parts, or absent."""
    if part is None:
        return []
    return [small for big in part[name] for small in _parts(big, name)] if part["type"] == "Sequence" else [part]


def _charsmap(parts):
    """Return the rules of normalization among the parts of a normalizer: bytes, empty where there are none.

    SentencePiece itself drops the blanks that Strip and Replace are about.
    """
    charsmap = b""
    for part in parts:
        if part["type"] == "Precompiled":
            try:
                charsmap = base64.b64decode(part["precompiled_charsmap"] or "", validate=True)
            except binascii.Error as error:
                raise ValueError(f"precompiled_charsmap is not base64: {error}") from None
        elif part["type"] != "Strip" and (part["type"], part.get("pattern")) != ("Replace", {"Regex": " {2,}"}):
            raise ValueError(f"the normalizer {str(part['type'])[:40]!r} is not supported")
    return charsmap


def _type_of(piece, has_bytes):
    if re.fullmatch(f"{BLANK}?<extra_id_[0-9]+>", piece):
        return USER_DEFINED
    if has_bytes and re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return BYTE
    return SPECIAL.get(piece, NORMAL)


def _piece(piece, score, kind):
    """Return ModelProto.pieces: the bytes of one piece."""
    return _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind))


def _field(number, value):
    """Return one field of a message: a whole number, or bytes with their length in front."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value):
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7f | 0x80)
        value >>= 7
    return bytes([*digits, value])
