"""The vocabulary of a byte-pair encoder such as GPT-1's, in each of the forms in which it is kept.

    encoder_bpe_40000.json, vocab_40000.bpe     OpenAI's two files, which pretrain.py writes too
    vocab.json, merges.txt                      the same two on the Hugging Face Hub
    tokenizer.json                              both in one, as the library `tokenizers` writes it
"""

import json
import os
import re

from formats.errors import OPENAI_MODEL, BadInput, MissingInput, warn_once
from formats.files import is_lfs_pointer, read_text

OPENAI_FILES = ("encoder_bpe_40000.json", "vocab_40000.bpe")  # whatever the number of merges
HUB_FILES = ("vocab.json", "merges.txt")
TOKENIZER = "tokenizer.json"
WHERE_FROM = (f"{OPENAI_MODEL}, or give --encoder_path and --bpe_path; pretrain.py makes a vocabulary of "
              "your own")
UNKNOWN = "<unk>"  # its id is 0
END = "</w>"  # ends the last piece of a word
# Names that people give to special tokens. No merge makes them, and text never becomes one of them.
SPECIAL = re.compile(r"<(?!/w>)[^<>\s]+>|\[[^\[\]\s]+\]|_[^_\s]+_")


def find_files(folder):
    """Return the paths of the vocabulary in a folder: two files, or one tokenizer.json.

    Where there are several, OpenAI's are taken before vocab.json and merges.txt, and these before tokenizer.json.

    Args:
        folder: a folder, or a file in it.
    Raises:
        MissingInput: there is none.
    """
    folder = os.path.dirname(folder) if os.path.isfile(folder) else folder
    forms = OPENAI_FILES, HUB_FILES, (TOKENIZER,)
    there = [[os.path.isfile(os.path.join(folder, name)) for name in names] for names in forms]
    for names, found in zip(forms, there, strict=True):
        if all(found):
            return tuple(os.path.join(folder, name) for name in names)
    for names, found in zip(forms, there, strict=True):
        if any(found):  # one of two
            has, lacks = names[::-1] if found[1] else names
            raise MissingInput(f"{os.path.join(folder, lacks)}: vocabulary file not found, but {has} is there; "
                               f"{WHERE_FROM}")
    raise MissingInput(f"{os.path.join(folder, OPENAI_FILES[0])}: vocabulary file not found (nor vocab.json and "
                       f"merges.txt, nor tokenizer.json); {WHERE_FROM}")


def read_folder(folder):
    """Return ({piece: id}, {(left, right): rank}) of the vocabulary in a folder; see find_files and read_files.

    Raises:
        MissingInput, BadInput: naming the file and what is wrong with it.
    """
    return read_files(*find_files(folder))


def read_files(encoder_path, bpe_path=None):
    """Return ({piece: id}, {(left, right): rank}) of a vocabulary whose pieces and merges belong together.

    Args:
        encoder_path: the file of pieces, or a tokenizer.json. bpe_path: the file of merges; None for a tokenizer.json.
    Raises:
        MissingInput, BadInput: naming the file and what is wrong with it.
    """
    if bpe_path is None:
        encoder, merges = read_tokenizer(encoder_path)
    else:
        encoder, merges = read_encoder(encoder_path), read_merges(bpe_path)
    _require_a_pair(encoder, merges, encoder_path, bpe_path or encoder_path)
    return encoder, merges


def read_encoder(path: str) -> dict[str, int]:
    """Return {piece: id} from a vocabulary file such as encoder_bpe_40000.json.

    Raises:
        MissingInput, BadInput: absent, or not a JSON object from pieces to the ids 0 .. n-1.
    """
    return _pieces(path, _read_json(path))


def read_merges(path: str) -> dict[tuple[str, str], int]:
    """Return {(left, right): rank} from a merges file such as vocab_40000.bpe: a merge a line.

    A first line that begins with '#version' is no merge; it may be absent.

    Raises:
        MissingInput, BadInput: absent, not UTF-8, or a line that is not two pieces.
    """
    require_file(path, WHERE_FROM)
    lines = read_text(path, WHERE_FROM).split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    if lines[-1] == "":
        del lines[-1]
    if not lines:
        raise BadInput(f"{path}: is empty, expected one merge a line; {WHERE_FROM}")
    return _ranks(path, [(f"line {number}", line.rstrip("\r")) for number, line in enumerate(lines[first:], first + 1)])


