"""Generation and perplexity with GPT: cached equals uncached, positions never appear, windows move on."""

import io
import math

import pytest
import torch
from conftest import write_small_vocabulary
from tokenizers import Tokenizer, models

import generate
import pretrain
from model_pytorch import LMModel, dotdict, export_openai_model
from t5_decoding import sample
from text_utils import TextEncoder
from utils import run_script

CONFIG = dict(n_embd=18, n_head=3, n_layer=2, afn="gelu", embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)


def model_of(n_vocab=93, n_ctx=16):
    torch.manual_seed(11)
    model = LMModel(dotdict(CONFIG), vocab=n_vocab + n_ctx, n_ctx=n_ctx).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p *= 8
    return model


@pytest.fixture
def folder(tmp_path):
    """A small model in the released format, with its vocabulary."""
    write_small_vocabulary(tmp_path)
    export_openai_model(model_of(), str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("settings", [{}, dict(temperature=0.7), dict(temperature=1.5, top_k=5),
                                      dict(temperature=1.0, top_p=0.6)])
@pytest.mark.parametrize("b, t", [(1, 1), (3, 5), (2, 16), (1, 40)])
def test_cached_equals_uncached_id_for_id(b, t, settings):
    model = model_of()
    ids = torch.randint(93, (b, t), generator=torch.Generator().manual_seed(2))
    runs = [generate.generate_gpt(model, ids, 23, **settings, cached=cached, generator=torch.Generator().manual_seed(3))
            for cached in (True, False)]
    assert torch.equal(*runs) and runs[0].shape == (b, 23) and runs[0].max() < 93
    assert runs[0].unique().numel() > 2


def test_every_module_keeps_its_mode_and_the_ids_are_ordinary():
    model, ids = model_of().train(), torch.randint(93, (2, 5))
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    new = generate.generate_gpt(model, ids, 4)
    assert [module.training for module in model.modules()] == modes and not new.is_inference()
    assert torch.equal(new, generate.generate_gpt(model_of(), ids, 4))  # and nothing was dropped
    model.loss(generate.with_positions(torch.cat([ids, new], 1), 0, 93)).backward()


def test_a_replaced_head_is_used_and_said(capsys):
    model, ids = model_of(), torch.randint(93, (2, 5))
    usual = generate.generate_gpt(model, ids, 4)
    head = torch.nn.Linear(18, 109, bias=False)
    torch.nn.init.zeros_(head.weight)
    model.lm_head.decoder = head
    new = generate.generate_gpt(model, ids, 4)
    assert not torch.equal(new, usual) and not new.any()  # all logits are equal: the first id wins
    assert "LMModel.lm_head.decoder has a weight of its own" in capsys.readouterr().err


def test_greedy_takes_the_most_probable_word(capsys):
    model = model_of()
    ids = torch.randint(93, (2, 3))
    new = generate.generate_gpt(model, ids, 4)
    for _ in range(4):
        x = generate.with_positions(ids, 0, 93)
        ids = torch.cat([ids, model(x)[:, -1:, :93].argmax(-1)], 1)
    assert torch.equal(new, ids[:, 3:])
    assert capsys.readouterr().err == ""


def test_position_rows_are_never_chosen():
    model = model_of()
    with torch.no_grad():
        model.transformer.embed.weight[93:] *= 100  # they would win everywhere
    new = generate.generate_gpt(model, torch.randint(93, (4, 2)), 10, temperature=1.0)
    assert new.max() < 93


def test_a_long_text_moves_the_window_with_one_notice(capsys):
    model = model_of()
    generate.generate_gpt(model, torch.randint(93, (1, 50)), 40)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "16" in err


@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 32, 50])
def test_perplexity_predicts_every_token_once(length):
    model = model_of()
    ids = torch.randint(93, (length,)).tolist()
    losses = []
    for start in range(0, length - 1, 15):
        window = torch.tensor([ids[start:start + 16]])
        logits = model(generate.with_positions(window, 0, 93))[0, :-1, :93]  # positions are no words
        losses += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
    assert len(losses) == length - 1
    assert generate.perplexity(model, ids) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_sampling_follows_its_options():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, 4)

    def shares(**settings):
        drawn = sample(logits, **settings, generator=torch.Generator().manual_seed(1))
        return torch.bincount(drawn, minlength=4) / 4000

    torch.testing.assert_close(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)
    assert shares(temperature=0).tolist() == [1, 0, 0, 0]
    assert (shares(top_k=2)[2:] == 0).all() and shares(top_k=2)[1] > 0.3
    assert (shares(top_p=0.6)[2:] == 0).all() and shares(top_p=0.6)[1] > 0.3
    assert shares(top_p=0.4).tolist() == [1, 0, 0, 0]
    assert shares(temperature=0.3)[0] > 0.8


