"""Check and measure everything on a GPU with one command, under nine minutes on one of a data centre.

    python -m benchmarks.gpu_check --out gpu.json           from the repository's root
    python -m benchmarks.gpu_check --device cpu --small     every check, tiny, where there is no GPU

Each check prints what it measured, the limit or goal where there is one, and whether it holds. A check that fails does
not stop the others; those that no time is left for are said. float32 products are exact ones (TF32 is off), as torch's
default is. Peak memory is what torch's allocator held.
"""

import contextlib
import copy
import gc
import importlib.util
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import fast.gpt
import fast.t5
import opt
import pretrain
import train
from benchmarks.cases import N_SPECIAL, STORY_CTX, cloze_batch
from fast import matmul
from fast.devices import moved_to, without_cudnn_attention
from formats.errors import BadInput
from formats.files import load_tensors, save_tensors, write_atomically
from generate import generate_gpt
from loss import double_head_loss
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, dotdict, tf_name
from t5_pytorch import PAD, T5, T5_CONFIGS, load_t5_pretrained_model, shift_right
from toy import stories
from training import loop
from utils import OneLineParser, read_log, run_script, select_device

GOLDEN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "golden")
FULL = dict(n_embd=768, n_head=12, n_layer=12, n_vocab=40478, t5="small", depth=6, stories=1497, tokens=64, repeats=5)
SMALL = dict(n_embd=24, n_head=3, n_layer=2, n_vocab=200, t5="small", depth=1, stories=70, tokens=4, repeats=1)
MINUTES = 8.5             # no check begins later
T5_GOLDENS = {"t5_v1_0": {}, "t5_v1_1": dict(feed_forward="gated-gelu", tie_logits=False)}


class Result(NamedTuple):
    """One line of the table: value is a number, a text or None; limit likewise; holds: True, False or None."""

    what: str
    value: object
    limit: object = None
    holds: bool | None = None


def below(what, value, limit):
    """The Result of a number that has to be at most a limit."""
    return Result(what, value, limit, bool(value <= limit))


def distance(a, b):
    """The norm of the difference of two tensors, or lists of them, as a share of the second's."""
    a, b = (torch.cat([x.detach().cpu().double().flatten() for x in (part if isinstance(part, list) else [part])])
            for part in (a, b))
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def gradients(model):
    """Copies of a model's gradients."""
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def gpt(size, device, p=0.1, n_layer=None, seed=0):
    """A DoubleHeadModel with dropout p everywhere, in training mode."""
    torch.manual_seed(seed)
    cfg = dotdict(DEFAULT_CONFIG | {name: size[name] for name in ("n_embd", "n_head", "n_layer")}
                  | dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), p))
    cfg.n_layer = n_layer or cfg.n_layer
    rows = size["n_vocab"] + N_SPECIAL + STORY_CTX
    return DoubleHeadModel(cfg, size["n_vocab"] + 2, "multiple_choice", rows, STORY_CTX).to(device).train()


def adam(model, total=138):
    """The optimizer of train.py with its defaults."""
    return opt.OpenAIAdam(model.parameters(), 6.25e-5, "warmup_linear", 0.002, total, l2=0.01, max_grad_norm=1)


class Updates:
    """Updates of a model as loop.train makes them: towers of n_batch stories, and the optimizer."""

    def __init__(self, size, device, n_batch=8, n_gpu=4, precision="fp32", plain=False, model=None):
        self.device, self.n_batch, self.n_gpu, self.precision, self.plain = device, n_batch, n_gpu, precision, plain
        self.model = gpt(size, device) if model is None else model
        self.optimizer, self.count = adam(self.model), 0

    def loss(self, x, m, y):
        """The loss of a batch that lies on the CPU."""
        if not self.plain:
            return fast.gpt.losses(self.model, x, m, y, 0.5)[0]
        x, m, y = moved_to(self.model, x, m, y)
        return double_head_loss(*self.model(x), x, m, y, 0.5)[0]

    def run(self, x, m, y, step=True):
        """One update of n_batch * n_gpu stories; return its loss."""
        self.optimizer.zero_grad(set_to_none=self.n_gpu == 1)
        total = torch.zeros((), device=self.device)
        for tower in range(self.n_gpu):
            rows = slice(tower * self.n_batch, (tower + 1) * self.n_batch)
            loop.seed_tower(42, self.count, tower)
            with loop.autocast(self.device, self.precision):
                loss = self.loss(x[rows], m[rows], y[rows]) / self.n_gpu
            loss.backward()
            total += loss.detach()
        value = total.item()
        if step:
            self.optimizer.step()
        self.count += 1
        return value


