"""R-CNN's box regression (arXiv 1311.2524, appendix C): windows moved towards their objects.

Linear in what the classifier reads, the pooled last map. The ILSVRC14 entry had none, and it is off
unless asked for.
"""

import dataclasses
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import Ridge
from tqdm import tqdm

from googlenet_jax.detection.boxes import iou
from googlenet_jax.detection.measures import Objects
from googlenet_jax.errors import UserError
from googlenet_jax.runtime.process import shows_progress
from googlenet_jax.runtime.storage import write_atomically, writing

FILE = "box_regression.npz"
NEAR = 0.6  # IoU above which a window is a pair with its object
RIDGE = 1000.0
NORM = 20.0  # the mean norm to which features are scaled, for which that ridge was chosen
LARGEST_LOG = 4.0  # of a change of size, so that no box overflows


def offsets(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns what takes boxes [N, 4] to objects [N, 4]: [N, 4].

    The shift of the middle down and to the right, as shares of the box's height and width, and the
    logarithms of how its height and width change.
    """
    sides, wanted = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    shift = (objects[:, :2] + objects[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return np.concatenate([shift / sides, np.log(wanted / sides)], axis=1)


def moved(boxes: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Returns boxes [N, 4] moved by offsets [..., N, 4]: the inverse of `offsets`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + by[..., :2] * sides
    half = sides * np.exp(np.clip(by[..., 2:], -LARGEST_LOG, LARGEST_LOG)) / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


@dataclasses.dataclass(frozen=True)
class Regression:
    """A linear map for each class.

    Attributes:
      weights: float32 [classes, F, 4]; bias: float32 [classes, 4]. 0 where a class had no pair.
    """

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Offsets [classes, P, 4] for features [P, F]."""
        return np.einsum("pf,cfo->cpo", features, self.weights) + self.bias[:, None]


class Pairs(NamedTuple):
    """Windows near an object: features [N, F], labels int [N] and offsets [N, 4] to the object."""

    features: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


def pairs_of(boxes: np.ndarray, features: np.ndarray, objects: Objects) -> Pairs:
    """Picks an image's windows whose IoU with an object that counts is above 0.6."""
    wanted = ~objects.ignored
    overlaps = iou(boxes.astype(np.float64), objects.boxes[wanted].astype(np.float64))
    near = overlaps.max(axis=1, initial=0) > NEAR
    best = overlaps[near].argmax(axis=1) if near.any() else np.zeros(0, np.int64)
    targets = offsets(boxes[near], objects.boxes[wanted][best])
    return Pairs(features[near], objects.labels[wanted][best], targets)


def fit(pairs: Sequence[Pairs], num_classes: int) -> Regression:
    """Fits each class's ridge regression to the pairs of a split.

    Raises:
      UserError: there is no pair at all.
    """
    features, labels, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if not len(labels):
        raise UserError("box regression: no proposal overlaps an object by more than 0.6")
    scale = NORM / max(np.linalg.norm(features, axis=1).mean(), 1e-12)
    weights = np.zeros((num_classes, features.shape[1], 4), np.float32)
    bias = np.zeros((num_classes, 4), np.float32)
    for label in np.unique(labels):
        own = labels == label
        model = Ridge(RIDGE).fit(features[own].astype(np.float64) * scale, targets[own])
        weights[label], bias[label] = model.coef_.T * scale, model.intercept_
    return Regression(weights, bias)


def moved_by(
    boxes: np.ndarray,
    features: Sequence[np.ndarray],
    regressions: Sequence[Regression],
    group: Sequence[int],
) -> np.ndarray:
    """Boxes [P, 4] as each class moves them, [classes, P, 4]: the mean of a group of networks."""
    by = [regressions[i](features[i]) for i in group]
    return moved(boxes, np.mean(by, axis=0)).astype(np.float32)


def save_regression(folder: str | Path, regression: Regression) -> None:
    """Writes it into a run's folder, atomically. Raises UserError where the disk refuses."""
    path = Path(folder) / FILE
    with writing(path):
        write_atomically(path, lambda part: np.savez(part, **dataclasses.asdict(regression)))


def load_regression(folder: str | Path) -> Regression | None:
    """Reads a run's box regression; None where it has none yet.

    Raises:
      UserError: the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return Regression(file["weights"], file["bias"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole file ({error}); delete it to fit anew") from error


def collect(
    found: Iterable[tuple[np.ndarray, list[np.ndarray], Objects]], images: int, networks: int
) -> list[list[Pairs]]:
    """Gathers each network's pairs over a split from (boxes, features, objects) an image."""
    bar = tqdm(found, "box regression", images, unit=" images", disable=not shows_progress())
    pairs: list[list[Pairs]] = [[] for _ in range(networks)]
    for boxes, features, objects in bar:
        for own, each in zip(pairs, features, strict=True):
            own.append(pairs_of(boxes, each, objects))
    return pairs
