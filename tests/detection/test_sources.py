"""Detection sets: boxes in pixels, flags, and what can be wrong with them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.data.sources import load_source
from googlenet_jax.detection import digit_scenes
from googlenet_jax.detection.sources import load_detection_source
from googlenet_jax.errors import UserError
from tests.detection.conftest import Shown

IMAGE = np.zeros((20, 40, 3), np.uint8)


def test_boxes_are_in_the_image_s_pixels(write_shapes):
    folder = write_shapes([Shown(IMAGE, [(0.1, 0.2, 0.6, 0.45)], [1])])
    source = load_detection_source("shapes", "train", folder)
    example = source[0]
    assert example["image"].shape == (20, 40, 3)
    np.testing.assert_allclose(example["objects"].boxes, [[2, 8, 12, 18]], rtol=1e-6)
    assert example["objects"].labels.tolist() == [1]
    annotation = source.annotations()[0]
    assert annotation.size == (20, 40)
    np.testing.assert_array_equal(annotation.objects.boxes, example["objects"].boxes)


def test_boxes_without_area_are_counted_and_left_out(write_shapes, capsys):
    boxes = [(0.5, 0.5, 0.5, 0.8), (0.1, 0.1, 0.2, 0.2)]
    folder = write_shapes([Shown(IMAGE, boxes, [0, 1], [False, True]), Shown(IMAGE, [], [])])
    found = load_detection_source("shapes", "train", folder).annotations()
    assert sorted(len(each.objects.labels) for each in found) == [0, 1]
    kept = next(each for each in found if len(each.objects.labels))
    assert kept.objects.labels.tolist() == [1] and kept.objects.difficult.tolist() == [True]
    assert "shapes train: 1 boxes without area" in capsys.readouterr().err


def test_faces_have_no_labels_and_one_class(write_shapes):
    folder = write_shapes([Shown(IMAGE, [(0, 0, 1, 1)], [0])], key="faces")
    source = load_detection_source("shapes", "train", folder)
    assert source.class_names == ("face",)
    assert source[0]["objects"].labels.tolist() == [0]


def test_open_images_names_for_its_objects_are_known(write_shapes):
    folder = write_shapes([Shown(IMAGE, [(0, 0, 1, 1)], [1])], key="bobjects")
    assert load_detection_source("shapes", "train", folder)[0]["objects"].labels.tolist() == [1]


def test_a_classification_set_is_refused(tmp_path):
    prepare_digits(tmp_path)
    with pytest.raises(
        UserError, match=r"expected the features image and objects .* found only image, label"
    ):
        load_detection_source("digits", "test", tmp_path)


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    load_detection_source("digit_scenes", "test", folder)
    return folder


def test_digit_scenes_are_written_on_first_use(scenes_dir):
    for split, count in (("train", 400), ("test", 100)):
        source = load_detection_source("digit_scenes", split, scenes_dir)
        assert len(source) == count and source.class_names == tuple("0123456789")
        found = source.annotations()
        assert {each.size for each in found} == {(320, 320)}
        assert all(1 <= len(each.objects.boxes) <= 7 for each in found)
        boxes = np.concatenate([each.objects.boxes for each in found])
        assert boxes.min() >= 0 and boxes.max() <= 320
        np.testing.assert_allclose(boxes, np.rint(boxes), atol=1e-3)


def test_a_box_is_the_extent_of_the_strokes(tmp_path):
    prepare_digits(tmp_path)
    digits = load_source("digits", "test", tmp_path).read(range(20))
    for number in range(20):
        plain = [np.zeros((427, 320, 3), np.uint8)]
        scene = digit_scenes._scene(digits, plain, np.random.RandomState(number))
        drawn = np.zeros(scene.image.shape[:2], bool)
        for top, left, bottom, right in scene.boxes.astype(int):
            inside = scene.image[top:bottom, left:right].max(axis=2) > 40
            assert inside.any(axis=1)[[0, -1]].all() and inside.any(axis=0)[[0, -1]].all()
            drawn[top:bottom, left:right] = True
        assert not scene.image[~drawn].any()


def test_digits_and_photographs_of_the_splits_are_apart(tmp_path, monkeypatch):
    seen = {}

    def note(digits, halves, rng):
        seen[split] = digits, halves
        raise StopIteration

    monkeypatch.setattr(digit_scenes, "_scene", note)
    for split in ("train", "test"):
        with pytest.raises(RuntimeError):
            next(digit_scenes.scenes(split, tmp_path))
    assert [len(seen[split][0]) for split in ("train", "test")] == [1437, 360]
    for train, test in zip(seen["train"][1], seen["test"][1], strict=True):
        assert train.shape == test.shape == (427, 320, 3)
        assert not np.array_equal(train, test)


def test_tfds_does_not_need_tensorflow_for_it():
    assert "digit_scenes" in tfds.list_builders(with_community_datasets=False)