def synchronize(device):
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds(work, device, repeats):
    """The median time of some work, after once to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def forget_peak(device):
    """Free what nobody uses and count the peak anew."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()


def peak(device):
    """The most memory held since forget_peak, in GB; None on a CPU."""
    return None if device.type == "cpu" else torch.accelerator.max_memory_allocated() / 1e9


# The checks: functions of (size, device) that yield Results


def goldens_gpt(size, device):
    """The original's losses and gradients."""
    with np.load(os.path.join(GOLDEN, "gpt", "gpt_gelu.npz"), allow_pickle=False) as z:
        z = dict(z)
    c = json.loads(str(z["config"]))
    cfg = dotdict(dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop"), 0.0)
                  | {name: c[name] for name in ("n_embd", "n_head", "n_layer", "afn")})
    model = DoubleHeadModel(cfg, c["clf_token"], "multiple_choice", c["n_we_rows"], c["n_ctx"])
    model.to(device)
    named = {tf_name(name): p for name, p in model.transformer.named_parameters()}
    named |= {"model/clf/w:0": model.task_head.linear.weight, "model/clf/b:0": model.task_head.linear.bias}
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(torch.from_numpy(z[f"param/{name}"]).reshape(p.shape))
    x, m, y = (torch.from_numpy(np.ascontiguousarray(z[name])) for name in ("X", "M", "Y"))
    for precision, limit in (("fp32", 1e-4), ("bf16", 5e-2)):
        model.zero_grad()
        with loop.autocast(device, precision):
            loss = fast.gpt.losses(model, x, m, y, c["lm_coef"])[0]
        loss.backward()
        yield below(f"GPT golden, {precision}: loss", abs(loss.item() / z["train_loss"].item() - 1), limit)
        want = [torch.from_numpy(z[f"grad/{name}"]).reshape(p.shape) for name, p in named.items()]
        yield below(f"GPT golden, {precision}: gradients", distance([p.grad for p in named.values()], want), limit)


def goldens_t5(size, device):
    """The original's losses and decodings of both versions."""
    for name, version in T5_GOLDENS.items():
        sizes = dict(num_tokens=96, depth=2, heads=4, dim_head=8)
        both = {f"{side}_{k}": v for side in ("enc", "dec") for k, v in sizes.items()}
        model = T5(dim=32, d_ff=64, **both, **version)
        load_t5_pretrained_model(model, os.path.join(GOLDEN, "t5", name, "checkpoint"))
        with np.load(os.path.join(GOLDEN, "t5", name, "golden.npz"), allow_pickle=False) as z:
            src, targets, greedy, beam, logits = (torch.from_numpy(z[key]) for key in (
                "inputs", "targets", "decode_greedy", "decode_beam4", "logits"))
        src, targets, greedy, beam = (ids.long().to(device) for ids in (src, targets, greedy, beam))
        model.to(device).eval()
        with torch.no_grad():
            got = fast.t5.hidden_states(model, src, shift_right(targets), src != PAD, targets != PAD)
            yield below(f"{name} golden: logits", distance(got @ model.logits_weight().T, logits), 1e-4)
        ids = fast.t5.beam_search(model, src, src != PAD, max_length=24)
        same = torch.equal(F.pad(ids, (0, 24 - ids.shape[1])), beam)
        yield Result(f"{name} golden: ids of the beam search", "equal" if same else "differ", "equal", same)
        ids = fast.t5.generate(model, src, src != PAD, max_length=24)
        ended = (greedy == 1).cumsum(1) - (greedy == 1).long() > 0
        same = torch.equal(ids, greedy.masked_fill(ended, 0)[:, :ids.shape[1]])
        yield Result(f"{name} golden: greedy ids", "equal" if same else "differ", "equal", same)


def device_against_cpu(size, device):
    """Gradients of the same model here and on the CPU, and the fast functions against the plain text."""
    model, batch = gpt(size, "cpu", p=0.0, n_layer=2), cloze_batch(4, size["n_vocab"])
    fast.gpt.losses(model, *batch, 0.5)[0].backward()
    here = copy.deepcopy(model).to(device)
    for precision, limit in (("fp32", 1e-4), ("bf16", 5e-2)):
        for plain in (False, True):
            updates = Updates(size, device, 4, 1, precision, plain, here)
            updates.run(*batch, step=False)
            yield below(f"gradients against the CPU's, {precision}, {'plain' if plain else 'fast'}",
                        distance(gradients(here), gradients(model)), limit)
    for limit in (1e9, 1e-3):
        pair = [copy.deepcopy(model), copy.deepcopy(model).to(device)]
        for one in pair:
            for p, q in zip(one.parameters(), model.parameters(), strict=True):
                p.grad = q.grad.clone().to(p.device)
            opt.OpenAIAdam(one.parameters(), 1e-3, "warmup_constant", 0, 9, l2=0.01, max_grad_norm=limit).step()
        yield below(f"a step of the optimizer against the CPU's, max_grad_norm {limit:g}",
                    distance(list(pair[1].parameters()), list(pair[0].parameters())), 1e-5)


