"""The two optimizers: OpenAI's modified Adam (GPT-1) and Adafactor as Mesh TensorFlow runs it (T5).

Both are written from the originals' arithmetic, because torch's own differ where it matters:
torch.optim.AdamW places epsilon after the bias correction and decays by the plain rate (its kernel
serves here with the correction switched off);
torch.optim.Adafactor factors the second moment of every matrix, however small.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from inspect import unwrap
from itertools import chain

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from formats.errors import BadInput, warn

__all__ = ["Adafactor", "OpenAIAdam", "SCHEDULES", "rsqrt_schedule", "warmup_constant", "warmup_cosine",
           "warmup_linear"]


def warmup_linear(x: float, warmup: float = 0.002) -> float:
    """Rate multiplier at x = t / t_total: up to 1 over the share `warmup`, then along 1 - x to 0.

    The rise is multiplied by 1 - x too, as in the original. From x = 1 on it is 0, where the
    original turns negative; warmup 0 means no warmup, where the original divides by zero.
    """
    if x >= 1:
        return 0.0
    return (x / warmup if x <= warmup and warmup > 0 else 1.0) * (1 - x)


def warmup_cosine(x: float, warmup: float = 0.002) -> float:
    """Rate multiplier at x = t / t_total: up to 1 over the share `warmup`, then (1 + cos(pi x)) / 2.

    From x = 1 on it is 0, where the original rises again.
    """
    if x >= 1:
        return 0.0
    return x / warmup if x <= warmup and warmup > 0 else 0.5 * (1 + math.cos(math.pi * x))


def warmup_constant(x: float, warmup: float = 0.002) -> float:
    """Rate multiplier at x = t / t_total: up to 1 over the share `warmup`, then 1 for ever."""
    return x / warmup if x <= warmup and warmup > 0 else 1.0


SCHEDULES = {
    "warmup_linear": warmup_linear,
    "warmup_cosine": warmup_cosine,
    "warmup_constant": warmup_constant,
}


def rsqrt_schedule(step: int, warmup: float = 10_000) -> float:
    """T5's pre-training rate at `step` (0 for the first): 1 / sqrt(max(step, warmup)) (T5 paper, 3.1.2)."""
    return 1 / math.sqrt(max(step, warmup))


def _fused_adamw_takes(*tensors):
    """True for contiguous float32 tensors on a CPU or CUDA: torch's kernel goes through memory from end to end."""
    return all(t.device.type in ("cpu", "cuda") and t.is_contiguous() and t.dtype == torch.float32 for t in tensors)


def _readable(norm):
    """A norm as a number; of a GPU's tensor the tensor, as to read it would wait for the GPU."""
    return norm.item() if norm.device.type == "cpu" else norm


def _at_least_one(x):
    return x.clamp(min=1.0) if torch.is_tensor(x) else max(x, 1.0)


def _require(name, value, low, high, open_at=()):
    """Raise BadInput unless value is a number from low to high, and none of those in open_at."""
    try:
        fits = low <= value <= high and value not in open_at
    except TypeError:
        fits = False
    if not fits:
        left_out = "".join(f", not {x}" for x in open_at)
        raise BadInput(f"{name} is {value!r}, allowed is a number from {low} to {high}{left_out}")


def _wide(dtype):
    """The type to compute in: float32 for half-precision parameters, otherwise their own."""
    return torch.promote_types(dtype, torch.float32)


def _is_shared_out(x):
    """Whether a tensor is a DTensor, whose rows torch.distributed.fsdp.fully_shard shares out among processes."""
    return hasattr(x, "to_local")


def _local(x):
    """What this process holds of a tensor: its rows where they are shared out, otherwise all of it."""
    return x.to_local() if _is_shared_out(x) else x


def _sum_of_all(x, p):
    """The sum of a plain tensor, in place, over the processes that share out the parameter p."""
    if _is_shared_out(p):
        torch.distributed.all_reduce(x, group=p.device_mesh.get_group())
    return x


