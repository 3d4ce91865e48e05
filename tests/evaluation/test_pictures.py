"""Pictures from files: orientation, channels, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.pictures import draw_grid, find_pictures, read_picture
from googlenet_jax.evaluation.predict import Prediction

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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "palette with alphas", "RGB", "L"])
def test_white_stands_behind_what_is_transparent(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.png"
    # A grey left half, and a right half that is transparent and dark.
    grey = np.full((4, 6), 200, np.uint8)
    grey[:, 3:] = 10
    alpha = np.where(grey == 200, 255, 0).astype(np.uint8)
    picture, options = Image.fromarray(grey), {}
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
    else:
        picture = picture.convert("P" if "palette" in mode else mode)
        if "palette" in mode:
            options["transparency"] = bytes(
                0 if index == 10 else 255 for index in range(256)
            )  # the warning's case
        else:
            options["transparency"] = (10, 10, 10) if mode == "RGB" else 10
    picture.save(path, **options)
    expected = np.where(grey == 200, 200, 255).astype(np.uint8)
    np.testing.assert_array_equal(read_picture(path), np.stack([expected] * 3, axis=-1))


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 255, 128)).save(tmp_path / "half.png")
    np.testing.assert_allclose(
        read_picture(tmp_path / "half.png")[0, 0], [127, 177, 255], atol=1
    )  # 255 · ½ + value · ½


def test_refuses_what_it_would_misread(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(FLOWER[..., 0].astype(np.uint16) * 257).save(deep)
    with pytest.raises(UserError, match=r"deep\.png: expected a picture of 8 bits"):
        read_picture(deep)
    buffer = io.BytesIO()
    Image.fromarray(FLOWER).save(buffer, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UserError, match=r"cut\.jpg: can't read the picture"):
        read_picture(cut)


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
    for name in ("b.png", "a.JPG", "more/c.jpeg", "notes.txt", "[1].png"):
        (tmp_path / name).write_bytes(b"")

    def names(argument: Path) -> list[str]:
        return [str(Path(each).relative_to(tmp_path)) for each in find_pictures(str(argument))]

    assert names(tmp_path) == ["[1].png", "a.JPG", "b.png", "more/c.jpeg"]
    assert names(tmp_path / "*.png") == ["[1].png", "b.png"]
    assert names(tmp_path / "**/*.jp*g") == ["more/c.jpeg"]
    assert names(tmp_path / "[1].png") == ["[1].png"]  # a file that is there is no pattern
    assert names(tmp_path / "missing.png") == ["missing.png"]
