"""Average precision as PASCAL VOC, ILSVRC and COCO define it, and the recall of proposals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_jax.detection.boxes import areas, intersections, iou

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0, 1, 101)
COCO_AREAS = {
    "": (0.0, 1e10),
    "_small": (0.0, 32.0**2),
    "_medium": (32.0**2, 96.0**2),
    "_large": (96.0**2, 1e10),
}
COCO_LIMITS = (1, 10, 100)  # detections of an image that count


class Objects(NamedTuple):
    """The ground truth of one image.

    Attributes:
      boxes: float [G, 4], (top, left, bottom, right) in pixels.
      labels: int [G].
      difficult: bool [G]. VOC counts such an object neither as hit nor as miss.
      crowd: bool [G]. COCO's box around many objects: detections inside are neither hit nor miss.
      annotated_areas: float [G], of the objects' outlines in pixels, as COCO's files give them; NaN
        where one is not known; None where none is.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    annotated_areas: np.ndarray | None = None

    @property
    def areas(self) -> np.ndarray:
        """Each object's area in pixels, float64 [G]: as annotated, else its box's."""
        boxes = areas(self.boxes.astype(np.float64))
        if self.annotated_areas is None:
            return boxes
        return np.where(np.isnan(self.annotated_areas), boxes, self.annotated_areas)

    @property
    def ignored(self) -> np.ndarray:
        """Which objects are neither hit nor miss, bool [G]."""
        return self.difficult | self.crowd


class Detections(NamedTuple):
    """What was found in one image: boxes float [D, 4], labels int [D] and scores float [D]."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class _Matched(NamedTuple):
    """A class's detections, best first: whether each is a hit, and whether it is left out."""

    hit: np.ndarray
    ignored: np.ndarray
    objects: int


Match = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def voc2007(
    truth: Sequence[Objects], found: Sequence[Detections], num_classes: int, threshold: float = 0.5
) -> np.ndarray:
    """Returns each class's AP [num_classes] as VOC2007 has it: the mean of eleven precisions.

    A detection belongs to the object of its class in its image that it overlaps most. It is a
    hit where their IoU is at least `threshold` and no better-scored detection had that object;
    the others are false positives, except on difficult objects. At recall 0, 0.1, …, 1 counts
    the best precision at this recall or above. NaN where a class has no object.
    """
    return _average_precisions(truth, found, num_classes, _voc_match(threshold), _eleven_points)


def voc2010(
    truth: Sequence[Objects], found: Sequence[Detections], num_classes: int, threshold: float = 0.5
) -> np.ndarray:
    """Returns each class's AP [num_classes] as VOC2010 and later have it.

    It is the area under the curve of the best precision at each recall or above. What is a hit is
    `voc2007`'s rule.
    """
    return _average_precisions(truth, found, num_classes, _voc_match(threshold), _area_under)


def ilsvrc(truth: Sequence[Objects], found: Sequence[Detections], num_classes: int) -> np.ndarray:
    """Returns each class's AP [num_classes] as ILSVRC's detection task has it.

    An object of w × h pixels is found by an IoU of min(0.5, wh / ((w + 10)(h + 10))): a small
    one need not be met to the pixel. A detection takes the object that it overlaps most among
    those that no better-scored one has taken and whose own threshold it reaches (Russakovsky et
    al. 2015, section 5.3). AP is the area under the curve, as `voc2010`'s.
    """
    return _average_precisions(truth, found, num_classes, _ilsvrc_match, _area_under)


def coco(
    truth: Sequence[Objects], found: Sequence[Detections], num_classes: int
) -> dict[str, float]:
    """Returns COCO's twelve figures, as `pycocotools` computes them.

    ap (the mean over IoU 0.50, 0.55, …, 0.95 and the classes that have objects, 101 recalls
    each), ap50, ap75, ap_small, ap_medium, ap_large (objects of less than 32², of 32² to 96², of
    more than 96² pixels), and the mean largest recall with 1, 10 and 100 detections an image and
    class, ar1, ar10, ar100, and ar_small, ar_medium, ar_large. The area of an object is the
    annotation's, its outline's in COCO's own files, and its box's where there is none. NaN where no
    class has an object.
    """
    precision = np.full(
        (len(COCO_THRESHOLDS), len(COCO_RECALLS), num_classes, len(COCO_AREAS)), np.nan
    )
    recall = np.full((len(COCO_THRESHOLDS), num_classes, len(COCO_AREAS), len(COCO_LIMITS)), np.nan)
    for label in range(num_classes):
        images = _coco_images(truth, found, label)
        for size, limits in enumerate(COCO_AREAS.values()):
            matches = [_coco_match(image, limits) for image in images]
            for k, most in enumerate(COCO_LIMITS):
                curves = _coco_curves(matches, most)
                if curves is not None:
                    recall[:, label, size, k] = curves[0]
                    precision[:, :, label, size] = curves[1]  # the last, of 100 detections, stays
    result = {"ap": precision[..., 0], "ap50": precision[0, ..., 0], "ap75": precision[5, ..., 0]}
    result |= {f"ap{name}": precision[..., i] for i, name in enumerate(COCO_AREAS) if name}
    result |= {f"ar{most}": recall[:, :, 0, k] for k, most in enumerate(COCO_LIMITS)}
    result |= {f"ar{name}": recall[:, :, i, -1] for i, name in enumerate(COCO_AREAS) if name}
    return {name: mean(values) for name, values in result.items()}


