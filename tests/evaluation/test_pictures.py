"""Pictures from files: orientation, channels, and what is refused."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from googlenet_jax.data.folder import prepare_folder
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.pictures import draw_grid, find_pictures, read_picture
from googlenet_jax.evaluation.predict import Prediction

BAD_PICTURES = sorted((Path(__file__).parents[1] / "data" / "bad_pictures").glob("*.jpg"))
FLOWER = np.ascontiguousarray(load_sample_image("flower.jpg")[:200:4, :320:4])


def test_reads_rgb(tmp_path: Path) -> None:
    Image.fromarray(FLOWER).save(tmp_path / "flower.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "flower.png"), FLOWER)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)],
)
def test_turns_as_exif_says(tmp_path: Path, orientation: int, turn) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FLOWER).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), turn(FLOWER))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_becomes_three_channels_of_uint8(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.tiff"
    Image.fromarray(FLOWER).convert(mode).save(path)
    picture = read_picture(path)
    assert picture.shape == FLOWER.shape and picture.dtype == np.uint8


@pytest.mark.parametrize("kind", ["transparent", "half transparent", "grey and alpha", "16 bits"])
def test_a_picture_is_read_as_training_reads_it(tmp_path: Path, kind: str) -> None:
    red = np.dstack([FLOWER, np.full(FLOWER.shape[:2], 0 if kind == "transparent" else 128)])
    picture = {
        "grey and alpha": lambda: Image.fromarray(red.astype(np.uint8)).convert("LA"),
        "16 bits": lambda: Image.fromarray(FLOWER[..., 0].astype(np.uint16) * 257),
    }.get(kind, lambda: Image.fromarray(red.astype(np.uint8)))()
    path = tmp_path / "pictures" / "a" / "picture.png"
    path.parent.mkdir(parents=True)
    picture.save(path)
    prepare_folder(tmp_path / "pictures", "few", tmp_path / "data", validation_fraction=0)
    trained_on = load_source("few", "train", tmp_path / "data")[0]["image"]
    np.testing.assert_array_equal(read_picture(path), trained_on)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_picture(opened), trained_on)
    if "transparent" in kind:
        np.testing.assert_array_equal(trained_on, FLOWER)


def test_names_a_damaged_picture_and_says_why(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(FLOWER).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for file in (cut, *BAD_PICTURES):
        with pytest.raises(UserError, match=rf"{file.name}: can't read the picture: expected"):
            read_picture(file)
    with pytest.raises(UserError, match="standard input: can't read"):
        read_picture(io.BytesIO(b"%!PS"))


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    cases = {"pipe.jpg": "a pipe", "folder.jpg": "a folder", "/dev/zero": "a device"}
    for name, found in cases.items():
        with pytest.raises(UserError, match=f"{name}: expected a file, found {found}"):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match=r"missing\.jpg: can't read the picture: No such file"):
        read_picture(tmp_path / "missing.jpg")
    with pytest.raises(UserError, match="no pictures in this folder"):
        find_pictures(str(tmp_path))  # the pipe is none


def test_draws_a_grid_of_any_number(tmp_path: Path) -> None:
    for count in (1, 2, 5):
        path = tmp_path / f"{count}.png"
        top = [Prediction("a flower with a very long name indeed", 0.75), Prediction("$x_1$", 0.2)]
        draw_grid(
            path, [FLOWER] * count, [f"folder/picture_{i}.png" for i in range(count)], [top] * count
        )
        assert read_picture(path).std() > 0


def test_a_grid_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    cases = {
        tmp_path / "no" / "grid.png": "grid.png: can't be written",
        tmp_path / "grid.nonsense": "grid.nonsense: can't write the grid: expected a name that",
        tmp_path / "grid": "can't write the grid",
        tmp_path / "folder.png": "can't write the grid",
    }
    for path, said in cases.items():
        with pytest.raises(UserError, match=said):
            draw_grid(path, [FLOWER], ["x"], [[Prediction("y", 1.0)]])
    assert [each.name for each in tmp_path.iterdir()] == ["folder.png"]


def test_finds_the_pictures_of_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / ".x").mkdir()
    for name in (
        "b.png",
        "a.JPG",
        "more/c.jpeg",
        "notes.txt",
        "[1].png",
        "._b.png",
        "d.eps",
        ".x/e.png",
    ):
        (tmp_path / name).write_bytes(b"")

    def names(argument: Path) -> list[str]:
        return [str(Path(each).relative_to(tmp_path)) for each in find_pictures(str(argument))]

    assert names(tmp_path) == ["[1].png", "a.JPG", "b.png", "more/c.jpeg"]
    assert names(tmp_path / "*.png") == ["[1].png", "b.png"]
    assert names(tmp_path / "**/*.jp*g") == ["more/c.jpeg"]
    assert names(tmp_path / "[1].png") == ["[1].png"]  # a file that is there is no pattern
    assert names(tmp_path / "missing.png") == ["missing.png"]
