"""Batches of uint8 images on the host, by grain: which examples make up batch k, and how they are
cropped, depends on (seed, k) alone."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from googlenet_jax.data.bad_images import BadImages
from googlenet_jax.data.decoding import BadImage, Box, decode_crop
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.resampling import INTERPOLATIONS, MAX_SIDE, PAPER_INTERPOLATIONS, scale
from googlenet_jax.data.sources import Record, Source
from googlenet_jax.data.workers import read_in_workers
from googlenet_jax.errors import UserError, check_range, check_whole, nearest

Batch = dict[str, np.ndarray]

DEFAULT_THREADS = min(os.cpu_count() or 1, 8)
MOST_THREADS = 4096  # and processes: more than any host is helped by
SAMPLINGS = ("shuffle", "balanced")
CROP_TRIES = 10  # torchvision's number, before it takes the central fallback


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """The ranges of a random crop, as in the GoogLeNet paper (arXiv 1409.4842, section 6).

    Attributes:
      area: smallest and largest share of the image's area. aspect: smallest and largest width /
          height.
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
    workers: int = 0,
    interpolation: str = "auto",
    exact_decoding: bool = True,
    bad_images: BadImages | None = None,
    process_index: int = 0,
    process_count: int = 1,
    channels: int = 3,
    sampling: str = "shuffle",
) -> Iterator[Batch]:
    """Endless batches for training, beginning with batch `start_step`.

    Every epoch is a permutation of the source, each its own; a batch may straddle two. Batch k is a
    function of (seed, k) alone.

    Args:
        source: the examples.
        batch_size: of the global batch.
        size: S, of the images.
        augment: the random crop's ranges.
        seed: from 0 to 2³² − 1.
        start_step: the number of the first batch.
        threads: on the host, a batch each; 0 reads in the caller's thread. Not used where there are
            workers.
        workers: processes on the host, a batch each; 0 is none. The source is sent to each by
            pickle.
        interpolation: what scales the crops, one of `decoding.INTERPOLATIONS`, or "random": each
            crop's is drawn from the paper's four with equal probability.
        exact_decoding: whether every picture is decoded whole; otherwise JPEGs as
            `decoding.decode_crop` says, which is faster.
        bad_images: where pictures that can't be read are counted; they become examples of weight 0.
            None is for an error.
        process_index: which share of each global batch is this process's: rows [process_index · B,
            (process_index + 1) · B).
        process_count: how many processes share the global batch; B = batch_size / process_count.
        channels: C; a grey image's one is repeated.
        sampling: "shuffle"; or "balanced", which draws each row's class, all equally probable, and
            then one of its examples, with replacement.

    Yields:
        image [B, S, S, C] (RGB) in the source's dtype, label int32 [B] or float32 [B, K], index
        int64 [B] (position in the source), and with `bad_images` weight float32 [B]: 0 for a
        picture that can't be read, whose pixels are 0, else 1.

    Raises:
        UserError: if an argument is impossible, or (while iterating) an example can't be read or a
            worker has died.
    """
    rows = _share(batch_size, process_index, process_count)
    check_whole("start_step", start_step, 0)
    check_whole("threads", threads, 0, MOST_THREADS)
    check_whole("workers", workers, 0, MOST_THREADS)
    check_whole("size", size, 1, MAX_SIDE)
    check_whole("seed", seed, 0, 2**32 - 1)
    if interpolation not in (*INTERPOLATIONS, "random"):
        known = (*INTERPOLATIONS, "random")
        raise UserError(
            f"augment.interpolation: expected one of {known}, found "
            f"{interpolation!r}{nearest(str(interpolation), known)}"
        )
    if sampling not in SAMPLINGS:
        raise UserError(
            f"data.sampling: expected one of {SAMPLINGS}, found {sampling!r}"
            f"{nearest(str(sampling), SAMPLINGS)}"
        )
    classes = _by_class(source) if sampling == "balanced" else None
    crops = _Crops(batch_size, rows, size, augment, seed, interpolation, exact_decoding, classes)
    reader = _Reader(source, size, keeps_bad=bad_images is not None, channels=channels)
    make_batches = functools.partial(_train_dataset, reader, crops)
    shape = (rows.stop - rows.start, size, size, channels)
    return _iterate(
        make_batches, shape, range(start_step, sys.maxsize), threads, workers, source, bad_images
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    threads: int = DEFAULT_THREADS,
    workers: int = 0,
    exact_decoding: bool = True,
    bad_images: BadImages | None = None,
    process_index: int = 0,
    process_count: int = 1,
    channels: int = 3,
) -> Iterator[Batch]:
    """Every example once, in order: the short side scaled to `resize`, then the centre crop of
    `size`.

    Every process yields the same number of batches, each of the full size. What the source can't
    fill is padding: weight 0, image 0, label 0, index −1.

    Args:
        source, batch_size, preprocessing, threads, workers, exact_decoding, bad_images,
            process_index, process_count, channels: as in `train_batches`.

    Yields:
        image [B, S, S, C] (RGB) in the source's dtype, label int32 [B] or float32 [B, K], index
        int64 [B] (position in the source), weight float32 [B] (1 for an example that could be
        read).

    Raises:
        UserError: if an argument is impossible, or (while iterating) an example can't be read or a
            worker has died.
    """
    rows = _share(batch_size, process_index, process_count)
    check_whole("threads", threads, 0, MOST_THREADS)
    check_whole("workers", workers, 0, MOST_THREADS)
    size, keeps = preprocessing.size, bad_images is not None
    reader = _Reader(source, size, keeps_bad=keeps, channels=channels)
    make_batches = functools.partial(
        _eval_dataset, reader, preprocessing, batch_size, rows, exact_decoding
    )
    shape = (rows.stop - rows.start, size, size, channels)
    return _iterate(
        make_batches,
        shape,
        range(math.ceil(len(source) / batch_size)),
        threads,
        workers,
        source,
        bad_images,
    )


