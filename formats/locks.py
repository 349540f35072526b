"""One process at a time in a folder: a lock that names its holder and that dies with it."""

import contextlib
import errno
import os
import socket
import sys
import time

from formats.errors import BadInput, warn_once
from formats.files import make_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # a file system without flock
_held = []  # lock files of this process


@contextlib.contextmanager
def locked(path, remedy="wait until it ends, or choose another folder"):
    """Keep every other process out of `path` while the body runs.

    The system itself drops the lock when its holder ends in whatever way, so a lock that a killed process left
    behind blocks nobody. Where there are no such locks, one line of warning says so and the body runs unlocked.
    Only processes that ask are kept out: of several processes of one run, the first alone should ask.

    Args:
        path: a folder that exists (its lock is the file .lock in it), or a file that may or may not exist (its
            lock is the file PATH.lock). The lock file is removed at the end.
        remedy: what to do when another process holds it, the end of the message.
    Raises:
        BadInput: another process, or an outer `with` of this one, holds it: its id and command are named.
            Also where the lock file cannot be written.
    """
    name = os.path.join(path, ".lock") if os.path.isdir(path) else make_path(os.fspath(path)) + ".lock"
    if fcntl is None:
        warn_once(f"{path}: this system has no file locks (fcntl); nothing keeps a second process out")
        yield
        return
    try:
        f = _take(path, name, remedy)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise BadInput(f"{name}: cannot be written ({error.strerror}); choose another folder") from None
        warn_once(f"{path}: this file system has no locks ({error.strerror}); nothing keeps a second process out")
        yield
        return
    with f:
        _held.append(f)
        try:
            yield
        finally:
            _held.remove(f)
            with contextlib.suppress(OSError):
                os.unlink(name)


def close_inherited():
    """Close what a forked process has of its parent's locks; else a lock would last as long as the child does."""
    for f in _held:
        f.close()
    _held.clear()


def _take(path, name, remedy):
    """Return the lock file, open and locked, with this process named in it."""
    while True:
        f = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file after it was opened here: then this lock keeps nobody out.
            if os.path.exists(name) and os.path.samestat(os.fstat(f.fileno()), os.stat(name)):
                with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                    f.truncate()
                    f.write(f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv)[:200]})")
                    f.flush()
                return f
        except BlockingIOError:
            with f:
                raise BadInput(f"{path}: {_holder(f)} is at work there; {remedy}") from None
        except FileNotFoundError:
            pass
        except BaseException:
            f.close()
            raise
        f.close()


def _holder(f):
    """Return how the holder of a lock file calls itself; it may be about to write that."""
    for _ in range(20):
        f.seek(0)
        if text := " ".join(f.read(1000).split()):
            return text
        time.sleep(0.05)
    return "another process"
