"""The parser of arguments: argparse's, which also names the nearest right word of a typing
error.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from googlenet_jax.errors import nearest

_CHOICE = re.compile(r"invalid choice: (.*) \(choose from (.*)\)$", re.S)
FIELD = re.compile(r"--(no)?config\.")  # of a config, which `train` takes


class Parser(argparse.ArgumentParser):
    """Names, where an argument is wrong, what was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def options(self) -> list[str]:
        """The options that this parser takes, as they are typed."""
        return re.findall(r"(?<!\w)--[a-z][a-z-]*", self.format_help())

    def unknown(self, given: Sequence[str]) -> str:
        """Names the options among `given` that this parser has not, and the nearest of each."""
        options = self.options()
        names = [each.split("=")[0] for each in given if each.startswith("--") and each != "--"]
        strange = [name for name in names if name not in options and not FIELD.match(name)]
        return "; ".join(f"there is no {name}{nearest(name, options)}" for name in strange)

    def error(self, message: str) -> NoReturn:
        if choice := _CHOICE.search(message):
            word = choice[1].strip("'\"")
            message += nearest(word, re.findall(r"[\w.-]+", choice[2]))
        elif "required" in message and (unknown := self.unknown(self._given)):
            message += f"; {unknown}"
        super().error(message)
