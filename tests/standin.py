"""A stand-in for a GPU, to run what a GPU would run where there is none.

    with standin.installed() as gpu:        # or installed("mps"), installed("xpu")
        model.to("cuda")                    # says cuda:0, computes on the CPU
        gpu.waits                           # Counter: (operation, "file.py:function") -> how often the host waited

Its tensors are torch's meta tensors, each storage of which has a twin on the CPU. A dispatch mode finds the twins, runs
the operation on them and answers with meta tensors again; views, parameters and what autograd keeps share a storage, so
they share its twin. As on CUDA, an operation on tensors of both sides is refused (numbers of no dimension excepted);
random numbers come from a state of their own, and whoever asks for a value waits, as does a copy that is not of
pinned memory. Autocast is imitated for the functions below. Not imitated is what a GPU's kernels compute: nothing here
tells their rounding, speed or memory.
"""

import collections
import contextlib
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ROOT = Path(__file__).resolve().parent.parent
INDEXING = {"index", "index_put_", "_index_put_impl_"}
TAKES_BOTH = {"copy_", "_to_copy"} | INDEXING  # operations that may be given the CPU's tensors too
# What reads a value to know how to go on, and how often: multinomial looks for wrong and for impossible weights
WAITS = {"_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "equal": 1, "multinomial": 2, "_unique2": 1,
         "repeat_interleave": 1}
TO_SHORT = {F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm, torch.mm, torch.bmm,
            F.scaled_dot_product_attention}
TO_FLOAT = {F.layer_norm, F.softmax, F.log_softmax, torch.softmax, torch.Tensor.softmax, torch.Tensor.log_softmax,
            F.cross_entropy, F.nll_loss, torch.Tensor.sum, torch.Tensor.cumsum, torch.Tensor.pow, torch.Tensor.exp}


