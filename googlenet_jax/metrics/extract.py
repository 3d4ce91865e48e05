"""Features of any network and layer into a file, in order; a run that was stopped goes on."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from googlenet_jax.data.pipeline import eval_image
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.preprocessing import normalize as normalize_as_trained
from googlenet_jax.errors import UserError, nearest
from googlenet_jax.metrics.images import ImageSet, batches, check_alike, survey
from googlenet_jax.metrics.resize import normalize, resize
from googlenet_jax.metrics.stored import write_arrays
from googlenet_jax.metrics.summary import weights_digest
from googlenet_jax.models.endpoints import endpoints
from googlenet_jax.models.network import Network, variable_shapes
from googlenet_jax.runtime.sharding import data_sharding, replicate, replicated, shard_batch
from googlenet_jax.runtime.storage import write_atomically, writing

PART = 1024  # images whose features are written at once


def extract(
    sets: Sequence[ImageSet],
    model: Network,
    variables: dict[str, Any],
    layer: str,
    output: Path,
    *,
    preprocessing: Preprocessing | None,
    resize_as: str = "tf1",
    mixed: bool = False,
    mesh: Mesh,
    batch_size: int = 32,
    progress: bool = True,
    log: Callable[[str], object] = print,
) -> tuple[int, ...]:
    """Writes `features`, float32 [N, …], and `names` [N] of all images into `output`, an .npz.

    What is done lies in a folder beside it, OUTPUT.partial, from which the same command resumes it.

    Args:
      layer: an endpoint of the network.
      preprocessing: the network's own; None resizes `resize_as` a package of the FID does.
      mixed: takes images of several sizes; with a preprocessing of its own a network always does.
      say: gets what a person should know, a line at a time.
    Returns:
      The features' shape.
    Raises:
      UserError: no such layer, images that can't be read or are not alike, or an OUTPUT.partial of
        another command.
    """
    apply = _function(model, layer, preprocessing, resize_as, mesh)
    digest = hashlib.sha256()
    several = False
    for images in sets:
        with tqdm(desc=f"reading {images.name}", total=len(images), disable=not progress) as bar:
            found = survey(images, bar.update)
        digest.update(found.digest.encode())
        for line in check_alike(images, found, mixed or preprocessing is not None):
            log(line)
        several |= len(found.sizes) > 1
    about = {
        "images": digest.hexdigest(),
        "weights": weights_digest(variables),
        "layer": layer,
        "input": resize_as if preprocessing is None else preprocessing.to_dict(),
    }
    parts = _Parts(output, about)
    prepare = _prepare(preprocessing, resize_as, several)
    placed = replicate(variables, mesh)
    whole = _chain(sets)
    batch_size = -(-min(batch_size, len(whole)) // mesh.size) * mesh.size
    with tqdm(desc=layer, total=len(whole), initial=parts.done, disable=not progress) as bar:
        for pixels, mask in batches(whole, batch_size, prepare, parts.done):
            values = apply(placed, shard_batch({"image": pixels}, mesh)["image"])
            parts.add(np.asarray(values, np.float32)[: mask.sum()])
            bar.update(int(mask.sum()))
    return parts.finish(list(whole.names))


def _function(
    model: Network, layer: str, preprocessing: Preprocessing | None, resize_as: str, mesh: Mesh
) -> Callable[[Any, Any], Any]:
    """(variables, images) → the layer's activations, compiled."""

    def run(variables: Any, images: Any) -> Any:
        if preprocessing is None:
            x = normalize(resize(images, resize_as), resize_as).astype(model.dtype)
        else:
            x = normalize_as_trained(images, preprocessing, model.dtype)
        return endpoints(model, variables, x)[layer]

    shapes = variable_shapes(model, model.input_size)
    image = jax.ShapeDtypeStruct((1, model.input_size, model.input_size, 3), jnp.float32)
    known = jax.eval_shape(lambda v, x: endpoints(model, v, x), shapes, image)
    if layer not in known:
        modules = ", ".join(name for name in known if "/" not in name)
        raise UserError(
            f"--layer: {layer!r} is none of the network's{nearest(layer, known)}; it has {modules},"
            " and those inside modules, such as MODULE/conv_1x1"
        )
    whole, split = replicated(mesh), data_sharding(mesh)
    return jax.jit(run, in_shardings=(whole, split), out_shardings=whole)


def _prepare(
    preprocessing: Preprocessing | None, resize_as: str, several: bool
) -> Callable[[np.ndarray], np.ndarray] | None:
    if preprocessing is not None:
        return lambda pixels: eval_image(pixels, preprocessing)
    return (lambda pixels: resize(pixels[None], resize_as)[0]) if several else None


def _chain(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one."""
    if len(sets) == 1:
        return sets[0]
    places = [(images, index) for images in sets for index in range(len(images))]
    names = [images.names[index] for images, index in places]
    return _Chain(", ".join(images.name for images in sets), names, places=places)


class _Chain(ImageSet):
    def __init__(self, name: str, names: Sequence[str], places: Any) -> None:
        super().__init__(name, names)
        object.__setattr__(self, "_places", places)

    def read(self, index: int) -> np.ndarray:
        images, own = self._places[index]  # type: ignore[attr-defined]
        return images.read(own)


class _Parts:
    """Features on disk, PART images a file, until all are there."""

    def __init__(self, output: Path, about: dict[str, Any]) -> None:
        if output.suffix != ".npz":
            raise UserError(f"--output: expected a name that ends in .npz, found {output}")
        self._output, self._folder = output, output.with_name(output.name + ".partial")
        self._waiting: list[np.ndarray] = []
        note = self._folder / "about.json"
        if note.exists():
            if json.loads(note.read_text()) != about:
                raise UserError(
                    f"{self._folder}: left by a command with other images, weights, layer or input;"
                    " remove it, or choose another --output"
                )
        else:
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(note, lambda path: path.write_text(json.dumps(about)))
        self._count = len(list(self._folder.glob("[0-9]*.npy")))
        self.done = self._count * PART

    def add(self, rows: np.ndarray) -> None:
        self._waiting.append(rows)
        while sum(map(len, self._waiting)) >= PART:
            rows = np.concatenate(self._waiting)
            self._waiting = [rows[PART:]]
            self._write(rows[:PART])

    def _write(self, rows: np.ndarray) -> None:
        goal = self._folder / f"{self._count:06d}.npy"
        with writing(goal):
            write_atomically(goal, lambda path: np.save(path, rows))
        self._count += 1

    def finish(self, names: list[str]) -> tuple[int, ...]:
        parts = [np.load(self._folder / f"{i:06d}.npy") for i in range(self._count)]
        features = np.concatenate([*parts, *self._waiting])
        assert len(features) == len(names)
        write_arrays(self._output, {"features": features, "names": np.array(names)})
        shutil.rmtree(self._folder)
        return features.shape
