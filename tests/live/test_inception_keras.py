"""Keras's own InceptionV3, on its JAX backend in float64, beside our `keras` flavour. No TensorFlow
is needed.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util

import googlenet_jax as gj
from tests.parity.harness import relative_error

if importlib.util.find_spec("keras") is None:
    pytest.skip("needs keras: pip install -e '.[test,live-inception]'", allow_module_level=True)

# Keras 3.15's batch norm on JAX is exact to float32 alone, also where all of its arrays are
# float64: one layer beside the formula in NumPy is off by 3e-7, its pools by 2e-16. Another epsilon
# or a counted padding would show a hundred times larger.
TOLERANCE = 1e-6
SIZE = 139
# Runs in a process of its own: Keras fixes its backend and its float type as it is imported.
PROGRAM = """
import re, sys, keras, numpy as np
keras.config.set_floatx("float64")
count = keras.applications.InceptionV3(weights=None).count_params()
model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
rng = np.random.default_rng(0)
def made(kind):  # in the order in which they were made, which their names count
    number = lambda layer: int((re.findall(r"_([0-9]+)$", layer.name) or [0])[0])
    return sorted((layer for layer in model.layers if isinstance(layer, kind)), key=number)
arrays = {"kernel": rng.normal(0, 0.03, (2048, 1000)), "bias": rng.normal(0, 0.2, 1000), "count": count}
for i, (conv, norm) in enumerate(zip(made(keras.layers.Conv2D), made(keras.layers.BatchNormalization), strict=True)):
    shape = conv.kernel.shape
    arrays[f"{i}/kernel"] = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
    arrays[f"{i}/beta"], arrays[f"{i}/mean"] = rng.normal(0, 0.2, (2, shape[-1]))
    arrays[f"{i}/var"] = rng.uniform(0.5, 2, shape[-1])
    conv.set_weights([arrays[f"{i}/kernel"]])
    norm.set_weights([arrays[f"{i}/{part}"] for part in ("beta", "mean", "var")])
taps = [f"mixed{i}" for i in range(11)]
values = keras.Model(model.inputs, [model.get_layer(name).output for name in taps])(np.load(sys.argv[1])["images"])
arrays |= {name: np.asarray(value) for name, value in zip(taps, values, strict=True)}
np.savez(sys.argv[2], logits=arrays["mixed10"].mean((1, 2)) @ arrays["kernel"] + arrays["bias"], **arrays)
"""
# Keras's "mixed0" … "mixed10" are our modules in order.
MODULES = [
    f"inception_{m}" for m in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
]


def test_kerass_logits_and_modules(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(1, SIZE, SIZE, 3))
    np.savez(tmp_path / "in.npz", images=images)
    program = PROGRAM.replace("SIZE", str(SIZE))
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", program, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    out = np.load(tmp_path / "out.npz")
    assert int(out["count"]) == 23_851_784

    model = gj.create_model("inception_v3", flavour="keras", dtype="float64", param_dtype="float64")
    ours = gj.endpoints(model, convert(out), images)
    errors = {
        module: relative_error(ours[module], out[f"mixed{i}"]) for i, module in enumerate(MODULES)
    }
    errors["head"] = relative_error(ours["head"], out["logits"])
    worst = max(errors, key=errors.__getitem__)
    print(f"keras: {len(errors)} activations, at most {errors[worst]:.1e} ({worst})")
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


def convert(out: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Keras's weights as our variables: it makes its units in torchvision's order, which our class
    knows.
    """
    layers = [
        layer
        for layer in gj.create_model("inception_v3").torch_names
        if not layer.startswith(("aux1", "head"))
    ]
    # v2's module A has a 3×3 where v3's has the 5×5.
    layers = [
        layer for layer in layers if not re.fullmatch(r"inception_5\w/conv_3x3(_reduce)?", layer)
    ]
    flat: dict[tuple[str, ...], np.ndarray] = {
        ("params", "head", part): out[part] for part in ("kernel", "bias")
    }
    for i, layer in enumerate(layers):
        place = tuple(layer.split("/"))
        flat["params", *place, "kernel"] = out[f"{i}/kernel"]
        flat["params", *place, "bn", "bias"] = out[f"{i}/beta"]
        flat["batch_stats", *place, "bn", "mean"] = out[f"{i}/mean"]
        flat["batch_stats", *place, "bn", "var"] = out[f"{i}/var"]
    return traverse_util.unflatten_dict(flat)
