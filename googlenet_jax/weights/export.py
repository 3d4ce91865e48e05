"""A network as a file that runs without this project: StableHLO, by `jax.export`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError
from googlenet_jax.models.folding import fold_batch_norm, has_batch_norm
from googlenet_jax.models.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
# What JAX guarantees (docs.jax.dev, "Exporting and serializing", compatibility guarantees); beyond
# it, it may refuse an artifact.
LOADABLE = (
    f"by JAX releases up to 6 months newer and 3 weeks older than {jax.__version__}; keep the weights, "
    "and export them again with a newer JAX"
)

# Imports jax and numpy alone; -I keeps the current folder and PYTHONPATH out of it.
_RUN = """
import sys, pathlib, numpy, jax
from jax import export
artifact, images, logits = sys.argv[1:]
call = export.deserialize(bytearray(pathlib.Path(artifact).read_bytes())).call
batches = numpy.load(images)
numpy.savez(logits, **{name: jax.jit(call)(batches[name]) for name in batches.files})
assert not any(name.split(".")[0] == "googlenet_jax" for name in sys.modules)
"""


def export_model(
    model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> bytes:
    """Makes the artifact, for PLATFORMS: images uint8 `[b, S, S, 3]`, RGB, any b → logits `[b,
    num_classes]`.

    Channel order, mean and standard deviation are applied inside; what comes before them, reading,
    scaling and cropping to S × S, is not. Batch norm is folded.

    Returns:
      What `jax.export.deserialize` reads, with the weights inside; for how long, LOADABLE says.
    """
    function = _function(model, variables, preprocessing)
    size = preprocessing.size
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def _function(model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing) -> Any:
    if has_batch_norm(model):
        model, variables = fold_batch_norm(model, variables)

    def logits(images: jax.Array) -> jax.Array:
        inputs = normalize(images, preprocessing, model.dtype)
        output: Any = model.apply(variables, inputs, train=False)
        return output.logits

    return logits


def check_artifact(
    artifact: Path, model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> float:
    """Runs the artifact on random images, in batches of 1 and 3, in a process that does not import
    this project; returns the largest difference from the network's logits, as it is unfolded, in
    units of the logits' root mean square.

    Raises:
      UserError: the process failed.
    """
    rng = np.random.default_rng(0)
    shape = (preprocessing.size, preprocessing.size, 3)
    batches = {str(n): rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in (1, 3)}

    @jax.jit
    def expect(images: jax.Array) -> jax.Array:
        output: Any = model.apply(
            variables, normalize(images, preprocessing, model.dtype), train=False
        )
        return output.logits

    with tempfile.TemporaryDirectory() as folder:
        images, logits = Path(folder) / "images.npz", Path(folder) / "logits.npz"
        np.savez(images, **batches)  # type: ignore[arg-type]  # names are not savez's own
        command = [
            sys.executable,
            "-I",
            "-c",
            _RUN,
            str(artifact.resolve()),
            str(images),
            str(logits),
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{artifact}: does not run by itself: {reason}")
        found = np.load(logits)
        worst = 0.0
        for name, batch in batches.items():
            expected = np.asarray(expect(batch), np.float64)
            error = np.abs(np.asarray(found[name], np.float64) - expected).max()
            worst = max(worst, float(error / np.sqrt(np.mean(expected**2))))
    return worst


def describe(
    model_name: str, preprocessing: Preprocessing, class_names: tuple[str, ...] | None
) -> str:
    """What stands beside the artifact, JSON: how images are prepared, what it takes and gives."""
    size, resize = preprocessing.size, preprocessing.resize
    sides = "the short side" if preprocessing.crop == "center" else "both sides"
    about = {
        "model": model_name,
        "input": {"dtype": "uint8", "shape": ["b", size, size, 3], "channels": "RGB"},
        "output": {"logits": ["b", "num_classes"]},
        "platforms": list(PLATFORMS),
        "prepare": (
            f"scale {sides} to {resize} pixels, crop the {size} x {size} centre, keep 0 to 255; "
            "channel order, mean and std are applied inside the artifact; the logit of class i "
            "is i + class_offset"
        ),
        "preprocessing": preprocessing.to_dict(),
        "class_names": None if class_names is None else list(class_names),
        "jax": jax.__version__,
        "loadable": LOADABLE,
    }
    return json.dumps(about, indent=2, ensure_ascii=False)
