"""Detection over a whole split: proposals, probabilities, detections and average precision."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from googlenet_jax.detection import measures
from googlenet_jax.detection.box_regression import Regression, moved_by
from googlenet_jax.detection.classifier import Scorer, detect
from googlenet_jax.detection.measures import Detections, Objects
from googlenet_jax.detection.proposals import Proposals, interleave, load_proposals
from googlenet_jax.detection.sources import DetectionSource
from googlenet_jax.detection.windows import BACKGROUND, LEFT_OUT, window_labels
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import CutShort
from googlenet_jax.runtime.process import shows_progress

CHUNK = 16  # images that are read at a time


class Split(NamedTuple):
    """A split with its proposals: truth and boxes an image each, sizes [N, 2] in pixels."""

    source: DetectionSource
    truth: list[Objects]
    boxes: list[np.ndarray]
    sizes: np.ndarray

    @property
    def most(self) -> int:
        """The largest number of boxes that an image has, at least 1."""
        return max(1, *(len(boxes) for boxes in self.boxes))


class Scores(NamedTuple):
    """What networks make of a split.

    Attributes:
      detections: by what they are averaged from: (0,) the first network alone, (0, 1) two …
      losses: the mean cross entropy of the proposals, a network each.
    """

    detections: dict[tuple[int, ...], list[Detections]]
    losses: list[float]


def open_split(source: DetectionSource, names: Sequence[str], most: int) -> Split:
    """Joins a split's annotations and the proposals of these names, `most` of each image and set.

    Raises:
      UserError: proposals are missing, damaged, or of other images.
    """
    annotations = source.annotations()
    sizes = np.array([each.size for each in annotations], np.int32).reshape(-1, 2)
    parts: list[Proposals] = [load_proposals(source, name) for name in names]
    for name, part in zip(names, parts, strict=True):
        if not np.array_equal(part.sizes, sizes):
            raise UserError(
                f"proposals {name!r} of {source.name} {source.split} are of images of other sizes; "
                "make them anew"
            )
    boxes = interleave(parts, most)
    return Split(source, [each.objects for each in annotations], boxes, sizes)


def score_split(
    scorer: Scorer,
    variables: Sequence[Any],
    split: Split,
    *,
    groups: Sequence[tuple[int, ...]] = ((0,),),
    regressions: Sequence[Regression] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Runs networks over every proposal of a split, in one pass.

    Args:
      variables: a network each.
      groups: which networks' probabilities are averaged for a set of detections.
      regressions: a network's each, which move boxes; none leave them as they are.
      should_stop: asked after each image.
    Raises:
      CutShort: `should_stop()` said so.
    """
    found: dict[tuple[int, ...], list[Detections]] = {group: [] for group in groups}
    losses, counted = np.zeros(len(variables)), 0
    hidden = not shows_progress()
    name = f"detecting, {split.source.split}"
    results = scorer.over(variables, examples(split))
    bar = tqdm(results, name, len(split.boxes), unit=" images", leave=False, disable=hidden)
    for i, scored in enumerate(bar):
        if should_stop():
            bar.close()
            raise CutShort
        probabilities = scored.probabilities
        labels = window_labels(split.boxes[i], split.truth[i])
        labels[labels == BACKGROUND] = probabilities.shape[2] - 1
        known = labels != LEFT_OUT
        own = np.take_along_axis(probabilities, labels[None, :, None] * known[None, :, None], 2)
        losses += -np.log(np.maximum(own[:, known, 0], 1e-12)).sum(axis=1)
        counted += int(known.sum())
        for group in groups:
            averaged = probabilities[list(group)].mean(axis=0)
            boxes = split.boxes[i]
            if regressions:
                boxes = moved_by(boxes, scored.features, regressions, group)
            found[group].append(
                detect(boxes, averaged, split.sizes[i], scorer.settings, split.most)
            )
    return Scores(found, (losses / max(1, counted)).tolist())


def examples(split: Split) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each image, uint8 [H, W, 1 or 3], with its proposals [P, 4]."""
    for start in range(0, len(split.boxes), CHUNK):
        chunk = range(start, min(start + CHUNK, len(split.boxes)))
        for i, example in zip(chunk, split.source.read(chunk), strict=True):
            yield example["image"], split.boxes[i]


MEASURES: Mapping[str, Callable[..., np.ndarray]] = {
    "voc2007": measures.voc2007,
    "voc2010": measures.voc2010,
    "ilsvrc": measures.ilsvrc,
}


def mean_average_precision(
    split: Split, found: Sequence[Detections], measure: str = "voc2010"
) -> float:
    """Returns the mean over the classes of AP at IoU 0.5, as one of MEASURES has it."""
    per_class = MEASURES[measure](split.truth, found, split.source.num_classes)
    return measures.mean(per_class)
