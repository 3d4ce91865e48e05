"""The config's fields of the input: what they do to the batches and the step, and what they
refuse."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.data.augment import apply_transforms, device_transforms, mix
from googlenet_jax.data.photometric import color_jitter, lighting
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Output
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.config import MAY_CHANGE, resolve
from googlenet_jax.training.losses import weighted_cross_entropy

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("augment.interpolation", "bilinaer", "did you mean 'bilinear'"),
        ("augment.hue", 0.6, "from 0 to 0.5"),
        ("augment.brightness", -0.1, "from 0 to 1"),
        ("augment.lighting", -1.0, "at least 0"),
        ("data.workers", -1, "from 0 to"),
        ("data.on_bad_image", "skp", "did you mean 'skip'"),
        ("data.bad_image_limit", 2.5, "whole number"),
    ],
)
def test_an_impossible_value_is_named(field, value, message):
    config = CLASSIFICATION.defaults()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{field}: .*{message}"):
        resolve(config)


def test_workers_and_what_becomes_of_bad_images_may_change_on_resuming():
    assert {"data.workers", "data.on_bad_image", "data.bad_image_limit"} <= MAY_CHANGE
    assert not {"data.exact_decoding", "augment.interpolation", "augment.hue"} & MAY_CHANGE


def test_distortions_come_after_the_flip_and_draw_by_their_names():
    options = {"dtype": jnp.float32, "num_classes": 5, "mirror": True}
    jitter = {"brightness": 0.3, "contrast": 0.0, "saturation": 0.5, "hue": 0.1}
    preprocessing = Preprocessing(size=6, resize=6)
    transforms = device_transforms(preprocessing, jitter=jitter, lighting_std=0.1, **options)
    assert [name for name, _ in transforms] == ["flip", "color_jitter", "lighting", "normalize"]
    batch = apply_transforms(transforms, {"image": jnp.asarray(IMAGES)}, KEY)
    flipped = apply_transforms(transforms[:1], {"image": jnp.asarray(IMAGES)}, KEY)
    jittered = color_jitter(flipped, jax.random.fold_in(KEY, zlib.crc32(b"color_jitter")), **jitter)
    lit = lighting(jittered, jax.random.fold_in(KEY, zlib.crc32(b"lighting")), std=0.1)["image"]
    expected = (lit - jnp.asarray(preprocessing.mean)) / jnp.asarray(preprocessing.std)
    np.testing.assert_allclose(batch["image"], expected, atol=1e-4)


def test_defaults_distort_nothing():
    config = CLASSIFICATION.defaults().augment
    jitter = {name: config[name] for name in ("brightness", "contrast", "saturation", "hue")}
    preprocessing = Preprocessing(size=6, resize=6)
    transforms = device_transforms(
        preprocessing, dtype=jnp.float32, num_classes=5, jitter=jitter, lighting_std=config.lighting
    )
    assert [name for name, _ in transforms] == ["normalize"]
    batch = apply_transforms(transforms, {"image": jnp.asarray(IMAGES)}, KEY)
    np.testing.assert_array_equal(batch["image"], normalize(jnp.asarray(IMAGES), preprocessing))


def test_an_example_of_weight_0_moves_neither_the_loss_nor_its_gradient():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)
    labels, weight = jnp.array([0, 1, 2, 3]), jnp.array([1.0, 0.0, 1.0, 1.0])
    kept = np.array([0, 2, 3])

    def loss(logits, batch):
        return weighted_cross_entropy(Output(logits, {"aux1": 2 * logits}), batch)[0]

    value, gradient = jax.value_and_grad(loss)(logits, {"label": labels, "weight": weight})
    expected, kept_gradient = jax.value_and_grad(loss)(logits[kept], {"label": labels[kept]})
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[kept], kept_gradient, rtol=1e-5)
    assert not gradient[1].any()
    assert loss(logits, {"label": labels, "weight": jnp.zeros(4)}) == 0


def test_what_is_mixed_with_an_example_of_weight_0_has_none():
    batch = {
        "image": jnp.asarray(IMAGES, jnp.float32),
        "label": jnp.arange(4),
        "weight": jnp.array([1.0, 0.0, 1.0, 1.0]),
    }
    mixed = functools.partial(mix, num_classes=5, mixup=0.5, cutmix=0.0)(batch, KEY)
    assert mixed["weight"].tolist() == [1.0, 0.0, 0.0, 1.0]
