"""Detections drawn into pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from googlenet_jax.detection.measures import Detections
from googlenet_jax.errors import UserError

# Colours that stand apart from one another and carry black text.
COLOURS = (
    "#ffd700", "#66d9ff", "#ff9e9e", "#9dff8a", "#ffb347",
    "#d9b3ff", "#7fffd4", "#ff8ad4", "#c8e600", "#e0e0e0",
)  # fmt: skip
LARGEST_TEXT = 18  # pixels


def draw_detections(
    image: np.ndarray,
    found: Detections,
    class_names: Sequence[str],
    truth: np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes with names and scores into a copy of an image, the best one on top.

    Args:
      image: uint8 [H, W, 1 or 3].
      found: what to draw, all of it.
      truth: float [G, 4], boxes that are drawn as thin white lines below.
    Returns:
      uint8 [H, W, 3].
    """
    picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
    pen = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 160))
    font = ImageFont.load_default(max(9, min(LARGEST_TEXT, round(min(picture.size) / 22))))
    for box in truth if truth is not None else []:
        pen.rectangle(_corners(box), outline="white", width=1)
    for i in np.argsort(found.scores, kind="stable"):
        colour = COLOURS[found.labels[i] % len(COLOURS)]
        left, top, right, bottom = _corners(found.boxes[i])
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        text = f"{class_names[found.labels[i]]} {found.scores[i]:.2f}"
        size = pen.textbbox((0, 0), text, font=font)
        height, width = size[3] + 2, size[2] + 4
        y = top - height if top >= height else top  # inside the box where there is no room above
        x = max(0.0, min(left, picture.width - width))
        pen.rectangle((x, y, x + width, y + height), fill=colour)
        pen.text((x + 2, y), text, fill="black", font=font)
    return np.asarray(picture)


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    """PIL's corners of a box: left, top, right, bottom, the last two inside it."""
    top, left, bottom, right = (float(each) for each in box)
    return left, top, max(left, right - 1), max(top, bottom - 1)


def draw_sheet(pictures: Sequence[np.ndarray], side: int = 320, gap: int = 6) -> np.ndarray:
    """Lays pictures out on one sheet, each scaled to fit a square of that side; uint8 [H, W, 3]."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        scale = side / max(picture.shape[:2])
        size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        place = (gap + column * (side + gap), gap + row * (side + gap))
        sheet.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), place)
    return np.asarray(sheet)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3].

    Raises:
      UserError: the file can't be written, or its ending names no format.
    """
    try:
        Image.fromarray(picture).save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can't write the picture: {reason}") from error
