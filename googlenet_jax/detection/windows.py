"""The windows that a region classifier is fine-tuned on, as R-CNN's (arXiv 1311.2524)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from googlenet_jax.detection.boxes import areas, intersections, iou
from googlenet_jax.detection.measures import Objects

BACKGROUND = -1  # a window's label; a network's background class comes last
OBJECT_IOU = 0.5


class Windows(NamedTuple):
    """The windows of one image.

    Attributes:
      objects: float32 [P, 4], windows that hold an object, and labels: int32 [P], its class.
      background: float32 [Q, 4], windows that hold none.
    """

    objects: np.ndarray
    labels: np.ndarray
    background: np.ndarray


def label_windows(boxes: np.ndarray, objects: Objects) -> Windows:
    """Sorts proposals [P, 4] and the objects' own boxes into windows of objects and background.

    A window is of the class of the object that it overlaps most if their IoU is at least 0.5, and
    background otherwise. One that is closest to an object that doesn't count is left out, and so is
    one that lies mostly in a crowd.
    """
    counts = ~objects.ignored
    boxes = np.concatenate([objects.boxes[counts], boxes]).astype(np.float32)
    if not len(objects.boxes):
        nothing = np.zeros(0, np.int32)
        return Windows(boxes[:0], nothing, boxes)
    overlaps = iou(boxes, objects.boxes)
    best = overlaps.argmax(axis=1)
    holds_object = overlaps.max(axis=1) >= OBJECT_IOU
    left_out = (holds_object & ~counts[best]) | (_inside(boxes, objects) >= OBJECT_IOU)
    chosen = holds_object & ~left_out
    labels = objects.labels[best[chosen]].astype(np.int32)
    return Windows(boxes[chosen], labels, boxes[~holds_object & ~left_out])


def _inside(boxes: np.ndarray, objects: Objects) -> np.ndarray:
    """The largest share of each box [N] that lies in one crowd."""
    own = np.maximum(areas(boxes), np.finfo(np.float32).tiny)
    shared = intersections(boxes, objects.boxes[objects.crowd])
    return shared.max(axis=1, initial=0) / own


class ObjectWindows(NamedTuple):
    """The object windows of a whole split, in order, for a uniform draw over all of them.

    Attributes:
      image: int64 [N], the position of each window's image in the split.
      window: int64 [N], its place among the image's object windows.
    """

    image: np.ndarray
    window: np.ndarray


def object_windows(split: Sequence[Windows]) -> ObjectWindows:
    """Lists the object windows of the images that have a background window too."""
    counts = [len(each.objects) if len(each.background) else 0 for each in split]
    image = np.repeat(np.arange(len(split)), counts)
    window = np.concatenate([np.arange(count) for count in counts] or [np.zeros(0, np.int64)])
    return ObjectWindows(image, window)
