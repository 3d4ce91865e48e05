"""The interpolations that scale pictures on the host; `device_resampling.py` has the device's."""

import math
from collections.abc import Sequence

import cv2
import cykooz_resizer
import numpy as np

from googlenet_jax.data.bad_images import BadImage

# What scales a crop. "auto" averages areas where no side grows and is bilinear otherwise.
# "bilinear", "area", "nearest" and "bicubic" are OpenCV's, and the paper's four (1409.4842, section
# 6); of these only "area" doesn't alias where it shrinks. The last widens its kernel with the
# scale, as Pillow, torchvision and tf.image.resize(antialias=True) do.
_OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST_EXACT,
    "bicubic": cv2.INTER_CUBIC,
}
ANTIALIASED = "bilinear_antialiased"
INTERPOLATIONS = ("auto", *_OPENCV, ANTIALIASED)
PAPER_INTERPOLATIONS = tuple(_OPENCV)
MAX_SIDE = 32_767  # pixels of a scaled picture: OpenCV's limit


def scale(image: np.ndarray, height: int, width: int, interpolation: str = "auto") -> np.ndarray:
    """Scales [H, W, C] or [H, W] to [height, width, C] with one of INTERPOLATIONS.

    uint8; for OpenCV's interpolations float32 as well. An image of that size comes back as it is.
    Raises BadImage for a picture so narrow that a side would have more than MAX_SIDE pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    if max(height, width) > MAX_SIDE:
        raise BadImage(
            f"expected a picture less narrow: {image.shape[1]:,} × {image.shape[0]:,} pixels, scaled "
            f"to {width:,} × {height:,}"
        )
    if interpolation == ANTIALIASED:
        return scale_part(image, (0, 0, *image.shape[:2]), height, width)
    if interpolation == "auto":
        interpolation = (
            "area" if height <= image.shape[0] and width <= image.shape[1] else "bilinear"
        )
    scaled = cv2.resize(image, (width, height), interpolation=_OPENCV[interpolation])
    return scaled if scaled.ndim == 3 else scaled[..., None]


def scale_part(image: np.ndarray, edges: Sequence[float], height: int, width: int) -> np.ndarray:
    """Scales what lies between the edges (top, left, bottom, right), which may be fractions of pixels,
    with ANTIALIASED's kernel.
    """
    top, left, bottom, right = edges
    image = image[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
    pixels = cykooz_resizer.PixelType.U8x3 if image.shape[2] == 3 else cykooz_resizer.PixelType.U8
    source = cykooz_resizer.ImageData(image.shape[1], image.shape[0], pixels, image.tobytes())
    target = cykooz_resizer.ImageData(width, height, pixels)
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(
            left - math.floor(left), top - math.floor(top), right - left, bottom - top
        ),
    )
    cykooz_resizer.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, image.shape[2])
