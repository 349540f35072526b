"""Initial values that are not drawn where a file's values take their place.

    with InitialValues() as initial:
        model = T5(**config)                        # large matrices are neither drawn nor written: their memory is free
    report = load_t5_pretrained_model(model, path)
    initial.draw(parameters[name] for name in report["fresh"])

`filled` is all of that in one call. What the file lacks gets the very numbers that it always got: the random draws come
in the order in which the model was built, and those that nobody needs are passed over.
"""

from collections.abc import Callable, Iterable
from threading import get_ident

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["InitialValues", "filled"]

DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)  # what all of nn.init draws with
truncated = nn.init.trunc_normal_  # draws, looks at what it drew, and draws again: it has to be noted as a whole
BLOCK = 16  # the values that normal_ draws together on a CPU; a last block that is not full is drawn twice


class InitialValues(TorchDispatchMode):
    """A context that notes how tensors on the CPU would be drawn at random, and does it only for those asked for.

    A tensor that waits for its draws holds whatever was in its memory. What else is done to it in place is noted
    too; an operation that reads it draws all that waits first, as if there was no context.
    """

    def __init__(self):
        super().__init__()
        self._steps = []    # (operation, args, kwargs), in their order
        self._waiting = set()
        self._replaced = {}  # storage of a parameter: (it, the one of float32 that the steps write), see convert

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else the first use imports torch's compiler: a second, and 70 MB

    def __enter__(self):
        self._thread = get_ident()
        nn.init.trunc_normal_ = self._truncated
        return super().__enter__()

    def __exit__(self, *exception):
        nn.init.trunc_normal_ = truncated
        return super().__exit__(*exception)

    def _truncated(self, tensor, *args, **kwargs):
        """In the place of nn.init.trunc_normal_; other threads are not in this context."""
        if tensor.device.type != "cpu" or get_ident() != self._thread:
            return truncated(tensor, *args, **kwargs)
        return self._note(truncated, (tensor, *args), kwargs)

    def _note(self, func, args, kwargs):
        self._steps.append((func, args, kwargs))
        self._waiting.add(_storage(args[0]))
        return args[0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        starts = func in DRAWS and first.device.type == "cpu"
        goes_on = first is not None and _storage(first) in self._waiting and func._schema.name.endswith("_") \
            and not any(self.waits(value) for value in tree_leaves((args[1:], kwargs)))
        if starts or goes_on:
            return self._note(func, args, kwargs)
        if not func.is_view and any(self.waits(value) for value in tree_leaves((args, kwargs))):
            self.draw([step[1][0] for step in self._steps])
        return func(*args, **kwargs)

    def waits(self, value: object) -> bool:
        """Whether a value is a tensor that has no values yet."""
        return isinstance(value, torch.Tensor) and _storage(value) in self._waiting

    def convert(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Give a model parameters of a type, tied as before. What waits is not written, what does not is converted."""
        made = {}
        for module in model.modules():
            for name, old in list(module._parameters.items()):
                if old is None:
                    continue
                if old not in made:
                    new = torch.empty_like(old, dtype=dtype) if self.waits(old) else old.detach().to(dtype)
                    made[old] = nn.Parameter(new, old.requires_grad)
                    self._replaced[_storage(new)] = made[old], old
                setattr(module, name, made[old])  # an LSTM keeps a list of them besides

    @torch.no_grad()
    def draw(self, tensors: Iterable[torch.Tensor]) -> None:
        """Draw the values of some tensors from torch's global generator, and forget the others.

        Each gets what it would have got without this context. Without tensors nothing is drawn.
        """
        converted = [self._replaced[_storage(t)] if _storage(t) in self._replaced else (t, t) for t in tensors]
        wanted = {_storage(old) for _, old in converted}
        last = max((i for i, (_, args, _) in enumerate(self._steps) if _storage(args[0]) in wanted), default=-1)
        steps = self._steps[:last + 1]
        self._steps, self._replaced = [], {}
        self._waiting.clear()
        for func, args, kwargs in steps:
            if _storage(args[0]) in wanted:
                func(*args, **kwargs)
            elif func is truncated:
                func(torch.empty_like(args[0]), *args[1:], **kwargs)
            elif func in DRAWS:
                _pass_over(func, args[0], kwargs.get("generator"))
        for new, old in converted:
            if new is not old:
                new.copy_(old)


def filled(build: Callable[[], nn.Module], fill: Callable[[nn.Module], Iterable[str]],
           dtype: torch.dtype | None = None) -> nn.Module:
    """Return a model whose parameters a file fills.

    Args:
        build: returns the model. Its random values are drawn afterwards, and only where `fill` leaves them.
        fill: function of the model that writes parameters and returns the names of those that it did not write.
        dtype: of the parameters; None: as built. In bfloat16 the model takes half of the memory at all times.
    Raises:
        What `fill` raises.
    """
    with InitialValues() as initial:
        model = build()
    if dtype is not None:
        initial.convert(model, dtype)
    names = fill(model)
    parameters = dict(model.named_parameters())
    initial.draw([parameters[name] for name in names])
    return model


def _storage(tensor):
    """What tells the memory of a tensor, and of all views of it, from others."""
    return tensor.untyped_storage()._cdata


def _pass_over(func, tensor, generator):
    """Leave the generator as if `func` had drawn for a tensor, without writing the tensor."""
    n = tensor.numel()
    if n < BLOCK or not tensor.is_contiguous() or tensor.dtype != torch.float32:
        func(torch.empty_like(tensor), generator=generator)
        return
    if func is torch.ops.aten.normal_.default and n % BLOCK:
        n += BLOCK
    scratch = torch.empty(min(n, 1 << 16), dtype=torch.uint8)  # each of its bytes takes one draw, as each value did
    for start in range(0, n, len(scratch)):
        scratch[:n - start].random_(generator=generator)
