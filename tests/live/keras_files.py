"""Writes and loads files of Keras's own InceptionV3, in a process of its own:

    python keras_files.py write FOLDER          every form, and arrays.npz with what they hold
    python keras_files.py load FILE OUT.npz     what Keras has after loading FILE

arrays.npz names the arrays as they were made: "0/kernel", "0/beta", "0/mean", "0/var", …, "kernel",
"bias".
"""

import re
import sys
from typing import Any

import keras
import numpy as np


def made(model: Any, kind: Any) -> list[Any]:
    """Layers in the order in which they were made, which their names count."""

    def number(layer: Any) -> int:
        return int((re.findall(r"_([0-9]+)$", layer.name) or [0])[0])

    return sorted((layer for layer in model.layers if isinstance(layer, kind)), key=number)


def pairs(model: Any) -> list[tuple[Any, Any]]:
    """Each convolution with its batch norm."""
    convs, norms = (
        made(model, kind) for kind in (keras.layers.Conv2D, keras.layers.BatchNormalization)
    )
    return list(zip(convs, norms, strict=True))


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """What a model holds."""
    found = {}
    for i, (conv, norm) in enumerate(pairs(model)):
        found[f"{i}/kernel"] = conv.get_weights()[0]
        found[f"{i}/beta"], found[f"{i}/mean"], found[f"{i}/var"] = norm.get_weights()
    found["kernel"], found["bias"] = model.get_layer("predictions").get_weights()
    return found


def write(folder: str) -> None:
    rng = np.random.default_rng(0)
    model = keras.applications.InceptionV3(weights=None)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 1, w.shape).astype("f4") for w in layer.get_weights()])
    np.savez(f"{folder}/arrays.npz", **arrays_of(model))
    model.save_weights(f"{folder}/k.weights.h5")
    model.save(f"{folder}/k.keras")
    model.save(f"{folder}/k.h5")
    top = model.layers[-2]  # the global average
    keras.Model(model.inputs, top.output).save_weights(f"{folder}/notop.weights.h5")


def load(file: str, out: str) -> None:
    model = keras.applications.InceptionV3(weights=None)
    model.load_weights(file)
    np.savez(out, **arrays_of(model))


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](*sys.argv[2:])
