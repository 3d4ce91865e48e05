"""Which window is of which class, and what a batch draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection.measures import Objects
from googlenet_jax.detection.windows import draw, label_windows, object_windows, window_labels

BACKGROUND, LEFT_OUT = -1, -2


def overlap(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, height) * max(0.0, width)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def slow_label(box, objects):
    best, chosen = -1.0, None
    for i, other in enumerate(objects.boxes):
        shared = overlap(box, other)
        if objects.crowd[i] and shared / area(box) >= 0.5:
            return LEFT_OUT
        iou = shared / (area(box) + area(other) - shared)
        if iou > best:
            best, chosen = iou, i
    if best < 0.5:
        return BACKGROUND
    ignored = objects.difficult[chosen] or objects.crowd[chosen]
    return LEFT_OUT if ignored else objects.labels[chosen]


def random_boxes(rng, count):
    corner = rng.integers(0, 10, (count, 2)) * 4.0
    return np.concatenate([corner, corner + 4 * rng.integers(1, 8, (count, 2))], axis=1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_labels_equal_the_slow_form(seed, count):
    rng = np.random.default_rng(seed)
    flags = rng.random((2, count)) < 0.25
    objects = Objects(random_boxes(rng, count), rng.integers(0, 3, count), *flags)
    boxes = random_boxes(rng, 20)
    assert window_labels(boxes, objects).tolist() == [slow_label(box, objects) for box in boxes]


def one_object(difficult=False):
    no = np.zeros(1, bool)
    return Objects(np.array([[0, 0, 10, 10]], np.float32), np.array([4]), no | difficult, no)


def test_an_object_s_own_box_is_a_window_of_its_class():
    windows = label_windows(np.array([[0, 0, 10, 6], [0, 0, 10, 4]], np.float32), one_object())
    assert windows.objects.tolist() == [[0, 0, 10, 10], [0, 0, 10, 6]]
    assert windows.labels.tolist() == [4, 4]
    assert windows.background.tolist() == [[0, 0, 10, 4]]


def test_a_difficult_object_gives_no_windows():
    windows = label_windows(np.array([[0, 0, 10, 10.0]]), one_object(difficult=True))
    assert len(windows.objects) == len(windows.background) == 0


def test_an_image_without_objects_is_all_background():
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))
    windows = label_windows(np.array([[0, 0, 10, 10.0]]), nothing)
    assert (len(windows.objects), len(windows.background)) == (0, 1)


def test_the_draw_is_over_all_object_windows_that_have_a_background():
    apart = np.array([[50, 50, 60, 60.0]])
    split = [
        label_windows(np.concatenate([apart, [[0, 0, 10, 9.0]]]), one_object()),
        label_windows(np.zeros((0, 4)), one_object()),  # no background window
        label_windows(apart, one_object()),
    ]
    pairs, skipped = object_windows(split)
    assert pairs.tolist() == [[0, 0], [0, 1], [2, 0]]
    assert skipped == 1
    assert object_windows([])[0].shape == (0, 2)


@pytest.mark.parametrize(("available", "distinct"), [(5, 3), (2, 2)])
def test_background_windows_repeat_only_where_there_are_too_few(available, distinct):
    corner = 20 + 12 * np.arange(available)[:, None].repeat(2, 1)
    windows = label_windows(
        np.concatenate([corner, corner + 10], axis=1).astype(float), one_object()
    )
    drawn = draw(windows, 0, 3, 7, np.random.default_rng(0))
    assert drawn.labels.tolist() == [4, 7, 7, 7]
    assert drawn.boxes[0].tolist() == [0, 0, 10, 10]
    assert len({tuple(box) for box in drawn.boxes[1:].tolist()}) == distinct
