"""The command `googlenet-jax`, and `python -m googlenet_jax`.

What it imports first is next to nothing, so that Ctrl-C in the first moments is one line.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status, as `cli.main.main` does."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from googlenet_jax.cli.main import main as run

    if signal.getsignal(signal.SIGINT) == _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(argv)


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    # An exception could be caught, or reworded, by what is being imported.
    os.write(2, b"\ngooglenet-jax: stopped by Ctrl-C\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
