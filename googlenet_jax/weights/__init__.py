"""Weights of this and other frameworks, to and from a model's variables.

Its functions are imported on first use: the child processes that read foreign files need this
package without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from googlenet_jax.weights.convert import convert, read_weights, write_weights
    from googlenet_jax.weights.load import load
    from googlenet_jax.weights.pretrained import list_pretrained
    from googlenet_jax.weights.pytorch import from_torch, to_torch
    from googlenet_jax.weights.safetensors import save_weights
    from googlenet_jax.weights.trained_model import TrainedModel

# Public name -> the file that has it.
_HOMES = {
    "TrainedModel": "trained_model",
    "convert": "convert",
    "from_torch": "pytorch",
    "list_pretrained": "pretrained",
    "load": "load",
    "read_weights": "convert",
    "save_weights": "safetensors",
    "to_torch": "pytorch",
    "write_weights": "convert",
}

__all__ = [
    "TrainedModel",
    "convert",
    "from_torch",
    "list_pretrained",
    "load",
    "read_weights",
    "save_weights",
    "to_torch",
    "write_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'googlenet_jax.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(f"googlenet_jax.weights.{_HOMES[name]}"), name)
