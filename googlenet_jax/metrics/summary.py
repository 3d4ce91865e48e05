"""A set of images through the network, once: what every metric needs of it."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from googlenet_jax.metrics.features import InceptionFeatures
from googlenet_jax.metrics.images import ImageSet, batches, check_alike, survey
from googlenet_jax.metrics.moments import Statistics, merge_statistics, statistics_of
from googlenet_jax.metrics.resize import resize
from googlenet_jax.metrics.stored import read_arrays, write_arrays
from googlenet_jax.metrics.sums import Probabilities
from googlenet_jax.runtime.sharding import shard_batch
from googlenet_jax.weights.pretrained import cache_folder

METRICS = ("fid", "kid", "is", "pr", "sfid")
# The layer that each needs, and whether it needs the features of every image.
_LAYER = {"fid": "pool3", "kid": "pool3", "is": "logits", "pr": "pool3", "sfid": "spatial"}
_ROWS = ("kid", "pr")
_BLOCK = 4096  # rows whose outer products are added up at once, in float64
SPLITS = 10


@dataclasses.dataclass(frozen=True)
class Summary:
    """A set of images, as the metrics see it.

    Attributes:
      count: images. None where a file of statistics doesn't say.
      statistics: by layer, "pool3" or "spatial".
      rows: pool3 of every image, float32 [N, 2048]; None where no metric asked for it.
      scores: the splits' Inception scores, or None.
      resize: how the images were resized; None where a file of statistics doesn't say.
      weights: the beginning of the weights' digest, likewise.
      notes: what a person should know of the images, in lines.
      cached: whether it was read and not computed.
    """

    name: str
    count: int | None
    statistics: dict[str, Statistics]
    rows: np.ndarray | None = None
    scores: np.ndarray | None = None
    resize: str | None = None
    weights: str | None = None
    notes: tuple[str, ...] = ()
    cached: bool = False


def weights_digest(variables: Any) -> str:
    """The first 16 hexadecimal digits of the weights' SHA-256."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def summarise(
    images: ImageSet,
    features: InceptionFeatures,
    metrics: Iterable[str],
    *,
    weights: str,
    batch_size: int = 32,
    mixed: bool = False,
    cache: bool = True,
    progress: bool = True,
) -> Summary:
    """What `metrics`, some of METRICS, need of the images; read from the cache where it is there.

    The cache goes by the images' contents in order, the resize and `weights`, the network's digest.

    Raises UserError for images that can't be read or aren't alike (unless `mixed`).
    """
    hidden = not progress
    with tqdm(desc=f"reading {images.name}", total=len(images), disable=hidden, leave=False) as bar:
        found = survey(images, bar.update)
    notes = tuple(check_alike(images, found, mixed))
    separately = len(found.sizes) > 1
    key = json.dumps([2, found.digest, features.resize, weights, separately, SPLITS])
    layers = tuple(sorted({_LAYER[each] for each in metrics}))
    wants_rows = any(each in _ROWS for each in metrics)
    kept = cache_folder().parent / "features" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    about = {"resize": features.resize, "weights": weights, "notes": notes}
    if cache and kept.exists():
        summary = _from_arrays(images.name, read_arrays(kept), about)
        if _holds(summary, layers, wants_rows):
            return summary
    computed = _compute(images, features, layers, wants_rows, batch_size, separately, hidden)
    if cache:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(kept, computed)
    return dataclasses.replace(_from_arrays(images.name, computed, about), cached=False)


def _compute(
    images: ImageSet,
    features: InceptionFeatures,
    layers: tuple[str, ...],
    wants_rows: bool,
    batch_size: int,
    separately: bool,
    hidden: bool,
) -> dict[str, np.ndarray]:
    sums: dict[str, _Running] = {layer: _Running() for layer in layers if layer != "logits"}
    rows, scores = [], None
    for values, mask in run_batches(images, features, layers, batch_size, separately, hidden):
        count = int(mask.sum())
        for layer, running in sums.items():
            running.add(np.asarray(values[layer])[:count])
        if wants_rows:
            rows.append(np.asarray(values["pool3"])[:count])
        if "logits" in layers:
            logits = np.asarray(values["logits"])
            if scores is None:
                splits = min(SPLITS, len(images))
                scores = Probabilities.zeros(splits, logits.shape[1], len(images))
            scores = scores.update(jnp.asarray(logits), jnp.asarray(mask))
    result: dict[str, np.ndarray] = {"count": np.array(len(images))}
    for layer, running in sums.items():
        statistics = running.statistics()
        result |= {f"mean_{layer}": statistics.mean, f"cov_{layer}": statistics.cov}
    if wants_rows:
        result["rows"] = np.concatenate(rows)
    if scores is not None:
        result["scores"] = scores.scores()
    return result


def run_batches(
    images: ImageSet,
    features: InceptionFeatures,
    layers: Iterable[str],
    batch_size: int,
    separately: bool,
    hidden: bool,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields the layers' values of a batch, and its mask, in order; shows the time left."""
    names = tuple(layers)
    if features.mesh is not None:
        batch_size = -(-batch_size // features.mesh.size) * features.mesh.size
    # The device leaves images alone that the host has brought to the network's size.
    prepare = (lambda pixels: resize(pixels[None], features.resize)[0]) if separately else None
    with tqdm(desc=images.name, total=len(images), unit="image", disable=hidden) as bar:
        for pixels, mask in batches(images, batch_size, prepare):
            placed: Any = pixels
            if features.mesh is not None:
                placed = shard_batch({"image": pixels}, features.mesh)["image"]
            values = features.layers(placed, names)
            yield values, mask
            bar.update(int(mask.sum()))


class _Running:
    """Statistics of rows that come in batches, in float64."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._so_far: Statistics | None = None

    def add(self, rows: np.ndarray) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        rows = np.concatenate(self._waiting)
        self._waiting = []
        if len(rows) == 1 and self._so_far is not None:
            width = rows.shape[1]
            block = Statistics(rows[0].astype(np.float64), np.zeros((width, width)), 1)
        else:
            block = statistics_of(rows)
        self._so_far = block if self._so_far is None else merge_statistics([self._so_far, block])

    def statistics(self) -> Statistics:
        """Raises UserError below two rows, and for rows that are not finite."""
        if self._waiting:
            self._flush()
        assert self._so_far is not None
        return self._so_far


def _holds(summary: Summary, layers: tuple[str, ...], wants_rows: bool) -> bool:
    statistics = all(layer in summary.statistics for layer in layers if layer != "logits")
    scores = "logits" not in layers or summary.scores is not None
    return statistics and scores and not (wants_rows and summary.rows is None)


def _from_arrays(name: str, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> Summary:
    count = int(arrays["count"])
    statistics = {
        layer: Statistics(arrays[f"mean_{layer}"], arrays[f"cov_{layer}"], count)
        for layer in ("pool3", "spatial")
        if f"mean_{layer}" in arrays
    }
    rows, scores = arrays.get("rows"), arrays.get("scores")
    return Summary(name, count, statistics, rows, scores, cached=True, **about)


def to_stderr(line: str) -> None:
    """A line for the person, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def is_statistics(path: str) -> bool:
    """Whether a name is a file of stored statistics, and not of images."""
    if Path(path).suffix != ".npz" or not Path(path).is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return "mu" in file.files
    except Exception:  # whoever opens it next says what is wrong with it
        return False
