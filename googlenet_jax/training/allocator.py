"""The C library's memory allocator, set so that a training step's large buffers are not mapped and
cleared anew each time.
"""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed and grow in large steps; does nothing under another C library.

    With glibc's defaults each large buffer is a new mapping, and a step on a CPU takes hundreds of
    thousands of page faults. The price is a larger resident size.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_MMAP_MAX, 0),
            (_TRIM_THRESHOLD, -1),
            (_TOP_PAD, 256 << 20),
            (_ARENA_MAX, 1),
        ):
            mallopt(parameter, value)
