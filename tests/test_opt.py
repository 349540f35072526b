"""The optimizers against the numbers of the originals."""

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from gpt_golden import as_tf, batch_of, check_golden_gradients, config_of, model_of, variables
from limits import agree

import fast.gpt
from formats.errors import BadInput
from loss import double_head_loss
from opt import SCHEDULES, Adafactor, OpenAIAdam, rsqrt_schedule

VARIANTS = ["warmup_linear_default", "warmup_linear_vector_l2", "warmup_linear_no_clip", "warmup_linear_no_l2",
            "warmup_cosine_default", "warmup_constant_default"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_adam_equals_the_original(golden, variant):
    z = np.load(golden / "gpt" / f"adam_{variant}.npz")
    c = json.loads(str(z["config"]))
    params = {name: torch.nn.Parameter(torch.from_numpy(z[f"init/{name}"])) for name in c["param_order"]}
    adam = OpenAIAdam(params.values(), lr=c["lr"], schedule=c["schedule"], warmup=c["warmup"],
                      t_total=c["n_updates_total"], b1=c["b1"], b2=c["b2"], e=c["e"], l2=c["l2"],
                      vector_l2=c["vector_l2"], max_grad_norm=c["max_grad_norm"])
    for step in range(c["n_updates_total"]):
        for name, p in params.items():
            p.grad = torch.from_numpy(z[f"grad/{name}"][step])
        adam.step()
        for name, p in params.items():
            agree(p, z[f"new/param/{name}"][step], 2e-5, floor=c["lr"], name=name)  # of the size of an update
            agree(adam.state[p]["m"], z[f"m/{name}"][step], 2e-6)
            agree(adam.state[p]["v"], z[f"v/{name}"][step], 2e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_the_original_up_to_the_end(golden, name):
    z = np.load(golden / "gpt" / f"adam_{name}_default.npz")
    for warmup in (0.2, 0.002):
        for x, want in zip(z["schedule_x"], z[f"schedule_mult_warmup{warmup}"], strict=True):
            got = SCHEDULES[name](x, warmup)
            if x < 1:
                assert got == pytest.approx(want, abs=1e-6)
            elif name == "warmup_constant":
                assert got == 1
            else:
                assert got == 0  # the original's turns negative or rises again: a defect
    assert SCHEDULES[name](0.0, 0) == 1  # no warmup; the original divides by zero


def plain_losses(model, x, m, y, lm_coef):
    return double_head_loss(*model(x), x, m, y, lm_coef)[:2]


@pytest.mark.parametrize("losses", [plain_losses, fast.gpt.losses])
def test_ten_training_steps_end_where_the_original_s_do(golden, losses):
    z, start = np.load(golden / "gpt" / "train_10steps.npz"), np.load(golden / "gpt" / "gpt_gelu.npz")
    model, c = model_of(start), config_of(z)
    for name, p in variables(model).items():
        np.testing.assert_array_equal(as_tf(p, z[f"init/{name}"]), z[f"init/{name}"])
    adam = OpenAIAdam(model.parameters(), lr=1e-3, schedule="warmup_linear", warmup=0.2, t_total=10, l2=0.01,
                      max_grad_norm=1)
    for step in range(10):
        x, m, y = batch_of(z, step)
        total, clf = losses(model, x, m, y, c["lm_coef"])
        agree(total, z["new/train_loss"][step], 2e-5)
        agree(clf, z["new/clf_losses"][step], 1e-4)
        adam.zero_grad()
        total.backward()
        adam.step()
    check_parameters(model, z, "new/final/")


def check_parameters(model, z, prefix):
    for name, p in variables(model).items():
        want = z[prefix + name]
        atol = np.full(want.shape, 5e-5)
        if name.endswith("attn/c_attn/b:0"):
            atol[len(want) // 3:2 * len(want) // 3] = 2e-3  # zero gradient: Adam blows rounding noise up
        elif name == "model/clf/b:0":
            atol[:] = 2e-3
        assert (np.abs(as_tf(p, want) - want) <= atol).all(), name


@pytest.mark.parametrize("losses", [plain_losses, fast.gpt.losses])
def test_two_towers_give_the_original_s_averaged_gradients(golden, losses):
    z, start = np.load(golden / "gpt" / "multi_gpu_part.npz"), np.load(golden / "gpt" / "gpt_gelu.npz")
    model = model_of(start)
    x, m, y = batch_of(z)
    adam = OpenAIAdam(model.parameters(), lr=1e-3, schedule="warmup_linear", warmup=0.2, t_total=10, l2=0.01,
                      max_grad_norm=1)
    c = config_of(z)
    adam.param_groups[0].update(lr=c["lr"], schedule=c["lr_schedule"], warmup=c["lr_warmup"],
                                t_total=c["n_updates_total"], l2=c["l2"], max_grad_norm=c["max_grad_norm"])
    for step in range(c["steps"]):
        adam.zero_grad()
        for rows in (slice(0, 4), slice(4, 8)):
            (losses(model, x[rows], m[rows], y[rows], c["lm_coef"])[0] / 2).backward()
        if step == 0:
            check_golden_gradients(model, z, "ngpu2/grad/")
            towers = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            losses(model, x, m, y, c["lm_coef"])[0].backward()  # one big batch
            for p, grad in zip(model.parameters(), towers, strict=True):
                torch.testing.assert_close(p.grad, grad, atol=1e-6, rtol=1e-4)
        adam.step()
    check_parameters(model, z, "ngpu2/new/final/")


def test_adam_resumes_from_its_state():
    torch.manual_seed(0)
    grads = torch.randn(6, 5, 3)

    def run(steps, p, adam):
        for g in steps:
            p.grad = g.clone()
            adam.step()
        return p

    def fresh(start):
        p = torch.nn.Parameter(start.clone())
        return p, OpenAIAdam([p], 0.1, "warmup_linear", 0.2, 6, l2=0.1, max_grad_norm=1)

    whole = run(grads, *fresh(torch.ones(5, 3)))
    p, adam = fresh(torch.ones(5, 3))
    run(grads[:3], p, adam)
    q, other = fresh(p.detach())
    other.load_state_dict(adam.state_dict())
    assert torch.equal(run(grads[3:], q, other), whole)


@pytest.mark.parametrize("max_grad_norm", [1, 1e4, 0])
def test_adam_s_fused_update_is_the_plain_one(monkeypatch, max_grad_norm):
    torch.manual_seed(0)
    start, grads = torch.randn(37, 71), torch.randn(4, 37, 71)
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone().t())  # not contiguous: the plain path
    r, fused, taken = torch.nn.Parameter(start.double()), torch._fused_adamw_, []

    def counted(parameters, *args, **kwargs):
        taken.extend(parameters)
        fused(parameters, *args, **kwargs)

    monkeypatch.setattr(torch, "_fused_adamw_", counted)
    for parameter, gradients in ((p, grads), (q, grads.mT), (r, grads.double())):
        adam = OpenAIAdam([parameter], 0.1, "warmup_linear", 0.4, 4, l2=0.1, e=1e-2, max_grad_norm=max_grad_norm)
        for g in gradients:
            parameter.grad = g.clone()
            adam.step()
    assert len(taken) == 4 and all(parameter is p for parameter in taken)
    torch.testing.assert_close(p, q.t(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(p.double(), r, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(p.grad, q.grad.t())
    assert p.grad.norm() == pytest.approx(1) if max_grad_norm == 1 else torch.equal(p.grad, grads[-1])
    assert not torch.allclose(p, start, atol=1e-3)


def test_a_gradient_that_is_no_number_shows_in_every_parameter():
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((5, 3), (7,))]
    for p, value in zip(parameters, (1.0, math.nan), strict=True):
        p.grad = torch.full_like(p, value)
    OpenAIAdam(parameters, 0.1, "warmup_linear", 0, 9, max_grad_norm=1).step()
    assert all(p.isnan().all() for p in parameters)


@pytest.mark.parametrize("make", ['OpenAIAdam([p], 0.1, "warmup_linear", 0.1, 9, max_grad_norm=1)', "Adafactor([p])"])
def test_optimizers_do_not_import_the_compiler(make):
    code = f"""
import sys, torch
from opt import Adafactor, OpenAIAdam
p = torch.nn.Parameter(torch.ones(3))
optimizer = {make}
p.sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert p.grad is None and (p < 1).all()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def adam(parameters, **changes):
    return OpenAIAdam(parameters, **dict(lr=0.1, schedule="warmup_linear", warmup=0.1, t_total=10) | changes)


MAKERS = [adam, Adafactor]


@pytest.mark.parametrize("make, wrong", [
    *((adam, w) for w in (dict(schedule="linear"), dict(warmup=1.5), dict(lr=-1), dict(lr=None), dict(lr=math.inf),
                          dict(lr=math.nan), dict(t_total=0), dict(b2=1), dict(l2="0.1"), dict(max_grad_norm=None),
                          dict(momentum=0.9))),
    *((Adafactor, w) for w in (dict(lr=None), dict(lr=-1), dict(lr=math.nan), dict(lr=lambda step: None),
                               dict(clipping_threshold=0), dict(epsilon2=-1), dict(min_dim_size_to_factor=0)))])
def test_wrong_arguments_are_named_at_construction(make, wrong):
    p = torch.nn.Parameter(torch.zeros(2))
    (name, value), = wrong.items()
    with pytest.raises(BadInput, match=name):
        make([p], **wrong)
    if name != "momentum" and not callable(value):
        with pytest.raises(BadInput, match=name):
            make([{"params": [p], **wrong}])
        optimizer = make([p])
        with pytest.raises(BadInput, match=name):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], **wrong})
        assert len(optimizer.param_groups) == 1


def test_a_schedule_that_ends_in_no_number_is_refused_before_the_step():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Adafactor([p], lr=lambda step: 0.1 if step == 0 else -0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    before = p.detach().clone()
    with pytest.raises(BadInput, match="lr at step 1 is -0.1"):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("make", MAKERS)
def test_sparse_gradients_and_complex_parameters_are_refused_before_anything_changes(make):
    p, embedding = torch.nn.Parameter(torch.ones(3)), torch.nn.Embedding(5, 3, sparse=True)
    optimizer = make([p, embedding.weight])
    (p.sum() + embedding(torch.tensor([1, 2])).sum()).backward()
    before = [x.detach().clone() for x in (p, embedding.weight)]
    with pytest.raises(BadInput, match=r"\[5, 3\] is sparse.*sparse=False"):
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip((p, embedding.weight), before, strict=True))
    with pytest.raises(BadInput, match="complex"):
        make([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(130, 129), (7,)])  # a factored one, and one that is not
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_state_of_every_precision_resumes_exactly(tmp_path, make, shape, dtype):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=g).to(dtype)
    grads = torch.randn(4, *shape, generator=g).to(dtype)

    def run(p, optimizer, grads):
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()

    def fresh(value):
        p = torch.nn.Parameter(value.clone())
        return p, make([p])

    whole, optimizer = fresh(start)
    run(whole, optimizer, grads)
    p, first = fresh(start)
    run(p, first, grads[:2])
    torch.save(first.state_dict(), tmp_path / "state")
    q, second = fresh(p.detach())
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in first.state[p].items():
        assert value.dtype == wide and torch.equal(second.state[q][name], value)
    run(q, second, grads[2:])
    assert torch.equal(q, whole) and not torch.equal(q, p)


def test_adafactor_resumes_float64_from_state_in_float32():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = Adafactor([p])
    p.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["v"] = saved["state"][0]["v"].float()
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state[p]["v"].dtype == torch.float64 and (p < 1).all()


def test_adam_of_half_precision_moves_as_that_of_float32():
    torch.manual_seed(0)
    start, grads = torch.randn(9, 5).bfloat16(), (torch.randn(300, 9, 5) * 1e-3).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        p = torch.nn.Parameter(start.to(dtype))
        optimizer = adam([p], t_total=1000, schedule="warmup_constant", lr=1e-9)
        for g in grads:
            p.grad = g.to(dtype)
            optimizer.step()
        ends.append(optimizer.state[p])
    for name in "mv":  # in bfloat16 the running mean of squares would stop at a fraction of its value
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(130, 129), (7,)])
@pytest.mark.parametrize("make", [adam, lambda p: adam(p, max_grad_norm=1), Adafactor])
def test_a_gradient_whose_square_overflows_moves_nothing(make, shape, dtype):
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = make([p])
    for value in (1e30, 1.0):
        p.grad = torch.full_like(p, value)
        optimizer.step()
        if value == 1e30:
            assert (p == 1).all()
    assert p.isfinite().all()


def test_one_entry_that_overflows_leaves_adafactor_s_parameter_finite():
    for at in ((0, 0), (129, 128), (5, 7)):
        p = torch.nn.Parameter(torch.ones(130, 129))
        optimizer = Adafactor([p])
        p.grad = torch.ones_like(p)
        p.grad[at] = 1e30
        optimizer.step()
        assert (p == 1).all()
        p.grad = torch.full_like(p, math.nan)  # but what is no number shows
        optimizer.step()
        assert p.isnan().all()


def test_a_group_s_own_rate_is_not_overwritten_by_a_schedule():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Adafactor([{"params": [p]}, {"params": [q], "lr": 0.0}], lr=lambda step: 0.1 / (step + 1))
    copied = copy.deepcopy(optimizer)  # with its schedule
    for o in (optimizer, copied):
        for group in o.param_groups:
            group["params"][0].grad = torch.ones(3)
        for step in (1, 2):
            o.step()
            assert o.rates() == [0.1 / step, 0.0]
        assert (o.param_groups[0]["params"][0] < 1).all() and (o.param_groups[1]["params"][0] == 1).all()
    other = Adafactor([{"params": [p]}, {"params": [q], "lr": 0.5}], lr=rsqrt_schedule)
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert other.rates() == [0.01, 0.0]
    optimizer = adam([{"params": [p]}, {"params": [q], "lr": 0.4}], lr=0.1)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    assert optimizer.rates() == pytest.approx([0.09, 0.36])


@pytest.mark.parametrize("name", SCHEDULES)
def test_adam_shows_its_rate_and_says_once_that_the_plan_is_over(capsys, name):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = adam([p], schedule=name, t_total=4, warmup=0.5)
    assert optimizer.rates() == [0.1 * SCHEDULES[name](0.25, 0.5)]
    for t in range(1, 8):
        p.grad = torch.ones(3)
        optimizer.step()
        assert optimizer.rates() == [0.1 * SCHEDULES[name](t / 4, 0.5)]
        assert bool(capsys.readouterr().err) == (t == 5)
    optimizer = adam([p], schedule=name, t_total=1)
    for _ in range(3):
        optimizer.step()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "update 2 of the 1" in err and name in err
    assert f"rate is {optimizer.rates()[0]:g}" in err


RUNS = {"finetune": {}, "pretrain": dict(lr=rsqrt_schedule),
        "pretrain_from_1000000": dict(lr=rsqrt_schedule), "min_dim_8": dict(min_dim_size_to_factor=8),
        "no_parameter_scale": dict(multiply_by_parameter_scale=False)}


@pytest.mark.parametrize("run", RUNS)
def test_adafactor_equals_the_original(golden, run):
    z = np.load(golden / "t5" / "adafactor_part.npz")
    names = sorted({key.split("/")[2] for key in z if key.startswith(f"{run}/step") and "_slot_" not in key})
    assert names
    params = {name: torch.nn.Parameter(torch.from_numpy(z[f"init/{name}"])) for name in names}
    adafactor = Adafactor(params.values(), **RUNS[run])
    if run == "pretrain_from_1000000":
        adafactor.param_groups[0]["step"] = 1_000_000
    compared = 0
    for step in range(1, 1 + max(int(k.split("/")[1][4:]) for k in z if k.startswith(f"{run}/step"))):
        for name, p in params.items():
            p.grad = torch.from_numpy(z[f"grad{step}/{name}"])
        adafactor.step()
        for name, p in params.items():
            for key, value in {"": p.detach(), **{f"_slot_{k}": v for k, v in adafactor.state[p].items()}}.items():
                if f"{run}/step{step}/{name}{key}" in z:
                    want = z[f"{run}/step{step}/{name}{key}"]
                    np.testing.assert_allclose(value.reshape(want.shape), want, atol=1e-6, rtol=1e-5, err_msg=key)
                    compared += 1
    slots = {name: sorted(k for k in z if k.startswith(f"{run}/step2/{name}_slot")) for name in names}
    assert compared >= len(names) * 2 and all(len(adafactor.state[p]) in (1, 2) for p in params.values()), slots


def test_adafactor_state_is_plain_numbers_and_resumes(tmp_path):
    p = torch.nn.Parameter(torch.ones(130, 129))
    a = Adafactor([p], lr=rsqrt_schedule)
    p.grad = torch.full_like(p, 0.5)
    a.step()
    torch.save(a.state_dict(), tmp_path / "state")
    q = torch.nn.Parameter(p.detach().clone())
    b = Adafactor([q], lr=rsqrt_schedule)
    b.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for parameter, optimizer in ((p, a), (q, b)):
        parameter.grad = torch.arange(130 * 129.).view(130, 129)
        optimizer.step()
    assert torch.equal(p, q) and b.param_groups[0]["step"] == 2
