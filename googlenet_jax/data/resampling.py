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
_KINDS = {"uint8": "U8", "uint16": "U16", "float32": "F32"}  # of the resizer's pixels
_TIMES = {1: "", 2: "x2", 3: "x3", 4: "x4"}
MAX_SIDE = 32_767  # pixels of a scaled picture: OpenCV's limit


def scale(image: np.ndarray, height: int, width: int, interpolation: str = "auto") -> np.ndarray:
    """Scales [H, W, C] or [H, W] to [height, width, C] with one of INTERPOLATIONS.

    uint8, uint16 or float32, of any number of channels. An image of that size comes back as it is.
    Raises BadImage for a picture so narrow that a side would have more than MAX_SIDE pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    if max(height, width) > MAX_SIDE:
        raise BadImage(
            f"expected a picture less narrow: {image.shape[1]:,} × {image.shape[0]:,} pixels,"
            f" scaled to {width:,} × {height:,}"
        )
    if image.ndim == 3 and image.shape[2] > 4:  # OpenCV's area takes four at most
        parts = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
        return np.concatenate(
            [scale(np.ascontiguousarray(part), height, width, interpolation) for part in parts], 2
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
    """Scales what lies between the edges (top, left, bottom, right), which may be fractions of
    pixels, with ANTIALIASED's kernel.
    """
    top, left, bottom, right = edges
    image = image[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
    pixels = getattr(cykooz_resizer.PixelType, _KINDS[image.dtype.name] + _TIMES[image.shape[2]])
    source = cykooz_resizer.ImageData(image.shape[1], image.shape[0], pixels, image.tobytes())
    target = cykooz_resizer.ImageData(width, height, pixels)
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        use_alpha=False,  # of four channels, as of two, the last is one as the others
        crop_box=cykooz_resizer.CropBox(
            left - math.floor(left), top - math.floor(top), right - left, bottom - top
        ),
    )
    cykooz_resizer.Resizer().resize(source, target, options)
    scaled = np.frombuffer(target.get_buffer(), image.dtype)
    return scaled.reshape(height, width, image.shape[2])
