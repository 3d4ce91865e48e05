"""Windows of images, cut out and scaled in one batched operation on the device.

An image is decoded and uploaded once, on a canvas of a fixed size, whatever the number of windows:
shapes are static and everything compiles once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.data import resampling
from googlenet_jax.data.device_resampling import window_weights

CONTEXT = 16 / 227  # of the input's side, on each side of the box (arXiv 1311.2524, appendix A)


class Canvas(NamedTuple):
    """An image at the top left of a canvas.

    Attributes:
      pixels: uint8 [S, S, 3].
      size: float32 [2], height and width of the image on the canvas, in the canvas's pixels.
      scale: the canvas's pixels for each of the image's; below 1 where the image was too large.
    """

    pixels: np.ndarray
    size: np.ndarray
    scale: float


def to_canvas(image: np.ndarray, side: int) -> Canvas:
    """Puts an image, uint8 [H, W, 1 or 3], on a canvas; one that is too large is scaled down."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        smaller = max(1, round(height * scale)), max(1, round(width * scale))
        image = resampling.scale(image, *smaller, "area")
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: image.shape[0], : image.shape[1]] = image  # one channel is repeated to three
    return Canvas(pixels, np.array(image.shape[:2], np.float32), scale)


def with_context(boxes: jax.Array, context: float = CONTEXT) -> jax.Array:
    """Returns boxes [..., 4] grown about their middles, so that the box itself fills 1 − 2·context.

    A side below one pixel counts as one, so that no window is empty.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1) / (2 * (1 - 2 * context))
    return jnp.concatenate([middle - half, middle + half], axis=-1)


def warp(images: jax.Array, sizes: jax.Array, windows: jax.Array, side: int) -> jax.Array:
    """Cuts windows out of images and scales each to side × side, whatever its aspect.

    Pixels are averaged by area where a window shrinks and interpolated linearly where it grows, as
    the pipeline's crops are. The image lies on an infinite plane of zeros: with the mean subtracted
    before, what a window holds beyond the image is the mean colour.

    Args:
      images: float [M, H, W, C] on canvases, normalised.
      sizes: float [M, 2], the height and width of each image on its canvas, in pixels.
      windows: float [M, K, 4], K windows of each image, (top, left, bottom, right) in pixels.
      side: S, of the result.
    Returns:
      [M, K, S, S, C] in the images' dtype.
    """
    height, width = images.shape[1:3]
    rows = window_weights(windows[..., 0], windows[..., 2], sizes[:, None, 0], height, side)
    columns = window_weights(windows[..., 1], windows[..., 3], sizes[:, None, 1], width, side)
    # Two matrices a window: the work is matrix products, and no single pixels are fetched.
    precision = jax.lax.Precision.HIGH
    rows, columns = rows.astype(images.dtype), columns.astype(images.dtype)
    partly = jnp.einsum("mksh,mhwc->mkswc", rows, images, precision=precision)
    return jnp.einsum("mktw,mkswc->mkstc", columns, partly, precision=precision)
