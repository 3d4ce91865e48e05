"""A verification for people: text, and one HTML page that holds everything and loads nothing."""

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from googlenet_jax.html_page import html_page
from googlenet_jax.runtime.storage import write_atomically, writing
from googlenet_jax.verification.compare import Row
from googlenet_jax.verification.verify import EQUAL, ROUNDING, Verification

SMALLEST = 1e-18  # where a difference of zero stands on a logarithmic axis
SHAPES_DIFFER = "shapes differ"
SAME_COLOUR, DIFFERENT_COLOUR = "#2e7d32", "#c0392b"
_STYLE = """
p, pre { overflow-wrap: anywhere; white-space: pre-wrap; }
li { white-space: pre-wrap; }
.verdict { padding: .8rem 1rem; border-radius: .4rem; font-size: 1.1rem; }
.same { background: #e6f4ea; }
.different { background: #fbe9e7; }
.wide { max-height: none; }
.wide.tall { max-height: 32rem; }
.wide svg { min-width: 40rem; width: 100%; height: auto; }
pre { background: #f2f4f8; padding: .6rem .8rem; border-radius: .4rem; }
th, td { text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.parted td { color: #b3261e; }
.about td + td { white-space: normal; overflow-wrap: anywhere; }
"""


def text(found: Verification) -> str:
    """The verdict, what it covers, and a table of the layers."""
    header = ["", "layer", "relative", "largest", "bound", "matched by"]
    lines = [header, *([_mark(row), *_cells(row, found)] for row in found.rows)]
    lines += [[_mark(row), *_cells(row, found)] for row in _summary(found.training)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = [
        "  ".join(
            cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*table, "", found.sentence(), found.covers()])


def _mark(row: Row) -> str:
    return "≠" if row.parted else "="


def _cells(row: Row, found: Verification) -> list[str]:
    if math.isfinite(row.relative):
        numbers = [f"{row.relative:.1e}", f"{row.largest:.1e}"]
    else:
        ours, theirs = ("×".join(map(str, shape)) for shape in (row.ours, row.theirs))
        numbers = [SHAPES_DIFFER if row.ours != row.theirs else "infinite", f"{ours} | {theirs}"]
    how = found.match.how.get(row.layer, "")
    return [row.layer, *numbers, f"{row.bound:.1e}", how]


def _summary(rows: Sequence[Row]) -> list[Row]:
    """Of each kind of training's rows the one that exceeds its bound by the largest factor."""
    kinds: dict[str, Row] = {}
    for row in rows:
        kind = row.layer.split()[0]
        if kind not in kinds or _excess(row) > _excess(kinds[kind]):
            kinds[kind] = row
    return list(kinds.values())


def _excess(row: Row) -> float:
    return row.relative / row.bound


def write_html(path: str | Path, found: Verification, command: str) -> None:
    """Writes the page, whole or not at all.

    Args:
      command: how to repeat it.
    Raises:
      UserError: the file can't be written.
    """
    content = page(found, command)
    with writing(path):
        write_atomically(
            Path(path), lambda temporary: temporary.write_text(content, encoding="utf-8")
        )


def draw_depth(found: Verification) -> Figure:
    """Draws each layer's relative difference over depth, and the bound that it is held to."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    places = range(len(found.rows))
    for marker, finite in (("o", True), ("x", False)):
        rows = [(i, r) for i, r in enumerate(found.rows) if math.isfinite(r.relative) == finite]
        heights = [max(row.relative, SMALLEST) if finite else 1.0 for _, row in rows]
        colours = [DIFFERENT_COLOUR if row.parted else SAME_COLOUR for _, row in rows]
        axes.scatter([i for i, _ in rows], heights, c=colours, s=18, marker=marker, zorder=3)
    axes.plot(places, [row.bound for row in found.rows], color="#5b6474", lw=1, label="bound")
    first = next((i for i, row in enumerate(found.rows) if row.parted), None)
    if first is not None:
        axes.axvline(first, color=DIFFERENT_COLOUR, lw=0.8, ls="--", label=found.rows[first].layer)
    axes.set_yscale("log")
    axes.set_ylabel("relative difference")
    axes.set_xlabel(f"layers in the network's order (×: shapes differ; 0 is drawn at {SMALLEST:g})")
    step = max(1, len(found.rows) // 16)
    axes.set_xticks(list(places)[::step])
    names = [row.layer for row in found.rows][::step]
    axes.set_xticklabels(names, rotation=40, ha="right", fontsize=7, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def worst(found: Verification) -> Row | None:
    """The layer whose channels are shown: where they first part, else the nearest to its bound."""
    rows = [row for row in found.rows if row.channels]
    parted = [row for row in rows if row.parted]
    return parted[0] if parted else max(rows, key=_excess, default=None)


def draw_channels(row: Row) -> Figure:
    """Draws the largest absolute difference of each channel of a layer."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    colour = DIFFERENT_COLOUR if row.parted else SAME_COLOUR
    axes.bar(range(len(row.channels)), row.channels, width=1.0, color=colour)
    axes.set(xlabel="channel", ylabel="largest difference", xlim=(-0.5, len(row.channels) - 0.5))
    return figure


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f'<div class="wide">{drawn}</div>'


def page(found: Verification, command: str) -> str:
    """The HTML page: nothing outside it is needed to see it."""
    shown = worst(found)
    sections = [
        f'<p class="verdict {_colour(found)}">{html.escape(found.sentence())}</p>',
        f"<p>{html.escape(found.covers())}.</p>",
        _explanations(found),
        "<h2>Difference by depth</h2>",
        _svg(draw_depth(found), "relative difference of each layer"),
    ]
    if shown is not None:
        title = f"The channels of {shown.layer}"
        sections += [
            f"<h2>{html.escape(title)}</h2>",
            _svg(draw_channels(shown), "difference by channel"),
        ]
    sections += [f"<h2>Layers ({len(found.rows)} rows)</h2>", _table(found.rows, found)]
    if found.training:
        sections += [
            "<h2>Training</h2>",
            "<p>Of each kind, the entry nearest to its bound or furthest above it.</p>",
            _table(_summary(found.training), found),
            f"<details><summary>all {len(found.training)} entries</summary>",
            _table(found.training, found),
            "</details>",
        ]
    sections += ["<h2>Which layer is which</h2>", _pairs(found)]
    sections += ["<h2>Made with</h2>", _about(found)]
    sections += ["<h2>To repeat it</h2>", f"<pre>{html.escape(command)}</pre>"]
    heading = f"{found.about['model']} compared with {found.about['against']}"
    return html_page("Verification", heading, "\n".join(sections), _STYLE)


def _colour(found: Verification) -> str:
    return "same" if found.verdict in (EQUAL, ROUNDING) else "different"


def _explanations(found: Verification) -> str:
    if found.first is None:
        return ""
    lines = [
        f"<li><b>{html.escape(fault.name)}</b> in {html.escape(fault.layer or 'every layer')}"
        f"{f': {html.escape(fault.detail)}' if fault.detail else ''}. Tested: with this fault "
        "applied to our side, the difference vanishes there.</li>"
        for fault in found.faults
    ]
    if found.unexplained is not None:
        layer = html.escape(found.unexplained.layer)
        lines.append(
            f"<li><b>unexplained</b> from {layer} on: no fault that is known does it.</li>"
        )
    tried = f"<p>{found.tried} suspected faults were applied to our side, one by one.</p>"
    return f"<h2>Explanation</h2><ul>{''.join(lines)}</ul>{tried}"


def _table(rows: Sequence[Row], found: Verification) -> str:
    heads = ["", "layer", "relative", "largest", "bound", "matched by"]
    head = "".join(f"<th{_aligned(i)}>{name}</th>" for i, name in enumerate(heads))
    lines = []
    for row in rows:
        cells = [_mark(row), *_cells(row, found)]
        inside = "".join(f"<td{_aligned(i)}>{html.escape(c)}</td>" for i, c in enumerate(cells))
        lines.append(f"<tr{' class=parted' if row.parted else ''}>{inside}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="wide tall">{table}</div>'


def _aligned(column: int) -> str:
    return ' class="number"' if column in (2, 3, 4) else ""


def _pairs(found: Verification) -> str:
    rows = [
        f"<tr><td>{html.escape(ours)}</td><td>{html.escape(theirs)}</td>"
        f"<td>{html.escape(found.match.how[ours])}</td></tr>"
        for ours, theirs in found.match.pairs.items()
    ]
    head = "<thead><tr><th>ours</th><th>theirs</th><th>matched by</th></tr></thead>"
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide tall">{table}</div>'


def _about(found: Verification) -> str:
    about = {name: value for name, value in found.about.items() if name != "versions"}
    about |= found.about["versions"]
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in about.items()
    )
    return f'<div class="wide"><table class="about">{rows}</table></div>'
