"""One row: its sides work in turn, each in a process of its own, and what is said of them is a median over the rounds.

A B C A B C: whatever else the machine does hits all sides, and a ratio is taken round by round. After each round the
machine's rates are measured too, since they vary as much as everything else. Compilation is a part of the warm-up.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks import machine
from benchmarks.cases import FULL, SAME_MALLOC, TINY, Case
from benchmarks.rows import ROWS, agree, sides
from fast.memory import give_back_free_pages
from formats.errors import BadInput

TRIES, LONG = 2, 10  # times that each setting of a peer works before the fastest is chosen; once if it takes so long


class PeerFailed(Exception):
    """A peer does not run here: it is not installed, or its setting does not work."""


class Side:
    """A process that does one side's work when it is asked to. As a context it ends with the body.

    Args:
        row, precision, name, setting: see rows.sides. args: the options of benchmark.py.
    """

    def __init__(self, row, precision, name, setting, args):
        what = {"row": row, "precision": precision, "name": name, "setting": setting, "device": args.device,
                "quick": args.quick}
        self.name, self.setting = name, setting
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure", json.dumps(what)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            env=os.environ | ({SAME_MALLOC: "1"} if args.same_malloc else {}))

    def work(self):
        """Let it work once; return {'seconds', 'peak', 'operations', 'bytes_read'}.

        Raises:
            PeerFailed: it could not, and said why. BadInput: our side could not, or the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended: said below
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                answer = json.loads(line.removeprefix("answer "))
                if "failed" in answer:
                    raise PeerFailed(answer["failed"])
                return answer
        raise BadInput(f"the process of {self.name} ended with status {self.process.wait()}; is there enough memory?")

    def end(self):
        """End the process."""
        self.process.kill()
        self.process.wait()


def serve(what):
    """Be the process of a Side: work once for every line read, and answer with the seconds."""
    device = what["device"]

    def answer(**values):
        print("answer " + json.dumps(values), flush=True)

    try:
        build = sides(ROWS[what["row"]], what["precision"])[what["name"]][what["setting"]]
        work = build(Case(TINY if what["quick"] else FULL, device, what["precision"]))
        give_back_free_pages()
        machine.forget_peak(device)
        for _ in sys.stdin:
            torch.manual_seed(0)
            seconds = machine.seconds(device, work.run)
            answer(seconds=seconds, peak=machine.peak_bytes(device), operations=work.operations,
                   bytes_read=work.bytes_read)
    except Exception as error:
        if what["name"].startswith("ours"):
            raise
        reason = "".join(str(error).strip().splitlines()[:1])[:200]
        answer(failed=f"{type(error).__name__}: {reason}")


def fastest(row, precision, name, settings, args, log):
    """Return the Side of the fastest of some settings, warm, or None where none of them works.

    Those without torch.compile are tried first, then the fastest of them with it.

    Args:
        settings: names of settings, see rows.sides. log: dict that takes {setting: seconds of its best try, or why it
            failed}.
    """
    best, best_seconds = None, None

    def attempt(setting):
        nonlocal best, best_seconds
        side = Side(row, precision, name, setting, args)
        try:
            side.work()  # the warm-up
            for _ in range(TRIES if len(settings) > 1 else 0):
                seconds = side.work()["seconds"]
                log[setting] = min(seconds, log.get(setting, seconds))
                if seconds > LONG:
                    break
        except PeerFailed as error:
            log[setting] = str(error)
            return side.end()
        except BaseException:
            side.end()
            raise
        if best is None or log[setting] < best_seconds:
            best, side = side, best
            best_seconds = log.get(setting)
        if side is not None:
            side.end()

    for setting in settings:
        if "compiled" not in setting:
            attempt(setting)
    if best is not None and f"{best.setting}, compiled" in settings and not args.no_compile:
        attempt(f"{best.setting}, compiled")
    return best


def measure(row, precision, args):
    """Return the measurements of one row as a dict: {'row', 'precision', 'rounds', 'agreement', 'sides', ...}.

    Raises:
        BadInput: the sides do not compute the same, our side fails, or a process has ended.
    """
    agreement = agree(row)
    processes, tried = [], {}
    try:
        for name, settings in sides(ROWS[row], precision).items():
            log = tried[name] = {}
            side = fastest(row, precision, name, list(settings), args, log)
            if side is not None:
                processes.append(side)
        answers, rates, reads = {side.name: [] for side in processes}, [], []
        for _ in range(args.pairs):
            for side in processes:
                answers[side.name].append(side.work())
            rates.append(machine.matrix_rates(args.device, precision, 512 if args.quick else None))
            reads.append(machine.read_rate(args.device, 1 << 22 if args.quick else 1 << 29))
    except PeerFailed as error:
        raise BadInput(f"{row}: a peer that worked before failed: {error}") from None
    finally:
        for side in processes:
            side.end()
    return summary(row, precision, [(side.name, side.setting) for side in processes], answers, rates, reads) | {
        "rounds": args.pairs, "agreement": agreement, "tried": {name: log for name, log in tried.items() if log},
        "absent": [name for name in tried if name not in answers], "date": time.strftime("%Y-%m-%d %H:%M")}


def summary(row, precision, names, answers, rates, reads):
    """Return medians and ranges of a row.

    Args:
        names: (name, setting) of each side, ours first. answers: {name: what Side.work returned, in order}.
        rates: what machine.matrix_rates returned after each round. reads: likewise of machine.read_rate.
    """
    our_seconds = [a["seconds"] for a in answers["ours"]]
    our_peak = max(a["peak"] for a in answers["ours"])
    operations, bytes_read = answers["ours"][0]["operations"], answers["ours"][0]["bytes_read"]
    of_sides = []
    for name, setting in names:
        seconds, peak = [a["seconds"] for a in answers[name]], max(a["peak"] for a in answers[name])
        of_sides.append({"name": name, "setting": setting, "seconds": middle(seconds), "peak": peak,
                         "all_seconds": seconds})
        if name != "ours":
            of_sides[-1]["memory_ratio"] = our_peak / peak if peak else None
            if ROWS[row].same_work:
                of_sides[-1]["ratio"] = middle([b / a for a, b in zip(our_seconds, seconds, strict=True)])
    best_rates = [max(rate.values()) for rate in rates]
    result = {"row": row, "precision": precision, "sides": of_sides, "operations": operations,
              "matrix_rate": middle(best_rates), "all_matrix_rates": rates,
              "share": middle([operations / s / r for s, r in zip(our_seconds, best_rates, strict=True)]),
              "read_rate": middle(reads)}
    if bytes_read:
        result |= {"bytes_read": bytes_read,
                   "read_share": middle([bytes_read / s / r for s, r in zip(our_seconds, reads, strict=True)])}
    return result


def middle(values):
    """Return [median, lowest, highest]."""
    return [statistics.median(values), min(values), max(values)]


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
