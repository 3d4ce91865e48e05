"""The one exception that is meant for people, and a helper to word it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something a person gave is wrong; the text is one line that says what, where, and what to do."""


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the closest of `words`, or `""` where none is close."""
    match = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
