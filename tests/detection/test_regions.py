"""The warp of windows beside a slow, obvious form and beside OpenCV."""

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection.regions import to_canvas, warp, with_context

jit_warp = jax.jit(warp, static_argnames="side")


def slow_warp(image, window, side):
    """Adds up, for each place of the result, the pixels under it by the area that they share.

    image [H, W, C] without its canvas; beyond it lies zero.
    """

    def stretch(start, end, place):
        step = (end - start) / side
        middle, length = start + step * (place + 0.5), max(step, 1.0)
        return middle - length / 2, middle + length / 2

    result = np.zeros((side, side, image.shape[-1]))
    for row in range(side):
        top, bottom = stretch(window[0], window[2], row)
        for column in range(side):
            left, right = stretch(window[1], window[3], column)
            for y in range(image.shape[0]):
                for x in range(image.shape[1]):
                    height = max(0.0, min(y + 1, bottom) - max(y, top))
                    width = max(0.0, min(x + 1, right) - max(x, left))
                    share = height * width / ((bottom - top) * (right - left))
                    result[row, column] += share * image[y, x]
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_slow_form(seed):
    rng = np.random.default_rng(seed)
    canvas, side, windows = 12, 5, 3
    sizes = rng.integers(4, canvas + 1, (2, 2))
    images = np.zeros((2, canvas, canvas, 3), np.float32)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.normal(size=(height, width, 3))
        image[height:] = image[:, width:] = 99  # what the canvas holds beyond an image never shows
    corner = rng.uniform(-6, 10, (2, windows, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 18, corner.shape)], axis=-1)
    result = jit_warp(images, sizes.astype(np.float32), boxes.astype(np.float32), side=side)
    for m, (height, width) in enumerate(sizes):
        for k in range(windows):
            expected = slow_warp(images[m, :height, :width], boxes[m, k], side)
            np.testing.assert_allclose(result[m, k], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "name"), [(48, "INTER_LINEAR"), (6, "INTER_AREA"), (5, "INTER_AREA")]
)
def test_scales_as_opencv_does_on_the_host(size, name):
    image = np.random.default_rng(0).random((24, 24, 3)).astype(np.float32)
    window = np.array([[[2, 3, 22, 23]]], np.float32)
    result = warp(image[None], np.array([[24, 24]], np.float32), window, size)[0, 0]
    expected = cv2.resize(image[2:22, 3:23], (size, size), interpolation=getattr(cv2, name))
    # Where it grows, OpenCV repeats the crop's edge.
    inner = slice(2, -2) if name == "INTER_LINEAR" else slice(None)
    np.testing.assert_allclose(result[inner, inner], expected[inner, inner], atol=1e-5)


def test_the_box_fills_what_the_context_leaves():
    window = with_context(np.array([10.0, 20.0, 110.0, 60.0]))
    # 16 of 227 on each side, so that the box has 195: it grows by 227 / 195.
    np.testing.assert_allclose(window[2] - window[0], 100 * 227 / 195, rtol=1e-6)
    np.testing.assert_allclose(window[3] - window[1], 40 * 227 / 195, rtol=1e-6)
    np.testing.assert_allclose(window[:2] + window[2:], [120, 80], rtol=1e-6)


def test_a_box_without_area_still_is_a_window():
    window = np.asarray(with_context(np.array([5.0, 5.0, 5.0, 9.0])))
    assert window[2] - window[0] > 1


def test_an_image_that_is_too_large_is_scaled_to_its_canvas():
    canvas = to_canvas(np.full((30, 60, 1), 7, np.uint8), 40)
    assert canvas.pixels.shape == (40, 40, 3)
    assert canvas.size.tolist() == [20, 40]
    assert canvas.scale == pytest.approx(2 / 3)
    assert (canvas.pixels[:20] == 7).all() and not canvas.pixels[20:].any()
    small = to_canvas(np.full((30, 20, 3), 7, np.uint8), 40)
    assert (small.size.tolist(), small.scale) == ([30, 20], 1)
