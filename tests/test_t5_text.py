"""T5's tokenizer: SentencePiece pieces, then the sentinels."""

import hashlib

import numpy as np
import pytest
import sentencepiece
from pretraining import stories

import text_utils
from formats.errors import BadInput, MissingInput
from pretrain_t5 import learn_vocabulary
from text_utils import SentencePieceEncoder
from utils import run_script


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("t5") / "spiece.model"
    file.write_bytes(learn_vocabulary(stories(200), 60))
    return file


@pytest.fixture(scope="module")
def encoder(path):
    return SentencePieceEncoder.from_folder(str(path.parent))


def test_pieces_come_first_and_sentinels_count_down(encoder):
    assert (encoder.n_pieces, encoder.n_tokens) == (60, 160)
    assert [encoder.sentinel(i) for i in (0, 1, 99)] == [159, 158, 60]
    assert encoder.encode(["<extra_id_0><extra_id_7> <extra_id_99>"], verbose=False) == [[159, 152, 60]]
    assert encoder.decode([159, 152, 60]) == "<extra_id_0> <extra_id_7> <extra_id_99>"


def test_ids_are_the_library_s(encoder, path):
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = stories(5, 3)
    assert encoder.encode(texts) == [library.encode(text) for text in texts]
    assert (library.pad_id(), library.eos_id(), library.unk_id(), library.bos_id()) == (0, 1, 2, -1)


@pytest.mark.parametrize("text", [
    "", "Ann wanted a cake.", "<extra_id_0>", "Tom went <extra_id_0> the lake <extra_id_1> now.",
    "<extra_id_3> happy <extra_id_2>", "a <extra_id_5> <extra_id_6> b"])
def test_text_comes_back(encoder, text):
    ids = encoder.encode([text], verbose=False)[0]
    assert encoder.decode(ids) == text
    assert encoder.decode(np.array([*ids, 1, 0, 0])) == text


def test_what_is_no_sentinel_is_text(encoder):
    ids = encoder.encode(["<extra_id_100> <extra_id_> <extra_id_1"], verbose=False)[0]
    assert max(ids) < encoder.n_pieces


def test_rows_past_the_vocabulary_are_unknown(encoder):
    assert encoder.decode([160, 200]) == encoder.decode([2, 2]) != ""


def test_the_released_file_is_known_by_its_hash(encoder, path, monkeypatch):
    assert not encoder.is_released
    monkeypatch.setattr(text_utils, "RELEASED_SPIECE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert SentencePieceEncoder(str(path)).is_released


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
