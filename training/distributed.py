"""One process or many (torchrun): who am I, sums over all processes, who writes.

With one process everything here does nothing, so scripts need no special case.
"""

import atexit
import importlib
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from formats.errors import BadInput
from utils import Stopped, select_device


class World:
    """The processes of this run.

    Attributes:
        rank: this process, 0 to size - 1; process 0 logs and saves.
        size: how many there are.
        device: the torch.device of this process.
    """

    def __init__(self, rank, size, device):
        self.rank, self.size, self.device = rank, size, device
        self.is_first = rank == 0

    def sum(self, tensor):
        """Return `tensor` summed over all processes, in place.

        Raises:
            Stopped: another process has died.
        """
        if self.size > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise Stopped(f"process {self.rank} of {self.size} stops, as another one has ended "
                              f"({str(error).splitlines()[0][:100]}); continue from the last checkpoint with --resume, "
                              "on any number of processes") from None
        return tensor

    def sum_gradients(self, parameters):
        """Replace every gradient by its sum over all processes, in one transfer."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.size > 1 and grads:
            flat = self.sum(torch.cat([g.flatten() for g in grads]))
            for g, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(summed.view_as(g))

    def any(self, flag):
        """True everywhere if it is true anywhere."""
        return bool(self.sum(torch.tensor(float(bool(flag)), device=self.device)) > 0)

    def wait(self):
        """Return when every process has called this."""
        self.any(False)


def join(device="auto"):
    """Return the World that torchrun's environment variables describe; one process without them.

    The group of processes ends before Python does: one of gloo's threads that lets go of a tensor later would abort
    the process.

    Args:
        device: 'auto', 'cpu' or 'cuda'. With CUDA each process takes the GPU of its local rank (nccl); on CPUs
            the processes talk through gloo.
    Raises:
        BadInput: CUDA is asked for and absent, or has fewer GPUs than this machine has processes.
    """
    device = select_device(device)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World(0, 1, device)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise BadInput(f"process {local} of this machine has no GPU of its own: torch sees "
                           f"{torch.cuda.device_count()}; start fewer with --nproc_per_node, or give --device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # The threads of the group end with the last reference to it. These functions have it as a default argument
        # where they are imported later, as torch's compiler does, and would keep it.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
        atexit.register(_leave)
    return World(rank, size, device)


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()