def test_from_the_command_line(folder, capsys, monkeypatch):
    base = ["--model_dir", str(folder), "--n_head", "3", "--n_tokens", "7", "--device", "cpu"]
    generate.main([*base, "--prompt", "A new low"])
    text = capsys.readouterr().out
    assert text.startswith("a new low ") and text.count("\n") == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("a new low\nlow\n"))
    generate.main(base)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] + "\n" == text and lines[1].startswith("low ") and len(lines) == 2
    generate.main([*base, "--prompt", "low", "--temperature", "1", "--n_samples", "3"])
    assert len(set(capsys.readouterr().out.splitlines())) > 1
    (folder / "text.txt").write_text("A new low.\n\nLower, newer!\n")
    generate.main([*base, "--perplexity", str(folder / "text.txt")])
    assert "perplexity" in capsys.readouterr().out


def test_perplexity_reads_a_file_as_pre_training_does(folder, capsys, monkeypatch):
    text = folder / "text.txt"
    text.write_bytes("\ufeffA new low.\r\n\r\n  Lower, newer! \n".encode())
    seen = []
    monkeypatch.setattr(generate, "perplexity", lambda model, ids, plain: seen.append(ids) or 1.0)
    generate.main(["--model_dir", str(folder), "--n_head", "3", "--device", "cpu", "--perplexity", str(text)])
    encoder = TextEncoder.from_folder(str(folder))
    assert seen == [pretrain.encode_words(encoder, *pretrain.read_words([str(text)])).tolist()]
    newline = encoder.encoder["\n</w>"]
    assert seen[0].count(newline) == 2 and capsys.readouterr().out.startswith(f"{len(seen[0])} tokens")
    text.write_bytes(b"low \xff\n")
    assert run_script(generate.main, ["--model_dir", str(folder), "--n_head", "3", "--perplexity", str(text)]) == 2
    assert "text.txt: line 1 is not UTF-8 at byte 4" in capsys.readouterr().err


@pytest.mark.parametrize("form", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_a_vocabulary_in_the_hub_s_form(folder, capsys, form):
    base = ["--model_dir", str(folder), "--n_head", "3", "--n_tokens", "7", "--device", "cpu", "--prompt", "A new low"]
    generate.main(base)
    want = capsys.readouterr().out
    encoder = TextEncoder.from_folder(str(folder))
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe"):
        if len(form) == 2:
            (folder / name).rename(folder / form[name == "vocab_40000.bpe"])
        else:
            (folder / name).unlink()
    if len(form) == 1:
        Tokenizer(models.BPE(vocab=encoder.encoder, merges=list(encoder.bpe_ranks), unk_token="<unk>",
                             end_of_word_suffix="</w>")).save(str(folder / "tokenizer.json"))
    generate.main(base)
    assert capsys.readouterr().out == want


@pytest.mark.parametrize("wrong, message", [
    (["--n_tokens", "0"], "--n_tokens is 0"), (["--top_p", "0"], "--top_p"), (["--beams", "2"], "--model t5"),
    (["--n_samples", "2"], "--temperature"), (["--n_head", "5"], "18"), (["--prompt", " "], "empty"),
    (["--perplexity", "nowhere"], "nowhere: not found"), (["--model_dir", "nowhere"], "finetune-transformer-lm"),
    (["--model", "t5", "--model_dir", "nowhere"], "nowhere")])
def test_mistakes_get_one_line(folder, capfd, wrong, message):
    argv = ["--model_dir", str(folder), "--n_head", "3", "--prompt", "low", "--device", "cpu", *wrong]
    assert run_script(generate.main, argv) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and message in err
