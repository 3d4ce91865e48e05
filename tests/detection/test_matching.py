"""MultiBox's priors and loss beside slow, obvious forms."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection.matching import kmeans_priors, matching_loss
from googlenet_jax.errors import UserError

loss_of = jax.jit(matching_loss)


def slow_loss(locations, logits, objects, alpha=0.3):
    """The loss under every way to give each object a prediction of its own; the smallest."""
    best = (math.inf, None, None)
    confidences = 1 / (1 + np.exp(-logits))
    for chosen in itertools.permutations(range(len(locations)), len(objects)):
        location = sum(
            alpha / 2 * ((locations[i] - g) ** 2).sum()
            for i, g in zip(chosen, objects, strict=True)
        )
        confidence = -sum(math.log(c if i in chosen else 1 - c) for i, c in enumerate(confidences))
        best = min(best, (location + confidence, location, confidence))
    return best[1:]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_loss_is_that_of_the_best_matching(seed, count):
    rng = np.random.default_rng(seed)
    locations, objects = rng.random((5, 4)), rng.random((3, 4))
    logits = rng.normal(size=5)
    valid = rng.permutation(np.arange(3) < count)
    found = loss_of(*(x.astype(np.float32) for x in (locations, logits, objects)), valid)
    expected = slow_loss(locations, logits, objects[valid])
    np.testing.assert_allclose(sum(found), sum(expected), rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_locations_decide_where_confidences_are_equal():
    locations = np.array([[0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6], [0.8, 0.8, 1, 1]], np.float32)
    objects = locations[[2, 0]]
    location, confidence = loss_of(locations, np.zeros(3, np.float32), objects, np.ones(2, bool))
    assert location == 0
    assert confidence == pytest.approx(3 * math.log(2))


def test_gradient_pulls_the_matched_prediction_alone():
    locations = np.array([[0.1, 0.1, 0.2, 0.2], [0.7, 0.7, 0.8, 0.8]], np.float32)
    objects = np.array([[0.6, 0.7, 0.8, 0.8]], np.float32)
    gradient = jax.jit(
        jax.grad(lambda x: matching_loss(x, np.zeros(2, np.float32), objects, np.ones(1, bool))[0])
    )
    np.testing.assert_allclose(gradient(locations), [[0, 0, 0, 0], [0.03, 0, 0, 0]], atol=1e-6)


def slow_kmeans(boxes, centres):
    """Lloyd's algorithm from the given centres until nothing moves."""
    while True:
        nearest = [
            min(range(len(centres)), key=lambda k: ((box - centres[k]) ** 2).sum()) for box in boxes
        ]
        moved = np.array([boxes[np.array(nearest) == k].mean(axis=0) for k in range(len(centres))])
        if np.allclose(moved, centres, atol=1e-6):
            return moved
        centres = moved


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_priors_are_where_lloyd_s_algorithm_rests(seed, count):
    rng = np.random.default_rng(seed)
    boxes = (rng.random((4, 4))[rng.integers(0, 4, 60)] + 0.01 * rng.normal(size=(60, 4))).astype(
        np.float32
    )
    priors = kmeans_priors(boxes, count, seed=1)
    assert priors.shape == (count, 4)
    np.testing.assert_allclose(
        slow_kmeans(boxes.astype(float), priors.astype(float)), priors, atol=1e-4
    )
    assert [tuple(p) for p in priors] == sorted(tuple(p) for p in priors)


def test_well_separated_boxes_are_found():
    corners = np.array([[0, 0, 0.1, 0.1], [0.4, 0.4, 0.6, 0.6], [0.1, 0.7, 0.2, 1.0]])
    boxes = np.repeat(corners, 20, axis=0) + 1e-3 * np.random.default_rng(0).normal(size=(60, 4))
    expected = sorted(tuple(x) for x in corners)
    np.testing.assert_allclose(kmeans_priors(boxes, 3), expected, atol=1e-3)


def test_more_priors_than_boxes_are_refused():
    with pytest.raises(UserError, match=r"multibox\.boxes: 5 priors .* found 2"):
        kmeans_priors(np.repeat([[0, 0, 1, 1], [0, 0, 0.5, 1]], 4, axis=0), 5)
