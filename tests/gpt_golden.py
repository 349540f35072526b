"""Builds our model from a golden file of the original and speaks of variables by their TF names."""

import json

import numpy as np
import torch
from limits import agree

from model_pytorch import DoubleHeadModel, dotdict, tf_name


def no_dropout(**settings):
    """A configuration without dropout."""
    return dotdict(dict(afn="gelu", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, clf_pdrop=0.0) | settings)


def config_of(z):
    """The golden's settings as a dict."""
    return json.loads(str(z["config"]))


def model_of(z, prefix="param/"):
    """The model of a golden, its parameters taken from the arrays under `prefix`, dropout 0, in train mode."""
    c = config_of(z)
    cfg = no_dropout(n_embd=c["n_embd"], n_head=c["n_head"], n_layer=c["n_layer"], afn=c["afn"])
    rows = c["n_vocab"] + c["n_special"] + c["n_ctx"]
    model = DoubleHeadModel(cfg, c["clf_token"], "multiple_choice", vocab=rows, n_ctx=c["n_ctx"])
    with torch.no_grad():
        for name, p in variables(model).items():
            p.copy_(torch.from_numpy(z[prefix + name]).reshape(p.shape))  # clf/w is [n_embd, 1] there
    return model


def variables(model):
    """{TF name: parameter}, in the order in which the original creates them."""
    found = {tf_name(name): p for name, p in model.transformer.named_parameters()}
    found["model/clf/w:0"] = model.task_head.linear.weight
    found["model/clf/b:0"] = model.task_head.linear.bias
    return found


def batch_of(z, i=None):
    """X, M, Y of a golden as tensors (of minibatch i)."""
    return [torch.from_numpy(np.ascontiguousarray(z[k] if i is None else z[k][i])) for k in ("X", "M", "Y")]


def as_tf(value, like):
    """A tensor of ours in the shape of the TF array `like`."""
    return value.detach().reshape(like.shape).numpy()


def check_golden_gradients(model, z, prefix="grad/"):
    """Assert that the model's gradients are those of a golden, and so is their norm if it is there."""
    wanted = {name: z[prefix + name] for name in variables(model)}
    largest = max(np.abs(want).max() for want in wanted.values())
    for name, p in variables(model).items():
        agree(as_tf(p.grad, wanted[name]), wanted[name], 2e-5, floor=0.05 * largest, name=name)
    if "grad_global_norm" in z:
        norm = sum(p.grad.double().square().sum().item() for p in variables(model).values()) ** 0.5
        agree(norm, z["grad_global_norm"], 1e-5)
