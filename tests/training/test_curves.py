"""The curves' picture: every label is whole, and a folder's name stands there as it is."""

import json
from pathlib import Path

import matplotlib.figure
import pytest
from matplotlib.figure import Figure

from googlenet_jax.training.curves import draw_curves

CIFAR10 = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-24-cifar10-metrics.jsonl"
LINES = [
    {"step": step, "epoch": step / 10, "split": split, "loss": loss, "top1": 0.5, **more}
    for step, loss in ((5, 2.0), (10, 1.5), (15, 1.2))
    for split, more in (("train", {"learning_rate": 0.1}), ("test", {"weights": "raw"}))
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **named: (figures.append(self), save(self, *args, **named)),
    )
    return figures


@pytest.mark.parametrize(
    "lines",
    [[json.loads(line) for line in CIFAR10.read_text().splitlines()], LINES],
    ids=["CIFAR-10", "one decade"],
)
def test_tick_labels_are_inside_the_picture(
    tmp_path: Path, drawn: list[Figure], lines: list[dict]
) -> None:
    draw_curves({"run": lines}, tmp_path / "curves.png")
    (figure,) = drawn
    right, top = figure.canvas.get_width_height()
    for axes in figure.axes:
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        shown = [
            label
            for label in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True))
            if label.get_text()
        ]
        assert len(shown) >= 2
        for label in shown:
            box = label.get_window_extent(renderer)
            if (
                axes.bbox.y0 <= (box.y0 + box.y1) / 2 <= axes.bbox.y1
            ):  # a tick beyond the axis is not drawn
                assert box.x0 >= 0 and box.x1 <= right and box.y1 <= top, label.get_text()


@pytest.mark.parametrize("names", [("cost$1", "cost$2"), ("$x_{", "$"), ("_hidden", "b")])
def test_names_stand_as_they_are(
    tmp_path: Path, drawn: list[Figure], names: tuple[str, str]
) -> None:
    both = {name + "$" if "$" in name else name: LINES for name in names}
    draw_curves(both, tmp_path / "curves.png")
    texts = [text.get_text() for text in drawn[0].axes[-1].get_legend().get_texts()]
    assert texts == list(both)
