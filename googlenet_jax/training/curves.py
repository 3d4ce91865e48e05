"""Curves of one run or of several in one picture: loss, top-1 and learning rate over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Curve = tuple[list[float], list[float]]

_STYLES = {"train": (":", 1.0), "raw": ("--", 1.2), "ema": ("-", 1.6)}  # line style and width


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws a picture of three panels into `path` (PNG, PDF or SVG by its suffix).

    `runs` maps a name to the lines of its metrics.jsonl. One run has a colour for each split,
    several have a colour each; dotted is training, dashed the raw weights, drawn through their
    average ("ema"). Loss is on a logarithmic scale, top-1 in percent. Where lines are means of
    several runs, NAME beside NAME_sd, one standard deviation around them is shaded.
    """
    figure = Figure(figsize=(15, 4.6), dpi=110)
    FigureCanvasAgg(figure)  # Agg draws without a display
    # Fixed margins: matplotlib's own layout engines draw everything twice.
    loss, top1, rate = figure.subplots(
        1,
        3,
        gridspec_kw={"left": 0.04, "right": 0.985, "bottom": 0.12, "top": 0.92, "wspace": 0.16},
    )
    colours = _Colours()
    for name, lines in runs.items():
        for split, weights in dict.fromkeys((line["split"], line.get("weights")) for line in lines):
            own = [
                line for line in lines if (line["split"], line.get("weights")) == (split, weights)
            ]
            label = " ".join(
                part
                for part in (
                    name if len(runs) > 1 else "",
                    split,
                    weights if weights == "ema" else "",
                )
                if part
            )
            style, width = _STYLES["train" if weights is None else weights]
            look = {
                "color": colours[name if len(runs) > 1 else split],
                "linestyle": style,
                "linewidth": width,
                "label": label,
            }
            _plot(loss, _curve(own, "loss"), look)
            _plot(top1, _curve(own, "top1", 100), look)
            _shade(loss, own, "loss", 1, look["color"])
            _shade(top1, own, "top1", 100, look["color"])
            _plot(rate, _curve(own, "learning_rate"), {**look, "label": name, "linestyle": "-"})
    # The first evaluations of a batch-normalised network can be far off, and would flatten all
    # else.
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")  # the scale's own powers of ten do not fit the margin
    loss.yaxis.set_minor_formatter(NullFormatter())
    several = len(runs) > 1  # by colour: one legend says which, where it hides nothing
    kinds = " (dotted: training, dashed: raw)" if several else ""
    for axes, title in ((loss, f"loss{kinds}"), (top1, "top-1, %"), (rate, "learning rate")):
        _finish(axes, title, legend=several == (axes is rate))
    figure.savefig(path)


class _Colours(dict[str, str]):
    """A colour for each name, in the order in which they are asked for."""

    def __missing__(self, name: str) -> str:
        self[name] = f"C{len(self) % 10}"
        return self[name]


def _curve(lines: Sequence[Mapping[str, Any]], field: str, scale: float = 1.0) -> Curve:
    points = [(line["epoch"], scale * line[field]) for line in lines if field in line]
    return [x for x, _ in points], [y for _, y in points]


def _plot(axes: Axes, curve: Curve, look: Mapping[str, Any]) -> None:
    if curve[0]:
        # A single point makes no line, so it gets a mark.
        axes.plot(*curve, **look, marker="o" if len(curve[0]) == 1 else None, markersize=4)


def _shade(
    axes: Axes, lines: Sequence[Mapping[str, Any]], field: str, scale: float, colour: Any
) -> None:
    """One standard deviation around the means, where the lines have it."""
    known = [line for line in lines if f"{field}_sd" in line]
    if known:
        x = [line["epoch"] for line in known]
        low, high = (
            [scale * (line[field] + sign * line[f"{field}_sd"]) for line in known]
            for sign in (-1, 1)
        )
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _finish(axes: Axes, title: str, legend: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if legend and axes.lines:
        # The texts are set afterwards: a label of matplotlib's that begins with "_" is hidden, and
        # one with two "$" is read as a formula.
        texts = axes.legend(axes.lines, ["·"] * len(axes.lines), fontsize="small").get_texts()
        for text, line in zip(texts, axes.lines, strict=True):
            text.set(text=line.get_label(), parse_math=False)
