import io
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError

COLOURS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (4, 5, 4), np.uint8),
    (20, 16),
    interpolation=cv2.INTER_LINEAR,
)


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(COLOURS[..., :3])


def sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(rgb(), "JPEG", exif=exif)


ENCODED = {
    "PNG": encode(rgb()),
    "JPEG": encode(rgb(), "JPEG"),
    "greyscale PNG": encode(rgb().convert("L")),
    "greyscale JPEG": encode(rgb().convert("L"), "JPEG"),
    "alpha": encode(Image.fromarray(COLOURS)),
    "greyscale with alpha": encode(Image.fromarray(COLOURS).convert("LA")),
    "palette": encode(rgb().quantize(16)),
    "palette of 2 bits": encode(rgb().quantize(4), bits=2),
    "palette with alpha": encode(rgb().quantize(16), transparency=3),
    "1 bit": encode(rgb().convert("1")),
    "CMYK JPEG": encode(rgb().convert("CMYK"), "JPEG"),
    "EXIF orientation": sideways(),
    "BMP": encode(rgb(), "BMP"),
    "WebP": encode(rgb(), "WEBP", lossless=True),
}


def by_label(source) -> dict[int, np.ndarray]:
    return {example["label"]: example["image"] for example in source.read(range(len(source)))}


def test_every_kind_of_image_file_comes_out_as_rgb(make_data_set):
    source = load_source("pictures", "train", make_data_set(list(ENCODED.values())))
    for (kind, encoded), (_, image) in zip(
        ENCODED.items(), sorted(by_label(source).items()), strict=True
    ):
        expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert image.dtype == np.uint8, kind
        assert image.shape == expected.shape, kind
        assert np.abs(image.astype(int) - expected).max() <= 1, kind


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_their_upper_eight(make_data_set, channels):
    deep = np.random.default_rng(0).integers(0, 2**16, (6, 7, channels), np.uint16)
    png = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    image = load_source("pictures", "train", make_data_set([png], channels=channels))[0]["image"]
    np.testing.assert_array_equal(image, (deep >> 8).astype(np.uint8))


def test_greyscale_sets_keep_one_channel(make_data_set):
    grey = COLOURS[..., 0].copy()
    pngs = [encode(Image.fromarray(grey)), encode(Image.fromarray(COLOURS[..., :2].copy(), "LA"))]
    for image in by_label(
        load_source("pictures", "train", make_data_set(pngs, channels=1))
    ).values():
        np.testing.assert_array_equal(image, grey[..., None])


def broken(kind: str) -> bytes:
    png, jpeg = ENCODED["PNG"], ENCODED["JPEG"]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"not an image",
        "cut PNG": png[:-20],
        "cut JPEG": jpeg[:-40],
        "PNG with a wrong byte": bytes(flipped),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "cut PNG", "cut JPEG", "PNG with a wrong byte"])
def test_a_corrupt_image_names_the_example(make_data_set, kind):
    folder = make_data_set([ENCODED["PNG"]] * 3 + [broken(kind)])
    source = load_source("pictures", "train", folder)
    failed = []
    for index in range(4):
        try:
            assert source[index]["label"] < 3
        except UserError as error:
            failed.append(index)
            assert f"pictures train, example {index}: " in str(error) and "\n" not in str(error)
    assert len(failed) == 1


def test_an_example_without_a_label_is_named(make_data_set):
    source = load_source("pictures", "train", make_data_set([ENCODED["PNG"]], [-1]))
    with pytest.raises(
        UserError, match="pictures train, example 0: expected a label from 0 to 0, found -1"
    ):
        source[0]


def test_a_label_beyond_the_classes_is_named(make_data_set):
    source = load_source("pictures", "train", make_data_set([ENCODED["PNG"]] * 2))
    source.class_names = source.class_names[:1]  # TFDS would not write it
    with pytest.raises(UserError, match=r"expected a label from 0 to 0, found 1"):
        _ = [source[index] for index in range(2)]


