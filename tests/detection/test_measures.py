"""Average precision: by hand, by a slow form, and beside pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.detection import measures
from googlenet_jax.detection.measures import Detections, Objects


def objects(boxes, labels=None, difficult=None, crowd=None, outlines=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    no = np.zeros(len(boxes), bool)
    return Objects(
        boxes,
        np.array(labels if labels is not None else np.zeros(len(boxes)), np.int64),
        no if difficult is None else np.array(difficult, bool),
        no if crowd is None else np.array(crowd, bool),
        outlines,
    )


def detections(boxes, scores, labels=None):
    labels = np.zeros(len(scores), np.int64) if labels is None else np.array(labels, np.int64)
    return Detections(np.array(boxes, np.float64).reshape(-1, 4), labels, np.array(scores, float))


SQUARE, AWAY, FAR = [0, 0, 100, 100], [200, 200, 300, 300], [500, 500, 600, 600]


def by_hand_case():
    """Three objects; hit, false, hit, then a second detection of the first object."""
    truth = [objects([SQUARE, AWAY]), objects([SQUARE])]
    found = [
        detections([SQUARE, FAR, [0, 0, 100, 90]], [0.9, 0.8, 0.6]),
        detections([[0, 0, 100, 60]], [0.7]),
    ]
    return truth, found  # recall 1/3, 1/3, 2/3, 2/3; precision 1, 1/2, 2/3, 1/2


def test_voc_s_two_ways_on_a_case_worked_by_hand():
    truth, found = by_hand_case()
    # Recalls 0, .1, .2, .3 have precision 1; .4, .5, .6 have 2/3; the others 0.
    assert measures.voc2007(truth, found, 1)[0] == pytest.approx((4 + 3 * 2 / 3) / 11)
    assert measures.voc2010(truth, found, 1)[0] == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)


def test_eleven_points_reach_a_recall_that_equals_one_of_them():
    truth = [objects([[0, 100 * i, 50, 100 * i + 50] for i in range(10)])]
    found = [detections(truth[0].boxes[:3], [3, 2, 1])]
    assert measures.voc2007(truth, found, 1)[0] == pytest.approx(4 / 11)


def test_difficult_objects_are_neither_hit_nor_miss():
    truth = [objects([SQUARE, AWAY], difficult=[True, False])]
    found = [detections([SQUARE, SQUARE, AWAY], [0.9, 0.8, 0.7])]
    for measure in (measures.voc2007, measures.voc2010):
        assert measure(truth, found, 1)[0] == pytest.approx(1)


def test_a_class_without_objects_has_no_ap():
    truth, found = [objects([SQUARE])], [detections([SQUARE], [1.0])]
    for measure in (measures.voc2007, measures.voc2010, measures.ilsvrc):
        np.testing.assert_array_equal(measure(truth, found, 3), [1, np.nan, np.nan])
    assert measures.mean(np.array([1, np.nan])) == 1
    assert measures.coco(truth, found, 3)["ap"] == 1
    assert np.isnan(measures.coco([objects([])], [detections([], [])], 1)["ap"])


def test_ilsvrc_s_threshold_gives_way_for_small_objects():
    # 10 × 10 pixels: 100 / 400 = 0.25. The detection covers 30 of the 100: IoU 0.3.
    truth, found = [objects([[0, 0, 10, 10]])], [detections([[0, 0, 10, 3]], [1.0])]
    assert measures.ilsvrc(truth, found, 1)[0] == 1
    assert measures.voc2010(truth, found, 1)[0] == 0
    # 100 × 100: min(0.5, 0.826), so that 0.5 stands.
    assert measures.ilsvrc([objects([SQUARE])], [detections([[0, 0, 100, 49]], [1.0])], 1)[0] == 0


def test_ilsvrc_gives_a_detection_the_best_object_that_is_still_free():
    first, second = [0, 0, 100, 100], [0, 30, 100, 130]
    # Both detections overlap the first object most; the second one has 70 / 130 of the other.
    truth, found = [objects([first, second])], [detections([first, first], [0.9, 0.8])]
    assert measures.ilsvrc(truth, found, 1)[0] == 1
    assert measures.voc2010(truth, found, 1)[0] == pytest.approx(0.5)


def test_no_detections_are_no_hits():
    truth, found = [objects([SQUARE])], [detections([], [])]
    for measure in (measures.voc2007, measures.voc2010, measures.ilsvrc):
        assert measure(truth, found, 1)[0] == 0
    assert measures.coco(truth, found, 1)["ap"] == 0


def test_recall_counts_objects_that_a_proposal_meets():
    truth = [objects([SQUARE, AWAY], difficult=[False, True]), objects([SQUARE]), objects([FAR])]
    proposals = [np.array([[0, 0, 100, 50]]), np.array([[0, 0, 100, 49.9]]), np.zeros((0, 4))]
    assert measures.recall(truth, proposals) == pytest.approx(1 / 3)
    np.testing.assert_allclose(measures.best_overlaps(truth, proposals), [0.5, 0.499, 0])


def grid_boxes(rng, count):
    """Boxes on a coarse grid, so that equal overlaps are common."""
    corner = rng.integers(0, 12, (count, 2)) * 10
    return np.concatenate([corner, corner + 10 * rng.integers(1, 8, (count, 2))], axis=1).astype(
        float
    )


def random_case(seed, images=4, classes=3, crowds=True, difficult=False, outlines=False):
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = rng.integers(0, 6)
        boxes = grid_boxes(rng, count)
        labels = rng.integers(0, classes, count)
        crowd = rng.random(count) < (0.3 if crowds else 0)
        hard = rng.random(count) < (0.3 if difficult else 0)
        shares = rng.random(count) if outlines else np.full(count, np.nan)
        areas = shares * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        truth.append(objects(boxes, labels, difficult=hard, crowd=crowd, outlines=areas))
        extra = rng.integers(0, 12)
        near = boxes[rng.integers(0, count, 8)] if count else np.zeros((0, 4))
        near = near + rng.integers(-1, 2, near.shape) * 5
        near = near[(near[:, 2:] > near[:, :2]).all(axis=1)]
        all_boxes = np.concatenate([near, grid_boxes(rng, extra)])
        scores = rng.integers(0, 20, len(all_boxes)) / 20  # many equal scores
        found.append(detections(all_boxes, scores, rng.integers(0, classes, len(all_boxes))))
    return truth, found


def overlap(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return height * width / (both - height * width)


def slow_voc(truth, found, label, eleven):
    """VOC's AP as its text has it, one detection at a time."""
    wanted = [
        (image, box, hard)
        for image, each in enumerate(truth)
        for box, of, hard in zip(each.boxes, each.labels, each.ignored, strict=True)
        if of == label
    ]
    count = sum(not hard for _, _, hard in wanted)
    if not count:
        return np.nan
    listed = [
        (score, image, box)
        for image, each in enumerate(found)
        for box, of, score in zip(each.boxes, each.labels, each.scores, strict=True)
        if of == label
    ]
    taken, hits, misses, curve = set(), 0, 0, []
    for _, image, box in sorted(listed, key=lambda item: -item[0]):
        here = [(overlap(box, w[1]), -i) for i, w in enumerate(wanted) if w[0] == image]
        best, place = max(here, default=(0, 0))
        if best >= 0.5 and wanted[-place][2]:
            continue
        if best >= 0.5 and -place not in taken:
            taken.add(-place)
            hits += 1
        else:
            misses += 1
        curve.append((hits / count, hits / (hits + misses)))
    if eleven:
        return np.mean(
            [max((p for r, p in curve if r >= i / 10 - 1e-9), default=0) for i in range(11)]
        )
    area, last = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return area


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_voc_equals_the_slow_form(seed):
    truth, found = random_case(seed, difficult=True)
    for measure, eleven in ((measures.voc2007, True), (measures.voc2010, False)):
        expected = [slow_voc(truth, found, label, eleven) for label in range(3)]
        np.testing.assert_allclose(measure(truth, found, 3), expected, atol=1e-12)


