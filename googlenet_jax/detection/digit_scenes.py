"""The detection set that needs no network: real digits scattered over real photographs.

Everything in it ships with scikit-learn: the handwritten digits, and the photographs china.jpg and
flower.jpg.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_sample_image

from googlenet_jax.data import resampling
from googlenet_jax.data.digits import write_once
from googlenet_jax.data.sources import load_source

NAME = "digit_scenes"
SIDE = 320  # of a scene, in pixels
SCENES = {"train": 400, "test": 100}
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
MOST_DIGITS = 7
SMALLEST, LARGEST = 36, 128  # the side to which a digit's 8 × 8 are scaled, in pixels
MARGIN = 4  # pixels between two digits, at least
CONTRAST = 80  # of a digit's colour to the mean of what is behind it, in units of 0–255
JPEG_QUALITY = 95


class Scene(NamedTuple):
    """image uint8 [SIDE, SIDE, 3], RGB; boxes float32 [G, 4] in pixels; labels int32 [G]."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """400 scenes to train, 100 to test, of 320 × 320 pixels with one to seven digits each.

    The digits of the two splits are those of the data set "digits", 1,437 and 360 apart, and the
    backgrounds are crops of the photographs' left halves and right halves. A box is the extent of
    the strokes.
    """

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits over crops of its two photographs.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg"),
                    "objects": tfds.features.Sequence(objects),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, scene in enumerate(scenes(split, Path(self.data_dir).parent)):
            # Encoded here, because TFDS would need TensorFlow to encode an array.
            options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            encoded = cv2.imencode(".jpg", scene.image[..., ::-1], options)[1].tobytes()
            boxes = (scene.boxes / SIDE).astype(np.float64)
            objects = [
                {"bbox": tfds.features.BBox(*box.tolist()), "label": int(label)}
                for box, label in zip(boxes, scene.labels, strict=True)
            ]
            yield number, {"image": encoded, "objects": objects}


def prepare_digit_scenes(data_dir: Path) -> None:
    """Writes the data set into `data_dir`/digit_scenes unless it is there, in a few seconds.

    Raises:
        UserError: if the folder can't be written.
    """
    write_once(DigitScenes, data_dir)


def scenes(split: str, data_dir: Path) -> Iterator[Scene]:
    """Draws the scenes of a split; they are the same in every run."""
    source = load_source("digits", split, data_dir)
    digits = source.read(range(len(source)))
    half = slice(0, SIDE) if split == "train" else slice(SIDE, 2 * SIDE)
    halves = [load_sample_image(name)[:, half] for name in PHOTOGRAPHS]
    for number in range(SCENES[split]):
        # RandomState's stream is frozen: the scenes are the same in every version of NumPy.
        yield _scene(digits, halves, np.random.RandomState([split == "train", number]))


def _scene(
    digits: list[dict[str, Any]], halves: list[np.ndarray], rng: np.random.RandomState
) -> Scene:
    image = _background(halves[rng.randint(len(halves))], rng)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(rng.randint(1, MOST_DIGITS + 1)):
        digit = digits[rng.randint(len(digits))]
        strokes = _strokes(digit["image"], rng)
        box = _free_place(strokes.shape, boxes, rng)
        if box is not None:
            _draw(image, strokes, box, rng)
            boxes.append(box)
            labels.append(digit["label"])
    return Scene(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32))


def _background(half: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A square crop of at least half the scene's side, scaled to it, mirrored half of the time."""
    side = rng.randint(SIDE // 2, SIDE + 1)
    top, left = rng.randint(half.shape[0] - side + 1), rng.randint(half.shape[1] - side + 1)
    crop = half[top : top + side, left : left + side]
    image = resampling.scale(crop, SIDE, SIDE, "bicubic")
    return (image[:, ::-1] if rng.randint(2) else image).copy()


def _strokes(digit: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A digit, uint8 [H, W, 1], at a random size, cut to its strokes: their cover, float32 [h, w],
    0 to 1.
    """
    side = round(SMALLEST * (LARGEST / SMALLEST) ** rng.random_sample())
    grey = resampling.scale(digit.astype(np.float32) / 255, side, side, "bicubic")[..., 0]
    # A sharp edge, wherever the enlarged grey is soft.
    coverage = np.clip((grey - 0.3) / 0.15, 0, 1)
    rows, columns = (np.flatnonzero((coverage >= 0.5).any(axis=axis)) for axis in (1, 0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(
    shape: tuple[int, ...], taken: list[tuple[int, int, int, int]], rng: np.random.RandomState
) -> tuple[int, int, int, int] | None:
    for _ in range(20):
        top, left = rng.randint(SIDE - shape[0] + 1), rng.randint(SIDE - shape[1] + 1)
        bottom, right = top + shape[0], left + shape[1]
        apart = (
            top >= b + MARGIN or bottom + MARGIN <= t or left >= r + MARGIN or right + MARGIN <= a
            for t, a, b, r in taken
        )
        if all(apart):
            return top, left, bottom, right
    return None


def _draw(
    image: np.ndarray,
    strokes: np.ndarray,
    box: tuple[int, int, int, int],
    rng: np.random.RandomState,
) -> None:
    top, left, bottom, right = box
    behind = image[top:bottom, left:right]
    while True:
        colour = rng.randint(0, 256, 3)
        if abs(int(colour.mean()) - int(behind.mean())) >= CONTRAST:
            break
    cover = strokes[..., None]
    image[top:bottom, left:right] = np.rint(cover * colour + (1 - cover) * behind)
