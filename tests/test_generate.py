"""Generation and perplexity with GPT: cached equals uncached, positions never appear, windows move on."""

import io
import math
import re

import pytest
import torch
from conftest import write_small_vocabulary
from pretraining import stories

import generate
from formats.errors import BadInput
from model_pytorch import LMModel, dotdict, export_hub_model, export_openai_model
from pretrain_t5 import learn_vocabulary
from t5_decoding import sample
from t5_pytorch import T5, export_t5_model
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


@pytest.fixture
def t5_folder(tmp_path):
    """A small T5 in the Hub's layout, with its vocabulary."""
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(learn_vocabulary(stories(100), 60))
    torch.manual_seed(5)
    both = dict(num_tokens=256, depth=2, heads=2, dim_head=5)
    model = T5(dim=12, d_ff=20, **{f"{side}_{k}": v for side in ("enc", "dec") for k, v in both.items()})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "shared" not in name:
                p *= 3
        model.shared.weight[160:] = 0  # rows without a piece are never the most probable
    export_t5_model(model, str(tmp_path / "t5"))
    return tmp_path / "t5"


def of(folder, model, *words):
    """The command line of a small model."""
    where = ["--n_head", "3", "--model_dir", str(folder)] if model == "gpt" else ["--model_dir", str(folder / "t5")]
    return ["--model", model, "--device", "cpu", *where, *words]


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


@pytest.mark.parametrize("cached", [True, False])
def test_rows_without_end_or_beginning(cached):
    model = model_of()
    assert generate.generate_gpt(model, torch.zeros(0, 5, dtype=torch.int64), 4, cached=cached).shape == (0, 4)
    assert generate.generate_gpt(model, torch.zeros(0, 5, dtype=torch.int64), 4, 1.0, cached=cached).shape == (0, 4)
    with pytest.raises(BadInput, match="the prompt is empty"):
        generate.generate_gpt(model, torch.zeros(2, 0, dtype=torch.int64), 4, cached=cached)
    for wrong, message in ((dict(top_k=3), "top_k is 3, but at temperature 0"), (dict(top_p=0.5), "top_p is 0.5, but"),
                           (dict(temperature=-1.0), "temperature is -1.0"), (dict(temperature=1.0, top_p=0), "top_p")):
        with pytest.raises(BadInput, match=message):
            generate.generate_gpt(model, torch.zeros(2, 5, dtype=torch.int64), 4, cached=cached, **wrong)


@pytest.mark.parametrize("cached", [True, False])
def test_a_stop_ends_the_rows_when_all_have_ended(cached):
    model, ids, seen = model_of(), torch.tensor([[5, 6, 7], [8, 9, 10]]), []
    whole = generate.generate_gpt(model, ids, 40, cached=cached)
    assert whole[0, 0] != whole[1, 0]

    def stop(row):
        seen.append(len(row))
        return len(row) == (8 if row[0] == whole[0, 0] else 16)  # what is said once holds

    new = generate.generate_gpt(model, ids, 40, cached=cached, stop=stop)
    assert torch.equal(new, whole[:, :16]) and seen == [8, 8, 16, 16]
    assert torch.equal(generate.generate_gpt(model, ids, 11, cached=cached, stop=lambda row: False), whole[:, :11])


def test_position_rows_are_never_chosen():
    model = model_of()
    with torch.no_grad():
        model.transformer.embed.weight[93:] *= 100  # they would win everywhere
    new = generate.generate_gpt(model, torch.randint(93, (4, 2)), 10, temperature=1.0)
    assert new.max() < 93


def test_a_long_text_moves_the_window_with_one_notice(capsys):
    model = model_of()
    generate.warn_once.cache_clear()
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


def text_of(argv, capsys):
    generate.main([*argv, "--prompt", "A new low", "--n_tokens", "9", "--device", "cpu"])
    return capsys.readouterr().out


