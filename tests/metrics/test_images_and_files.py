"""Sets of images from folders, archives, arrays and data sets, and files of statistics."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from googlenet_jax.errors import UserError
from googlenet_jax.metrics import Statistics, read_statistics, statistics_of, write_statistics
from googlenet_jax.metrics.images import batches, check_alike, open_images, survey
from googlenet_jax.metrics.stored import read_stored


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    """Five pictures, one in a subfolder, and a file that is none."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(root / ("more" if i == 4 else ".") / f"{i}.png")
    (root / "notes.txt").write_text("no picture")
    return root


def packed(folder, kind: str):
    goal = folder.parent / f"pictures.{kind}"
    files = [each for each in folder.rglob("*") if each.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(goal, "w") as archive:
            for each in files:
                archive.write(each, each.relative_to(folder))
    else:
        with tarfile.open(goal, "w:gz") as archive:
            for each in files:
                archive.add(each, each.relative_to(folder))
    return goal


def test_every_container_gives_the_same_images_in_the_same_order(folder, pixels, tmp_path):
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    names = [
        folder,
        packed(folder, "zip"),
        packed(folder, "tar.gz"),
        tmp_path / "a.npy",
        tmp_path / "a.npz",
    ]
    digests = set()
    for name in names:
        images = open_images(str(name))
        found = [images.read(i) for i in range(len(images))]
        np.testing.assert_array_equal(found, pixels)
        digests.add(survey(images).digest)
    assert len(digests) == 2  # of files, and of arrays


def test_a_prepared_data_set_is_named_with_its_split(data_dir):
    images = open_images("digits@test[:7]", str(data_dir))
    assert len(images) == 7 and images.read(0).shape == (8, 8, 3)
    with pytest.raises(UserError, match="cifar10@test"):
        open_images("digits", str(data_dir))


def test_batches_keep_the_order_and_pad_the_last(folder, pixels):
    found = list(batches(open_images(str(folder)), 2))
    assert [mask.tolist() for _, mask in found] == [[True, True]] * 2 + [[True, False]]
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found])[:5], pixels)
    assert len(list(batches(open_images(str(folder)), 2, start=4))) == 1


def test_several_sizes_or_modes_are_refused_unless_told(folder):
    Image.new("RGB", (7, 12)).save(folder / "tall.png")
    Image.new("L", (9, 9)).save(folder / "grey.png")
    images = open_images(str(folder))
    found = survey(images)
    with pytest.raises(UserError, match=r"2 sizes: 9×9 \(6\), 12×7 \(1\).*--mixed"):
        check_alike(images, found, mixed=False)
    lines = "\n".join(check_alike(images, found, mixed=True))
    assert "2 modes" in lines and "mode L: converted to RGB" in lines and "stretched" in lines


def test_what_is_no_set_of_images_is_said(folder, tmp_path, pixels):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(UserError, match=r"broken\.jpg: not an image"):
        survey(open_images(str(folder)))
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    np.save(tmp_path / "floats.npy", pixels / 127.5 - 1)
    np.save(tmp_path / "nan.npy", np.full((2, 4, 4, 3), np.nan))
    np.save(tmp_path / "planes.npy", pixels.transpose(0, 3, 1, 2))
    for name, match in (
        ("empty", "found none"),
        ("nowhere", "no such folder"),
        ("deep.png", "another file"),
        ("floats.npy", "from -1 to 1; round them"),
        ("nan.npy", "2 images of which hold NaN"),
        ("planes.npy", r"found shape \[5, 3, 9, 9\]"),
    ):
        with pytest.raises(UserError, match=match):
            open_images(str(tmp_path / name))


def test_statistics_come_back_and_other_packages_files_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 6))
    one, two = statistics_of(values), statistics_of(values[:, :3])
    write_statistics(tmp_path / "s.npz", one, two, resize="tf1", weights="abc")
    stored = read_stored(tmp_path / "s.npz")
    np.testing.assert_array_equal(stored.layers["pool3"].cov, one.cov)
    np.testing.assert_array_equal(stored.layers["spatial"].mean, two.mean)
    assert (stored.resize, stored.weights, stored.layers["pool3"].count) == ("tf1", "abc", 20)
    # pytorch-fid's own reader takes these two names.
    with np.load(tmp_path / "s.npz") as file:
        np.testing.assert_array_equal(file["sigma"], one.cov)
    np.savez(tmp_path / "theirs.npz", mu=one.mean.astype(np.float32), sigma=one.cov)
    theirs = read_statistics(tmp_path / "theirs.npz")
    assert theirs.count is None and theirs.mean.dtype == np.float64
    with pytest.raises(UserError, match="no statistics of spatial"):
        read_statistics(tmp_path / "theirs.npz", "spatial")


def test_files_that_are_none_are_refused_and_no_pickle_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "trap.npz", mu=np.array([Trap()], object), sigma=np.eye(1))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "nan.npz", mu=np.zeros(2), sigma=np.full((2, 2), np.nan))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    for name, match in (
        ("trap.npz", "plain arrays"),
        ("pickle.npz", "plain arrays"),
        ("odd.npz", r"found float64 \[3\] and float64 \[2, 2\]"),
        ("nan.npz", "NaN"),
        ("other.npz", "expected arrays mu and sigma, found weights"),
        ("nowhere.npz", "no such file"),
    ):
        with pytest.raises(UserError, match=match):
            read_statistics(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UserError, match=r"ends in \.npz"):
        write_statistics(tmp_path / "s.txt", Statistics(np.zeros(1), np.eye(1)))


def test_an_animation_counts_by_its_first_frame(tmp_path):
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), value) for value in (0, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "a.gif").write_bytes(buffer.getvalue())
    assert open_images(str(tmp_path / "g")).read(0).max() == 0
