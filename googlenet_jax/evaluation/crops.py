"""The crops of GoogLeNet's test protocol: where they lie, and how a device cuts them.

The paper (arXiv 1409.4842, section 7): the image is scaled so that its short side is 256, 288, 320
and 352; of each scale the left, centre and right squares are taken (top, centre and bottom of a
portrait); of each square the four corners and the centre of 224×224, and the whole square resized
to 224×224; and the mirror image of each: 4·3·6·2 = 144. For a network of another input size S the
scales are 8/7, 9/7, 10/7 and 11/7 of S. Ten crops are the four corners of the smallest scale's
whole rectangle (as in torchvision's FiveCrop), the centre of its centre square, and their mirror
images.

Scaling by default averages areas where the image shrinks, which is antialiased, and interpolates
bilinearly where it grows, as `data.pipeline.eval_image` does; `data.resampling.INTERPOLATIONS`
lists what else there is. The result is rounded to uint8 before anything is cut.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.data.device_resampling import resample, resampling_weights

CROPS = (1, 10, 144)
SCALES = 4
SQUARES = 3
VIEWS = 6  # of a square: four corners, centre, whole


class Box(NamedTuple):
    """A square of the image scaled to height × width, in its pixels.

    It takes `side` rows from `top` on, and as many columns from `left` on.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    mirrored: bool


class Geometry(NamedTuple):
    """Where the squares of some images lie, all int32, on the host or the device.

    Attributes:
      sizes: [N, 2], height and width of each image.
      scaled: [N, 4, 2], height and width of its four scales.
      squares: [N, 4, 3, 2], top and left of the three squares of each scale.
    """

    sizes: Any
    scaled: Any
    squares: Any


def short_sides(size: int) -> tuple[int, ...]:
    """Returns the short sides of the four scales for a network's input size, both in pixels."""
    return tuple(round(size * sevenths / 7) for sevenths in (8, 9, 10, 11))


