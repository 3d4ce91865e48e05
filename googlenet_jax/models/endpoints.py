"""Named activations of a network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models.network import Network

Array = jax.Array


def endpoints(
    model: Network, variables: Mapping[str, Any], images: Array, names: Sequence[str] | None = None
) -> dict[str, Array]:
    """Returns the activations in evaluation by name, computing no more than they need.

    `conv1` … `inception_5b` are the outputs of units and modules, `inception_3a/conv_1x1` those
    inside a module, `pool1`, `norm1` … those of layers without parameters, `aux1`, `aux2` and
    `head` the logits, `features` what `head` reads. The first call for a model and a shape
    compiles, later ones don't; inside `jit`, `grad` and other transformations it is an ordinary
    function.

    Args:
      images: floats `[N, H, W, C]`.
      names: which, in this order; by default every one, in the network's order, without `features`,
        which has a name of its own there; the auxiliary heads' only where the images are large
        enough for them.
    Returns:
      Arrays `[N, H, W, C]` or `[N, C]`.
    Raises:
      UserError: a name that the network doesn't have.
    """
    if names is not None:
        names = (names,) if isinstance(names, str) else tuple(names)
    every, values = _run(model, variables, images, names)
    return dict(zip(names or every.names, values, strict=True))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Names:
    """The names of what a compiled call returns, in the network's order: jit would sort a
    dictionary.
    """

    names: tuple[str, ...]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(
    model: Network, variables: Mapping[str, Any], images: Array, names: tuple[str, ...] | None
) -> tuple[_Names, list[Array]]:
    asked = names is None or any(name.split("/")[0].startswith("aux") for name in names)
    height, width = images.shape[1:3]
    fits = not model.size_problem(height, width, model.aux_heads)
    aux = asked and (fits or names is not None)
    output, updated = model.apply(
        variables, images, train=False, aux=aux, mutable=["intermediates"]
    )
    flat = traverse_util.flatten_dict(updated.get("intermediates", {}))
    named = {
        "/".join(part for part in path if part != "output").removesuffix("_output"): value
        for path, value in flat.items()
    }
    named["head"] = output.logits
    if names is None:
        return _Names(tuple(named)), list(named.values())
    if output.features is not None:
        named.setdefault("features", output.features)
    for name in names:
        if name not in named:
            raise UserError(
                f"endpoints: {type(model).__name__} has no endpoint {name!r}{nearest(name, named)};"
                " endpoints(model, variables, images) without names gives every one"
            )
    return _Names(tuple(named)), [named[name] for name in names]


def endpoint_and_gradient(
    model: Network,
    variables: Mapping[str, Any],
    images: Array,
    name: str,
    score: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Returns an endpoint's activation in evaluation and the gradient of a score by it.

    Args:
      images: floats `[N, H, W, C]`.
      name: an endpoint that a layer or a module gives, as `endpoints` names it.
      score: of the logits `[N, num_classes]`, one number an image, `[N]`.
    Returns:
      Two arrays of the endpoint's shape.
    Raises:
      UserError: a name that the network doesn't have, or one of no layer's output.
    """
    path, found = tuple(name.split("/")), []

    def total(shift: Array | float) -> tuple[Array, Array]:
        def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = call(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != path:
                return result
            found.append(result)
            return result + jnp.asarray(shift, result.dtype)

        with nn.intercept_methods(add):
            output: Any = model.apply(variables, images, train=False)
        if not found:
            raise UserError(
                f"{type(model).__name__} has no layer {name!r}; endpoints(model, variables, images)"
                " gives every one"
            )
        return score(output.logits).sum(), found[-1]

    shape = jax.eval_shape(total, 0.0)[1]
    gradient, activation = jax.grad(total, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return activation, gradient
