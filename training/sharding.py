"""One model on many processes (--shard): each holds its rows of every parameter, gradient and state of the optimizer.

torch.distributed.fsdp.fully_shard does it. Before a block runs, forward or backward, the processes give each other its
rows; afterwards each forgets the others'. So all of them have to run the model equally often, see World.share, and the
plain text runs, as the work is done where a module is called. opt.py takes its norms and means over all rows.

A checkpoint is a folder of safetensors, one file a process, and the usual file `checkpoint` that names the folder and
notes the files' sizes and checksums. The folder is complete before `checkpoint` is replaced, and the one before goes
afterwards: whenever a process dies, `checkpoint` names a whole one. Any number of processes reads it, one too.

torch's libraries for this are imported where they are used: a run without --shard does not wait for them.
"""

import contextlib
import json
import os
import re
import shutil
import warnings
import zlib

import torch

import t5_decoding
from formats.errors import BadInput
from formats.files import load_tensors, save_tensors
from t5_pytorch import T5

# methods of the models that are called from outside and read parameters of the model's own
CALLED = ("encode", "embed_source", "embed_target", "logits", "task_logits", "loss")
AGAIN = "give another checkpoint, or start afresh without --resume"


def build(args, world, make, empty, resumes):
    """Return the model of a run on world.device; with --shard and several processes shared out.

    Then the first process alone has the whole model, in the memory of its CPU, while each parameter is shared out.

    Args:
        make: function returning the model with its initial or loaded parameters.
        empty: function returning a model of the same sizes; it is called for the meta device, and takes no memory.
        resumes: whether a checkpoint will be read into it, so that nothing need be made.
    Raises:
        BadInput, MissingInput: make raised it. Stopped: it did so in the first process.
    """
    if not args.shard or world.size == 1:
        return (empty() if args.shard and resumes else make()).to(world.device)
    world.in_step = True
    whole, refusal = None, None
    if world.is_first and not resumes:
        try:
            whole = make()
        except (OSError, ValueError) as error:
            refusal = error
    world.require_all(refusal)
    with torch.device("meta"):
        model = empty()
    share_out(model, world)
    model.to_empty(device=world.device)
    if not world.any(resumes):
        fill(model, whole and dict(whole.named_parameters()), world)
    return model


def share_out(model, world):
    """Make every block of a GPT or T5 a group of parameters that the processes gather and forget as one.

    What a stack of a T5 calls outside of its blocks' forward is a group of its own: the table of relative positions in
    the first block, and the last norm. The rest is the model's own group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    if isinstance(model, T5):
        stacks = (model.encoder, model.decoder)
        tables = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in stacks]
        groups = [*tables, *(block for stack in stacks for block in stack.block),
                  *(stack.final_layer_norm for stack in stacks)]
    else:
        groups = list(model.transformer.h)
    # It says that an output is a view, which nobody may change in place; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*groups, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)  # a sum: the towers' shares are divided already
        part.set_force_sum_reduction_for_comms(True)
    for name in CALLED:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


@torch.no_grad()
def fill(model, whole, world):
    """Put whole parameters into a model that is shared out.

    Args:
        whole: {name: tensor} in the first process; not looked at in the others.
    Raises:
        BadInput: they are of another model. Stopped: the same, in the other processes.
    """
    from torch.distributed.tensor import distribute_tensor
    names, refusal = dict(model.named_parameters()), None
    if world.is_first:
        strange = next((name for name, p in names.items() if name not in whole or whole[name].shape != p.shape), None)
        if strange is not None:
            refusal = BadInput(f"{strange} is missing, or its shape is not {list(names[strange].shape)}")
    world.require_all(refusal)
    for name, p in names.items():
        value = whole[name] if world.is_first else torch.empty(p.shape)
        value = value.detach().to(world.device, p.dtype).contiguous()
        p.copy_(distribute_tensor(value, p.device_mesh, p.placements))


def parameters_of(model, world):
    """Return {name: tensor}, a model's state dict; of one that is shared out in the first process, empty elsewhere."""
    if not world.in_step:
        return model.state_dict()
    found, whole = {}, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if id(p) not in found:
            found[id(p)] = _whole(p, world)
        whole[name] = found[id(p)]
    return whole if world.is_first else {}


