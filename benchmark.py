"""Measure this project against transformers, side by side.

    python benchmark.py                     every row at full size (about ten minutes on two cores)
    python benchmark.py --quick             every row small, to see that it works
    python benchmark.py --rows gpt-train-fp32 gpt-generate-1 --pairs 7
    python benchmark.py --device cuda       the same on a GPU, and a whole fine-tuning of 3 epochs

Each row starts one process for us and one for transformers, and lets them work in turn, A B A B, so that whatever
else the machine does hits both. Printed are medians: our seconds, theirs, the ratio pair by pair, the ratio of
the peak memory of the two processes, and our useful work as a share of the machine's matrix rate, which is measured
after each pair, since it varies as much as everything else.

Both sides run as their users run them. Ours has what our scripts do: training lays large blocks apart for its first
update and keeps freed memory from then on (see fast/memory.py; --same_malloc gives both to both), an evaluation has one
autocast context for all batches.

Weights are random, and where both sides must do the same work they are the same. Batches have the shape of
ROCStories with OpenAI's vocabulary: stories of about 41 tokens (sd 9, at most 64), endings of 8.7 (at most 17).
Useful work is 6 operations (2 without gradients) for each weight of a matrix and each token that is not padding.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

import fast.gpt
import fast.t5
import opt
from fast.matmul import matmul
from fast.memory import give_back_free_pages, keep_freed_memory, lay_large_blocks_apart
from formats.errors import BadInput
from formats.files import write_atomically
from generate import generate_gpt
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, dotdict
from t5_pytorch import EOS, PAD, T5, T5_CONFIGS, checkpoint_names
from utils import OneLineParser, run_script

FULL = dict(n_embd=768, n_head=12, n_layer=12, n_vocab=40478, stories=8, new_tokens=64, t5="small", t5_depth=6,
            t5_batch=16, source=60, target=20)
QUICK = dict(n_embd=96, n_head=3, n_layer=2, n_vocab=2000, stories=4, new_tokens=8, t5="small", t5_depth=1,
             t5_batch=2, source=20, target=8)
N_SPECIAL = 3
SAME_MALLOC = "BENCHMARK_SAME_MALLOC"  # how the two processes of a row are told of --same_malloc


def cloze_batch(n, n_vocab, seed=0):
    """Return x int [n, 2, 77, 2], m [n, 2, 77], y [n]: examples of ROCStories' lengths and random words."""
    g = np.random.default_rng(seed)
    n_ctx = 77
    x, m = np.zeros((n, 2, n_ctx, 2), np.int64), np.zeros((n, 2, n_ctx), np.float32)
    x[..., 1] = n_vocab + N_SPECIAL + np.arange(n_ctx)
    for i in range(n):
        story = g.integers(1, n_vocab, int(np.clip(g.normal(41, 9), 10, 64)))
        for k in range(2):
            ending = g.integers(1, n_vocab, int(np.clip(g.normal(8.7, 2.2), 3, 17)))
            tokens = [n_vocab, *story, n_vocab + 1, *ending, n_vocab + 2][:n_ctx - 1]
            tokens[-1] = n_vocab + 2
            x[i, k, :len(tokens), 0] = tokens
            m[i, k, :len(tokens)] = 1
    return torch.from_numpy(x), torch.from_numpy(m), torch.from_numpy(g.integers(0, 2, n))


def autocast(device, dtype):
    """The context of a forward pass in 'fp32' or 'bf16'."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16")


def our_gpt(size, device):
    """A DoubleHeadModel of the size, on the device."""
    cfg = dotdict(DEFAULT_CONFIG | {k: size[k] for k in ("n_embd", "n_head", "n_layer")})
    model = DoubleHeadModel(cfg, size["n_vocab"] + 2, "multiple_choice", size["n_vocab"] + N_SPECIAL + 77, 77)
    return model.to(device)


def our_adam(model):
    """The optimizer of train.py with its defaults."""
    return opt.OpenAIAdam(model.parameters(), 6.25e-5, "warmup_linear", 0.002, 138, l2=0.01, max_grad_norm=1)


def their_gpt(size, device, kind, n_ctx=77):
    """transformers' GPT of the size."""
    import transformers
    return getattr(transformers, kind)(transformers.OpenAIGPTConfig(
        vocab_size=size["n_vocab"] + N_SPECIAL, n_positions=n_ctx, n_embd=size["n_embd"], n_layer=size["n_layer"],
        n_head=size["n_head"])).to(device)


