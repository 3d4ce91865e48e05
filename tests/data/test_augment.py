"""Augmentation on the device: what it does to images and labels, and that each draws for itself."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.data.augment import (
    AUGMENTATIONS,
    apply_transforms,
    device_transforms,
    flip,
    mix,
    translate,
)
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError

PREPROCESSING = Preprocessing(size=4, resize=4)
KEY = jax.random.key(0)


def batch_of(examples=6, size=8, classes=5):
    """Each image is of one value, that of its example, and so is its label."""
    images = np.broadcast_to(
        np.arange(examples, dtype=np.float32)[:, None, None, None], (examples, size, size, 3)
    )
    return {
        "image": jnp.asarray(images),
        "label": jnp.arange(examples) % classes,
        "index": jnp.arange(examples),
    }


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (400, 3, 5, 3), np.uint8))
    flipped = np.asarray(jax.jit(flip)({"image": images}, KEY)["image"])
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 200) < 60  # six standard deviations
    assert (flipped != np.asarray(flip({"image": images}, jax.random.key(1))["image"])).any()


def test_mixup_mixes_each_image_and_its_label_with_the_next_by_one_share():
    batch = batch_of()
    mixed = jax.jit(functools.partial(mix, num_classes=5, mixup=1.0, cutmix=0.0))(batch, KEY)
    (share,) = {
        round(float(share), 5)
        for share in mixed["image"][1:, 0, 0, 0] - batch["image"][:-1, 0, 0, 0]
    }
    assert 0 < share < 1
    own, other = (
        jax.nn.one_hot(batch["label"], 5),
        jnp.roll(jax.nn.one_hot(batch["label"], 5), 1, axis=0),
    )
    np.testing.assert_allclose(mixed["label"], share * own + (1 - share) * other, atol=1e-5)
    assert (mixed["index"] == batch["index"]).all()


def test_mixup_shares_have_the_beta_distributions_mean_and_variance():
    """Beta(α, α): mean ½, variance 1 / (4 (2α + 1))."""
    draw = jax.jit(
        lambda key: mix(batch_of(2, 1), key, num_classes=2, mixup=0.5, cutmix=0.0)["label"][0, 0]
    )
    shares = np.array([draw(key) for key in jax.random.split(KEY, 800)])
    np.testing.assert_allclose((shares.mean(), shares.var()), (0.5, 1 / 8), atol=0.04)


@pytest.mark.parametrize("number", range(5))
def test_cutmix_replaces_one_box_and_weighs_the_labels_by_its_pixels(number):
    batch = batch_of()
    mixed = mix(batch, jax.random.key(number), num_classes=5, mixup=0.0, cutmix=1.0)
    images, others = np.asarray(batch["image"]), np.roll(batch["image"], 1, axis=0)
    replaced = (mixed["image"] == others).all(-1)
    np.testing.assert_array_equal(mixed["image"], np.where(replaced[..., None], others, images))
    assert (replaced == replaced[0]).all()  # one box for the whole batch
    rows, columns = np.nonzero(replaced[0])
    if len(rows):
        assert replaced[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    share = 1 - replaced[0].mean()
    labels = jax.nn.one_hot(batch["label"], 5)
    np.testing.assert_allclose(
        mixed["label"], share * labels + (1 - share) * jnp.roll(labels, 1, axis=0), atol=1e-6
    )


def test_with_both_a_coin_decides_for_each_batch():
    run = jax.jit(functools.partial(mix, num_classes=5, mixup=1.0, cutmix=1.0))
    cut = [
        bool((run(batch_of(), key)["image"] % 1 == 0).all()) for key in jax.random.split(KEY, 60)
    ]
    assert 10 < sum(cut) < 50


def test_soft_targets_are_mixed_as_they_are():
    soft = jnp.full((6, 5), 0.2)
    mixed = mix(batch_of() | {"label": soft}, KEY, num_classes=5, mixup=1.0, cutmix=0.0)
    np.testing.assert_allclose(mixed["label"], soft, rtol=1e-6)


def test_without_augmentation_images_are_normalized_and_labels_left():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    transforms = device_transforms(PREPROCESSING, dtype=jnp.float32, num_classes=3)
    batch = apply_transforms(
        transforms, {"image": jnp.asarray(images), "label": jnp.array([0, 2])}, KEY
    )
    np.testing.assert_array_equal(batch["image"], normalize(jnp.asarray(images), PREPROCESSING))
    assert batch["label"].tolist() == [0, 2]


def test_the_flip_draws_from_the_key_itself_and_the_others_from_one_of_their_name():
    """The flips of a run are those of every version before; another augmentation changes none of
    them.
    """
    keys = {}

    def remember(batch, key):
        keys["remember"] = jax.random.key_data(key).tolist()
        return batch

    AUGMENTATIONS.register("remember", remember)
    options = {"dtype": jnp.float32, "num_classes": 5, "mirror": True}
    transforms = device_transforms(PREPROCESSING, names=("remember",), mixup=0.2, **options)
    assert [name for name, _ in transforms] == ["flip", "remember", "normalize", "mix"]
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8))
    }
    batch["label"] = jnp.arange(6) % 5
    flipped = apply_transforms(transforms[:2], batch, KEY)
    np.testing.assert_array_equal(flipped["image"], flip(batch, KEY)["image"])
    expected = jax.random.fold_in(KEY, zlib.crc32(b"remember"))
    assert keys["remember"] == jax.random.key_data(expected).tolist()


def test_an_unknown_augmentation_is_named():
    with pytest.raises(UserError, match=r"found 'jiter'"):
        device_transforms(PREPROCESSING, dtype=jnp.float32, num_classes=5, names=("jiter",))


def test_translate_moves_each_image_by_itself_and_mirrors_at_the_edges():
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 7, 3), np.uint8)
    moved = np.asarray(jax.jit(translate)({"image": jnp.asarray(images)}, KEY)["image"])
    assert moved.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [
        [
            (y, x)
            for y in range(5)
            for x in range(5)
            if (padded[i, y : y + 6, x : x + 7] == moved[i]).all()
        ]
        for i in range(60)
    ]
    assert all(len(each) == 1 for each in places)
    assert {y for ((y, _),) in places} == {x for ((_, x),) in places} == set(range(5))
