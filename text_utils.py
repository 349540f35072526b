"""Text to token ids, as the GPT-1 code did it: clean, split with spaCy's English rules, byte-pair encode.

The names TextEncoder and text_standardize are those of `text_utils.py` in finetune-transformer-lm.
"""

import json
import os
import re

import ftfy
import spacy
from tqdm import tqdm

from utils import BadInput, MissingInput

REPLACEMENTS = {"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"}
# A run of one of these signs is set apart by spaces. The backslash is not among them: the original
# meant it to be, but its pattern is not a raw string and so asks for a plus sign instead.
SIGNS = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")
WHERE_FROM = ("copy the folder `model` of OpenAI's repository finetune-transformer-lm (python download_model.py), "
              "or give --encoder_path and --bpe_path; pretrain.py makes a vocabulary of your own")


def text_standardize(text):
    """Return `text` with dashes, ellipses, accents, signs, newlines and blanks in the form the BPE saw."""
    for old, new in REPLACEMENTS.items():
        text = text.replace(old, new)
    text = SIGNS.sub(r" \g<0> ", text)
    text = re.sub(r"\s*\n\s*", " \n ", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return text.strip()


def read_encoder(path):
    """Return {piece: id} from a vocabulary file such as encoder_bpe_40000.json.

    Raises:
        MissingInput, BadInput: absent, or not a JSON object from pieces to the ids 0 .. n-1.
    """
    _require_file(path)
    try:
        with open(path, encoding="utf-8") as f:
            encoder = json.load(f)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON in UTF-8 ({str(error)[:100]}); expected a JSON object from pieces "
                       f"to ids; {WHERE_FROM}") from None
    if not isinstance(encoder, dict) or not encoder:
        raise BadInput(f"{path}: holds a JSON {type(encoder).__name__}, expected a non-empty object from pieces to ids")
    # bool is an int to Python, but true is not an id
    wrong = next((p for p, i in encoder.items() if type(i) is not int), None)
    if wrong is not None:
        raise BadInput(f"{path}: piece {wrong!r} has id {encoder[wrong]!r}, expected a whole number")
    if set(encoder.values()) != set(range(len(encoder))):
        raise BadInput(f"{path}: the {len(encoder)} ids are not 0 to {len(encoder) - 1}, each once; "
                       "the file is damaged or another one")
    return encoder


def read_merges(path):
    """Return {(left, right): rank} from a merges file such as vocab_40000.bpe (first line: a version).

    Raises:
        MissingInput, BadInput: absent, not UTF-8, or a line that is not two pieces.
    """
    _require_file(path)
    try:
        with open(path, encoding="utf-8", newline="") as f:
            lines = f.read().split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 at byte {error.start}; {WHERE_FROM}") from None
    if not lines[0].startswith("#version"):
        raise BadInput(f"{path}: line 1 is {lines[0][:60]!r}, expected '#version: ...' and then one merge a line; "
                       f"{WHERE_FROM}")
    merges = {}
    for number, line in enumerate(lines[1:], 2):
        pair = tuple(line.rstrip("\r").split(" "))
        if len(pair) == 2 and all(pair):
            merges[pair] = len(merges)
        elif number != len(lines) or line:
            raise BadInput(f"{path}: line {number} is {line[:60]!r}, expected two pieces with one space between them")
    if not merges:
        raise BadInput(f"{path}: holds no merges; {WHERE_FROM}")
    return merges


def _require_file(path):
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: vocabulary file not found; {WHERE_FROM}")
    with open(path, "rb") as f:
        if f.read(8) == b"version ":
            raise BadInput(f"{path}: is a Git LFS pointer, not the data; {WHERE_FROM}")


class TextEncoder:
    """Byte-pair encoder over lower-cased spaCy words.

    Attributes:
        encoder: {piece: id}. Callers may add special tokens to it.
        decoder: {id: piece}, of the pieces in the file.
        nlp: spaCy's English tokenizer.
    Raises:
        MissingInput, BadInput: see read_encoder and read_merges.
    """

    def __init__(self, encoder_path, bpe_path):
        self.encoder = read_encoder(encoder_path)
        self.decoder = {i: piece for piece, i in self.encoder.items()}
        self.bpe_ranks = read_merges(bpe_path)
        self.nlp = spacy.blank("en")  # the rules of the full English pipeline, with nothing to download
        self.cache = {}  # word -> ids

    def bpe(self, token):
        """Return the pieces of one word, joined by spaces; the last one ends in '</w>'."""
        pieces = [*token[:-1], token[-1] + "</w>"] if token else []
        while len(pieces) > 1:
            rank, pair = min((self.bpe_ranks.get(pair, float("inf")), pair)
                             for pair in zip(pieces, pieces[1:], strict=False))
            if rank == float("inf"):
                break
            merged, i = [], 0
            while i < len(pieces):
                if tuple(pieces[i:i + 2]) == pair:
                    merged.append(pieces[i] + pieces[i + 1])
                    i += 2
                else:
                    merged.append(pieces[i])
                    i += 1
            pieces = merged
        # spaCy's word for a line break is "\n ", which the vocabulary holds as one piece
        return "\n</w>" if pieces == ["\n", " </w>"] else " ".join(pieces)

    def words(self, text):
        """Return the lower-cased spaCy words of one text after repair and cleaning."""
        return [word.text.lower() for word in self.nlp.tokenizer(text_standardize(ftfy.fix_text(text)))]

    def encode(self, texts, verbose=True):
        """Return one list of ids per text. Pieces outside the vocabulary get id 0, `<unk>`.

        Args:
            texts: list of strings.
            verbose: show a progress bar.
        """
        encoded = []
        for text in tqdm(texts, desc="encode", unit="text", disable=not verbose, leave=False, ncols=80):
            ids = []
            for word in self.words(text):
                if word not in self.cache:
                    self.cache[word] = [self.encoder.get(piece, 0) for piece in self.bpe(word).split(" ")]
                ids += self.cache[word]
            encoded.append(ids)
        return encoded

    def decode(self, ids):
        """Return the text of a list of ids: words separated by single spaces, special tokens by name."""
        names = {i: piece for piece, i in self.encoder.items() if i not in self.decoder}
        text = "".join(self.decoder[i] if i in self.decoder else names.get(i, "<unk>") + "</w>" for i in ids)
        return text.replace("</w>", " ").strip()
