"""What an update takes, counted before any work (--dry_run): on torch's meta device, whose tensors have no memory.

Counted are parameters, gradients, the optimizer's state, and what the papers' plain text keeps of the forward pass for
the backward pass, in float32; fast/ and --precision bf16 keep less. Not counted are Python, torch and the device's
libraries, what an operation needs while it runs, and an evaluation.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch

import loss
import opt
from t5_pytorch import PAD, T5, shift_right

GB = 1e9


class Plan(NamedTuple):
    """Bytes of one process, and what an update costs it.

    Attributes:
        n_parameters: of the whole model.
        parameters, gradients, state: what the process holds; state: the optimizer's.
        gathered: with --shard, what other processes hold and this one has while a block runs, at most.
        activations: kept from the forward to the backward pass of one tower.
        operations: multiplications and additions in the matrix products of a tower, forward and backward.
        received: bytes from the other processes for a tower, without --shard for an update.
    """

    n_parameters: int
    parameters: int
    gradients: int
    state: int
    gathered: int
    activations: int
    operations: int
    received: int

    @property
    def memory(self) -> int:
        """All bytes together."""
        return self.parameters + self.gradients + self.state + self.gathered + self.activations


def of_t5(args: argparse.Namespace, config: dict, n_source: int, n_target: int) -> Plan:
    """Count for a T5 of some constructor arguments, trained with Adafactor on n_batch full inputs and targets."""
    def tower_loss(model):
        src, targets = (torch.ones(args.n_batch, n, dtype=torch.int64) for n in (n_source, n_target))
        return loss.t5_loss(model(src, shift_right(targets), src != PAD, targets != PAD), targets, 1e-4)

    plan = count(args, lambda: T5(**config), lambda model: [*model.encoder.block, *model.decoder.block], opt.Adafactor,
                 tower_loss)
    return show(args, plan, f"{args.n_batch} inputs of {n_source} tokens and targets of {n_target}")


def of_gpt(args: argparse.Namespace, make: Callable, shape: list[int], loss_of: Callable) -> Plan:
    """Count for a GPT trained with OpenAIAdam.

    Args:
        make: function returning the model. shape: of the ids x. loss_of: function of the model and x.
    """
    plan = count(args, make, lambda model: list(model.transformer.h),
                 lambda parameters: opt.OpenAIAdam(parameters, 1, "warmup_linear", 0, 1),
                 lambda model: loss_of(model, torch.ones(shape, dtype=torch.int64)))
    return show(args, plan, f"{shape[0]} examples of {' x '.join(map(str, shape[1:-1]))} tokens")


def count(args: argparse.Namespace, make: Callable, blocks_of: Callable, optimizer_of: Callable,
          loss_of: Callable) -> Plan:
    """Count for the options dry_run (the number of processes), shard and checkpoint_activations.

    Args:
        make: function returning the model. blocks_of: function of it returning its blocks.
        optimizer_of: function of parameters returning the optimizer.
        loss_of: function of the model returning the loss of one tower; all run with the meta device as the default.
    """
    with torch.device("meta"):
        model = make().train()
        optimizer, blocks = optimizer_of(model.parameters()), blocks_of(model)
        n, parts = args.dry_run, args.dry_run if args.shard else 1
        held = {p: _bytes_of_rows(p, parts) for p in model.parameters()}
        state = sum(_bytes_of_rows(value, parts, like=p) for group in optimizer.param_groups for p in group["params"]
                    for value in optimizer.new_state(p, group).values())
        activations, operations = _of_a_tower(model, blocks, loss_of, args)
    whole = sum(p.numel() * p.element_size() for p in held)
    in_block = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks]
    gathered = received = 0
    if parts > 1:
        # In the backward pass: the model's own group and its gradient, a block, the next one, which is gathered
        # meanwhile, the block's gradient, and a copy of it that is laid out to be added up.
        gathered = 2 * (whole - sum(in_block)) + 4 * max(in_block)
        received = round((2 * whole + whole) * (n - 1) / n)  # gathered twice, then the gradients' rows
    elif n > 1:
        received = round(2 * whole * (n - 1) / n)  # the sum of all gradients, by a ring
    return Plan(sum(p.numel() for p in held), sum(held.values()), sum(held.values()), state, gathered, activations,
                operations, received)


def _bytes_of_rows(x, parts, like=None):
    """Bytes of the process that holds most of a tensor; what the optimizer keeps for all rows together is on each."""
    rows = len(x) if x.dim() else 1
    if like is not None and rows != len(like):
        return x.numel() * x.element_size()
    return math.ceil(rows / parts) * (x.numel() // max(rows, 1)) * x.element_size()


def _of_a_tower(model, blocks, loss_of, args):
    """Bytes that a tower keeps for its backward pass, and the operations of both."""
    from torch.utils.flop_counter import FlopCounterMode  # takes a second
    ours = {p.untyped_storage()._cdata for p in model.parameters()}
    inside, outside, inputs, now = defaultdict(dict), {}, {}, []  # each {number of a storage: the storage}

    def keep(x):
        storage = x.untyped_storage()
        if storage._cdata not in ours:
            (inside[now[-1]] if now else outside)[storage._cdata] = storage
        return x

    def enter(block, given):
        now.append(block)
        storages = [x.untyped_storage() for x in given if torch.is_tensor(x)]
        inputs.update({storage._cdata: storage for storage in storages})

    for block in blocks:
        block.register_forward_pre_hook(enter)
        block.register_forward_hook(lambda *_: now.pop() and None)
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            total = loss_of(model)
        forward = counter.get_total_flops()
        total.backward()
    operations = counter.get_total_flops() + forward * args.checkpoint_activations
    if not args.checkpoint_activations:
        return _bytes(outside, *inside.values()), operations
    return _bytes(outside, inputs) + max(map(_bytes, inside.values()), default=0), operations


def _bytes(*tables):
    """Bytes of storages, each counted once."""
    storages = {key: value for table in tables for key, value in table.items()}
    return sum(storage.nbytes() for storage in storages.values())


def show(args: argparse.Namespace, plan: Plan, tower: str) -> Plan:
    """Print a plan and return it. tower: what a tower holds, in words."""
    n, towers = args.dry_run, math.ceil(args.n_gpu / args.dry_run)
    shared = ", sharing the model" if args.shard and n > 1 else ""
    print(f"{plan.n_parameters:,} parameters; {n} process{'es' * (n > 1)}{shared}; towers of {tower}")
    rows = {"parameters": plan.parameters, "gradients": plan.gradients, "optimizer's state": plan.state,
            "gathered from others": plan.gathered, "activations": plan.activations, "memory of a process": plan.memory}
    for name, size in rows.items():
        print(f"{name:22}{size / GB:10.3f} GB")
    received = plan.received * (towers if shared else 1)
    print(f"an update: {towers} tower{'s' * (towers > 1)} a process, {towers * plan.operations / 1e12:.3f} TFLOP, "
          f"{received / GB:.3f} GB received")
    print("besides: Python, torch, the device's libraries, and what single operations need while they run")
    if not args.plain:
        print("the activations are those of the plain text; fast/ keeps less")
    if args.precision == "bf16":
        print("the activations are counted in float32; bf16 keeps less")
    return plan
