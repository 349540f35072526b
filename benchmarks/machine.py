"""The machine: its processor and libraries by name, its rates as measured, the memory of a process."""

import contextlib
import importlib.metadata
import os
import platform
import sys
import time

import torch

from fast.blas import in_force

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of the processor, that matter for matrix products
LIBRARIES = ("torch", "transformers", "ctranslate2", "numpy")


def facts(device):
    """Return what a number depends on, by name: the processor, the library of our float32 products, versions ..."""
    processor, flags = processor_name_and_flags()
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"processor": processor, "flags": flags, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "library": in_force(), "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "system": platform.system(), "python": platform.python_version(), **versions}


def processor_name_and_flags():
    """Return the processor's name and which of FLAGS it has, as Linux tells; elsewhere as torch does.

    Virtual machines give the processors of several generations one name; hence its family and model.
    """
    words = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            name, _, value = line.partition(":")
            words.setdefault(name.strip(), value.strip())
    has = words.get("flags", "").split() or torch.backends.cpu.get_cpu_capability().lower().split()
    name = words.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in words:
        name += f", family {words['cpu family']} model {words.get('model')}"
    return name, [f for f in FLAGS if f in has]


def matrix_rates(device, precision, n=None):
    """Return {library: operations per second} of a large matrix product, the best of 6 each.

    On a CPU in float32 by both libraries of torch, MKL and oneDNN; else by the one that torch takes.

    Args:
        n: rows of the square matrices; None: 2048 on a CPU, 8192 on a GPU.
    """
    n = n or (2048 if device == "cpu" else 8192)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    products = {"torch": torch.matmul}
    if device == "cpu" and precision == "fp32" and torch.backends.mkldnn.is_available():
        products = {"MKL" if torch.backends.mkl.is_available() else "torch": torch.matmul,
                    "oneDNN": lambda x, w: torch.ops.mkldnn._linear_pointwise.default(x, w, None, "none", [], "")}
    best = dict.fromkeys(products, 0.0)
    with torch.inference_mode():
        for _ in range(6):
            for name, product in products.items():
                best[name] = max(best[name], 2 * n ** 3 / seconds(device, product, a, a))
    return best


def read_rate(device, n_bytes=1 << 29):
    """Return the bytes per second at which a plain sum reads a large array, the best of 6."""
    a = torch.ones(n_bytes // 4, device=device)
    return max(n_bytes / seconds(device, a.sum) for _ in range(6))


def seconds(device, function, *arguments):
    """Call a function, wait for the device and return the seconds that took."""
    start = time.perf_counter()
    function(*arguments)
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device):
    """Let peak_bytes count from now on, where the system can: the set-up of a side is not its work."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def peak_bytes(device):
    """Return the most bytes this process has held: allocated on the GPU, or resident on a CPU; 0: not known."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import resource  # of Unix
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