class StandIn(TorchDispatchMode):
    """The device while it is installed; see the top of this file.

    Attributes:
        device: what its tensors say.
        waits: Counter of (operation, place) at which the host waited.
        copies: how often something was copied to it without waiting.
        calls: Counter of the names of the operations.
    """

    def __init__(self, kind):
        super().__init__()
        self.device = torch.device(kind, 0)
        self.waits, self.calls, self.copies = collections.Counter(), collections.Counter(), 0
        self.twins, self.shells = {}, {}  # address of a storage -> (weak reference, storage of the other side)
        self.state = torch.Generator().manual_seed(9).get_state()

    def forget(self):
        """Start counting anew."""
        self.waits.clear(), self.calls.clear()
        self.copies = 0

    def owns(self, tensor):
        """Whether a tensor is on this device."""
        return torch._C.TensorBase.is_meta.__get__(tensor) and tensor.untyped_storage()._cdata in self.twins

    def raw(self, shell):
        """The twin of a tensor of this device, on the CPU."""
        storage = self.twins[shell.untyped_storage()._cdata][1]
        return torch.empty(0, dtype=shell.dtype).set_(storage, shell.storage_offset(), shell.size(), shell.stride())

    def shell(self, raw):
        """The tensor of this device whose twin is a tensor on the CPU."""
        if self.device.type == "mps" and raw.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        storage = raw.untyped_storage()
        known = self.shells.get(storage._cdata)
        meta = torch.empty(0, dtype=raw.dtype, device="meta")
        if known is not None and not known.expired():
            found = torch.UntypedStorage._new_with_weak_ptr(known.cdata)
        else:
            found = torch.UntypedStorage(storage.nbytes(), device="meta")
            self.twins[found._cdata] = StorageWeakRef(found), storage
            self.shells[storage._cdata] = StorageWeakRef(found)
            if len(self.twins) % 500 == 0:
                self._drop_the_dead()
        return meta.set_(found, raw.storage_offset(), raw.size(), raw.stride())

    def _drop_the_dead(self):
        for address, (reference, storage) in list(self.twins.items()):
            if reference.expired():
                del self.twins[address]
                self.shells.pop(storage._cdata, None)

    def seed(self, number):
        """Seed its random numbers."""
        self.state = torch.Generator().manual_seed((number ^ 0x5EED) % 2 ** 63).get_state()

    def _wait(self, name, times=1):
        frame = sys._getframe(2)
        while frame is not None and (not frame.f_code.co_filename.startswith(str(ROOT))
                                     or "/tests/" in frame.f_code.co_filename):
            frame = frame.f_back
        place = "outside" if frame is None else \
            f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}"
        self.waits[name, place] += times

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = op._schema.name.split("::")[1]
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        ours = {id(value): self.raw(value) for value in tensors if self.owns(value)}
        others = [value for value in tensors if id(value) not in ours]
        asked = kwargs.get("device")
        # "meta" is asked for within torch, by what makes a tensor like one of ours
        there = bool(ours) if asked is None else torch.device(asked).type in (self.device.type, "meta")
        if not ours and not there:
            return op(*args, **kwargs)
        self.calls[name] += 1
        if ours and name not in TAKES_BOTH and any(value.dim() or torch.Tag.pointwise not in op.tags
                                                   for value in others):
            raise RuntimeError(f"{op}: expected all tensors to be on the same device, but found {self.device} and cpu")
        self._count(name, args, kwargs, ours, others, there)
        unwrapped = tree_map_only(torch.Tensor, lambda value: ours.get(id(value), value), (args, kwargs))
        if asked is not None:
            unwrapped[1]["device"] = "cpu"
        out = self._run(op, *unwrapped, there)
        if not there or (name == "copy_" and not self.owns(args[0])):
            return tree_map_only(torch.Tensor, lambda value: args[0] if name == "copy_" else value, out)
        shells = {id(raw): value for value in tensors if (raw := ours.get(id(value))) is not None}
        return tree_map_only(torch.Tensor, lambda value: shells.get(id(value)) if id(value) in shells
                             else self.shell(value), out)

    def _count(self, name, args, kwargs, ours, others, there):
        """Note a copy, or that the host waits."""
        if name in ("_to_copy", "copy_") and (bool(ours) != there or (name == "copy_" and others)):
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if non_blocking and getattr(args[-1 if name == "copy_" else 0], "is_pinned_here", False):
                self.copies += 1
            else:
                self._wait("copy")
        if name in INDEXING:
            masks = [value for value in args[1] if value is not None and value.dtype in (torch.bool, torch.uint8)]
            fills = name != "index" and args[2].numel() == 1
            if masks and not fills:
                self._wait("bool index")
            for value in others:
                if value.dim():
                    self._wait("copy of an index")
        if name in WAITS and ours:
            self._wait(name, WAITS[name])

    def _run(self, op, args, kwargs, there):
        """Run an operation on twins; random numbers are drawn from the state of this device."""
        if torch.Tag.nondeterministic_seeded not in op.tags or not there:
            return op(*args, **kwargs)
        if kwargs.get("generator") is not None:  # of which torch does not hand on what it is a generator of
            return op(*args, **kwargs)
        with torch.random.fork_rng([]):
            torch.set_rng_state(self.state)
            out = op(*args, **kwargs)
            self.state = torch.get_rng_state()
        return out


class _Functions(TorchFunctionMode):
    """What autocast does on the device: products in its type, norms and softmax in float32.

    And Tensor.to is told the device's number, without which torch asks its runtime, which is not there.
    """

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and self._is_ours(kwargs.get("device")) \
                and not isinstance(args[0], torch.Tensor):
            # made within torch, where no mode looks: made on the CPU, then copied
            return function(*args, **kwargs | {"device": "cpu"}).to(torch.device(self.kind, 0))
        if function is torch.Tensor.to:
            args, kwargs = tree_map_only((str, torch.device), self._numbered, (args, kwargs))
        if torch.is_autocast_enabled(self.kind) and (function in TO_SHORT or function in TO_FLOAT):
            dtype = torch.get_autocast_dtype(self.kind) if function in TO_SHORT else torch.float32
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to(dtype) if value.device.type == self.kind
                                         and value.dtype in (torch.float32, torch.bfloat16) else value, (args, kwargs))
        return function(*args, **kwargs)

    def _is_ours(self, device):
        return device is not None and torch.device(device).type == self.kind

    def _numbered(self, device):
        return torch.device(self.kind, 0) if self._is_ours(device) else device


