"""Data of a user's own: arrays, and whatever has a length and items; parts of a source."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from googlenet_jax.data.preprocessing import DTYPES
from googlenet_jax.data.sources import GIVEN, Record, Source
from googlenet_jax.errors import UserError, check_whole


@runtime_checkable
class Examples(Protocol):
    """What `gj.train` takes as data besides arrays: a grain source or `MapDataset`, a PyTorch data
    set, a list.

    `examples[i]` is `{"image": …, "label": …}` or a pair of these. The image is an array [H, W, C]
    or [H, W], uint8, uint16 or float; a `PIL.Image`; or the bytes of an image file. The label is a
    whole number from 0, or [K], for each class whether it is there. The same `i` gives the same
    example each time, in any order and from several threads.

    Optional attributes: `class_names`, a name for each class (where it is missing the labels are
    read, and classes are called by their numbers); `fingerprint`, a value or a method without
    arguments that gives one, which tells these data from others (where it is missing, 64 examples
    are looked at).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ItemSource(Source):
    """Examples as a source of batches."""

    def __init__(
        self, examples: Examples, name: str, split: str, class_names: Iterable[str]
    ) -> None:
        self.name, self.split, self.class_names = name, split, tuple(map(str, class_names))
        self._examples = examples
        image, label = self._item(0)
        if isinstance(image, Image.Image):
            self.channels = 1 if image.mode in ("1", "L", "I;16") else 3
        elif isinstance(image, np.ndarray):
            self.channels, self.dtype = image.shape[2], image.dtype
        self.multi_label = np.ndim(label) == 1

    def __len__(self) -> int:
        return len(self._examples)

    def records(self, indices: Sequence[int]) -> list[Record]:
        return [self._record(int(index)) for index in indices]

    def labels(self) -> np.ndarray:
        found = [self._checked(place, label) for place, label in enumerate(_labels(self._examples))]
        return np.array(found, np.float32 if self.multi_label else np.int64)

    def identity(self) -> dict[str, Any]:
        given = getattr(self._examples, "fingerprint", None)
        if given is None:
            return super().identity()
        value = given() if callable(given) else given
        crc = zlib.crc32(str(value).encode())
        names = list(self.class_names)
        return {"examples": len(self), "class_names": names, "fingerprint": crc}

    def describe(self, index: int, record: Record, problem: object) -> str:
        return f"{self.name} {self.split}, example {index}: {problem}; mend or leave out that image"

    def _item(self, index: int) -> tuple[Any, Any]:
        """An example's image and label, the image as an array [H, W, C], of Pillow, or bytes."""
        image, label = _pair(self._examples[index], f"{self.name} {self.split}, example {index}")
        if isinstance(image, bytes | Image.Image):
            return image, label
        return self._pixels(index, np.asarray(image)), label

    def _pixels(self, index: int, image: np.ndarray) -> np.ndarray:
        image = image[..., None] if image.ndim == 2 else image
        if np.issubdtype(image.dtype, np.floating):
            image = image.astype(np.float32, copy=False)
        if image.ndim != 3 or image.dtype.name not in DTYPES or not image.size:
            raise UserError(
                f"{self.name} {self.split}, example {index}: expected an image [H, W, C] of uint8, "
                f"uint16 or floats, found {image.dtype} {list(image.shape)}"
            )
        return image

    def _record(self, index: int) -> Record:
        image, label = self._item(index)
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert("L" if self.grey else "RGB"))
            image = image[..., None] if self.grey else image
        elif isinstance(image, np.ndarray) and (
            image.shape[2] != self.channels or image.dtype != self.dtype
        ):
            raise UserError(
                f"{self.name} {self.split}, example {index}: expected {self.dtype} with "
                f"{self.channels} channels, as the first, found {image.dtype} {list(image.shape)}"
            )
        return Record(image, self._checked(index, label))

    def _checked(self, index: int, label: Any) -> Any:
        where, count = f"{self.name} {self.split}, example {index}", self.num_classes
        label = np.asarray(label)
        if self.multi_label:
            if label.shape != (count,) or not ((label >= 0) & (label <= 1)).all():
                raise UserError(
                    f"{where}: expected a label of {count} numbers from 0 to 1, found {label}"
                )
            return label.astype(np.float32)
        if label.ndim or not np.issubdtype(label.dtype, np.integer) or not 0 <= label < count:
            raise UserError(f"{where}: expected a label from 0 to {count - 1}, found {label}")
        return int(label)


