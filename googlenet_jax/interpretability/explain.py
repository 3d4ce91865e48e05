"""`gj.explain`: a trained model's view of pictures, by one of several methods."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.data.imagenet import readable_names
from googlenet_jax.data.pipeline import eval_image
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError, check_whole, nearest
from googlenet_jax.evaluation.predict import Prediction, as_pictures, read, top_predictions
from googlenet_jax.interpretability.attribution import (
    answer,
    gradcam,
    integrated_gradients,
    occluded_places,
    occlusion,
    spatial_endpoints,
)
from googlenet_jax.interpretability.drawing import enlarge, overlay, save_picture, tiles
from googlenet_jax.interpretability.dreams import OneChannelEach, dream, energy
from googlenet_jax.weights.trained_model import TrainedModel

CHANNELS = 16  # shown of an endpoint
FILTERS = 9
PATCHES = 6  # occluding squares that stand side by side


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """A trained model's view of one picture.

    Attributes:
      method: one of METHODS.
      endpoint: the endpoint that it is of; "" where it is of the whole.
      class_name: what is explained; the methods of an endpoint alone don't depend on it.
      predictions: the five likeliest classes.
      crop: what the network was shown, uint8 `[S, S, 3]`.
      values: "gradcam" `[H, W]`, of the endpoint's size; "integrated" `[S, S, 3]`, in logits;
        "occlusion" `[P, P]`, probability lost; "activations" `[C, H, W]`, all channels; "filters"
        uint8 `[K, S, S, 3]`; "deepdream" uint8 `[S, S, 3]`.
      channels: of "activations" and "filters", those that are drawn, the strongest first.
      picture: for people, uint8 `[H, W, 3]`.
    """

    method: str
    endpoint: str
    class_name: str
    predictions: list[Prediction]
    crop: np.ndarray
    values: np.ndarray
    channels: tuple[int, ...]
    picture: np.ndarray

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `picture`, whole or not at all. Raises UserError where it can't be written."""
        save_picture(Path(path), self.picture)


def explain(
    trained: TrainedModel,
    images: Any,
    method: str = "gradcam",
    *,
    endpoint: str | None = None,
    class_name: str | int | None = None,
) -> list[Explanation]:
    """Returns what a trained model sees in pictures.

    Args:
      trained: as `gj.load` returns it.
      images: a path, a `PIL.Image`, a `uint8 [H, W, 3]` array, or several of them.
      method: one of METHODS; `Explanation.values` says what each computes.
      endpoint: a map of the network, as `gj.endpoints` names it; by default its last one for
        "gradcam", and one in its middle for "activations", "filters" and "deepdream".
      class_name: the class to explain, by name or number; by default each picture's likeliest.
    Raises:
      UserError: no such method, endpoint or class, an image that can't be read, or a model without
        preprocessing or classifier.
    """
    if method not in METHODS:
        raise UserError(
            f"method: expected one of {', '.join(METHODS)}, found {method!r}"
            f"{nearest(str(method), METHODS)}"
        )
    trained.check_complete()
    assert trained.preprocessing is not None  # checked
    endpoint = _endpoint(trained, trained.preprocessing.size, method, endpoint)
    names = _names(trained)
    target = _target(trained, names, class_name)
    pictures = as_pictures(images)
    if not pictures:
        raise UserError("images: expected at least one, found none")
    return [
        _explain_one(
            trained, eval_image(read(each), trained.preprocessing), method, endpoint, names, target
        )
        for each in pictures
    ]


def _explain_one(
    trained: TrainedModel,
    crop: np.ndarray,
    method: str,
    endpoint: str,
    names: list[str],
    target: int | None,
) -> Explanation:
    assert trained.preprocessing is not None  # checked
    inputs = normalize(jnp.asarray(crop)[None], trained.preprocessing, trained.model.dtype)
    maps, logits = _answer(trained.model, endpoint, trained.variables, inputs)
    shares = np.asarray(jax.nn.softmax(logits[0, trained.class_offset :]))
    chosen = int(shares.argmax()) if target is None else target
    targets = jnp.asarray([chosen + trained.class_offset])
    view = _View(trained, trained.preprocessing, endpoint, crop, inputs, targets, maps)
    answered = METHODS[method](view)
    return Explanation(
        method,
        "" if method in WHOLE else endpoint,
        names[chosen],
        top_predictions(shares, names, 5),
        crop,
        answered.values,
        answered.channels,
        answered.picture,
    )


class _View(NamedTuple):
    """What a method works on: one picture, and what the network answered."""

    trained: TrainedModel
    preprocessing: Preprocessing
    endpoint: str
    crop: np.ndarray
    inputs: jax.Array  # [1, S, S, 3]
    targets: jax.Array  # [1]
    maps: jax.Array  # [1, H, W, C]


class _Answered(NamedTuple):
    values: np.ndarray
    picture: np.ndarray
    channels: tuple[int, ...] = ()


_answer = jax.jit(
    lambda model, endpoint, variables, inputs: answer(model, variables, inputs, endpoint),
    static_argnums=(0, 1),
)


