"""Keras's weight files: their several ways to name one layer's arrays, and the file that Keras
loads.

Keras numbers convolutions and batch norms as they are made: `conv2d`, `conv2d_1`, … in `.h5` files,
counted on where a process makes two
models. `.weights.h5` and `.keras` files number them anew in the order of `model.layers`, which
sorts layers by their depth in the graph.
"""

import io
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.weights.heads import initialised
from googlenet_jax.weights.names.scheme import Scheme
from googlenet_jax.weights.tree import COUNTERS, flatten

# The convolutions of keras.applications.InceptionV3 in the order of `model.layers`; tests/live
# holds it against Keras.
# fmt: off
LAYER_ORDER = (
    0, 1, 2, 3, 4, 8, 6, 9, 5, 7, 10, 11, 15, 13, 16, 12, 14, 17, 18, 22, 20, 23, 19, 21, 24, 25,
    27, 28, 26, 29, 34, 35, 31, 36, 32, 37, 30, 33, 38, 39, 44, 45, 41, 46, 42, 47, 40, 43, 48, 49,
    54, 55, 51, 56, 52, 57, 50, 53, 58, 59, 64, 65, 61, 66, 62, 67, 60, 63, 68, 69, 72, 73, 70, 74,
    71, 75, 80, 77, 81, 78, 79, 82, 83, 76, 84, 89, 86, 90, 87, 88, 91, 92, 85, 93,
)
# fmt: on
_VARIABLES = {
    "conv2d": ("kernel",),
    "batch_normalization": ("beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}
FEATURES = 2048  # numbers that InceptionV3's classifier reads
STEM = 32  # channels of its first convolution
# Layers of a model, or of a model inside another, as transfer learning makes them.
_NEW = re.compile(
    r"(?:(?:_layer_checkpoint_dependencies|layers)/\w+/)?(?:_layer_checkpoint_dependencies|layers)/(conv2d|batch_normalization|dense)(?:_(\d+))?/vars/(\d+)"
)
_OLD = re.compile(
    r"(?:.*/)?(conv2d|batch_normalization|predictions|dense)(?:_(\d+))?/(kernel|bias|gamma|beta|moving_mean|moving_variance)(?::0)?"
)


def canonical(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Returns the arrays by the names that a fresh process gives: "conv2d_8/kernel",
    "batch_normalization_8/beta", "predictions/bias"; and what a person should know.

    The network may lie inside another model with one dense layer, which is the classifier then.
    Raises UserError where an array is of no layer that Keras's InceptionV3 has.
    """
    tensors, notes = _one_dense_layer(tensors)
    matches = {name: _NEW.fullmatch(name) or _OLD.fullmatch(name) for name in tensors}
    for name, match in matches.items():
        if match is None:
            raise UserError(f"{path}: {name!r} is of no layer that Keras's InceptionV3 has")
    first = {
        layer: min(
            (_number(match) for match in matches.values() if match and match[1] == layer), default=0
        )
        for layer in ("conv2d", "batch_normalization")
    }
    named = {}
    for name, match in matches.items():
        assert match is not None
        layer, number = match[1], _number(match)
        if match.re is _NEW:
            entry = _entry(path, name, layer, int(match[3]))
            number = _made(path, name, layer, number)
        else:
            number, entry = number - first.get(layer, number), match[3]
        dense = layer in ("dense", "predictions")
        key = f"{'predictions' if dense else numbered(layer, number)}/{entry}"
        if key in named:
            raise UserError(
                f"{path}: {name!r} stands twice for {key}; the file holds more than one network"
            )
        named[key] = tensors[name]
    return named, notes


def _one_dense_layer(
    tensors: Mapping[str, np.ndarray],
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Without the dense layers, where they are not one classifier of InceptionV3's features."""
    dense = [name for name in tensors if re.search(r"(^|/)(dense|predictions)(_\d+)?/", name)]
    matrices = [tensors[name] for name in dense if tensors[name].ndim == 2]
    # A narrow network, which this project alone makes: its classifier's shape is checked later.
    first = [a for a in tensors.values() if a.ndim == 4 and a.shape[:3] == (3, 3, 3)]
    narrow = bool(first) and all(kernel.shape[3] != STEM for kernel in first)
    if not dense or (len(matrices) == 1 and (narrow or len(matrices[0]) == FEATURES)):
        return tensors, ()
    kept = {name: array for name, array in tensors.items() if name not in dense}
    return kept, (f"left out: {', '.join(dense[:4])}, a classifier of another form",)


def _number(match: re.Match[str]) -> int:
    return int((match[2] or "0")[:9])


def _made(path: str | os.PathLike[str], name: str, layer: str, position: int) -> int:
    if layer == "dense":
        return 0
    if position >= len(LAYER_ORDER):
        raise UserError(
            f"{path}: {name!r} is of no layer that Keras's InceptionV3 has, which has"
            f" {len(LAYER_ORDER)} convolutions"
        )
    return LAYER_ORDER[position]


def _entry(path: str | os.PathLike[str], name: str, layer: str, index: int) -> str:
    if index >= len(_VARIABLES[layer]):
        raise UserError(
            f"{path}: {name!r} is one array more than Keras's InceptionV3 has in such a layer"
        )
    return _VARIABLES[layer][index]


def numbered(layer: str, number: int) -> str:
    """Keras's name of the layer made as that number: the first has none."""
    return f"{layer}_{number}" if number else layer


def new_head(
    tensors: Mapping[str, np.ndarray], features: int, num_classes: int
) -> dict[str, np.ndarray]:
    """The arrays of a file without top, with a classifier initialised as Keras's Dense is."""
    kernel, bias = initialised(features, num_classes)
    return {**tensors, "predictions/kernel": kernel, "predictions/bias": bias}


def to_bytes(scheme: Scheme, model: Network, variables: Mapping[str, Any]) -> bytes:
    """Returns a `.weights.h5` that `keras.applications.InceptionV3(weights=None).load_weights`
    takes.

    Raises:
      UserError: without h5py, or where variables hold something that Keras's network has no place
        for.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            "writing .weights.h5 needs h5py; pip install 'googlenet-jax[keras]'"
        ) from None
    found = {
        path: np.asarray(array) for path, array in flatten(variables).items() if path[0] != COUNTERS
    }
    names = scheme.names(model)
    if extra := [path for path in found if path not in names]:
        raise UserError(
            f"Keras's network has no place for {'/'.join(extra[0])}; make it with flavour='keras'"
            " and without auxiliary heads"
        )
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("vars")
        for path, name in names.items():
            array = found[path]
            if array.dtype.name == "bfloat16":
                raise UserError(
                    f"{'/'.join(path)} is bfloat16, which HDF5 does not have; convert it to float32"
                    " first"
                )
            file[_place(name)] = array
    return buffer.getvalue()


def _place(name: str) -> str:
    """The HDF5 path of an array in a `.weights.h5`."""
    layer, entry = name.split("/")
    if layer == "predictions":
        return f"layers/dense/vars/{_VARIABLES['dense'].index(entry)}"
    match = re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?", layer)
    assert match is not None
    kind, position = match[1], LAYER_ORDER.index(int(match[2] or 0))
    return f"layers/{numbered(kind, position)}/vars/{_VARIABLES[kind].index(entry)}"
