import itertools
import math
import threading
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.data.pipeline import (
    CROP_TRIES,
    RandomCrop,
    eval_batches,
    eval_image,
    random_crop,
    train_batches,
)
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError

SMALL = Preprocessing(size=12, resize=14)
few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="session")
def digits(digits_dir):
    return load_source("digits", "train[:37]", digits_dir)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def training(source, **options):
    return train_batches(
        source,
        **{"batch_size": 8, "size": SMALL.size, "augment": RandomCrop(), "seed": 0, "threads": 0}
        | options,
    )


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, values in batch.items():
        np.testing.assert_array_equal(values, other[key], err_msg=key, strict=True)


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


# ----------------------------------------------------------------------------------------- training


@few
@given(
    start=st.integers(0, 12),
    threads=st.integers(0, 3),
    processes=st.sampled_from([1, 2, 4]),
    seed=st.sampled_from([0, 7, 2**32 - 1]),
)
def test_batch_k_depends_on_seed_and_k_alone(digits, start, threads, processes, seed):
    whole = take(training(digits, seed=seed), start + 2)[start:]
    options = {"seed": seed, "start_step": start, "threads": threads, "process_count": processes}
    shares = [
        take(training(digits, process_index=index, **options), 2) for index in range(processes)
    ]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert_same(batch, joined(parts))


@few
@given(batch_size=st.integers(1, 90), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation_of_its_own(digits, batch_size, seed):
    count = math.ceil(3 * len(digits) / batch_size)
    order = np.concatenate(
        [
            batch["index"]
            for batch in take(training(digits, batch_size=batch_size, seed=seed), count)
        ]
    )
    epochs = order[: 3 * len(digits)].reshape(3, len(digits))
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(digits)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_another_seed_gives_another_order_and_other_crops(digits):
    batches = [take(training(digits, seed=seed, batch_size=37), 1)[0] for seed in (0, 1)]
    assert (batches[0]["index"] != batches[1]["index"]).any()
    by_index = [batch["image"][np.argsort(batch["index"])] for batch in batches]
    assert (by_index[0] != by_index[1]).any((1, 2, 3)).mean() > 0.9


def test_an_example_is_cropped_anew_in_each_epoch(digits):
    first, second = take(training(digits, batch_size=37), 2)
    images = [batch["image"][np.argsort(batch["index"])] for batch in (first, second)]
    assert (images[0] != images[1]).any((1, 2, 3)).mean() > 0.9


def test_a_batch_holds_its_examples(digits):
    (batch,) = take(
        training(digits, augment=RandomCrop(area=(1.0, 1.0), aspect=(1.0, 1.0)), size=8), 1
    )
    assert {key: (values.dtype.name, values.shape) for key, values in batch.items()} == {
        "image": ("uint8", (8, 8, 8, 3)),
        "label": ("int32", (8,)),
        "index": ("int64", (8,)),
    }
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, digits[index]["image"].repeat(3, 2))
        assert label == digits[index]["label"]


def test_a_crop_is_a_window_of_the_image_anywhere_and_never_mirrored(make_data_set):
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1], ramp[..., 2] = np.arange(64)[:, None], np.arange(64), 200
    source = load_source("pictures", "train", make_data_set([png(ramp)]))
    quarter = RandomCrop(area=(0.25, 0.25), aspect=(1.0, 1.0))  # 32 × 32 pixels: no scaling
    (batch,) = take(training(source, batch_size=400, augment=quarter, size=32), 1)
    corners = batch["image"][:, 0, 0, :2].astype(int)
    for image, (top, left) in zip(batch["image"], corners, strict=True):
        np.testing.assert_array_equal(image, ramp[top : top + 32, left : left + 32])
    # 400 draws of 33 places: each edge is hit, the middle is 16.
    np.testing.assert_array_equal((corners.min(0), corners.max(0)), ((0, 0), (32, 32)))
    np.testing.assert_allclose(corners.mean(0), 16, atol=2.5)


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    smallest=st.floats(0.01, 1),
    narrowest=st.floats(0.2, 1),
    draws=st.lists(
        st.floats(0, 1, exclude_max=True), min_size=2 * CROP_TRIES + 2, max_size=2 * CROP_TRIES + 2
    ),
)
def test_a_crop_lies_in_the_image_and_within_the_bounds(height, width, smallest, narrowest, draws):
    ranges = RandomCrop(area=(smallest, 1.0), aspect=(narrowest, 1 / narrowest))
    top, left, crop_height, crop_width = random_crop(height, width, ranges, pairs(draws))
    assert crop_height >= 1 and crop_width >= 1
    assert 0 <= top <= height - crop_height and 0 <= left <= width - crop_width
    # A side is off by at most half a pixel of rounding.
    assert (crop_width - 0.5) / (crop_height + 0.5) <= 1 / narrowest or crop_height == height
    assert (crop_width + 0.5) / (crop_height - 0.5) >= narrowest or crop_width == width


def pairs(values):
    return list(zip(values[::2], values[1::2], strict=True))


def test_areas_are_uniform_and_aspect_ratios_log_uniform():
    generator = np.random.default_rng(0)
    ranges = RandomCrop(area=(0.1, 0.5), aspect=(0.5, 1.5))  # always fits a square
    boxes = np.array(
        [
            random_crop(1000, 1000, ranges, generator.random((CROP_TRIES + 1, 2)).tolist())
            for _ in range(4000)
        ]
    )
    area, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
    quantiles = np.linspace(0, 1, 11)
    np.testing.assert_allclose(np.quantile(area, quantiles), 0.1 + 0.4 * quantiles, atol=0.015)
    np.testing.assert_allclose(
        np.quantile(aspect, quantiles), np.log(0.5) + np.log(3) * quantiles, atol=0.03
    )


