"""For the documentation site: what stands outside docs/ is named there and linked nowhere."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns a page's links to files of the repository into their names."""
    if "/" in page.file.src_uri:  # a page in a folder reaches its neighbours by ../
        return markdown

    def named(match: re.Match[str]) -> str:
        text, path = match[1].strip("`"), match[2]
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return OUTSIDE.sub(named, markdown)
