"""What every parser keeps to: what it is asked, what it may allocate, and how it says what is
wrong.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

Tensors = Iterator[tuple[str, np.ndarray]]

MAX_TENSORS = 20_000
# A state dict's pickle, a `.keras` archive's list of members: a few hundred kB for the largest of
# these networks.
MAX_STRUCTURE = 16 << 20


class BadFile(Exception):
    """What is wrong with a file, as the end of a sentence that began with its path."""


@dataclasses.dataclass
class Limits:
    """What a file may still unpack to: `bytes` over all tensors together."""

    bytes: int
    tensors: int = MAX_TENSORS

    def take(self, name: str, shape: tuple[int, ...], itemsize: int) -> None:
        """Books a tensor before it is allocated; raises BadFile where it exceeds what a model of
        that size can hold.
        """
        self.tensors -= 1
        self.bytes -= itemsize * math.prod(map(int, shape))
        if min(self.bytes, self.tensors) < 0:
            raise BadFile(
                f"{name!r} of shape {list(shape)[:8]} makes the file hold more than such a network"
                " can; is it of this model?"
            )


@dataclasses.dataclass(frozen=True)
class Request:
    """What the child process is asked to read: `kind` is a name of PARSERS; `ema` prefers the
    averaged weights where the file has both.
    """

    path: str
    kind: str
    limit: int
    ema: bool = False
