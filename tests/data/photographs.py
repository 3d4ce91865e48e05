"""Real photographs for these tests, as the encoded files that a data set holds."""

import functools
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


@functools.cache
def photograph(name: str = "china.jpg") -> np.ndarray:
    """uint8 [427, 640, 3]."""
    return load_sample_image(name)


def encode(image: np.ndarray | Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def opened(encoded: bytes) -> np.ndarray:
    """What Pillow reads, as RGB."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def difference(image: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert image.dtype == np.uint8 and image.shape == expected.shape
    return np.abs(image.astype(int) - expected)
