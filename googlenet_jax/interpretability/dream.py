"""DeepDream: an image changed until a layer answers more strongly."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.data.preprocessing import Preprocessing, standardize
from googlenet_jax.errors import UserError
from googlenet_jax.models.endpoints import endpoints
from googlenet_jax.models.network import Network

Array = jax.Array


def deep_dream(
    model: Network,
    variables: Mapping[str, Any],
    image: np.ndarray,
    preprocessing: Preprocessing,
    layer: str,
    *,
    channel: int | None = None,
    octaves: int = 4,
    scale: float = 1.4,
    steps: int = 10,
    rate: float = 1.5,
    jitter: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """DeepDream by octaves, as its authors published it (Mordvintsev, Olah and Tyka, 2015,
    github.com/google/deepdream).

    The image is shrunk `octaves` − 1 times by `scale`. From the smallest on, `steps` steps of
    gradient ascent raise half the sum of the layer's squares (or one channel's sum), and what they
    added is carried to the next size. A step moves the pixels by `rate` on average, in units of
    0–255, on an image that is rolled by up to `jitter` pixels.

    Args:
      image: uint8 `[H, W, 3]`, RGB.
      layer: any endpoint.
    Returns:
      uint8 `[H, W, 3]`.
    Raises:
      UserError: an octave too small for the network, or a channel that the layer hasn't.
    """
    full = jnp.asarray(image, jnp.float32)
    sizes = [
        (max(1, round(image.shape[0] / shrink)), max(1, round(image.shape[1] / shrink)))
        for shrink in (scale**octave for octave in reversed(range(octaves)))
    ]
    height, width = sizes[0]
    if problem := model.size_problem(height, width, layer.startswith("aux")):
        raise UserError(f"octaves: the smallest of {octaves} is too small: {problem}; take fewer")
    key, detail = jax.random.key(seed), jnp.zeros((*sizes[0], 3))
    for number, size in enumerate(sizes):
        base = jax.image.resize(full, (*size, 3), "bilinear")
        detail = jax.image.resize(detail, (*size, 3), "bilinear")
        # Half the image at most, as a roll of a small octave by 32 would be any.
        reach = min(jitter, min(size) // 2)
        dreamt = _ascend(
            model,
            variables,
            base + detail,
            jax.random.fold_in(key, number),
            preprocessing,
            (layer, channel, steps, rate, reach),
        )
        detail = dreamt - base
    return np.asarray(jnp.round(dreamt)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _ascend(
    model: Network,
    variables: Mapping[str, Any],
    image: Array,
    key: Array,
    preprocessing: Preprocessing,
    settings: tuple[str, int | None, int, float, int],
) -> Array:
    layer, channel, steps, rate, reach = settings

    def strength(image: Array) -> Array:
        inputs = standardize(image[None], preprocessing, model.dtype)
        found = endpoints(model, variables, inputs, (layer,))[layer].astype(jnp.float32)
        if channel is None:
            return 0.5 * jnp.square(found).sum()
        if not 0 <= channel < found.shape[-1]:
            raise UserError(
                f"channel: expected 0 to {found.shape[-1] - 1} of {layer}, found {channel}"
            )
        return found[..., channel].sum()

    def step(number: Array, image: Array) -> Array:
        shift = jax.random.randint(jax.random.fold_in(key, number), (2,), -reach, reach + 1)
        rolled = jnp.roll(image, shift, (0, 1))
        gradient = jax.grad(strength)(rolled)
        moved = rolled + rate * gradient / (jnp.abs(gradient).mean() + 1e-12)
        return jnp.clip(jnp.roll(moved, -shift, (0, 1)), 0, 255)

    return jax.lax.fori_loop(0, steps, step, image)