def with_malloc_of_training(side, update):
    """Return a function that does the update with the settings of loop.train; in their process only where
    --same_malloc asks for it."""
    if side == "theirs" and not os.environ.get(SAME_MALLOC):
        return update
    lay_large_blocks_apart()

    def run():
        update()
        keep_freed_memory()

    return run


def gpt_train(side, size, device, dtype, towers=1):
    """One update: `towers` passes over a batch of stories with gradients, and the optimizer."""
    batches = [[t.to(device) for t in cloze_batch(size["stories"], size["n_vocab"], seed)] for seed in range(towers)]
    if side == "ours":
        model = our_gpt(size, device)
        optimizer = our_adam(model)

        def loss_of(x, m, y):
            return fast.gpt.losses(model, x, m, y, 0.5)[0] / towers
    else:
        model = their_gpt(size, device, "OpenAIGPTDoubleHeadsModel")
        optimizer = torch.optim.AdamW(model.parameters(), 6.25e-5)

        def loss_of(x, m, y):
            labels = x[..., 0].masked_fill(m == 0, -100)
            at = (x[..., 0] == size["n_vocab"] + 2).int().argmax(-1)
            out = model(x[..., 0], mc_token_ids=at, labels=labels, mc_labels=y)
            return (out.mc_loss + 0.5 * out.loss) / towers
    model.train()

    def add_gradients(batch):
        if towers > 1:
            give_back_free_pages()  # as loop.train does
        with autocast(device, dtype):
            loss = loss_of(*batch)
        loss.backward()

    def update():
        optimizer.zero_grad(set_to_none=towers == 1)
        for batch in batches:
            add_gradients(batch)
        if side == "theirs":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    tokens = sum(int(m.sum()) for _, m, _ in batches)
    return with_malloc_of_training(side, update), 6 * gpt_weights(size) * tokens


def gpt_weights(size, head=True):
    """Weights of a GPT that take part in a matrix product for every token."""
    return 12 * size["n_layer"] * size["n_embd"] ** 2 + head * size["n_vocab"] * size["n_embd"]


def gpt_evaluate(side, size, device, dtype):
    """The logits of the endings of 4 batches of stories."""
    batches = [cloze_batch(size["stories"], size["n_vocab"], seed) for seed in range(4)]
    inputs = [x.to(device) for x, _, _ in batches]
    model = our_gpt(size, device) if side == "ours" else their_gpt(size, device, "OpenAIGPTDoubleHeadsModel")
    model.eval()

    @torch.no_grad()
    def ours():
        with autocast(device, dtype):  # one context for all batches, as in train.py
            return [fast.gpt.choice_logits(model, x) for x in inputs]

    @torch.no_grad()
    def theirs():
        for x in inputs:
            with autocast(device, dtype):  # one for each, as in their Trainer
                at = (x[..., 0] == size["n_vocab"] + 2).int().argmax(-1)
                logits = model(x[..., 0], mc_token_ids=at).mc_logits
        return logits

    tokens = sum(int(m.sum()) for _, m, _ in batches)
    return {"ours": ours, "theirs": theirs}[side], 2 * gpt_weights(size, head=False) * tokens


def gpt_generate(side, size, device, batch):
    """Greedy continuation of prompts of 20 tokens."""
    ids = torch.randint(1, size["n_vocab"], (batch, 20), device=device)
    new = size["new_tokens"]
    if side == "ours":
        cfg = dotdict(DEFAULT_CONFIG | {k: size[k] for k in ("n_embd", "n_head", "n_layer")})
        model = LMModel(cfg, size["n_vocab"] + 512, 512).to(device).eval()
        operations = gpt_weights(size, head=False) * (20 + new) + size["n_vocab"] * size["n_embd"] * new
        return lambda: generate_gpt(model, ids, new), 2 * batch * operations
    model = their_gpt(size, device, "OpenAIGPTLMHeadModel", n_ctx=512).eval()
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                                  do_sample=False, pad_token_id=0), 0


