"""Where the crops lie, by hand, and that a device cuts what lies there."""

from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from googlenet_jax.data.device_resampling import resample, resampling_weights
from googlenet_jax.evaluation.crops import boxes, cut, geometry, short_sides, ten_of_144
from tests.evaluation import protocol

FLOWER = np.ascontiguousarray(load_sample_image("flower.jpg")[::4, ::4])  # 107×160


def places(height: int, width: int, crops: int = 144) -> list[tuple[int, ...]]:
    """(short side, top, left, side) of the views that are not mirrored."""
    found = boxes(height, width, 224, crops)
    half = len(found) // 2
    assert [box._replace(mirrored=True) for box in found[:half]] == found[half:]
    return [(min(box[:2]), box.top, box.left, box.side) for box in found[:half]]


def test_scales_are_the_papers_at_224_and_as_large_relative_to_other_inputs() -> None:
    assert short_sides(224) == (256, 288, 320, 352)
    assert short_sides(299) == (342, 384, 427, 470)


def test_boxes_of_a_landscape() -> None:
    # 375×500 becomes 256×341, 288×384, 320×426 and 352×469.
    found = places(375, 500)
    assert {box[:2] for box in boxes(375, 500, 224, 144)} == {
        (256, 341), (288, 384), (320, 426), (352, 469)
    }  # fmt: skip
    # Squares of 256 at 0, 42 and 85; corners 32 apart, the centre at 16.
    assert set(found[:6]) == {
        (256, 0, 0, 224), (256, 0, 32, 224), (256, 32, 0, 224), (256, 32, 32, 224),
        (256, 16, 16, 224), (256, 0, 0, 256),
    }  # fmt: skip
    assert set(found[6:12]) == {
        (256, 0, 42, 224), (256, 0, 74, 224), (256, 32, 42, 224), (256, 32, 74, 224),
        (256, 16, 58, 224), (256, 0, 42, 256),
    }  # fmt: skip
    # The last square: 352 at 469 − 352 = 117; corners 128 apart, the centre at 64.
    assert set(found[-6:]) == {
        (352, 0, 117, 224), (352, 0, 245, 224), (352, 128, 117, 224), (352, 128, 245, 224),
        (352, 64, 181, 224), (352, 0, 117, 352),
    }  # fmt: skip


def test_boxes_of_a_portrait() -> None:
    # 600×400 becomes 384×256, …, 528×352: the squares lie at the top, the centre and the bottom.
    found = places(600, 400)
    assert set(found[12:18]) == {
        (256, 128, 0, 224), (256, 128, 32, 224), (256, 160, 0, 224), (256, 160, 32, 224),
        (256, 144, 16, 224), (256, 128, 0, 256),
    }  # fmt: skip
    assert set(found[-12:-6]) == {
        (352, 88, 0, 224), (352, 88, 128, 224), (352, 216, 0, 224), (352, 216, 128, 224),
        (352, 152, 64, 224), (352, 88, 0, 352),
    }  # fmt: skip


def test_ten_crops_are_the_corners_of_the_whole_image_and_its_centre() -> None:
    assert set(places(375, 500, 10)) == {
        (256, 0, 0, 224), (256, 0, 117, 224), (256, 32, 0, 224), (256, 32, 117, 224),
        (256, 16, 58, 224),
    }  # fmt: skip
    assert set(places(600, 400, 10)) == {
        (256, 0, 0, 224), (256, 0, 32, 224), (256, 160, 0, 224), (256, 160, 32, 224),
        (256, 80, 16, 224),
    }  # fmt: skip


@pytest.mark.parametrize("sides", [(375, 500), (600, 400), (107, 160), (2000, 300)])
def test_every_box_lies_inside_and_144_are_distinct(sides: tuple[int, int]) -> None:
    found = boxes(*sides, 224, 144)
    assert len(set(found)) == len(found) == 144
    for box in found:
        assert 0 <= box.top <= box.height - box.side and 0 <= box.left <= box.width - box.side


def test_the_three_squares_of_a_square_image_are_one() -> None:
    assert set(Counter(boxes(300, 300, 224, 144)).values()) == {3}


SIZE, SIDE = 35, 192  # of the network's input here, and of the padded image: each compiles anew


