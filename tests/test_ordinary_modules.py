"""Both models are ordinary torch modules: whatever people do to a module works on them, with right gradients."""

import copy
import io

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from small_gpt import enlarge, lm_batch, small_lm, small_model, story_batch
from small_t5 import VERSIONS, odd_batch
from small_t5 import small_model as small_t5
from torch.nn.utils import parametrize

import fast.gpt
import model_pytorch
import t5_pytorch
from formats.errors import BadInput, warn_once
from loss import double_head_loss, word_loss
from t5_pytorch import shift_right

KINDS = ["gpt", "gpt double", "t5_v1_0", "t5_v1_1"]
GPT_DROPOUT = dict(embd_pdrop=0.2, attn_pdrop=0.2, resid_pdrop=0.2, clf_pdrop=0.2)


class Case:
    """A model, its inputs, and a scalar made of its output."""

    def __init__(self, kind, dropout=False):
        self.kind = kind
        if kind == "gpt":
            self.model, self.inputs = enlarge(small_lm(**GPT_DROPOUT if dropout else {}), 4), (lm_batch(),)
        elif kind == "gpt double":
            self.model = enlarge(small_model(**GPT_DROPOUT if dropout else {}), 4)
            self.x, self.m, self.y = story_batch(1)
            self.inputs = (self.x,)
        else:
            src, tgt = odd_batch()
            self.model = small_t5(dropout=0.2 if dropout else 0.0, **VERSIONS[kind]).train()
            self.inputs = src, shift_right(tgt), src != 0, tgt != 0
            self.keep, self.tgt = tgt != 0, tgt

    def loss(self, model=None):
        output = (self.model if model is None else model)(*self.inputs)
        if self.kind == "gpt":
            return F.cross_entropy(output[:, :-1].flatten(0, 1), self.inputs[0][:, 1:, 0].flatten())
        if self.kind == "gpt double":
            return double_head_loss(*output, self.x, self.m, self.y, 0.5)[0]
        return F.cross_entropy(output[self.keep], self.tgt[self.keep])

    def gradients(self, model=None):
        model = self.model if model is None else model
        model.zero_grad()
        self.loss(model).backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    def block(self, i=1):
        return self.model.transformer.h[i] if self.kind.startswith("gpt") else self.model.decoder.block[i]

    def projection(self):
        """(the module that holds a projection, its name)"""
        if self.kind.startswith("gpt"):
            return self.model.transformer.h[1].attn, "c_attn"
        return self.model.encoder.block[1].layer[0].SelfAttention, "q"


@pytest.fixture(params=KINDS)
def case(request):
    return Case(request.param)


def same(a, b, limit=1e-5):
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= limit * max(y.abs().max().item(), 1e-4)


def numeric_slope(case, parameter, direction, step=1e-4):
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * step)
            values.append(case.loss().item())
            parameter.sub_(direction, alpha=sign * step)
    return (values[0] - values[1]) / (2 * step)


def weight_of(module):
    return next(p for p in module.parameters() if p.ndim == 2 and p.requires_grad)


def check_gradients(case):
    """The gradient of a block's first matrix, and of the embedding, against finite differences."""
    case.model.double()
    case.gradients()
    embedding = case.model.transformer.embed.weight if case.kind.startswith("gpt") else case.model.shared.weight
    for parameter in (weight_of(case.block(0)), weight_of(case.block(1)), embedding):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double() * 0.1
        slope = (parameter.grad * direction).sum().item()
        assert numeric_slope(case, parameter, direction) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_gradients_without_any_hook(case):
    check_gradients(case)


def test_a_hook_that_changes_a_block_s_input_has_right_gradients(case):
    plain = case.loss().item()
    case.block().register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3, *inputs[1:]))
    assert abs(case.loss().item() - plain) > 1e-4
    check_gradients(case)


