"""The fast functions know what they do not know: a strange module gets the plain text and one line."""

import copy

import pytest
import torch
import torch.nn as nn
from small_gpt import enlarge, lm_batch, small_lm, small_model, story_batch
from small_t5 import near, odd_batch
from small_t5 import small_model as small_t5
from torch.nn.utils import parametrize

import fast.gpt
import fast.t5
import model_pytorch
import t5_decoding
import t5_pytorch
from fast import known
from formats.errors import warn_once
from loss import double_head_loss, t5_loss
from t5_pytorch import shift_right


@pytest.fixture(autouse=True)
def forget_lines():
    warn_once.cache_clear()


class TimesTwo(nn.Module):
    def forward(self, x):
        return 2 * x


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 1.5 * self.inner(x)


class OwnBlock(model_pytorch.Block):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnList(nn.ModuleList):
    pass


class OwnNorm(t5_pytorch.RMSNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def replace(owner, name, make):
    setattr(owner, name, make(getattr(owner, name)))


def own_forward(module):
    module.forward = lambda x, *args: 2 * type(module).forward(module, x, *args)


def own_class(module, kind):
    module.__class__ = kind


# name -> (what is done to a DoubleHeadModel, how the line begins)
GPT_STRANGERS = {
    "pre-hook": (lambda m: m.transformer.h[1].register_forward_pre_hook(lambda module, i: (i[0] * 3, *i[1:])),
                 "DoubleHeadModel.transformer.h.1 bears a hook"),
    "hook on a norm": (lambda m: m.transformer.h[0].ln_1.register_forward_hook(lambda module, i, o: 2 * o),
                       "DoubleHeadModel.transformer.h.0.ln_1 bears a hook"),
    "hook on embed": (lambda m: m.transformer.embed.register_forward_hook(lambda module, i, o: 2 * o),
                      "DoubleHeadModel.transformer.embed bears a hook"),
    "backward hook": (lambda m: m.transformer.h[0].mlp.register_full_backward_hook(lambda module, i, o: (2 * i[0],)),
                      "DoubleHeadModel.transformer.h.0.mlp bears a hook"),
    "subclass": (lambda m: own_class(m.transformer.h[1], OwnBlock), "DoubleHeadModel.transformer.h.1 is a OwnBlock"),
    "forward of its own": (lambda m: own_forward(m.transformer.h[0].mlp),
                           "DoubleHeadModel.transformer.h.0.mlp has a forward of its own"),
    "wrapped": (lambda m: replace(m.transformer.h[1].attn, "c_attn", Wrapped),
                "DoubleHeadModel.transformer.h.1.attn.c_attn is a Wrapped"),
    "replaced dropout": (lambda m: replace(m.transformer.h[1].mlp, "dropout", lambda old: TimesTwo()),
                         "DoubleHeadModel.transformer.h.1.mlp.dropout is a TimesTwo"),
    "activation": (lambda m: setattr(m.transformer.h[1].mlp, "act", torch.tanh),
                   "DoubleHeadModel.transformer.h.1.mlp has an activation of its own"),
    "activation module": (lambda m: setattr(m.transformer.h[1].mlp, "act", TimesTwo()), None),
    "parametrised": (lambda m: parametrize.register_parametrization(m.transformer.h[0].mlp.c_fc, "w", TimesTwo()),
                     "DoubleHeadModel.transformer.h.0.mlp.c_fc is a ParametrizedConv1D"),
    "untied": (lambda m: setattr(m.lm_head.decoder, "weight", nn.Parameter(m.lm_head.decoder.weight * 2)),
               "DoubleHeadModel.lm_head.decoder has a weight of its own"),
    "replaced head": (lambda m: replace(m.task_head, "linear", Wrapped),
                      "DoubleHeadModel.task_head.linear is a Wrapped"),
    "one more part": (lambda m: m.transformer.h[1].add_module("adapter", TimesTwo()),
                      "DoubleHeadModel.transformer.h.1.adapter is no part of a Block"),
    **{f"embedding with {option}": (lambda m, option=option, value=value: setattr(m.transformer.embed, option, value),
                                    "DoubleHeadModel.transformer.embed is an embedding with options")
       for option, value in dict(max_norm=1.0, padding_idx=2, sparse=True, scale_grad_by_freq=True).items()},
    "backward pre-hook": (lambda m: m.transformer.h[0].mlp.register_full_backward_pre_hook(
        lambda module, o: (2 * o[0],)),
                          "DoubleHeadModel.transformer.h.0.mlp bears a hook"),
    "another class's part": (lambda m: m.transformer.h.__setitem__(1, m.transformer.h[0].mlp),
                             "DoubleHeadModel.transformer.h.1 is a MLP"),
    "another list": (lambda m: own_class(m.transformer.h, OwnList), "DoubleHeadModel.transformer.h is a OwnList"),
    "compiled": (lambda m: m.transformer.h[0].compile(backend="eager"),
                 "DoubleHeadModel.transformer.h.0 is compiled"),
    "pooled of its own": (lambda m: setattr(m.task_head, "pooled", lambda h, x: h.mean(1).unflatten(0, x.shape[:-2])),
                          "DoubleHeadModel.task_head has a pooled of its own"),
    "draw_keep of its own": (lambda m: setattr(m.transformer, "draw_keep",
                                               lambda: torch.full_like(m.transformer.embed.weight, 0.7).detach()),
                             "DoubleHeadModel.transformer has a draw_keep of its own"),
    "all is dropped": (lambda m: setattr(m.transformer.h[1].attn.resid_dropout, "p", 1.0),
                       "DoubleHeadModel.transformer.h.1.attn.resid_dropout drops everything"),
    "half": (lambda m: m.half(), "the parameter DoubleHeadModel.transformer.embed.weight is float16"),
    "a tensor in place of a parameter": (
        lambda m: m.transformer.h[1].ln_2._parameters.update(g=m.transformer.h[1].ln_2.g.detach() * 2),
        "the parameter DoubleHeadModel.transformer.h.1.ln_2.g is a Tensor"),
}


@pytest.mark.parametrize("kind", GPT_STRANGERS)
def test_a_strange_gpt_gets_the_plain_text_and_one_line(kind, capsys):
    change, line = GPT_STRANGERS[kind]
    model = enlarge(small_model(), 4)
    x, m, y = story_batch(1)
    usual = fast.gpt.losses(model, x, m, y, 0.5)[0].item()
    assert capsys.readouterr().err == ""
    change(model)
    plain = double_head_loss(*copy.deepcopy(model)(x), x, m, y, 0.5)[0]
    model.zero_grad()
    loss, clf = fast.gpt.losses(model, x, m, y, 0.5)
    assert loss.item() == plain.item() and clf.shape == (5,)
    loss.backward()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the plain text runs" in err
    assert line is None or err.startswith(f"warning: {line}")
    if kind not in ("one more part", "compiled", "half", "another list") and "embedding" not in kind:
        assert abs(usual - loss.item()) > 1e-5 or kind.startswith("backward")
    model.eval()
    with torch.no_grad():
        assert torch.equal(fast.gpt.task_logits(model, x), model(x)[1])
    assert capsys.readouterr().err == ""  # said once


def gradient_of(model, function, name):
    model.zero_grad()
    function().backward()
    return dict(model.named_parameters())[name].grad


def test_the_report_s_hook_has_the_right_gradient():
    """The input of a block times 3, from outside: what c_attn gets is three times what the recomputed norm gives."""
    x = lm_batch()
    fast_model = enlarge(small_lm(), 4)
    plain_model = copy.deepcopy(fast_model)
    gradients = []
    for model, function in ((fast_model, lambda: fast.gpt.lm_loss(fast_model, x)),
                            (plain_model, lambda: plain_model.loss(x))):
        model.transformer.h[1].register_forward_pre_hook(lambda m, i: (i[0] * 3, *i[1:]))
        gradients.append(gradient_of(model, function, "transformer.h.1.attn.c_attn.w"))
    assert torch.equal(*gradients)


T5_STRANGERS = {
    "pre-hook": (lambda m: m.decoder.block[1].register_forward_pre_hook(lambda module, i: (i[0] * 3, *i[1:])),
                 "T5.decoder.block.1 bears a hook"),
    "hook": (lambda m: m.shared.register_forward_hook(lambda module, i, o: 2 * o), "T5.shared bears a hook"),
    "subclass": (lambda m: own_class(m.encoder.block[1].layer[1].layer_norm, OwnNorm),
                 "T5.encoder.block.1.layer.1.layer_norm is a OwnNorm"),
    "wrapped": (lambda m: replace(m.encoder.block[0].layer[0].SelfAttention, "q", Wrapped),
                "T5.encoder.block.0.layer.0.SelfAttention.q is a Wrapped"),
    "parametrised": (lambda m: parametrize.register_parametrization(
        m.decoder.block[0].layer[2].DenseReluDense.wo, "weight", TimesTwo()),
        "T5.decoder.block.0.layer.2.DenseReluDense.wo is a ParametrizedDense"),
    "forward of its own": (lambda m: own_forward(m.decoder.block[0].layer[1].EncDecAttention.v),
                           "T5.decoder.block.0.layer.1.EncDecAttention.v has a forward of its own"),
    "bias of its own": (lambda m: setattr(m.encoder.block[0].layer[0].SelfAttention, "compute_bias",
                                          lambda t, bidirectional: -torch.arange(t * t * 3.0).view(1, 3, t, t) / 50),
                        "T5.encoder.block.0.layer.0.SelfAttention has a compute_bias of its own"),
    "encode of its own": (lambda m: setattr(m, "encode", lambda *a: 2 * type(m).encode(m, *a)),
                          "T5 has a encode of its own"),
    "a decoder that sees the future": (lambda m: setattr(m.decoder, "is_decoder", False),
                                       "T5 has a stack that changed its is_decoder"),
}


@pytest.mark.parametrize("kind", T5_STRANGERS)
def test_a_strange_t5_gets_the_plain_text_and_one_line(kind, capsys):
    change, line = T5_STRANGERS[kind]
    model = small_t5()
    src, tgt = odd_batch()
    usual = fast.t5.training_loss(model, src, tgt, 1e-4).item()
    change(model)
    with torch.no_grad():
        plain = t5_loss(model(src, shift_right(tgt), src != 0, tgt != 0), tgt, 1e-4)
    loss = fast.t5.training_loss(model, src, tgt, 1e-4)
    assert near(loss.detach(), plain, 1e-6) and abs(loss.item() - usual) > 1e-5
    loss.backward()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"warning: {line}") and "the plain text runs" in err
    assert torch.equal(fast.t5.generate(model, src, src != 0, 6), t5_decoding.generate(model, src, src != 0, 6))
    assert torch.equal(fast.t5.beam_search(model, src, src != 0, 6), t5_decoding.beam_search(model, src, src != 0, 6))
    candidates = torch.tensor([[5, 6, 1], [7, 1, 0]])
    with torch.no_grad():
        assert fast.t5.target_log_probs(model, src, candidates).shape == (3, 2)
    assert capsys.readouterr().err == ""


