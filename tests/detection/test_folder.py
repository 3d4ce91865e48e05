"""Folders of images with boxes, in VOC's and COCO's form."""

import json

import numpy as np
import pytest
from PIL import Image

from googlenet_jax.cli.main import main
from googlenet_jax.detection.folder import list_detection_folder, prepare_detection_folder
from googlenet_jax.detection.sources import load_detection_source
from googlenet_jax.errors import UserError


def picture(path, width=40, height=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def voc_object(name, left, top, right, bottom, difficult=0):
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True
        )
    )
    about = f"<name>{name}</name><difficult>{difficult}</difficult>"
    return f"<object>{about}<bndbox>{corners}</bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    for name, objects in {
        "one": [voc_object("cat", 1, 1, 40, 20), voc_object("dog", 3, 5, 10, 8, difficult=1)],
        "two": [voc_object("dog", 30, 10, 60, 90)],
        "three": [],
    }.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        xml = f"<annotation>{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("one\ntwo\n")
    (sets / "test.txt").write_text("three\n")
    (sets / "cat_train.txt").write_text("one 1\ntwo -1\n")
    return root


def test_voc_s_pixels_are_counted_from_one_and_inclusive(voc):
    listing = list_detection_folder(voc)
    assert list(listing.splits) == ["test", "train"] and listing.class_names == ("cat", "dog")
    one, two = listing.splits["train"]
    assert one.boxes.tolist() == [[0, 0, 20, 40], [4, 2, 8, 10]]
    assert one.labels == ("cat", "dog") and one.difficult == (False, True)
    assert two.boxes.tolist() == [[9, 29, 20, 40]]  # cut off at the image's edges
    assert (listing.dropped, listing.without_boxes) == (0, 1)


def test_voc_s_folder_becomes_a_data_set(voc, tmp_path):
    prepare_detection_folder(voc, "pets", tmp_path / "data")
    source = load_detection_source("pets", "train", tmp_path / "data")
    assert source.class_names == ("cat", "dog")
    by_count = {len(each["objects"].boxes): each for each in source.read(range(2))}
    np.testing.assert_allclose(
        by_count[2]["objects"].boxes, [[0, 0, 20, 40], [4, 2, 8, 10]], atol=1e-5
    )
    assert by_count[2]["objects"].difficult.tolist() == [False, True]
    assert by_count[2]["objects"].labels.tolist() == [0, 1]
    assert len(load_detection_source("pets", "test", tmp_path / "data")[0]["objects"].boxes) == 0


def test_boxes_outside_their_image_or_without_area_are_counted(voc):
    xml = (
        voc_object("cat", 50, 1, 60, 5)
        + voc_object("cat", 5, 5, 4, 9)
        + voc_object("cat", 5, 5, 5, 5)
    )
    (voc / "Annotations" / "three.xml").write_text(f"<annotation>{xml}</annotation>")
    listing = list_detection_folder(voc)
    assert listing.dropped == 2
    assert listing.splits["test"][0].boxes.tolist() == [[4, 4, 5, 5]]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object></annotation>", "three.xml: not XML"),
        ("<a><object><bndbox/></object></a>", "expected <name> in each <object>"),
        ("<a><object><name>cat</name></object></a>", "expected <bndbox> in each <object>"),
        (f"<a>{voc_object('cat', 'x', 1, 2, 3)}</a>", "expected numbers in <bndbox>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "expected plain XML"),
    ],
)
def test_a_broken_annotation_is_named(voc, xml, message):
    (voc / "Annotations" / "three.xml").write_text(xml)
    with pytest.raises(UserError, match=message):
        list_detection_folder(voc)


def test_labels_outside_a_given_list_and_missing_images_are_named(voc):
    (voc / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"one\.xml: expected one of the classes .* found 'dog'"):
        list_detection_folder(voc)
    (voc / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(UserError, match="expected an image one in JPEGImages"):
        list_detection_folder(voc)


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    picture(root / "val2017" / "1.png")
    picture(root / "train2017" / "2.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 7, "name": "kite"}, {"id": 3, "name": "bird"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 5], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [5, 5, 80, 4], "iscrowd": 1},
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 4]},
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    other = {**content, "images": [{"id": 1, "file_name": "2.png"}], "annotations": []}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(other))
    return root, content


def test_coco_s_boxes_crowds_and_categories(coco, tmp_path):
    root, _ = coco
    listing = prepare_detection_folder(root, "birds", tmp_path / "data")
    assert (listing.dropped, listing.without_boxes) == (1, 1)
    source = load_detection_source("birds", "val2017", tmp_path / "data")
    assert source.class_names == ("bird", "kite")  # in the order of COCO's ids
    objects = source[0]["objects"]
    np.testing.assert_allclose(objects.boxes, [[2, 1, 7, 11], [5, 5, 9, 40]], atol=1e-5)
    assert objects.labels.tolist() == [1, 0] and objects.crowd.tolist() == [False, True]
    assert (
        len(load_detection_source("birds", "train2017", tmp_path / "data")[0]["objects"].boxes) == 0
    )


def test_coco_s_areas_are_the_annotations(coco, tmp_path):
    root, content = coco
    content["annotations"][0]["area"] = 31.5  # of an outline, not of the box of 10 × 5
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    prepare_detection_folder(root, "birds", tmp_path / "data")
    objects = load_detection_source("birds", "val2017", tmp_path / "data")[0]["objects"]
    np.testing.assert_allclose(objects.areas, [31.5, 4 * 35], rtol=1e-5)  # the other has none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]},
            "found 9",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1]}]},
            "expected a bbox",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1]}]},
            "not COCO's form",
        ),
        ({"images": [{"id": 1, "file_name": "9.png"}]}, "expected one image '9.png'"),
        ({"categories": 3}, "expected lists images, categories and annotations"),
        (
            {
                "annotations": [
                    {"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "area": "1"}
                ]
            },
            "expected a number as area",
        ),
    ],
)
def test_a_broken_coco_file_is_named(coco, change, message):
    root, content = coco
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        list_detection_folder(root)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bird\n", "expected names of classes"), ("cat", "different names of classes, found 'cat'")],
)
def test_names_that_a_set_cannot_hold_are_refused_before_anything_is_written(
    coco, tmp_path, name, message
):
    root, content = coco
    (root / "annotations" / "instances_train2017.json").unlink()
    named = [{"id": 7, "name": "cat"}, {"id": 3, "name": name}]
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content | {"categories": named}))
    with pytest.raises(UserError, match=message):
        prepare_detection_folder(root, "birds", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_folder_of_neither_form_is_named(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"expected VOC's Annotations.*or COCO's"):
        list_detection_folder(tmp_path)
    with pytest.raises(UserError, match="expected a folder, found nothing"):
        list_detection_folder(tmp_path / "no")


def test_the_command_writes_a_folder_and_says_what_it_holds(voc, tmp_path, capsys):
    xml = voc_object("cat", 50, 1, 60, 5)
    (voc / "Annotations" / "three.xml").write_text(f"<annotation>{xml}</annotation>")
    command = ["prepare", "detection-folder", str(voc), "--data-dir", str(tmp_path / "data")]
    assert main([*command, "--name", "pets", "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert (facts["name"], facts["num_classes"]) == ("pets", 2)
    assert facts["splits"]["train"] == {"images": 2, "objects": 3}
    assert "1 boxes outside their image" in printed.err
    assert "1 images have no boxes" in printed.err