def pycocotools_figures(truth, found, classes):
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [box[1], box[0], box[3] - box[1], box[2] - box[0]]

    annotations = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": xywh(box),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for image, each in enumerate(truth)
        for box, label, crowd, area in zip(
            each.boxes, each.labels, each.crowd, each.areas, strict=True
        )
    ]
    results = [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": xywh(box),
            "score": float(score),
        }
        for image, each in enumerate(found)
        for box, label, score in zip(each.boxes, each.labels, each.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco_module.COCO()
        data.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": label} for label in range(classes)],
            "annotations": [{"id": i + 1, **each} for i, each in enumerate(annotations)],
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    return {name: np.nan if v == -1 else v for name, v in zip(names, evaluation.stats, strict=True)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_coco_equals_pycocotools(seed, outlines):
    truth, found = random_case(seed, outlines=outlines)
    if not any(len(each.scores) for each in found):
        return
    expected = pycocotools_figures(truth, found, 3)
    figures = measures.coco(truth, found, 3)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, atol=1e-6, err_msg=name)


def test_coco_equals_pycocotools_with_over_a_hundred_detections_an_image():
    rng = np.random.default_rng(0)
    corner = rng.random((150, 2)) * 200
    boxes = np.concatenate([corner, corner + 5 + 100 * rng.random((150, 2))], axis=1)
    truth = [objects(boxes[:20] + rng.normal(size=(20, 4)), crowd=[True] * 3 + [False] * 17)]
    found = [detections(boxes, rng.random(150))]
    expected = pycocotools_figures(truth, found, 1)
    for name, value in measures.coco(truth, found, 1).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