def test_a_hook_on_all_modules_is_noticed(capsys):
    handle = nn.modules.module.register_module_forward_hook(lambda module, i, o: None)
    try:
        assert not known.knows(small_lm())
    finally:
        handle.remove()
    assert "a hook for all modules" in capsys.readouterr().err
    assert known.knows(small_lm())


def test_a_changed_forward_of_a_class_is_noticed(monkeypatch):
    monkeypatch.setattr(model_pytorch.MLP, "forward", lambda self, x: 2 * x)
    assert not known.knows(small_lm())


def test_a_changed_method_of_a_class_is_noticed(monkeypatch):
    monkeypatch.setattr(model_pytorch.MultipleChoiceHead, "pooled", lambda self, h, x: 2 * h.mean(1))
    assert not known.knows(small_model()) and known.knows(small_model(head="similarity"))
    monkeypatch.setattr(t5_pytorch.Attention, "compute_bias", lambda self, t, bidirectional: None)
    assert not known.knows(small_t5())


def test_an_activation_added_to_the_registry_is_noticed(monkeypatch):
    monkeypatch.setitem(model_pytorch.ACT_FNS, "own", torch.tanh)
    assert not known.knows(small_lm(afn="own"))


def test_float16_by_autocast_gets_the_plain_text(capsys):
    """The fast loss takes its gradients before a GradScaler can lift them into float16's range."""
    with torch.autocast("cpu", torch.float16):
        assert not known.knows(small_lm()) and not known.knows(small_t5())
    with torch.autocast("cpu", torch.bfloat16):
        assert known.knows(small_lm())
    assert "autocast is to float16" in capsys.readouterr().err