def _whole(p, world):
    """The whole of a parameter on the CPU, in the first process; None in the others, which take part."""
    value = p.detach().full_tensor()
    return value.cpu() if world.is_first else None


def load_parameters(model, path, world):
    """Put the parameters in a file that one process wrote, best_params, into a model, shared out or not."""
    if not world.in_step:
        model.load_state_dict(load_tensors(path, map_location=world.device))
        return
    whole, refusal = None, None
    if world.is_first:
        try:
            whole = load_tensors(path)
        except (OSError, ValueError) as error:
            refusal = error
    world.require_all(refusal)
    fill(model, whole, world)


def gathered(model, empty, path, world):
    """Return a model to be written or handed on after a run: of one that is shared out, the whole in the first process.

    Args:
        empty: see build. path: best_params, whose parameters the model has.
    """
    if not world.in_step or not world.is_first:
        return model
    with torch.device("meta"):
        whole = empty()
    whole.load_state_dict(load_tensors(path), assign=True)
    return whole.eval()


def size_of(model, world):
    """Return {name: sum of the magnitudes of a parameter}, over all processes: finite where all of it is."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = torch.stack([torch.linalg.vector_norm(local(p), 1).float() for p in parameters])
    return dict(zip(names, (world.sum(sums) if world.in_step else sums).tolist(), strict=True))


@contextlib.contextmanager
def decoding(model, world):
    """Yield more arguments for t5_decoding's functions: processes that share out a T5 decode step by step together.

    A process whose answers have ended runs the decoder until all have.
    """
    if not world.in_step:
        yield {}
        return

    class InStep(t5_decoding.Decoder):
        def step(self, tokens, parents=None):
            world.any(True)
            return super().step(tokens, parents)

    yield {"decoder": InStep}
    with t5_decoding.evaluation_mode(model):
        one = torch.zeros(1, 1, dtype=torch.int64, device=world.device)
        while world.any(False):
            x = model.embed_target(one)
            model.logits(model.decoder(x, None, x))


# ---- checkpoints

def local(x):
    """What this process holds of a tensor."""
    return x.detach().to_local() if hasattr(x, "to_local") else x.detach()


def _tensors(model, optimizer):
    """{name: tensor} of all parameters and of the optimizer's state, as they are shared out."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        tensors |= {f"optimizer.{number}.{name}": value for name, value in optimizer.state.get(p, {}).items()}
    return tensors


def save_checkpoint(path, values, model, optimizer, world):
    """Write a checkpoint of a model that is shared out; see the top of this file.

    Args:
        path: the file `checkpoint`. values: {name: plain value}, written into it; n_updates among them.
    Raises:
        BadInput: it could not be written, in every process; the checkpoint before is unchanged.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    folder = f"{path}.update{values['n_updates']}.{world.gather(os.urandom(4).hex())[0]}"  # the first process's number
    half = f"{folder}.tmp"
    refusal = None
    if world.is_first:
        _remove_others(path)
    world.wait()
    tensors = _tensors(model, optimizer)
    try:
        with _without_a_word():
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(half, save_distributed=True),
                     no_dist=world.size == 1)
    except (OSError, RuntimeError, CheckpointException) as error:
        refusal = BadInput(f"{half}: could not be written ({_reason(error)}); the checkpoint before is unchanged; free "
                           "some space or choose another --save_dir")
    world.require_all(refusal)
    names = sorted(os.listdir(half))
    world.agree({f"the list of files in {half}, which has to be in a folder that all machines share,": names})
    files = _of_all({name: _checksum(os.path.join(half, name)) for name in names[world.rank::world.size]}, world)
    if world.is_first:
        os.replace(half, folder)
        parameters = {name: list(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
        save_tensors(path, {**values, "folder": os.path.basename(folder), "files": files, "shapes": parameters,
                            "groups": optimizer.state_dict()["param_groups"]})
        _remove_others(path)


def load_checkpoint(path, saved, model, optimizer, world):
    """Read what save_checkpoint wrote, on any number of processes.

    Args:
        saved: what the file `checkpoint` at `path` holds.
    Raises:
        BadInput: a file is missing or damaged, or it is of another model; in every process.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    folder = os.path.join(os.path.dirname(path), saved["folder"])
    _require_whole(folder, saved["files"], world)
    reader = HuggingFaceStorageReader(folder)
    there = reader.read_metadata().state_dict_metadata
    number = 0
    for group, theirs in zip(optimizer.param_groups, saved["groups"], strict=True):
        for p in group["params"]:
            if any(name.startswith(f"optimizer.{number}.") for name in there):
                optimizer.state[p] = optimizer.new_state(p, group)
            number += 1
        group |= {name: value for name, value in theirs.items() if name != "params"}
    tensors = _tensors(model, optimizer)
    strange = next((name for name in sorted(there.keys() | tensors.keys())
                    if name not in tensors or name not in there or there[name].size != tensors[name].shape), None)
    if strange is not None:
        raise BadInput(f"{folder}: is not a checkpoint of this model ({strange}); {AGAIN}")
    refusal = None
    try:
        with _without_a_word():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(folder), no_dist=world.size == 1)
    except (OSError, CheckpointException) as error:
        refusal = BadInput(f"{folder}: could not be read ({_reason(error)}); {AGAIN}")
    world.require_all(refusal)


