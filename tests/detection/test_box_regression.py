"""Box regression: its targets, its inverse and its fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection.box_regression import (
    Regression,
    fit,
    load_regression,
    moved,
    offsets,
    pairs_of,
    save_regression,
)
from googlenet_jax.detection.measures import Objects
from googlenet_jax.errors import UserError


def random_boxes(rng, count):
    corner = rng.uniform(0, 50, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 60, (count, 2))], axis=1)


def test_targets_of_a_box_worked_by_hand():
    # 10 × 20 pixels around (5, 10), to 20 × 20 around (10, 20).
    found = offsets(np.array([[0, 0, 10, 20.0]]), np.array([[0, 10, 20, 30.0]]))
    np.testing.assert_allclose(found, [[0.5, 0.5, np.log(2), 0]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_moving_by_the_offsets_reaches_the_objects(seed):
    rng = np.random.default_rng(seed)
    boxes, objects = random_boxes(rng, 5), random_boxes(rng, 5)
    np.testing.assert_allclose(moved(boxes, offsets(boxes, objects)), objects, atol=1e-9)


def test_pairs_are_the_windows_that_overlap_an_object_by_more_than_0_6():
    no = np.zeros(2, bool)
    boxes = np.array([[0, 0, 10, 10], [100, 100, 120, 120]], np.float64)
    objects = Objects(boxes, np.array([3, 1]), np.array([False, True]), no)
    windows = np.array([[0, 0, 10, 6.1], [0, 0, 10, 5.9], [100, 100, 120, 120]])
    pairs = pairs_of(windows, np.arange(6.0).reshape(3, 2), objects)
    assert pairs.labels.tolist() == [3] and pairs.features.tolist() == [[0, 1]]


def test_a_class_learns_how_its_windows_are_off():
    rng = np.random.default_rng(0)
    objects = random_boxes(rng, 4000)
    by = rng.uniform(-0.1, 0.1, (4000, 4))
    boxes = moved(objects, -by)
    no = np.zeros(4000, bool)
    # The features tell the offsets, the class says with which sign.
    labels = rng.integers(0, 2, 4000)
    told = offsets(boxes, objects) * np.where(labels, 1, -1)[:, None]
    pairs = [
        pairs_of(
            boxes[i][None],
            told[i][None],
            Objects(objects[i][None], labels[i : i + 1], no[:1], no[:1]),
        )
        for i in range(4000)
    ]
    regression = fit(pairs, 3)
    predicted = regression(told)
    for label in (0, 1):
        own = labels == label
        better = moved(boxes[own], predicted[label][own])
        assert np.abs(better - objects[own]).mean() < 0.3 * np.abs(boxes[own] - objects[own]).mean()
    np.testing.assert_array_equal(predicted[2], 0)  # a class without pairs moves nothing


def test_it_is_kept_in_the_run_s_folder(tmp_path):
    assert load_regression(tmp_path) is None
    save_regression(
        tmp_path, Regression(np.ones((2, 3, 4), np.float32), np.zeros((2, 4), np.float32))
    )
    again = load_regression(tmp_path)
    assert again is not None and again.weights.shape == (2, 3, 4)
    (tmp_path / "box_regression.npz").write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a whole file"):
        load_regression(tmp_path)


def test_nothing_to_fit_is_said():
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))
    with pytest.raises(UserError, match=r"no proposal overlaps an object by more than 0\.6"):
        fit([pairs_of(np.array([[0, 0, 1, 1.0]]), np.ones((1, 2)), nothing)], 2)
