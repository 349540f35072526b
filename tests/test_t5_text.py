"""T5's tokenizer: Google's ids and texts, by the released vocabulary and by small ones of our own."""

import base64
import hashlib
import json
import struct

import numpy as np
import pytest
import sentencepiece
import torch
from pretraining import stories
from t5_vocabularies import write_tokenizer

import text_utils
from formats.errors import BadInput, MissingInput
from pretrain_t5 import learn_vocabulary
from text_utils import SentencePieceEncoder
from utils import run_script

BLANK = "\u2581"  # begins a word
A = BLANK + "a"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("t5") / "spiece.model"
    file.write_bytes(learn_vocabulary(stories(200), 60))
    return file


@pytest.fixture(scope="module")
def encoder(path):
    return SentencePieceEncoder.from_folder(str(path.parent))


@pytest.fixture(scope="module")
def references(golden):
    return json.load(open(golden / "t5_text" / "encode.json", encoding="utf-8"))


# ---- Google's ids

def test_ids_and_texts_are_google_s(t5_vocabulary, references, tmp_path):
    texts, lists = references["encode"], references["encode"] + references["decode"]
    assert (len(texts), len(lists)) == (320, 380)
    for file in (t5_vocabulary, write_tokenizer(t5_vocabulary, tmp_path)):
        encoder = SentencePieceEncoder.from_folder(file.parent)
        assert (encoder.n_pieces, encoder.n_tokens, encoder.is_released) == (32000, 32100, True)
        for case, ids in zip(texts, encoder.encode([case["text"] for case in texts], verbose=False), strict=True):
            assert ids == case["ids"], case["text"]
        for case in lists:
            assert encoder.decode(case["ids"]) == case["decoded"], case["ids"]


def names(encoder, text):
    """The pieces of a text, a sentinel with its blank."""
    return [encoder.model.id_to_piece(i) for i in encoder.encode([text], verbose=False)[0]]


SENTINELS = [  # text, its pieces: "0" is a sentinel
    ("<extra_id_0>", ["0"]), ("a <extra_id_0>", [A, "0"]), ("a <extra_id_0> a", [A, "0", A]),
    ("<extra_id_0>.", ["0", "."]), ("<extra_id_0>a", ["0", "a"]), ("a  <extra_id_99>  a", [A, "99", A]),
    (" <extra_id_7>, <extra_id_8> ", ["7", ",", "8"]), ("<extra_id_1> <extra_id_1>", ["1", "1"]),
    ("\uff1cextra_id_0\uff1e", ["0"]), ("<extra_id_\u00b2>", ["2"]), ("a\u3000<extra_id_3>", [A, "3"])]


@pytest.mark.parametrize("text, pieces", SENTINELS)
def test_a_sentinel_takes_the_blank_in_front_and_nothing_behind(encoder, text, pieces):
    want = [f"{BLANK}<extra_id_{piece}>" if piece.isdigit() else piece for piece in pieces]
    assert names(encoder, text) == want


@pytest.mark.parametrize("text", [
    "a<extra_id_0>", "(<extra_id_5>)", "<extra_id_100>", "<extra_id_07>", "<EXTRA_ID_0>", "<extra_id_\u0663>",
    "<extra_id_> <extra_id_1", "<extra_id_-1>"])
def test_what_is_no_sentinel_is_text(encoder, text):
    assert max(encoder.encode([text], verbose=False)[0]) < encoder.n_pieces


def test_the_second_of_two_sentinels_without_a_blank_is_text(encoder):
    ids = encoder.encode(["<extra_id_0><extra_id_1>"], verbose=False)[0]
    assert ids[0] == encoder.sentinel(0) and max(ids[1:]) < encoder.n_pieces


def test_special_pieces_are_text(encoder):
    assert not {0, 1} & set(encoder.encode(["<pad> </s> <unk>"], verbose=False)[0])


def test_pieces_come_first_and_sentinels_count_down(encoder):
    assert (encoder.n_pieces, encoder.n_tokens, len(encoder)) == (60, 160, 160)
    assert [encoder.sentinel(i) for i in (0, 1, 99)] == [159, 158, 60]
    assert encoder.sentinels == list(range(159, 59, -1))
    assert repr(encoder) == "SentencePieceEncoder(160 tokens, 100 of them sentinels)"
    for number in (-1, 100):
        with pytest.raises(BadInput, match=f"sentinel {number} is asked for, allowed is 0 to 99"):
            encoder.sentinel(number)


