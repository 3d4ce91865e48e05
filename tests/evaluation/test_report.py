"""The report: one page that loads nothing, and pictures that can be opened."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.report import draw_confusion, write_report
from googlenet_jax.evaluation.results import summarize
from tests.evaluation.test_results import NAMES, RECORDS

SPECIAL = ["<b>ant</b>", "$x_1$", "cat & dog", *NAMES[3:]]


class Pictures:
    """A source of pictures, one of them grey."""

    class_names = tuple(SPECIAL)

    def read(self, indices: list[int]) -> list[dict[str, Any]]:
        shapes = [(20, 30, 3), (9, 7, 1), (8, 8, 3), (40, 10, 3)]
        rng = np.random.default_rng(0)
        return [{"image": rng.integers(0, 256, shapes[i], dtype=np.uint8)} for i in indices]


class Page(HTMLParser):
    """Collects what a page would load, its tags and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path, records: list[dict] = RECORDS) -> list[Path]:
    results = summarize(records, SPECIAL, ["a & b", "second"], [1, 10])
    heading = {"data": "<i>set</i>", "split": "test", "members": ["a & b", "second"]}
    source: Any = Pictures()
    return write_report(folder, {**heading, **results}, records, source)


def test_the_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    files = report(tmp_path / "new" / "folder")
    assert {file.name for file in files} == {
        "results.json", "report.html", "table.png", "reliability.png", "confusion.png",
        "mistakes.png",
    }  # fmt: skip
    page = Page((tmp_path / "new" / "folder" / "report.html").read_text())
    assert len(page.loads) == 4
    assert all(each.startswith("data:image/png;base64,") for each in page.loads)
    for name in SPECIAL[:2]:  # those that have examples
        assert name in page.text
    assert "<i>set</i> test" in page.text and "b" not in page.tags[page.tags.index("table") :]
    assert "75.00 %" in page.text and "50.00 %" in page.text


def test_pictures_open(tmp_path: Path) -> None:
    for file in report(tmp_path):
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert np.asarray(picture.convert("L")).std() > 5


def test_without_mistakes_there_is_no_picture_of_them(tmp_path: Path) -> None:
    files = report(tmp_path, [RECORDS[0]])
    assert "mistakes.png" not in {file.name for file in files}
    assert "Most confused" not in (tmp_path / "report.html").read_text()


def test_a_thousand_classes_are_drawn_without_names() -> None:
    matrix = np.diag(np.full(1000, 50))
    figure = draw_confusion(matrix, [f"class {number}" for number in range(1000)])
    assert len(figure.axes[0].texts) == 0
    assert len(draw_confusion(matrix[:9, :9], SPECIAL + NAMES[:3]).axes[0].texts) == 9


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: can't be written"):
        report(tmp_path / "file")
