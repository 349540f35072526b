"""Training from Python: what the scripts' main functions return, losses of arrays, layouts, what stays afterwards."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cloze_data import options, write_data_dir
from pretraining import argv, write_text
from small_gpt import HEADS, batch_for, small_model

import fast.gpt
import pretrain
import pretrain_t5
import train
import train_t5
from formats.errors import BadInput
from loss import double_head_loss
from tasks import layout
from utils import read_log


def test_fine_tuning_returns_accuracies_log_paths_and_the_best_model(tmp_path, small_vocabulary, capsys):
    data_dir = write_data_dir(tmp_path / "data")
    outcome = train.main(options(tmp_path, data_dir, small_vocabulary, submit=True, analysis=True))
    out = capsys.readouterr().out
    assert f"ROCStories Valid Accuracy: {outcome.accuracies['valid']:.2f}" in out
    assert f"ROCStories Test Accuracy:  {outcome.accuracies['test']:.2f}" in out
    lines = read_log(outcome.paths["log"])[1:]
    assert outcome.log.to_dict("records") == lines and outcome.log["va_acc"].max() == outcome.accuracies["valid"]
    assert all(os.path.isfile(path) for path in outcome.paths.values()) and set(outcome.paths) == {
        "log", "best", "checkpoint", "submission"}
    best = torch.load(outcome.paths["best"], weights_only=True)
    assert not outcome.model.training
    for name, value in outcome.model.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert outcome.encoder.encoder["_classify_"] == 95
    assert re.fullmatch(r"Outcome\(6 updates in 2 epochs, valid accuracy .* %, test accuracy .* %, .*\.jsonl\)",
                        repr(outcome)) and len(repr(outcome)) < 400
    again = train.main(options(tmp_path, data_dir, small_vocabulary))
    assert set(again.accuracies) == {"valid"} and "submission" not in again.paths
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1 and "of an earlier run called tiny; it is kept as" in said[0]


def test_pre_training_returns_the_model_that_it_wrote_and_t5_goes_on_from_it(tmp_path):
    text = write_text(tmp_path)
    outcome = pretrain.main(argv(tmp_path, dict(text=text, n_merges=60, n_ctx=10, n_batch=16, n_iter=1, n_warmup=1,
                                                held_out=0.05, n_embd=12, n_head=2, n_layer=2)))
    again = type(outcome.model).from_pretrained(outcome.paths["model_dir"])
    assert torch.equal(again.transformer.embed.weight, outcome.model.transformer.embed.weight)
    assert outcome.accuracies == {} and "va_ppl" in outcome.log and "va_ppl" in repr(outcome)
    folder = str(tmp_path / "t5")
    outcome = pretrain_t5.main(argv(tmp_path, dict(
        desc="t5", text=text, n_pieces=60, n_ctx=40, n_batch=8, n_iter=1, held_out=0.05, d_model=12, d_ff=20, n_head=2,
        d_kv=5, n_layer=2, model_dir=folder)))
    assert outcome.paths["model_dir"] == folder and outcome.encoder.n_tokens == outcome.encoder.n_pieces + 100
    outcome = train_t5.main(argv(tmp_path, dict(
        desc="tuned", data_dir=write_data_dir(tmp_path / "data"), model_dir=folder, n_valid=9, n_batch=4, n_gpu=2,
        n_iter=1, submit=True, submission_dir=tmp_path / "submission")))
    assert set(outcome.accuracies) == {"valid", "test"} and not outcome.model.training


@pytest.mark.parametrize("head", HEADS)
def test_losses_and_task_logits_of_every_head_take_arrays(head):
    model, (x, m, y) = small_model(head=head), batch_for(head)
    if head == "similarity":
        y = y.float()
    want = double_head_loss(*model(x), x, m, y, 0.5)
    for losses in (fast.gpt.losses(model, x.numpy(), m.numpy(), y.numpy(), 0.5),
                   double_head_loss(*model(x), x.numpy(), m.numpy(), y.numpy(), 0.5)):
        torch.testing.assert_close(losses[0], want[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(losses[1], want[1], atol=1e-5, rtol=1e-5)
    model.eval()
    with torch.no_grad():
        logits = model(x)[1]
        assert torch.equal(model.task_logits(x), logits)
    torch.testing.assert_close(fast.gpt.task_logits(model, x.numpy()), logits, atol=1e-5, rtol=1e-5)


def test_task_logits_do_not_compute_the_language_model(monkeypatch):
    model, (x, _, _) = small_model(), batch_for("multiple_choice")
    monkeypatch.setattr(model.lm_head, "forward", None)
    assert model.task_logits(x).shape == (5, 2)


def test_single_texts_are_laid_out_for_a_classifier():
    X, M = layout.transform_text([[5, 6, 7], [8]], n_vocab=50)
    assert X.shape == (2, 5, 2) and X.dtype == np.int32 and M.dtype == np.float32
    assert X[0, :, 0].tolist() == [50, 5, 6, 7, 52] and X[1, :, 0].tolist() == [50, 8, 52, 0, 0]
    assert (X[..., 1] == 53 + np.arange(5)).all() and M.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    X, M = layout.transform_text([[5, 6, 7], [8]], n_vocab=50, n_ctx=7, max_len=2)
    assert X[0, :, 0].tolist() == [50, 5, 6, 52, 0, 0, 0]
    with pytest.raises(BadInput, match=r"^X1\[1\] needs 5 positions .* n_ctx is 4; give max_len 2 "):
        layout.transform_text([[8], [5, 6, 7]], n_vocab=50, n_ctx=4)
    with pytest.raises(BadInput, match="^X1 holds no texts"):
        layout.transform_text([], n_vocab=50)
    assert train.transform_roc is layout.transform_roc and train.longest is layout.longest


MEMORY = """
import sys
import torch
sys.path[:0] = sys.argv[1:3]
from fast.memory import keep_freed_memory, lay_large_blocks_apart, usual_memory

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

def train():
    kept = []
    for _ in range(8):
        kept.append([torch.ones(1 << 18) for _ in range(16)])  # blocks of 1 MB
        kept.append([torch.ones(300)])
        keep_freed_memory()
    return kept[1::2]

torch.ones(1 << 18)
before = resident()
if sys.argv[3] == "undone":
    with usual_memory():
        lay_large_blocks_apart()
        small = train()
else:
    lay_large_blocks_apart()
    small = train()
blocks = [torch.ones(1 << 23) for _ in range(4)]
del blocks
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings are those of Linux")
def test_what_training_changes_for_the_process_is_undone(root):
    def stays(how):
        run = subprocess.run([sys.executable, "-c", MEMORY, str(root), str(root), how], capture_output=True, text=True,
                             timeout=300)
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    assert stays("undone") < 40 < 100 < stays("kept")  # MB
