"""A verification for people: text, Markdown for a pull request, JSON, and one HTML page that loads
nothing.
"""

import html
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from googlenet_jax.html_page import html_page
from googlenet_jax.verification.rows import Row
from googlenet_jax.verification.verify import EQUAL, Report

SMALLEST = 1e-18  # where a difference of zero stands on a logarithmic axis
SAME_COLOUR, DIFFERENT_COLOUR = "#2e7d32", "#c0392b"
HEADS = ("", "place", "segment", "end to end", "largest", "bound")
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


def sentence(report: Report) -> str:
    """The verdict in words."""
    if report.equal:
        if report.verdict == EQUAL:
            return "equal, to the last bit"
        worst = max((row.relative for row in report.outputs), default=0.0)
        bound = max((row.bound for row in report.outputs), default=0.0)
        text = (
            f"equal to rounding: outputs differ by {worst:.1e} at most (relative; bound"
            f" {bound:.1e})"
        )
        inside = [row.name for row in report.rows if row.parted]
        if inside:
            text += f"; inside, the two go other ways at {', '.join(inside)}"
        return text
    parts = [str(each) for each in (*report.findings, *report.training_findings)]
    places = list(dict.fromkeys(where for _, where in report.unexplained))
    parts += [f"unexplained at {where}" for where in places]
    parted = [row.layer for row in report.training if row.parted]
    if not report.training_findings and parted and not any(r.parted for r in report.outputs):
        parts.append(f"unexplained in training from {parted[0]} on")
    return f"different: {'; '.join(parts) or 'unexplained'}"


def state(report: Report) -> str:
    """What is left with all findings in the reference, in words; "" where there are none."""
    if not report.findings or not report.after:
        return ""
    left = [row for row in report.after if row.parted]
    if not left:
        return "With this in the reference, all outputs are the candidate's, to rounding."
    what = ", ".join(f"{row.name} by {_number(row.relative)}" for row in left)
    return f"With this in the reference, outputs still differ: {what}."


def covers(report: Report) -> str:
    """What the verdict covers, in words."""
    alignment = report.alignment
    text = (
        f"{len(alignment.pairs)} of the reference's {len(alignment.reference)} layers with weights"
        " are paired"
    )
    for whose, names in zip(("reference", "candidate"), alignment.left(), strict=True):
        if names:
            text += f"; without a partner in the {whose}: {', '.join(names)}"
    for name, why in report.stuck.items():
        text += f"; {name} kept its own weights: {why}"
    if report.not_compared:
        text += f"; not compared: {', '.join(report.not_compared)}"
    return text


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "infinity"


def _cells(row: Row) -> list[str]:
    if row.kind == "output" and not row.node:
        place = f"output {row.name}"
    else:
        place = row.name if row.kind == "value" else f"{row.name} ({row.kind})"
    numbers = [_number(row.relative), _number(row.whole), _number(row.largest)]
    if row.reference != row.candidate:
        one, other = ("×".join(map(str, shape)) for shape in (row.reference, row.candidate))
        numbers[0], numbers[2] = "shapes differ", f"{one} | {other}"
    return ["≠" if row.parted else "=", place, *numbers, f"{row.bound:.1e}"]


def folded(rows: Sequence[Row]) -> list[list[str]]:
    """The table's lines: runs of equal segments are one line."""
    lines: list[list[str]] = []
    equal: list[Row] = []

    def close() -> None:
        if len(equal) > 2:
            names = f"{len(equal)} segments, {equal[0].name} … {equal[-1].name}"
            worst = [max(getattr(r, n) for r in equal) for n in ("relative", "whole", "largest")]
            lines.append(["=", names, *map(_number, worst), f"{equal[0].bound:.1e}"])
        else:
            lines.extend(_cells(row) for row in equal)
        equal.clear()

    for row in rows:
        if row.parted:
            close()
            lines.append(_cells(row))
        else:
            equal.append(row)
    close()
    return lines


