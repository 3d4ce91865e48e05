"""An evaluation for people: pictures, and one HTML page that holds them all and loads nothing."""

import base64
import functools
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from googlenet_jax.data.imagenet import readable_names
from googlenet_jax.data.sources import Source
from googlenet_jax.evaluation.pictures import grid_figure
from googlenet_jax.evaluation.predict import Prediction
from googlenet_jax.evaluation.records import TOP, Record
from googlenet_jax.evaluation.results import confusion_matrix, worst_mistakes
from googlenet_jax.html_page import html_page
from googlenet_jax.runtime.storage import write_atomically, writing

MISTAKES = 24  # shown
LABELLED = 30  # classes up to which the confusion matrix has names and numbers
TITLES = {
    "table": "Error by number of models and crops",
    "reliability": "Calibration",
    "confusion": "Confusion matrix",
    "mistakes": "Worst mistakes",
}

_STYLE = """
img { max-width: 100%; height: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; }
.cards div { flex: 1 1 8rem; padding: .6rem .8rem; background: #f2f4f8; border-radius: .4rem; }
.cards b { display: block; font-size: 1.3rem; white-space: nowrap; }
.cards span { color: #5b6474; }
th, td { text-align: right; }
th { cursor: pointer; }
td.text, th.text { text-align: left; }
"""
# A click on a column's head sorts its table.
_SORT = """<script>
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const column = head.cellIndex, body = head.closest("table").tBodies[0];
  const down = head.dataset.down = head.dataset.down === "yes" ? "no" : "yes";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
  const rows = [...body.rows].sort((a, b) => down === "yes" ? order(b, a) : order(a, b));
  body.append(...rows);
});
</script>"""


