"""Standard streams that may be closed, whose reader may go away while a command runs, and that show
names which others have chosen.
"""

import contextlib
import io
import os
import sys
from typing import Any, TextIO

from googlenet_jax.errors import printable


def open_streams() -> None:
    """Gives the process the null device for each standard stream that it was started without:
    Python has None there, and a file opened later would take the stream's place.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(descriptor)
                continue
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
            setattr(sys, name, os.fdopen(descriptor, mode))


class Output(io.TextIOBase):
    """A standard stream on which names of files and classes, which others have chosen, are written
    as `printable` has them; what the stream's encoding lacks, as an escape.
    """

    keep = ""  # of what is not printable

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        plain = printable(text, self.keep)
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(plain.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> Any:  # type: ignore[override]
        return self._stream.errors


class Unbreakable(Output):
    """Standard error, whose reader may go away (`2>&1 | head`, a lost connection) without ending
    what is under way: from then on nobody is told.
    """

    keep = "\r"  # with which bars are drawn anew

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Points the descriptor at the null device: what is left in buffers has to go somewhere, as
        Python complains at its end.
        """
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
