"""Batches of uint8 images on the host, by grain: which examples make up batch k, and how they are cropped, depends on (seed, k) alone."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence

import cv2
import grain
import numpy as np

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError, check_range, check_whole

Batch = dict[str, np.ndarray]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels

DEFAULT_THREADS = min(os.cpu_count() or 1, 8)
CROP_TRIES = 10  # torchvision's number, before it takes the central fallback


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """The ranges of a random crop, as in the GoogLeNet paper (arXiv 1409.4842, section 6).

    Attributes:
      area: smallest and largest share of the image's area. aspect: smallest and largest width / height.
    Raises:
      UserError: a pair that is not in ascending order and above 0, or an area above 1.
    """

    area: Sequence[float] = (0.08, 1.0)
    aspect: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        check_range("augment.area", self.area, largest=1.0)
        check_range("augment.aspect", self.aspect)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    size: int,
    augment: RandomCrop,
    seed: int,
    start_step: int = 0,
    threads: int = DEFAULT_THREADS,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches for training, beginning with batch `start_step`.

    Every epoch is a permutation of the source, each its own; a batch may straddle two. Batch k is a function of (seed, k) alone.
    Crops are scaled to size × size by averaging areas where they shrink, bilinearly where they grow.

    Args:
        source: the examples.
        batch_size: of the global batch.
        size: S, of the images.
        augment: the random crop's ranges.
        seed: from 0 to 2³² − 1.
        start_step: the number of the first batch.
        threads: on the host, a batch each; 0 reads in the caller's thread.
        process_index: which share of each global batch is this process's: rows [process_index · B, (process_index + 1) · B).
        process_count: how many processes share the global batch; B = batch_size / process_count.

    Yields:
        image uint8 [B, S, S, 3] (RGB), label int32 [B], index int64 [B] (position in the source).

    Raises:
        UserError: if a number is impossible, or (while iterating) an example can't be read.
    """
    rows = _share(batch_size, process_index, process_count)
    check_whole("start_step", start_step, 0)
    check_whole("threads", threads, 0)
    check_whole("size", size, 1)
    check_whole("seed", seed, 0, 2**32 - 1)

    def read(indices: np.ndarray, rng: np.random.Generator) -> Batch:
        # Drawn for the whole global batch, so that a row's crop doesn't depend on how many processes share it.
        draws = rng.random((batch_size, CROP_TRIES + 1, 2))[rows]
        return _read(source, indices[rows], lambda image, row: _train_image(image, size, augment, draws[row]), size)

    batches = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True).random_map(read)
    return _iterate(batches, start_step, threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    threads: int = DEFAULT_THREADS,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order: the short side scaled to `resize`, then the centre crop of `size`.

    Every process yields the same number of batches, each of the full size. What the source can't fill is padding: weight 0, image 0,
    label 0, index −1.

    Args:
        source, batch_size, preprocessing, threads, process_index, process_count: as in `train_batches`.

    Yields:
        image uint8 [B, S, S, 3] (RGB), label int32 [B], index int64 [B] (position in the source), weight float32 [B] (1 for an example).

    Raises:
        UserError: if a number is impossible, or (while iterating) an example can't be read.
    """
    rows = _share(batch_size, process_index, process_count)
    check_whole("threads", threads, 0)

    def read(number: int) -> Batch:
        positions = np.arange(number * batch_size, (number + 1) * batch_size)[rows]
        indices = positions[positions < len(source)]
        batch = _read(source, indices, lambda image, row: eval_image(image, preprocessing), preprocessing.size)
        batch["weight"] = np.ones(len(indices), np.float32)
        return {key: _pad(value, len(positions), -1 if key == "index" else 0) for key, value in batch.items()}

    return _iterate(grain.MapDataset.range(math.ceil(len(source) / batch_size)).map(read), 0, threads)


def _iterate(batches: grain.MapDataset, start: int, threads: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    with contextlib.closing(iterator):  # ends the threads when the caller is done or drops the iterator
        yield from iterator


def _read(source: Source, indices: np.ndarray, transform: Callable[[np.ndarray, int], np.ndarray], size: int) -> Batch:
    """Reads a batch at once, because asking array_record for one example at a time takes longer than decoding a small image."""
    images = np.empty((len(indices), size, size, 3), np.uint8)
    labels = np.empty(len(indices), np.int32)
    for row, example in enumerate(source.read(indices.tolist()) if len(indices) else []):
        images[row] = transform(example["image"], row)  # one channel is repeated to three
        labels[row] = example["label"]
    return {"image": images, "label": labels, "index": indices.astype(np.int64)}


def _train_image(image: np.ndarray, size: int, augment: RandomCrop, draws: np.ndarray) -> np.ndarray:
    top, left, height, width = random_crop(image.shape[0], image.shape[1], augment, draws.tolist())
    return _scale(image[top : top + height, left : left + width], size, size)


def random_crop(height: int, width: int, augment: RandomCrop, draws: Sequence[Sequence[float]]) -> Box:
    """torchvision's RandomResizedCrop: area uniform, aspect ratio log-uniform, ten tries, then the largest central box.

    Args:
        height, width: of the image, in pixels.
        augment: the ranges.
        draws: uniform in [0, 1): CROP_TRIES pairs (area, aspect), then one pair (top, left).

    Returns:
        top, left, height, width in pixels.
    """
    (smallest, largest), (narrowest, widest) = augment.area, augment.aspect
    for area_draw, aspect_draw in draws[:CROP_TRIES]:
        area = height * width * (smallest + (largest - smallest) * area_draw)
        aspect = narrowest * (widest / narrowest) ** aspect_draw
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = draws[CROP_TRIES]
            return int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1)), crop_height, crop_width
    crop_height = min(height, max(1, round(width / narrowest)))
    crop_width = min(width, max(1, round(height * widest)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def eval_image(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Short side to `resize`, centre crop of `size`; sizes and offsets are rounded as torchvision's Resize and CenterCrop do."""
    height, width = image.shape[:2]
    short = min(height, width)
    image = _scale(image, int(preprocessing.resize * height / short), int(preprocessing.resize * width / short))
    top, left = (round((side - preprocessing.size) / 2) for side in image.shape[:2])
    return image[top : top + preprocessing.size, left : left + preprocessing.size]


def _scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales to height × width: averages areas where no side grows (no aliasing), interpolates bilinearly otherwise."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return scaled if scaled.ndim == 3 else scaled[..., None]


def _pad(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.concatenate([values, np.full((length - len(values), *values.shape[1:]), filler, values.dtype)])


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that are this process's."""
    check_whole("batch_size", batch_size, 1)
    check_whole("process_count", process_count, 1)
    check_whole("process_index", process_index, 0, process_count - 1)
    if batch_size % process_count:
        raise UserError(
            f"batch_size: {batch_size} examples don't divide among {process_count} processes; choose a multiple of {process_count}"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
