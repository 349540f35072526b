"""Text to token ids.

TextEncoder does it as the GPT-1 code did: clean, split with spaCy's English rules, byte-pair encode.
SentencePieceEncoder does it as T5 did. The names TextEncoder and text_standardize are those of
`text_utils.py` in finetune-transformer-lm.
"""

import hashlib
import json
import os
import re

import ftfy
import sentencepiece

from formats import progress
from formats.errors import OPENAI_MODEL, BadInput, MissingInput, is_first_process
from formats.files import is_lfs_pointer, read_text

REPLACEMENTS = {"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"}
# A run of one of these signs is set apart by spaces. The backslash is not among them: the original
# meant it to be, but its pattern is not a raw string and so asks for a plus sign instead.
SIGNS = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")
VOCABULARY_FROM = (f"{OPENAI_MODEL}, or give --encoder_path and --bpe_path; pretrain.py makes a vocabulary of "
                   "your own")


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
    text = read_text(path, VOCABULARY_FROM)
    try:
        encoder = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({str(error)[:100]}); expected a JSON object from pieces "
                       f"to ids; {VOCABULARY_FROM}") from None
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
    lines = read_text(path, VOCABULARY_FROM).split("\n")
    if not lines[0].startswith("#version"):
        raise BadInput(f"{path}: line 1 is {lines[0][:60]!r}, expected '#version: ...' and then one merge a line; "
                       f"{VOCABULARY_FROM}")
    merges = {}
    for number, line in enumerate(lines[1:], 2):
        pair = tuple(line.rstrip("\r").split(" "))
        if pair in merges:
            raise BadInput(f"{path}: line {number} repeats the merge of line {merges[pair] + 2}; the file is damaged; "
                           f"{VOCABULARY_FROM}")
        if len(pair) == 2 and all(pair):
            merges[pair] = len(merges)
        elif number != len(lines) or line:
            raise BadInput(f"{path}: line {number} is {line[:60]!r}, expected two pieces with one space between them")
    if not merges:
        raise BadInput(f"{path}: holds no merges; {VOCABULARY_FROM}")
    return merges


def _require_file(path, where_from=VOCABULARY_FROM):
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: vocabulary file not found; {where_from}")
    if is_lfs_pointer(path):
        raise BadInput(f"{path}: is a Git LFS pointer, not the data; {where_from}")


def english_tokenizer():
    """Return spaCy's English tokenizer: the rules of the full pipeline, with nothing to download."""
    import spacy  # here, as it takes 60 MB and two seconds, which T5 and those who bring token ids need not pay
    return spacy.blank("en").tokenizer


def split_words(tokenizer, text):
    """Return the lower-cased words of one text after repair and cleaning.

    Args:
        tokenizer: see english_tokenizer.
    """
    return [word.text.lower() for word in tokenizer(text_standardize(ftfy.fix_text(text)))]


class TextEncoder:
    """Byte-pair encoder over lower-cased spaCy words.

    Attributes:
        encoder: {piece: id}. Callers may add special tokens to it.
        decoder: {id: piece}, of the pieces in the file.
        tokenizer: spaCy's English tokenizer.
    Raises:
        MissingInput, BadInput: see read_encoder and read_merges.
    """

    def __init__(self, encoder_path, bpe_path):
        self.encoder = read_encoder(encoder_path)
        self.decoder = {i: piece for piece, i in self.encoder.items()}
        self.bpe_ranks = read_merges(bpe_path)
        self.tokenizer = english_tokenizer()
        self.cache = {}  # word -> ids

    @classmethod
    def from_folder(cls, folder):
        """Return the encoder of OpenAI's two files in a folder, or of the Hub's vocab.json and merges.txt."""
        pairs = (("encoder_bpe_40000.json", "vocab_40000.bpe"), ("vocab.json", "merges.txt"))
        found = next((pair for pair in pairs if os.path.isfile(os.path.join(folder, pair[0]))), pairs[0])
        return cls(*(os.path.join(folder, name) for name in found))

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
        """Return the words of one text, see split_words."""
        return split_words(self.tokenizer, text)

    def word_ids(self, word):
        """Return the ids of one word. Pieces outside the vocabulary get id 0, `<unk>`."""
        if word not in self.cache:
            self.cache[word] = [self.encoder.get(piece, 0) for piece in self.bpe(word).split(" ")]
        return self.cache[word]

    def encode(self, texts, verbose=True):
        """Return one list of ids per text. Pieces outside the vocabulary get id 0, `<unk>`.

        Args:
            texts: list of strings.
            verbose: show a progress bar.
        """
        encoded = []
        for text in progress.bar(texts, desc="encode", unit="text", show=verbose and is_first_process()):
            encoded.append([i for word in self.words(text) for i in self.word_ids(word)])
        return encoded

    def decode(self, ids):
        """Return the text of a list of ids: words separated by single spaces, special tokens by name."""
        names = {i: piece for piece, i in self.encoder.items() if i not in self.decoder}
        text = "".join(self.decoder[i] if i in self.decoder else names.get(i, "<unk>") + "</w>" for i in ids)
        return text.replace("</w>", " ").strip()