def test_transforms_of_torch_func_get_the_plain_text():
    lm, texts = small_lm(), lm_batch()
    every = torch.func.vmap(lambda x: fast.gpt.lm_loss(lm, x[None]))(texts)
    assert near(every, torch.stack([lm.loss(x[None]) for x in texts]), 1e-5)
    model, (x, m, y) = small_model(), story_batch(1)
    every = torch.func.vmap(lambda *part: fast.gpt.losses(model, *(t[None] for t in part), 0.5)[0])(x, m, y)
    assert near(every.mean(), double_head_loss(*model(x), x, m, y, 0.5)[0], 1e-5)
    t5, (src, tgt) = small_t5(), odd_batch()
    every = torch.func.vmap(lambda s, t: fast.t5.training_loss(t5, s[None], t[None]))(src, tgt)
    assert near(every.mean(), fast.t5.training_loss(t5, src, tgt), 1e-5)


def test_every_class_of_both_models_is_known():
    models = [small_lm(), small_t5(), small_t5(feed_forward="gated-gelu", tie_logits=False),
              small_t5(tie_token_emb=False), *(small_model(head=head) for head in (
                  "multiple_choice", "similarity", "inference", ("classification", 4)))]
    assert all(map(known.knows, models))
    used = {type(module) for model in models for module in model.modules()}
    assert used == {*known.CHILDREN, nn.ModuleList}


def test_a_wrapped_model_gets_the_plain_text():
    model = small_model()
    x, m, y = story_batch(1)
    loss, _ = fast.gpt.losses(nn.DataParallel(model), x, m, y, 0.5)
    assert torch.equal(loss, double_head_loss(*model(x), x, m, y, 0.5)[0])


def test_a_wrapped_language_model_gets_the_plain_text():
    model = small_lm()
    assert near(fast.gpt.lm_loss(nn.DataParallel(model), lm_batch()), model.loss(lm_batch()), 1e-6)
