"""A Keras model beside ours: its layers as `theirs.TorchUnit`, so that all else is as with PyTorch.

Keras runs on JAX here, unless it has been imported with another backend before.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_name, model_options
from googlenet_jax.verification.theirs import TorchTrace, TorchUnit

_NORM = {"gamma": "bn/scale", "beta": "bn/bias"}
_STATISTICS = {"moving_mean": "bn/mean", "moving_variance": "bn/var"}


class KerasSide:
    """A functional Keras model, its weights by name in PyTorch's layouts, and what it computes.

    Attributes:
      precision: the dtype whose rounding its numbers have.
    """

    def __init__(self, module: Any, dtype: str) -> None:
        self.module = module
        self.precision = _precision(dtype)

    @classmethod
    def of(cls, model: Network, size: int, dtype: str) -> "KerasSide":
        """`keras.applications.InceptionV3`, with random weights, for images of `size`.

        Raises UserError for another network than inception_v3 with flavour "keras", or without
        Keras.
        """
        name, options = model_name(model), model_options(model)
        if name != "inception_v3" or options["flavour"] != "keras" or options["width"] != 1:
            raise UserError(
                "--against keras: keras.applications has InceptionV3 alone: verify inception_v3 "
                f"with --option flavour=keras, found {name}"
            )
        os.environ.setdefault("KERAS_BACKEND", "jax")
        try:
            import keras
        except ImportError:
            raise UserError(
                "--against keras needs Keras: pip install 'keras>=3.10' and run the command again"
            ) from None
        before = keras.config.floatx()
        keras.config.set_floatx(dtype)
        try:
            with jax.enable_x64(True):
                made = keras.applications.InceptionV3(
                    weights=None,
                    input_shape=(size, size, 3),
                    classes=model.num_classes,
                    classifier_activation=None,
                )
        finally:
            keras.config.set_floatx(before)
        return cls(made, dtype)

    def trace(self, images: np.ndarray) -> TorchTrace:
        """Runs the model in evaluation on images [N, H, W, 3]; maps stay [N, H, W, C]."""
        import keras

        linears = [each for each in self.module.layers if "kernel" in _weights(each)]
        ends = [_chain(each) for each in linears]
        wanted = [
            tensor
            for layer, chain in zip(linears, ends, strict=True)
            for tensor in (layer.input, layer.output, chain[-1].output)
        ]
        watched = keras.Model(self.module.input, [*wanted, self.module.output])
        values = [np.asarray(value) for value in watched(images, training=False)]
        units = []
        for place, (layer, chain) in enumerate(zip(linears, ends, strict=True)):
            given, linear, output = values[3 * place : 3 * place + 3]
            units.append(_unit(layer, chain, given, linear, output))
        return TorchTrace(units, {"logits": values[-1]})

    def push(self, values: Mapping[str, np.ndarray]) -> None:
        """Overwrites weights by name, given in PyTorch's layouts."""
        for layer in self.module.layers:
            for name, weight in _weights(layer).items():
                if f"{layer.name}/{name}" in values:
                    weight.assign(
                        _turned(np.asarray(values[f"{layer.name}/{name}"]), to_keras=True)
                    )

    def pull(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name, in PyTorch's layouts."""
        return {
            f"{layer.name}/{name}": _turned(np.asarray(weight), to_keras=False)
            for layer in self.module.layers
            for name, weight in _weights(layer).items()
        }


def _precision(dtype: str) -> str:
    """In what Keras computes: its batch norm takes float64 to float32 but for TensorFlow."""
    import keras

    return "float32" if dtype == "float64" and keras.backend.backend() != "tensorflow" else dtype


def _weights(layer: Any) -> dict[str, Any]:
    return {weight.name: weight for weight in layer.weights}


def _turned(value: np.ndarray, to_keras: bool) -> np.ndarray:
    """[out, in, h, w] ↔ [h, w, in, out]; a matrix with its axes exchanged."""
    if value.ndim == 4:
        return value.transpose((2, 3, 1, 0) if to_keras else (3, 2, 0, 1))
    return value.T


def _chain(layer: Any) -> list[Any]:
    """The layer with the batch norm and activation that alone read it."""
    chain = [layer]
    while True:
        readers = [node.operation for node in chain[-1]._outbound_nodes]
        kinds = {type(each).__name__ for each in readers}
        if len(readers) != 1 or not kinds <= {"BatchNormalization", "Activation", "ReLU"}:
            return chain
        chain.append(readers[0])


def _unit(
    layer: Any, chain: list[Any], given: np.ndarray, linear: np.ndarray, output: np.ndarray
) -> TorchUnit:
    weights = _weights(layer)
    parts = {"bias": f"{layer.name}/bias"} if "bias" in weights else {}
    epsilon = None
    for norm in chain[1:]:
        found = _weights(norm)
        known = {**_NORM, **_STATISTICS}
        parts |= {known[name]: f"{norm.name}/{name}" for name in found if name in known}
        epsilon = getattr(norm, "epsilon", epsilon)
    shape = _turned(np.empty(weights["kernel"].shape), to_keras=False).shape
    name = f"{layer.name}/kernel"
    return TorchUnit(name, shape, 1, parts, given, linear, output, epsilon=epsilon)