def recall(
    truth: Sequence[Objects], proposals: Sequence[np.ndarray], threshold: float = 0.5
) -> float:
    """Returns the share of objects that a proposal overlaps with an IoU of at least `threshold`.

    proposals: float [P, 4], an image each. Difficult and crowd objects don't count. NaN without
    objects.
    """
    best = best_overlaps(truth, proposals)
    return float((best >= threshold).mean()) if len(best) else float("nan")


def best_overlaps(truth: Sequence[Objects], proposals: Sequence[np.ndarray]) -> np.ndarray:
    """Returns each counting object's largest IoU with a proposal of its image, [objects]."""
    best = [np.zeros(0)]
    for objects, boxes in zip(truth, proposals, strict=True):
        wanted = objects.boxes[~objects.ignored].astype(np.float64)
        best.append(iou(wanted, boxes.astype(np.float64)).max(axis=1, initial=0))
    return np.concatenate(best)


def mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN, NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _average_precisions(
    truth: Sequence[Objects],
    found: Sequence[Detections],
    num_classes: int,
    match: Match,
    average: Callable[[np.ndarray, np.ndarray], float],
) -> np.ndarray:
    result = np.full(num_classes, np.nan)
    for label in range(num_classes):
        matched = _match_class(truth, found, label, match)
        if matched.objects:
            result[label] = average(*_curve(matched))
    return result


def _match_class(
    truth: Sequence[Objects], found: Sequence[Detections], label: int, match: Match
) -> _Matched:
    scores, hits, ignored, objects = [np.zeros(0)], [np.zeros(0, bool)], [np.zeros(0, bool)], 0
    for wanted, given in zip(truth, found, strict=True):
        of_class, in_class = wanted.labels == label, given.labels == label
        objects += int((of_class & ~wanted.ignored).sum())
        own = given.scores[in_class]
        order = np.argsort(-own, kind="stable")
        boxes = given.boxes[in_class][order].astype(np.float64)
        hit, ignore = match(
            boxes, wanted.boxes[of_class].astype(np.float64), wanted.ignored[of_class]
        )
        scores.append(own[order])
        hits.append(hit)
        ignored.append(ignore)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _Matched(np.concatenate(hits)[order], np.concatenate(ignored)[order], objects)


def _voc_match(threshold: float) -> Match:
    def match(
        boxes: np.ndarray, objects: np.ndarray, ignored: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of an image's detections [D], best first, are hits; which don't count."""
        hit, ignore = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
        taken = np.zeros(len(objects), bool)
        overlaps = iou(boxes, objects)
        for i, row in enumerate(overlaps if len(objects) else []):
            nearest = int(row.argmax())
            if row[nearest] < threshold:
                continue
            if ignored[nearest]:
                ignore[i] = True
            elif not taken[nearest]:
                hit[i] = taken[nearest] = True
        return hit, ignore

    return match


def _ilsvrc_match(
    boxes: np.ndarray, objects: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    height, width = objects[:, 2] - objects[:, 0], objects[:, 3] - objects[:, 1]
    thresholds = np.minimum(0.5, height * width / ((height + 10) * (width + 10)))
    hit, ignore = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    free = np.ones(len(objects), bool)
    overlaps = iou(boxes, objects)
    for i, row in enumerate(overlaps if len(objects) else []):
        reached = np.where((row >= thresholds) & free, row, -1)
        best = int(reached.argmax())
        if reached[best] < 0:
            continue
        hit[i], ignore[i] = not ignored[best], ignored[best]
        free[best] = ignored[best]  # many detections may fall on an object that doesn't count
    return hit, ignore


def _curve(matched: _Matched) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection that counts."""
    hit = matched.hit[~matched.ignored]
    hits = hit.cumsum()
    return hits / matched.objects, hits / np.arange(1, len(hit) + 1)


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # A recall of 3/10 must reach the point 0.3, which rounding may put on either side of it.
    reached = [precision[recall >= point - 1e-9] for point in np.linspace(0, 1, 11)]
    return float(np.mean([best.max(initial=0) for best in reached]))


def _area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())