def read_parameters(path, saved):
    """Return {name: tensor}, the whole parameters of such a checkpoint, in a process that reads it for itself."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    folder = os.path.join(os.path.dirname(path), saved["folder"])
    _require_whole(folder, saved["files"], None)
    there = HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
    whole = {name: torch.empty(data.size, dtype=data.properties.dtype) for name, data in there.items()
             if name.startswith("model.")}
    with _without_a_word():
        dcp.load(whole, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    return {name.removeprefix("model."): value for name, value in whole.items()}


@contextlib.contextmanager
def _without_a_word():
    """Keep torch from warning that one process saves and reads, as it was told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def shapes(path, saved):
    """As read_parameters, of the meta device: shapes without values."""
    return {name: torch.empty(shape, device="meta") for name, shape in saved["shapes"].items()}


def _require_whole(folder, files, world):
    """Compare files with their sizes and checksums {name: [bytes, crc32]}; the processes share the work.

    Raises:
        BadInput: one is missing or damaged, in every process.
    """
    problems = {}
    for name in sorted(files)[world.rank::world.size] if world else sorted(files):
        file = os.path.join(folder, name)
        if not os.path.isfile(file):
            problems[file] = "not found, though the checkpoint names it"
        elif os.path.getsize(file) != files[name][0]:
            problems[file] = f"{os.path.getsize(file):,} bytes found, expected {files[name][0]:,}"
        elif _checksum(file) != files[name]:
            problems[file] = "does not fit its checksum"
    if world:
        problems = _of_all(problems, world)
    for file, problem in problems.items():
        raise BadInput(f"{file}: {problem}; put the file back if there is a copy, or {AGAIN}")


def _checksum(path):
    """[bytes, crc32] of a file, which is on the disk then."""
    value = 0
    with open(path, "rb") as f:
        while part := f.read(1 << 24):
            value = zlib.crc32(part, value)
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.fsync(f.fileno())
        return [f.tell(), value]


def _of_all(table, world):
    """A dict of plain values that each process has a part of, whole."""
    if world.size == 1:
        return table
    return {name: value for text in world.gather(json.dumps(table)) for name, value in json.loads(text).items()}


def _remove_others(path):
    """Remove the folders of checkpoints that neither `path` nor an earlier run's, path.previous, names.

    A killed process left them, or they are older.
    """
    named = set()
    for file in (path, path + ".previous"):
        with contextlib.suppress(OSError, ValueError):
            named.add(load_tensors(file).get("folder"))
    beside, ours = os.path.dirname(path) or ".", re.escape(os.path.basename(path))
    for name in os.listdir(beside):
        if re.fullmatch(ours + r"\.update\d+\.[0-9a-f]{8}(\.tmp)?", name) and name not in named:
            shutil.rmtree(os.path.join(beside, name), ignore_errors=True)


def _reason(error):
    """The first cause of an error of torch's checkpoints in a few words."""
    failures = list(getattr(error, "failures", {}).values())
    cause = failures[0][0] if failures else error
    return getattr(cause, "strerror", None) or (str(cause).splitlines() or [type(cause).__name__])[0][:150]