def dropout_statistics(size, device):
    """The share that is dropped, of a layer and of attention's weights; and that recomputation drops the same."""
    n, p = (64, 0.1) if size is SMALL else (1024, 0.1)
    dropped = (F.dropout(torch.ones(n, n, device=device), p) == 0).float().mean().item()
    yield below("dropout of 0.1: off by", abs(dropped - p), 5 * (p * (1 - p)) ** 0.5 / n)
    for dtype in (torch.float32, torch.bfloat16):
        t, heads = 64, 2 if size is SMALL else 192
        q = torch.zeros(2, heads, t, 64, device=device, dtype=dtype)
        v = torch.eye(t, 64, device=device, dtype=dtype).expand(2, heads, t, 64).contiguous()
        out = F.scaled_dot_product_attention(q, q, v, dropout_p=p)  # 0 exactly where a weight was dropped
        sigma = (p * (1 - p) / out.numel()) ** 0.5
        yield below(f"attention's dropout of 0.1, {str(dtype).removeprefix('torch.')}: off by",
                    abs((out == 0).float().mean().item() - p), 5 * sigma)
    model, batch, keeps = gpt(size, device, n_layer=2), cloze_batch(4, size["n_vocab"]), matmul._keeps_everything
    found = []
    for kept in (False, False, True):
        try:
            matmul._keeps_everything = (lambda x: True) if kept else keeps
            updates = Updates(size, device, 4, 1, model=model)
            updates.run(*batch, step=False)
        finally:
            matmul._keeps_everything = keeps
        found.append(gradients(model))
    yield Result("gradients from run to run", distance(found[1], found[0]))
    yield below("gradients with what is computed again against what is kept, with dropout",
                distance(found[0], found[2]), 1e-4)


def resume(size, device):
    """Four updates, and two, a file, and two more."""
    batch, path = cloze_batch(8, size["n_vocab"]), f"gpu_check-{os.getpid()}.tmp"
    ends = []
    for stops in (False, False, True):
        updates = Updates(size, device, 4, 2, model=gpt(size, device, n_layer=2))
        for i in range(4):
            updates.run(*batch)
            if stops and i == 1:
                try:
                    save_tensors(path, {"model": updates.model.state_dict(), "opt": updates.optimizer.state_dict()})
                    saved = load_tensors(path)
                finally:
                    if os.path.exists(path):
                        os.unlink(path)
                again = Updates(size, device, 4, 2, model=gpt(size, device, n_layer=2, seed=1))
                again.model.load_state_dict(saved["model"])
                again.optimizer.load_state_dict(saved["opt"])
                again.count, updates = updates.count, again
        ends.append([p.detach().clone() for p in updates.model.parameters()])
    run_to_run = distance(ends[1], ends[0])
    yield Result("two equal runs differ by", run_to_run)
    yield below("a resumed run differs by (sums in no fixed order: as two equal runs do)", distance(ends[2], ends[0]),
                max(10 * run_to_run, 0.0))


def generation(size, device):
    """Ids of cached and plain decoding, and the time for each token."""
    torch.manual_seed(0)
    cfg = dotdict(DEFAULT_CONFIG | {name: size[name] for name in ("n_embd", "n_head", "n_layer")})
    model = LMModel(cfg, size["n_vocab"] + 512, 512).to(device).eval()
    n = size["tokens"]
    for batch in (1, 8):
        ids = torch.randint(1, size["n_vocab"], (batch, 20), device=device)
        same = (generate_gpt(model, ids, n) == generate_gpt(model, ids, n, cached=False)).float().mean().item()
        yield Result(f"GPT, batch {batch}: ids equal to those of the plain text, share", same, 1.0, same == 1)
        for precision in ("fp32", "bf16"):
            with loop.autocast(device, precision):
                each = seconds(lambda ids=ids: generate_gpt(model, ids, n), device, size["repeats"]) / n
            yield Result(f"GPT, batch {batch}, {precision}: ms a token", each * 1e3)
    config = T5_CONFIGS[size["t5"]] | dict(enc_depth=size["depth"], dec_depth=size["depth"])
    model = T5(**config).to(device).eval()
    for batch in (1, 16):
        src = torch.randint(2, 32000, (batch, 30), device=device)
        for beams in (1, 4):
            def decode(src=src, beams=beams):
                return fast.t5.beam_search(model, src, None, n, beams) if beams > 1 else \
                    fast.t5.generate(model, src, None, n)
            yield Result(f"T5-{size['t5']}, batch {batch}, {beams} beam(s): ms a token",
                         seconds(decode, device, size["repeats"]) / n * 1e3)