def read_tokenizer(path):
    """Return ({piece: id}, {(left, right): rank}) from a tokenizer.json.

    Its pieces and merges are used, and nothing else: text is cleaned and split as GPT-1 had it, whatever the file
    says about that.

    Raises:
        MissingInput, BadInput: absent, damaged, or another kind of vocabulary.
    """
    content = _read_json(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise BadInput(f"{path}: holds no model; expected what the library tokenizers writes; {WHERE_FROM}")
    # the settings that change what the merges do
    expected = {"type": ("BPE",), "end_of_word_suffix": (END,), "continuing_subword_prefix": (None, ""),
                "byte_fallback": (None, False), "ignore_merges": (None, False), "dropout": (None, 0)}
    for name, allowed in expected.items():
        if model.get(name) not in allowed:
            raise BadInput(f"{path}: the model's {name} is {str(model.get(name))[:40]!r}, expected {allowed[-1]!r}: "
                           "this is another kind of vocabulary than GPT-1's")
    encoder = _pieces(path, model.get("vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise BadInput(f"{path}: holds no list of merges; {WHERE_FROM}")
    merges = [(f"merge {number}", " ".join(map(str, m)) if isinstance(m, list) else str(m))
              for number, m in enumerate(merges, 1)]
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise BadInput(f"{path}: added_tokens is no list of tokens; the file is damaged; {WHERE_FROM}")
    more = [name for name in (str(token.get("content")) for token in added) if name not in encoder]
    if more:
        warn_once(f"{path}: adds {len(more)} tokens to the pieces ({', '.join(map(repr, more))[:80]}), which are left "
                  "out here: text that holds one is read as ordinary text")
    return encoder, _ranks(path, merges)


def require_file(path, where_from):
    """Raise MissingInput or BadInput unless a vocabulary file is there and is no Git LFS pointer."""
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: vocabulary file not found; {where_from}")
    if is_lfs_pointer(path):
        raise BadInput(f"{path}: is a Git LFS pointer, not the data; {where_from}")


def _read_json(path):
    require_file(path, WHERE_FROM)
    try:
        return json.loads(read_text(path, WHERE_FROM))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path}: is not JSON ({str(error)[:100]}); expected a JSON object; {WHERE_FROM}") from None


def _pieces(path, encoder):
    """Return `encoder` if it is a {piece: id} with the ids 0 .. n-1."""
    if not isinstance(encoder, dict) or not encoder:
        raise BadInput(f"{path}: holds a JSON {type(encoder).__name__}, expected a non-empty object from pieces to "
                       f"ids; {WHERE_FROM}")
    # bool is an int to Python, but true is not an id
    wrong = next((p for p, i in encoder.items() if type(i) is not int), None)
    if wrong is not None:
        raise BadInput(f"{path}: piece {wrong[:40]!r} has id {str(encoder[wrong])[:40]!r}, expected a whole number")
    if set(encoder.values()) != set(range(len(encoder))):
        raise BadInput(f"{path}: the {len(encoder)} ids are not 0 to {len(encoder) - 1}, each once; "
                       "the file is damaged or another one")
    return encoder


def _ranks(path, merges):
    """Return {(left, right): rank} of [(place in the file, 'left right')]."""
    ranks, places = {}, {}
    for place, text in merges:
        pair = tuple(text.split(" "))
        if len(pair) != 2 or not all(pair):
            raise BadInput(f"{path}: {place} is {text[:60]!r}, expected two pieces with one space between them; "
                           f"{WHERE_FROM}")
        if pair in ranks:
            raise BadInput(f"{path}: {place} repeats the merge of {places[pair]}; the file is damaged; {WHERE_FROM}")
        ranks[pair], places[pair] = len(ranks), place
    return ranks


def _require_a_pair(encoder, merges, encoder_path, bpe_path):
    """Raise BadInput unless every merge makes a piece, and every piece but characters and special tokens is made.

    Each of the two files by itself may be whole, and the ids wrong all the same.
    """
    made = {left + right for left, right in merges}
    lost = [piece for piece in made if piece not in encoder]
    if lost:
        raise BadInput(f"{bpe_path}: {len(lost):,} of its merges make no piece of {encoder_path}, one of them "
                       f"{min(lost)[:40]!r}; the two do not belong together; {WHERE_FROM}")
    unmade = [piece for piece in encoder
              if piece not in made and len(piece.removesuffix(END)) != 1 and not SPECIAL.fullmatch(piece)]
    if unmade:
        raise BadInput(f"{bpe_path}: its {len(merges):,} merges do not make {len(unmade):,} pieces of {encoder_path}, "
                       f"one of them {unmade[0][:40]!r}; a part is missing, or the two do not belong together; "
                       f"{WHERE_FROM}")
    first = next(piece for piece, i in encoder.items() if i == 0)
    if first != UNKNOWN:
        raise BadInput(f"{encoder_path}: the piece of id 0 is {first[:40]!r}, expected {UNKNOWN!r} for all that the "
                       f"vocabulary lacks: this is another kind of vocabulary than GPT-1's; {WHERE_FROM}")
