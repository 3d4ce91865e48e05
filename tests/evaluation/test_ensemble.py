"""Probabilities over models and crops, beside a plain NumPy version of the whole protocol."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import Ensemble, average_of_prefixes
from googlenet_jax.models.network import Output
from googlenet_jax.runtime.sharding import create_mesh
from googlenet_jax.weights.trained_model import TrainedModel
from tests.evaluation import protocol

CLASSES = 6
PHOTOGRAPH = np.ascontiguousarray(load_sample_image("china.jpg")[::4, ::4])  # 107×160


class Linear(nn.Module):
    """A network of the same interface that NumPy can repeat in a line."""

    num_classes: int = CLASSES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        return Output(nn.Dense(self.num_classes)(images.reshape(len(images), -1)), {})


def member(name: str, seed: int, preprocessing: Preprocessing, **options: Any) -> TrainedModel:
    model = Linear(num_classes=CLASSES + options.get("class_offset", 0))
    size = preprocessing.size
    variables = model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3)), train=False)
    preprocessing = dataclasses.replace(preprocessing, class_offset=options.pop("class_offset", 0))
    return TrainedModel(model, variables, preprocessing, source=name, **options)  # type: ignore[arg-type]


def members() -> list[TrainedModel]:
    """Of two sizes, other means, other channel orders, and one with a class before the first."""
    return [
        member("small", 0, Preprocessing(size=14, resize=16)),
        member("bgr", 1, Preprocessing(size=14, resize=14, mean=(9, 99, 199), channel_order="bgr")),
        member("offset", 2, Preprocessing(size=21, resize=24), class_offset=1),
    ]


def images(count: int) -> list[np.ndarray]:
    """Real pictures: landscapes, portraits, squares, smaller and larger than the input."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        height, width = rng.integers(9, 60, 2)
        if number % 5 == 0:
            width = height
        top, left = rng.integers(0, 107 - height), rng.integers(0, 160 - width)
        found.append(PHOTOGRAPH[top : top + height, left : left + width])
    return found


def run(ensemble: Ensemble, pictures: list[np.ndarray]) -> np.ndarray:
    step = ensemble.images_at_a_time
    starts = range(0, len(pictures), step)
    parts = ensemble.run(starts, lambda start: (pictures[start : start + step], start), threads=2)
    about, values = zip(*parts, strict=True)
    assert about == tuple(starts)
    return np.concatenate(values)


def build(chosen: list[TrainedModel], crops: int, batch_size: int, **options: Any) -> Ensemble:
    return Ensemble(chosen, crops=crops, batch_size=batch_size, mesh=create_mesh(), **options)


def slow_probabilities(each: TrainedModel, image: np.ndarray, crops: int) -> np.ndarray:
    """One member's, averaged over the crops: one crop after another."""
    preprocessing, dense = each.preprocessing, each.variables["params"]["Dense_0"]
    if crops == 1:
        views = [protocol.centre_crop(image, preprocessing.resize, preprocessing.size)]
    else:
        views = list(protocol.views(image, preprocessing.size, crops))
    total = np.zeros(CLASSES)
    for view in views:
        pixels = view[..., ::-1] if preprocessing.channel_order == "bgr" else view
        pixels = (pixels - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        logits = pixels.reshape(-1) @ np.asarray(dense["kernel"], float) + np.asarray(dense["bias"])
        exponentials = np.exp(logits[each.class_offset :] - logits.max())
        total += exponentials / exponentials.sum()
    return total / len(views)


def test_fifty_images_give_the_plain_protocols_probabilities() -> None:
    chosen, pictures = members(), images(50)
    alone = run(build(chosen, 144, 200), pictures)
    found = np.exp(average_of_prefixes(alone))
    assert found.shape == (50, 3, 3, CLASSES)
    for row, image in enumerate(pictures):
        for column, crops in enumerate((1, 10, 144)):
            slow = [slow_probabilities(each, image, crops) for each in chosen]
            for models in (1, 2, 3):
                expected = np.mean(slow[:models], axis=0)
                # A pixel may be rounded to the other side of a half: OpenCV, which cuts the one
                # crop on the host, interpolates with fewer bits.
                bound = 0.01 if crops == 1 else 0.002
                np.testing.assert_allclose(found[row, models - 1, column], expected, atol=bound)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_do_not_change_the_probabilities(batch_size: int) -> None:
    chosen, pictures = members()[:1], images(9)
    expected = run(build(chosen, 10, 64), pictures)
    ensemble = build(chosen, 10, batch_size, images_at_most=9)
    np.testing.assert_allclose(run(ensemble, pictures), expected, atol=1e-4)


def test_an_average_keeps_what_is_too_unlikely_for_a_probability() -> None:
    values = np.array([[[[0.0, -2000.0]], [[0.0, -2000.0 - np.log(2)]]]])
    found = average_of_prefixes(values)[0, :, 0, 1]
    # The mean of p and p/2 is 3p/4.
    np.testing.assert_allclose(found, [-2000, -2000 + np.log(0.75)], rtol=1e-12)


def test_classes_in_another_order_are_matched_by_name() -> None:
    preprocessing = Preprocessing(size=14, resize=16)
    plain = member("plain", 0, preprocessing, class_names=tuple("abcdef"))
    names = [*"fbdace"]
    found = run(build([plain], 1, 8, class_names=names), images(3))
    expected = run(build([plain], 1, 8), images(3))
    for column, name in enumerate(names):
        own = expected[..., "abcdef".index(name)]
        np.testing.assert_allclose(found[..., column], own, atol=1e-5)


def test_members_of_other_classes_are_refused() -> None:
    odd = member("odd", 0, Preprocessing(size=14, resize=16), class_offset=0)
    three = TrainedModel(Linear(num_classes=3), {}, odd.preprocessing, source="three")  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"three: expected a model of 6 classes, as odd has.*found 3"
    ):
        build([odd, three], 1, 8)


@pytest.mark.parametrize(
    ("crops", "batch_size", "said"),
    [(12, 8, "crops: expected 1, 10 or 144, found 12"), (1, 0, "batch size: expected at least 1")],
)
def test_impossible_numbers_are_refused(crops: int, batch_size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(members()[:1], crops, batch_size)


def test_items_without_images_keep_their_place() -> None:
    ensemble = build(members()[:1], 1, 1)
    pictures = images(3)
    items = [pictures[:1], [], pictures[1:2], []]
    found = list(ensemble.run(items, lambda item: (item, len(item)), threads=1))
    assert [(about, len(values)) for about, values in found] == [(1, 1), (0, 0), (1, 1), (0, 0)]


def test_an_error_while_reading_comes_through() -> None:
    def read(item: int) -> tuple[list[np.ndarray], int]:
        if item == 2:
            raise UserError("example 2 is damaged")
        return images(1), item

    seen = []
    with pytest.raises(UserError, match="example 2 is damaged"):
        for about, _ in build(members()[:1], 1, 1).run(range(5), read, threads=2):
            seen.append(about)
    assert seen in ([], [0])


def test_classes_of_other_names_are_said_to_go_by_their_positions(capsys) -> None:
    named = member("named", 0, Preprocessing(size=14, resize=16), class_names=tuple("abcdef"))
    build([named], 1, 8, class_names=tuple("fedcba"))
    assert not capsys.readouterr().err  # the same names, in another order
    build([named], 1, 8, class_names=tuple("012345"))
    assert "named calls its classes otherwise than the data set" in capsys.readouterr().err