def t5_pair(size, side, device):
    """A T5 of ours, or transformers' with the same weights. EOS never wins, so that every decoding runs its length."""
    torch.manual_seed(0)
    config = T5_CONFIGS[size["t5"]] | {"enc_depth": size["t5_depth"], "dec_depth": size["t5_depth"]}
    ours = T5(**config)
    with torch.no_grad():
        ours.shared.weight[EOS] = 0
    if side == "ours":
        return ours.to(device)
    import transformers
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=config["enc_num_tokens"], d_model=config["dim"], d_ff=config["d_ff"], d_kv=config["enc_dim_head"],
        num_heads=config["enc_heads"], num_layers=config["enc_depth"], dropout_rate=config["dropout"],
        decoder_start_token_id=0))
    theirs.load_state_dict({checkpoint_names(n)[1]: p for n, p in ours.named_parameters()}, strict=False)
    return theirs.to(device)


def t5_matrix_weights(size):
    """Weights of a T5 that take part in a matrix product for every source token, and for every target token."""
    c, depth = T5_CONFIGS[size["t5"]], size["t5_depth"]
    inner = c["enc_heads"] * c["enc_dim_head"]
    source = depth * (4 * c["dim"] * inner + 2 * c["dim"] * c["d_ff"]) + depth * 2 * c["dim"] * inner  # and cross k, v
    target = depth * (6 * c["dim"] * inner + 2 * c["dim"] * c["d_ff"]) + c["dec_num_tokens"] * c["dim"]
    return source, target


def t5_batch(size, batch, device, seed=0):
    """Return src [b, s] and targets [b, t] of random words, lengths about two thirds of the longest, padded with 0."""
    g = torch.Generator().manual_seed(seed)

    def rows(longest):
        ids = torch.randint(2, 32000, (batch, longest), generator=g)
        lengths = torch.randint(longest // 3, longest + 1, (batch, 1), generator=g)
        lengths[0] = longest
        return (ids * (torch.arange(longest) < lengths)).to(device)

    return rows(size["source"]), rows(size["target"])


def t5_train(side, size, device, dtype):
    """One update of T5 with Adafactor on both sides."""
    src, targets = t5_batch(size, size["t5_batch"], device)
    model = t5_pair(size, side, device).train()
    if side == "ours":
        optimizer = opt.Adafactor(model.parameters(), lr=1e-3)

        def loss_of():
            return fast.t5.training_loss(model, src, targets, 1e-4)
    else:
        from transformers import Adafactor
        optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)

        def loss_of():
            return model(src, attention_mask=(src != PAD).long(), labels=targets.masked_fill(targets == PAD, -100)).loss

    def update():
        optimizer.zero_grad()
        with autocast(device, dtype):
            loss = loss_of()
        loss.backward()
        optimizer.step()

    encoder, decoder = t5_matrix_weights(size)
    operations = 6 * (encoder * int((src != PAD).sum()) + decoder * int((targets != PAD).sum()))
    return with_malloc_of_training(side, update), operations


def t5_decode(side, size, device, batch, beams):
    """Greedy or beam decoding of new_tokens tokens."""
    src, _ = t5_batch(size, batch, device)
    model, new = t5_pair(size, side, device).eval(), size["new_tokens"]
    if side == "ours":
        encoder, decoder = t5_matrix_weights(size)
        operations = 2 * (encoder * int((src != PAD).sum()) + decoder * batch * beams * new)
        if beams > 1:
            return lambda: fast.t5.beam_search(model, src, src != PAD, new, beams), operations
        return lambda: fast.t5.generate(model, src, src != PAD, new), operations
    return lambda: model.generate(src, attention_mask=(src != PAD).long(), max_new_tokens=new, min_new_tokens=new,
                                  num_beams=beams, do_sample=False), 0


