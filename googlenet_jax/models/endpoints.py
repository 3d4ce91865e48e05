"""Named activations of a network."""

from typing import Any

import jax
from flax import traverse_util

from googlenet_jax.models.network import Network

Array = jax.Array


def endpoints(model: Network, variables: dict[str, Any], images: Array) -> dict[str, Array]:
    """Returns the activations in evaluation by name, in the network's order, the auxiliary heads' among them.

    `conv1` … `inception_5b` are the outputs of units and modules, `inception_3a/conv_1x1` those inside a module, `pool1`, `norm1` … those
    of layers without parameters, `aux1`, `aux2` and `head` the logits.

    Args:
      images: floats `[N, H, W, 3]`.
    Returns:
      Arrays `[N, H, W, C]` or `[N, C]`.
    """
    names: list[str] = []

    @jax.jit
    def run(variables: dict[str, Any], images: Array) -> list[Array]:
        output, updated = model.apply(
            variables, images, train=False, aux=True, mutable=["intermediates"]
        )
        flat = traverse_util.flatten_dict(updated["intermediates"])
        named = {
            "/".join(part for part in path if part != "output").removesuffix("_output"): value
            for path, value in flat.items()
        }
        named["head"] = output.logits
        # jit would sort a dictionary: the order of the network is kept beside it.
        names.extend(named)
        return list(named.values())

    values = run(variables, images)
    return dict(zip(names, values, strict=True))
