"""Signals: a run that is asked to stop saves first. (`storage.locked` holds its folder.)

Imports nothing slow, so that a signal in the first second already finds its handler.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# Signal -> what a person calls it, and the exit status of a run that it has ended: 128 + SIGINT is
# what a shell expects, and a preempted run has done all that it was asked to. SIGHUP comes where a
# terminal is closed or a connection is lost; Windows has none.
_SIGNALS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 0)}
if hasattr(signal, "SIGHUP"):
    _SIGNALS[signal.SIGHUP] = ("SIGHUP", 0)


class Stop:
    """Whether SIGINT, SIGTERM or SIGHUP asks this process to stop: `signum` is the signal from then
    on.

    A handler only notes the signal, and the loop asks, through `distributed.Agreement`: an
    exception raised by the handler would tear whatever is under way, and Python drops it inside a
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
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"\ngooglenet-jax: {text}\n".encode())
            os._exit(status)
        self.signum = signum


# One for the process, as its signals are.
_STOP = Stop()


@contextlib.contextmanager
def catching_signals() -> Iterator[Stop]:
    """Lets SIGINT, SIGTERM and SIGHUP ask for a stop in place of what they did before; one that is
    ignored, as SIGHUP is under `nohup`, stays so.

    Handlers of this kind that are there already stay: the command sets them before the slow
    imports, and `train` once more. Outside the main thread, where Python takes none, nothing
    changes.
    """
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    owner = _STOP.handle not in before.values()
    try:
        for signum, handler in before.items():
            if handler != signal.SIG_IGN:
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

    Raises KeyboardInterrupt for SIGINT, SystemExit with status 0 for SIGTERM and SIGHUP.
    """
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(0)
