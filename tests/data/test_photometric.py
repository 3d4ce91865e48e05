"""Each distortion against the library or formula that it reproduces, on real photographs."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from googlenet_jax.data.photometric import (
    PCA_STD,
    PCA_VECTORS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    lighting,
)
from tests.data.photographs import photograph

IMAGES = np.stack([photograph(name)[100:164, 200:280] for name in ("china.jpg", "flower.jpg")] * 2)
FACTORS = np.float32([0.5, 0.83, 1.0, 1.5])
ENHANCERS = {
    adjust_brightness: ImageEnhance.Brightness,
    adjust_contrast: ImageEnhance.Contrast,
    adjust_saturation: ImageEnhance.Color,
}
KEY = jax.random.key(0)


@pytest.mark.parametrize("operation", ENHANCERS, ids=lambda operation: operation.__name__)
def test_blends_are_pillow_s(operation):
    result = np.asarray(jax.jit(operation)(IMAGES, FACTORS))
    for image, factor, ours in zip(IMAGES, FACTORS, result, strict=True):
        expected = np.asarray(ENHANCERS[operation](Image.fromarray(image)).enhance(float(factor)))
        # Pillow drops the fraction, and rounds the greys and their mean that it blends with.
        assert np.abs(ours - expected).max() <= 1 + abs(1 - factor) / 2
    np.testing.assert_allclose(result[2], IMAGES[2], atol=1e-4)  # factor 1 is the image


def test_hue_is_hsv_s():
    shifts = np.float32([-0.5, -0.2, 0.05, 0.31])
    result = np.asarray(jax.jit(adjust_hue)(IMAGES, shifts))
    for image, shift, ours in zip(IMAGES, shifts, result, strict=True):
        pixels = image.reshape(-1, 3)[::17]
        turned = []
        for pixel in pixels / 255:
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            turned.append(colorsys.hsv_to_rgb((hue + float(shift)) % 1, saturation, value))
        np.testing.assert_allclose(ours.reshape(-1, 3)[::17], 255 * np.array(turned), atol=2e-3)


def test_hue_leaves_greys_and_what_is_not_turned():
    np.testing.assert_allclose(adjust_hue(IMAGES, jnp.zeros(4)), IMAGES, atol=1e-3)
    greys = np.broadcast_to(
        np.arange(0, 256, 15, dtype=np.uint8)[None, :, None, None], (1, 18, 2, 3)
    )
    np.testing.assert_array_equal(adjust_hue(greys, jnp.full(1, 0.3)), greys)


def reference(image, amounts, order):
    """Pillow's operations and colorsys's, one after the other, without Pillow's rounding in
    between."""
    image = image.astype(np.float64)

    def grey(image):
        return (image @ [0.299, 0.587, 0.114])[..., None]

    def turn(pixel, amount):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value)

    for number in order:
        amount = amounts[number]
        if number == 3:
            image = np.array([[turn(pixel, amount) for pixel in row] for row in image / 255]) * 255
        else:
            other = (0, grey(image).mean(), grey(image))[number]
            image = (other + (image - other) * amount).clip(0, 255)
    return image


def test_each_image_is_distorted_in_an_order_and_by_amounts_of_its_own():
    """The amounts and the order are found again in the result: one of the 24 orders gives it, and
    no other one's is drawn for all."""
    images = np.tile(IMAGES[:1, ::8, ::8], (24, 1, 1, 1))
    options = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    result = np.asarray(
        jax.jit(lambda batch: color_jitter(batch, KEY, **options))({"image": images})["image"]
    )
    factor_key, _ = jax.random.split(KEY)
    amounts = np.array([1, 1, 1, 0]) + np.array(list(options.values())) * np.asarray(
        jax.random.uniform(factor_key, (24, 4), jnp.float32, -1, 1)
    )
    orders = []
    for image, row, ours in zip(images, amounts, result, strict=True):
        errors = {
            order: np.abs(reference(image, row, order) - ours).max()
            for order in itertools.permutations(range(4))
        }
        orders.append(min(errors, key=errors.get))
        assert errors[orders[-1]] < 0.01
    assert len(set(orders)) > 10
    assert len({order[0] for order in orders}) == 4


def test_orders_and_amounts_are_uniform():
    grey = np.full((3000, 1, 1, 3), 100, np.uint8)
    bright = (
        np.asarray(color_jitter({"image": grey}, KEY, brightness=0.5)["image"])[:, 0, 0, 0] / 100
    )
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(bright, quantiles), 0.5 + quantiles, atol=0.04)


def test_what_is_left_out_changes_nothing_and_draws_the_same():
    everything = color_jitter({"image": IMAGES}, KEY)
    np.testing.assert_array_equal(everything["image"], IMAGES)
    assert everything["image"].dtype == jnp.float32
    alone = color_jitter({"image": IMAGES}, KEY, brightness=0.5)["image"]
    factor_key, _ = jax.random.split(KEY)
    factors = 1 + 0.5 * jax.random.uniform(factor_key, (4, 4), jnp.float32, -1, 1)[:, 0]
    np.testing.assert_allclose(alone, adjust_brightness(IMAGES, factors), atol=1e-4)


def test_lighting_adds_one_colour_to_an_image_along_the_principal_components():
    images = np.full((4000, 2, 1, 3), 128, np.uint8)
    noise = np.asarray(lighting({"image": images}, KEY, std=0.1)["image"]) - 128.0
    assert (noise[:, 0] == noise[:, 1]).all()
    colours = noise[:, 0, 0]
    vectors = np.array(PCA_VECTORS)
    np.testing.assert_allclose(
        vectors.T @ vectors, np.eye(3), atol=1e-3
    )  # orthonormal, so the components can be read off
    np.testing.assert_allclose((colours @ vectors).std(0), 25.5 * np.array(PCA_STD), rtol=0.05)
    np.testing.assert_allclose(colours.mean(0), 0, atol=0.2)
    covariance = vectors @ np.diag((25.5 * np.array(PCA_STD)) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(colours.T), covariance, atol=1.0)


def test_results_stay_within_0_and_255_and_keep_the_rest_of_the_batch():
    black_and_white = np.stack([np.zeros((3, 3, 3)), np.full((3, 3, 3), 255)]).astype(np.uint8)
    batch = {"image": np.repeat(black_and_white, 50, 0), "label": np.arange(100)}
    jitter = jax.jit(
        lambda image: color_jitter(
            {"image": image}, KEY, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5
        )
    )
    for distorted in (lighting(batch, KEY, std=1.0), batch | jitter(batch["image"])):
        assert distorted["image"].min() >= 0 and distorted["image"].max() <= 255
        assert distorted["label"] is batch["label"]