def test_heads_and_activation_come_from_config_json(tmp_path, capsys):
    torch.manual_seed(11)
    model = LMModel(dotdict(CONFIG | dict(n_head=6, afn="relu")), 93 + 16, 16).eval()
    model.load_state_dict(model_of().state_dict())
    paths = write_small_vocabulary(tmp_path)
    export_openai_model(model, str(tmp_path))
    export_hub_model(model, tmp_path / "hub", TextEncoder(*paths))
    usual = ["--model_dir", str(tmp_path)]
    told = text_of(usual, capsys)
    assert told == text_of([*usual, "--n_head", "6", "--afn", "relu"], capsys)
    assert told == text_of(["--model_dir", str(tmp_path / "hub")], capsys)
    for wrong, line in ((["--n_head", "3"], r"--n_head is 3, but the model in .* \(width 18\) has 6; give --n_head 6"),
                        (["--afn", "gelu"], "--afn is gelu, but the model in .* has relu; give --afn relu")):
        with pytest.raises(BadInput, match=line):
            text_of([*usual, *wrong], capsys)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadInput, match="has no config.json, and the weights do not tell .* give --n_head"):
        text_of(usual, capsys)
    assert told == text_of([*usual, "--n_head", "6", "--afn", "relu"], capsys)
    assert told != text_of([*usual, "--n_head", "3"], capsys)  # they matter


