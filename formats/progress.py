"""How far a long piece of work is: a bar on a terminal or in a notebook, a few plain lines in a log file."""

import sys
import warnings
from time import monotonic

from tqdm.std import TqdmWarning
from tqdm.std import tqdm as terminal_tqdm

with warnings.catch_warnings():  # a notebook without ipywidgets gets plain lines; nothing is amiss
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

SHORT = 3           # seconds; shorter work says nothing in a log file
EVERY = 5           # percent between two lines in a log file
EVERY_SECONDS = 60  # between two lines about work of unknown length, or inside other work; at first in other work


def bar(items=None, *, unit, total=None, initial=0, desc=None, leave=False, show=True):
    """Return a progress bar: iterate over it, or use it as a context manager and call `update(n)`.

    On a terminal and in a notebook it is tqdm's, and appears after a second. Where standard error is no terminal, it
    writes a plain line every five percent, and nothing about work of under 3 seconds. Of long work it also writes one
    after a minute, two minutes later, four minutes later and so on. A bar inside the work of another writes a line a
    minute. Where there is no standard error, it writes nothing.

    Args:
        items: what to iterate over. total: how many there are, where `items` is absent or does not tell; None:
            nobody knows.
        unit: name of one of them; "B" for bytes, which are counted in kB, MB and so on.
        initial: how many are done already.
        desc: name of the work. leave: whether the bar stays on the terminal when the work is done.
        show: False for no bar.
    """
    if show and _is_interactive(sys.stderr):
        return tqdm(items, total=total, initial=initial, unit=unit, unit_scale=unit == "B", desc=desc, leave=leave,
                    delay=1, dynamic_ncols=True)
    return Lines(items, unit, total, initial, desc, sys.stderr if show else None)


def write(text):
    """Print a line on standard output, and keep the bars on the terminal whole."""
    if sys.stdout is not None:
        tqdm.write(text)


def _is_interactive(stream):
    """Whether tqdm can draw: this is a notebook, or `stream` is a terminal."""
    if any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__):
        return True
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


class Lines:
    """A progress bar for log files; see `bar`. It has the methods of tqdm that the project calls.

    Args:
        stream: where the lines go; None: nowhere.
    """

    n_open = 0  # how many are at work at the moment

    def __init__(self, items, unit, total, initial, desc, stream):
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        self.items, self.unit, self.total, self.initial, self.desc = items, unit, total, initial, desc
        self.n, self.postfix, self.patience = initial, "", EVERY_SECONDS
        self.stream, self.is_open, self.is_inside = stream, False, False
        self.begin = self.last_time = monotonic()
        self.last_step = self._step()

    def __enter__(self):
        self.is_open, self.is_inside = True, Lines.n_open > 0
        Lines.n_open += 1
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        with self:
            for item in self.items:
                yield item
                self.update()

    def close(self):
        """End the bar; may be called twice."""
        if self.is_open:
            self.is_open = False
            Lines.n_open -= 1

    def set_postfix(self, refresh=True, **values):
        """Set what the next lines end in."""
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def update(self, n=1):
        """Note that `n` more are done, and write a line if it is time for one."""
        self.n += n
        if self.stream is None:
            return
        step, now = self._step(), monotonic()
        by_share = self.total and not self.is_inside
        late = now - self.last_time >= self.patience
        if late and by_share:
            self.patience *= 2
        if (late or by_share and step > self.last_step) and now - self.begin >= SHORT:
            self.last_step, self.last_time = step, now
            self._write(now - self.begin)

    def _step(self):
        return int(100 / EVERY * self.n / self.total) if self.total else 0

    def _write(self, seconds):
        def count(number):
            return terminal_tqdm.format_sizeof(number, "B") if self.unit == "B" else f"{number:,}"

        rate = (self.n - self.initial) / seconds
        line = f"{self.desc or self.unit}: {count(self.n)}"
        if self.total:
            line += f" of {count(self.total)} ({100 * self.n / self.total:.0f}%)"
        line += f", {count(rate) if self.unit == 'B' else f'{rate:.3g}'}/s"
        if self.total and rate > 0:
            line += f", {terminal_tqdm.format_interval(max(self.total - self.n, 0) / rate)} left"
        try:
            self.stream.write(line + self.postfix + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads any more; the work goes on
            self.stream = None
