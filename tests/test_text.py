"""The text encoder: exact on the original's 315 texts, and by a small vocabulary of our own."""

import json
import re

import ftfy
import numpy as np
import pytest
import torch

from formats import progress
from formats.errors import BadInput, MissingInput
from text_utils import TextEncoder, read_encoder, read_merges, text_standardize


@pytest.fixture(scope="module")
def texts(golden):
    return json.load(open(golden / "text" / "encode.json", encoding="utf-8"))


def test_standardize_equals_the_original(texts):
    for case in texts:
        assert text_standardize(ftfy.fix_text(case["text"])) == case["standardized"]


def test_words_equal_the_original(texts, small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)
    for case in texts:
        assert encoder.words(case["text"]) == [word.lower() for word in case["words"]]


def test_ids_equal_the_original(texts, openai_vocabulary):
    encoder = TextEncoder(openai_vocabulary / "encoder_bpe_40000.json", openai_vocabulary / "vocab_40000.bpe")
    assert len(texts) == 315
    ids = encoder.encode([case["text"] for case in texts], verbose=False)
    for case, got in zip(texts, ids, strict=True):
        assert got == case["ids"], case["text"]
        pieces = " ".join(encoder.bpe(word.lower()) for word in case["words"])
        assert pieces.split(" ") == case["tokens"] or not case["tokens"]


def test_bpe_merges_by_rank_everywhere_in_a_word(small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)  # merges: l o, lo w</w>, e r, n e, ne w
    assert encoder.bpe("low") == "low</w>"
    assert encoder.bpe("lower") == "lo w er </w>".replace("er </w>", "e r</w>")
    assert encoder.bpe("newnew") == "new ne w</w>"
    assert encoder.bpe("lolo") == "lo l o</w>"
    assert encoder.bpe("\n ") == "\n</w>"
    assert encoder.bpe("x") == "x</w>"


def test_encode_and_decode(small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)
    ids = encoder.encode(["Low new, low!", "", "   ", "☃ low"], verbose=False)
    assert [encoder.decoder[i] for i in ids[0]][:2] == ["low</w>", "ne"]
    assert ids[1] == ids[2] == []
    assert ids[3][0] == 0 and ids[3][1:] == [encoder.encoder["low</w>"]]  # unknown pieces are <unk>
    assert encoder.decode(ids[0]) == "low new , low !"
    encoder.encoder["_start_"] = len(encoder.encoder)
    assert encoder.decode([encoder.encoder["_start_"], *ids[0][:1]]) == "_start_ low"


def test_a_word_is_encoded_once(small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)
    calls, bpe = [], encoder.bpe
    encoder.bpe = lambda word: calls.append(word) or bpe(word)
    encoder.encode(["low new low", "new low"] * 3, verbose=False)
    assert sorted(calls) == ["low", "new"]


def test_a_progress_bar_unless_told_otherwise(small_vocabulary, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0)
    encoder = TextEncoder(*small_vocabulary)
    encoder.encode(["low"] * 5)
    assert "encode: 5 of 5 (100%)" in capsys.readouterr().err
    encoder.encode(["low"] * 5, verbose=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content, message", [
    (b"{", "not JSON"), (b"[1]", "list"), (b'{"a": "b"}', "whole number"), (b'{"a": true}', "whole number"),
    (b'{"a": 1}', "0 to 0"), (b"\xff\xfe", "UTF-8"), (b"version https://git-lfs", "LFS"), (b"{}", "non-empty"),
    (b"[" * 100000, "JSON")])
def test_a_damaged_vocabulary_gets_one_line(tmp_path, content, message):
    (tmp_path / "encoder.json").write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_encoder(str(tmp_path / "encoder.json"))
    assert "encoder.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"), (b"a b c\n", "line 1"),
    (b"#version: 0.2\na b\na\n", "line 3"),
    (b"#version: 0.2\na b c\n", "line 2"), (b"#version: 0.2\n\xff\n", "UTF-8"), (b"version https://git-lfs", "LFS"),
    (b"#version: 0.2\na b\n\nc d\n", "line 3")])
