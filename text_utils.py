"""Text to token ids, and back.

TextEncoder does it as the GPT-1 code did: clean, split with spaCy's English rules, byte-pair encode.
SentencePieceEncoder does it as Google's code did for T5. The names TextEncoder and text_standardize are those of
`text_utils.py` in finetune-transformer-lm. The vocabulary files are read in formats/.
"""

import hashlib
import heapq
import operator
import re
import struct
from collections.abc import Callable, Iterable, Iterator

import ftfy
import sentencepiece

from formats import gpt_vocabulary, progress, t5_vocabulary, words
from formats.errors import BadInput, is_first_process
from formats.gpt_vocabulary import read_encoder, read_merges

__all__ = ["N_SENTINELS", "SentencePieceEncoder", "TextEncoder", "read_encoder", "read_merges", "split_words",
           "text_standardize"]

REPLACEMENTS = {"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"}
# A run of one of these signs is set apart by spaces. The backslash is not among them: the original
# meant it to be, but its pattern is not a raw string and so asks for a plus sign instead.
SIGNS = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")
LONG_WORD = 200      # characters; above it spaCy's time matters, see formats/words.py
LONG_TEXT = 100_000  # characters; such a text is named in the progress bar before it is encoded
NEWLINE = "\n "  # spaCy's word for a line break


def text_standardize(text: str) -> str:
    """Return `text` with dashes, ellipses, accents, signs, newlines and blanks in the form the BPE saw."""
    for old, new in REPLACEMENTS.items():
        text = text.replace(old, new)
    text = SIGNS.sub(r" \g<0> ", text)
    return re.sub(r"\s+", lambda blanks: " \n " if "\n" in blanks[0] else " ", text).strip()


def split_words(tokenizer: Callable, text: str) -> list[str]:
    """Return the lower-cased words of one text after repair and cleaning.

    Args:
        tokenizer: see formats.words.english_tokenizer.
    """
    text = text_standardize(ftfy.fix_text(text))
    if len(text) > LONG_WORD and max(map(len, text.split())) > LONG_WORD:
        return [word.lower() for word in words.split(tokenizer, text)]
    return [word.text.lower() for word in tokenizer(text)]


def numbered(texts: Iterable[str], verbose: bool) -> Iterator[str]:
    """Yield the texts one by one under a progress bar.

    Raises:
        BadInput: this is no list, or a text is no string: its number (the first is 0) and what it is.
    """
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise BadInput(f"encode takes a list of texts, but got {type(texts).__name__} {str(texts)[:40]!r}; for one "
                       "text write encode([text])[0]")
    bar = progress.bar(texts, desc="encode", unit="text", show=verbose and is_first_process())
    for number, text in enumerate(bar):
        if not isinstance(text, str):
            raise BadInput(f"texts[{number}] is {type(text).__name__} {str(text)[:40]!r}, expected a string; leave it "
                           "out, or give '' for a text that is not there")
        if len(text) >= LONG_TEXT:
            bar.set_postfix(text=number, characters=len(text))
        yield text


def whole_numbers(ids: Iterable[int]) -> list[int]:
    """Return a list of ids as ints.

    Args:
        ids: one row of token ids: a list or another sequence, a tensor, an array, an iterator.
    Raises:
        BadInput: a string, more than one row, or an id that is no whole number from 0 on.
    """
    row = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(row, (str, bytes)) or not hasattr(row, "__iter__"):
        raise BadInput(f"decode takes a list of token ids, but got {type(ids).__name__} {str(ids)[:40]!r}; for text to "
                       "ids there is encode([text])")
    numbers = []
    for place, i in enumerate(row):
        try:
            number = operator.index(i)
        except (TypeError, ValueError):  # a one-element tensor of floats gives the one, a string the other
            raise BadInput(f"ids[{place}] is {type(i).__name__} {str(i)[:40]!r}, expected a whole number; decode takes "
                           "one row of ids at a time") from None
        if number < 0:
            raise BadInput(f"ids[{place}] is {number}, expected 0 or more; take out what marks ignored places, such "
                           "as labels of -100, before decoding")
        numbers.append(number)
    return numbers