def memory_and_rates(size, device):
    """Peak memory and time of updates of 32 and of 64, one tower against two, and transformers'."""
    for n_batch, n_gpu, goal in ((8, 4, 6), (64, 1, 12), (32, 2, 12)):
        for precision in ("fp32", "bf16"):
            n_batch = min(n_batch, size["stories"] // n_gpu)
            forget_peak(device)
            updates = Updates(size, device, n_batch, n_gpu, precision)
            batch = cloze_batch(n_batch * n_gpu, size["n_vocab"])
            each = seconds(lambda updates=updates, batch=batch: updates.run(*batch), device, size["repeats"])
            name = f"update of {n_gpu} x {n_batch}, {precision}"
            yield Result(f"{name}: seconds", each)
            if device.type != "cpu":
                yield below(f"{name}: peak in GB", peak(device), goal)
            del updates
    if importlib.util.find_spec("transformers") is None:
        yield Result("transformers' update", "transformers is not installed")
        return
    import transformers
    theirs = transformers.OpenAIGPTDoubleHeadsModel(transformers.OpenAIGPTConfig(
        vocab_size=size["n_vocab"] + N_SPECIAL, n_positions=STORY_CTX, n_embd=size["n_embd"], n_layer=size["n_layer"],
        n_head=size["n_head"])).to(device).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), 6.25e-5)
    x, m, y = (value.to(device) for value in cloze_batch(32, size["n_vocab"]))
    longest = int(m.sum(-1).max())
    x, m = x[:, :, :longest, 0], m[:, :, :longest]
    for precision in ("fp32", "bf16"):
        def update(precision=precision):
            optimizer.zero_grad()
            with loop.autocast(device, precision):
                out = theirs(x, mc_token_ids=(x == size["n_vocab"] + 2).int().argmax(-1),
                             labels=x.masked_fill(m == 0, -100), mc_labels=y)
                loss = out.mc_loss + 0.5 * out.loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
        ours = Updates(size, device, min(32, size["stories"]), 1, precision)
        batch = cloze_batch(32, size["n_vocab"])
        mine = seconds(lambda ours=ours, batch=batch: ours.run(*batch), device, size["repeats"])
        yield Result(f"transformers' update of 32 / ours, {precision}", seconds(update, device, size["repeats"]) / mine)


def compiled(size, device):
    """The plain text's blocks with and without torch.compile."""
    batch, rates = cloze_batch(8, size["n_vocab"]), {}
    for name in ("fast", "plain", "compiled"):
        updates = Updates(size, device, 8, 1, "bf16", plain=name != "fast")
        if name == "compiled":
            for block in updates.model.transformer.h:
                block.compile(dynamic=True, backend="eager" if size is SMALL else "inductor")
        rates[name] = seconds(lambda updates=updates: updates.run(*batch), device, size["repeats"])
        yield Result(f"update of 8, bf16, {name}: seconds", rates[name])


