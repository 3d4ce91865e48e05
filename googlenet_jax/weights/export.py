"""A network as a file that runs without this project: StableHLO, by `jax.export`."""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from googlenet_jax.data.image_kind import ImageKind, kind_of
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError
from googlenet_jax.models.folding import fold_batch_norm, has_batch_norm
from googlenet_jax.models.network import Network

PLATFORMS = ("cpu", "cuda", "tpu")
# What JAX guarantees (docs.jax.dev, "Exporting and serializing", compatibility guarantees); beyond
# it, it may refuse an artifact.
LOADABLE = (
    f"by JAX releases up to 6 months newer and 3 weeks older than {jax.__version__}; keep the"
    " weights, and export them again with a newer JAX"
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
    """Makes the artifact, for PLATFORMS: images `[b, S, S, C]` of the network's kind (uint8 RGB), any
    b → logits `[b, num_classes]`.

    Channel order, mean and standard deviation are applied inside; what comes before them, reading,
    scaling and cropping to S × S, is not. Batch norm is folded.

    Returns:
      What `jax.export.deserialize` reads, with the weights inside; for how long, LOADABLE says.
    """
    function = _function(model, variables, preprocessing)
    size = preprocessing.size
    (batch,) = export.symbolic_shape("b")
    channels, dtype = kind_of(model, preprocessing)
    images = jax.ShapeDtypeStruct((batch, size, size, channels), dtype)
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
    """`largest_difference` of an artifact in a process that does not import this project.

    Raises:
      UserError: the process failed.
    """
    run = functools.partial(_run_alone, artifact)
    return largest_difference(run, model, variables, preprocessing)


def largest_difference(
    run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]],
    model: Network,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> float:
    """Compares what was exported with the network, as it is unfolded, on random images.

    Args:
      run: batches by name, `[b, S, S, C]`, → the exported network's logits by name.
    Returns:
      The largest difference over batches of 1 and 3, in units of the logits' root mean square;
      infinite where one side is not finite, or the logits are all zero and the other's are not.
    """
    rng = np.random.default_rng(0)
    kind = kind_of(model, preprocessing)
    shape = (preprocessing.size, preprocessing.size, kind.channels)
    top = {"uint8": 256, "uint16": 2**16}.get(kind.dtype, 1)
    batches = {str(n): (top * rng.random((n, *shape))).astype(kind.dtype) for n in (1, 3)}

    @jax.jit
    def expect(images: jax.Array) -> jax.Array:
        output: Any = model.apply(
            variables, normalize(images, preprocessing, model.dtype), train=False
        )
        return output.logits

    found, worst = run(batches), 0.0
    for name, batch in batches.items():
        expected = np.asarray(expect(batch), np.float64)
        error = np.abs(np.asarray(found[name], np.float64) - expected).max()
        size = np.sqrt(np.mean(expected**2))
        ratio = float(error / size) if size else (0.0 if error == 0 else np.inf)
        worst = max(worst, ratio if np.isfinite(ratio) else np.inf)
    return worst


def _run_alone(artifact: Path, batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        images, logits = Path(folder) / "images.npz", Path(folder) / "logits.npz"
        np.savez(images, **batches)  # type: ignore[arg-type]  # names are not savez's own
        files = [str(artifact.resolve()), str(images), str(logits)]
        command = [sys.executable, "-I", "-c", _RUN, *files]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{artifact}: does not run by itself: {reason}")
        with np.load(logits) as found:
            return dict(found)


def describe(
    model_name: str,
    preprocessing: Preprocessing,
    images: ImageKind,
    class_names: tuple[str, ...] | None,
    form: Mapping[str, Any],
) -> str:
    """What stands beside what was exported, JSON: how images are prepared, what it takes and gives.

    Args:
      form: what is to be said of the form.
    """
    size, resize = preprocessing.size, preprocessing.resize
    sides = "the short side" if preprocessing.crop == "center" else "both sides"
    about = {
        "model": model_name,
        "input": {
            "dtype": images.dtype,
            "shape": ["b", size, size, images.channels],
            "channels": "RGB" if images.channels == 3 else images.channels,
        },
        "output": {"logits": ["b", "num_classes"]},
        "prepare": (
            f"scale {sides} to {resize} pixels, crop the {size} x {size} centre, keep "
            f"{'0 to 255' if images.dtype == 'uint8' else 'the values'}; "
            "channel order, mean and std are applied inside the artifact; the logit of class i "
            "is i + class_offset"
        ),
        "preprocessing": preprocessing.to_dict(),
        "class_names": None if class_names is None else list(class_names),
        **form,
    }
    return json.dumps(about, indent=2, ensure_ascii=False)


STABLEHLO = {"platforms": list(PLATFORMS), "jax": jax.__version__, "loadable": LOADABLE}
