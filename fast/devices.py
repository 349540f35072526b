"""What differs between the devices that torch names: asked for as a capability, never by a device's name.

Copies that nobody waits for, and which kernels of attention may run.
"""

import contextlib
import functools

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
