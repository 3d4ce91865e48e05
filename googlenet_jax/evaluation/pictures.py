"""Pictures from files, and a grid of them with what a network says."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.predict import Prediction

GRID_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


def read_picture(path: str | Path) -> np.ndarray:
    """Reads a picture as uint8 `[H, W, 3]`, RGB, turned as its EXIF orientation says; white stands behind what is transparent.

    Raises:
      UserError: no such file, not a picture, a damaged one, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise UserError(f"{path}: expected a picture of 8 bits a channel, found mode {image.mode}; save it as an 8-bit PNG or JPEG")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                # As a browser shows it: the colours behind a transparent pixel are arbitrary, black as a rule.
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture that Pillow can read; give a JPEG or PNG file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # `strerror` leaves out the path, which an OSError of the system repeats; a damaged picture has none.
        raise UserError(f"{path}: can't read the picture: {getattr(error, 'strerror', None) or error}") from error


def check_grid_path(path: str | Path) -> None:
    """Raises UserError unless `draw_grid` can write exactly this file: it must end as a picture does, and be no folder."""
    if Path(path).is_dir():
        raise UserError(f"{path}: can't write the grid: it is a folder; name a file in it, such as {Path(path) / 'grid.png'}")
    if Path(path).suffix.lower() not in GRID_SUFFIXES:
        # matplotlib would add an ending, and write another file than the one that was named.
        raise UserError(f"{path}: can't write the grid: expected a name that ends in {', '.join(GRID_SUFFIXES)}")


def draw_grid(path: str | Path, pictures: Sequence[np.ndarray], titles: Sequence[str], predictions: Sequence[Sequence[Prediction]]) -> None:
    """Draws each picture (uint8 `[H, W, 3]`) under its title, with its predictions below as bars, and writes the file that `path` names.

    Raises:
      UserError: the file can't be written, or is not named as a picture.
    """
    check_grid_path(path)
    from matplotlib.figure import Figure  # slow to import, and most predictions are only printed

    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    bars = max(len(each) for each in predictions)
    figure = Figure(figsize=(2.6 * columns, (2.7 + 0.22 * bars) * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw={"height_ratios": [2.4, 0.22 * bars] * rows})
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (picture, title, top) in enumerate(zip(pictures, titles, predictions, strict=True)):
        row, column = divmod(i, columns)
        axes[2 * row, column].imshow(picture, interpolation="nearest")
        axes[2 * row, column].set_title(_shortened(title, 30), fontsize=8, parse_math=False)
        below = axes[2 * row + 1, column]
        below.barh(range(len(top)), [each.probability for each in top], color="#9ecae1", height=0.9)
        below.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))
        for line, each in enumerate(top):
            below.text(0.02, line, _shortened(each.class_name, 26), va="center", fontsize=8, parse_math=False)
            below.text(0.98, line, f"{100 * each.probability:.1f} %", va="center", ha="right", fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't write the grid: {getattr(error, 'strerror', None) or error}") from error


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
