"""For the documentation site: docstrings here have no empty line between their sections."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(Args|Attributes|Returns|Yields|Raises):\n")


class Sections(griffe.Extension):
    """Sets the sections of every docstring apart."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each function, class and module."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(r"\n\n\1:\n", obj.docstring.value)
