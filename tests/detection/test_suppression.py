"""Suppression on the device beside a slow, obvious form."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection.suppression import suppress


def overlap(a, b):
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - height * width
    return height * width / union if union else 0.0


def slow_suppress(boxes, scores, threshold):
    """Goes through the boxes from the best down and keeps those that no kept one overlaps."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if scores[i] > -np.inf and all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_keeps_what_the_slow_form_keeps(seed, one_set):
    rng = np.random.default_rng(seed)
    classes, count = 3, 24
    corner = rng.integers(0, 10, (1 if one_set else classes, count, 2)) * 8.0
    boxes = np.concatenate([corner, corner + 8 * rng.integers(0, 6, corner.shape)], axis=-1)
    scores = rng.integers(0, 12, (classes, count)) / 12
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    indices, kept = suppress(boxes.astype(np.float32), scores.astype(np.float32), count=count)
    for label in range(classes):
        expected = slow_suppress(boxes[0 if one_set else label], scores[label], 0.3)
        finite = np.isfinite(kept[label])
        assert np.asarray(indices[label])[finite].tolist() == expected
        np.testing.assert_allclose(np.asarray(kept[label])[finite], scores[label][expected])


def test_a_smaller_count_keeps_the_best():
    boxes = np.array([[[0, 100 * i, 50, 100 * i + 50] for i in range(6)]], np.float32)
    scores = np.array([[0.1, 0.9, 0.3, 0.7, 0.5, 0.2]], np.float32)
    indices, _ = suppress(boxes, scores, count=3)
    assert indices.tolist() == [[1, 3, 4]]