def _device_module(standin):
    """What torch.cuda, torch.mps or torch.xpu answer while the stand-in is installed."""
    def get_rng_state(device=None):
        return standin.state.clone()

    def set_rng_state(state, device=None):
        standin.state = state.clone()

    if standin.device.type == "mps":  # whose functions know no device
        def get_rng_state():
            return standin.state.clone()

        def set_rng_state(state):
            standin.state = state.clone()
    return {"_lazy_init": lambda: None, "is_available": lambda: True, "manual_seed_all": standin.seed,
            "manual_seed": standin.seed, "get_rng_state": get_rng_state, "set_rng_state": set_rng_state,
            "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda device: None,
            "synchronize": lambda device=None: None, "is_bf16_supported": lambda *args: True,
            "get_device_name": lambda device=None: "stand-in", "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None, "_is_in_bad_fork": lambda: False}


def _generator(standin, real):
    """torch.Generator that takes the device too."""
    class Generator(real):
        def __new__(cls, device="cpu"):
            made = super().__new__(cls)
            made.kind = torch.device(device).type
            return made

        def __init__(self, device="cpu"):
            super().__init__()

        device = property(lambda self: standin.device if self.kind == standin.device.type else torch.device("cpu"))

    return Generator


def _inference_mode(mode=True):
    return torch.no_grad() if mode else contextlib.nullcontext()


@contextlib.contextmanager
def installed(kind="cuda"):
    """Let torch have a device of a kind while the body runs, and yield its StandIn."""
    standin = StandIn(kind)
    base, module = torch._C.TensorBase, torch.get_device_module(kind)

    def device_of(tensor):
        return standin.device if standin.owns(tensor) else base.device.__get__(tensor)

    def pin_memory(tensor, device=None):
        if kind == "mps":
            raise RuntimeError("no pinned memory")
        pinned = tensor.clone()
        pinned.is_pinned_here = True
        return pinned

    def save(value, *args, **kwargs):
        return real_save(tree_map_only(torch.Tensor, lambda t: t.cpu() if standin.owns(t) else t, value), *args,
                         **kwargs)

    def load(file, map_location=None, **kwargs):
        value = real_load(file, map_location="cpu", **kwargs)
        if map_location is None or torch.device(map_location).type == "cpu":
            return value
        return tree_map_only(torch.Tensor, lambda t: t.to(map_location), value)

    real_save, real_load = torch.save, torch.load
    accelerator = {"current_accelerator": lambda check_available=False: torch.device(kind),
                   "is_available": lambda: True, "device_count": lambda: 1, "set_device_index": lambda device: None,
                   "synchronize": lambda device=None: None, "max_memory_allocated": lambda device=None: 0,
                   "reset_peak_memory_stats": lambda device=None: None, "empty_cache": lambda: None}
    with contextlib.ExitStack() as stack:
        def put(owner, values):
            for name, value in values.items():
                had = vars(owner).get(name)
                setattr(owner, name, value)
                stack.callback(delattr, owner, name) if had is None else stack.callback(setattr, owner, name, had)

        put(module, _device_module(standin))
        put(torch.accelerator, accelerator)
        put(torch, {"save": save, "load": load, "Generator": _generator(standin, torch.Generator),
                    "inference_mode": _inference_mode})  # whose tensors no view can be made of here
        put(torch.Tensor, {"device": property(device_of), "pin_memory": pin_memory,
                           "is_cuda": property(lambda t: kind == "cuda" and standin.owns(t))})
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # so that tied weights stay tied
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        with standin, _Functions(kind):
            yield standin
