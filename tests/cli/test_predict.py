"""`googlenet-jax predict` on a run's folder."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from googlenet_jax.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    paths = [str(folder / name) for name in ("grey.png", "more/tall.jpg", "wide.png")]
    for path, shape in zip(paths, ((8, 8), (40, 9, 3), (20, 31, 3)), strict=True):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no picture")
    return paths


def predict(run_folder: Path, *argv: str, capsys: Capture) -> list[dict]:
    assert main(["predict", "--weights", str(run_folder), *argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prints_the_top_classes_with_names_and_draws_them(
    run_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture
) -> None:
    grid = tmp_path / "grid.png"
    assert main(["predict", "--weights", str(run_folder), "--grid", str(grid), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines[:18] if not line.startswith(" ")] == pictures
    assert lines[1].split()[0] == "seven" and lines[1].endswith(" 99.89 %")
    assert len({len(line) for line in lines[:18] if line.startswith(" ")}) == 1
    with Image.open(grid) as image:
        assert min(image.size) > 300


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", b"\x1b[2Jgone.png", b"a\rb.png", "文.png".encode()]
)
def test_names_of_files_are_shown_and_not_obeyed(
    run_folder: Path, tmp_path: Path, name: bytes, capfdbinary
) -> None:
    folder = os.fsencode(tmp_path) + b"/pictures"
    os.mkdir(folder)
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    for each, content in ((name, (tmp_path / "good.png").read_bytes()), (b"bad_" + name, b"")):
        with open(folder + b"/" + each, "wb") as file:
            file.write(content)
    argv = ["predict", "--weights", str(run_folder), os.fsdecode(folder)]
    assert main([*argv, "--grid", str(tmp_path / "grid.png")]) == 1
    out, err = capfdbinary.readouterr()
    for said in (out, err):
        assert not {0x1B, 0x0D} & set(said)
        said.decode()
    assert b"seven" in out and b"bad_" in err
    assert main([*argv, "--json"]) == 1
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert {os.fsencode(line["image"]) for line in lines} == {
        folder + b"/" + name,
        folder + b"/bad_" + name,
    }


def test_json_has_a_line_for_every_picture(
    run_folder: Path, pictures: list[str], capsys: Capture
) -> None:
    result = predict(Path(f"{run_folder}@raw"), "--top", "20", *pictures, capsys=capsys)
    assert [entry["image"] for entry in result] == pictures
    for entry in result:
        probabilities = [prediction["probability"] for prediction in entry["predictions"]]
        assert len(probabilities) == 10
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


def test_folders_patterns_and_standard_input_are_the_same_pictures(
    run_folder: Path, pictures: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(Path(pictures[0]).parent)
    expected = predict(run_folder, *pictures, capsys=capsys)
    assert predict(run_folder, folder, capsys=capsys) == expected
    pattern = f"{folder}/**/*g"
    assert predict(run_folder, pattern, capsys=capsys) == expected
    pipe(monkeypatch, ("\n".join(pictures) + "\n\n").encode())
    assert predict(run_folder, "-", capsys=capsys) == expected
    pipe(monkeypatch, Path(pictures[1]).read_bytes())
    (piped,) = predict(run_folder, "-", capsys=capsys)
    assert piped == {**expected[1], "image": "-"}


def test_more_crops_give_another_average(
    run_folder: Path, pictures: list[str], capsys: Capture
) -> None:
    raw = Path(f"{run_folder}@raw")
    one, ten = (
        predict(raw, "--crops", crops, pictures[2], capsys=capsys)[0]["predictions"][0]
        for crops in ("1", "10")
    )
    assert one["probability"] != pytest.approx(ten["probability"], abs=1e-6)


def test_what_is_not_a_picture_is_named_and_the_others_go_on(
    run_folder: Path, pictures: list[str], tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path in (text, tmp_path / "missing.png"):
        argv = ["predict", "--weights", str(run_folder), pictures[0], str(path), pictures[1]]
        assert main(argv) == 1
        captured = capsys.readouterr()
        (error,) = captured.err.splitlines()
        assert error.startswith(f"googlenet-jax: {path}: ")
        assert [line for line in captured.out.splitlines() if line[0] != " "] == pictures[:2]
        assert main([*argv, "--json"]) == 1
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert ["error" in entry for entry in entries] == [False, True, False]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["EMPTY"], "no pictures in this folder"),
        (["EMPTY/*.png"], "no file fits this pattern"),
        (["-", "x.png"], "standard input goes alone"),
        (["x.png", "--top", "0"], "--top: expected at least 1"),
        (["x.png", "--grid", "EMPTY"], "can't write the grid: it is a folder"),
        (["x.png", "--grid", "grid"], "can't write the grid: expected a name that ends in .png"),
    ],
)
def test_says_what_is_wrong(
    run_folder: Path, tmp_path: Path, argv: list[str], said: str, capsys: Capture
) -> None:
    argv = [part.replace("EMPTY", str(tmp_path)) for part in argv]
    assert main(["predict", "--weights", str(run_folder), *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err and captured.err.count("\n") == 1