def waits(size, device):
    """How often an update waits for the device, by torch's own count."""
    updates, batch = Updates(size, device, 8, 2), cloze_batch(16, size["n_vocab"])
    updates.run(*batch)
    if device.type != "cuda" or not hasattr(torch._C, "_cuda_set_sync_debug_mode"):
        yield Result("waits of an update", "torch counts them on CUDA alone")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            updates.run(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    yield below("waits of an update of two towers", len(found), 1)


def cudnn_attention(size, device):
    """Milliseconds of attention for each key length that is new, with cuDNN's and without."""
    for allowed in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(allowed)
        synchronize(device)
        start = time.perf_counter()
        for length in range(20, 40):
            k = torch.randn(8, 12, length + 20 * allowed, 64, device=device, dtype=torch.bfloat16)
            F.scaled_dot_product_attention(k[:, :, :1], k, k)
        synchronize(device)
        yield Result(f"attention of a new length, bf16, cuDNN {'allowed' if allowed else 'off'}: ms",
                     (time.perf_counter() - start) * 50)


def toy_vocabulary(folder, n):
    """Write OpenAI's two vocabulary files: what toy stories teach, filled up to n pieces by signs that never occur."""
    path = os.path.join(folder, "stories.txt")
    stories.write_text(path, 3000, 7)
    words, numbers = pretrain.read_words([path], verbose=False)
    encoder, merges = pretrain.learn_vocabulary(words, np.bincount(numbers), n, 100)
    unused = (chr(code) + end for code in range(0x4E00, 0xA000) for end in ("", "</w>"))
    for sign in itertools.islice(unused, max(n - len(encoder), 0)):
        encoder[sign] = len(encoder)
    pretrain.write_vocabulary(folder, encoder, merges)


def whole_run(size, device):
    """train.py from its files to its submission: 3 epochs of toy stories in ROCStories' numbers, 1,871 and 1,871."""
    n_valid = size["stories"] // 4
    sizes = [f"--{name}={size[name]}" for name in ("n_embd", "n_head", "n_layer")]
    with tempfile.TemporaryDirectory() as folder:
        toy_vocabulary(folder, size["n_vocab"])
        stories.write_data_dir(folder, *[size["stories"] + n_valid] * 2)
        for precision in ("fp32", "bf16"):
            where = [f"--{name}_dir={os.path.join(folder, precision)}" for name in ("log", "save", "submission")]
            start = time.time()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train.main(["--desc=run", "--n_iter=3", "--n_transfer=-1", "--submit", f"--n_valid={n_valid}",
                            f"--precision={precision}", f"--device={device.type}", f"--data_dir={folder}",
                            f"--model_dir={folder}", *sizes, *where])
            synchronize(device)
            in_all, limit = time.time() - start, 30 if size is FULL else 3600  # a CPU may be busy
            what = f"train.py, 3 epochs of {size['stories']} toy stories, {precision}"
            yield below(f"{what}, with reading and --submit: seconds", in_all, limit)
            last = read_log(os.path.join(folder, precision, "run.jsonl"))[-1]
            yield Result(f"{what}, until the last epoch's evaluation: seconds", last["time"] - start)


CHECKS = {check.__name__: check for check in (
    goldens_gpt, goldens_t5, device_against_cpu, dropout_statistics, resume, generation, memory_and_rates, whole_run,
    waits, cudnn_attention, compiled)}


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="benchmarks.gpu_check", description="Check and measure everything on a GPU.")
    p.add_argument("--device", default="cuda", help="cuda; or another that torch sees, as cpu with --small")
    p.add_argument("--small", action="store_true", help="tiny models: shows that every check runs")
    p.add_argument("--checks", nargs="+", choices=tuple(CHECKS), default=list(CHECKS), help="the checks to run")
    p.add_argument("--out", help="also write the results as JSON to this file")
    return p.parse_args(argv)


def about(device):
    """What the numbers were measured on, as a dict."""
    found = {"date": time.strftime("%Y-%m-%d"), "device": device.type, "torch": torch.__version__,
             "python": platform.python_version(), "cuda": torch.version.cuda,
             "architectures": torch.cuda.get_arch_list()}
    module = None if device.type == "cpu" else torch.get_device_module(device.type)
    return found | ({"name": module.get_device_name()} if hasattr(module, "get_device_name") else {})


def written(value):
    """A value of a Result as text."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv=None):
    """Run the checks and print the table; see the top of this file.

    Raises:
        BadInput: the device is not there, a CPU is asked for at full size, or a result does not hold.
    """
    args = parse_args(argv)
    device = select_device(args.device)
    if device.type == "cpu" and not args.small:
        raise BadInput("--device cpu: at full size this is for a GPU; add --small")
    size, start, results = SMALL if args.small else FULL, time.monotonic(), []
    for name in args.checks:
        if time.monotonic() - start > 60 * MINUTES:
            found = [Result(name, f"left out: {MINUTES} minutes are over")]
        else:
            found = run_check(name, size, device)
        for result in found:
            results.append(result._asdict() | {"check": name})
            mark = {True: "ok", False: "FAILS", None: ""}[result.holds]
            print(f"{result.what:<80} {written(result.value):>12} {written(result.limit):>8} {mark}", flush=True)
    if args.out:
        with write_atomically(args.out) as temporary, open(temporary, "w", encoding="utf-8") as f:
            json.dump({"about": about(device), "results": results}, f, indent=1)
    failed = sum(result["holds"] is False for result in results)
    if failed:
        raise BadInput(f"{failed} of {len(results)} results do not hold; they are marked FAILS above")


def run_check(name, size, device):
    """Yield the Results of one check; what it raises is one that does not hold."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        with without_cudnn_attention():
            yield from CHECKS[name](size, device)
    except Exception as error:  # the others are to run all the same
        yield Result(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", None, None, False)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        forget_peak(device)


if __name__ == "__main__":
    sys.exit(run_script(main))