def geometry(sizes: Sequence[tuple[int, int]], size: int) -> Geometry:
    """Works out the squares of images of `sizes` (height, width) for a network's input `size`."""
    scaled = np.zeros((len(sizes), SCALES, 2), np.int32)
    squares = np.zeros((len(sizes), SCALES, SQUARES, 2), np.int32)
    for image, (height, width) in enumerate(sizes):
        for scale, short in enumerate(short_sides(size)):
            sides = [short * side // min(height, width) for side in (height, width)]
            scaled[image, scale] = sides
            for axis, side in enumerate(sides):
                slack = side - short
                squares[image, scale, :, axis] = 0, round(slack / 2), slack
    return Geometry(np.array(sizes, np.int32).reshape(-1, 2), scaled, squares)


def boxes(height: int, width: int, size: int, crops: int) -> list[Box]:
    """Returns the boxes of 10 or 144 crops of an image, in the order of `cut`'s views."""
    places = geometry([(height, width)], size)
    portrait, found = height > width, []
    for scale, short in enumerate(short_sides(size)):
        height_then, width_then = places.scaled[0, scale].tolist()
        for square in range(SQUARES):
            top, left = places.squares[0, scale, square].tolist()
            for view, (down, right) in enumerate(_corners(short, size)):
                if portrait and view in (1, 2):
                    down, right = right, down
                side = short if view == VIEWS - 1 else size
                found.append(Box(height_then, width_then, top + down, left + right, side, False))
    if crops == 10:
        found = [found[VIEWS * square + view] for square, view in _TEN]
    return found + [box._replace(mirrored=True) for box in found]


def _corners(short: int, size: int) -> list[tuple[int, int]]:
    """Top and left within a square: the corners in the order of the long side, centre, whole.

    The list is a landscape's; a portrait's is the same with top and left exchanged, so that the
    first two corners of any image's first square, and the last two of its last, are the image's.
    """
    slack = short - size
    middle = round(slack / 2)
    return [(0, 0), (slack, 0), (0, slack), (slack, slack), (middle, middle), (0, 0)]


_TEN = ((0, 0), (0, 1), (2, 2), (2, 3), (1, 4))  # (square, view) of the smallest scale


@functools.partial(jax.jit, static_argnames=("size", "crops", "square", "interpolation"))
def cut(
    images: jax.Array,
    places: Geometry,
    *,
    size: int,
    crops: int,
    square: bool,
    interpolation: str = "auto",
) -> jax.Array:
    """Cuts the crops of padded images.

    Args:
      images: uint8 [N, H, W, C], each image in the upper left corner.
      places: as `geometry` gives it for the images' true sizes and this `size`.
      size: S, the network's input size.
      crops: 10 or 144.
      square: whether every image is as high as wide. The three squares of a scale are then the same
        one, and its views come once.
      interpolation: one of INTERPOLATIONS.

    Returns:
      uint8 [N, V, S, S, C], V as `view_count` says.
    """
    cut_one = functools.partial(
        _cut_image, size=size, crops=crops, square=square, interpolation=interpolation
    )
    return jax.vmap(cut_one)(images, places.sizes, places.scaled, places.squares)


def view_count(crops: int, square: bool) -> int:
    """Returns how many views `cut` gives."""
    return crops // SQUARES if crops == 144 and square else crops


def ten_of_144(square: bool) -> np.ndarray:
    """Returns which of the views of 144 crops are the ten."""
    unmirrored = [view if square else VIEWS * place + view for place, view in _TEN]
    half = view_count(144, square) // 2
    return np.array(unmirrored + [half + index for index in unmirrored])


def _cut_image(
    image: jax.Array,
    source: jax.Array,
    scaled: jax.Array,
    squares: jax.Array,
    *,
    size: int,
    crops: int,
    square: bool,
    interpolation: str,
) -> jax.Array:
    pixels = image.astype(jnp.float32)
    portrait = source[0] > source[1]
    views = []
    for scale, short in enumerate(short_sides(size) if crops == 144 else short_sides(size)[:1]):
        corners = squares[scale, :1] if square else squares[scale]
        # One program for the three squares: the more there is to compile, the longer it takes.
        scaled_square = functools.partial(
            _scaled_square, pixels, source, scaled[scale], short, interpolation
        )
        parts = jax.vmap(scaled_square)(corners)
        views.append(_views_of_squares(parts, portrait, size, interpolation))
    if crops == 10:
        chosen = [views[0][0 if square else number, view] for number, view in _TEN]
        every = jnp.stack(chosen)
    else:
        every = jnp.concatenate([each.reshape(-1, size, size, image.shape[-1]) for each in views])
    return jnp.concatenate([every, every[:, :, ::-1]])


def _views_of_squares(
    squares: jax.Array, portrait: jax.Array, size: int, interpolation: str
) -> jax.Array:
    """Takes the six views of each square: uint8 [N, short, short, C] to [N, 6, size, size, C]."""
    short = squares.shape[1]

    def at(top: int, left: int) -> jax.Array:
        return squares[:, top : top + size, left : left + size]

    first, second, third, fourth, centre, _ = _corners(short, size)
    with jax.ensure_compile_time_eval():
        sides = jnp.int32(short), jnp.int32(size)
        weights = resampling_weights(*sides, jnp.int32(0), size, short, interpolation)
    whole = jax.vmap(resample, (0, None, None))(squares.astype(jnp.float32), weights, weights)
    views = [
        at(*first),
        jnp.where(portrait, at(*third), at(*second)),
        jnp.where(portrait, at(*second), at(*third)),
        at(*fourth),
        at(*centre),
        whole,
    ]
    return jnp.stack(views, axis=1)


def _scaled_square(
    image: jax.Array,
    source: jax.Array,
    scaled: jax.Array,
    short: int,
    interpolation: str,
    corner: jax.Array,
) -> jax.Array:
    """Scales the image from `source` to `scaled` pixels; gives the square at `corner`, uint8."""
    rows, columns = (
        resampling_weights(
            source[axis], scaled[axis], corner[axis], short, image.shape[axis], interpolation
        )
        for axis in (0, 1)
    )
    return resample(image, rows, columns)
