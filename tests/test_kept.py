"""pretrain.py --keep_at: which parameters are kept, that a run that was stopped keeps the same, and reading them."""

import filecmp

import pytest
import torch
from pretraining import argv, stop_after, write_text

import opt
import pretrain
import pretrain_t5
from formats.errors import BadInput, MissingInput
from formats.files import load_tensors
from formats.gpt_files import read_pretrained
from training import kept

SMALL = dict(n_ctx=24, n_merges=60, n_chars=60, n_embd=12, n_head=2, n_layer=1, n_batch=8, n_iter=2, n_warmup=2,
             save_every=3, held_out=0.1)


def run(folder, **settings):
    folder.mkdir(exist_ok=True)
    text = write_text(folder)
    pretrain.main(argv(folder, SMALL | dict(text=text) | settings))
    return folder / "save" / "tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("kept"), keep_at=True)


def test_which_updates_are_kept():
    assert kept.updates_to_keep(None, 9) == set()
    assert kept.updates_to_keep([], 9) == {1, 2, 4, 8, 9}
    assert kept.updates_to_keep([], 8) == {1, 2, 4, 8}
    assert kept.updates_to_keep([5, 3, 5], 5) == {3, 5}
    with pytest.raises(BadInput, match="--keep_at has 6, but the run has only 5 updates"):
        kept.updates_to_keep([6], 5)


def test_powers_of_two_and_the_last_update_are_kept_without_the_optimizer(finished):
    files = kept.kept_files(str(finished))
    last = load_tensors(finished / "checkpoint")
    total = last["n_updates"]
    assert list(files) == sorted({2 ** i for i in range(10) if 2 ** i <= total} | {total}) and total > 4
    saved = load_tensors(files[total])
    assert set(saved) == {"n_updates", "options", "model"} and saved["n_updates"] == total
    assert all(torch.equal(saved["model"][name], value) for name, value in last["model"].items())
    assert not torch.equal(load_tensors(files[1])["model"]["transformer.embed.weight"],
                           saved["model"]["transformer.embed.weight"])


def test_a_kept_model_is_that_of_the_run(finished):
    total = max(kept.kept_files(str(finished)))
    model, encoder, options = kept.load_kept(kept.kept_files(str(finished))[total])
    released = read_pretrained(str(finished.parent.parent / "out"))
    assert (released.n_embd, released.n_ctx, released.n_vocab) == (12, 24, len(encoder)) and not model.training
    assert options["desc"] == "tiny" and model.transformer.n_ctx == 24


@pytest.mark.parametrize("architecture", ["transformer", "lstm"])
def test_a_run_that_was_stopped_keeps_the_same(tmp_path, monkeypatch, architecture):
    sizes = dict(architecture="lstm", n_unit=9, n_head=None, n_layer=None) if architecture == "lstm" else {}
    whole = run(tmp_path / "whole", keep_at=[2, 4, 5, 7], **sizes)
    with monkeypatch.context() as patch:
        stop_after(patch, opt.OpenAIAdam, 5)  # after update 5 was kept, the checkpoint being that of update 3
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", keep_at=[2, 4, 5, 7], **sizes)
    parts = run(tmp_path / "parts", keep_at=[2, 4, 5, 7], resume=True, **sizes)
    assert list(kept.kept_files(str(parts))) == [2, 4, 5, 7] == list(kept.kept_files(str(whole)))
    for n, path in kept.kept_files(str(whole)).items():
        one, other = load_tensors(path)["model"], load_tensors(kept.kept_files(str(parts))[n])["model"]
        assert all(torch.equal(value, other[name]) for name, value in one.items()), n
    assert type(kept.load_kept(path)[0].transformer.h[0]).__name__ == ("LSTM" if sizes else "Block")


def test_what_an_earlier_run_kept_is_moved_away(tmp_path):
    first = run(tmp_path, keep_at=[1, 6])
    filecmp.clear_cache()
    old = (first / "update_6").read_bytes()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    run(tmp_path, keep_at=[3], seed=1)
    assert list(kept.kept_files(str(first))) == [3]
    assert (first / "update_6.previous").read_bytes() == old


def test_init_from_takes_what_was_kept(finished, tmp_path):
    run(tmp_path, init_from=finished / "update_2", n_iter=1, keep_at=[1])
    assert list(kept.kept_files(str(tmp_path / "save" / "tiny"))) == [1]


@pytest.mark.parametrize(("asked", "message"), [([0], "--keep_at has 0, allowed is 1"),
                                                ([999], "--keep_at has 999, but the run has only")])
@pytest.mark.parametrize("script", [pretrain, pretrain_t5])
def test_updates_that_there_are_not_are_refused(tmp_path, script, asked, message):
    text = write_text(tmp_path)
    own = SMALL if script is pretrain else dict(n_pieces=60, n_ctx=20, n_batch=4, d_model=8, d_ff=8, n_head=2, d_kv=4,
                                                n_layer=1)
    with pytest.raises(BadInput, match=message):
        script.main(argv(tmp_path, own | dict(text=text, keep_at=asked)))
    assert not (tmp_path / "log").exists() and not (tmp_path / "out").exists()


def test_t5_keeps_too(tmp_path):
    text = write_text(tmp_path)
    pretrain_t5.main(argv(tmp_path, dict(n_pieces=60, n_ctx=20, n_batch=16, d_model=8, d_ff=8, n_head=2, d_kv=4,
                                         n_layer=1, text=text, keep_at=[2])))
    assert list(kept.kept_files(str(tmp_path / "save" / "tiny"))) == [2]
    with pytest.raises(BadInput, match="is not what pretrain.py --keep_at writes"):
        kept.load_kept(str(tmp_path / "save" / "tiny" / "update_2"))


def test_bad_files_are_refused_in_one_line(finished, tmp_path):
    for name in ("update_2", "encoder_bpe_40000.json", "vocab_40000.bpe"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    path = tmp_path / "update_2"
    merges = (tmp_path / "vocab_40000.bpe").read_text()
    (tmp_path / "vocab_40000.bpe").write_text(merges + "a b\n")
    with pytest.raises(BadInput, match="the vocabulary beside it is not that of its run"):
        kept.load_kept(str(path))
    (tmp_path / "vocab_40000.bpe").unlink()
    with pytest.raises(MissingInput, match="vocab_40000.bpe: not found"):
        kept.load_kept(str(path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="cannot be read"):
        kept.load_kept(str(path))
    path.unlink()
    with pytest.raises(MissingInput, match="update_2: not found"):
        kept.load_kept(str(path))