def test_damaged_merges_get_one_line(tmp_path, content, message):
    (tmp_path / "vocab.bpe").write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_merges(str(tmp_path / "vocab.bpe"))
    assert "vocab.bpe" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_merges_is_one_of_a_vocabulary_of_characters(tmp_path, small_vocabulary):
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    assert read_merges(str(tmp_path / "vocab.bpe")) == {}
    with pytest.raises(BadInput, match="0 merges do not make 5 pieces"):
        TextEncoder(small_vocabulary[0], str(tmp_path / "vocab.bpe"))


def test_a_missing_vocabulary_says_where_to_get_it(tmp_path):
    for read in (read_encoder, read_merges):
        with pytest.raises(MissingInput, match="finetune-transformer-lm"):
            read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", [
    "a" + " " * 300 + "b", "a \n \n\t\n b", "\n\n", " \u2028 \u00a0\nx", "x\r\ny", "a\u3000b"])
def test_blanks_become_what_the_original_s_two_patterns_make_of_them(text):
    want = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", " \n ", text)).strip()
    assert text_standardize(text) == want


# ---- from Python

@pytest.mark.parametrize("texts, answer", [
    ("cat", "encode takes a list of texts, but got str 'cat'"), (b"cat", "got bytes"), (None, "got NoneType"),
    (["a", None], r"texts\[1\] is NoneType 'None', expected a string"), ([float("nan")], r"texts\[0\] is float 'nan'"),
    (["a", "b", ["c"]], r"texts\[2\] is list"), ([b"a"], r"texts\[0\] is bytes")])
def test_what_is_no_list_of_texts_gets_one_line(small_vocabulary, texts, answer):
    with pytest.raises(BadInput, match=answer):
        TextEncoder(*small_vocabulary).encode(texts)


def test_any_iterable_of_texts_is_encoded(small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)
    want = encoder.encode(["low", "new"], verbose=False)
    for texts in (("low", "new"), np.array(["low", "new"]), iter(["low", "new"]), {"low": 1, "new": 2}.keys()):
        assert encoder.encode(texts, verbose=False) == want


@pytest.mark.parametrize("kind", [
    list, tuple, iter, np.array, torch.tensor, lambda ids: torch.tensor(ids, dtype=torch.int16), lambda ids:
    np.array(ids, dtype=np.uint8), lambda ids: [torch.tensor(i) for i in ids], lambda ids: list(np.array(ids))])
def test_any_sequence_of_ids_is_decoded(small_vocabulary, kind):
    encoder = TextEncoder(*small_vocabulary)
    ids = encoder.encode(["low newer"], verbose=False)[0]
    assert encoder.decode(kind(ids)) == "low newer"
    assert encoder.decode(kind([*ids, 99])) == "low newer <unk>"


@pytest.mark.parametrize("ids, answer", [
    ("low", "decode takes a list of token ids, but got str 'low'"), (5, "got int '5'"), (torch.tensor(5), "got Tensor"),
    ([-100, 5], r"ids\[0\] is -100, expected 0 or more"), (torch.tensor([5, -1]), r"ids\[1\] is -1"),
    ([1.0], r"ids\[0\] is float '1.0'"), ([[1, 2]], r"ids\[0\] is list"), (torch.ones(2, 2).long(), "one row"),
    (torch.ones(2), "float"), (["1"], "str")])
def test_what_are_no_ids_gets_one_line(small_vocabulary, ids, answer):
    with pytest.raises(BadInput, match=answer) as caught:
        TextEncoder(*small_vocabulary).decode(ids)
    assert "\n" not in str(caught.value)


def test_length_and_name(small_vocabulary):
    encoder = TextEncoder(*small_vocabulary)
    assert len(encoder) == 93 and repr(encoder) == "TextEncoder(93 tokens, 5 merges)"
    encoder.encoder["_start_"] = 93
    assert len(encoder) == 94


def test_a_long_text_is_named_before_it_is_encoded(small_vocabulary, monkeypatch):
    encoder, said = TextEncoder(*small_vocabulary), []

    class Bar(list):
        def set_postfix(self, **values):
            said.append(values)

    monkeypatch.setattr("formats.progress.bar", lambda texts, **_: Bar(texts))
    encoder.encode(["low", "low " * 25_000, "low"])
    assert said == [dict(text=1, characters=100_000)]