def test_a_damaged_file_names_the_folder(make_data_set):
    folder = make_data_set([ENCODED["PNG"]] * 5)
    (file,) = (folder / "pictures" / "1.0.0").glob("*.array_record*")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"can't read the files in .*pictures/1\.0\.0"):
        load_source("pictures", "train", folder)[0]


def test_slices_and_sums_of_splits(digits_dir):
    lengths = {
        "train[:90%]": 1293,
        "train[90%:]": 144,
        "test[-5:]": 5,
        "train+test": 1797,
        "train[:10]+test[:10]": 20,
    }
    for split, length in lengths.items():
        source = load_source("digits", split, digits_dir)
        assert (len(source), len(list(source))) == (length, length)
        assert (source.name, source.split, source.num_classes) == ("digits", split, 10)
    whole, part = (
        load_source("digits", "train", digits_dir),
        load_source("digits", "train[100:]", digits_dir),
    )
    np.testing.assert_array_equal(whole[103]["image"], part[3]["image"])


@pytest.mark.parametrize(
    "split",
    [
        "trian",
        "train[:x%]",
        "train[:200%]",
        "train[5:2]",
        "train[:0%]",
        "train[5000:]",
        "train[:5]+tset",
        "",
        None,
    ],
)
def test_a_wrong_split_names_the_splits_there_are(digits_dir, split):
    with pytest.raises(UserError) as error:
        load_source("digits", split, digits_dir)
    assert repr(split) in str(error.value) and "\n" not in str(error.value)
    assert "train (1437 examples), test (360 examples)" in str(error.value)


def test_an_index_out_of_range_is_an_index_error(digits_dir):
    source = load_source("digits", "test[:3]", digits_dir)
    for index in (3, -1):
        with pytest.raises(IndexError, match="has 3 examples"):
            source[index]


def test_a_set_that_is_not_prepared_names_the_command(tmp_path, monkeypatch):
    with pytest.raises(
        UserError,
        match=(
            f"not prepared in {tmp_path}; prepare it with: googlenet-jax prepare cifar10 --data-dir"
            f" {tmp_path}$"
        ),
    ):
        load_source("cifar10", "train", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "by default"))
    with pytest.raises(UserError, match=r"not prepared in .*by default"):
        load_source("cifar10", "train")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifra10", "did you mean 'cifar10'"),
        ("digit", "did you mean 'digits'"),
        ("../x", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_names_the_nearest(tmp_path, name, hint):
    with pytest.raises(UserError, match="TFDS knows no set of that name") as error:
        load_source(name, "train", tmp_path)
    assert hint in str(error.value)


def test_a_set_in_another_file_format_is_refused(make_data_set):
    folder = make_data_set([ENCODED["PNG"]])
    info = folder / "pictures" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"expected array_record files in .*, found tfrecord"):
        load_source("pictures", "train", folder)


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (
            {"picture": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)},
            "only label, picture",
        ),
        (
            {"image": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)},
            "image is a Text",
        ),
        (
            {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)},
            "label is a Scalar",
        ),
    ],
)
def test_a_set_that_is_not_for_classification_is_refused(make_data_set, features, found):
    folder = make_data_set(
        [ENCODED["PNG"] if "Text" not in found else "words"], [0], features=features
    )
    with pytest.raises(UserError, match=f"expected the features image .* found {found}"):
        load_source("pictures", "train", folder)


def test_never_imports_tensorflow_and_ends_with_a_batch_iterator_open(digits_dir):
    code = """
import sys
from googlenet_jax.data.pipeline import RandomCrop, train_batches
from googlenet_jax.data.sources import load_source
source = load_source("digits", "train", sys.argv[1])
batches = train_batches(source, batch_size=64, size=16, augment=RandomCrop(), seed=0, threads=3)
assert next(batches)["image"].shape == (64, 16, 16, 3)
print("tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits_dir)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
