"""Worker processes, fast decoding, interpolations and bad images in the batches: the same whatever
reads them."""

import itertools
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter

import numpy as np
import pytest

from googlenet_jax.data.bad_images import BadImages
from googlenet_jax.data.pipeline import RandomCrop, eval_batches, train_batches
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import load_source
from googlenet_jax.data.workers import read_in_workers
from googlenet_jax.errors import UserError
from tests.data.odd_batches import Odd
from tests.data.photographs import difference, encode, photograph

PHOTOGRAPHS = [
    encode(photograph(name)[: 200 + 9 * i], quality=90)
    for i in range(6)
    for name in ("china.jpg", "flower.jpg")
]
SMALL = Preprocessing(size=24, resize=32)


@pytest.fixture
def photographs(make_data_set):
    return load_source("pictures", "train", make_data_set(PHOTOGRAPHS))


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def training(source, **options):
    defaults = {
        "batch_size": 8,
        "size": 24,
        "augment": RandomCrop(),
        "seed": 0,
        "threads": 0,
        "interpolation": "random",
        "exact_decoding": False,
    }
    return train_batches(source, **defaults | options)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key, values in batch.items():
        np.testing.assert_array_equal(values, other[key], err_msg=key, strict=True)


def children() -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "googlenet_jax.data.workers"],
        capture_output=True,
        text=True,
    )
    return [int(line) for line in found.stdout.splitlines()]


# --------------------------------------------------------------------------------- the same batches


def test_defaults_give_the_bits_they_always_gave(digits_dir):
    """Crops, order and pixels of a config that sets nothing new: the checksums were taken before
    there was anything new."""
    source = load_source("digits", "train", digits_dir)
    for seed, start, size, images, order in (
        (0, 0, 16, 3774976611, 94290959),
        (7, 3, 5, 2821501072, 282198297),
        (2**32 - 1, 22, 12, 3187886542, 1672778451),
    ):
        batches = train_batches(
            source,
            batch_size=64,
            size=size,
            augment=RandomCrop(),
            seed=seed,
            start_step=start,
            threads=0,
        )
        batch = next(batches)
        batches.close()
        assert batch.keys() == {"image", "label", "index"}
        assert (zlib.crc32(batch["image"].tobytes()), zlib.crc32(batch["index"].tobytes())) == (
            images,
            order,
        )
    test = load_source("digits", "test", digits_dir)
    evaluated = [
        batch["image"]
        for batch in eval_batches(
            test, batch_size=100, preprocessing=Preprocessing(size=12, resize=14)
        )
    ]
    assert [zlib.crc32(images.tobytes()) for images in evaluated] == [
        2690486628,
        1998010283,
        2444135094,
        3164593278,
    ]


