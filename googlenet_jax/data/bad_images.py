"""Pictures of a data set that can't be read: counted, named, and too many of them an error."""

import sys
from collections.abc import Callable
from typing import Protocol

from tqdm import tqdm

from googlenet_jax.errors import UserError

POLICIES = ("error", "skip")


class BadImage(ValueError):
    """Bytes that are no whole image; the message says what was found."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...


def _log(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # above the progress bar


class BadImages:
    """The pictures that a run has come across and couldn't read, each counted and said once,
    however many epochs meet it.

    Attributes:
        limit: how many the run bears.
        found: what is wrong with each, by the data set's name, split and the example's position.
    """

    def __init__(self, limit: int, log: Callable[[str], None] = _log) -> None:
        self.limit = limit
        self.found: dict[tuple[str, str, int], str] = {}
        self._log = log

    def add(self, source: _Named, index: int, problem: str) -> None:
        """Takes note of one. Raises UserError where there are more than the limit."""
        key = (source.name, source.split, index)
        if key in self.found:
            return
        self.found[key] = problem
        self._log(f"skipped, {len(self.found)} of at most {self.limit}: {problem}")
        if len(self.found) > self.limit:
            raise UserError(
                f"data.bad_image_limit: expected at most {self.limit} images that can't be read, "
                f"found {len(self.found)}, "
                f"the last: {problem}"
            )
