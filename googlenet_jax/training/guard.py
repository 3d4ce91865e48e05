"""What keeps a run whole whatever happens to its process: signals, and the lock on its folder.
(`files.writing` words what a disk refuses.)

Imports nothing slow, so that a signal in the first second already finds its handler.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from googlenet_jax.errors import UserError
from googlenet_jax.files import is_store, writing

LOCK_FILE = ".lock"
# Signal -> what a person calls it, and the exit status of a run that it has ended: 128 + SIGINT is
# what a shell expects, and a preempted run has done all that it was asked to.
_SIGNALS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 0)}


class Stop:
    """Whether SIGINT or SIGTERM asks this process to stop: `signum` is the signal from then on.

    A handler only notes the signal, and the loop asks, through `cluster.Agreement`: an exception
    raised by the handler would tear whatever is under way, and Python drops it inside a
    garbage-collection callback.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        # Whether there is something to save, or others that have to be told.
        self.has_state = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Notes the first signal. A second one, or one before there is anything to save, ends the
        process at once.
        """
        name, status = _SIGNALS[signal.Signals(signum)]
        text = ""
        if not self.has_state:
            text = f"stopped by {name} before anything was trained"
        elif self.signum is not None:
            text = f"stopped at once by a second signal, {name}; the last good checkpoint stands"
        if text:
            os.write(2, f"\ngooglenet-jax: {text}\n".encode())
            os._exit(status)
        self.signum = signum


# One for the process, as its signals are.
_STOP = Stop()


@contextlib.contextmanager
def catching_signals() -> Iterator[Stop]:
    """Lets SIGINT and SIGTERM ask for a stop in place of what they did before.

    Handlers of this kind that are there already stay: the command sets them before the slow
    imports, and `train` once more. Outside the main thread, where Python takes none, nothing
    changes.
    """
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    owner = _STOP.handle not in before.values()
    try:
        for signum in _SIGNALS:
            signal.signal(signum, _STOP.handle)
    except ValueError:  # not the main thread
        owner = False
    try:
        yield _STOP
    finally:
        if owner:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            _STOP.signum, _STOP.has_state = None, False


def signal_name(signum: int | None) -> str:
    """What a person calls the signal; "" for None."""
    return "" if signum is None else _SIGNALS[signal.Signals(signum)][0]


def end(signum: int | None) -> NoReturn:
    """Ends a run that is saved, as the signal asks.

    Raises KeyboardInterrupt for SIGINT, SystemExit with status 0 for SIGTERM.
    """
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(0)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder, so that no second run trains in it. Whoever only reads needs no lock.

    The lock is the operating system's and ends with the process, however that ends: the file that
    a killed run leaves does not block. On an object store it is a lease, which a killed run's
    silence ends (`store.leased`). Raises UserError where another process holds it.
    """
    if is_store(workdir):
        from googlenet_jax.training.store import leased

        with leased(workdir / LOCK_FILE):
            yield
        return
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("a+", encoding="utf-8")
    with file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{workdir}: {holder} is training in this folder; wait for it or stop it, or take another --workdir"
            )
        with writing(workdir / LOCK_FILE):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        # POSIX's record locks: unlike flock's, a forked worker does not inherit them.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True  # also on file systems that know no locks
