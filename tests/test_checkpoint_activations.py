"""--checkpoint_activations: the same losses and gradients, dropout included, with less kept."""

import argparse

import pytest
import torch
from cloze_data import options, write_data_dir
from pretraining import T5_SIZES, argv, costs, same_parameters, write_text
from small_gpt import small_model as small_gpt
from small_gpt import story_batch
from small_t5 import VERSIONS, odd_batch
from small_t5 import small_model as small_t5

import fast.gpt
import fast.t5
import loss
import pretrain_t5
import train
from model_pytorch import LMModel
from t5_pytorch import PAD, shift_right
from training import loop
from training.precision import autocast, for_evaluation, one_update
from utils import run_script

CPU = torch.device("cpu")
DROPOUT = dict(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1, clf_pdrop=0.1)


def gpt_language_model():
    model = small_gpt(**DROPOUT, n_layer=3)
    language_model = LMModel(argparse.Namespace(n_embd=36, n_head=3, n_layer=3, afn="gelu", **DROPOUT), 123, 23)
    language_model.transformer.load_state_dict(model.transformer.state_dict())
    return language_model


def plain_t5(model, src, tgt, recompute):
    return loss.t5_loss(model(src, shift_right(tgt), src != PAD, tgt != PAD), tgt, 1e-4)


# name -> (model, batch of a seed, loss of a batch, whether it is the plain text)
CASES = {
    "gpt": (lambda: small_gpt(**DROPOUT, n_layer=3), story_batch,
            lambda model, x, m, y, recompute: fast.gpt.losses(model, x, m, y, 0.5, recompute)[0], False),
    "gpt, plain": (lambda: small_gpt(**DROPOUT, n_layer=3), story_batch,
                   lambda model, x, m, y, recompute: loss.double_head_loss(*model(x), x, m, y, 0.5)[0], True),
    "gpt, text": (gpt_language_model, lambda seed: [story_batch(seed)[0][:, 0]],
                  lambda model, x, recompute: fast.gpt.lm_loss(model, x, recompute), False),
    **{f"{name}{', plain' * plain}": (
        lambda changes=changes: small_t5(dropout=0.1, enc_depth=3, **changes), odd_batch,
        plain_t5 if plain else lambda model, src, tgt, recompute: fast.t5.training_loss(
            model, src, tgt, 1e-4, recompute=recompute), plain)
       for name, changes in VERSIONS.items() for plain in (False, True)}}


def gradients(name, recompute, precision):
    """Losses of two towers, the gradients of both, and the bytes that are kept from forward to backward."""
    make, batch, loss_of, plain = CASES[name]
    model, kept, losses = make().train(), [], []
    blocks = [model.transformer.h] if hasattr(model, "transformer") else [model.encoder.block, model.decoder.block]
    args = argparse.Namespace(compile=False, plain=plain, checkpoint_activations=recompute)
    loop.prepare_blocks(args, *blocks, dynamic=True)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in parameters:
            kept.append(x.numel() * x.element_size())
        return x

    with one_update(CPU):
        for tower in range(2):
            loop.seed_tower(3, 1, tower)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), autocast(CPU, precision):
                found = loss_of(model, *batch(tower), recompute)
            found.backward()
            losses.append(found.detach())
    return torch.stack(losses), {key: p.grad for key, p in model.named_parameters()}, sum(kept)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_same(name, precision):
    (losses, grads, kept), (ours, our_grads, our_kept) = (gradients(name, recompute, precision)
                                                          for recompute in (False, True))
    assert torch.equal(ours, losses) and losses[0] != losses[1]
    largest = max(g.abs().max() for g in grads.values())
    for key, g in grads.items():
        torch.testing.assert_close(our_grads[key], g, atol=1e-5 * largest.item(), rtol=0, msg=key)
    assert our_kept < 0.9 * kept


def test_a_copy_in_bfloat16_runs_its_own_weights():
    make, batch, _, _ = CASES["gpt, plain"]
    plain, model = make().eval(), make().eval()
    loop.prepare_blocks(argparse.Namespace(compile=False, plain=True, checkpoint_activations=True),
                        model.transformer.h, dynamic=True)
    x = batch(0)[0]
    short = for_evaluation(model, "bf16")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        assert torch.equal(short.task_logits(x), for_evaluation(plain, "bf16").task_logits(x))


@pytest.mark.parametrize("plain", [False, True])
def test_scripts_end_where_they_do_without(tmp_path, small_vocabulary, plain):
    data_dir, text = write_data_dir(tmp_path / "data"), write_text(tmp_path, 60)
    for desc, more in (("without", {}), ("with", dict(checkpoint_activations=True))):
        train.main(options(tmp_path, data_dir, small_vocabulary, desc=desc, plain=plain, n_iter=1, **more))
        settings = dict(text=text, n_pieces=60, n_ctx=12, n_batch=4, n_gpu=2, n_iter=1, n_warmup=10 ** 5, plain=plain)
        settings |= dict(desc=f"t5_{desc}", model_dir=tmp_path / desc)
        pretrain_t5.main(argv(tmp_path, settings | T5_SIZES | more))
    for kind in ("", "t5_"):
        assert costs(tmp_path, f"{kind}with")[-1] == pytest.approx(costs(tmp_path, f"{kind}without")[-1], abs=1e-5)
        same_parameters(*(tmp_path / "save" / f"{kind}{desc}" / "best_params" for desc in ("with", "without")), 1e-5)


def test_compiled_blocks_keep_everything(tmp_path, small_vocabulary, capsys):
    line = options(tmp_path, write_data_dir(tmp_path / "data"), small_vocabulary, compile=True,
                   checkpoint_activations=True)
    assert run_script(train.main, line) == 2
    assert "--checkpoint_activations and --compile do not go together" in capsys.readouterr().err
