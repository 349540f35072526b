"""Standard input and output that may be closed, full, without a reader, or unable to carry some characters."""

import contextlib
import errno
import os
import sys

from formats.errors import BadInput


class OutputLost(Exception):
    """What a script prints is its work, and nobody can take it; see Output."""


class Output:
    """A standard stream on which writing never fails.

    A character that its encoding lacks is written as an escape, such as \\xe9. The first write that fails is the last:
    `error` holds why, and what follows is dropped. A line is passed on when it is complete, as to a terminal.

    Args:
        stream: the stream; None where Python found it closed.
        matters: raise OutputLost instead of dropping anything.
    """

    def __init__(self, stream, matters=False):
        self.stream, self.matters, self.error = stream, matters, None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Write a string, or as much of it as can be written."""
        if self.error is None and self.stream is not None:
            try:
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:
                    encoding = self.stream.encoding
                    self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError) as error:
                self._give_up(error)
            else:
                if "\n" in text:
                    self.flush()
        return len(text)

    def flush(self):
        """Pass on what was written."""
        if self.error is None and self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self):
        """Whether the stream is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # it is closed
            return False

    def was_lost(self):
        """Whether something was dropped that somebody may miss: whoever closed the other end of a pipe has enough."""
        return self.error is not None and getattr(self.error, "errno", None) != errno.EPIPE

    def _give_up(self, error):
        self.error = error
        # what is left in the stream's buffer has to go somewhere when Python ends
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.stream.fileno())
        if self.matters:
            raise OutputLost


@contextlib.contextmanager
def safe_output(matters=False):
    """Put Outputs in the places of sys.stdout and sys.stderr for the body, and yield the first.

    Descriptors 0, 1 and 2 that are closed lead to the null device from here on: otherwise the next file that is opened
    would get one of these numbers, and whatever a library prints.

    Args:
        matters: whether what is printed is the script's work; see Output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    before = sys.stdin, sys.stdout, sys.stderr
    out = Output(sys.stdout, matters)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")
    sys.stdout, sys.stderr = out, Output(sys.stderr)
    try:
        yield out
    finally:
        if before[0] is None:
            sys.stdin.close()
        sys.stdin, sys.stdout, sys.stderr = before


def argument(text, name):
    """Return what was typed for an option, as text. The shell passes bytes, which Python decodes by the locale.

    Raises:
        BadInput: they are no text in UTF-8.
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # surrogates stand for bytes that Python could not decode
        pass
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise BadInput(f"{name} is not UTF-8 (found {text[:60]!a}); set the terminal to UTF-8") from None


def input_lines(prompt):
    """Yield the lines of standard input until its end; UTF-8 is read whatever the locale is.

    Args:
        prompt: what is shown before each line, where both standard input and output are terminals.
    Raises:
        BadInput: a line is not UTF-8.
    """
    if sys.stdin.isatty():
        while True:
            try:
                yield argument(input(prompt if sys.stdout.isatty() else ""), "standard input")
            except EOFError:
                return
            except UnicodeDecodeError:
                raise BadInput("standard input is not UTF-8; set the terminal to UTF-8") from None
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), 1):
        if isinstance(line, bytes):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"standard input: line {number} is not UTF-8 at byte {error.start}; convert it, for "
                               "example with iconv") from None
        yield line.rstrip("\r\n")
