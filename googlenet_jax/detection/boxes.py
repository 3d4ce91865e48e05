"""Boxes: the one form that this subpackage computes with, and what is measured on them.

A box is (top, left, bottom, right) in pixels, TFDS's order. The pixel in row r covers r to r +
1, so that a box around it alone is (r, c, r + 1, c + 1) and areas need no "+ 1".
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A numpy array, or one on a device: what works inside jit too.
Array = Any


def areas(boxes: Array) -> Array:
    """Returns the areas [...] of boxes [..., 4], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(first: Array, second: Array) -> Array:
    """Returns the areas [N, M] that boxes [N, 4] and [M, 4] share; works inside jit too."""
    xp = jnp if isinstance(first, jax.Array) else np
    top_left = xp.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = xp.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = xp.maximum(bottom_right - top_left, 0)
    return sides[..., 0] * sides[..., 1]


def iou(first: Array, second: Array) -> Array:
    """Returns the intersection over union [N, M] of boxes [N, 4] and [M, 4]; works inside jit too.

    It is 0 where both boxes have no area.
    """
    xp = jnp if isinstance(first, jax.Array) else np
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return xp.where(union > 0, shared / xp.where(union > 0, union, 1), 0)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Returns boxes [N, 4] cut off at the edges of an image of that size."""
    return np.clip(boxes, 0, np.array([height, width, height, width], boxes.dtype))


def have_area(boxes: np.ndarray) -> np.ndarray:
    """Returns which boxes [N, 4] have a height and a width above 0, bool [N]; NaN has none."""
    return (
        (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & np.isfinite(boxes).all(axis=1)
    )