@pytest.mark.proof
def test_an_epoch_interrupted_twice_and_gone_on_with_0_2_and_4_workers_is_the_same_epoch(
    photographs,
):
    whole = take(training(photographs, batch_size=2), 6)
    parts = [
        take(training(photographs, batch_size=2, start_step=2 * i, workers=workers), 2)
        for i, workers in enumerate((0, 2, 4))
    ]
    read = [batch for part in parts for batch in part]
    for batch, other in zip(whole, read, strict=True):
        assert_same(batch, other)
    assert Counter(np.concatenate([batch["index"] for batch in read]).tolist()) == Counter(
        range(len(photographs))
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_gives_the_same_batches(photographs, processes):
    whole = take(training(photographs), 3)
    shares = [
        take(training(photographs, process_index=index, process_count=processes), 3)
        for index in range(processes)
    ]
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert_same(batch, {key: np.concatenate([part[key] for part in parts]) for key in batch})


def test_evaluation_in_workers_is_evaluation(photographs):
    options = {"batch_size": 5, "preprocessing": SMALL, "exact_decoding": False}
    for batch, other in zip(
        eval_batches(photographs, workers=1, **options),
        eval_batches(photographs, threads=0, **options),
        strict=True,
    ):
        assert_same(batch, other)


def test_a_drawn_interpolation_leaves_the_crops_as_they_are(photographs):
    """Every picture is one of those that the four interpolations give for the same crop."""
    fixed = [
        take(
            training(photographs, batch_size=12, interpolation=interpolation, exact_decoding=True),
            1,
        )[0]["image"]
        for interpolation in ("bilinear", "area", "nearest", "bicubic")
    ]
    (drawn,) = take(training(photographs, batch_size=12, exact_decoding=True), 1)
    same = np.array([(images == drawn["image"]).all((1, 2, 3)) for images in fixed])
    assert (same.any(0)).all() and len(set(same.argmax(0))) > 1


def test_the_four_interpolations_are_drawn_equally_often(make_data_set):
    """One crop, the whole of one photograph: the four pictures that come out are the four
    interpolations'."""
    source = load_source("pictures", "train", make_data_set(PHOTOGRAPHS[:1]))
    whole = RandomCrop(area=(1.0, 1.0), aspect=(640 / 200, 640 / 200))
    (batch,) = take(training(source, batch_size=400, augment=whole, exact_decoding=True), 1)
    counts = Counter(image.tobytes() for image in batch["image"])
    expected = {}
    for interpolation in ("bilinear", "area", "nearest", "bicubic"):
        (one,) = take(
            training(
                source,
                batch_size=1,
                augment=whole,
                interpolation=interpolation,
                exact_decoding=True,
            ),
            1,
        )
        expected[one["image"].tobytes()] = interpolation
    assert counts.keys() == expected.keys()
    assert all(70 <= count <= 130 for count in counts.values())  # 100 ± 3.5 standard deviations


def test_fast_decoding_is_near_exact_decoding_and_cuts_the_same_crops(photographs):
    fast, exact = (
        take(training(photographs, batch_size=12, interpolation="auto", exact_decoding=exact), 1)[0]
        for exact in (False, True)
    )
    mean = difference(fast["image"], exact["image"]).mean((1, 2, 3))
    assert mean.max() > 0 and np.median(mean) < 4
    np.testing.assert_array_equal(fast["index"], exact["index"])


# --------------------------------------------------------------------------------------- bad images


@pytest.fixture
def spoilt(make_data_set):
    return load_source(
        "pictures", "train", make_data_set([*PHOTOGRAPHS[:6], PHOTOGRAPHS[6][:9000], b""])
    )


@pytest.mark.parametrize(("workers", "exact"), [(0, True), (0, False), (1, False)])
def test_a_bad_image_becomes_an_example_of_weight_0_counted_and_named_in_its_place(
    spoilt, workers, exact
):
    said: list[str] = []
    bad = BadImages(2, said.append)
    batches = take(
        training(spoilt, batch_size=8, workers=workers, bad_images=bad, exact_decoding=exact), 2
    )
    spoilt_labels = {6, 7}
    for batch in batches:
        assert sorted(batch["index"]) == list(
            range(8)
        )  # each is there, in the order that it always has
        assert batch["weight"].dtype == np.float32
        np.testing.assert_array_equal(
            batch["weight"], [label not in spoilt_labels for label in batch["label"]]
        )
        assert (
            not batch["image"][batch["weight"] == 0].any()
            and batch["image"][batch["weight"] == 1].any((1, 2, 3)).all()
        )
    assert len(bad.found) == len(said) == 2  # although two epochs met them
    assert all("pictures train, example " in line for line in said)
    # The one is cut short, the other holds no bytes at all.
    assert sorted("can't be decoded" in line for line in said) == [False, True]
    assert sorted("expected an image file" in line for line in said) == [False, True]


def test_more_bad_images_than_the_limit_are_an_error(spoilt):
    with pytest.raises(
        UserError,
        match=r"data.bad_image_limit: expected at most 1 images .* found 2.* example \d: ",
    ):
        take(training(spoilt, bad_images=BadImages(1, lambda line: None)), 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_place_to_count_them_a_bad_image_is_an_error(spoilt, workers):
    with pytest.raises(UserError, match=r"pictures train, example \d: .*can't be decoded"):
        take(training(spoilt, workers=workers), 2)


def test_evaluation_passes_over_bad_images(spoilt):
    bad = BadImages(2, lambda line: None)
    batches = list(eval_batches(spoilt, batch_size=3, preprocessing=SMALL, bad_images=bad))
    every = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    np.testing.assert_array_equal(every["index"], [*range(8), -1])
    assert every["weight"].sum() == 6 and len(bad.found) == 2


# ------------------------------------------------------------------------------------ workers' ends


def test_a_dead_worker_is_an_error_with_its_cause_within_seconds(photographs):
    batches = training(photographs, workers=2)
    next(batches)
    os.kill(children()[0], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"data.workers: worker process \d \(pid \d+\) was ended by SIGKILL.* batch \d+",
    ):
        for _ in range(20):
            next(batches)
    assert time.monotonic() - began < 30
    assert not children()


def test_batches_come_in_order_and_workers_end_with_the_iterator():
    for count, workers in ((1, 2), (9, 2)):
        read = list(read_in_workers(Odd("counts"), (2, 3), range(5, 5 + count), workers))
        assert (
            [batch["number"] for batch in read]
            == [batch["image"].max() for batch in read]
            == list(range(5, 5 + count))
        )
    batches = read_in_workers(Odd("counts"), (2, 3), range(sys.maxsize), 1)
    next(batches)
    assert children()
    batches.close()
    assert not children()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("ends", UserError, "ended with exit code 7.* batch 3"),
        ("raises", RuntimeError, "(?s)failed at batch 3:.*ZeroDivisionError: number three"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told(what, error, message):
    with pytest.raises(error, match=message):
        list(read_in_workers(Odd(what), (2, 3), range(10), 1))


def test_a_source_that_cannot_be_sent_is_said():
    with pytest.raises(UserError, match=r"can't be sent to worker processes .* data.workers = 0"):
        next(read_in_workers(lambda: [], (1,), range(1), 1))


def test_unknown_interpolations_and_workers_are_named(photographs):
    with pytest.raises(
        UserError, match=r"augment.interpolation: .*'bilinaer'.*did you mean 'bilinear'"
    ):
        training(photographs, interpolation="bilinaer")
    with pytest.raises(UserError, match=r"workers: .* found -1"):
        training(photographs, workers=-1)
