"""Means and covariances in float32 that lose no digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.metrics.moments import (
    BOUND,
    CHUNK,
    Moments,
    Statistics,
    merge_statistics,
    statistics_of,
)
from googlenet_jax.runtime.sharding import create_mesh


def rows(count: int, width: int = 24, offset: float = 100.0) -> np.ndarray:
    """Features far from zero, of unequal spreads, two of them nearly equal."""
    random = np.random.default_rng(count)
    table = np.abs(random.normal(size=(count, width))) * np.logspace(-3, 1, width) + offset
    table[:, 1] = table[:, 0] + 1e-4 * table[:, 1]
    return table.astype(np.float32)


def stream(table: np.ndarray, batch: int) -> Moments:
    moments = Moments.zeros(table.shape[1])
    for start in range(0, len(table), batch):
        moments = moments.update(jnp.asarray(table[start : start + batch]))
    return moments


@pytest.mark.parametrize("batch", [1, 50, 3 * CHUNK + 7])
def test_float32_sums_equal_float64s_within_the_stated_bound(batch):
    table = rows(2000 if batch > 1 else 40)
    found, expected = stream(table, batch).statistics(), statistics_of(table)
    largest = np.abs(table - table[:batch].mean(0)).max(0)
    # The mean's own error, squared, is beyond the bound's digits.
    assert (np.abs(found.cov - expected.cov) <= 1.1 * BOUND * np.outer(largest, largest)).all()
    assert np.abs(found.mean - expected.mean).max() <= 1e-12 * 100
    assert found.count == len(table)


def test_rows_that_are_masked_out_do_not_count_whatever_they_hold():
    table = rows(64)
    padded = np.concatenate([table, np.full((8, table.shape[1]), np.nan, np.float32)])
    mask = np.arange(len(padded)) < len(table)
    found = Moments.zeros(table.shape[1]).update(jnp.asarray(padded), jnp.asarray(mask))
    expected = stream(table, 64).statistics()
    assert found.count == 64
    scale = np.sqrt(np.outer(np.diag(expected.cov), np.diag(expected.cov)))
    assert (np.abs(found.statistics().cov - expected.cov) <= 64 * BOUND * scale).all()


def test_a_value_that_is_not_finite_is_said_and_not_averaged():
    table = rows(10)
    table[3, 2] = np.inf
    with pytest.raises(UserError, match="1 of 10 images"):
        stream(table, 5).statistics()


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="two images"):
        stream(rows(1), 1).statistics()
    with pytest.raises(UserError, match="two images"):
        statistics_of(rows(1))


def test_parts_merge_to_the_whole_with_different_shifts():
    table = rows(300)
    table[200:] += 40
    parts = [table[:70], table[70:200], table[200:]]
    expected = statistics_of(table)
    merged = stream(parts[0], 64)
    for part in parts[1:]:
        merged = merged.merge(stream(part, 64))
    for found in (merged.statistics(), merge_statistics(map(statistics_of, parts))):
        assert np.abs(found.cov - expected.cov).max() <= 1e-9 * np.abs(expected.cov).max()
        assert np.abs(found.mean - expected.mean).max() <= 1e-11 * 100
        assert found.count == 300
    assert Moments.zeros(24).merge(stream(table, 64)).statistics().count == 300


def test_statistics_without_a_count_or_of_another_width_do_not_merge():
    one = statistics_of(rows(10))
    with pytest.raises(UserError, match="how many images"):
        merge_statistics([one, Statistics(one.mean, one.cov)])
    with pytest.raises(UserError, match="widths differ"):
        merge_statistics([one, statistics_of(rows(10, 5))])


def test_a_mesh_and_jit_change_nothing():
    table = rows(96)
    mesh = create_mesh(jax.devices()[:1])
    on_mesh = Moments.zeros(24, mesh).update(jnp.asarray(table))
    in_jit = jax.jit(lambda moments, values: moments.update(values))(Moments.zeros(24), table)
    expected = stream(table, 96).statistics().cov
    for found in (on_mesh, in_jit):
        assert np.abs(found.statistics().cov - expected).max() <= BOUND * expected.max()