def test_a_steering_vector_has_right_gradients(case):
    width = weight_of(case.block()).shape
    d = 36 if case.kind.startswith("gpt") else 20
    assert d in width
    vector = torch.randn(d).double()
    case.block().register_forward_hook(lambda module, inputs, output: output + vector.to(output.dtype))
    check_gradients(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_every_module_s_hooks_fire_once_a_call(kind):
    case = Case(kind, dropout=True)  # the embedding's dropout is called where it drops
    fired = {}
    names = {module: name for name, module in case.model.named_modules()}
    for module in names:
        fired[names[module]] = []
        for kind, register in (("pre", module.register_forward_pre_hook), ("forward", module.register_forward_hook)):
            register(lambda m, *a, kind=kind, name=names[module]: fired[name].append(kind))
        module.register_full_backward_hook(lambda m, *a, name=names[module]: fired[name].append("backward"))
    case.loss().backward()
    for name, module in case.model.named_modules():
        if isinstance(module, nn.ModuleList):
            continue
        calls = fired[name]
        expected = 2 if name.endswith(("shared", "encoder.dropout", "decoder.dropout")) else 1
        assert calls.count("pre") == calls.count("forward") == expected, (name, calls)
        assert calls.count("backward") <= expected, (name, calls)
    assert fired["transformer.embed" if case.kind.startswith("gpt") else "shared"]


def test_a_subclass_of_a_block_is_used(case):
    module = model_pytorch if case.kind.startswith("gpt") else t5_pytorch

    class Doubled(module.Block):
        def forward(self, x, *args):
            return 2 * super().forward(x, *args)

    plain = case.loss().item()
    case.block().__class__ = Doubled
    assert abs(case.loss().item() - plain) > 1e-4
    check_gradients(case)


class LoRA(nn.Module):
    """A wrapper f(x) as adapters have it."""

    def __init__(self, inner, n_in, n_out):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down, self.up = nn.Linear(n_in, 2, bias=False), nn.Linear(2, n_out, bias=False)

    def forward(self, x):
        return self.inner(x) + self.up(self.down(x))


def test_a_wrapped_sublayer_is_used(case):
    owner, name = case.projection()
    n_in, n_out = (36, 108) if name == "c_attn" else (20, 21)
    wrapped = LoRA(getattr(owner, name), n_in, n_out)
    plain = case.loss().item()
    setattr(owner, name, wrapped)
    assert abs(case.loss().item() - plain) > 1e-4
    case.gradients()
    assert wrapped.down.weight.grad.abs().max() > 0 and all(p.grad is None for p in wrapped.inner.parameters())
    check_gradients(case)


def test_a_wrapped_embedding_is_used():
    case = Case("gpt")
    want = case.loss().item()
    case.model.transformer.embed = nn.Sequential(case.model.transformer.embed)
    assert case.loss().item() == want
    case.model.transformer.embd_dropout.p = 0.2
    with pytest.raises(BadInput, match="embed is a Sequential without a weight"):
        case.loss()


@pytest.mark.parametrize("return_probs", [False, True])
def test_a_hook_on_the_model_changes_its_loss(return_probs):
    model, x = small_lm(), lm_batch()
    model.return_probs = return_probs
    want = model.loss(x).item()
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    changed = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:, 0].flatten()).item()
    assert model.loss(x).item() == pytest.approx(want if return_probs else changed, rel=1e-6)
    with torch.no_grad():
        word_losses = fast.gpt.lm_word_loss(model, x), word_loss(model(x), x, 97)
    assert return_probs or torch.equal(*word_losses)


