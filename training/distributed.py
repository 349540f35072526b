"""One process or many (torchrun): who am I, sums over all processes, who writes.

With one process everything here does nothing, so scripts need no special case.
"""

import atexit
import contextlib
import importlib
import json
import os
import re
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist

from formats.errors import BadInput
from utils import Stopped, select_device

SIGNS_OF_DEATH = "gloo|nccl|NCCL|Connection|peer"  # in the errors of torch's libraries, which have no type of their own
PATIENCE = timedelta(minutes=10)  # of a process that waits for the others
WANTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What somebody types whose cluster starts the processes: each task is one of them, and the first node is asked.
WITH_SRUN = ("srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS MASTER_PORT=29500 "
             "MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1) python SCRIPT OPTIONS'")


class World:
    """The processes of this run.

    Attributes:
        rank: this process, 0 to size - 1; process 0 logs and saves.
        size: how many there are.
        device: the torch.device of this process.
        in_step: whether the model is shared out among the processes, see sharding.py: each has to run it as often as
            the others do.
    """

    def __init__(self, rank, size, device):
        self.rank, self.size, self.device = rank, size, device
        self.is_first, self.in_step = rank == 0, False

    def share(self, items):
        """Return a list of (item, True), the items that are this process's.

        Where the processes have to keep step, those with fewer items get one more, an item of another process:
        (item, False). It is to be computed and not to be counted.
        """
        items = list(items)
        mine = [(item, True) for item in items[self.rank::self.size]]
        if self.in_step and len(mine) < -(-len(items) // self.size):
            mine.append((items[-1], False))
        return mine

    @contextlib.contextmanager
    def together(self):
        """A body in which the processes talk to each other: where one has died, the others say so in one line.

        Raises:
            Stopped: another process has died.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or re.search(SIGNS_OF_DEATH, str(error))):
                raise
            raise self._ended(error) from None

    def _ended(self, error):
        return Stopped(f"process {self.rank} of {self.size} stops, as another one has ended "
                       f"({str(error).splitlines()[0][:100]}); continue from the last checkpoint with --resume, "
                       "on any number of processes")

    def sum(self, tensor):
        """Return `tensor` summed over all processes, in place.

        Raises:
            Stopped: another process has died.
        """
        if self.size > 1:
            try:
                dist.all_reduce(tensor)
            except RuntimeError as error:
                raise self._ended(error) from None
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
        if self.size == 1:
            return bool(flag)
        return bool(self.sum(torch.tensor(float(bool(flag)), device=self.device)) > 0)

    def wait(self):
        """Return when every process has called this."""
        self.any(False)

    def require_all(self, refusal):
        """Raise what was refused here, an exception or None; where another process refused, end too.

        Raises:
            Stopped: another process refused.
        """
        refused = self.any(refusal is not None)
        if refusal is not None:
            raise refusal
        if refused:
            raise Stopped("another process of this run was refused, see its message")

    def gather(self, text):
        """Return the texts that all processes give here, by rank."""
        data = text.encode()
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(data)
        table = torch.zeros(self.size, int(self.sum(lengths).max()), dtype=torch.int64, device=self.device)
        table[self.rank, :len(data)] = torch.tensor(list(data))
        return [bytes(row[:n]).decode() for row, n in zip(self.sum(table).tolist(), lengths.tolist(), strict=True)]

    def agree(self, values):
        """Compare values over all processes: what they do not agree on would go wrong in silence.

        Args:
            values: {name: number, string, list or None}.
        Raises:
            BadInput: in every process, where they differ; it names what differs, and both values.
        """
        if self.size == 1:
            return
        first, *others = map(json.loads, self.gather(json.dumps(values)))
        for rank, theirs in enumerate(others, 1):
            differ = [f"{name} is {first.get(name)!r} in process 0 and {theirs.get(name)!r} in process {rank}"
                      for name in first | theirs if first.get(name) != theirs.get(name)]
            if differ:
                raise BadInput(f"the processes do not agree: {'; '.join(differ)}; give all of them the same")


def join(device="auto"):
    """Return the World that torchrun's environment variables describe; one process without them.

    The group of processes ends before Python does: one of gloo's threads that lets go of a tensor later would abort
    the process.

    Args:
        device: see utils.select_device. Each process takes the accelerator of its local rank, and they talk through
            torch's library for it (CUDA: nccl); on CPUs through gloo.
    Raises:
        BadInput: the accelerator asked for is absent, or there are fewer than this machine has processes; or the
            environment's variables do not fit together, or the processes do not find each other.
    """
    device = select_device(device)
    size = world_size()
    if size == 1:
        return World(0, 1, device)
    missing = [name for name in WANTED if not os.environ.get(name)]
    if missing:
        raise BadInput(f"WORLD_SIZE is {size}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
                       f"set; start with torchrun, or unset WORLD_SIZE for a single process, or type {WITH_SRUN}")
    rank = _whole_number("RANK", 0, size - 1)
    port = _whole_number("MASTER_PORT", 0, 65535)
    if device.type != "cpu":
        local = _whole_number("LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in os.environ else 0
        n = torch.accelerator.device_count()
        if local >= n:
            raise BadInput(f"process {local} of this machine has no GPU of its own: torch sees {n}; start fewer with "
                           "--nproc_per_node, or give --device cpu")
        device = torch.device(device.type, local)
        torch.accelerator.set_device_index(local)
    if not dist.is_initialized():
        # The threads of the group end with the last reference to it. These functions have it as a default argument
        # where they are imported later, as torch's compiler does, and would keep it.
        importlib.import_module("torch.distributed.nn.functional")
        try:
            backend, started_by_torchrun = dist.get_default_backend_for_device(device), {}
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
                started_by_torchrun = dict(store=store_of_this_start(store, rank, size), rank=rank, world_size=size)
            dist.init_process_group(backend, timeout=PATIENCE, **started_by_torchrun)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadInput(f"process {rank} of {size} does not reach the others at MASTER_ADDR "
                           f"{os.environ['MASTER_ADDR']}, MASTER_PORT {port} ({_reason(error)}); give another port "
                           "(torchrun: --master_port), or unset WORLD_SIZE for a single process") from None
        atexit.register(_leave)
    return World(rank, size, device)


def store_of_this_start(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of torchrun's store in which nothing stands of an earlier start of these processes.

    torchrun keeps its store when it restarts processes (--max_restarts). There a process finds the addresses of those
    that have ended, and waits for them. So the first process takes a new name for this start, and hands it to whoever
    asks under a key of its own, until each of the others has signed under the name.

    Args:
        store: that all processes reach, its timeout that of the waiting.
    Raises:
        RuntimeError: another process did not come.
    """
    own, others, end = uuid.uuid4().hex, set(range(1, size)), time.monotonic() + PATIENCE.total_seconds()
    if rank:
        store.set(f"asks/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    while others:
        for other in sorted(others):
            if store.check([f"{own}/{other}"]):
                others.remove(other)
            elif store.check([f"asks/{other}"]):  # which may be an earlier start's question: nobody reads that answer
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
        if time.monotonic() > end:
            raise RuntimeError(f"process {min(others)} did not come")
        time.sleep(0.01)
    return dist.PrefixStore(own, store)


def world_size():
    """Return how many processes the environment asks for, 1 where it asks for none.

    Raises:
        BadInput: WORLD_SIZE is no number, or srun started several tasks that know nothing of each other.
    """
    if "WORLD_SIZE" in os.environ:
        return _whole_number("WORLD_SIZE", 1, None)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks not in ("", "1"):
        raise BadInput(f"srun started {tasks} tasks, but RANK and WORLD_SIZE are not set, so that each would train for "
                       f"itself; type {WITH_SRUN}")
    return 1


def _whole_number(name, low, high):
    """Return the number in an environment variable."""
    value = os.environ[name]
    with contextlib.suppress(ValueError):
        if int(value) >= low and (high is None or int(value) <= high):
            return int(value)
    allowed = f"from {low} to {high}" if high is not None else f"of at least {low}"
    raise BadInput(f"the environment variable {name} is {value!r}, expected a whole number {allowed}; unset it for a "
                   "single process, or start with torchrun")


def _reason(error):
    """Return an error of torch's in a few words, without the trace that it carries."""
    return str(error).split("\n")[0].split("Exception raised")[0].strip()[:300] or type(error).__name__


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()
        # What shares a model out keeps the group, and its threads, beyond this. Here they let go of their last tensors.
        time.sleep(0.1)
