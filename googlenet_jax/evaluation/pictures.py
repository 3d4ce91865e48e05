"""Pictures from files, and a grid of them with what a network says."""

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from googlenet_jax.data.decoding import BadImage, decode, exif_orientation
from googlenet_jax.data.image_kind import RGB, ImageKind, shown
from googlenet_jax.data.picture_files import ENDINGS, list_pictures
from googlenet_jax.errors import UserError, one_line, printable
from googlenet_jax.runtime.storage import check_output, open_regular, write_atomically, writing

GRID_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from googlenet_jax.evaluation.predict import Prediction


def read_picture(file: str | Path | BinaryIO | Image.Image, kind: ImageKind = RGB) -> np.ndarray:
    """Reads a picture, or takes one that Pillow has opened, as training reads those of a folder:
    RGB, or one channel where the network takes that, turned as its EXIF orientation says; alpha is
    dropped, and of uint8 16 bits become their upper 8. A NumPy file (.npy) holds an image as it is.

    Returns:
      `[H, W, C]` of that kind.

    Raises:
      UserError: no such file, no regular one (a pipe, a device), not a picture, a damaged one, or
        one of another kind.
    """
    if isinstance(file, Image.Image):
        return _from_pillow(file, kind)
    if isinstance(file, str | Path) and Path(file).suffix == ".npy":
        return _from_array(file, kind)
    if kind.channels not in (1, 3):
        raise UserError(
            f"{file}: expected {kind}, which a NumPy file (.npy) holds; pictures have 1 or 3"
        )
    try:
        if isinstance(file, str | Path):
            name: object = file
            with open_regular(file) as opened:
                encoded = opened.read()
        else:
            name, encoded = "standard input", file.read()
    except OSError as error:
        raise UserError(f"{file}: can't read the picture: {error.strerror or error}") from error
    try:
        return decode(
            encoded,
            grey=kind.channels == 1,
            orientation=exif_orientation(encoded),
            dtype=kind.dtype,
        )
    except BadImage as error:
        raise UserError(f"{name}: can't read the picture: {error}") from error


def _from_array(file: str | Path, kind: ImageKind) -> np.ndarray:
    try:
        with open_regular(file) as opened:
            image = np.load(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: can't read the array: {one_line(error)}") from error
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype == np.float64:
        image = image.astype(np.float32)
    if image.ndim != 3 or not image.size or not kind.takes(image.shape[2], image.dtype):
        raise UserError(
            f"{file}: expected an array [H, W, {kind.channels}] of {kind.dtype}, found "
            f"{list(image.shape)} of {image.dtype}"
        )
    return image


def _from_pillow(image: Image.Image, kind: ImageKind) -> np.ndarray:
    """What `decode` would make of the picture's file."""
    modes = {"uint16": ("I;16", "I;16L", "I;16B"), "float32": ("F",)}.get(kind.dtype)
    if modes is None and kind.channels in (1, 3):
        return _as_rgb(image, kind.channels)
    if modes is None or image.mode not in modes:
        raise UserError(
            f"the picture: expected {kind}, found mode {image.mode}; give an array of that kind"
        )
    return np.asarray(ImageOps.exif_transpose(image)).astype(kind.dtype)[..., None]


def _as_rgb(image: Image.Image, channels: int) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upper = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
            return np.stack([upper] * channels, axis=-1)
        if upright.mode in ("I", "F"):
            raise UserError(
                f"the picture: expected 8 or 16 bits a channel, found mode {upright.mode}; convert "
                "it first"
            )
        if channels == 1:
            return np.asarray(upright.convert("L"))[..., None]
        return np.asarray(upright.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow's, of a damaged file that it reads only now: anything
        raise UserError(f"the picture: can't read the picture: {error}") from error


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
    check_output(path)


def find_pictures(argument: str) -> list[str]:
    """Returns the files that an argument names, in the order of their names.

    A folder stands for the pictures in it and in its folders: files with an image's ending that
    are not hidden. A pattern such as "photos/*.jpg" or "photos/**/*.png" stands for the files that
    it fits; anything else for itself.

    Raises:
      UserError: a folder without pictures, a pattern that fits no file.
    """
    path = Path(argument)
    if path.is_dir():
        found = list_pictures(path)[0]
        if not found:
            raise UserError(f"{argument}: no pictures in this folder ({', '.join(ENDINGS)})")
        return [str(each) for each in found]
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
    """Draws each picture (`[H, W, C]`) under its title, its predictions below as bars."""
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
        axes[2 * row, column].imshow(shown(picture), interpolation="nearest")
        axes[2 * row, column].set_title(
            _shortened(printable(title), 30), fontsize=8, parse_math=False
        )
        _draw_bars(axes[2 * row + 1, column], top, bars)
    return figure


def _draw_bars(axes: "Axes", predictions: Sequence["Prediction"], bars: int) -> None:
    shares = [each.probability for each in predictions]
    axes.barh(range(len(predictions)), shares, color="#9ecae1", height=0.9)
    axes.set(xlim=(0, 1), ylim=(bars - 0.5, -0.5))
    for line, each in enumerate(predictions):
        name, share = _shortened(printable(each.class_name), 26), f"{100 * each.probability:.1f} %"
        axes.text(0.02, line, name, va="center", fontsize=8, parse_math=False)
        axes.text(0.98, line, share, va="center", ha="right", fontsize=8)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[1 - length :]
