"""--plain of every script: the papers' text alone gives what the fast functions give."""

import pytest
from cloze_data import write_data_dir
from conftest import write_small_vocabulary
from pretraining import argv, stories, write_text

import fast.gpt
import fast.t5
import generate
import pretrain
import pretrain_t5
import train_t5
from t5_pytorch import T5, export_t5_model
from utils import read_log


@pytest.fixture
def fast_is_away(monkeypatch):
    """A function that makes every fast function an error."""
    def remove():
        for module, names in ((fast.gpt, ("losses", "task_logits", "lm_loss", "lm_word_loss", "hidden_states")),
                              (fast.t5, ("training_loss", "target_log_probs", "generate", "beam_search", "stack"))):
            for name in names:
                monkeypatch.setattr(module, name, None)
    return remove


def log_of(folder, desc):
    """The evaluations in a log, without times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_log(folder / "log" / f"{desc}.jsonl")[1:]]


def compare(folder):
    logs = log_of(folder, "fast"), log_of(folder, "plain")
    assert len(logs[0]) == len(logs[1]) == 2
    for ours, plain in zip(*logs, strict=True):
        costs = [name for name in plain if name.endswith("cost")]  # accuracies of 9 examples jump
        assert [ours[name] for name in costs] == pytest.approx([plain[name] for name in costs], rel=1e-3)


def test_pretraining_gpt(tmp_path, fast_is_away):
    settings = dict(text=write_text(tmp_path), n_merges=60, n_ctx=10, n_batch=16, n_iter=2, n_warmup=3, held_out=0.05,
                    n_embd=12, n_head=2, n_layer=2, lr=3e-3, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    pretrain.main(argv(tmp_path, settings | dict(desc="fast", model_dir=tmp_path / "a")))
    fast_is_away()
    pretrain.main(argv(tmp_path, settings | dict(desc="plain", model_dir=tmp_path / "b", plain=True)))
    compare(tmp_path)


T5_SIZES = dict(d_model=12, d_ff=20, n_head=2, d_kv=5, n_layer=2)


def test_pretraining_t5(tmp_path, fast_is_away):
    settings = dict(text=write_text(tmp_path), n_pieces=60, n_ctx=40, n_batch=8, n_iter=2, held_out=0.05, dropout=0,
                    n_warmup=10 ** 6, **T5_SIZES)  # at a larger rate Adafactor makes 0.3% out of rounding
    pretrain_t5.main(argv(tmp_path, settings | dict(desc="fast", model_dir=tmp_path / "a")))
    fast_is_away()
    pretrain_t5.main(argv(tmp_path, settings | dict(desc="plain", model_dir=tmp_path / "b", plain=True)))
    compare(tmp_path)


@pytest.fixture
def t5_folder(tmp_path):
    """A folder with a vocabulary and a small T5 in the Hub's layout."""
    folder = tmp_path / "t5"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(pretrain_t5.learn_vocabulary(stories(100), 60))
    export_t5_model(T5(dim=12, d_ff=20, enc_num_tokens=256, dec_num_tokens=256, enc_depth=2, dec_depth=2, enc_heads=2,
                       dec_heads=2, enc_dim_head=5, dec_dim_head=5), str(folder))
    return folder


def test_fine_tuning_t5(tmp_path, t5_folder, fast_is_away):
    settings = dict(data_dir=write_data_dir(tmp_path / "data"), model_dir=t5_folder, n_valid=9, n_batch=4, n_gpu=2,
                    n_iter=2, dropout=0, submit=True)
    train_t5.main(argv(tmp_path, settings | dict(desc="fast", submission_dir=tmp_path / "a")))
    fast_is_away()
    train_t5.main(argv(tmp_path, settings | dict(desc="plain", submission_dir=tmp_path / "b", plain=True)))
    compare(tmp_path)


def test_generating(tmp_path, t5_folder, fast_is_away, capsys):
    text = tmp_path / "text.txt"
    text.write_text("A new low.\n\nLower, newer!\n")
    write_small_vocabulary(tmp_path)
    cfg = generate.dotdict(n_embd=18, n_head=3, n_layer=2, afn="gelu", embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    pretrain.export_openai_model(generate.LMModel(cfg, vocab=93 + 16, n_ctx=16), str(tmp_path))
    gpt = ["--model_dir", str(tmp_path), "--n_head", "3", "--n_tokens", "20", "--device", "cpu"]
    t5 = ["--model", "t5", "--model_dir", str(t5_folder), "--n_tokens", "7", "--device", "cpu", "--prompt", "Ann and"]
    lines = []
    for plain in ([], ["--plain"]):
        if plain:
            fast_is_away()
        for words in ([*gpt, "--prompt", "A new low"], [*gpt, "--perplexity", str(text)], t5, [*t5, "--beams", "3"]):
            generate.main(words + plain)
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] and lines[0].count("\n") == 4