class _PlainOptimizer(Optimizer):
    """What the two optimizers share.

    Parameters may be shared out by fully_shard: norms and means are then of the whole, and state is shared out too.

    It is torch's Optimizer without the decorator that keeps torch's compiler out of these methods: at the first call
    it imports the compiler, which takes 76 MB and 0.8 s. State is float32 for half-precision parameters, and stays so
    when it is loaded, where torch casts it to the parameter's type.
    """

    state_dict, zero_grad = map(unwrap, (Optimizer.state_dict, Optimizer.zero_grad))

    def add_param_group(self, param_group: dict) -> None:
        """As torch's. What the group sets for itself is checked as the arguments are.

        Raises:
            BadInput: a value out of range, or a complex parameter.
        """
        unwrap(Optimizer.add_param_group)(self, param_group)
        try:
            self._check_group(self.param_groups[-1])
            if any(p.is_complex() for p in self.param_groups[-1]["params"]):
                raise BadInput(f"{type(self).__name__}: a parameter is complex, expected real ones")
            laid_out = [p.placements for p in self.param_groups[-1]["params"] if _is_shared_out(p)]
            strange = next((at for at in laid_out if len(at) != 1 or not at[0].is_shard(0)), None)
            if strange is not None:
                raise BadInput(f"{type(self).__name__}: a parameter is shared out as {strange}, expected by its rows, "
                               "as fully_shard does over a mesh of one dimension")
        except BadInput:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict):
        """As torch's, but the state of half-precision parameters is float32, as it was saved."""
        unwrap(Optimizer.load_state_dict)(self, state_dict)
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(saved_ids, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if torch.is_tensor(value) and value.is_floating_point() and _wide(p.dtype) != p.dtype:
                    self.state[p][name] = value.to(p.device, _wide(p.dtype))

    def _gradients(self):
        """Return the gradients of all groups.

        Raises:
            BadInput: one is sparse.
        """
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for g in gradients:
            if g.layout != torch.strided:
                raise BadInput(f"{type(self).__name__}: a gradient of shape {list(g.shape)} is sparse, expected dense "
                               "ones; make the embedding with sparse=False")
        return gradients


class OpenAIAdam(_PlainOptimizer):
    """The modified Adam of the GPT-1 fine-tuning code (`adam` in its opt.py).

    With t = 1 at the first update, and g the gradients scaled so that their global norm over ALL
    parameters is at most max_grad_norm:
        rate = lr * sqrt(1 - b2^t) / (1 - b1^t) * schedule(t / t_total)
        m, v = running means of g and g^2
        p   -= rate * (m / (sqrt(v) + e) + l2 * p)
    The l2 term uses p from before the update, and only for parameters of more than one dimension
    unless vector_l2. For half-precision parameters m, v and the update are float32. Where the square of a gradient
    overflows, as that of 1e30 does, the step is 0: of the parameter, or with clipping of all.

    Args:
        params: parameters, or parameter groups; a group may set any of the other arguments for itself.
        lr: the peak rate.
        schedule: a name in SCHEDULES.
        warmup: share of t_total spent warming up, 0 to 1.
        t_total: number of updates planned.
        b1, b2, e: Adam's decay rates and epsilon.
        l2: weight decay.
        vector_l2: decay vectors (biases, gains) too.
        max_grad_norm: limit of the global gradient norm; no clipping where it is not above 0.
    Raises:
        BadInput: an argument out of range.
    """

    _said_the_end = False

    def __init__(self, params: Iterable, lr: float, schedule: str, warmup: float, t_total: int, b1: float = 0.9,
                 b2: float = 0.999, e: float = 1e-8, l2: float = 0, vector_l2: bool = False, max_grad_norm: float = -1,
                 **kwargs):
        if kwargs:
            raise BadInput(f"OpenAIAdam: unknown arguments {sorted(kwargs)}")
        super().__init__(params, dict(
            lr=lr, schedule=schedule, warmup=warmup, t_total=t_total, b1=b1, b2=b2, e=e, l2=l2,
            vector_l2=vector_l2, max_grad_norm=max_grad_norm, t=0))

    @staticmethod
    def _check_group(group):
        if group["schedule"] not in SCHEDULES:
            raise BadInput(f"schedule is {group['schedule']!r}, allowed are {', '.join(SCHEDULES)}")
        for name in ("lr", "e", "l2"):
            _require(name, group[name], 0, math.inf, open_at=(math.inf,))
        for name in ("b1", "b2"):
            _require(name, group[name], 0, 1, open_at=(1,))
        _require("warmup", group["warmup"], 0, 1)
        _require("t_total", group["t_total"], 1, math.inf)
        _require("max_grad_norm", group["max_grad_norm"], -math.inf, math.inf)

    def rates(self) -> list[float]:
        """Return the rate of the last update, of the first one before it: a list, one number for each group.

        That is lr * schedule(t / t_total), without Adam's bias correction.
        """
        return [self._rate(group) for group in self.param_groups]

    @staticmethod
    def _rate(group):
        schedule = SCHEDULES[group["schedule"]]
        return group["lr"] * schedule(max(group["t"], 1) / group["t_total"], group["warmup"])

    @staticmethod
    def new_state(p: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        """The state of a parameter before its first update."""
        return {name: torch.zeros_like(p, dtype=_wide(p.dtype)) for name in ("m", "v")}

    def _say_the_end(self):
        """Warn at the first step past the planned ones."""
        late = next((group for group in self.param_groups if group["t"] > group["t_total"]), None)
        if late is not None and not self._said_the_end:
            self._said_the_end = True
            warn(f"OpenAIAdam: update {late['t']} of the {late['t_total']} that t_total plans; by {late['schedule']} "
                 f"the rate is {self._rate(late):g} from here on")

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient. Where their norm exceeds max_grad_norm, gradients stay scaled.

        torch's fused AdamW goes through the memory once, one call for all parameters of one decay. Given an infinite
        step number its bias corrections are 1; here they are part of the rate, which scales the decay too.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads, norm = self._gradients(), None
        for group in self.param_groups:
            group["t"] += 1
            t, b1, b2, limit = group["t"], group["b1"], group["b2"], group["max_grad_norm"]
            rate = self._rate(group) * math.sqrt(1 - b2 ** t) / (1 - b1 ** t)
            excess = 1.0
            if limit > 0 and grads:
                norm = _readable(_total_norm(grads)) if norm is None else norm
                excess = _at_least_one(norm / limit)  # not a number stays it, for every parameter to show
            at_once = defaultdict(lambda: ([], [], [], []))  # decay, device -> parameters, gradients, means, squares
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(self.new_state(p, group))
                decay = group["l2"] if p.ndim > 1 or group["vector_l2"] else 0.0
                p, g, m, v = map(_local, (p, p.grad, state["m"], state["v"]))
                if _fused_adamw_takes(p, g, m, v):
                    for tensors, tensor in zip(at_once[decay, p.device], (p, g, m, v), strict=True):
                        tensors.append(tensor)
                    continue
                if torch.is_tensor(excess) or excess != 1:
                    g.div_(excess)
                g = g.to(m.dtype)
                m.mul_(b1).add_(g, alpha=1 - b1)
                v.mul_(b2).addcmul_(g, g, value=1 - b2)
                new = p.to(m.dtype).mul_(1 - rate * decay).addcdiv_(m, v.sqrt().add_(group["e"]), value=-rate)
                if new is not p:
                    p.copy_(new)
            for (decay, device), lists in at_once.items():
                step = torch.full((), math.inf, dtype=torch.float32, device=device)
                scale = None
                if torch.is_tensor(excess) or excess != 1:
                    scale = torch.as_tensor(excess, dtype=torch.float32, device=device)
                torch._fused_adamw_(*lists, [], [step] * len(lists[0]), lr=rate, beta1=b1, beta2=b2, eps=group["e"],
                                    weight_decay=decay, amsgrad=False, maximize=False, grad_scale=scale)
        self._say_the_end()
        return loss


def _total_norm(grads):
    """The norm of all gradients, those shared out and others."""
    others = [g for g in grads if not _is_shared_out(g)]
    shared_out = [g for g in grads if _is_shared_out(g)]
    if not shared_out:
        return get_total_norm(others)
    squares = _sum_of_all(get_total_norm(list(map(_local, shared_out))).square(), shared_out[0])
    return (squares + get_total_norm(others).square() if others else squares).sqrt()


class Adafactor(_PlainOptimizer):
    """Adafactor without momentum, as `mesh_tensorflow.optimize.AdafactorOptimizer` runs it for T5.

    With step counted from 0, d = 1 - (step + 1)^-0.8 and g2 = g^2 + epsilon1:
        a parameter is factored when its second largest dimension has min_dim_size_to_factor entries;
        factored:  vr, vc = running means (weight d) of g2 averaged over its largest and its second
                   largest dimension;  x = g / sqrt(vr / mean(vr)) / sqrt(vc)
        otherwise: v = running mean of g2;  x = g / sqrt(v)
        x /= max(1, rms(x) / clipping_threshold)
        p -= rate * max(rms(p), epsilon2) * x      (rms(p) from before the update)
    torch.optim.Adafactor factors every matrix whatever its size, which on small matrices moves the
    parameters by as much as the update itself; hence this one. (Shazeer and Stern 2018; T5 paper 3.1.2.)
    For half-precision parameters state and arithmetic are float32. Where the square of a gradient overflows, as that
    of 1e30 does, the means are infinite from then on and x is 0: by the formula, and for a factored parameter too,
    where the original gets inf / inf.

    Args:
        params: parameters, or parameter groups; a group may set any of the other arguments for itself.
        lr: the rate, or a function from the step (0 for the first update) to the rate. A group with an lr of its own,
            a number, keeps it.
        multiply_by_parameter_scale: multiply the update by max(rms(p), epsilon2).
        min_dim_size_to_factor, clipping_threshold, epsilon1, epsilon2: see above.
    Raises:
        BadInput: an argument out of range.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, multiply_by_parameter_scale: bool = True,
                 min_dim_size_to_factor: int = 128, clipping_threshold: float = 1.0, epsilon1: float = 1e-30,
                 epsilon2: float = 1e-3):
        # The function stays out of the groups, so that state_dict() holds plain numbers only.
        self.rate_at = lr if callable(lr) else None
        super().__init__(params, dict(
            lr=lr(0) if callable(lr) else lr, multiply_by_parameter_scale=multiply_by_parameter_scale,
            min_dim_size_to_factor=min_dim_size_to_factor, clipping_threshold=clipping_threshold,
            epsilon1=epsilon1, epsilon2=epsilon2, step=0))

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; see the class for a group's own lr."""
        super().add_param_group({"own_lr": "lr" in param_group, **param_group})

    @staticmethod
    def _check_group(group):
        for name in ("lr", "epsilon1", "epsilon2"):
            _require(name, group[name], 0, math.inf, open_at=(math.inf,))
        _require("clipping_threshold", group["clipping_threshold"], 0, math.inf, open_at=(0,))
        _require("min_dim_size_to_factor", group["min_dim_size_to_factor"], 1, math.inf)

    def __getstate__(self):
        return super().__getstate__() | {"rate_at": self.rate_at}  # a deep copy keeps its schedule

    def rates(self) -> list[float]:
        """Return the rate of the last update, of the first one before it: a list, one number for each group.

        That is `lr`, not yet multiplied by the parameter's scale.
        """
        return [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every parameter that has a gradient. Gradients are read, never changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._gradients()  # a sparse one is refused before anything changes
        for group in self.param_groups:
            if self.rate_at is not None and not group.get("own_lr"):  # which older checkpoints do not have
                rate = self.rate_at(group["step"])
                _require(f"lr at step {group['step']}", rate, 0, math.inf, open_at=(math.inf,))
                group["lr"] = rate
            decay = 1 - (group["step"] + 1) ** -0.8
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, self.state[p], group, decay)
        return loss

    @staticmethod
    def new_state(p: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        """The state of a parameter before its first update."""
        dims = _factored(p, group)
        return {"v": _zeros(p)} if dims is None else {"vr": _zeros(p, dims[0]), "vc": _zeros(p, dims[1])}

    @classmethod
    def _update(cls, p, state, group, decay):
        g = _local(p.grad).to(_wide(p.dtype))
        g2 = g.square()  # epsilon1 goes to its means: one walk less through a large tensor
        if not state:
            state.update(cls.new_state(p, group))
        dims = _factored(p, group)
        if dims is not None:
            vr, vc = _local(state["vr"]), _local(state["vc"])
            for v, dim in ((vr, dims[0]), (vc, dims[1])):
                v.mul_(decay).add_(_mean(g2, dim, p).add_(group["epsilon1"]), alpha=1 - decay)
            mean = _mean(vr, dims[1], p)
            x = torch.mul(g, (vr / mean).rsqrt().masked_fill(mean == math.inf, 0), out=g2).mul_(vc.rsqrt())
        else:
            g2.add_(group["epsilon1"])
            x = g * _local(state["v"]).mul_(decay).add_(g2, alpha=1 - decay).rsqrt()  # lerp_ would make infinity NaN
        rate = group["lr"]
        if group["multiply_by_parameter_scale"]:
            rate = rate * _rms(_local(p).to(g.dtype), p).clamp(min=group["epsilon2"])
        rate = rate / (_rms(x, p) / group["clipping_threshold"]).clamp(min=1.0)
        _local(p).addcmul_(x, rate, value=-1)  # in one walk


def _factored(p, group):
    """The largest and the second largest dimension of a parameter that Adafactor factors; None of the others."""
    by_size = sorted(range(p.ndim), key=lambda dim: -p.shape[dim])  # stable: ties keep their order
    return by_size[:2] if p.ndim >= 2 and p.shape[by_size[1]] >= group["min_dim_size_to_factor"] else None


def _zeros(p, without=None):
    """Zeros of a parameter's shape, with 1 in the place of the dimension `without`; its rows shared out as p's."""
    if without is None:
        return torch.zeros_like(p, dtype=_wide(p.dtype))
    shape = [1 if dim == without else n for dim, n in enumerate(p.shape)]
    if without == 0 or not _is_shared_out(p):
        return torch.zeros(shape, dtype=_wide(p.dtype), device=p.device)
    from torch.distributed.tensor import zeros  # imported by now: p is of its kind
    return zeros(shape, dtype=_wide(p.dtype), device_mesh=p.device_mesh, placements=p.placements)


def _mean(x, dim, p):
    """The mean along a dimension, which stays as 1, of a tensor whose rows are those of p in this process."""
    if dim != 0 or not _is_shared_out(p):
        return x.mean(dim, keepdim=True)
    return _sum_of_all(x.sum(0, keepdim=True), p).div_(p.shape[0])


def _rms(x, p):
    """The root of the mean square of a tensor whose rows are those of p here, without memory for the squares."""
    norm = torch.linalg.vector_norm(x)
    if _is_shared_out(p):
        norm = _sum_of_all(norm.square(), p).sqrt()
    return norm / math.sqrt(max(p.numel(), 1))
