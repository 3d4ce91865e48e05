"""Random access to the images and boxes of a prepared TFDS detection set, without TensorFlow."""

import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from googlenet_jax.data.decoding import BadImage, decode, picture_size
from googlenet_jax.data.sources import Stored, data_sets_in, open_builder
from googlenet_jax.detection import digit_scenes
from googlenet_jax.detection.boxes import clip, have_area
from googlenet_jax.detection.measures import Objects
from googlenet_jax.errors import UserError
from googlenet_jax.runtime.storage import is_store

# How TFDS's sets call their lists of objects; the last has no labels, and its one class this name.
OBJECTS = ("objects", "bobjects", "faces")
ONE_CLASS = {"faces": "face"}
FILE_NAME = "image/filename"  # of the sets that have it
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


class DetectionSource:
    """The examples of one split, in a fixed order: `source[i]` is {"image": uint8 [H, W, 1 or 3],
    "objects": Objects}, boxes in the image's pixels.

    Images come out as RGB, or with one channel where the data set's have one or two.

    Attributes:
      name, split: as they were asked for; class_names, num_classes: without a background.
      folder: where the data set lies, or its copy; data_dir: where it was looked for.
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
        self._grey = builder.info.features["image"].shape[-1] in (1, 2)
        self._stored = Stored(builder, name, split)
        self.folder, self.data_dir = self._stored.folder, data_dir

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has {len(self)} examples, not {index + 1}")
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the examples at these positions, decoded.

        Raises:
          UserError: naming the example, if an image can't be decoded or a label is none.
        """
        read = []
        for index, features in zip(indices, self._features(indices), strict=True):
            encoded = features["image"].bytes_list.value[0]
            try:
                image = decode(encoded, grey=self._grey)
            except BadImage as error:
                raise self._broken(index, error) from error
            objects, _ = self._objects(index, features, image.shape[:2])
            read.append({"image": image, "objects": objects})
        return read

    def annotations(self) -> list[Annotation]:
        """Returns what is known of every image, and says how many boxes were left out.

        Raises:
          UserError: naming the example, if its image is none or a label is none of the classes.
        """
        every = range(len(self))
        found = [
            self._annotation(i, features)
            for i, features in zip(every, self._features(every), strict=True)
        ]
        dropped = sum(annotation.dropped for annotation in found)
        if dropped:
            print(
                f"{self.name} {self.split}: {dropped} boxes without area in their image left out",
                file=sys.stderr,
            )
        return found

    def names(self) -> list[str]:
        """Returns each image's name: its file's where the set has it (`image/filename`), else its
        place, from 1, in six digits.
        """
        found = []
        for index, features in enumerate(self._features(range(len(self)))):
            values = features[FILE_NAME].bytes_list.value
            found.append(values[0].decode() if len(values) else f"{index + 1:06d}")
        return found

    def _features(self, indices: Sequence[int]) -> list[Any]:
        """The examples' features by name, as TFDS serialises them."""
        examples = map(tf_example_pb2.Example.FromString, self._stored.read(indices))
        return [example.features.feature for example in examples]

    def _broken(self, index: int, problem: Exception) -> UserError:
        return UserError(
            f"{self.name} {self.split}, example {index}: {problem}; "
            "mend or leave out that image and prepare the data set again"
        )

    def _annotation(self, index: int, features: Any) -> Annotation:
        encoded = features["image"].bytes_list.value[0]
        try:
            height, width = picture_size(encoded)
        except BadImage as error:
            raise self._broken(index, error) from error
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
        difficult, crowd = (
            self._flag(features, names, len(boxes))[good] for names in (DIFFICULT, CROWD)
        )
        areas = self._areas(features, len(boxes))[good]
        return Objects(boxes[good], labels[good], difficult, crowd, areas), int((~good).sum())

    def _areas(self, features: Any, count: int) -> np.ndarray:
        """Each object's area in pixels, as annotated; NaN where the set has none."""
        feature = features[f"{self._key}/area"]
        values = np.array([*feature.int64_list.value, *feature.float_list.value], np.float64)
        if len(values) != count:
            return np.full(count, np.nan)
        return np.where(values >= 0, values, np.nan)

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
      data_dir: where TFDS's data sets lie, a folder or gs://BUCKET/FOLDER; by default the
        environment's TFDS_DATA_DIR, else ~/tensorflow_datasets.
    Raises:
      UserError: if the data set isn't prepared or has no boxes, or the split is unknown or empty.
    """
    if name == digit_scenes.NAME and not is_store(folder := data_sets_in(data_dir)):
        digit_scenes.prepare_digit_scenes(folder)
    return DetectionSource(open_builder(name, data_dir), name, split, data_dir)


def has_boxes(features: Any) -> bool:
    """Whether a set is for detection: it has boxes, and no label of the whole image."""
    known = features if isinstance(features, tfds.features.FeaturesDict) else {}
    return "label" not in known and any(key in known for key in OBJECTS)


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
    image = known["image"]
    if not isinstance(image, tfds.features.Image) or np.dtype(image.np_dtype) != np.uint8:
        raise UserError(f"data set {name!r}: expected images of uint8; choose another set")
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
