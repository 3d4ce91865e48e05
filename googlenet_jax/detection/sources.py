"""Random access to the images and boxes of a prepared TFDS detection set, without TensorFlow."""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from googlenet_jax.data import sources
from googlenet_jax.data.sources import Source, default_data_dir, open_builder
from googlenet_jax.detection import digit_scenes
from googlenet_jax.detection.boxes import clip, have_area
from googlenet_jax.detection.measures import Objects
from googlenet_jax.errors import UserError

# How TFDS's sets call their lists of objects; the last has no labels, and its one class this name.
OBJECTS = ("objects", "bobjects", "faces")
ONE_CLASS = {"faces": "face"}
DIFFICULT, CROWD = ("is_difficult",), ("is_crowd", "is_group_of")


class Annotation(NamedTuple):
    """What is known of an image without decoding it.

    Attributes:
      objects: the boxes that have an area once they are cut off at the image's edges.
      size: height and width in pixels.
      dropped: how many boxes had no area.
    """

    objects: Objects
    size: tuple[int, int]
    dropped: int


class DetectionSource(Source):
    """The examples of one split, in a fixed order: `source[i]` is {"image": uint8 [H, W, 1 or 3],
    "objects": Objects}, boxes in the image's pixels.

    Attributes:
      name, split, class_names, num_classes: as of a `Source`; without the background.
      folder: where the data set lies; data_dir: where it was asked for.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        name: str,
        split: str,
        data_dir: str | os.PathLike[str] | None,
    ) -> None:
        self._key, self.class_names = check_features(builder.info.features, name)
        self.name, self.split = name, split
        self.num_classes = len(self.class_names)
        self.data_dir = data_dir
        self.folder = Path(builder.data_dir)
        self._folder = builder.data_dir
        self._flags = sources.decode_flags(builder.info.features["image"])
        self._records = sources.open_records(builder, name, split)

    def annotations(self) -> list[Annotation]:
        """Returns what is known of every image, and says how many boxes were left out.

        Raises:
          UserError: naming the example, if its image is none or a label is none of the classes.
        """
        records = self.read_records(range(len(self)))
        found = [self._annotation(i, _features(record)) for i, record in enumerate(records)]
        dropped = sum(annotation.dropped for annotation in found)
        if dropped:
            print(
                f"{self.name} {self.split}: {dropped} boxes without area in their image left out",
                file=sys.stderr,
            )
        return found

    def _example(self, index: int, record: bytes) -> dict[str, Any]:
        features = _features(record)
        image = self._decode(index, features["image"].bytes_list.value[0])
        return {"image": image, "objects": self._objects(index, features, image.shape[:2])[0]}

    def _annotation(self, index: int, features: Any) -> Annotation:
        encoded = features["image"].bytes_list.value[0]
        try:
            with Image.open(io.BytesIO(encoded)) as image:  # reads the header alone
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{self.name} {self.split}, example {index}: expected an image file (PNG, JPEG …), "
                f"found {len(encoded)} bytes of another kind; prepare the set without that image"
            ) from error
        objects, dropped = self._objects(index, features, (height, width))
        return Annotation(objects, (height, width), dropped)

    def _objects(self, index: int, features: Any, size: tuple[int, int]) -> tuple[Objects, int]:
        """An example's boxes, and how many had no area."""
        boxes = np.array(features[f"{self._key}/bbox"].float_list.value, np.float32).reshape(-1, 4)
        height, width = size
        boxes = clip(boxes * np.array([height, width, height, width], np.float32), height, width)
        labels = np.zeros(len(boxes), np.int32)
        if self._key not in ONE_CLASS:
            labels = np.array(features[f"{self._key}/label"].int64_list.value, np.int32)
        if len(labels) != len(boxes) or not ((labels >= 0) & (labels < self.num_classes)).all():
            raise UserError(
                f"{self.name} {self.split}, example {index}: expected {len(boxes)} labels, all "
                f"from 0 to {self.num_classes - 1}, found {labels.tolist()}"
            )
        good = have_area(boxes)
        flags = (self._flag(features, names, len(boxes))[good] for names in (DIFFICULT, CROWD))
        return Objects(boxes[good], labels[good], *flags), int((~good).sum())

    def _flag(self, features: Any, names: Sequence[str], count: int) -> np.ndarray:
        """A flag of each object; False where the set has no such flag, or it is not known (−1)."""
        for name in names:
            values = features[f"{self._key}/{name}"].int64_list.value
            if len(values) == count:
                return np.array(values, np.int64) > 0
        return np.zeros(count, bool)


def load_detection_source(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> DetectionSource:
    """Opens one split of a prepared detection set; never imports TensorFlow.

    Args:
      name: a TFDS name, such as "voc/2007" or "coco/2017". "digit_scenes" is written on first use.
      split: such as "train", "train[:90%]" or "train+test".
      data_dir: where TFDS's data sets lie; by default the environment's TFDS_DATA_DIR, else
        ~/tensorflow_datasets.
    Raises:
      UserError: if the data set isn't prepared or has no boxes, or the split is unknown or empty.
    """
    if name == digit_scenes.NAME:
        folder = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
        digit_scenes.prepare_digit_scenes(folder)
    return DetectionSource(open_builder(name, data_dir), name, split, data_dir)


def check_features(features: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the key of a detection set's objects and the names of its classes.

    Raises:
      UserError: naming the feature that is missing or of another kind.
    """
    known = features if isinstance(features, tfds.features.FeaturesDict) else {}
    key = next((key for key in OBJECTS if key in known), "")
    inner = dict(getattr(known[key], "feature", {}) if key else {})
    boxes = inner.get("bbox")
    if "image" not in known or not isinstance(boxes, tfds.features.BBoxFeature):
        raise UserError(
            f"data set {name!r}: expected the features image and {' or '.join(OBJECTS)} with a "
            f"bbox each, found only {', '.join(sorted(known)) or 'nothing'}; choose a detection "
            "set such as voc/2007"
        )
    sources.check_image(known["image"], name)
    if boxes.bbox_format and boxes.bbox_format.name != "REL_YXYX":
        raise UserError(
            f"data set {name!r}: expected boxes (ymin, xmin, ymax, xmax) from 0 to 1, "
            f"found the format {boxes.bbox_format}; choose another set"
        )
    if key in ONE_CLASS:
        return key, (ONE_CLASS[key],)
    label = inner.get("label")
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise UserError(
            f"data set {name!r}: expected {key}/label with the names of the classes, "
            f"found {type(label).__name__}; choose another set"
        )
    return key, tuple(label.names)


def _features(record: bytes) -> Any:
    return tf_example_pb2.Example.FromString(record).features.feature