def _gradcam(view: _View) -> _Answered:
    trained = view.trained
    found = gradcam(trained.model, trained.variables, view.inputs, view.targets, view.endpoint)
    values = np.asarray(found[0])
    return _Answered(values, overlay(view.crop, values))


def _integrated(view: _View) -> _Answered:
    trained = view.trained
    found = integrated_gradients(trained.model, trained.variables, view.inputs, view.targets)
    values = np.asarray(found[0], np.float32)
    return _Answered(values, overlay(view.crop, np.maximum(values.sum(-1), 0), fine=True))


def _occlusion(view: _View) -> _Answered:
    trained, size = view.trained, view.preprocessing.size
    patch = max(1, size // PATCHES)
    stride = max(1, patch // 2)
    given = (view.inputs, view.targets, patch, stride, trained.class_offset)
    found = occlusion(trained.model, trained.variables, *given)
    values = np.asarray(found[0], np.float32)
    # A pixel has the mean of the places that cover it.
    lost, times = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    places = occluded_places(size, patch, stride)
    for (i, j), value in np.ndenumerate(values):
        there = np.s_[places[i] : places[i] + patch, places[j] : places[j] + patch]
        lost[there] += value
        times[there] += 1
    return _Answered(values, overlay(view.crop, np.maximum(lost / times, 0)))


def _activations(view: _View) -> _Answered:
    maps = np.asarray(view.maps[0], np.float32).transpose(2, 0, 1)
    channels = _strongest(maps, CHANNELS)
    return _Answered(maps, tiles(maps[list(channels)]), channels)


def _filters(view: _View) -> _Answered:
    channels = _strongest(np.asarray(view.maps[0], np.float32).transpose(2, 0, 1), FILTERS)
    shape = (len(channels), *view.inputs.shape[1:])
    black, white = limits = _limits(view)
    noise = 0.02 * (white - black) * jax.random.normal(jax.random.key(0), shape, black.dtype)
    trained, objective = view.trained, OneChannelEach(channels)
    found = dream(trained.model, trained.variables, noise, view.endpoint, objective, limits)
    values = _as_pixels(found, view.preprocessing)
    return _Answered(values, tiles(values), channels)


def _deepdream(view: _View) -> _Answered:
    trained = view.trained
    given = (view.inputs, view.endpoint, energy, _limits(view))
    found = dream(trained.model, trained.variables, *given)
    values = _as_pixels(found, view.preprocessing)[0]
    return _Answered(values, enlarge(values))


METHODS: dict[str, Callable[[_View], _Answered]] = {
    "gradcam": _gradcam,
    "occlusion": _occlusion,
    "integrated": _integrated,
    "filters": _filters,
    "deepdream": _deepdream,
    "activations": _activations,
}
WHOLE = ("occlusion", "integrated")  # of the network, not of an endpoint


def _strongest(maps: np.ndarray, count: int) -> tuple[int, ...]:
    """The channels of `[C, H, W]` with the largest means, the strongest first."""
    return tuple(np.argsort(-maps.mean((1, 2)), kind="stable")[:count].tolist())


def _limits(view: _View) -> tuple[jax.Array, jax.Array]:
    """Black and white as the network takes them, `[3]` each."""
    both = np.asarray([0, 255], np.uint8)[:, None, None, None].repeat(3, -1)
    black, white = normalize(jnp.asarray(both), view.preprocessing, view.inputs.dtype)
    return black[0, 0], white[0, 0]


def _as_pixels(inputs: jax.Array, preprocessing: Preprocessing) -> np.ndarray:
    """`normalize` undone: uint8, RGB."""
    pixels = np.asarray(inputs, np.float32) * np.float32(preprocessing.std)
    pixels = np.clip(np.rint(pixels + np.float32(preprocessing.mean)), 0, 255).astype(np.uint8)
    return pixels[..., ::-1] if preprocessing.channel_order == "bgr" else pixels


def _endpoint(trained: TrainedModel, size: int, method: str, asked: str | None) -> str:
    found = spatial_endpoints(trained.model, trained.variables, size)
    if asked is None:
        whole = [name for name in found if "/" not in name]
        last = method in ("gradcam", *WHOLE)
        return whole[-1] if last else whole[2 * len(whole) // 3]
    if method in WHOLE:
        raise UserError(f"endpoint: {method} explains the whole network; leave it out")
    if asked not in found:
        raise UserError(
            f"endpoint: {type(trained.model).__name__} has no map {asked!r}"
            f"{nearest(asked, found)}; they are {', '.join(found)}"
        )
    return asked


def _names(trained: TrainedModel) -> list[str]:
    """A name for each class, its number where none is known."""
    if trained.labels is None:
        return [str(number) for number in range(trained.num_classes)]
    return list(readable_names(trained.labels))


def _target(trained: TrainedModel, names: list[str], asked: str | int | None) -> int | None:
    if asked is None:
        return None
    if isinstance(asked, str):
        for known in (names, trained.labels or ()):
            if asked in known:
                return list(known).index(asked)
        if not asked.isdecimal():
            raise UserError(f"class_name: there is no class {asked!r}{nearest(asked, names)}")
        asked = int(asked)
    return check_whole("class_name", asked, 0, len(names) - 1)