def cut_one(image: np.ndarray, crops: int, square: bool = False) -> np.ndarray:
    padded = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    padded[0, : image.shape[0], : image.shape[1]] = image
    where = geometry([image.shape[:2]], SIZE)
    return np.asarray(cut(padded, where, size=SIZE, crops=crops, square=square))[0]


@pytest.mark.parametrize(
    "image", [FLOWER, np.swapaxes(FLOWER, 0, 1)], ids=["landscape", "portrait"]
)
def test_the_views_of_a_photograph_are_144_distinct_pictures(image: np.ndarray) -> None:
    views = cut_one(image, 144)
    assert len({view.tobytes() for view in views}) == len(views) == 144


# Larger and smaller than the network's input, in every orientation.
@pytest.mark.parametrize("shape", [(107, 160), (90, 90), (12, 17), (31, 9), (41, 40)], ids=str)
@pytest.mark.parametrize("crops", [10, 144])
def test_views_are_those_of_the_plain_protocol(shape: tuple[int, int], crops: int) -> None:
    image = FLOWER[: shape[0], : shape[1]]
    expected = protocol.views(image, SIZE, crops)
    found = protocol.matched(cut_one(image, crops), expected)
    differences = np.abs(found.astype(int) - expected)
    # One level, where float32 puts a value of ½ on the other side.
    assert differences.max() <= 1 and (differences > 0).mean() < 0.01


def test_a_square_image_gives_each_view_once() -> None:
    image = FLOWER[:90, :90]
    once, thrice = cut_one(image, 144, square=True), cut_one(image, 144)
    assert len(once) == 48
    picture = (SIZE, SIZE, 3)
    # Mirrored or not, scale, square, view. Two programs may round a half to either side.
    shared = once.reshape(2, 4, 1, 6, *picture).astype(int)
    assert np.abs(thrice.reshape(2, 4, 3, 6, *picture) - shared).max() <= 1


@pytest.mark.parametrize("square", [False, True])
def test_the_ten_are_among_the_144(square: bool) -> None:
    image = FLOWER[:90, :90] if square else FLOWER
    chosen = cut_one(image, 144, square)[ten_of_144(square)]
    assert np.abs(chosen.astype(int) - cut_one(image, 10, square)).max() <= 1


def test_nothing_of_the_padding_shows() -> None:
    views = cut_one(np.full((20, 30, 3), 200, np.uint8), 144)
    assert np.unique(views).tolist() == [200]


def test_images_of_many_sizes_share_one_compilation() -> None:
    cut_one(FLOWER, 10)
    before = cut._cache_size()  # type: ignore[attr-defined]
    for shape in ((20, 30), (30, 20), (11, 40)):
        cut_one(FLOWER[: shape[0], : shape[1]], 10)
    assert cut._cache_size() == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("sides", [(40, 59), (120, 179)], ids=["shrinks", "grows"])
@pytest.mark.parametrize(
    ("interpolation", "reference"),
    [
        ("auto", None),
        ("bilinear", cv2.INTER_LINEAR),
        ("nearest", cv2.INTER_NEAREST),
        ("bicubic", cv2.INTER_CUBIC),
        ("bilinear_antialiased", Image.Resampling.BILINEAR),
    ],
)
def test_interpolations_are_opencvs_and_pillows(sides, interpolation, reference) -> None:
    source, scaled = np.array(FLOWER.shape[:2]), np.array(sides)
    rows, columns = (
        resampling_weights(
            source[axis], scaled[axis], np.int32(0), sides[axis], source[axis], interpolation
        )
        for axis in (0, 1)
    )
    found = np.asarray(resample(FLOWER.astype(np.float32), rows, columns)).astype(int)
    height, width = sides
    if interpolation == "auto":
        reference = cv2.INTER_AREA if height < len(FLOWER) else cv2.INTER_LINEAR
    if isinstance(reference, Image.Resampling):
        expected = np.asarray(Image.fromarray(FLOWER).resize((width, height), reference))
    else:
        expected = cv2.resize(FLOWER, (width, height), interpolation=reference)
    # OpenCV interpolates with eleven bits, Pillow rounds between the axes.
    differences = np.abs(found - expected)
    assert differences.max() <= 2 and (differences > 1).mean() < 0.001
