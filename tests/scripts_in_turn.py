"""Runs scripts one after another in the same processes, which saves the time in which each would start.

    torchrun --standalone --nproc_per_node N tests/scripts_in_turn.py LINES.json     [["train", ["--desc", ...]], ...]
"""

import importlib
import json
import sys

from utils import run_script

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        for script, line in json.load(f):
            status = run_script(importlib.import_module(script).main, line)
            if status:
                sys.exit(status)
