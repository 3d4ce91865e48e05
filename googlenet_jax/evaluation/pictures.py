"""Pictures from files, and a grid of them with what a network says."""

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.storage import write_atomically, writing

GRID_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from googlenet_jax.evaluation.predict import Prediction


def read_picture(file: str | Path | BinaryIO | Image.Image) -> np.ndarray:
    """Reads a picture, or takes one that Pillow has opened, as uint8 `[H, W, 3]`, RGB, turned as its EXIF orientation says.

    White stands behind what is transparent.

    Raises:
      UserError: no such file, not a picture, a damaged one, or one of more than 8 bits a channel.
    """
    name = file if isinstance(file, str | Path) else "the picture"
    try:
        if isinstance(file, Image.Image):
            return _as_rgb(file, name)
        with Image.open(file) as image:
            return _as_rgb(image, name)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name}: not a picture that Pillow can read; give a JPEG or PNG file"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # `strerror` leaves out the path, which an OSError of the system repeats; a damaged picture
        # has none.
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: can't read the picture: {reason}") from error


def _as_rgb(image: Image.Image, name: str | Path) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UserError(
            f"{name}: expected a picture of 8 bits a channel, found mode {image.mode}; "
            "save it as an 8-bit PNG or JPEG"
        )
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        # As a browser shows it: the colours behind a transparent pixel are arbitrary, black
        # as a rule.
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def draw_grid(
    path: str | Path,
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    predictions: Sequence[Sequence["Prediction"]],
) -> None:
    """Draws `grid_figure` into the file that `path` names.

    Raises:
      UserError: the file can't be written, or its ending names no format of matplotlib's.
    """
    check_grid_path(path)
    figure = grid_figure(pictures, titles, predictions)
    with writing(path):
        write_atomically(Path(path), figure.savefig)


def check_grid_path(path: str | Path) -> None:
    """Raises UserError unless `draw_grid` can write exactly this file: it must end as a picture
    does, and be no folder.
    """
    if Path(path).is_dir():
        raise UserError(
            f"{path}: can't write the grid: it is a folder; name a file in it, such as "
            f"{Path(path) / 'grid.png'}"
        )
    if Path(path).suffix.lower() not in GRID_SUFFIXES:
        # matplotlib would add an ending, and write another file than the one that was named.
        raise UserError(
            f"{path}: can't write the grid: expected a name that ends in {', '.join(GRID_SUFFIXES)}"
        )


def find_pictures(argument: str) -> list[str]:
    """Returns the files that an argument names, in the order of their names.

    A folder stands for the pictures in it and in its folders, by their endings; a pattern such as
    "photos/*.jpg" or "photos/**/*.png" for the files that it fits; anything else for itself.

    Raises:
      UserError: a folder without pictures, a pattern that fits no file.
    """
    path = Path(argument)
    if path.is_dir():
        endings = Image.registered_extensions()
        found = [each for each in path.rglob("*") if each.suffix.lower() in endings]
        if not found:
            raise UserError(f"{argument}: no pictures in this folder, such as .jpg or .png files")
        return [str(each) for each in sorted(found)]
    if path.exists() or not any(sign in argument for sign in "*?["):
        return [argument]
    matches = sorted(each for each in glob.glob(argument, recursive=True) if Path(each).is_file())
    if not matches:
        raise UserError(f"{argument}: no file fits this pattern")
    return matches


def grid_figure(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    predictions: Sequence[Sequence["Prediction"]],
) -> "Figure":
    """Draws each picture (uint8 `[H, W, 3]`) under its title, its predictions below as bars."""
    from matplotlib.figure import Figure  # slow to import, and most predictions are only printed

    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    bars = max(len(each) for each in predictions)
    figure = Figure(
        figsize=(2.6 * columns, (2.7 + 0.22 * bars) * rows), dpi=120, layout="constrained"
    )
    ratios = [2.4, 0.22 * bars] * rows
    axes = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (picture, title, top) in enumerate(zip(pictures, titles, predictions, strict=True)):
        row, column = divmod(i, columns)
        axes[2 * row, column].imshow(picture, interpolation="nearest")
        axes[2 * row, column].set_title(_shortened(title, 30), fontsize=8, parse_math=False)
        draw_bars(axes[2 * row + 1, column], top, bars)
    return figure


def draw_bars(axes: "Axes", predictions: Sequence["Prediction"], bars: int) -> None:
    """Draws predictions as bars with their names, on axes with room for so many."""
    shares = [each.probability for each in predictions]
    axes.barh(range(len(predictions)), shares, color="#9ecae1", height=0.9)
    axes.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))
    for line, each in enumerate(predictions):
        name, share = _shortened(each.class_name, 26), f"{100 * each.probability:.1f} %"
        axes.text(0.02, line, name, va="center", fontsize=8, parse_math=False)
        axes.text(0.98, line, share, va="center", ha="right", fontsize=8)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
