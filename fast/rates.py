"""How fast this machine multiplies matrices: by either library (see blas.py), and in bfloat16.

    python -m fast.rates          a table of the models' products, in seconds; GPT_T5_MATMUL=... then forces a library

The choice of a library does not depend on it.
"""

import statistics
import time

import torch

from fast.blas import LIBRARIES, VARIABLE, in_force, maker
from fast.matmul import product
from formats.errors import warn_once

# what is multiplied: rows, and [k, n] of GPT's MLP, of its vocabulary (a piece of it) and of T5-small's attention
ROWS = (1, 4, 32, 640)
SIZES = ((768, 3072), (3072, 768), (768, 4096), (512, 512))
LAYOUTS = ("w [k, n]", "w [n, k]", "gradient of w")
TOTAL = 16 << 20  # bytes of weights of one measurement: more than a core's own caches hold


def medians(functions, times=7):
    """Return the median seconds of each of some functions, called in turn."""
    seconds = [[] for _ in functions]
    for number in range(times + 1):
        for function, of_function in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if number:  # the first compiles kernels
                of_function.append(time.perf_counter() - start)
    return [statistics.median(of_function) for of_function in seconds]


def operands(rows, k, n, layout):
    """Return pairs of factors, enough of them to come from memory and not from a core's caches."""
    copies = max(TOTAL // (4 * k * n), 1)
    if layout == "gradient of w":
        return [(torch.randn(rows, k).t(), torch.randn(rows, n)) for _ in range(copies)]
    weights = [torch.randn(k, n) if layout == "w [k, n]" else torch.randn(n, k).t() for _ in range(copies)]
    return [(torch.randn(rows, k), w) for w in weights]


def compare_libraries():
    """Yield (rows, k, n, layout, GFLOP/s of oneDNN, MKL's time over oneDNN's) for the models' products."""
    for k, n in SIZES:
        for layout in LAYOUTS:
            for rows in ROWS if layout != "gradient of w" else ROWS[-1:]:
                pairs = operands(rows, k, n, layout)
                mkl, onednn = medians([lambda name=name, pairs=pairs: [product(name, x, w) for x, w in pairs]
                                       for name in LIBRARIES])
                yield rows, k, n, layout, 2 * rows * k * n * len(pairs) / onednn / 1e9, mkl / onednn


def precision_rates(m=256, k=768, n=1536):
    """Return the rates of a product in float32 and in bfloat16, in GFLOP/s. It takes a tenth of a second."""
    x, w = torch.randn(m, k), torch.randn(n, k)
    x_short, w_short = x.bfloat16(), w.bfloat16()
    with torch.no_grad():
        seconds = medians([lambda: product(in_force(), x, w.t()), lambda: x_short @ w_short.t()], times=3)
    return [2 * m * k * n / s / 1e9 for s in seconds]


def has_bf16_unit() -> bool:
    """Whether this CPU has instructions that multiply in bfloat16, by what torch and the system say."""
    known = torch.cpu.get_capabilities()
    if known.get("architecture", "").startswith("x86"):
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return any(name.endswith("bf16") and value is True for name, value in known.items())  # of ARM: bf16, sve_bf16


def say_where_bf16_is_slow(device: torch.device, precision: str) -> None:
    """Print one line if --precision bf16 is asked for on a CPU that multiplies more slowly in it, with both rates."""
    if precision != "bf16" or device.type != "cpu" or has_bf16_unit():
        return
    fp32, bf16 = precision_rates()
    if bf16 < fp32:
        warn_once(f"--precision bf16 will be slower here: this CPU has no unit for bfloat16 and multiplies at "
                  f"{bf16:.0f} GFLOP/s in it, at {fp32:.0f} in float32; --precision fp32 is faster, and more exact")


if __name__ == "__main__":
    print(f"{maker() or 'unknown maker'}, {torch.get_num_threads()} threads, in force: {in_force()} ({VARIABLE} "
          "forces it)")
    print("rows      k      n  layout         GFLOP/s of oneDNN   time of MKL / oneDNN")
    with torch.no_grad():
        for *sizes, layout, rate, ratio in compare_libraries():
            print("{:4d} {:6d} {:6d}".format(*sizes) + f"  {layout:14s} {rate:17.0f}   {ratio:.2f}", flush=True)
    print("a product in float32 and in bfloat16: {:.0f} and {:.0f} GFLOP/s".format(*precision_rates()))