N_SENTINELS = 100
SENTINEL = re.compile(r"<extra_id_(\d{1,2})>")
RELEASED_SPIECE_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
SPIECE_FROM = ("copy spiece.model from a T5 folder of the Hugging Face Hub (python download_model.py), or make a "
               "vocabulary of your own with pretrain_t5.py")


class SentencePieceEncoder:
    """T5's tokenizer: the pieces of a SentencePiece model, then 100 sentinels that count down.

    With the released file of 32,000 pieces, `<extra_id_0>` is 32099 and `<extra_id_99>` is 32000.

    Args:
        path: the file, usually named spiece.model.
    Attributes:
        n_pieces: pieces in the file. n_tokens: with the sentinels; the model may have more rows than that.
        is_released: whether the file is, byte for byte, that of the released T5 models.
    Raises:
        MissingInput, BadInput: absent, damaged, or without T5's pad 0, EOS 1 and unknown 2.
    """

    def __init__(self, path):
        _require_file(path, SPIECE_FROM)
        with open(path, "rb") as f:
            data = f.read()
        self.is_released = hashlib.sha256(data).hexdigest() == RELEASED_SPIECE_SHA256
        try:
            self.model = sentencepiece.SentencePieceProcessor()
            self.model.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadInput(f"{path}: is no SentencePiece model ({len(data):,} bytes; {str(error)[:100]}); "
                           f"{SPIECE_FROM}") from None
        found = self.model.pad_id(), self.model.eos_id(), self.model.unk_id()
        if found != (0, 1, 2):
            raise BadInput(f"{path}: has pad, EOS, unknown = {found}, expected (0, 1, 2) as T5 has; {SPIECE_FROM}")
        self.n_pieces = len(self.model)
        self.n_tokens = self.n_pieces + N_SENTINELS

    @classmethod
    def from_folder(cls, folder):
        """Return the encoder of spiece.model in a folder."""
        return cls(os.path.join(folder, "spiece.model"))

    def sentinel(self, number):
        """Return the id of `<extra_id_number>`, number 0 to 99."""
        return self.n_tokens - 1 - number

    def encode(self, texts, verbose=True):
        """Return one list of ids per text, without EOS. `<extra_id_0>` to `<extra_id_99>` become sentinels.

        Args:
            texts: list of strings.
            verbose: show a progress bar.
        """
        encoded = []
        for text in progress.bar(texts, desc="encode", unit="text", show=verbose and is_first_process()):
            parts = SENTINEL.split(text)  # text, number, text, number, ..., text
            ids = self.model.encode(parts[0])
            for number, part in zip(parts[1::2], parts[2::2], strict=True):
                ids += [self.sentinel(int(number)), *self.model.encode(part)]
            encoded.append(ids)
        return encoded

    def decode(self, ids):
        """Return the text of a list of ids; padding and EOS vanish, sentinels stand by name between blanks."""
        texts, pieces = [], []
        for i in map(int, ids):
            if self.n_pieces <= i < self.n_tokens:
                texts += [self.model.decode(pieces), f"<extra_id_{self.n_tokens - 1 - i}>"]
                pieces = []
            else:
                pieces.append(min(i, 2) if i >= self.n_tokens else i)  # rows past the sentinels mean nothing
        return " ".join(filter(None, [*texts, self.model.decode(pieces)]))