def test_ids_are_the_library_s(encoder, path):
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = stories(5, 3)
    assert encoder.encode(texts) == [library.encode(text) for text in texts]
    assert (library.pad_id(), library.eos_id(), library.unk_id(), library.bos_id()) == (0, 1, 2, -1)


@pytest.mark.parametrize("text", [
    "", "Ann wanted a cake.", "<extra_id_0>", "Tom went <extra_id_0> the lake <extra_id_1> now.", "<extra_id_0>.",
    "<extra_id_3> happy <extra_id_2>", "a <extra_id_5> <extra_id_6> b"])
def test_text_comes_back(encoder, text):
    ids = encoder.encode([text], verbose=False)[0]
    assert encoder.decode(ids) == text
    for kind in (np.array, torch.tensor, tuple, iter):
        assert encoder.decode(kind([0, *ids, 0, 1, *ids])) == text  # padding vanishes, EOS ends


def test_rows_past_the_vocabulary_are_unknown(encoder):
    assert encoder.decode([160, 200]) == encoder.decode([2, 2]) == " \u2047  \u2047 "


@pytest.mark.parametrize("ids, answer", [
    ([5, -100], r"ids\[1\] is -100, expected 0 or more"), ("cat", "decode takes a list of token ids"),
    (torch.ones(2, 3).long(), r"ids\[0\] is list"), (np.ones(3), "float")])
def test_what_are_no_ids_gets_one_line(encoder, ids, answer):
    with pytest.raises(BadInput, match=answer):
        encoder.decode(ids)


@pytest.mark.parametrize("texts, answer", [
    ("cat", "encode takes a list of texts"), (["a", None], r"texts\[1\] is NoneType 'None', expected a string"),
    (["a", "b\udce9"], r"texts\[1\] is no Unicode text, it holds a lone surrogate: 'b\\udce9'")])
def test_what_is_no_text_gets_one_line(encoder, texts, answer):
    with pytest.raises(BadInput, match=answer):
        encoder.encode(texts)


def test_the_released_vocabulary_is_known_by_its_pieces(encoder, path, monkeypatch):
    assert not encoder.is_released
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    content = b"".join(library.id_to_piece(i).encode() + struct.pack("<f", library.get_score(i)) for i in range(60))
    monkeypatch.setattr(text_utils, "RELEASED_SHA256", hashlib.sha256(content).hexdigest())
    assert SentencePieceEncoder(str(path)).is_released


# ---- other vocabularies

def learn(folder, symbols=(), **options):
    """Write a spiece.model with pieces of its own for `symbols`; return its path."""
    with open(folder / "spiece.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(stories(200)), model_writer=f, minloglevel=2, pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, user_defined_symbols=list(symbols), **options)
    return folder / "spiece.model"


@pytest.mark.parametrize("blank", [BLANK, ""])
@pytest.mark.parametrize("form", ["spiece.model", "tokenizer.json"])
def test_a_vocabulary_with_sentinels_uses_its_own(tmp_path, blank, form):
    path = learn(tmp_path, [f"{blank}<extra_id_{i}>" for i in (2, 1, 0)], vocab_size=60)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    if form == "tokenizer.json":
        path = write_tokenizer(path, tmp_path, n_sentinels=0)
    encoder = SentencePieceEncoder(path)
    assert encoder.n_pieces == encoder.n_tokens == 60
    assert encoder.sentinels == [library.piece_to_id(f"{blank}<extra_id_{i}>") for i in range(3)] == [5, 4, 3]
    text = "a <extra_id_1>, <extra_id_0> cake <extra_id_3>"
    ids = encoder.encode([text], verbose=False)[0]
    assert ids == library.encode(text) and [i for i in ids if 3 <= i < 6] == [4, 5]
    assert encoder.decode(ids) == library.decode(ids)


def test_tokenizer_json_gives_the_ids_of_spiece_model(encoder, path, references, tmp_path):
    other = SentencePieceEncoder.from_folder(write_tokenizer(path, tmp_path).parent)
    assert (len(other), other.n_pieces, other.sentinels) == (len(encoder), encoder.n_pieces, encoder.sentinels)
    texts = [case["text"] for case in references["encode"]] + stories(50, 9)
    assert other.encode(texts, verbose=False) == encoder.encode(texts, verbose=False)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "spiece.model").write_bytes(other.data)  # what it would be copied as
    assert SentencePieceEncoder.from_folder(tmp_path / "more").encode(texts) == encoder.encode(texts)


