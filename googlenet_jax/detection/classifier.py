"""Region classifiers at work: probabilities of proposed boxes, and detections from them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from googlenet_jax.data.preprocessing import Preprocessing, standardize
from googlenet_jax.detection.boxes import clip
from googlenet_jax.detection.measures import Detections
from googlenet_jax.detection.regions import to_canvas, warp, with_context
from googlenet_jax.detection.suppression import SUPPRESSED, suppress
from googlenet_jax.runtime.sharding import data_sharding, replicated


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network whose last class is the background, and how windows become its input."""

    model: Any
    preprocessing: Preprocessing


@dataclasses.dataclass(frozen=True)
class Settings:
    """How regions are scored and which detections are kept.

    Attributes:
      canvas: side of the canvas that an image lies on, in pixels; larger images are scaled down.
      batch: windows that are classified at a time.
      overlap: IoU above which the lower-scored of two boxes of a class is dropped.
      keep: how many boxes of a class are kept in an image.
    """

    canvas: int = 512
    batch: int = 256
    overlap: float = 0.3
    keep: int = 100


class Scored(NamedTuple):
    """What networks say of an image's boxes.

    Attributes:
      probabilities: the softmax, float32 [networks, P, classes + 1].
      features: what each network's classifier reads, [P, F] each; none unless asked for.
    """

    probabilities: np.ndarray
    features: list[np.ndarray]


class Scorer:
    """Several networks over the proposals of images, each image uploaded once for all of them."""

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        settings: Settings,
        mesh: Mesh,
        features: bool = False,
    ) -> None:
        self.settings = settings
        self._mesh = mesh
        # A batch that the devices share evenly.
        self._batch = -(-settings.batch // mesh.size) * mesh.size
        score = functools.partial(_score, tuple(classifiers), features)
        whole, split = replicated(mesh), data_sharding(mesh)
        self._score = jax.jit(score, in_shardings=(whole, whole, whole, split), out_shardings=whole)

    def dispatch(
        self, variables: Sequence[Any], image: np.ndarray, boxes: np.ndarray
    ) -> Callable[[], Scored]:
        """Starts the computation for one image; what it returns waits for the result.

        Args:
          variables: each network's, whole on every device.
          image: uint8 [H, W, 1 or 3]; boxes: float [P, 4] in its pixels.
        Returns:
          A function that waits for what they say.
        """
        canvas = to_canvas(image, self.settings.canvas)
        whole, split = replicated(self._mesh), data_sharding(self._mesh)
        pixels, size = jax.device_put((canvas.pixels, canvas.size), whole)
        padded = _pad(boxes.astype(np.float32) * canvas.scale, self._batch)
        parts = [
            self._score(tuple(variables), pixels, size, jax.device_put(part, split))
            for part in np.split(padded, len(padded) // self._batch)
        ]

        def wait() -> Scored:
            probabilities, features = zip(*jax.device_get(parts), strict=True)
            count = len(boxes)
            joined = [np.concatenate(each)[:count] for each in zip(*features, strict=True)]
            return Scored(np.concatenate(probabilities, axis=1)[:, :count], joined)

        return wait

    def over(
        self, variables: Sequence[Any], images: Iterator[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Scored]:
        """Yields what they say of each (image, boxes), one image late to keep devices busy."""
        waiting: Callable[[], Scored] | None = None
        for image, boxes in images:
            computing = self.dispatch(variables, image, boxes)
            if waiting is not None:
                yield waiting()
            waiting = computing
        if waiting is not None:
            yield waiting()


def _score(
    classifiers: Sequence[Classifier],
    with_features: bool,
    variables: Sequence[Any],
    pixels: jax.Array,
    size: jax.Array,
    boxes: jax.Array,
) -> tuple[jax.Array, list[jax.Array]]:
    """Probabilities [networks, K, classes + 1] of windows around boxes [K, 4], and features."""
    windows = with_context(boxes)[None]
    crops: dict[Preprocessing, jax.Array] = {}  # cut once for all networks that see them alike
    results, features = [], []
    for classifier, weights in zip(classifiers, variables, strict=True):
        how = classifier.preprocessing
        if how not in crops:
            image = standardize(pixels[None], how, classifier.model.dtype)
            crops[how] = warp(image, size[None], windows, how.size)[0]
        output, seen = classifier.model.apply(
            weights, crops[how], train=False, mutable=["intermediates"]
        )
        if with_features:
            features.append(_pooled(seen["intermediates"]))
        results.append(jax.nn.softmax(output.logits).astype(jnp.float32))
    return jnp.stack(results), features


def _pooled(intermediates: Any) -> jax.Array:
    """The pooled last map [K, F], which the classifier reads: the network's own last vector."""
    own = [value for value in intermediates.values() if getattr(value, "ndim", 0) == 2]
    return own[-1].astype(jnp.float32)


def _pad(boxes: np.ndarray, multiple: int) -> np.ndarray:
    """Boxes [P, 4] with boxes of no meaning after them, up to a multiple above 0."""
    missing = -len(boxes) % multiple if len(boxes) else multiple
    return np.concatenate([boxes, np.zeros((missing, 4), boxes.dtype)])


def detect(
    boxes: np.ndarray,
    probabilities: np.ndarray,
    size: Sequence[int],
    settings: Settings,
    padded: int,
) -> Detections:
    """Returns an image's detections: each class's best boxes that don't overlap one another.

    Args:
      boxes: float [P, 4] in pixels, or [classes, P, 4] where each class has moved them.
      probabilities: [P, classes + 1], the background last.
      size: height and width of the image.
      padded: a number of boxes, at least P, to which all images are padded: one compilation.
    Returns:
      Detections, a class after the other, the best of each first; boxes lie inside the image.
    """
    sets = boxes[None] if boxes.ndim == 2 else boxes
    sets = clip(sets.reshape(-1, 4).astype(np.float32), *size).reshape(sets.shape)
    missing = padded - probabilities.shape[0]
    scores = np.pad(
        probabilities[:, :-1].T, ((0, 0), (0, missing)), constant_values=-np.float32(np.inf)
    )
    sets = np.pad(sets, ((0, 0), (0, missing), (0, 0)))
    count = min(settings.keep, padded)
    indices, kept = jax.device_get(
        suppress(sets, scores.astype(np.float32), count=count, threshold=settings.overlap)
    )
    labels, places = np.nonzero(kept > SUPPRESSED)
    chosen = indices[labels, places]
    found = sets[labels if len(sets) > 1 else np.zeros_like(labels), chosen]
    return Detections(found, labels.astype(np.int32), kept[labels, places])
