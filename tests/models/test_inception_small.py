"""The small Inception's first layer: it whitens photographs without having seen any."""

import numpy as np
from sklearn.datasets import load_sample_image

from googlenet_jax.models.inception_small import Whitening


def test_the_first_filters_whiten_photographs():
    photograph = load_sample_image("china.jpg")[::4, ::4].astype(np.float64)  # as smooth as CIFAR's
    image = (photograph - photograph.mean((0, 1))) / photograph.std((0, 1))
    height, width, _ = image.shape
    patches = [image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    patches = np.stack(patches, 2).reshape(-1, 27)
    kernel = np.asarray(Whitening()(None, (3, 3, 3, 24)), np.float64).reshape(27, 24)
    np.testing.assert_allclose(kernel[:, 0::2], -kernel[:, 1::2])
    seen = (patches @ kernel[:, ::2]).std(0)
    assert seen.max() / seen.min() < 5
    before = np.sqrt(np.linalg.eigvalsh(np.cov(patches.T))[::-1][:12])
    assert before.max() / before.min() > 12


def test_a_pixels_own_filters_and_more_than_there_are():
    kernel = np.asarray(Whitening()(None, (1, 1, 1, 3)))
    np.testing.assert_allclose(kernel.ravel(), np.array([1, -1, 1]) / np.sqrt(1.01), rtol=1e-5)
