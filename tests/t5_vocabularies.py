"""A T5 vocabulary as tokenizer.json, made of a spiece.model."""

import json
import struct

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers


def fields(message):
    """[(number, value)] of a protocol buffers message; a value is a whole number or bytes."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return value, at

    found, at = [], 0
    while at < len(message):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        else:
            size, at = varint(at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = message[at:at + size], at + size
        found.append((key >> 3, value))
    return found


def write_tokenizer(spiece, folder, n_sentinels=100, change=lambda content: None):
    """Write a tokenizer.json as transformers makes it of a spiece.model; return its path.

    The sentinels' names are without the sign for a blank there.
    """
    folder.mkdir(exist_ok=True)
    message = fields(spiece.read_bytes())
    pieces = [dict(fields(value)) for number, value in message if number == 1]
    vocab = [(piece[1].decode(), struct.unpack("<f", piece[2])[0]) for piece in pieces]
    vocab += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(n_sentinels))]
    charsmap = next(dict(fields(value)).get(2) for number, value in message if number == 3)
    tokenizer = Tokenizer(models.Unigram(vocab, 2, byte_fallback=any(piece.get(3) == 6 for piece in pieces)))
    if charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    content = json.loads(tokenizer.to_str())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "tokenizer.json"
