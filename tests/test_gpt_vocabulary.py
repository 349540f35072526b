"""Every form in which a byte-pair vocabulary is kept gives the same ids; what does not belong together is refused."""

import json
import shutil

import pytest
from conftest import write_small_vocabulary
from tokenizers import Tokenizer, models

from formats.errors import BadInput, MissingInput
from text_utils import TextEncoder, read_encoder, read_merges


@pytest.fixture(scope="module")
def texts(golden):
    return json.load(open(golden / "text" / "encode.json", encoding="utf-8"))


def as_hub(folder, target, version=True):
    """The two files under the Hub's names."""
    target.mkdir()
    shutil.copy(folder / "encoder_bpe_40000.json", target / "vocab.json")
    text = (folder / "vocab_40000.bpe").read_text(encoding="utf-8")
    (target / "merges.txt").write_text(text if version else text.split("\n", 1)[1], encoding="utf-8")
    return target


def as_tokenizer(folder, target, strings=False, **changes):
    """A tokenizer.json as the library tokenizers writes it; `strings`: with the older form of the merges."""
    target.mkdir()
    encoder, merges = (read_encoder(folder / "encoder_bpe_40000.json"), read_merges(folder / "vocab_40000.bpe"))
    tokenizer = Tokenizer(models.BPE(vocab=encoder, merges=list(merges), unk_token="<unk>", end_of_word_suffix="</w>"))
    content = json.loads(tokenizer.to_str())
    if strings:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= changes
    (target / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return target


def all_forms(folder, target):
    yield as_hub(folder, target / "hub")
    yield as_hub(folder, target / "older", version=False)
    yield as_tokenizer(folder, target / "one")
    yield as_tokenizer(folder, target / "strings", strings=True)


def test_every_form_gives_the_same_ids(openai_vocabulary, texts, tmp_path):
    for folder in (openai_vocabulary, *all_forms(openai_vocabulary, tmp_path)):
        encoder = TextEncoder.from_folder(folder)
        assert len(encoder) == 40478 and len(encoder.bpe_ranks) == 40000
        got = encoder.encode([case["text"] for case in texts], verbose=False)
        assert got == [case["ids"] for case in texts]


def test_every_form_of_a_small_vocabulary(tmp_path):
    (tmp_path / "openai").mkdir()
    paths = write_small_vocabulary(tmp_path / "openai")
    want = TextEncoder(*paths)
    for folder in (tmp_path / "openai", *all_forms(tmp_path / "openai", tmp_path)):
        got = TextEncoder.from_folder(str(folder))
        assert (got.encoder, got.bpe_ranks) == (want.encoder, want.bpe_ranks), folder
        assert got.encode(["New, lower"], verbose=False) == want.encode(["New, lower"], verbose=False)
    assert TextEncoder.from_folder(paths[0]).encoder == want.encoder  # a file in the folder


def test_openai_s_files_come_before_the_others(tmp_path):
    write_small_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    assert len(TextEncoder.from_folder(str(tmp_path))) == 93
    (tmp_path / "vocab_40000.bpe").unlink()
    with pytest.raises(BadInput, match="vocab.json"):
        TextEncoder.from_folder(str(tmp_path))


@pytest.mark.parametrize("left, answer", [
    ((), "encoder_bpe_40000.json: vocabulary file not found.*finetune-transformer-lm"),
    (("vocab_40000.bpe",), "encoder_bpe_40000.json: vocabulary file not found, but vocab_40000.bpe is there"),
    (("encoder_bpe_40000.json",), "vocab_40000.bpe: vocabulary file not found, but encoder_bpe_40000.json is there"),
    (("vocab.json",), "merges.txt: vocabulary file not found, but vocab.json is there"),
    (("merges.txt",), "vocab.json: vocabulary file not found, but merges.txt is there")])
def test_half_a_vocabulary_gets_one_line(tmp_path, left, answer):
    for name in left:
        (tmp_path / name).write_text("{}")
    with pytest.raises(MissingInput, match=answer):
        TextEncoder.from_folder(str(tmp_path))


def rewritten(folder, name, change):
    (folder / name).write_text(change((folder / name).read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("name, change, answer", [
    ("vocab_40000.bpe", lambda s: s.rsplit("\n", 2)[0] + "\n", "do not make 1 pieces of .*'new'"),
    ("vocab_40000.bpe", lambda s: s + "a b\n", "1 of its merges make no piece of .*'ab'"),
    ("encoder_bpe_40000.json", lambda s: s.replace('"er"', '"or"'), "1 of its merges make no piece of .*'er'"),
    ("encoder_bpe_40000.json", lambda s: s[:-1] + ', "thing": 93}', "do not make 1 pieces of .*'thing'"),
    ("encoder_bpe_40000.json", lambda s: s.replace("<unk>", "!!").replace('"!"', '"<unk>"').replace('"!!"', '"!"'),
     "the piece of id 0 is '!', expected '<unk>'")])
def test_merges_of_another_vocabulary_get_one_line(tmp_path, name, change, answer):
    paths = write_small_vocabulary(tmp_path)
    rewritten(tmp_path, name, change)
    with pytest.raises(BadInput, match=answer) as caught:
        TextEncoder(*paths)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_special_tokens_in_the_vocabulary_need_no_merge(tmp_path):
    paths = write_small_vocabulary(tmp_path)
    rewritten(tmp_path, "encoder_bpe_40000.json", lambda s: s[:-1] + ', "<pad>": 93, "_start_": 94, "[CLS]": 95}')
    encoder = TextEncoder(*paths)
    assert len(encoder) == 96 and encoder.decode([93, 94, 95, 1]) == "<pad>_start_[CLS]a"


def test_the_first_2000_merges_are_refused(openai_vocabulary, tmp_path):
    lines = (openai_vocabulary / "vocab_40000.bpe").read_text(encoding="utf-8").split("\n")
    (tmp_path / "vocab_40000.bpe").write_text("\n".join(lines[:2000]) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="its 1,999 merges do not make 38,001 pieces of"):
        TextEncoder(openai_vocabulary / "encoder_bpe_40000.json", tmp_path / "vocab_40000.bpe")


@pytest.mark.parametrize("changes, answer", [
    (dict(type="Unigram"), "the model's type is 'Unigram', expected 'BPE'"),
    (dict(end_of_word_suffix=None), "end_of_word_suffix is 'None', expected '</w>'"),
    (dict(continuing_subword_prefix="##"), "continuing_subword_prefix is '##'"),
    (dict(byte_fallback=True), "byte_fallback is 'True'"), (dict(ignore_merges=True), "ignore_merges is 'True'"),
    (dict(dropout=0.1), "dropout is '0.1'"), (dict(merges=None), "no list of merges"),
    (dict(merges=[["l", "o", "w"]]), "merge 1 is 'l o w'"), (dict(merges=[5]), "merge 1 is '5'"),
    (dict(vocab=[1]), "JSON list"), (dict(vocab={"<unk>": 0, "a": "1"}), "piece 'a' has id '1'")])
def test_a_tokenizer_of_another_kind_gets_one_line(tmp_path, changes, answer):
    (tmp_path / "openai").mkdir()
    write_small_vocabulary(tmp_path / "openai")
    folder = as_tokenizer(tmp_path / "openai", tmp_path / "one", **changes)
    with pytest.raises(BadInput, match=answer) as caught:
        TextEncoder.from_folder(str(folder))
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


def test_tokens_added_to_a_tokenizer_are_named(tmp_path, capsys):
    (tmp_path / "openai").mkdir()
    write_small_vocabulary(tmp_path / "openai")
    path = as_tokenizer(tmp_path / "openai", tmp_path / "one") / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [{"id": 0, "content": "<unk>"}, {"id": 93, "content": "<\nspeaker>"}]
    path.write_text(json.dumps(content))
    assert len(TextEncoder.from_folder(str(tmp_path / "one"))) == 93
    err = capsys.readouterr().err
    assert "adds 1 tokens" in err and "speaker" in err and err.count("\n") == 1