@pytest.mark.parametrize(
    ("size", "box"),
    # torchvision's fallback: the whole of the short side, the other as long as the ratio permits,
    # centred.
    [
        ((100, 1000), (0, 433, 100, 133)),
        ((1000, 100), (433, 0, 133, 100)),
        ((90, 100), (0, 0, 90, 100)),
    ],
)
def test_where_ten_tries_do_not_fit_the_centre_is_taken(size, box):
    never_fits = (
        0.999,
        0.999 if size[1] < 200 else 0.0,
    )  # nearly the whole area, as wide or as high as it gets
    assert random_crop(*size, RandomCrop(), [*[never_fits] * CROP_TRIES, (0.9, 0.9)]) == box


# --------------------------------------------------------------------------------------- evaluation


@few
@given(
    length=st.integers(1, 40),
    share=st.integers(1, 12),
    processes=st.integers(1, 4),
    threads=st.integers(0, 2),
)
def test_evaluation_counts_every_example_once(digits_dir, length, share, processes, threads):
    source = load_source("digits", f"test[:{length}]", digits_dir)
    options = {
        "batch_size": share * processes,
        "preprocessing": SMALL,
        "threads": threads,
        "process_count": processes,
    }
    shares = [
        list(eval_batches(source, process_index=index, **options)) for index in range(processes)
    ]
    assert {len(batches) for batches in shares} == {math.ceil(length / (share * processes))}
    assert {len(batch["label"]) for batches in shares for batch in batches} == {share}

    every = joined([joined(parts) for parts in zip(*shares, strict=True)])
    np.testing.assert_array_equal(every["index"][:length], np.arange(length))
    np.testing.assert_array_equal(every["label"][:length], [example["label"] for example in source])
    np.testing.assert_array_equal(every["weight"], np.arange(len(every["weight"])) < length)
    for key, filler in (("image", 0), ("label", 0), ("index", -1)):
        assert (every[key][length:] == filler).all()
    assert {key: values.dtype.name for key, values in every.items()} == {
        "image": "uint8",
        "label": "int32",
        "index": "int64",
        "weight": "float32",
    }


@pytest.mark.parametrize("shape", [(128, 192), (192, 128), (128, 128)])
def test_the_centre_crop_of_the_scaled_image(make_data_set, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    source = load_source("pictures", "train", make_data_set([png(image)]))
    (batch,) = eval_batches(source, batch_size=1, preprocessing=Preprocessing(size=24, resize=32))
    # A quarter by area is the mean of 4 × 4 pixels.
    scaled = image.reshape(shape[0] // 4, 4, shape[1] // 4, 4, 3).mean((1, 3))
    top, left = ((side - 24) // 2 for side in scaled.shape[:2])
    np.testing.assert_allclose(
        batch["image"][0], scaled[top : top + 24, left : left + 24], atol=0.51
    )


def test_enlarging_is_bilinear(make_data_set):
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 200
    source = load_source("pictures", "train", make_data_set([png(image)]))
    (batch,) = eval_batches(source, batch_size=1, preprocessing=Preprocessing(size=4, resize=4))
    np.testing.assert_array_equal(batch["image"][0, :, :, 0], [[0, 50, 150, 200]] * 4)


# -------------------------------------------------------------------------------- errors and ending


@pytest.mark.parametrize("threads", [0, 2])
def test_a_corrupt_image_in_a_batch_names_the_example(make_data_set, threads):
    image = png(np.zeros((8, 8, 3), np.uint8))
    source = load_source("pictures", "train", make_data_set([image, image[:-15]]))
    for batches in (
        training(source, threads=threads),
        eval_batches(source, batch_size=2, preprocessing=SMALL, threads=threads),
    ):
        with pytest.raises(UserError, match=r"^pictures train, example [01]: "):
            next(batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: .* at least 1, found 0"),
        ({"batch_size": 2.5}, "batch_size: .* found 2.5"),
        ({"process_count": 3}, "batch_size: 8 examples don't divide among 3 processes"),
        ({"process_count": 0}, "process_count: .* found 0"),
        ({"process_index": 2, "process_count": 2}, "process_index: .* from 0 to 1, found 2"),
        ({"seed": -1}, "seed: .* found -1"),
        ({"start_step": -1}, "start_step: .* found -1"),
        ({"threads": -1}, "threads: .* found -1"),
    ],
)
def test_an_impossible_number_names_the_argument_before_anything_is_read(digits, options, message):
    with pytest.raises(UserError, match=message):
        training(digits, **options)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"area": (0.5, 0.1)}, r"augment.area: .* found \(0.5, 0.1\)"),
        ({"area": (0.5, 1.5)}, "augment.area: .* at most 1"),
        ({"aspect": (0.0, 1.0)}, "augment.aspect: .* found"),
        ({"area": (0.5,)}, "augment.area: .* found"),
    ],
)
def test_an_impossible_range_is_named(ranges, message):
    with pytest.raises(UserError, match=message):
        RandomCrop(**ranges)


@pytest.mark.parametrize(("width", "left"), [(6, 1), (7, 2), (9, 2), (11, 4)])
def test_the_centre_crop_lies_where_torchvisions_does(width, left):
    """At round(slack / 2): 1.5 is 2, and 2.5 is 2 as well, since Python rounds to even."""
    image = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (4, width, 3))
    crop = eval_image(image, Preprocessing(size=4, resize=4))
    np.testing.assert_array_equal(crop[0, :, 0], np.arange(left, left + 4))


def test_closing_ends_the_threads(digits):
    before = set(threading.enumerate())
    batches = training(digits, threads=3)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    deadline = time.monotonic() + 30
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