def write_report(
    folder: Path, results: Mapping[str, Any], records: Sequence[Record], source: Source
) -> list[Path]:
    """Writes results.json, table.png, reliability.png, confusion.png, mistakes.png and report.html.

    Args:
      folder: is made where it does not exist; each file is replaced whole.
      results: as `results.summarize` returns them, and for the page's heading also data, split and
        members (names).
    Returns:
      The files. There is no mistakes.png where no prediction is wrong.
    Raises:
      UserError: the folder can't be written.
    """
    figures = {
        "table": draw_table(results["table"]),
        "reliability": draw_reliability(results["calibration"]),
        "confusion": draw_confusion(*_with_examples(records, readable_names(source.class_names))),
    }
    mistakes = worst_mistakes(records, MISTAKES)
    if mistakes:
        figures["mistakes"] = draw_mistakes(mistakes, source)
    pictures = {name: _png(figure) for name, figure in figures.items()}
    files = {f"{name}.png": png for name, png in pictures.items()}
    files["results.json"] = (json.dumps(results, indent=2) + "\n").encode()
    files["report.html"] = page(results, pictures).encode()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with writing(folder / name):
            write_atomically(folder / name, functools.partial(_fill, content))
    return [folder / name for name in files]


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def draw_table(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the errors over the number of models, a line for each number of crops."""
    measures = [k for k in (1, TOP) if f"top{k}_error" in table[0]]
    figure = Figure(figsize=(4.8 * len(measures), 3.8), dpi=120, layout="constrained")
    all_axes = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, k in zip(all_axes, measures, strict=True):
        for crops in dict.fromkeys(row["crops"] for row in table):
            rows = [row for row in table if row["crops"] == crops]
            label = f"{crops} crop{'s' if crops > 1 else ''}"
            models = [row["models"] for row in rows]
            axes.plot(models, [100 * row[f"top{k}_error"] for row in rows], "o-", label=label)
            axes.set_xticks(models)
        axes.set(xlabel="models", title=f"top-{k} error, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def draw_reliability(calibration: Mapping[str, Any]) -> Figure:
    """Draws accuracy over confidence, the gap to the diagonal, and the number of examples."""
    bins = [row for row in calibration["bins"] if row["examples"]]
    figure = Figure(figsize=(4.8, 5.2), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    left = [row["low"] for row in bins]
    width = 1 / len(calibration["bins"])
    accuracy = [row["accuracy"] for row in bins]
    lower = [min(row["accuracy"], row["confidence"]) for row in bins]
    gap = [abs(row["confidence"] - row["accuracy"]) for row in bins]
    bar = {"width": width, "align": "edge"}
    above.bar(left, accuracy, color="#9ecae1", edgecolor="white", label="accuracy", **bar)
    red = {"color": "none", "edgecolor": "#d62728", "hatch": "///", "linewidth": 0.8}
    above.bar(left, gap, bottom=lower, label="gap to the confidence", **red, **bar)
    above.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.set_title(f"expected calibration error {100 * calibration['ece']:.2f} %")
    above.legend(loc="upper left", fontsize="small")
    examples = [row["examples"] for row in bins]
    below.bar(left, examples, color="#72767d", edgecolor="white", **bar)
    below.set(xlabel="confidence", ylabel="examples")
    return figure


def _with_examples(records: Sequence[Record], names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The confusion matrix, and its classes, without those that are neither there nor predicted."""
    matrix = confusion_matrix(records, len(names))
    kept = np.nonzero(matrix.any(0) | matrix.any(1))[0]
    return matrix[np.ix_(kept, kept)], [names[place] for place in kept.tolist()]


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws the shares of each class (row) that were taken for each class (column)."""
    classes = len(class_names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    labelled = classes <= LABELLED
    side = max(4.5, 0.42 * classes + 1.5) if labelled else 8
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    # The square root lets a few mistakes show beside a full diagonal.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    shown = [0, 0.01, 0.05, 0.2, 0.5, 1]
    bar.set_ticks(np.sqrt(shown).tolist(), labels=[f"{100 * share:g} %" for share in shown])
    axes.set(xlabel="predicted", ylabel="class")
    if labelled:
        names = [_shortened(name) for name in class_names]
        rotation = 0 if max(map(len, names)) <= 2 else 90
        axes.set_xticks(range(classes), names, rotation=rotation, fontsize=8, parse_math=False)
        axes.set_yticks(range(classes), names, fontsize=8, parse_math=False)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.3 else "black"
            text = str(matrix[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def draw_mistakes(mistakes: Sequence[Record], source: Source) -> Figure:
    """Draws the pictures of wrong predictions, their classes above and the predictions below."""
    examples = source.read([record["index"] for record in mistakes])
    pictures = [each["image"] for each in examples]
    names = readable_names(source.class_names)
    titles = [f"{names[record['label']]}, example {record['index']}" for record in mistakes]
    predictions = [
        [
            Prediction(names[label], probability)
            for label, probability in zip(record["classes"], record["probabilities"], strict=True)
        ]
        for record in mistakes
    ]
    return grid_figure(pictures, titles, predictions)


def _shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)  # draws without a display
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Returns the HTML page: results, and PNG pictures by name, inside one file."""
    sections = [
        _cards(results),
        "<h2>Models and crops</h2>",
        "<p>The average of the first models, over each number of crops.</p>",
        _rows_as_table(results["table"]),
        "<h2>Each model by itself</h2>",
        _rows_as_table(results["alone"]),
    ]
    for name, png in pictures.items():
        encoded = base64.b64encode(png).decode()
        title = TITLES[name]
        sections.append(f"<h2>{title}</h2>")
        sections.append(f'<img alt="{title}" src="data:image/png;base64,{encoded}">')
        if name == "confusion" and results["confused_pairs"]:
            sections.append("<h2>Most confused</h2>")
            sections.append(_rows_as_table(results["confused_pairs"]))
    sections += ["<h2>Classes</h2>", _rows_as_table(results["classes"])]
    members = "".join(f"<li>{html.escape(name)}</li>" for name in results["members"])
    body = "\n".join([f"<ol>{members}</ol>", *sections, _SORT])
    return html_page("Evaluation", f"{results['data']} {results['split']}", body, _STYLE)


def _cards(results: Mapping[str, Any]) -> str:
    last = results["table"][-1]
    cards = [
        (f"top-{k} error", _percent(last[f"top{k}_error"]))
        for k in (1, TOP)
        if f"top{k}_error" in last
    ]
    cards.append(("loss", f"{results['loss']:.4f}"))
    cards.append(("calibration error", _percent(results["calibration"]["ece"])))
    cards.append(("examples", f"{results['examples']:,}"))
    what = f"{last['models']} models, {last['crops']} crops"
    inside = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in cards)
    return f'<p>{what}:</p><div class="cards">{inside}</div>'


_SHARES = {"top1_error", "top5_error", "recall", "precision", "share"}
_TEXTS = {"model", "class", "predicted", "most_confused"}
_HEADS = {"top1_error": "top-1 error", "top5_error": "top-5 error", "most_confused": "taken for"}


def _rows_as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(
        f"<th{' class=text' if name in _TEXTS else ''}>{_HEADS.get(name, name)}</th>"
        for name in rows[0]
    )
    lines = ["".join(_cell(name, value) for name, value in row.items()) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, str):
        return f'<td class="text">{html.escape(value)}</td>'
    if name in _SHARES:
        return f'<td data-value="{value}">{_percent(value)}</td>'
    return f"<td>{value:.4f}</td>" if isinstance(value, float) else f"<td>{value}</td>"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
