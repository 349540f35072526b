"""Measure this project against other libraries, side by side.

    python benchmark.py                     every row at full size, in both precisions (an hour on two cores)
    python benchmark.py --quick             every row small, to see that it works
    python benchmark.py --rows gpt-train gpt-generate-1 --precision fp32 --pairs 7
    python benchmark.py --device cuda       the same on a GPU, and a whole fine-tuning of 3 epochs

Each row first checks, on tiny models, that all sides compute the same numbers. Then each side has a process, and they
work in turn, so that whatever else the machine does hits all of them. The peers run in their best usual settings: what
can be chosen (attention, torch.compile, weights in bf16) is tried for each row, and the table names what was fastest.

Printed are medians and ranges: seconds; how many times as long a side takes as ours, round by round; the peak memory of
its process; our useful work as a share of the machine's matrix rate by the faster of torch's two libraries, and for
one sequence that is decoded the reading of weights as a share of the rate of a plain sum. `--out` keeps all of it.

The rows are in benchmarks/rows.py, what a side does in benchmarks/ours.py and peers.py. Ours trains with the settings
of memory that our scripts have (fast/memory.py); --same_malloc gives them to both.
"""

import json
import os
import sys
import time

import torch

from benchmarks import machine
from benchmarks.cases import FULL, TINY
from benchmarks.measure import measure
from benchmarks.rows import ROWS
from formats.errors import BadInput
from formats.files import write_atomically
from utils import OneLineParser, run_script


def parse_args(argv):
    """Return the options; see --help."""
    p = OneLineParser(prog="benchmark.py", description="Measure this project against other libraries, side by side.")
    p.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="ROW",
                   help="rows to measure: " + ", ".join(ROWS))
    p.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"],
                   help="precisions to measure them in")
    p.add_argument("--pairs", type=int, default=5, help="rounds in which every side works once, after a warm-up")
    p.add_argument("--quick", action="store_true", help="tiny models: shows that it works, not how fast it is")
    p.add_argument("--no_compile", action="store_true", help="leave out torch.compile, which takes a minute a row")
    p.add_argument("--same_malloc", action="store_true", help="let their training keep freed memory too, as ours does")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    p.add_argument("--out", help="also write the measurements as JSON to this file; its rows of the same machine stay "
                                 "where they are not measured again")
    return p.parse_args(argv)


def main(argv=None):
    """Print the table; see the top of this file."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.pairs < 1:
        raise BadInput(f"--pairs is {args.pairs}, allowed is at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: this torch sees no CUDA device")
    about = machine.facts(args.device)
    if "transformers" not in about:
        raise BadInput("transformers is not installed; pip install -r requirements-dev.txt")
    about |= {"size": TINY if args.quick else FULL, "same_malloc": args.same_malloc}
    results = kept_rows(args.out, about)
    print(", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in about.items()
                    if value and name != "size"))
    for name in args.rows:
        for precision in args.precision:
            if args.device in ROWS[name].devices and precision in ROWS[name].precisions:
                result = measure(name, precision, args)
                results = [r for r in results if (r["row"], r["precision"]) != (name, precision)] + [result]
                print("\n" + table(result), flush=True)
                if args.out:
                    with write_atomically(args.out) as temporary, open(temporary, "w", encoding="utf-8") as f:
                        json.dump({"about": about, "date": time.strftime("%Y-%m-%d"), "rows": results}, f, indent=1)


def kept_rows(path, about):
    """Return the rows of an earlier --out.

    Raises:
        BadInput: it is no such file, or of another machine or other versions.
    """
    if path is None or not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as f:
            earlier = json.load(f)
        rows, theirs = earlier["rows"], earlier["about"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"--out {path}: there is a file that is no benchmark's; give another name") from None
    about = json.loads(json.dumps(about))  # as they were written: tuples became lists
    differ = [name for name in about.keys() | theirs.keys() if about.get(name) != theirs.get(name)]
    if differ:
        raise BadInput(f"--out {path}: measured under other conditions ({', '.join(sorted(differ))}); give a new name")
    return rows


def table(result):
    """Return the lines that show what measure.measure returned."""
    lines = [f"{result['row']}, {result['precision']}, {result['rounds']} rounds"]
    lines[0] = f"{lines[0]:<62}{'seconds':>26}{'theirs / ours':>26}{'peak MB':>9}"
    for side in result["sides"]:
        name = f"  {side['name']}" + (f" ({side['setting']})" if side["setting"] else "")
        ratio = spread(side["ratio"], 2) if "ratio" in side else ""
        lines.append(f"{name:<62}{spread(side['seconds'], 3):>26}{ratio:>26}{side['peak'] / 1e6:>9.0f}")
    lines += [f"  {name}: {'; '.join(map(str, result['tried'][name].values()))}" for name in result["absent"]]
    middle, low, high = result["share"]
    lines.append(f"  ours is {middle:.0%} ({low:.0%} to {high:.0%}) of the matrix rate, "
                 f"{result['matrix_rate'][0] / 1e9:.0f} GFLOP/s")
    if "read_share" in result:
        middle, low, high = result["read_share"]
        lines.append(f"  ours is {middle:.0%} ({low:.0%} to {high:.0%}) of the read rate, "
                     f"{result['read_rate'][0] / 1e9:.1f} GB/s")
    return "\n".join(lines)


def spread(values, digits):
    """'median (lowest to highest)' of [median, lowest, highest]."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(run_script(main))
