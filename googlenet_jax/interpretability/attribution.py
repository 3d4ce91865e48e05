"""Which parts of an image speak for a class: Grad-CAM, integrated gradients, occlusion.

Inputs are a network's own, normalised. There, zero is the mean colour of the training images, which
stands for "nothing to be seen" in all three.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from googlenet_jax.models.network import Network

Array = jax.Array
Variables = dict[str, Any]


def spatial_endpoints(
    model: Network, variables: Variables, size: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes, (H, W, C), of the endpoints that are maps, in the network's order.

    The names are those of `gj.endpoints`, without the auxiliary heads. Nothing is computed.
    """
    found: dict[str, tuple[int, ...]] = {}

    def trace(variables: Variables, inputs: Array) -> None:
        _, updated = model.apply(variables, inputs, train=False, mutable=["intermediates"])
        for path, value in traverse_util.flatten_dict(updated["intermediates"]).items():
            if path[-1] == "output" and value.ndim == 4:
                found["/".join(path[:-1])] = value.shape[1:]

    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, size, size, 3), model.dtype))
    return found


def answer(
    model: Network, variables: Variables, inputs: Array, endpoint: str, shift: Array | float = 0.0
) -> tuple[Array, Array]:
    """Runs the network with `shift` added to an endpoint, by which one can differentiate.

    Returns:
      The endpoint `[N, H, W, C]` and the logits `[N, num_classes]`.
    """
    seen: list[Array] = []

    def add(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        value = call(*args, **kwargs)
        if context.method_name == "__call__" and "/".join(context.module.path) == endpoint:
            value = value + shift
            seen.append(value)
        return value

    with nn.intercept_methods(add):
        output: Any = model.apply(variables, inputs, train=False)
    return seen[0], output.logits


@functools.partial(jax.jit, static_argnums=(0, 4))
def gradcam(
    model: Network, variables: Variables, inputs: Array, targets: Array, endpoint: str
) -> Array:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391, equations 1 and 2).

    Args:
      inputs: `[N, S, S, 3]`. targets: int `[N]`, the logit that is explained of each image.
    Returns:
      float32 `[N, H, W]`, at least 0, of the endpoint's size and not scaled.
    """

    def score(shift: Array) -> tuple[Array, Array]:
        maps, logits = answer(model, variables, inputs, endpoint, shift)
        return _chosen(logits, targets).sum(), maps

    maps = jax.eval_shape(lambda: answer(model, variables, inputs, endpoint)[0])
    gradients, maps = jax.grad(score, has_aux=True)(jnp.zeros(maps.shape, maps.dtype))
    weights = gradients.mean((1, 2))  # alpha of equation 1
    return nn.relu(jnp.einsum("nhwc,nc->nhw", maps, weights)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def integrated_gradients(
    model: Network, variables: Variables, inputs: Array, targets: Array, steps: Array | int = 64
) -> Array:
    """Integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 3) from the mean
    colour, by the midpoint rule.

    Returns:
      `[N, S, S, 3]`, whose sum is, but for the rule's error, the logit less that of the mean
      colour.
    """

    def score(x: Array) -> Array:
        output: Any = model.apply(variables, x, train=False)
        return _chosen(output.logits, targets).sum()

    def add(step: Array, total: Array) -> Array:
        return total + jax.grad(score)(inputs * ((step + 0.5) / steps).astype(inputs.dtype))

    return inputs * jax.lax.fori_loop(0, steps, add, jnp.zeros_like(inputs)) / steps


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def occlusion(
    model: Network,
    variables: Variables,
    inputs: Array,
    targets: Array,
    patch: int,
    stride: int,
    class_offset: int = 0,
) -> Array:
    """How much probability the class loses when a patch is covered with the mean colour (Zeiler
    and Fergus, arXiv 1311.2901, section 4.2).

    Args:
      patch: the square's side, in pixels. stride: from one place of it to the next.
      class_offset: logits before those of classes, which the softmax leaves out.
    Returns:
      `[N, P, P]`: place (i, j) covers rows from `places[i]`, columns from `places[j]` on, of
      `occluded_places`.
    """
    size = inputs.shape[1]
    places = jnp.asarray(occluded_places(size, patch, stride))

    def share(x: Array) -> Array:
        output: Any = model.apply(variables, x, train=False)
        shares = jax.nn.softmax(output.logits[:, class_offset:])
        return _chosen(shares, targets - class_offset)

    def cover(place: Array) -> Array:
        index = jnp.arange(size)
        row, column = ((index >= p) & (index < p + patch) for p in place)
        covered = row[:, None, None] & column[None, :, None]
        return share(jnp.where(covered, jnp.zeros((), inputs.dtype), inputs))

    rows, columns = jnp.meshgrid(places, places, indexing="ij")
    shares = jax.lax.map(cover, jnp.stack([rows.ravel(), columns.ravel()], axis=1))
    lost = share(inputs) - shares
    return lost.T.reshape(inputs.shape[0], len(places), len(places))


def occluded_places(size: int, patch: int, stride: int) -> list[int]:
    """Where an occluding square begins, in pixels; the last one ends with the image."""
    return [min(start, size - patch) for start in range(0, size - patch + stride, stride)]


def _chosen(logits: Array, targets: Array) -> Array:
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