class TextEncoder:
    """Byte-pair encoder over lower-cased spaCy words.

    Args:
        encoder_path: file of the pieces, such as encoder_bpe_40000.json; or a tokenizer.json, which holds the merges
            too. bpe_path: file of the merges, such as vocab_40000.bpe. For a folder see from_folder.
    Attributes:
        encoder: {piece: id}. Callers may add special tokens to it.
        decoder: {id: piece}, of the pieces in the file.
        bpe_ranks: {(left, right): rank}, of the merges.
        tokenizer: spaCy's English tokenizer.
    Raises:
        MissingInput, BadInput: see formats.gpt_vocabulary.read_files.
    """

    def __init__(self, encoder_path: str, bpe_path: str | None = None):
        self.encoder, self.bpe_ranks = gpt_vocabulary.read_files(encoder_path, bpe_path)
        self.decoder = {i: piece for piece, i in self.encoder.items()}
        self.tokenizer = words.english_tokenizer()
        self.cache = {}  # word -> ids

    @classmethod
    def from_folder(cls, folder: str) -> "TextEncoder":
        """Return the encoder of the vocabulary in a folder, in whichever form it is there.

        These are OpenAI's encoder_bpe_40000.json and vocab_40000.bpe, or the Hub's vocab.json and merges.txt, or
        tokenizer.json. All give the same ids.

        Raises:
            MissingInput, BadInput: see formats.gpt_vocabulary.find_files and read_files.
        """
        return cls(*gpt_vocabulary.find_files(folder))

    def __len__(self):
        return len(self.encoder)

    def __repr__(self):
        return f"{type(self).__name__}({len(self)} tokens, {len(self.bpe_ranks)} merges)"

    def bpe(self, token: str) -> str:
        """Return the pieces of one word, joined by spaces; the last one ends in '</w>'.

        The pair of the lowest rank is merged wherever it stands, from left to right, then the next one (Sennrich et
        al. 2016). A queue of the pairs makes that n log n in the length of the word.
        """
        pieces = [*token[:-1], token[-1] + "</w>"] if token else []
        before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))  # places of the neighbours
        queue = []

        def offer(i):
            """Put the pair of the pieces at place i and after it into the queue, if it is one to merge."""
            if 0 <= i and after[i] < len(pieces):
                pair = pieces[i], pieces[after[i]]
                if pair in self.bpe_ranks:
                    heapq.heappush(queue, (self.bpe_ranks[pair], i, pair))

        for i in range(len(pieces)):
            offer(i)
        while queue:
            rank, merged = queue[0][0], []
            while queue and queue[0][0] == rank:
                _, i, (left, right) = heapq.heappop(queue)
                j = after[i]
                if pieces[i] == left and j < len(pieces) and pieces[j] == right:  # neither was merged meanwhile
                    pieces[i], pieces[j] = left + right, None
                    after[i] = after[j]
                    if after[i] < len(pieces):
                        before[after[i]] = i
                    merged.append(i)
            for i in merged:
                offer(before[i])
                offer(i)
        pieces = [piece for piece in pieces if piece is not None]
        # the vocabulary holds the word for a line break as one piece
        return "\n</w>" if pieces == ["\n", " </w>"] else " ".join(pieces)

    def words(self, text: str) -> list[str]:
        """Return the words of one text, see split_words."""
        return split_words(self.tokenizer, text)

    def word_ids(self, word: str) -> list[int]:
        """Return the ids of one word. Pieces outside the vocabulary get id 0, `<unk>`."""
        if word not in self.cache:
            self.cache[word] = [self.encoder.get(piece, 0) for piece in self.bpe(word).split(" ")]
        return self.cache[word]

    def encode(self, texts: Iterable[str], verbose: bool = True) -> list[list[int]]:
        """Return one list of ids per text. Pieces outside the vocabulary get id 0, `<unk>`.

        Args:
            texts: list of strings.
            verbose: show a progress bar.
        Raises:
            BadInput: a string in place of the list, or a text that is no string.
        """
        return [[i for word in self.words(text) for i in self.word_ids(word)] for text in numbered(texts, verbose)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of one row of ids: words separated by single spaces, special tokens by name.

        Args:
            ids: a list, a tensor or any other sequence. What is no token, such as a position, becomes `<unk>`.
        Raises:
            BadInput: see whole_numbers.
        """
        ids = whole_numbers(ids)
        names = {}
        if any(i not in self.decoder for i in ids):
            names = {i: piece + "</w>" for piece, i in self.encoder.items() if i not in self.decoder}
        text = "".join(self.decoder[i] if i in self.decoder else names.get(i, "<unk></w>") for i in ids)
        return text.replace("</w>", " ").strip()


N_SENTINELS = 100  # that T5 has, and that a vocabulary without sentinels gets
# of the pieces and scores of the released vocabulary, see SentencePieceEncoder.is_released
RELEASED_SHA256 = "11a9b4aa9db5797113cffd4d68cbdd7b4e4c75c4a1fd1c0d0fa984c3058400a4"


class SentencePieceEncoder:
    """T5's tokenizer as Google's code has it: the pieces of a SentencePiece model, then 100 sentinels.

    The sentinels count down: with the released file of 32,000 pieces, `<extra_id_0>` is 32099 and `<extra_id_99>` is
    32000. A vocabulary that holds sentinels already, as that of mT5 does, keeps its own and gets no others. The blank
    in front of a sentinel is a part of it, so that `<extra_id_0>` in a text is a sentinel at the start and after a
    blank alone, and nothing comes between it and what follows.

    Args:
        path: the file, usually named spiece.model; or a tokenizer.json.
    Attributes:
        n_pieces: pieces in the file. n_tokens: with the sentinels; the model may have more rows than that.
        sentinels: list of the sentinels' ids, that of `<extra_id_0>` first.
        data: the SentencePiece model as bytes, without the sentinels that were added: what a spiece.model holds.
    Raises:
        MissingInput, BadInput: absent, damaged, or without T5's pad 0, EOS 1 and unknown 2.
    """

    def __init__(self, path: str):
        self.data, n = t5_vocabulary.read(path)
        self.model = self._load(path, self.data)
        self.n_pieces = len(self.model)
        if not self._own_sentinels():
            self.model = self._load(path, self.data + t5_vocabulary.sentinels(n or N_SENTINELS))
        self.sentinels = self._own_sentinels()
        self.n_tokens = len(self.model)

    @classmethod
    def from_folder(cls, folder: str) -> "SentencePieceEncoder":
        """Return the encoder of spiece.model in a folder, or of tokenizer.json where that alone is there.

        Both give the same ids, Google's, also where the library that wrote tokenizer.json gives others.
        """
        return cls(t5_vocabulary.find_file(folder))

    @staticmethod
    def _load(path, data):
        model = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadInput(f"{path}: is no SentencePiece model ({len(data):,} bytes; {str(error)[:100]}); "
                           f"{t5_vocabulary.WHERE_FROM}") from None
        found = model.pad_id(), model.eos_id(), model.unk_id()
        if found != (0, 1, 2):
            raise BadInput(f"{path}: has pad, EOS, unknown = {found}, expected (0, 1, 2) as T5 has; "
                           f"{t5_vocabulary.WHERE_FROM}")
        return model

    def _own_sentinels(self):
        """Return the ids of `<extra_id_0>`, `<extra_id_1>` and so on in the model, with or without a blank in front."""
        ids = []
        while True:
            names = (f"{blank}<extra_id_{len(ids)}>" for blank in (t5_vocabulary.BLANK, ""))
            found = [i for i in map(self.model.piece_to_id, names) if i != self.model.unk_id()]
            if not found:
                return ids
            ids.append(found[0])

    def __len__(self):
        return self.n_tokens

    def __repr__(self):
        return f"{type(self).__name__}({self.n_tokens} tokens, {len(self.sentinels)} of them sentinels)"

    @property
    def is_released(self) -> bool:
        """Whether the pieces and their scores are those of the released T5 models."""
        digest = hashlib.sha256()
        for i in range(self.n_pieces):
            digest.update(self.model.id_to_piece(i).encode() + struct.pack("<f", self.model.get_score(i)))
        return digest.hexdigest() == RELEASED_SHA256

    def sentinel(self, number: int) -> int:
        """Return the id of `<extra_id_number>`.

        Raises:
            BadInput: there is no such sentinel.
        """
        if not 0 <= number < len(self.sentinels):
            raise BadInput(f"sentinel {number} is asked for, allowed is 0 to {len(self.sentinels) - 1}")
        return self.sentinels[number]

    def encode(self, texts: Iterable[str], verbose: bool = True) -> list[list[int]]:
        """Return one list of ids per text, without EOS. `<extra_id_0>` to `<extra_id_99>` become sentinels.

        Args:
            texts: list of strings.
            verbose: show a progress bar.
        Raises:
            BadInput: a string in place of the list, or a text that is no string or no Unicode.
        """
        encoded = []
        for number, text in enumerate(numbered(texts, verbose)):
            try:
                encoded.append(self.model.encode(text))
            except (RuntimeError, UnicodeError):
                raise BadInput(f"texts[{number}] is no Unicode text, it holds a lone surrogate: {text[:40]!a}; read it "
                               "as UTF-8") from None
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of one row of ids, up to the first EOS; padding vanishes.

        Args:
            ids: a list, a tensor or any other sequence. What is no token, such as the last rows of a model, is
                unknown, ` ⁇ `.
        Raises:
            BadInput: see whole_numbers.
        """
        ids = [i if i < self.n_tokens else self.model.unk_id() for i in whole_numbers(ids)]
        if self.model.eos_id() in ids:
            ids = ids[:ids.index(self.model.eos_id())]
        return self.model.decode(ids)
