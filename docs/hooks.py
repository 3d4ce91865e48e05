"""For the documentation site: what stands outside docs/ is named there and linked nowhere."""

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns a page's links to files of the repository into their names, and `{{ fields }}` into the
    table of a config's fields.
    """
    if "{{ fields }}" in markdown:
        markdown = markdown.replace("{{ fields }}", fields())
    if "/" in page.file.src_uri:  # a page in a folder reaches its neighbours by ../
        return markdown

    def named(match: re.Match[str]) -> str:
        text, path = match[1].strip("`"), match[2]
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return OUTSIDE.sub(named, markdown)


def fields() -> str:
    """The fields of a config as a table in Markdown."""
    from googlenet_jax.training.config import FIELDS

    lines = ["| field | default | what | expected |", "|---|---|---|---|"]
    for field in FIELDS:
        default = repr(field.default).replace("|", "\\|")
        resumed = " A resumed run may change it." if field.may_change else ""
        expected = field.check[1] if field.check else ""
        lines.append(f"| `{field.name}` | `{default}` | {field.help}{resumed} | {expected} |")
    return "\n".join(lines)
