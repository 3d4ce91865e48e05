"""The one exception that is meant for people, and helpers that word and raise it."""

import contextlib
import difflib
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class UserError(Exception):
    """Something a person gave is wrong; the text is one line that says what, where, and what to
    do.
    """


# Control characters but tab and line feed, what turns the direction of writing, other line breaks,
# and bytes of a file's name that are no UTF-8, which Python keeps as lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    """Returns the text with what a terminal would obey, or can't show, written as an escape, such
    as `\\x1b`; the characters in `keep` stay.
    """
    return _UNPRINTABLE.sub(
        lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text
    )


def one_line(error: object, most: int | None = None) -> str:
    """Returns an error's text on one line, of at most so many characters; its type's name where it
    says nothing.
    """
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts the field, file or parameter before what a UserError raised inside says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the closest of `words`, or `""` where none is close."""
    match = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def check_whole(name: str, value: Any, smallest: int, largest: float = math.inf) -> int:
    """Returns a whole number as Python's; raises UserError where `value` is none or not from
    `smallest` to `largest`.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not smallest <= int(value) <= largest
    ):
        limits = (
            f"of at least {smallest}" if largest == math.inf else f"from {smallest} to {largest}"
        )
        raise UserError(f"{name}: expected a whole number {limits}, found {value!r}")
    return int(value)


def check_range(name: str, limits: Sequence[float], largest: float = math.inf) -> None:
    """Raises UserError unless `limits` are two numbers above 0 and at most `largest`, the smaller
    first.
    """
    if len(limits) != 2 or not 0 < limits[0] <= limits[1] <= largest:
        at_most = "" if largest == math.inf else f" and at most {largest:g}"
        raise UserError(
            f"{name}: expected two numbers in ascending order, above 0{at_most}, found"
            f" {tuple(limits)}"
        )
