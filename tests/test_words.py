"""Long words: the pieces and the words are those of the definition, of tokenizers and of spaCy, in linear time."""

import json
import random

import pytest
from tokenizers import models

from formats import words
from text_utils import TextEncoder


@pytest.fixture(scope="module")
def texts(golden):
    return json.load(open(golden / "text" / "encode.json", encoding="utf-8"))


def pairs_by_hand(ranks, token):
    """The pieces of a word, straight from the definition: the lowest pair is merged everywhere, then the next."""
    pieces = [*token[:-1], token[-1] + "</w>"]
    while len(pieces) > 1:
        pair = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: ranks.get(pair, float("inf")))
        if pair not in ranks:
            break
        merged = []
        for piece in pieces:
            if merged and not merged[-1][1] and (merged[-1][0], piece) == pair:
                merged[-1] = merged[-1][0] + piece, True
            else:
                merged.append((piece, False))
        pieces = [piece for piece, _ in merged]
    return " ".join(pieces)


def test_merges_are_the_definition_s_on_random_words(small_vocabulary):
    encoder, rng = TextEncoder(*small_vocabulary), random.Random(5)
    letters = "abc"
    for _ in range(60):
        # merges in any order, so that a later merge may make what an earlier one asks for, several in several ways
        pieces = [*letters, *(c + "</w>" for c in letters)]
        ranks = {}
        while len(ranks) < 12:
            pair = rng.choice(pieces), rng.choice(pieces)
            if not pair[0].endswith("</w>") and pair not in ranks and len("".join(pair)) < 12:
                ranks[pair] = len(ranks)
                pieces.append("".join(pair))
        order = list(ranks)
        rng.shuffle(order)
        encoder.bpe_ranks = {pair: i for i, pair in enumerate(order)}
        for _ in range(60):
            word = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 40)))
            assert encoder.bpe(word) == pairs_by_hand(encoder.bpe_ranks, word), (order, word)


def test_long_words_are_merged_as_the_library_merges_them(openai_vocabulary):
    encoder, rng = TextEncoder.from_folder(openai_vocabulary), random.Random(6)
    library = models.BPE(vocab=encoder.encoder, merges=list(encoder.bpe_ranks), unk_token="<unk>",
                         end_of_word_suffix="</w>")
    for n in (1, 2, 40, 3000):
        for letters in ("abcdefghijklmnopqrstuvwxyz", "ab", "=", "e.", "☃"):
            word = "".join(rng.choice(letters) for _ in range(n))
            assert encoder.word_ids(word) == [token.id for token in library.tokenize(word)], word


def by_spacy(tokenizer, text):
    return [word.text for word in tokenizer(text)]


def test_words_are_spacy_s_on_the_golden_texts(texts):
    tokenizer = words.english_tokenizer()
    for case in texts:
        for text in (case["text"], case["standardized"]):
            assert words.split(tokenizer, text) == by_spacy(tokenizer, text)


def test_words_are_spacy_s_on_random_texts():
    tokenizer, rng = words.english_tokenizer(), random.Random(7)
    parts = [*tokenizer.rules, *"aBЖ中é5²°☃🙂.,:;()=%&'\"“”’-–/_^\\$€#*", "..", "...", "…", "US$", "°C.", "km", "3.5",
             "'s", "’S", "++", "--", "AB.", "ab.", "http://", "www.a.com", "x@y.z", "10km", "5mg.", "\u00a0", "\u200b",
             " ", "  ", " \n ", "\t"]
    for _ in range(4000):
        some = rng.choice((parts, rng.sample(parts, 4), rng.sample(parts, 9), list(".'$=):(3/0-_o ")))
        blanks = rng.choice((0, 0, 0.3))
        text = "".join(rng.choice(some) + (" " if rng.random() < blanks else "")
                       for _ in range(rng.choice((1, 2, 3, 5, 8, 20, 60))))
        assert words.split(tokenizer, text) == by_spacy(tokenizer, text), text


@pytest.mark.parametrize("n", [62, 63, 64, 65, 66, 130])
@pytest.mark.parametrize("form", [
    "{}", "a{}", "{}a", "({}", "{})", "=={}==", "a{}'s", "{}a{}", "({}a{})...", "5{}+", "don't{}", "{}:)", "US${}km."])
def test_words_are_spacy_s_where_the_ends_of_a_word_are_cut_off(n, form):
    tokenizer = words.english_tokenizer()
    for filler in (".", "=", "'", "☃", "x", ":)", "5km"):
        text = form.replace("{}", filler * n)
        assert words.split(tokenizer, text) == by_spacy(tokenizer, text), text


def test_the_time_of_a_long_word_grows_with_its_length(small_vocabulary, monkeypatch):
    """Counted, not timed: characters that the rules about signs look at, and pairs that are looked up."""
    class Counted:
        def __init__(self, search):
            self.search, self.n = search, 0

        def __call__(self, text):
            self.n += len(text)
            return self.search(text)

    class Ranks(dict):
        n = 0

        def __contains__(self, pair):
            self.n += 1
            return super().__contains__(pair)

    encoder, counts = TextEncoder(*small_vocabulary), {}
    encoder.bpe_ranks = Ranks(encoder.bpe_ranks)
    for length in (2000, 8000):
        words._Rules.of.cache_clear()
        rules = words._Rules.of(encoder.tokenizer)
        rules.prefix, rules.suffix, encoder.bpe_ranks.n = Counted(rules.prefix), Counted(rules.suffix), 0
        encoder.encode(["=" * length, "http://a.b/" + "☃)" * (length // 2), "newlow" * (length // 6)], verbose=False)
        counts[length] = rules.prefix.n + rules.suffix.n, encoder.bpe_ranks.n
    words._Rules.of.cache_clear()
    assert 0 < counts[2000][0] * 3 < counts[8000][0] < counts[2000][0] * 5
    assert 0 < counts[2000][1] * 3 < counts[8000][1] < counts[2000][1] * 5
