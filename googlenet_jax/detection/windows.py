"""The windows that a region classifier is fine-tuned on, as R-CNN's (arXiv 1311.2524)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from googlenet_jax.detection.boxes import areas, intersections, iou
from googlenet_jax.detection.measures import Objects

OBJECT_IOU = 0.5
# Labels besides the classes'. A network's background class comes after those of the objects.
BACKGROUND, LEFT_OUT = -1, -2
BACKGROUND_NAME = "background"


class Windows(NamedTuple):
    """The windows of one image.

    Attributes:
      objects: float32 [P, 4], windows that hold an object, and labels: int32 [P], its class.
      background: float32 [Q, 4], windows that hold none.
    """

    objects: np.ndarray
    labels: np.ndarray
    background: np.ndarray


def window_labels(boxes: np.ndarray, objects: Objects) -> np.ndarray:
    """Returns what windows [P, 4] hold, int32 [P]: a class, BACKGROUND or LEFT_OUT.

    A window is of the class of the object that it overlaps most if their IoU is at least 0.5, and
    background otherwise. It is left out where that object doesn't count, and where at least half of
    it lies in a crowd.
    """
    if not len(objects.boxes):
        return np.full(len(boxes), BACKGROUND, np.int32)
    overlaps = iou(boxes, objects.boxes)
    best = overlaps.argmax(axis=1)
    held = np.where(objects.ignored, LEFT_OUT, objects.labels)[best]
    labels = np.where(overlaps.max(axis=1) >= OBJECT_IOU, held, BACKGROUND)
    own = np.maximum(areas(boxes), np.finfo(np.float32).tiny)
    in_crowd = intersections(boxes, objects.boxes[objects.crowd]).max(axis=1, initial=0) / own
    return np.where(in_crowd >= OBJECT_IOU, LEFT_OUT, labels).astype(np.int32)


def label_windows(boxes: np.ndarray, objects: Objects) -> Windows:
    """Sorts proposals [P, 4] and the objects' own boxes into windows of objects and background."""
    own = objects.boxes[~objects.ignored]
    boxes = np.concatenate([own, boxes]).astype(np.float32)
    labels = window_labels(boxes, objects)
    return Windows(boxes[labels >= 0], labels[labels >= 0], boxes[labels == BACKGROUND])


class Draw(NamedTuple):
    """One object window and what goes with it in a batch.

    Attributes:
      boxes: float32 [1 + R, 4], the object window and R of its image's background windows.
      labels: int32 [1 + R], the class, then `background` R times.
    """

    boxes: np.ndarray
    labels: np.ndarray


def draw(
    windows: Windows, place: int, count: int, background: int, rng: np.random.Generator
) -> Draw:
    """Draws `count` background windows of an image, without repeating one, for its object window.

    Where the image has fewer, all of them are taken and some repeat. `background` is their label.
    """
    order = rng.permutation(len(windows.background))
    chosen = np.resize(order, count)
    boxes = np.concatenate([windows.objects[place][None], windows.background[chosen]])
    labels = np.array([windows.labels[place]] + [background] * count, np.int32)
    return Draw(boxes, labels)


def object_windows(split: Sequence[Windows]) -> tuple[np.ndarray, int]:
    """Lists a split's object windows, for a uniform draw over all of them.

    Returns:
      int64 [N, 2], each one's image and its place there; and how many images with objects were
      passed over, since they have no background window.
    """
    usable = [i for i, each in enumerate(split) if len(each.objects) and len(each.background)]
    counts = [len(split[i].objects) for i in usable]
    places = [np.arange(count) for count in counts]
    pairs = np.stack([np.repeat(usable, counts), np.concatenate([np.zeros(0, int), *places])], 1)
    skipped = sum(len(each.objects) > 0 for each in split) - len(usable)
    return pairs.astype(np.int64), skipped
