"""`googlenet-jax predict` on a run's folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from googlenet_jax.cli.main import main


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / name) for name in ("wide.png", "tall.jpg", "grey.png")]
    for path, shape in zip(paths, ((20, 31, 3), (40, 9, 3), (8, 8)), strict=True):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def test_prints_the_top_classes_with_names_and_draws_them(
    run_folder: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.png"
    assert main(["predict", "--run", str(run_folder), "--grid", str(grid), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines[:18] if not line.startswith(" ")] == pictures
    assert lines[1].split()[0] == "seven" and lines[1].endswith(" 99.89 %")
    assert len({len(line) for line in lines[:18] if line.startswith(" ")}) == 1
    with Image.open(grid) as image:
        assert min(image.size) > 300


def test_json_has_every_picture(run_folder: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--run", str(run_folder), "--weights", "raw", "--top", "20", "--json", *pictures]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in result] == pictures
    for entry in result:
        probabilities = [prediction["probability"] for prediction in entry["predictions"]]
        assert len(probabilities) == 10
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


def test_what_is_not_a_picture_is_named(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path in (text, tmp_path / "missing.png", tmp_path):
        assert main(["predict", "--run", str(run_folder), str(path)]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"googlenet-jax: {path}: ")
        assert captured.err.count("\n") == 1 and captured.out == ""


def test_a_grid_that_would_be_another_file_is_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for grid, message in ((tmp_path, "it is a folder"), (tmp_path / "grid", "expected a name that ends in .png")):
        assert main(["predict", "--run", str(tmp_path / "none"), "--grid", str(grid), str(tmp_path / "none.png")]) == 1
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
    assert not any(tmp_path.iterdir())
