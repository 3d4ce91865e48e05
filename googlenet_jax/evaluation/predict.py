"""The most probable classes of pictures."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from googlenet_jax.data.image_kind import RGB, ImageKind
from googlenet_jax.data.pipeline import eval_image
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import Ensemble, average_of_prefixes
from googlenet_jax.evaluation.pictures import read_picture

STDIN = "-"
Picture = str | Path | io.BytesIO | np.ndarray | Image.Image


class Prediction(NamedTuple):
    """A class and its probability, from 0 to 1."""

    class_name: str
    probability: float


class Predicted(NamedTuple):
    """What a picture gave.

    Attributes:
      name: the file's, or "-" for one without a file.
      crop: its centre crop, [S, S, C], where it was asked for.
      predictions: the most probable classes, the most probable first.
      error: why it could not be read; None where it could.
    """

    name: str
    crop: np.ndarray | None
    predictions: list[Prediction]
    error: UserError | None


def top_predictions(
    probabilities: np.ndarray, class_names: Sequence[str], count: int
) -> list[Prediction]:
    """Returns the `count` most probable classes (all where there are fewer), in descending order.

    Equals stay in class order. `probabilities` is `[num_classes]`. Raises UserError where they are
    not finite.
    """
    if not np.isfinite(probabilities).all():
        raise UserError("the network's outputs are not finite; take other weights")
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [Prediction(class_names[index], float(probabilities[index])) for index in order]


def as_pictures(images: Any, kind: ImageKind = RGB) -> list[Picture]:
    """One picture or several as a list: paths, PIL images, arrays of that kind or of one channel.

    Raises UserError for what is none of these.
    """
    if isinstance(images, Picture) and not (isinstance(images, np.ndarray) and images.ndim == 4):
        images = [images]
    elif not isinstance(images, Iterable):
        raise UserError(
            f"images: expected paths, PIL images or uint8 arrays, found {type(images).__name__}"
        )
    pictures = [np.asarray(each) if hasattr(each, "__jax_array__") else each for each in images]
    for number, each in enumerate(pictures):
        if not isinstance(each, Picture):
            each = pictures[number] = np.asarray(each)  # of another library
        if isinstance(each, np.ndarray) and not _is_image(each, kind):
            raise UserError(
                f"images: expected {kind.dtype} arrays [H, W, {kind.channels}] or [H, W,"
                f" 1]{' with values from 0 to 255' if kind.dtype == 'uint8' else ''}, found"
                f" {each.dtype} {list(each.shape)}"
            )
    return pictures


def _is_image(array: np.ndarray, kind: ImageKind) -> bool:
    return array.ndim == 3 and array.size > 0 and kind.takes(array.shape[2], array.dtype)


def read(picture: Picture, kind: ImageKind = RGB) -> np.ndarray:
    """Returns a picture of that kind, or of one channel. Raises UserError where it can't be
    read.
    """
    return picture if isinstance(picture, np.ndarray) else read_picture(picture, kind)


def predict_pictures(
    ensemble: Ensemble, pictures: Iterable[Picture], *, top: int, keep_crops: bool = False
) -> Iterator[Predicted]:
    """Yields what the ensemble says of each picture, in order, with the most crops.

    Pictures are read as they are needed, a batch ahead of the devices; one that can't be read has
    its error in its result, and the others continue.
    """
    preprocessing = ensemble.members[0].preprocessing
    assert preprocessing is not None  # the ensemble has checked it

    def prepare(batch: list[Picture]) -> tuple[list[np.ndarray], list[Predicted]]:
        images: list[np.ndarray] = []
        results: list[Predicted] = []
        for picture in batch:
            name = str(picture) if isinstance(picture, str | Path) else STDIN
            try:
                image = read(picture, ensemble.images)
            except UserError as error:
                results.append(Predicted(name, None, [], error))
            else:
                images.append(image)
                crop = eval_image(image, preprocessing) if keep_crops else None
                results.append(Predicted(name, crop, [], None))
        return images, results

    batches = _batched(pictures, ensemble.images_at_a_time)
    for results, values in ensemble.run(batches, prepare, threads=2):
        rows = iter(np.exp(average_of_prefixes(values)[:, -1, -1]))
        for result in results:
            if result.error is None:
                best = top_predictions(next(rows), ensemble.class_names, top)
                result = result._replace(predictions=best)
            yield result


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