def _iterate(
    make_batches: Callable[[], grain.MapDataset],
    image_shape: Sequence[int],
    numbers: range,
    threads: int,
    workers: int,
    source: Source,
    bad_images: BadImages | None,
) -> Iterator[Batch]:
    if workers:
        batches = read_in_workers(make_batches, image_shape, numbers, workers, source.dtype)
    else:
        batches = _read_in_threads(make_batches(), numbers.start, threads)
    with contextlib.closing(batches):
        for batch in batches:
            for index, problem in batch.pop("bad", ()):
                if bad_images is not None:
                    bad_images.add(source, index, problem)
            yield batch


def _read_in_threads(
    batches: grain.MapDataset, start: int, threads: int
) -> Generator[dict[str, Any], None, None]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    with contextlib.closing(
        iterator
    ):  # ends the threads when the caller is done or drops the iterator
        yield from iterator


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads a batch at once, because asking array_record for one example at a time takes longer
    than decoding a small image.

    `keeps_bad`: whether a picture that can't be read becomes an example of weight 0, named in the
        batch's "bad"; else it is an error.
    """

    source: Source
    size: int
    keeps_bad: bool
    channels: int = 3

    def __call__(
        self, indices: np.ndarray, transform: Callable[[Record, int], np.ndarray]
    ) -> dict[str, Any]:
        source, count = self.source, len(indices)
        images = np.zeros((count, self.size, self.size, self.channels), source.dtype)
        labels, weights = np.empty(count, np.int32), np.ones(count, np.float32)
        if source.multi_label:
            labels = np.empty((count, source.num_classes), np.float32)
        bad: list[tuple[int, str]] = []
        for row, record in enumerate(self.source.records(indices.tolist()) if len(indices) else []):
            labels[row] = record.label
            try:
                images[row] = transform(record, row)  # one channel is repeated to three
            except BadImage as error:
                problem = self.source.describe(int(indices[row]), record, error)
                if not self.keeps_bad:
                    raise UserError(problem) from error
                weights[row] = 0
                bad.append((int(indices[row]), problem))
        batch = {"image": images, "label": labels, "index": indices.astype(np.int64)}
        return {**batch, "weight": weights, "bad": bad} if self.keeps_bad else batch


@dataclasses.dataclass(frozen=True)
class _Crops:
    """What a training batch is made by, besides its examples."""

    batch_size: int
    rows: slice
    size: int
    augment: RandomCrop
    seed: int
    interpolation: str
    exact_decoding: bool
    classes: Sequence[np.ndarray] | None = None  # each class's examples, to draw them equally

    def balanced(self, number: int) -> np.ndarray:
        """The examples of global batch `number`, a class as often as another on average; int64
        [batch_size].
        """
        assert self.classes is not None
        rng = np.random.default_rng([self.seed, zlib.crc32(b"balanced"), number])
        classes = rng.integers(len(self.classes), size=self.batch_size)
        places = rng.random(self.batch_size)
        drawn = zip(classes.tolist(), places.tolist(), strict=True)
        return np.array([self.classes[c][int(place * len(self.classes[c]))] for c, place in drawn])

    def interpolations(self, number: int) -> list[str]:
        """The interpolation of each row of global batch `number`, drawn from a stream of their own:
        the crops' stays as it is."""
        if self.interpolation != "random":
            return [self.interpolation] * self.batch_size
        rng = np.random.default_rng([self.seed, zlib.crc32(b"interpolation"), number])
        return [
            PAPER_INTERPOLATIONS[draw]
            for draw in rng.integers(len(PAPER_INTERPOLATIONS), size=self.batch_size)
        ]


