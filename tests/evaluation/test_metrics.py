"""Metrics of classification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.evaluation.metrics import cross_entropy, label_ranks, top1, top5
from googlenet_jax.models.network import Output


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=8))
def test_rank_is_the_place_in_a_stable_sort(logits):
    order = np.argsort(-np.array(logits), kind="stable")
    ranks = label_ranks(jnp.tile(jnp.array(logits), (len(logits), 1)), jnp.arange(len(logits)))
    np.testing.assert_array_equal(ranks[order], np.arange(len(logits)))


def test_logits_that_are_not_numbers_hit_nothing():
    nan = float("nan")
    logits = jnp.array([[nan, nan, nan], [0, nan, 1], [0, 1, nan]])
    np.testing.assert_array_equal(label_ranks(logits, jnp.array([0, 1, 1])), [3, 3, 1])


def test_soft_targets_are_hit_where_the_heaviest_is():
    output = Output(jnp.array([[3.0, 2, 1, 0, -1, -2], [0.0, 5, 1, 2, 3, 4]]), {})
    soft = jnp.array([[0.6, 0.4, 0, 0, 0, 0], [0.7, 0.3, 0, 0, 0, 0]])
    assert top1(output, {"label": soft}).tolist() == [True, False]
    assert top5(output, {"label": soft}).tolist() == [True, False]
    assert top1(output, {"label": jnp.array([0, 0])}).tolist() == [True, False]


def test_top5_does_not_apply_below_five_classes():
    assert top5(Output(jnp.zeros((2, 4)), {}), {"label": jnp.zeros(2, int)}) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_cross_entropy_is_linear_in_the_targets(smoothing):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    first, second = jnp.array([0, 1, 2]), jnp.array([3, 4, 5])
    soft = 0.3 * jax.nn.one_hot(first, 6) + 0.7 * jax.nn.one_hot(second, 6)
    expected = 0.3 * cross_entropy(logits, first, smoothing) + 0.7 * cross_entropy(
        logits, second, smoothing
    )
    np.testing.assert_allclose(cross_entropy(logits, soft, smoothing), expected, rtol=1e-5)
