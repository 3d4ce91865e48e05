"""Weights of this and other frameworks, to and from a model's variables."""

from googlenet_jax.weights.safetensors import load_weights, read_metadata, save_weights
from googlenet_jax.weights.torch import from_torch, to_torch

__all__ = ["from_torch", "load_weights", "read_metadata", "save_weights", "to_torch"]