class Passed(nn.Module):
    """A wrapper that changes nothing, as those of torch.compile and of checkpointing."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs)


@pytest.mark.parametrize("part", ["transformer", "lm_head.decoder", "transformer.h.1"])
def test_a_wrapper_that_keeps_the_embedding_s_dropout_from_the_softmax_is_told(part, capsys):
    warn_once.cache_clear()
    case = Case("gpt", dropout=True)
    torch.manual_seed(0)
    want = case.loss().item()
    owner, name = case.model.get_submodule(part.rpartition(".")[0]), part.rpartition(".")[2]
    setattr(owner, name, Passed(getattr(owner, name)))
    case.model.eval()
    case.loss()
    assert capsys.readouterr().err == ""
    case.model.train()
    torch.manual_seed(0)
    if part == "transformer.h.1":
        assert case.loss().item() == want and capsys.readouterr().err == ""
    else:
        assert case.loss().item() != want
        assert capsys.readouterr().err.startswith(f"warning: {part} is a Passed: the softmax takes the whole embedding")


def test_a_replaced_embedding_is_used(case):
    gpt = case.kind.startswith("gpt")
    owner, name = (case.model.transformer, "embed") if gpt else (case.model, "shared")
    old = getattr(owner, name)
    new = nn.Embedding(*old.weight.shape)
    with torch.no_grad():
        new.weight.normal_(std=0.1)
    plain = case.loss().item()
    setattr(owner, name, new)
    assert abs(case.loss().item() - plain) > 1e-4
    case.gradients()
    assert new.weight.grad.abs().max() > 0


def test_a_parametrisation_is_used(case):
    owner, name = case.projection()
    module = getattr(owner, name)
    plain = case.loss().item()

    class Symmetric(nn.Module):
        def forward(self, w):
            return w * 0.5

    parametrize.register_parametrization(module, "w" if name == "c_attn" else "weight", Symmetric())
    assert abs(case.loss().item() - plain) > 1e-5
    check_gradients(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["eval", "p"])
def test_a_change_of_mode_between_loss_and_backward_changes_nothing(kind, change):
    results = []
    for changed in (False, True):
        case = Case(kind, dropout=True)
        torch.manual_seed(1)
        value = case.loss()
        if changed and change == "eval":
            case.model.eval()
        elif changed:
            for module in case.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.9
        value.backward()
        results.append([p.grad for p in case.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind, count", [("gpt", 1 + 3 * 2), ("gpt double", 1 + 3 * 2 + 1),
                                         ("t5_v1_0", 2 + 4 * 2 + 6 * 3), ("t5_v1_1", 2 + 4 * 2 + 6 * 3)])
def test_every_dropout_is_a_module_that_asks_its_own_mode(kind, count):
    case = Case(kind, dropout=True)
    case.model.eval()
    still = case.loss().item()
    assert case.loss().item() == still
    dropouts = {name: module for name, module in case.model.named_modules() if isinstance(module, nn.Dropout)}
    assert len(dropouts) == count
    for name, module in dropouts.items():
        module.train()  # kept on at test time, alone
        torch.manual_seed(2)
        if name != "task_head.dropout" or case.kind == "gpt double":
            assert case.loss().item() != still, name
        module.eval()
    case.model.train()
    for module in case.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    assert case.loss().item() == pytest.approx(still, rel=1e-6)


def test_backward_twice_over_one_graph_doubles_the_gradients(case):
    once = case.gradients()
    case.model.zero_grad()
    value = case.loss()
    value.backward(retain_graph=True)
    value.backward()
    same([p.grad for p in case.model.parameters()], [2 * g for g in once])


def test_second_derivatives(case):
    case.model.double()
    parameter = weight_of(case.block())
    gradient, = torch.autograd.grad(case.loss(), parameter, create_graph=True)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double()
    product, = torch.autograd.grad((gradient * direction).sum(), parameter)
    shifted = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-5)
        shifted.append(torch.autograd.grad(case.loss(), parameter)[0])
        with torch.no_grad():
            parameter.sub_(direction, alpha=sign * 1e-5)
    numeric = (shifted[0] - shifted[1]) / 2e-5
    assert (product - numeric).abs().max() <= 1e-3 * numeric.abs().max()


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.05), (torch.float16, 0.02), (torch.float64, 1e-5)])
def test_other_types_train(case, dtype, limit):
    want, gradients = case.loss().item(), case.gradients()
    case.model.zero_grad()
    case.model.to(dtype)
    value = case.loss()
    assert value.item() == pytest.approx(want, rel=limit)
    value.backward()
    norms = [sum(g.double().square().sum() for g in found) ** 0.5
             for found in ([p.grad for p in case.model.parameters()], gradients)]
    assert all(p.grad.dtype == dtype for p in case.model.parameters()) and abs(norms[0] / norms[1] - 1) < 4 * limit


def test_the_meta_device(case):
    model = copy.deepcopy(case.model).to("meta")
    outputs = model(*(t.to("meta") for t in case.inputs))
    expected = case.model(*case.inputs)
    for found, want in zip(*((o if isinstance(o, tuple) else (o,)) for o in (outputs, expected)), strict=True):
        assert found.is_meta and found.shape == want.shape


def test_copies_pickles_and_saved_models_are_the_model(case):
    case.model.eval()
    want = case.loss().item()
    file = io.BytesIO()
    torch.save(case.model, file)
    file.seek(0)
    copies = [copy.deepcopy(case.model), torch.load(file, weights_only=False)]
    for model in copies:
        assert case.loss(model).item() == want
        if case.kind.startswith("gpt"):
            assert model.lm_head.decoder.weight is model.transformer.embed.weight  # tied still
        same(case.gradients(model), case.gradients())


def test_torch_func(case):
    parameters = {name: p.detach() for name, p in case.model.named_parameters()}

    def value(parameters):
        class Bound:
            def __call__(self, *inputs):
                return torch.func.functional_call(case.model, parameters, inputs)
        return case.loss(Bound())

    found = torch.func.grad(value)(parameters)
    case.gradients()
    same([found[name] for name, _ in case.model.named_parameters()], [p.grad for p in case.model.parameters()])


@pytest.mark.parametrize("kind", ["gpt", "t5_v1_0", "t5_v1_1"])
def test_gradients_of_every_example_by_vmap(kind):
    case = Case(kind)
    parameters = {name: p.detach() for name, p in case.model.named_parameters()}
    targets = case.inputs[0][..., 0] if kind == "gpt" else case.tgt

    def value(parameters, target, *inputs):
        logits = torch.func.functional_call(case.model, parameters, tuple(t[None] for t in inputs))[0]
        return F.cross_entropy(logits, target)

    every = torch.func.vmap(torch.func.grad(value), in_dims=(None, *[0] * (1 + len(case.inputs))))(
        parameters, targets, *case.inputs)
    for i in range(3):
        case.model.zero_grad()
        value(dict(case.model.named_parameters()), targets[i], *(t[i] for t in case.inputs)).backward()
        for name, p in case.model.named_parameters():
            assert (every[name][i] - p.grad).abs().max() <= 1e-5 * max(p.grad.abs().max().item(), 1e-3), name


def outputs_of(model, inputs):
    output = model(*inputs)
    return output if isinstance(output, tuple) else (output,)


def test_export(case):
    case.model.eval()
    program = torch.export.export(case.model, case.inputs)
    with torch.no_grad():
        same(outputs_of(program.module(), case.inputs), outputs_of(case.model, case.inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace(case):
    case.model.eval()
    with torch.no_grad():
        traced = torch.jit.trace(case.model, case.inputs)
        same(outputs_of(traced, case.inputs), outputs_of(case.model, case.inputs))


def test_compile(case):
    compiled = torch.compile(case.model, backend="eager", fullgraph=True)
    same(case.gradients(compiled), case.gradients())


def test_data_parallel(case):
    parallel = nn.DataParallel(case.model)
    same(case.gradients(parallel), case.gradients())
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    if case.kind.startswith("gpt"):
        model.load_state_dict(parallel.state_dict())  # with its prefix, as the 2018 port saved it
        assert case.loss(model).item() == pytest.approx(case.loss().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["gpt", "gpt double"])
@pytest.mark.parametrize("change", ["meta and to_empty", "assign", "to meta"])
def test_the_embedding_stays_the_logits_matrix(kind, change):
    model = Case(kind).model
    if change == "assign":
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    else:
        model = model.to("meta")
        model = model.to_empty(device="cpu") if change == "meta and to_empty" else model
    assert model.lm_head.decoder.weight is model.transformer.embed.weight
    model.lm_head.decoder.weight = nn.Parameter(model.transformer.embed.weight.detach().clone())  # untied on purpose
    model.double()
    assert model.lm_head.decoder.weight is not model.transformer.embed.weight
