"""Bringing images to the network's 299 pixels as other packages of the Fréchet distance do.

One table of taps and weights a side serves the device and the host alike.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from googlenet_jax.errors import UserError, nearest

INPUT = 299  # height and width of the network's input


@dataclasses.dataclass(frozen=True)
class Resize:
    """A way of resizing, and the normalisation that goes with it.

    Attributes:
      about: whose it is. mean, std: of the network's input, in units of 0–255.
    """

    about: str
    mean: float
    std: float


RESIZES = {
    "tf1": Resize("TensorFlow 1's bilinear, as in the original graph and torch-fidelity", 128, 128),
    "torch": Resize("PyTorch's F.interpolate, bilinear, as in pytorch-fid", 127.5, 127.5),
    "clean": Resize("Pillow's antialiased bicubic, as in clean-fid", 128, 128),
}


def check_resize(name: str) -> str:
    """Returns a name of RESIZES, or raises UserError."""
    if name not in RESIZES:
        raise UserError(
            f"resize: expected one of {', '.join(RESIZES)}, found {name!r}{nearest(name, RESIZES)}"
        )
    return name


def resize(images: Any, method: str, size: int = INPUT) -> Any:
    """Resizes images to size × size; on the device for JAX's arrays, also inside jit.

    Args:
      images: uint8 or floats [N, H, W, C] in units of 0–255; numpy's or JAX's.
      method: "tf1", "torch" or "clean"; see RESIZES.
    Returns:
      float32 (or the images' wider type) [N, size, size, C] in units of 0–255, not rounded. Only
      "clean" overshoots, and is clipped to 0–255, as clean-fid clips it.
    """
    check_resize(method)
    xp: Any = np if isinstance(images, np.ndarray) else jnp
    images = images.astype(xp.promote_types(images.dtype, xp.float32))
    if images.dtype == np.float16 or images.dtype == jnp.bfloat16:
        images = images.astype(xp.float32)
    # Pillow goes along rows first, the others' order doesn't matter beyond rounding.
    for axis in (2, 1):
        images = _along(xp, images, axis, *_taps(method, images.shape[axis], size))
    return images.clip(0, 255) if method == "clean" else images


def normalize(images: Any, method: str) -> Any:
    """From units of 0–255 to the network's input, as the method's package does it."""
    return (images - RESIZES[method].mean) / RESIZES[method].std


def _along(xp: Any, images: Any, axis: int, places: np.ndarray, weights: np.ndarray) -> Any:
    """Σₖ weights[:, k] · images at places[:, k] of the axis."""
    shape = [1] * images.ndim
    shape[axis] = len(places)
    result = None
    for place, weight in zip(places.T, weights.T, strict=True):
        if not weight.any():
            continue
        part = xp.take(images, place, axis=axis) * weight.reshape(shape).astype(images.dtype)
        result = part if result is None else result + part
    return result


def _taps(method: str, old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels make up each new one, int [new, K], and with what weights, float64 [new, K]."""
    return _bicubic(old, new) if method == "clean" else _bilinear(method, old, new)


def _bilinear(method: str, old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Two taps, wherever the scale: TensorFlow 1 measures from the first pixel's centre, PyTorch
    from the image's edge. Both compute places in float32; PyTorch's are rounded once, after a fused
    multiply and add.
    """
    scale = np.float32(old) / np.float32(new)
    place = np.arange(new, dtype=np.float32)
    if method == "torch":
        fused = (place.astype(np.float64) + 0.5) * np.float64(scale) - 0.5
        place = np.maximum(fused.astype(np.float32), np.float32(0))
    else:
        place = place * scale
    low = np.minimum(place.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    part = (place - low.astype(np.float32)).astype(np.float64)
    return np.stack([low, high], 1), np.stack([1 - part, part], 1)


def _bicubic(old: int, new: int, a: float = -0.5) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's: Keys' kernel with a = −½, widened by the scale where the image shrinks, its weights
    brought to a sum of one.
    """
    scale = old / new
    wide = max(scale, 1.0)
    support = 2.0 * wide
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), old)
    places = first[:, None] + np.arange((last - first).max())
    x = np.abs((places - centres[:, None] + 0.5) / wide)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights = np.where(places < last[:, None], weights, 0.0)
    return np.minimum(places, old - 1), weights / weights.sum(1, keepdims=True)
