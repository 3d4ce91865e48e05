"""TF-slim's networks with random weights, run once in float64: variables by their names, and every
end point.

TensorFlow runs in a process of its own, which imports nothing of this project: its threads and its
memory are gone afterwards, and nothing of the two can mix. `run_slim` gives what a test needs as
NumPy arrays.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

PACKAGES = ("tensorflow", "tf_keras", "tf_slim")


class SlimRun(NamedTuple):
    """Variables by slim's names ("InceptionV1/Conv2d_1a_7x7/weights") and activations by end point
    [N, H, W, C]; all float64.
    """

    variables: dict[str, np.ndarray]
    endpoints: dict[str, np.ndarray]


def require_slim() -> None:
    """Skips the calling test module where the extra is not installed; nothing is imported to find
    out, since TensorFlow takes seconds.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: pip install -e '.[live]'", allow_module_level=True
        )


def run_slim(network: str, images: np.ndarray, seed: int = 0, **options: Any) -> SlimRun:
    """Builds slim's `network`, draws every variable, none of them zero or one, and runs it in
    evaluation.

    Args:
      network: a function of tf_slim.nets.inception with an `…_arg_scope` beside it, such as
        "inception_v1".
      images: floats [N, H, W, 3].
      options: of the function, such as num_classes=7.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", images=images.astype(np.float64))
        command = [sys.executable, __file__, network, folder, str(seed), repr(options)]
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_ENABLE_ONEDNN_OPTS": "0",
        }
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr[-3000:]
        with np.load(Path(folder) / "out.npz") as out:
            arrays = {name: out[name] for name in out.files}
    parts = {
        kind: {
            name.split(":", 1)[1]: a for name, a in arrays.items() if name.startswith(kind + ":")
        }
        for kind in ("variable", "endpoint")
    }
    return SlimRun(parts["variable"], parts["endpoint"])


def _draw(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Kernels such that activations keep their size; the rest away from zero and one."""
    if name.endswith("moving_variance"):
        return rng.uniform(0.5, 2.0, shape)
    if name.endswith("gamma"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith("weights"):
        return rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
    return rng.normal(0, 0.2, shape)


def _main(network: str, folder: str, seed: str, options: str) -> None:
    import ast

    import tf_keras.src.legacy_tf_layers as legacy

    # tf_slim imports the layers from where tf_keras had them before it moved them.
    sys.modules["tf_keras.legacy_tf_layers"] = legacy
    import tensorflow.compat.v1 as tf
    import tf_slim
    from tf_slim.nets import inception

    tf.disable_eager_execution()
    images = np.load(Path(folder) / "in.npz")["images"]
    # The fused batch norm has no float64; the plain one is the same arithmetic in evaluation.
    with (
        tf_slim.arg_scope(getattr(inception, f"{network}_arg_scope")()),
        tf_slim.arg_scope([tf_slim.layers.batch_norm], fused=False),
    ):
        _, endpoints = getattr(inception, network)(
            tf.constant(images), is_training=False, **ast.literal_eval(options)
        )
    rng = np.random.default_rng(int(seed))
    drawn = {v.op.name: _draw(v.op.name, v.shape.as_list(), rng) for v in tf.global_variables()}
    with tf.Session() as session:
        for variable in tf.global_variables():
            variable.load(drawn[variable.op.name], session)
        found = session.run(endpoints)
    np.savez(
        Path(folder) / "out.npz",
        **{f"variable:{name}": value for name, value in drawn.items()},
        **{f"endpoint:{name}": value for name, value in found.items()},
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