def _training(report: Report) -> list[list[str]]:
    """Of each kind of training's rows the one that exceeds its bound by the largest factor."""
    kinds: dict[str, Any] = {}
    for row in report.training:
        kind = row.layer.split()[0]
        if kind not in kinds or row.relative / row.bound > kinds[kind].relative / kinds[kind].bound:
            kinds[kind] = row
    return [
        [
            "≠" if r.parted else "=",
            r.layer,
            _number(r.relative),
            "",
            _number(r.largest),
            f"{r.bound:.1e}",
        ]
        for r in kinds.values()
    ]


def lines_of(report: Report) -> list[list[str]]:
    """The whole table: outputs, segments, training."""
    return [*map(_cells, report.outputs), *folded(report.rows), *_training(report)]


def text(report: Report) -> str:
    """The table, the verdict, what is left and what it covers."""
    lines = [list(HEADS), *lines_of(report)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    table = [
        "  ".join(
            cell.rjust(width) if i > 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    title = f"{report.about['candidate']} compared with {report.about['reference']}"
    end = [each for each in (sentence(report), state(report), covers(report)) if each]
    return "\n".join([title, *table, "", *end])


def markdown(report: Report, command: str) -> str:
    """For a pull request."""
    mark = "✅" if report.equal else "❌"
    title = f"{report.about['candidate']} compared with {report.about['reference']}"
    lines = [f"### {mark} {title}", "", f"**{_escape(sentence(report))}**", ""]
    if state(report):
        lines += [_escape(state(report)), ""]
    lines += ["| " + " | ".join(HEADS) + " |", "|---|---|---:|---:|---:|---:|"]
    lines += ["| " + " | ".join(map(_escape, line)) + " |" for line in lines_of(report)]
    lines += ["", _escape(covers(report)) + ".", "", f"    {command}", ""]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def as_dict(report: Report) -> dict[str, Any]:
    """JSON values; null stands for what can't be subtracted."""
    number = lambda v: float(v) if math.isfinite(v) else None  # noqa: E731

    def row_of(row: Any) -> dict[str, Any]:
        return {
            "name": getattr(row, "name", None) or row.layer,
            "kind": getattr(row, "kind", "training"),
            "relative": number(row.relative),
            "end_to_end": number(getattr(row, "whole", row.relative)),
            "largest": number(row.largest),
            "bound": row.bound,
            "parted": row.parted,
        }

    def finding_of(each: Any) -> dict[str, str]:
        return {"fault": each.name, "layer": each.layer or "every layer", "detail": each.detail}

    pairs = [
        {
            "reference": report.alignment.reference[r].name,
            "candidate": report.alignment.candidate[c].leaf or report.alignment.candidate[c].name,
            "by": report.alignment.how[r],
        }
        for r, c in report.alignment.pairs.items()
    ]
    return {
        "verdict": report.verdict,
        "equal": report.equal,
        "sentence": sentence(report),
        "state": state(report),
        "covers": covers(report),
        "explanations": [finding_of(f) for f in (*report.findings, *report.training_findings)],
        "unexplained": [{"segment": row.name, "place": where} for row, where in report.unexplained],
        "rewrites_tried": report.tried,
        "outputs": [row_of(row) for row in report.outputs],
        "segments": [row_of(row) for row in report.rows],
        "training": [row_of(row) for row in report.training],
        "after": [row_of(row) for row in report.after],
        "pairs": pairs,
        "conversion": report.conversion(),
        "about": report.about,
    }


def as_json(report: Report) -> str:
    """`as_dict` as text."""
    return json.dumps(as_dict(report), indent=2, ensure_ascii=False, allow_nan=False)


# -------------------------------------------------------------------------------------------- page


def draw_depth(report: Report) -> Figure:
    """Draws each segment's relative difference over depth, alone and end to end."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    rows = report.rows
    places = range(len(rows))
    whole = [max(min(row.whole, 1e3), SMALLEST) for row in rows]
    axes.plot(places, whole, color="#8a93a6", lw=0.9, label="end to end")
    heights = [max(min(row.relative, 1e3), SMALLEST) for row in rows]
    colours = [DIFFERENT_COLOUR if row.parted else SAME_COLOUR for row in rows]
    axes.scatter(places, heights, c=colours, s=18, zorder=3, label="segment alone")
    axes.plot(places, [row.bound for row in rows], color="#5b6474", lw=1, ls="--", label="bound")
    axes.set_yscale("log")
    axes.set_ylabel("relative difference")
    axes.set_xlabel(f"segments in order (infinity is drawn at 1000, 0 at {SMALLEST:g})")
    step = max(1, len(rows) // 16)
    axes.set_xticks(list(places)[::step])
    names = [row.name for row in rows][::step]
    axes.set_xticklabels(names, rotation=40, ha="right", fontsize=7, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def draw_channels(row: Row) -> Figure:
    """Draws the largest absolute difference of each channel of a segment."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(row.channels)), row.channels, width=1.0, color=DIFFERENT_COLOUR)
    axes.set(xlabel="channel", ylabel="largest difference", xlim=(-0.5, len(row.channels) - 0.5))
    return figure


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f'<div class="wide">{drawn}</div>'


def page(report: Report, command: str) -> str:
    """The HTML page: nothing outside it is needed to see it."""
    sections = [
        (
            '<p class="verdict'
            f' {"same" if report.equal else "different"}">{html.escape(sentence(report))}</p>'
        ),
        f"<p>{html.escape(state(report))}</p>" if state(report) else "",
        f"<p>{html.escape(covers(report))}.</p>",
        "<h2>Outputs, segments, training</h2>",
        (
            "<p>Each segment was given what the candidate recorded before it, so that a difference"
            " shows where it begins and nowhere else. Runs of equal segments are one line.</p>"
        ),
        _table(HEADS, lines_of(report)),
        "<h2>Difference by depth</h2>",
        _svg(draw_depth(report), "relative difference of each segment"),
    ]
    shown = next((row for row in report.rows if row.parted and row.channels), None)
    if shown is not None and not report.equal:
        sections += [
            f"<h2>The channels of {html.escape(shown.name)}</h2>",
            _svg(draw_channels(shown), "difference by channel"),
        ]
    pairs = [[p["reference"], p["candidate"], p["by"]] for p in as_dict(report)["pairs"]]
    about = {k: v for k, v in report.about.items() if k != "versions"} | report.about["versions"]
    sections += [
        _folded(
            f"all {len(report.rows)} segments", _table(HEADS, [_cells(r) for r in report.rows])
        ),
        "<h2>Which layer is which</h2>",
        _folded(f"{len(pairs)} pairs", _table(("reference", "candidate", "by"), pairs)),
        _folded("the conversion as code", f"<pre>{html.escape(report.conversion())}</pre>"),
        "<h2>Made with</h2>",
        _table(("", ""), [[name, str(value)] for name, value in about.items()]),
        f"<h2>To repeat it</h2><pre>{html.escape(command)}</pre>",
    ]
    heading = f"{report.about['candidate']} compared with {report.about['reference']}"
    return html_page("Verification", heading, "\n".join(sections), _STYLE)


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{summary}</summary>{inside}</details>"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    numbers = len(heads) == len(HEADS)
    kind = lambda i: ' class="number"' if numbers and i > 1 else ""  # noqa: E731
    head = "".join(f"<th{kind(i)}>{name}</th>" for i, name in enumerate(heads))
    body = []
    for line in lines:
        cells = "".join(f"<td{kind(i)}>{html.escape(c)}</td>" for i, c in enumerate(line))
        body.append(f"<tr{' class=parted' if line[0] == '≠' else ''}>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide tall">{table}</div>'