def _train_dataset(reader: _Reader, crops: _Crops) -> grain.MapDataset:
    def draw(indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        # Drawn for the whole global batch, so that a row's crop doesn't depend on how many
        # processes share it.
        return indices[crops.rows], rng.random((crops.batch_size, CROP_TRIES + 1, 2))[crops.rows]

    def read(number: int, drawn: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        indices, draws = drawn
        interpolations = crops.interpolations(number)[crops.rows]
        return reader(
            indices,
            lambda record, row: _train_image(
                record, reader.source.grey, crops, draws[row].tolist(), interpolations[row]
            ),
        )

    if crops.classes is not None:
        drawn = grain.MapDataset.range(2**31).seed(crops.seed).map(crops.balanced)
    else:
        order = grain.MapDataset.range(len(reader.source)).seed(crops.seed).shuffle().repeat()
        drawn = order.batch(crops.batch_size, drop_remainder=True)
    return drawn.random_map(draw).map_with_index(read)


def _by_class(source: Source) -> list[np.ndarray]:
    """The positions of each class's examples, int64 [n] each."""
    if source.multi_label:
        raise UserError("data.sampling: 'balanced' takes one label an image; use 'shuffle'")
    labels = source.labels()
    places = [np.flatnonzero(labels == label) for label in range(source.num_classes)]
    if empty := [source.class_names[label] for label, found in enumerate(places) if not len(found)]:
        raise UserError(
            f"data.sampling: 'balanced' takes an example of every class, {source.name} "
            f"{source.split} has none of {', '.join(empty[:5])}; use 'shuffle'"
        )
    return places


def _train_image(
    record: Record, grey: bool, crops: _Crops, draws: Sequence[Sequence[float]], interpolation: str
) -> np.ndarray:
    return decode_crop(
        record.image,
        lambda height, width: random_crop(height, width, crops.augment, draws),
        lambda height, width: (crops.size, crops.size),
        interpolation,
        exact=crops.exact_decoding,
        grey=grey,
        orientation=record.orientation,
    )


def _eval_dataset(
    reader: _Reader, preprocessing: Preprocessing, batch_size: int, rows: slice, exact: bool
) -> grain.MapDataset:
    def transform(record: Record, row: int) -> np.ndarray:
        return _centre_crop(
            decode_crop(
                record.image,
                lambda height, width: (0, 0, height, width),
                lambda height, width: _scaled(height, width, preprocessing),
                preprocessing.interpolation,
                exact=exact,
                grey=reader.source.grey,
                orientation=record.orientation,
            ),
            preprocessing.size,
        )

    def read(number: int) -> dict[str, Any]:
        positions = np.arange(number * batch_size, (number + 1) * batch_size)[rows]
        indices = positions[positions < len(reader.source)]
        batch = {"weight": np.ones(len(indices), np.float32), **reader(indices, transform)}
        bad = batch.pop("bad", None)
        padded = {
            key: _pad(value, len(positions), -1 if key == "index" else 0)
            for key, value in batch.items()
        }
        return padded if bad is None else {**padded, "bad": bad}

    return grain.MapDataset.range(math.ceil(len(reader.source) / batch_size)).map(read)


def random_crop(
    height: int, width: int, augment: RandomCrop, draws: Sequence[Sequence[float]]
) -> Box:
    """torchvision's RandomResizedCrop: area uniform, aspect ratio log-uniform, ten tries, then the
    largest central box.

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
            return (
                int(top * (height - crop_height + 1)),
                int(left * (width - crop_width + 1)),
                crop_height,
                crop_width,
            )
    crop_height = min(height, max(1, round(width / narrowest)))
    crop_width = min(width, max(1, round(height * widest)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def eval_image(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Short side to `resize` (both with the crop "squash"), centre crop of `size`; sizes and
    offsets are rounded as torchvision's Resize and CenterCrop do."""
    height, width = image.shape[:2]
    goal = _scaled(height, width, preprocessing)
    scaled = scale(image, *goal, preprocessing.interpolation)
    return _centre_crop(scaled, preprocessing.size)


def _scaled(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    resize, short = preprocessing.resize, min(height, width)
    if preprocessing.crop == "squash":
        return resize, resize
    return int(resize * height / short), int(resize * width / short)


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _pad(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.concatenate(
        [values, np.full((length - len(values), *values.shape[1:]), filler, values.dtype)]
    )


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that are this process's."""
    check_whole("batch_size", batch_size, 1)
    check_whole("process_count", process_count, 1)
    check_whole("process_index", process_index, 0, process_count - 1)
    if batch_size % process_count:
        raise UserError(
            f"batch_size: {batch_size} examples don't divide among {process_count} processes; "
            f"choose a multiple of {process_count}"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
