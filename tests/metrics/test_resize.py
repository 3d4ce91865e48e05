"""Each resize against its library, and the host against the device."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from googlenet_jax.errors import UserError
from googlenet_jax.metrics.resize import RESIZES, normalize, resize

SIZES = [(32, 32), (28, 45), (299, 299), (640, 301), (7, 1)]
TOLERANCE = 1e-4  # of 255; float32 itself holds 1.5e-5


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (2, height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_torch_is_interpolate(size):
    torch = pytest.importorskip("torch")
    images = pixels(*size)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(),
        size=(299, 299),
        mode="bilinear",
        align_corners=False,
    )
    assert np.abs(resize(images, "torch") - theirs.permute(0, 2, 3, 1).numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_clean_is_pillows_bicubic_of_each_channel(size):
    images = pixels(*size)
    theirs = [
        [
            np.asarray(
                Image.fromarray(image[..., c].astype(np.float32)).resize(
                    (299, 299), Image.Resampling.BICUBIC
                )
            ).clip(0, 255)
            for c in range(3)
        ]
        for image in images
    ]
    expected = np.array(theirs).transpose(0, 2, 3, 1)
    assert np.abs(resize(images, "clean") - expected).max() <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_tf1_measures_from_the_first_pixels_centre(size):
    """TensorFlow 1's kernel, pixel by pixel: resize_bilinear without half_pixel_centers."""
    images = pixels(*size).astype(np.float64)
    height, width = size

    def taps(old: int) -> list[tuple[int, int, float]]:
        places = [np.float32(i) * (np.float32(old) / np.float32(299)) for i in range(299)]
        return [(int(p), min(int(p) + 1, old - 1), float(p) - int(p)) for p in places]

    expected = np.empty((2, 299, 299, 3))
    columns = taps(width)
    for i, (top, bottom, down) in enumerate(taps(height)):
        for j, (left, right, along) in enumerate(columns):
            upper = images[:, top, left] * (1 - along) + images[:, top, right] * along
            lower = images[:, bottom, left] * (1 - along) + images[:, bottom, right] * along
            expected[:, i, j] = upper * (1 - down) + lower * down
    assert np.abs(resize(images.astype(np.uint8), "tf1") - expected).max() <= TOLERANCE


@pytest.mark.parametrize("method", RESIZES)
def test_the_host_and_the_device_do_the_same(method):
    images = pixels(50, 33)
    device = resize(jnp.asarray(images), method)
    assert device.dtype == jnp.float32
    assert np.abs(resize(images, method) - np.asarray(device)).max() <= TOLERANCE


def test_the_three_differ_and_a_fourth_is_refused():
    images = pixels(32, 32)
    found = [resize(images, method) for method in RESIZES]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[one] - found[other]).mean() > 1
    with pytest.raises(UserError, match="did you mean 'clean'"):
        resize(images, "cleen")


def test_each_has_its_packages_normalisation():
    assert normalize(np.float64(255), "torch") == 1
    assert normalize(np.float64(255), "tf1") == normalize(np.float64(255), "clean") == 127 / 128
