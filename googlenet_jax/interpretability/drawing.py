"""Maps of numbers as pictures: uint8 arrays, RGB."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

SIDE = 256  # pixels: a picture is drawn at least this large
GAP = 2  # pixels between tiles


def magnified(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The image with each pixel as a square, so that its shorter side has at least `side` pixels."""
    factor = math.ceil(side / min(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey, and over it the map `[H, W]`, at least 0: the larger, the warmer."""
    image = magnified(image)
    heat = _fitted(heat / (heat.max() or 1), image)
    share = 0.75 * np.sqrt(heat)[..., None]  # of the colour: what is 0 leaves the image
    return _mixed(image, matplotlib.colormaps["inferno"](heat)[..., :3], share)


def over_signed(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image in grey, and over it the map `[H, W]`: red is for the class, blue against it."""
    image = magnified(image)
    # The largest of a few pixels would hide all others.
    limit = np.quantile(np.abs(values), 0.99) or np.abs(values).max() or 1
    values = np.clip(_fitted(values / limit, image), -1, 1)
    share = np.sqrt(np.abs(values))[..., None] * 0.9
    return _mixed(image, matplotlib.colormaps["coolwarm"](0.5 + values / 2)[..., :3], share)


def _fitted(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scaled = Image.fromarray(values.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return np.asarray(scaled)


def _mixed(image: np.ndarray, colours: np.ndarray, share: np.ndarray) -> np.ndarray:
    grey = image.mean(-1, keepdims=True) / 255
    return _bytes((1 - share) * grey + share * colours)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)


def coloured(values: np.ndarray) -> np.ndarray:
    """A map `[H, W]`, at least 0, by itself: dark is 0, bright its largest value."""
    return _bytes(matplotlib.colormaps["viridis"](values / (values.max() or 1))[..., :3])


def stretched(kernel: np.ndarray) -> np.ndarray:
    """A kernel `[h, w, 3]` as a picture: grey is 0, and its largest absolute value black or white."""
    return _bytes(0.5 + kernel / (2 * np.abs(kernel).max() or 1))


def tiled(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size in a near square of rows, on white."""
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    one = max(1, math.ceil(1.5 * SIDE / columns / min(tiles[0].shape[:2])))
    tiles = [tile.repeat(one, 0).repeat(one, 1) for tile in tiles]
    height, width = (side + GAP for side in tiles[0].shape[:2])
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * height + GAP, (number % columns) * width + GAP
        sheet[top : top + height - GAP, left : left + width - GAP] = tile
    return sheet
