"""Batch norm folded into the convolutions before it, for inference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network, NormedNetwork


def fold_batch_norm(
    model: Network, variables: Mapping[str, Any]
) -> tuple[NormedNetwork, dict[str, Any]]:
    """Makes each batch norm's running statistics part of its convolution's kernel and bias.

    kernel · γ/√(var + ε) and β + (bias − mean) · γ/√(var + ε), computed in float64 and rounded
    once, to the kernel's dtype. The result is a network like any other: it can be saved, exported
    and run, and its outputs are the model's with `use_running_average` up to rounding.

    Args:
      model: a network with batch norms.
      variables: `params` and `batch_stats`.
    Returns:
      The same network with `bn_folded`, and its variables: `params` alone, as numpy arrays.
    Raises:
      UserError: the network has no batch norm, or has it folded already.
    """
    if not has_batch_norm(model):
        raise UserError(
            f"fold_batch_norm: expected a network with batch norms, found {type(model).__name__}"
            f"{_other(model)}"
        )
    assert isinstance(model, NormedNetwork)
    params = traverse_util.flatten_dict(variables["params"])
    stats = traverse_util.flatten_dict(variables["batch_stats"])
    folded = {path: np.asarray(value) for path, value in params.items() if "bn" not in path}
    for path, mean in stats.items():
        if path[-2:] != ("bn", "mean"):
            continue
        unit, bn = path[:-2], path[:-1]
        kernel, var = folded[(*unit, "kernel")], stats[(*bn, "var")]
        scale = params.get((*bn, "scale"), 1.0)
        factor = _wide(scale) / np.sqrt(_wide(var) + model.bn_epsilon)
        bias = _wide(params.get((*unit, "bias"), 0.0))
        shifted = _wide(params[(*bn, "bias")]) + (bias - _wide(mean)) * factor
        folded[(*unit, "kernel")] = (_wide(kernel) * factor).astype(kernel.dtype)
        folded[(*unit, "bias")] = shifted.astype(kernel.dtype)
    return model.clone(bn_folded=True), {"params": traverse_util.unflatten_dict(folded)}


def has_batch_norm(model: Network) -> bool:
    """Whether the network has batch norms that can be folded."""
    normed = isinstance(model, NormedNetwork) and not model.bn_folded
    return normed and model.normalization == "batch"


def _other(model: Network) -> str:
    if not isinstance(model, NormedNetwork):
        return ""
    return ", whose are folded already" if model.bn_folded else f" of {model.normalization} norm"


def _wide(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)
