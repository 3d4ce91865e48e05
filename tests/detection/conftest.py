"""A tiny detection set of given images and boxes, and proposals for it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import flax.linen as nn
import numpy as np
import pytest
import tensorflow_datasets as tfds

from googlenet_jax.detection.proposals import Proposals, save_proposals
from googlenet_jax.detection.sources import DetectionSource, load_detection_source
from googlenet_jax.models.layers import sow
from googlenet_jax.models.network import Network, Output
from googlenet_jax.models.registry import register_model

CLASSES = ("square", "bar")


class TinyTrunk(Network):
    """A network that compiles at once: convolution, batch norm, a map, its mean, a classifier."""

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None):
        x = nn.Conv(8, (3, 3), strides=2, name="conv1")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x))
        x = sow(self, "pool", sow(self, "map", x).mean((1, 2)))
        return Output(nn.Dense(self.num_classes, name="head")(x), {})


@pytest.fixture(scope="session", autouse=True)
def tiny_trunk():
    """Registers it here and not on import: other tests are parametrized by the registry."""
    register_model("tiny_trunk", TinyTrunk)


class Shown(NamedTuple):
    """An image with its objects: boxes as shares of it, (top, left, bottom, right)."""

    image: np.ndarray
    boxes: list[tuple[float, ...]]
    labels: list[int]
    difficult: list[bool] | None = None


class Shapes(tfds.core.GeneratorBasedBuilder):
    """What the test gives, in a split "train" and a split "test" of the same images."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded
    key = "objects"
    shown: list[Shown]

    def _info(self):
        objects = {"bbox": tfds.features.BBoxFeature(), "is_difficult": np.bool_}
        if self.key != "faces":
            objects["label"] = tfds.features.ClassLabel(names=list(CLASSES))
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            self.key: tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for number, each in enumerate(self.shown):
            png = cv2.imencode(".png", each.image[..., ::-1])[1].tobytes()
            hard = each.difficult or [False] * len(each.boxes)
            objects = []
            for box, label, difficult in zip(each.boxes, each.labels, hard, strict=True):
                row = {"bbox": np.array(box, np.float32), "is_difficult": difficult}
                objects.append(row if self.key == "faces" else row | {"label": label})
            yield number, {"image": png, self.key: objects}


MakeSet = Callable[..., Path]


@pytest.fixture(scope="session")
def write_shapes(tmp_path_factory) -> MakeSet:
    """Writes the set "shapes" into a folder of its own and returns that; TFDS shuffles."""

    def write(shown: list[Shown], key: str = "objects") -> Path:
        folder = tmp_path_factory.mktemp("data")
        kind = type(
            "Shapes",
            (Shapes,),
            {"shown": shown, "key": key, "name": "shapes", "__module__": __name__},
            skip_registration=True,
        )
        kind(data_dir=folder, file_format="array_record").download_and_prepare()
        return folder

    return write


def shapes(count: int, seed: int = 0, side: int = 40) -> list[Shown]:
    """Grey noise with a bright square (class 0) or a dark bar (class 1) each."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        image = rng.integers(100, 140, (side, side, 3)).astype(np.uint8)
        height, width = ((16, 16), (24, 8))[i % 2]
        top, left = rng.integers(0, side - height), rng.integers(0, side - width)
        image[top : top + height, left : left + width] = (250, 10)[i % 2]
        box = np.array([top, left, top + height, left + width]) / side
        result.append(Shown(image, [tuple(box.tolist())], [i % 2]))
    return result


def jittered(source: DetectionSource, seed: int = 0) -> Proposals:
    """Proposals near each object, and others anywhere."""
    rng = np.random.default_rng(seed)
    boxes = []
    for each in source.annotations():
        near = np.repeat(each.objects.boxes, 4, axis=0)
        near = near + rng.uniform(-2, 2, near.shape)
        corner = rng.uniform(0, 30, (8, 2))
        anywhere = np.concatenate([corner, corner + rng.uniform(6, 10, (8, 2))], axis=1)
        boxes.append(np.concatenate([near, anywhere]).astype(np.float32))
    sizes = np.array([each.size for each in source.annotations()], np.int32)
    return Proposals(boxes, sizes, {"method": "a test's"})


@pytest.fixture(scope="session")
def shapes_dir(write_shapes) -> Path:
    """Eight images with proposals under "selective_search" for both splits."""
    folder = write_shapes(shapes(8))
    for split in ("train", "test"):
        source = load_detection_source("shapes", split, folder)
        save_proposals(source, "selective_search", jittered(source))
    return folder
