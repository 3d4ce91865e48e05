"""What layers would like to see: gradient ascent on the image, by octaves.

DeepDream (Mordvintsev, Olah and Tyka, "Inceptionism", 2015) raises what a layer answers already;
a channel's favourite picture (Erhan et al., 2009) begins at noise. Both are the same ascent.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_jax.interpretability.attribution import answer
from googlenet_jax.models.network import Network

Array = jax.Array
Objective = Callable[[Array], Array]  # an endpoint [N, H, W, C] -> what is to grow, a number

OCTAVES, SCALE = 4, 1.4  # how many sizes, and from one to the next
STEPS = 20  # in an octave
RATE = 0.012  # the mean change of a step, as a share of the way from black to white


def energy(maps: Array) -> Array:
    """DeepDream's objective: half the mean square of the whole endpoint."""
    return 0.5 * jnp.square(maps.astype(jnp.float32)).mean((1, 2, 3)).sum()


@dataclasses.dataclass(frozen=True)
class OneChannelEach:
    """The mean answer of channel `channels[i]` to image i."""

    channels: tuple[int, ...]

    def __call__(self, maps: Array) -> Array:
        """`[N, H, W, C]` → a number."""
        chosen = maps[jnp.arange(len(self.channels)), :, :, jnp.asarray(self.channels)]
        return chosen.astype(jnp.float32).mean((1, 2)).sum()


def octave_sizes(model: Network, size: int) -> list[int]:
    """The sizes of the octaves, ascending, that the network can take; the last one is `size`."""
    if getattr(model, "fully_connected_head", False):
        return [size]  # whose classifier takes one size alone
    sizes = [round(size / SCALE**k) for k in reversed(range(OCTAVES))]
    return [each for each in sizes if not model.size_problem(each, each, aux=False)]


def dream(
    model: Network,
    variables: dict[str, Any],
    inputs: Array,
    endpoint: str,
    objective: Objective,
    limits: tuple[Array, Array],
) -> Array:
    """Returns the inputs, changed so that `objective` of the endpoint is larger.

    What an octave adds is carried into the next larger one as detail on top of the image.

    Args:
      inputs: `[N, S, S, 3]`, normalised.
      limits: black and white, normalised likewise, `[3]` each.
    """
    key = jax.random.key(0)
    count, size = inputs.shape[:2]
    detail = jnp.zeros_like(inputs)
    x = inputs
    for octave, side in enumerate(octave_sizes(model, size)):
        shape = (count, side, side, 3)
        base = jax.image.resize(inputs, shape, "linear")
        x = base + jax.image.resize(detail, shape, "linear")
        x = _climb(
            model, objective, endpoint, variables, x, limits, jax.random.fold_in(key, octave)
        )
        detail = x - base
    return x


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _climb(
    model: Network,
    objective: Objective,
    endpoint: str,
    variables: dict[str, Any],
    inputs: Array,
    limits: tuple[Array, Array],
    key: Array,
) -> Array:
    """STEPS steps along the gradient, smoothed and of equal size, each on a shifted image."""
    black, white = limits

    def score(x: Array) -> Array:
        return objective(answer(model, variables, x, endpoint)[0])

    def step(number: Array, x: Array) -> Array:
        reach = max(1, inputs.shape[1] // 16)
        shift = jax.random.randint(jax.random.fold_in(key, number), (2,), -reach, reach + 1)
        gradient = jax.grad(score)(jnp.roll(x, shift, (1, 2)))
        gradient = _smooth(jnp.roll(gradient, -shift, (1, 2)))
        size = jnp.abs(gradient).mean((1, 2, 3), keepdims=True)
        change = RATE * (white - black) * gradient / (size + 1e-12)
        return jnp.clip(x + change, black, white).astype(x.dtype)

    return jax.lax.fori_loop(0, STEPS, step, inputs)


def _smooth(x: Array) -> Array:
    """Weighs each pixel 1:2:1 with its neighbours, both ways: without it, pixel noise wins."""
    for axis in (1, 2):
        x = 0.5 * x + 0.25 * (jnp.roll(x, 1, axis) + jnp.roll(x, -1, axis))
    return x