# name -> function of (side, size, device) returning (a function that does the work once, useful operations: 0 for them)
ROWS = {
    "gpt-train-fp32": lambda *a: gpt_train(*a, "fp32"),
    "gpt-train-bf16": lambda *a: gpt_train(*a, "bf16"),
    "gpt-evaluate-fp32": lambda *a: gpt_evaluate(*a, "fp32"),
    "gpt-evaluate-bf16": lambda *a: gpt_evaluate(*a, "bf16"),
    "gpt-generate-1": lambda *a: gpt_generate(*a, 1),
    "gpt-generate-8": lambda *a: gpt_generate(*a, 8),
    "t5-train-fp32": lambda *a: t5_train(*a, "fp32"),
    "t5-train-bf16": lambda *a: t5_train(*a, "bf16"),
    "t5-greedy-1": lambda *a: t5_decode(*a, 1, 1),
    "t5-greedy-16": lambda *a: t5_decode(*a, 16, 1),
    "t5-beam4-1": lambda *a: t5_decode(*a, 1, 4),
    "t5-beam4-16": lambda *a: t5_decode(*a, 16, 4),
    # a whole default update of ours, 4 towers of 8 stories, against one batch of 8 of theirs: for the memory
    "gpt-default-update-memory": lambda side, *a: gpt_train(side, *a, "fp32", towers=4 if side == "ours" else 1),
}


def matrix_rate(device, dtype, quick=False):
    """Return the operations per second of a large matrix product: the best of 6 each by torch's own and by ours."""
    n = 512 if quick else 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    best = 0.0
    for product in 6 * (torch.matmul, matmul):
        start = time.perf_counter()
        product(a, a)
        synchronize(device)
        best = max(best, 2 * n ** 3 / (time.perf_counter() - start))
    return best


