"""KID, precision, recall, density and coverage on sets whose answers are known."""

import numpy as np
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.metrics.kernel import cubic, gaussian, kernel_distance, squared_mmd
from googlenet_jax.metrics.neighbours import neighbourhoods


def draw(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 6)) + shift).astype(np.float32)


def test_the_kernel_distance_is_its_definition():
    x, y = draw(5).astype(float), draw(7, 1.0, seed=1).astype(float)
    k = lambda a, b: (a @ b / 6 + 1) ** 3  # noqa: E731
    within = [
        np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
        for z in (x, y)
    ]
    across = np.mean([k(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_it_is_unbiased_and_sees_a_shift():
    equal = kernel_distance(draw(400), draw(400, seed=1), subsets=40, subset_size=100)
    apart = kernel_distance(draw(400), draw(400, 0.5, seed=1), subsets=40, subset_size=100)
    assert abs(equal.mean) < equal.std < apart.mean
    again = kernel_distance(draw(400), draw(400, 0.5, seed=1), subsets=40, subset_size=100)
    assert again == apart


def test_a_gaussian_kernel_is_one_at_no_distance():
    x = draw(4).astype(float)
    np.testing.assert_allclose(np.diag(gaussian(2.0)(x, x)), 1)
    assert gaussian(2.0)(x[:1], x[1:2]) == pytest.approx(np.exp(-((x[0] - x[1]) ** 2).sum() / 8))
    assert cubic(x, x).shape == (4, 4)


def test_a_set_smaller_than_a_subset_is_refused():
    with pytest.raises(UserError, match="subset_size: expected 2 to 20"):
        kernel_distance(draw(20), draw(30))
    with pytest.raises(UserError, match="6 and 5"):
        kernel_distance(draw(20), draw(20)[:, :5], subset_size=10)


def test_neighbourhoods_on_a_line():
    """Real images at 0, 1, …, 9: a ball reaches k to either side, further at the ends."""
    real = np.arange(10.0)[:, None]
    generated = np.concatenate([np.full(8, 4.1), np.full(8, 100.0)])[:, None]
    found = neighbourhoods(real, generated, k=2, k_density=2)
    assert found.precision == 0.5
    # The generated images' own balls are points: none holds a real one.
    assert found.recall == 0
    # 4.1 lies in the open balls of 4 (radius 1) alone and of those of radius 1 about 5: |4.1-5| <
    # 1.
    assert found.density == pytest.approx(0.5 * 2 / 2)
    assert found.coverage == 0.2


def test_neighbourhoods_equal_a_table_of_all_distances(monkeypatch):
    from googlenet_jax.metrics import neighbours

    monkeypatch.setattr(neighbours, "_BLOCK", 16)
    real, generated = draw(45), draw(50, 0.7, seed=3)
    table = np.linalg.norm(real[:, None].astype(float) - generated[None].astype(float), axis=-1)
    radius = lambda z, k: np.sort(  # noqa: E731
        np.linalg.norm(z[:, None].astype(float) - z[None].astype(float), axis=-1), axis=1
    )[:, k]
    inside = table < radius(real, 5)[:, None]
    found = neighbourhoods(real, generated)
    assert found.precision == (table <= radius(real, 3)[:, None]).any(0).mean()
    assert found.recall == (table <= radius(generated, 3)[None]).any(1).mean()
    assert found.density == pytest.approx(inside.sum(0).mean() / 5)
    assert found.coverage == inside.any(1).mean()
    assert 0 < found.precision < 1 and 0 < found.coverage < 1


def test_too_few_images_have_no_neighbours():
    with pytest.raises(UserError, match="more than 5 images"):
        neighbourhoods(draw(5), draw(50))
