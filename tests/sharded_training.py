"""What tests/test_sharding.py starts with torchrun: small models that are shared out, beside whole ones.

    torchrun --standalone --nproc_per_node N tests/sharded_training.py FOLDER

The first process trains each model whole too, compares, writes its results to FOLDER/N.json, and leaves a checkpoint.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from small_gpt import N_CTX, N_VOCAB, small_model, story_batch
from small_t5 import ODD_SIZE, VERSIONS, odd_batch

import loss
import opt
import t5_decoding
from formats.files import load_tensors
from t5_pytorch import PAD, T5, shift_right
from training import distributed, loop, sharding

TOWERS, UPDATES = 3, 2
GPT_DROPOUT = dict(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1, clf_pdrop=0.1)


def gpt_loss(model, tower):
    x, m, y = story_batch(tower)
    return loss.double_head_loss(*model(x), x, m, y, 0.5)[0]


def t5_loss(model, tower):
    src, tgt = odd_batch(tower)
    return loss.t5_loss(model(src, shift_right(tgt), src != PAD, tgt != PAD), tgt, 1e-4)


def adam(parameters):
    return opt.OpenAIAdam(parameters, 1e-2, "warmup_linear", 0.1, 50, l2=0.01, max_grad_norm=0.1)


def adafactor(parameters):
    return opt.Adafactor(parameters, lr=1e-2, min_dim_size_to_factor=7)


def t5(**changes):
    torch.manual_seed(0)
    return T5(**ODD_SIZE | dict(dropout=0.1) | changes)


CASES = {  # name -> (model with its parameters, loss of a tower, optimizer)
    "gpt": (lambda: small_model(n_vocab=N_VOCAB, n_ctx=N_CTX, **GPT_DROPOUT), gpt_loss, adam),
    **{name: (lambda changes=changes: t5(**changes), t5_loss, adafactor) for name, changes in VERSIONS.items()}}


def train(model, optimizer, tower_loss, towers):
    """UPDATES updates; `towers` as World.share returns them."""
    model.train()
    for update in range(UPDATES):
        optimizer.zero_grad()
        for tower, counts in towers:
            loop.seed_tower(1, update, tower)
            (tower_loss(model, tower) * (counts / TOWERS)).backward()
        optimizer.step()


def held(model, optimizer):
    """Bytes of parameters, gradients and the optimizer's state in this process."""
    def size(tensors):
        return sum(sharding.local(x).numel() * x.element_size() for x in tensors)

    return [size(model.parameters()), size(p.grad for p in model.parameters() if p.grad is not None),
            size(value for state in optimizer.state.values() for value in state.values())]


def difference(a, b):
    """The largest one, but of what has no gradient: Adam moves it by noise."""
    return max((a[name] - b[name]).abs().max().item() for name in b
               if not name.endswith(("c_attn.b", "task_head.linear.bias")))


def main(folder):
    world = distributed.join("cpu")
    results, args = {}, argparse.Namespace(shard=True)
    for name, (make, tower_loss, optimizer_of) in CASES.items():
        if name == "t5_v1_1" and world.size > 2:  # four processes take their time
            continue
        model = sharding.build(args, world, make, make, False)
        optimizer = optimizer_of(model.parameters())
        train(model, optimizer, tower_loss, world.share(range(TOWERS)))
        found = sharding.parameters_of(model, world)
        sharding.save_checkpoint(str(folder / f"{name}_{world.size}"), {"n_updates": UPDATES}, model, optimizer, world)
        results[name] = {"bytes": held(model, optimizer)}
        if world.is_first:
            whole = make()
            reference = optimizer_of(whole.parameters())
            train(whole, reference, tower_loss, [(tower, True) for tower in range(TOWERS)])
            results[name] |= {"whole bytes": held(whole, reference),
                              "difference": difference(found, whole.state_dict()),
                              "same names": found.keys() == whole.state_dict().keys(),
                              "moved": difference(whole.state_dict(), make().state_dict())}
        if other := next(folder.glob(f"{name}_[!{world.size}]"), None):  # what another number of processes wrote
            model = sharding.build(args, world, make, make, True)
            optimizer = optimizer_of(model.parameters())
            sharding.load_checkpoint(str(other), load_tensors(str(other)), model, optimizer, world)
            again = sharding.parameters_of(model, world)
            train(model, optimizer, tower_loss, world.share(range(TOWERS)))
            found = sharding.parameters_of(model, world)
            if world.is_first:
                results[name]["read"] = difference(again, whole.state_dict())
                train(whole, reference, tower_loss, [(tower, True) for tower in range(TOWERS)])
                results[name]["trained on"] = difference(found, whole.state_dict())
    model = sharding.build(args, world, t5, t5, False)
    src, _ = odd_batch(world.rank, b=2 + world.rank)  # of different sizes, so that answers end at different steps
    for name, decode in (("greedy", t5_decoding.generate), ("beam", t5_decoding.beam_search)):
        with sharding.decoding(model, world) as more:
            ids = decode(model, src, src != PAD, max_length=4 + 3 * world.rank, **more)
        results[name] = bool(torch.equal(ids, decode(t5(), src, src != PAD, max_length=4 + 3 * world.rank)))
    everywhere = [json.loads(text) for text in world.gather(json.dumps(results))]
    if world.is_first:
        (folder / f"{world.size}.json").write_text(json.dumps(everywhere))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