# COCO's form, where an image's detections meet its objects anew at each IoU and each size.


class _CocoImage(NamedTuple):
    """A class in an image: overlaps [D, G], its detections, best first, and its objects."""

    overlaps: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    object_areas: np.ndarray
    crowd: np.ndarray


class _CocoMatch(NamedTuple):
    """scores [D]; hit and ignored [T, D] at each threshold; how many objects count."""

    scores: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: int


def _coco_images(
    truth: Sequence[Objects], found: Sequence[Detections], label: int
) -> list[_CocoImage]:
    """A class's images: overlaps [D, G], scores [D], areas [D], objects' areas and crowds."""
    images = []
    for wanted, given in zip(truth, found, strict=True):
        of_class, in_class = wanted.labels == label, given.labels == label
        if not of_class.any() and not in_class.any():
            continue
        order = np.argsort(-given.scores[in_class], kind="stable")[: COCO_LIMITS[-1]]
        boxes = given.boxes[in_class][order].astype(np.float64)
        objects = wanted.boxes[of_class].astype(np.float64)
        crowd = wanted.crowd[of_class]
        # On a crowd counts how much of the detection lies inside it.
        own = np.maximum(areas(boxes), np.finfo(np.float64).tiny)[:, None]
        overlaps = np.where(crowd[None], intersections(boxes, objects) / own, iou(boxes, objects))
        scores = given.scores[in_class][order]
        sizes = wanted.areas[of_class]
        images.append(_CocoImage(overlaps, scores, areas(boxes), sizes, crowd))
    return images


def _coco_match(image: _CocoImage, limits: tuple[float, float]) -> _CocoMatch:
    """What becomes of an image's detections of a class, for objects of these sizes.

    A detection takes the free object that it overlaps most among those that count, else one of
    those that don't: crowds, which are always free, and objects of another size.
    """
    outside = (image.object_areas < limits[0]) | (image.object_areas > limits[1])
    uncounted = image.crowd | outside
    order = np.argsort(uncounted, kind="stable")
    overlaps, crowd, uncounted = image.overlaps[:, order], image.crowd[order], uncounted[order]
    scores, sizes = image.scores, image.areas
    hit = np.zeros((len(COCO_THRESHOLDS), len(scores)), bool)
    ignore = np.broadcast_to((sizes < limits[0]) | (sizes > limits[1]), hit.shape).copy()
    for t, threshold in enumerate(np.minimum(COCO_THRESHOLDS, 1 - 1e-10)):
        free = np.ones(len(crowd), bool)
        for d, row in enumerate(overlaps):
            reached = np.where(free & (row >= threshold), row, -1)
            for group in (~uncounted, uncounted):
                candidates = np.where(group, reached, -1)
                if candidates.max(initial=-1) >= 0:
                    # The last of equals, as pycocotools takes it.
                    best = len(candidates) - 1 - int(candidates[::-1].argmax())
                    hit[t, d], ignore[t, d] = not uncounted[best], uncounted[best]
                    free[best] = crowd[best]
                    break
    return _CocoMatch(scores, hit, ignore, int((~uncounted).sum()))


def _coco_curves(matches: Sequence[_CocoMatch], most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Largest recall [T] and precisions [T, R]; None without objects that count."""
    objects = sum(match.objects for match in matches)
    if not objects:
        return None
    scores = np.concatenate([match.scores[:most] for match in matches])
    order = np.argsort(-scores, kind="stable")
    hit = np.concatenate([match.hit[:, :most] for match in matches], axis=1)[:, order]
    ignore = np.concatenate([match.ignored[:, :most] for match in matches], axis=1)[:, order]
    hits = (hit & ~ignore).cumsum(axis=1)
    misses = (~hit & ~ignore).cumsum(axis=1)
    recall, precision = hits / objects, hits / np.maximum(hits + misses, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # What lies beyond the largest recall has precision 0.
    envelope = np.pad(envelope, ((0, 0), (0, 1)))
    places = [np.searchsorted(row, COCO_RECALLS, side="left") for row in recall]
    largest = recall[:, -1] if recall.shape[1] else np.zeros(len(COCO_THRESHOLDS))
    return largest, np.stack([row[place] for row, place in zip(envelope, places, strict=True)])
