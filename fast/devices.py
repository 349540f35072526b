"""What differs between the devices that torch names: asked for as a capability, never by a device's name.

Copies that nobody waits for, random states, and which kernels of attention may run.
"""

import contextlib
import functools
import inspect

import torch


def moved(tensor, device):
    """Return a tensor on a device; a copy from the CPU's memory to an accelerator is not waited for, where it can be.

    Such a copy goes through pinned memory, which torch keeps until the copy is done. From other memory it would wait
    for the device, at every batch, with the device's queue run dry.
    """
    device = torch.device(device)
    if tensor.device.type != "cpu" or device.type == "cpu" or not has_pinned_memory(device.type):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def moved_to(model, *tensors):
    """Return a list of tensors where a model is, see moved; None stays None."""
    device = next(model.parameters()).device
    return [None if tensor is None else moved(tensor, device) for tensor in tensors]


@functools.cache
def has_pinned_memory(device_type: str) -> bool:
    """Whether copies from pinned memory to devices of a type run by themselves: where they have streams."""
    try:
        torch.zeros(1, device="cpu").pin_memory()
        return hasattr(torch.get_device_module(device_type), "Stream")
    except (RuntimeError, NotImplementedError):  # "meta" has no module
        return False


@functools.cache
def repeats_random_numbers(device_type: str) -> bool:
    """Whether the random state of one device of a type can be read and set, so that the same numbers come again."""
    if device_type == "cpu":
        return True
    try:
        module = torch.get_device_module(device_type)
    except RuntimeError:  # "meta" has none
        return False
    return all(hasattr(module, name) and "device" in inspect.signature(getattr(module, name)).parameters
               for name in ("get_rng_state", "set_rng_state"))


class RandomState:
    """The random states of the CPU and of one device as they are now, for drawing the same numbers again later."""

    def __init__(self, device):
        self.cpu, self.device = torch.get_rng_state(), device
        if device.type != "cpu":
            self.other = torch.get_device_module(device.type).get_rng_state(device)

    @contextlib.contextmanager
    def again(self):
        """Draw from these states in the body; afterwards the states are what they were before it."""
        elsewhere = self.device.type != "cpu"
        with torch.random.fork_rng([self.device] if elsewhere else [],
                                   device_type=self.device.type if elsewhere else None):
            torch.set_rng_state(self.cpu)
            if elsewhere:
                torch.get_device_module(self.device.type).set_rng_state(self.other, self.device)
            yield


@contextlib.contextmanager
def without_cudnn_attention():
    """Keep cuDNN's attention out of scaled_dot_product_attention in the body, in the whole process.

    On GPUs of 2022 and later torch prefers it in bfloat16. It builds a plan for every new shape, and here each batch
    and each new token is one; and some of its kernels round dropout's probability to sixteenths (torch issue 174245).
    The kernels that are left do neither. Elsewhere than on CUDA this changes nothing.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