def test_tokenizer_json_with_bytes_or_other_numbers_of_sentinels(tmp_path):
    path = learn(tmp_path, byte_fallback=True, vocab_size=310)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    encoder = SentencePieceEncoder(write_tokenizer(path, tmp_path, n_sentinels=7))
    assert len(encoder.sentinels) == 7 and encoder.n_tokens == 317 and encoder.sentinel(6) == 310
    text = "Ann ½ \u4e2d \U0001f642 <"
    assert encoder.encode([text]) == [library.encode(text)]
    assert encoder.decode(library.encode(text)) == library.decode(library.encode(text))


def test_a_tokenizer_without_rules_of_normalization(tmp_path):
    path = learn(tmp_path, vocab_size=60, normalization_rule_name="identity")
    encoder = SentencePieceEncoder(write_tokenizer(path, tmp_path))
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert encoder.encode(["\uff21nn\u00b2  a"]) == [library.encode("\uff21nn\u00b2  a")]


def no_metaspace(content):
    content["pre_tokenizer"] = {"type": "Whitespace"}


def no_prefix(content):
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "never", "split": True}


@pytest.mark.parametrize("change, answer", [
    (lambda c: c["model"].update(type="BPE"), "the model is 'BPE'"), (lambda c: c.pop("model"), "it has no 'model'"),
    (lambda c: c["model"].update(unk_id=0), "unknown piece '0'"), (no_metaspace, "the sign for a blank"),
    (no_prefix, "the sign for a blank"), (lambda c: c.update(pre_tokenizer=None), "the sign for a blank"),
    (lambda c: c.update(normalizer={"type": "Lowercase"}), "the normalizer 'Lowercase' is not supported"),
    (lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "x*"}), "is not base64"),
    (lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"ab").decode()}),
     "is no SentencePiece model"),
    (lambda c: c["model"].update(vocab=[["a"]]), "not enough values"),
    (lambda c: c["model"].update(vocab=[]), "is no "),
    (lambda c: c["model"]["vocab"].pop(0), "has pad, EOS, unknown ="),
    (lambda c: c["model"]["vocab"].append(["cake", "x"]), "could not convert string")])
def test_a_tokenizer_of_another_kind_gets_one_line(path, tmp_path, change, answer):
    file = write_tokenizer(path, tmp_path, change=change)
    with pytest.raises(BadInput, match=answer) as caught:
        SentencePieceEncoder.from_folder(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_gets_one_line(tmp_path):
    with pytest.raises(MissingInput, match=r"spiece\.model: vocabulary file not found; copy spiece\.model from"):
        SentencePieceEncoder.from_folder(str(tmp_path))


@pytest.mark.parametrize("content, answer", [
    (b"", "is no SentencePiece model"), (b"\x93NUMPY" * 9, "is no SentencePiece model"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")])
def test_another_file_gets_one_line(tmp_path, content, answer, capsys):
    (tmp_path / "spiece.model").write_bytes(content)
    assert run_script(lambda _: SentencePieceEncoder.from_folder(str(tmp_path))) == 2
    err = capsys.readouterr().err
    assert answer in err and err.count("\n") == 1


def test_a_model_with_other_special_pieces_gets_one_line(tmp_path):
    with open(tmp_path / "other.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(stories(50)), model_writer=f, vocab_size=50,
                                                 minloglevel=2)
    with pytest.raises(BadInput, match=r"has pad, EOS, unknown = \(-1, 2, 0\), expected \(0, 1, 2\)"):
        SentencePieceEncoder(str(tmp_path / "other.model"))


def test_random_damage_loads_or_gets_one_line(tmp_path, path):
    data, rng, refused = path.read_bytes(), np.random.default_rng(4), 0
    for i in range(60):
        damaged = bytearray(data)
        if i % 3 == 0:
            del damaged[rng.integers(len(data)):]
        else:
            start = rng.integers(len(data) - 8)
            damaged[start:start + i % 8 + 1] = rng.integers(256, size=i % 8 + 1, dtype=np.uint8).tobytes()
        (tmp_path / "spiece.model").write_bytes(damaged)
        try:
            encoder = SentencePieceEncoder.from_folder(str(tmp_path))
        except BadInput as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            encoder.decode(encoder.encode(["Zoë wanted a ½ cake <extra_id_1>"], verbose=False)[0])
    assert refused > 20
