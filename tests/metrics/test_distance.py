"""Fréchet's distance against closed forms and the features themselves."""

import numpy as np
import pytest
import scipy.linalg

from googlenet_jax.errors import UserError
from googlenet_jax.metrics import Statistics, frechet_distance, statistics_of


def test_of_diagonal_covariances_it_is_the_sum_over_axes():
    a, b = np.array([4.0, 9.0, 0.0]), np.array([1.0, 25.0, 16.0])
    one, other = Statistics(np.zeros(3), np.diag(a)), Statistics(np.arange(3.0), np.diag(b))
    expected = 5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-14)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-14)


def test_it_is_scipys_square_root_of_the_product():
    random = np.random.default_rng(0)
    one = statistics_of(random.normal(size=(500, 30)) @ random.normal(size=(30, 30)))
    other = statistics_of(random.normal(size=(400, 30)) * np.logspace(-3, 1, 30) + 0.5)
    root = scipy.linalg.sqrtm(one.cov @ other.cov).real
    step = one.mean - other.mean
    expected = step @ step + np.trace(one.cov + other.cov - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)


def test_fewer_examples_than_features_lose_no_digit():
    """The features themselves give the trace as singular values, without a covariance."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(12, 40)), random.normal(size=(25, 40)) + 0.1
    one, other = statistics_of(x), statistics_of(y)
    roots = [(t - t.mean(0)) / np.sqrt(len(t) - 1) for t in (x, y)]
    step = one.mean - other.mean
    shared = scipy.linalg.svdvals(roots[0] @ roots[1].T).sum()
    expected = step @ step + np.trace(one.cov) + np.trace(other.cov) - 2 * shared
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [10, 400])
def test_a_set_is_no_distance_from_itself(count):
    one = statistics_of(np.random.default_rng(2).normal(size=(count, 40)) * np.logspace(-6, 1, 40))
    assert frechet_distance(one, one) <= 1e-11 * np.trace(one.cov)


def test_other_widths_and_values_that_are_not_finite_are_refused():
    one = Statistics(np.zeros(3), np.eye(3))
    with pytest.raises(UserError, match="3 and 2"):
        frechet_distance(one, Statistics(np.zeros(2), np.eye(2)))
    with pytest.raises(UserError, match="finite"):
        frechet_distance(one, Statistics(np.full(3, np.nan), np.eye(3)))
    assert frechet_distance(one, Statistics(np.zeros(3), np.zeros((3, 3)))) == 3
