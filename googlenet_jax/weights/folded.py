"""Batch norms that a file has folded into its convolutions."""

from collections.abc import Callable, Mapping

import numpy as np

from googlenet_jax.models.network import Network
from googlenet_jax.weights.tree import COUNTERS, Path


def unfold(
    model: Network,
    names: Mapping[Path, str],
    bias_name: Callable[[Path], str],
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], int]:
    """Where a convolution has a bias in place of its batch norm, puts a batch norm that does
    nothing but add that bias.

    With mean 0, variance 1 − ε and scale 1 the normalisation is the identity.

    Args:
      names: entry of ours → the file's name of it.
      bias_name: the unit's place, such as ("inception_3a", "conv_1x1") → the file's name of its
        bias.
    Returns:
      The tensors with what was put, and how many batch norms were folded.
    """
    tensors, folded = dict(tensors), 0
    norms: dict[Path, dict[str, str]] = {}
    for entry, name in names.items():
        if entry[0] != COUNTERS and entry[-2] == "bn":
            norms.setdefault(entry[1:-2], {})[entry[-1]] = name
    for unit, entries in norms.items():
        bias = tensors.get(bias_name(unit))
        if bias is None or any(name in tensors for name in entries.values()):
            continue
        folded += 1
        keeps_bias = ("params", *unit, "bias") in names
        values = {"mean": 0.0, "var": 1.0 - model.bn_epsilon, "scale": 1.0, "bias": 0.0}
        for leaf, name in entries.items():
            tensors[name] = (
                bias if leaf == "bias" and not keeps_bias else np.full_like(bias, values[leaf])
            )
        if not keeps_bias:
            del tensors[bias_name(unit)]
    return tensors, folded


def note(folded: int) -> tuple[str, ...]:
    """What a person should know of it, if anything."""
    return (
        (
            (
                f"{folded} batch norms are folded into their convolutions in the file; here they"
                " are the identity"
            ),
        )
        if folded
        else ()
    )
