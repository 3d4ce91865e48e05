"""Which pixels speak for a class: Grad-CAM, integrated gradients and occlusion, as numbers."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.models.endpoints import endpoint_and_gradient
from googlenet_jax.models.network import Network

Array = jax.Array
Variables = Mapping[str, Any]


@functools.partial(jax.jit, static_argnums=(0, 4))
def grad_cam(
    model: Network, variables: Variables, images: Array, target: Array, layer: str
) -> Array:
    """Grad-CAM (Selvaraju et al., 2016, arXiv:1610.02391, equations 1 and 2).

    A channel's weight is the mean, over the map, of the gradient of the class's logit; the map is
    the weighted sum of the channels, without what is below 0.

    Args:
      images: normalised, `[N, H, W, C]`. target: the class's logit, an index.
      layer: an endpoint that is a map.
    Returns:
      `[N, H', W']`, as large as the layer's map, at least 0.
    """
    activation, gradient = endpoint_and_gradient(
        model, variables, images, layer, lambda logits: logits[:, target]
    )
    weights = gradient.mean((1, 2), keepdims=True)
    return jnp.maximum((weights * activation).sum(-1), 0)


def enlarge(maps: Array, size: tuple[int, int]) -> Array:
    """Maps `[N, h, w]` at another size, bilinear between the pixels' centres."""
    return jax.image.resize(maps, (len(maps), *size), "bilinear")


@functools.partial(jax.jit, static_argnums=(0,))
def _slopes(
    model: Network, variables: Variables, points: Array, weights: Array, target: Array
) -> Array:
    """The points' gradients, weighted and summed."""

    def total(points: Array) -> Array:
        output: Any = model.apply(variables, points, train=False)
        return output.logits[:, target].sum()

    return jnp.tensordot(weights, jax.grad(total)(points), 1)


@functools.partial(jax.jit, static_argnums=(0,))
def _logit(model: Network, variables: Variables, images: Array, target: Array) -> Array:
    output: Any = model.apply(variables, images, train=False)
    return output.logits[:, target]


def integrated_gradients(
    model: Network,
    variables: Variables,
    image: Array,
    baseline: Array,
    target: int,
    steps: int = 64,
    batch: int = 16,
) -> tuple[np.ndarray, float]:
    """Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365, equation 1), of the logit.

    The straight line from the baseline to the image is cut into `steps` equal parts, and the
    gradient taken at the middle of each.

    Args:
      image, baseline: normalised, `[H, W, C]`.
      batch: points at a time, which bounds the memory.
    Returns:
      The attributions `[H, W, C]`, and by how much their sum misses the difference of the logits,
      which the integral equals.
    """
    total, batch = np.zeros(image.shape, np.float64), min(batch, steps)
    for first in range(0, steps, batch):
        # The last batch is as large as the others: what it lacks has no weight.
        numbers = first + np.arange(batch)
        shares = jnp.asarray((numbers + 0.5) / steps, image.dtype)[:, None, None, None]
        points = baseline + shares * (image - baseline)
        weights = jnp.asarray(numbers < steps, image.dtype)
        total += np.asarray(_slopes(model, variables, points, weights, target), np.float64)
    found = np.asarray(image - baseline, np.float64) * total / steps
    there, before = np.asarray(
        _logit(model, variables, jnp.stack([image, baseline]), target), np.float64
    )
    return found, float(abs(found.sum() - (there - before)))


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _covered(
    model: Network,
    variables: Variables,
    image: Array,
    corners: Array,
    target: Array,
    window: int,
    offset: int,
) -> Array:
    """The class's probability with a window of 0 at each corner."""
    rows = jnp.arange(image.shape[0])[None, :] - corners[:, :1]
    columns = jnp.arange(image.shape[1])[None, :] - corners[:, 1:]
    inside = ((rows >= 0) & (rows < window))[:, :, None] & ((columns >= 0) & (columns < window))[
        :, None, :
    ]
    images = jnp.where(inside[..., None], 0, image).astype(image.dtype)
    output: Any = model.apply(variables, images, train=False)
    return jax.nn.softmax(output.logits[:, offset:])[:, target - offset]


def occlusion(
    model: Network,
    variables: Variables,
    image: Array,
    target: int,
    window: int,
    stride: int,
    offset: int = 0,
    batch: int = 32,
) -> np.ndarray:
    """Occlusion (Zeiler and Fergus, 2013, arXiv:1311.2901, section 4.2).

    A square of the training images' mean moves over the image; a pixel has the mean, over the
    squares that cover it, of how much probability the class loses.

    Args:
      image: normalised, `[H, W, C]`: 0 is the mean.
      target: a logit's index. offset: logits that are left out before the softmax.
    Returns:
      `[H, W]`; below 0 where covering helps the class.
    """
    height, width = image.shape[:2]
    corners = np.array(
        [
            (top, left)
            for top in _starts(height, window, stride)
            for left in _starts(width, window, stride)
        ]
    )
    # The first square lies outside: the image as it is.
    corners = np.concatenate([[(-window, -window)], corners])
    padding = -len(corners) % batch
    padded = np.concatenate([corners, np.repeat(corners[:1], padding, 0)])
    probabilities = np.concatenate(
        [
            np.asarray(
                _covered(
                    model, variables, image, padded[first : first + batch], target, window, offset
                ),
                np.float64,
            )
            for first in range(0, len(padded), batch)
        ]
    )[: len(corners)]
    lost, count = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), probability in zip(corners[1:], probabilities[1:], strict=True):
        where = np.s_[top : top + window, left : left + window]
        lost[where] += probabilities[0] - probability
        count[where] += 1
    return lost / count


def _starts(size: int, window: int, stride: int) -> list[int]:
    """Where the squares begin: every `stride` pixels, and one that ends at the edge."""
    starts = list(range(0, size - window + 1, stride))
    return starts if starts[-1] == size - window else [*starts, size - window]