class Arrays:
    """Images [N, H, W, C] or [N, H, W] and labels, int [N] or for each class whether it is there
    [N, K], as examples.
    """

    def __init__(self, images: Any, labels: Any) -> None:
        """Raises UserError where they are not as many."""
        self.images, self.labels = np.asarray(images), np.asarray(labels)
        if self.images.ndim not in (3, 4) or self.labels.ndim not in (1, 2):
            raise UserError(
                "arrays: expected images [N, H, W, C] and labels [N] or [N, K], found "
                f"{list(self.images.shape)} and {list(self.labels.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise UserError(
                f"arrays: expected a label for each of {len(self.images)} images, found "
                f"{len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.images[index], self.labels[index]


class Part(Source):
    """Some examples of a source, in the order of `places`."""

    def __init__(self, source: Source, places: np.ndarray, split: str) -> None:
        self._source, self._places = source, np.asarray(places, np.int64)
        self.name, self.split, self.class_names = source.name, split, source.class_names
        self.channels, self.dtype = source.channels, source.dtype
        self.multi_label = source.multi_label

    def __len__(self) -> int:
        return len(self._places)

    def records(self, indices: Sequence[int]) -> list[Record]:
        return self._source.records(self._places[list(indices)].tolist())

    def describe(self, index: int, record: Record, problem: object) -> str:
        return self._source.describe(int(self._places[index]), record, problem)


def as_sources(
    train: Any,
    evaluations: Mapping[str, Any] | None,
    class_names: Sequence[str] | None = None,
) -> tuple[Source, list[Source]]:
    """Returns what a user hands over as sources: arrays (images, labels), `Examples`, or a
    `Source`.

    Args:
      evaluations: by the name of the split; None evaluates the training examples.
      class_names: where the data do not have them; by default the numbers up to the largest label.
    Raises:
      UserError: what is no data, has no examples, or has other classes than the rest.
    """
    given = [("train", train), *(evaluations or {"train": train}).items()]
    examples = [(split, _examples(data, split)) for split, data in given]
    named = (getattr(each, "class_names", None) for _, each in examples)
    names = class_names or next((each for each in named if each is not None), None)
    if names is None:
        names = tuple(map(str, range(max(_classes(each) for _, each in examples))))
    first, *others = (
        each if isinstance(each, Source) else ItemSource(each, GIVEN, split, names)
        for split, each in examples
    )
    for source in others:
        ours = (source.class_names, source.multi_label, source.channels, source.dtype)
        if ours != (first.class_names, first.multi_label, first.channels, first.dtype):
            raise UserError(
                f"{source.split}: expected the classes, kind of labels, channels and dtype of the "
                f"training examples, found {len(ours[0])} classes, {ours[2]} channels of {ours[3]}"
            )
    return first, others


def _examples(data: Any, split: str) -> Any:
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(each, "shape") for each in data):
        data = Arrays(*data)
    if not isinstance(data, Examples) or not len(data):
        found = "none in it" if isinstance(data, Examples) else type(data).__name__
        raise UserError(
            f"{split}: expected arrays (images, labels), or examples with a length and items, "
            f"found {found}"
        )
    return data


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    """An example's image and label."""
    try:
        image, label = (item["image"], item["label"]) if isinstance(item, Mapping) else tuple(item)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'{where}: expected {{"image": …, "label": …}} or a pair of these, found '
            f"{type(item).__name__}"
        ) from error
    return image, label


def _labels(examples: Any) -> Any:
    """All labels as they are: those of arrays, else read with their images."""
    if isinstance(examples, Arrays):
        return examples.labels
    return [_pair(examples[index], f"example {index}")[1] for index in range(len(examples))]


def _classes(examples: Any) -> int:
    """How many classes the labels make."""
    if isinstance(examples, Source):
        return examples.num_classes
    labels = _labels(examples)
    return len(labels[0]) if np.ndim(labels[0]) else int(max(map(int, labels))) + 1


def per_class(source: Source, count: int, seed: int) -> Source:
    """Returns `count` examples of each class (all where it has fewer), drawn by `seed`."""
    count, labels = check_whole("data.per_class", count, 1), _one_label(source, "data.per_class")
    order = np.random.default_rng(seed).permutation(len(source))
    classes = range(source.num_classes)
    drawn = [order[labels[order] == label][:count] for label in classes]
    return Part(source, np.sort(np.concatenate(drawn)), f"{source.split}, {count} a class")


def fold(source: Source, part: str, seed: int) -> tuple[Source, Source]:
    """Returns the examples outside a fold and those in it, such as "2/5": the second of five, in
    each of which every class has about the same share; drawn by `seed`.

    Raises UserError for another form.
    """
    number, _, count = part.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count) >= 2):
        raise UserError(f"data.fold: expected a form such as '2/5', found {part!r}")
    labels = _one_label(source, "data.fold")
    order = np.random.default_rng(seed).permutation(len(source))
    by_class = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(source), bool)
    held[by_class[int(number) - 1 :: int(count)]] = True
    outside, inside = (np.flatnonzero(each) for each in (~held, held))
    if not len(outside) or not len(inside):
        raise UserError(f"data.fold: {len(source)} examples are too few for {part!r}")
    return Part(source, outside, f"{source.split} without fold"), Part(source, inside, "fold")


def _one_label(source: Source, field: str) -> np.ndarray:
    if source.multi_label:
        raise UserError(f"{field}: takes one label an image, found labels for each class")
    return source.labels()
