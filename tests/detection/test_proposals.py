"""Selective search, and proposals kept beside the data."""

import json

import cv2
import numpy as np
import pytest

from googlenet_jax.cli.main import main
from googlenet_jax.detection.proposals import (
    Proposals,
    SelectiveSearch,
    interleave,
    load_proposals,
    proposals_file,
    save_proposals,
    search_split,
)
from googlenet_jax.detection.report import format_recall, recall_table
from googlenet_jax.detection.selective_search import selective_search
from googlenet_jax.detection.sources import load_detection_source
from googlenet_jax.errors import UserError
from tests.detection.test_measures import objects


@pytest.fixture(scope="module")
def photograph():
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")[150:310, 150:310].copy()


def test_a_plain_rectangle_is_found_to_the_pixel():
    image = np.full((120, 160, 3), 90, np.uint8)
    image[40:80, 30:100] = (20, 30, 240)
    boxes = selective_search(image)
    assert [40, 30, 80, 100] in boxes.tolist() and [0, 0, 120, 160] in boxes.tolist()


def test_the_same_boxes_in_every_call(photograph):
    first, second = (selective_search(photograph) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = selective_search(photograph, seed=5)
    assert not np.array_equal(first, other)
    assert {tuple(box) for box in first.tolist()} == {tuple(box) for box in other.tolist()}


def test_boxes_are_distinct_inside_and_not_too_small(photograph):
    boxes = selective_search(photograph)
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 50
    assert boxes.min() >= 0 and boxes.max() <= 160
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 20
    small = selective_search(photograph, smallest_side=10)
    assert len(small) > len(boxes)


def test_doubled_superpixels_give_about_half_as_many(photograph):
    plain, doubled = (len(selective_search(photograph, superpixel_scale=x)) for x in (1, 2))
    assert 0.3 < doubled / plain < 0.8


def test_another_build_of_opencv_is_named(photograph, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(UserError, match="lacks ximgproc; run: pip uninstall"):
        selective_search(photograph)


def test_a_scaled_search_answers_in_the_image_s_pixels():
    image = np.full((120, 160, 3), 90, np.uint8)
    image[40:80, 30:100] = (20, 30, 240)
    boxes = selective_search(image, width=320)
    assert np.abs(boxes - [40, 30, 80, 100]).max(axis=1).min() <= 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("selective_search", SelectiveSearch()),
        ("selective_search_x2", SelectiveSearch(2)),
        ("selective_search_x0.5_w500_s10", SelectiveSearch(0.5, 500, 10)),
    ],
)
def test_a_method_is_known_by_its_name(name, settings):
    assert SelectiveSearch.from_name(name) == settings
    assert settings.name == name


@pytest.mark.parametrize(
    "name", ["edge_boxes", "selective_search_x0", "selective_search_s10_x2", ""]
)
def test_an_unknown_method_is_named(name):
    with pytest.raises(UserError, match=f"expected 'multibox' or .* found '{name}'"):
        SelectiveSearch.from_name(name)


def test_what_is_kept_comes_back(shapes_dir):
    source = load_detection_source("shapes", "test[:3]", shapes_dir)
    boxes = [
        np.ones((2, 4), np.float32),
        np.zeros((0, 4), np.float32),
        np.full((1, 4), 7, np.float32),
    ]
    sizes = np.array([[40, 40]] * 3, np.int32)
    path = save_proposals(source, "multibox", Proposals(boxes, sizes, {"run": "x"}))
    assert path.is_relative_to(source.folder)
    again = load_proposals(source, "multibox")
    assert again.about == {"run": "x"} and len(again) == 3
    for kept, given in zip(again.boxes, boxes, strict=True):
        np.testing.assert_array_equal(kept, given)


def test_a_damaged_file_is_named(shapes_dir):
    source = load_detection_source("shapes", "test[:2]", shapes_dir)
    path = proposals_file(source, "multibox")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK and no more")
    with pytest.raises(UserError, match="not a whole file of proposals"):
        load_proposals(source, "multibox")


def test_proposals_of_another_version_of_the_data_are_named(shapes_dir):
    source = load_detection_source("shapes", "test[:1]", shapes_dir)
    boxes = [np.ones((2, 4), np.float32)] * 2
    save_proposals(source, "multibox", Proposals(boxes, np.zeros((2, 2), np.int32), {}))
    with pytest.raises(UserError, match="expected proposals for 1 images, found 2"):
        load_proposals(source, "multibox")


def test_a_split_s_proposals_do_not_depend_on_the_number_of_processes(shapes_dir):
    source = load_detection_source("shapes", "train", shapes_dir)
    one, two = (
        search_split(source, SelectiveSearch(smallest_side=4), workers) for workers in (1, 2)
    )
    for first, second in zip(one.boxes, two.boxes, strict=True):
        np.testing.assert_array_equal(first, second)
    assert one.sizes.tolist() == [[40, 40]] * 8


def test_joined_proposals_take_turns():
    def made(*tops):
        boxes = np.array([[top, 0, top + 1, 1] for top in tops], np.float32).reshape(-1, 4)
        return Proposals([boxes], np.zeros((1, 2), np.int32), {})

    joined = interleave([made(1, 2, 3), made(11, 12)])[0]
    assert joined[:, 0].tolist() == [1, 11, 2, 12, 3]
    assert interleave([made(1, 2, 3), made(11, 12)], most=1)[0][:, 0].tolist() == [1, 11]


def test_small_objects_have_a_recall_of_their_own():
    small, large = [0, 0, 20, 20], [0, 0, 32, 32]
    truth = [objects([small, large], difficult=[False, False]), objects([small, large])]
    truth.append(objects([small], difficult=[True]))
    boxes = [np.array([small, large]), np.array([large]), np.zeros((0, 4))]
    found = Proposals([each.astype(np.float32) for each in boxes], np.full((3, 2), 40), {})
    (row,) = recall_table(truth, {"a": found}, ["a"])
    assert (row["boxes"], row["recall"], row["small"]) == (1, 0.75, 0.5)
    (row,) = recall_table([objects([large])] * 3, {"a": found}, ["a"])
    assert row["small"] is None
    assert "small" in format_recall([row])


def test_the_command_makes_what_is_missing_and_prints_recall(shapes_dir, capsys):
    methods = "selective_search,selective_search_s4,selective_search+selective_search_s4"
    command = ["proposals", "shapes", "--split", "train", "--methods", methods, "--workers", "1"]
    assert main([*command, "--data-dir", str(shapes_dir), "--json"]) == 0
    kept, made, both = json.loads(capsys.readouterr().out)["table"]
    assert kept["boxes"] == 12 and kept["recall"] > 0.9  # the fixture's, not computed again
    assert made["recall"] == made["small"] == 1
    assert both["boxes"] == kept["boxes"] + made["boxes"]
    assert main([*command, "--data-dir", str(shapes_dir)]) == 0
    assert "8 images, 8 objects" in capsys.readouterr().out


def test_multibox_without_a_run_says_what_to_do(shapes_dir, capsys):
    command = ["proposals", "shapes", "--split", "train", "--methods", "multibox"]
    assert main([*command, "--data-dir", str(shapes_dir)]) == 1
    assert "--methods multibox --multibox RUN" in capsys.readouterr().err