def test_a_repository_of_the_hub_is_as_good_as_a_folder(folder, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("generate.local_folder", lambda name: asked.append(name) or str(folder))
    told = text_of(["--model_dir", "somebody/their-gpt"], capsys)
    assert asked == ["somebody/their-gpt"] and told == text_of(["--model_dir", str(folder)], capsys)


PROMPTS = ["A new low", "low", "", "newer lower, new!", "low new", "A low", "lower"]


@pytest.mark.parametrize("plain", [[], ["--plain"]])
@pytest.mark.parametrize("model, options", [
    ("gpt", ["--n_batch", "2"]), ("gpt", ["--n_batch", "1"]), ("gpt", ["--stop", "x", "e"]), ("t5", ["--n_batch", "3"]),
    ("t5", []), ("t5", ["--prefix", "Ann went", "--stop", "zz", "Q"])])
def test_a_file_of_prompts_is_answered_line_by_line(folder, t5_folder, capsys, model, options, plain):
    (folder / "prompts.txt").write_bytes("\ufeff".encode() + "\r\n".join(PROMPTS).encode())
    base = of(folder, model, "--n_tokens", "12", *options, *plain)
    alone = []
    for prompt in PROMPTS:
        if prompt:
            generate.main([*base, "--prompt", prompt])
        alone.append(" ".join(capsys.readouterr().out.removesuffix("\n").split("\n")))
    generate.main([*base, "--prompts", str(folder / "prompts.txt"), "--out", str(folder / "new" / "out.txt")])
    assert capsys.readouterr().out == ""
    written = (folder / "new" / "out.txt").read_text()
    assert written == "".join(line + "\n" for line in alone) and len(set(alone)) > 2 and alone[2] == ""
    generate.main([*base, "--prompts", str(folder / "prompts.txt")])
    assert capsys.readouterr().out == written


def test_a_file_of_prompts_gets_its_samples_and_best_answers(folder, t5_folder, capsys):
    (folder / "prompts.txt").write_text("A new low\n\nlow\n")
    file = ["--prompts", str(folder / "prompts.txt")]
    generate.main(of(folder, "gpt", *file, "--n_samples", "3", "--temperature", "1", "--n_batch", "2"))
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 10 and len(set(lines)) == 7 and lines[3:6] == [""] * 3
    assert [line.startswith("a new low ") for line in lines[:3]] + [line.startswith("low ") for line in lines[6:9]]
    generate.main(of(folder, "t5", *file, "--n_best", "2", "--beams", "3", "--n_tokens", "5"))
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 7 and lines[2:4] == ["", ""]
    for one, two in (lines[:2], lines[4:6]):
        assert float(one.split("\t")[0]) != float(two.split("\t")[0]) and one.split("\t")[1] != two.split("\t")[1]


def test_batches_hold_each_prompt_once():
    prompts = [[0] * n for n in (3, 1, 4, 1, 5, 3, 3)]
    assert generate.batches_of(prompts, 2, equal=True) == [[4], [2], [0, 5], [6], [1, 3]]
    assert generate.batches_of(prompts, 3, equal=False) == [[4, 2, 0], [5, 6, 1], [3]]


def test_text_ends_before_the_first_stop(folder, t5_folder, capsys):
    def texts(model, *words):
        generate.main(of(folder, model, "--n_tokens", "24", *words))
        return capsys.readouterr().out.splitlines()

    for model, prompt, extra in (("gpt", "A new low", []), ("t5", "Ann wanted", ["--prefix", "Tom"]),
                                 ("t5", "Ann wanted", ["--beams", "2"])):
        whole, = texts(model, "--prompt", prompt, *extra)
        begin = len("a new low ") if model == "gpt" else len("Tom") * bool("--prefix" in extra)
        stop = whole[begin + 2:begin + 4].strip()
        cut, = texts(model, "--prompt", prompt, "--stop", "not there", stop, *extra)
        assert stop and cut == whole[:whole.index(stop, begin)].rstrip() != whole
        if begin:  # what was given is not searched
            assert texts(model, "--prompt", prompt, "--stop", whole[:begin].strip(), *extra) == [whole]


def test_stops_of_gpt_are_read_as_its_text_is_written(folder):
    args = generate.parse_args(of(folder, "gpt", "--stop", "Low, NEW.", "\n", "🙂"))
    assert generate.stop_texts(args, generate.load_gpt(str(folder), 3, "gelu", "cpu")[1]) == ["low , new .", "\n", "🙂"]


def test_answers_of_t5_with_prefix_and_scores(folder, t5_folder, capsys):
    def lines(*words):
        generate.main(of(folder, "t5", "--n_tokens", "6", "--prompt", "Ann wanted a kite.", *words))
        return capsys.readouterr().out.splitlines()

    for words in ([], ["--beams", "3"], ["--temperature", "1", "--n_samples", "2"]):
        answers = lines("--prefix", "So Tom went", *words)
        assert all(answer.startswith("So Tom went") for answer in answers) and len(answers) == 1 + ("1" in words)
    best, = lines("--beams", "4")
    several = [line.split("\t") for line in lines("--beams", "4", "--n_best", "3")]
    assert several[0][1] == best and len({text for _, text in several}) == 3
    assert all(float(score) < 0 for score, _ in several)


@pytest.mark.parametrize("wrong, message", [
    (["--prompts", "nowhere"], "nowhere: not found"), (["--prompts", "BLANK"], "blank.*nothing but blank lines"),
    (["--prompts", "LATIN"], "latin.*not UTF-8 at byte 3"), (["--out", "x"], "--out goes with --prompts"),
    (["--prompts", "GOOD", "--prompt", "low"], "give one of them"), (["--prompts", "GOOD", "--out", "GOOD"], "be lost"),
    (["--prompts", "GOOD", "--perplexity", "GOOD"], "give one of them"),
    (["--prompts", "GOOD", "--out", "GOOD/x"], "x"), (["--top_k", "3"], "--top_k.*--temperature"),
    (["--top_p", "0.5"], "--top_p.*--temperature"), (["--n_best", "2"], "--n_best is 2.*at most --beams, 1"),
    (["--n_best", "0"], "--n_best is 0"), (["--n_batch", "0"], "--n_batch is 0"), (["--prefix", "low"], "--model t5"),
    (["--stop", ""], "--stop is empty"),
    (["--model", "t5", "--model_dir", "T5", "--prompt", "Ann", "--beams", "2", "--alpha", "360"],
     "alpha is 360.*at most")])
def test_mistakes_about_files_and_answers_get_one_line(folder, t5_folder, capfd, wrong, message):
    for name, content in (("GOOD", b"low\n"), ("BLANK", b" \n\n"), ("LATIN", b"caf\xe9\n"), ("T5", None)):
        if content:
            (folder / name.lower()).write_bytes(content)
        wrong = [str(folder / word.lower()) if word.split("/")[0] == name else word for word in wrong]
    before = sorted(folder.iterdir())
    assert run_script(generate.main, of(folder, "gpt", *wrong)) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and re.search(message, err), err
    assert sorted(folder.iterdir()) == before and (folder / "good").read_bytes() == b"low\n"


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