def synchronize(device):
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device):
    """Return the most memory this process has held: allocated on the GPU, or resident on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(row, side, size, device):
    """Be one of the two processes of a row: do the work once for every line read, and answer with the seconds."""
    torch.manual_seed(0)
    run, operations = ROWS[row](side, size, device)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        synchronize(device)
        answer = {"seconds": time.perf_counter() - start, "peak": peak_bytes(device), "operations": operations}
        print("answer " + json.dumps(answer), flush=True)


def ask(process):
    """Let one process do its work once; return its answer."""
    with contextlib.suppress(BrokenPipeError):  # it has ended: said below
        process.stdin.write("go\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("answer "):
            return json.loads(line[len("answer "):])
    raise BadInput(f"a process of the benchmark ended with status {process.wait()}; is transformers installed "
                   "(pip install -r requirements-dev.txt) and is there enough memory?")


def measure(row, args):
    """Return the measurements of one row as a dict."""
    command = [sys.executable, os.path.abspath(__file__), "--device", args.device, "--worker"]
    command[4:4] = ["--quick"] * args.quick
    environment = os.environ | ({SAME_MALLOC: "1"} if args.same_malloc else {})
    both = {side: subprocess.Popen([*command, row, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=environment) for side in ("ours", "theirs")}
    try:
        for process in both.values():
            ask(process)  # warm-up
        answers, rates = {side: [] for side in both}, []
        for _ in range(args.pairs):
            for side, process in both.items():
                answers[side].append(ask(process))
            rates.append(matrix_rate(args.device, row.rsplit("-", 1)[-1], args.quick))
    finally:
        for process in both.values():
            process.kill()
            process.wait()
    seconds = {side: [a["seconds"] for a in rows] for side, rows in answers.items()}
    peaks = {side: max(a["peak"] for a in rows) for side, rows in answers.items()}
    median = {side: statistics.median(values) for side, values in seconds.items()}
    operations = answers["ours"][0]["operations"]
    return {"row": row, "ours_s": median["ours"], "theirs_s": median["theirs"], "pairs": args.pairs,
            "ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)),
            "ours_peak": peaks["ours"], "theirs_peak": peaks["theirs"], "memory_ratio": peaks["ours"] / peaks["theirs"],
            "gflops": operations / median["ours"] / 1e9,
            "share": statistics.median(operations / s / rate for s, rate in zip(seconds["ours"], rates, strict=True)),
            "all_ours_s": seconds["ours"], "all_theirs_s": seconds["theirs"],
            "all_matrix_gflops": [rate / 1e9 for rate in rates]}


def fine_tuning_on_gpu(size):
    """Return seconds and peak memory of 3 epochs on 1,497 examples, 32 an update, in fp32 and in bf16."""
    results = []
    for dtype in ("fp32", "bf16"):
        torch.cuda.reset_peak_memory_stats()
        model = our_gpt(size, "cuda").train()
        x, m, y = (t.cuda() for t in cloze_batch(1497, size["n_vocab"]))
        optimizer = our_adam(model)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for update in range(138):
            optimizer.zero_grad()
            for tower in range(4):
                first = (update % 46) * 32 + tower * 8
                rows = slice(first, first + 8)
                with autocast("cuda", dtype):
                    loss = fast.gpt.losses(model, x[rows], m[rows], y[rows], 0.5)[0] / 4
                loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        results.append({"row": f"gpt-3-epochs-{dtype}", "ours_s": time.perf_counter() - start,
                        "ours_peak": torch.cuda.max_memory_allocated()})
    return results


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="benchmark.py", description="Measure this project against transformers, side by side.")
    p.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="ROW",
                   help="rows to measure: " + ", ".join(ROWS))
    p.add_argument("--pairs", type=int, default=5, help="pairs of measurements, after one warm-up")
    p.add_argument("--quick", action="store_true", help="small models: shows that it works, not how fast it is")
    p.add_argument("--same_malloc", action="store_true", help="let their training keep freed memory too, as ours does")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    p.add_argument("--out", help="also write the measurements as JSON to this file")
    p.add_argument("--worker", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv=None):
    """Print the table; see the top of this file."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    size = QUICK if args.quick else FULL
    if args.pairs < 1:
        raise BadInput(f"--pairs is {args.pairs}, allowed is at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: this torch sees no CUDA device")
    if args.worker:
        return work(*args.worker, size, args.device)
    try:
        import transformers
    except ImportError:
        raise BadInput("transformers is not installed; pip install -r requirements-dev.txt") from None
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    rates = {dtype: matrix_rate(args.device, dtype, args.quick) / 1e9 for dtype in ("fp32", "bf16")}
    about = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware, "machine": platform.machine(),
             "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
             "matrix_gflops": rates, "size": size, "command": "python benchmark.py " + " ".join(argv)}
    print(f"{hardware}, torch {torch.__version__}, transformers {transformers.__version__}, matrix products "
          f"{rates['fp32']:.0f} GFLOP/s fp32, {rates['bf16']:.0f} bf16; medians of {args.pairs} pairs")
    print(", ".join(f"{name} {value}" for name, value in size.items()))
    print(f"{'row':<27}{'ours':>9}{'theirs':>9}{'ratio':>7}{'memory':>8}{'GFLOP/s':>9}{'share':>7}")
    results = []
    for row in args.rows:
        r = measure(row, args)
        results.append(r)
        ratio = "-" if row == "gpt-default-update-memory" else f"{r['ratio']:.2f}"  # there the work differs
        print(f"{row:<27}{r['ours_s']:>8.3f}s{r['theirs_s']:>8.3f}s{ratio:>7}{r['memory_ratio']:>8.2f}"
              f"{r['gflops']:>9.0f}{r['share']:>7.0%}", flush=True)
    by_row = {r["row"]: r for r in results}
    for stem in ("gpt-train", "gpt-evaluate", "t5-train"):
        if {f"{stem}-fp32", f"{stem}-bf16"} <= by_row.keys():
            ratio = by_row[f"{stem}-fp32"]["theirs_s"] / by_row[f"{stem}-bf16"]["ours_s"]
            print(f"{stem}: our bf16 against their fp32: {ratio:.2f}")
    if args.device == "cuda" and not args.quick:
        for r in fine_tuning_on_gpu(size):
            results.append(r)
            print(f"{r['row']:<27}{r['ours_s']:>8.1f}s, peak {r['ours_peak'] / 2 ** 30:.2f} GiB")
    if args.out:
        with write_atomically(args.out) as temporary, open(temporary, "w") as f:
            json.dump({"about": about, "rows": results}, f, indent=1)


if __name__ == "__main__":
    sys.exit(run_script(main))
