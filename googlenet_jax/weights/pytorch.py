"""State dicts as public files have them: with or without auxiliary heads, folded batch norms, and
the files that PyTorch loads.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from googlenet_jax.data.imagenet import class_names
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model, model_name, option_defaults
from googlenet_jax.weights.folded import note, unfold
from googlenet_jax.weights.torch import from_torch, torch_names
from googlenet_jax.weights.trained_model import Weights

_HALF = (127.5, 127.5, 127.5)
_INCEPTION = {"mean": _HALF, "std": _HALF, "size": 299}
# What the public weights were trained with, where it differs from ImageNet's mean and std at 224
# pixels: (model, flavour) → fields.
_PREPROCESSING: dict[tuple[str, str | None], dict[str, Any]] = {
    ("bn_inception", "port"): {
        "mean": (104.0, 117.0, 128.0),
        "std": (1.0, 1.0, 1.0),
        "channel_order": "bgr",
    },
    ("inception_v3", "torchvision"): {"size": 299, "resize": 342},
    ("inception_v3", "fid"): {**_INCEPTION, "resize": 299, "crop": "squash"},
}
# The flavour that PyTorch's files are of, where it is not the model's first.
FLAVOURS = {"bn_inception": "port"}


def from_tensors(
    path: str | os.PathLike[str],
    largest: Network,
    options: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> Weights:
    """Turns a state dict into a model with its variables.

    Args:
      largest: the model with its auxiliary heads; the result has the classes and heads of the state
        dict, unless `options` say otherwise.
    Raises:
      UserError: names or shapes that are not the model's.
    """
    name, names = model_name(largest), torch_names(largest)
    found: dict[str, Any] = {}
    bias = tensors.get(names[("params", "head", "bias")])
    if bias is not None and bias.ndim == 1:
        found["num_classes"] = len(bias)
    if "aux_heads" in option_defaults(name):
        aux = {theirs for entry, theirs in names.items() if entry[1].startswith("aux")}
        found["aux_heads"] = largest.aux_heads and not aux.isdisjoint(tensors)
    model = create_model(name, **{**found, **options})
    vectors = {theirs for entry, theirs in names.items() if "bn" in entry}
    kernels = {entry[1:-1]: theirs for entry, theirs in names.items() if entry[-1] == "kernel"}
    state_dict, folded = unfold(
        model, torch_names(model), lambda unit: _bias(kernels[unit]), _flat(vectors, tensors)
    )
    try:
        variables = from_torch(model, state_dict)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    fields = _PREPROCESSING.get((name, getattr(model, "flavour", None)), {})
    classes = class_names() if model.num_classes == 1000 else None
    return Weights(
        model,
        variables,
        Preprocessing(**{"interpolation": "bilinear_antialiased", **fields}),
        classes,
        note(folded),
    )


def _bias(kernel: str) -> str:
    return kernel.removesuffix("weight") + "bias"


def _flat(vectors: set[str], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published BN-Inception port keeps batch norm's vectors as [1, C]."""
    return {
        name: array[0] if name in vectors and array.ndim == 2 and len(array) == 1 else array
        for name, array in tensors.items()
    }


def to_pth(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Returns the file that `torch.load(weights_only=True)` gives as a state dict of tensors.
    Raises UserError without PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing .pth needs torch; pip install 'googlenet-jax[torch]', or write .safetensors with --to safetensors"
        ) from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    buffer = io.BytesIO()
    torch.save({name: tensor(array) for name, array in state_dict.items()}, buffer)
    return buffer.getvalue()


def to_safetensors(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Returns the safetensors file of a state dict, marked as PyTorch's."""
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in state_dict.items()},
        {"format": "pt"},
    )
