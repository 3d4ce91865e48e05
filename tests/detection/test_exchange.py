"""Detections as files: what pycocotools and a reader of VOC's text make of them."""

import contextlib
import io

import numpy as np
import pytest

from googlenet_jax.detection import measures
from googlenet_jax.detection.exchange import FOUND, TRUTH, image_ids, write_detections
from tests.detection.test_measures import random_case

CLASSES = ("cat", "fire truck", "dog/wolf")


@pytest.fixture(params=["named", "numbered"])
def case(request, tmp_path):
    """A random truth, what was found, and their files; images in an order that is not their names'."""
    truth, found = random_case(7, outlines=True)
    count = len(truth)
    names = [f"{7 * (count - i):06d}.jpg" for i in range(count)]
    if request.param == "named":
        names = [f"photo {i}.png" for i in range(count)]
    sizes = np.full((count, 2), 300)
    files = write_detections(tmp_path, "test[:9]", CLASSES, names, sizes, truth, found)
    assert sorted(files) == sorted(tmp_path.iterdir())
    return tmp_path, names, truth, found


def test_pycocotools_finds_our_figures_in_the_written_files(case):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    folder, _, truth, found = case
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO(str(folder / TRUTH))
        evaluation = COCOeval(data, data.loadRes(str(folder / FOUND)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = np.nan_to_num(list(measures.coco(truth, found, len(CLASSES)).values()), nan=-1)
    np.testing.assert_allclose(evaluation.stats, ours, atol=1e-6)
    assert 0 < evaluation.stats[0] < 1


def test_vocs_text_holds_every_detection_of_its_class(case):
    folder, names, _, found = case
    for label, file in enumerate(("cat", "fire_truck", "dog_wolf")):
        lines = (folder / f"comp4_det_test__9__{file}.txt").read_text().splitlines()
        rows = [line.rsplit(" ", 5) for line in lines]
        expected = [
            (name.rsplit(".")[0], *np.round([score, left + 1, top + 1, right, bottom], 2))
            for name, each in zip(names, found, strict=True)
            for (top, left, bottom, right), which, score in zip(*each, strict=True)
            if which == label
        ]
        assert [row[0] for row in rows] == [row[0] for row in expected]
        numbers = np.array([row[1:] for row in rows], float).reshape(-1, 5)
        assert np.allclose(
            numbers, np.array([row[1:] for row in expected]).reshape(-1, 5), atol=6e-3
        )


def test_an_images_number_is_the_one_in_its_name_where_all_have_one():
    assert image_ids(["000000000139.jpg", "42.jpg"]) == [139, 42]
    assert image_ids(["1.jpg", "01.jpg"]) == [1, 2]
    assert image_ids(["a.jpg", "7.jpg"]) == [1, 2]
