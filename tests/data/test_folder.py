"""A folder of images by class, written without TensorFlow, read back and counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from googlenet_jax.data.folder import exif_orientation, list_folder, prepare_folder
from googlenet_jax.data.inventory import draw_samples, take_inventory, write_counts
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError
from tests.data.photographs import encode, photograph


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def picture(value: int) -> bytes:
    return encode(np.full((6, 8, 3), value, np.uint8), "PNG")


def by_class(count: int, names=("cat", "dog")) -> dict[str, bytes]:
    return {
        f"{name}/{i}.png": picture(10 * i + place)
        for place, name in enumerate(names)
        for i in range(count)
    }


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # TFDS leaves an empty folder there
    return tmp_path / "data"


def test_train_and_val_hold_the_files_bytes_names_and_classes(tmp_path, data_dir):
    files = {
        f"{split}/{name}": content
        for split, count in (("train", 4), ("val", 2))
        for name, content in by_class(count).items()
    }
    root = write(tmp_path / "src", files)
    prepare_folder(root, "pets", data_dir)
    for split, folder in (("train", "train"), ("validation", "val")):
        source = load_source("pets", split, data_dir)
        assert source.class_names == ("cat", "dog")
        found = {
            record.file_name: (record.image, source.class_names[record.label])
            for record in source.records(range(len(source)))
        }
        assert found == {
            name: (content, name.split("/")[1])
            for name, content in files.items()
            if name.startswith(folder)
        }
    assert not list(data_dir.glob("pets/incomplete*"))


def test_one_folder_is_split_by_a_seeded_share_of_each_class(tmp_path):
    root = write(tmp_path / "src", by_class(20) | {"lone/a.png": picture(1)})
    listing = list_folder(root, 0.2, seed=1)
    counts = {
        split: [sum(name == each for _, name in files) for each in ("cat", "dog", "lone")]
        for split, files in listing.splits.items()
    }
    assert counts == {"train": [16, 16, 1], "validation": [4, 4, 0]}
    assert listing == list_folder(root, 0.2, seed=1)
    assert listing.splits != list_folder(root, 0.2, seed=2).splits
    write(root, {"zebra/a.png": picture(3)})  # another class changes nothing in these
    assert {file for file, _ in list_folder(root, 0.2, seed=1).splits["validation"]} == {
        file for file, _ in listing.splits["validation"]
    }
    assert list(list_folder(root, 0.0).splits) == ["train"]


def test_files_that_are_no_images_are_passed_over_and_listed_and_hidden_ones_ignored(tmp_path):
    extra = {
        "cat/notes.txt": b"x",
        "cat/.DS_Store": b"x",
        ".git/x.png": b"x",
        "README": b"x",
        "cat/deep/er.JPG": picture(5),
    }
    listing = list_folder(write(tmp_path / "src", by_class(2) | extra))
    assert sorted(path.name for path in listing.ignored) == ["README", "notes.txt"]
    assert listing.class_names == ("cat", "dog")
    assert "er.JPG" in {file.name for files in listing.splits.values() for file, _ in files}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": b""}, "a folder for each class .* found no folder"),
        ({"cat/a.png": b"", "dog/notes.txt": b""}, "dog: expected images .* found none"),
        ({"train/cat/a.png": b"", "val/cow/b.png": b""}, "stand in train too, found cow"),
        (
            {"train/cat/a.png": b"", "val/cat/b.png": b"", "valid/cat/b.png": b""},
            "one folder to validate on, found val and valid",
        ),
        ({"cat/a.png": b""}, "two images or more .* --validation-fraction 0"),
    ],
)
def test_a_folder_that_cannot_be_taken_says_why(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        list_folder(write(tmp_path / "src", files))


@pytest.mark.parametrize(
    "name", ["c\nat", "cat ", " cat", "cat\r", "ca\u2028t", "c\udce4t"], ids=ascii
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_that_a_label_file_cannot_hold_is_refused_before_anything_is_written(
    tmp_path, data_dir, name, split
):
    root = write(tmp_path / "src", {f"{split}{each}/a.png": picture(1) for each in (name, "dog")})
    with pytest.raises(UserError, match=r"expected names of classes .* found '.*rename") as caught:
        prepare_folder(root, "pets", data_dir, validation_fraction=0)
    str(caught.value).encode()  # the line can be printed
    assert not data_dir.exists() and str(caught.value).isprintable()


def test_names_that_look_odd_but_can_be_held_keep_their_pictures(tmp_path, data_dir):
    names = ("a b", "ä", "名", "c,d", "#5", "ca\tt")
    root = write(tmp_path / "src", {f"{each}/a.png": picture(i) for i, each in enumerate(names)})
    prepare_folder(root, "odd", data_dir, validation_fraction=0)
    source = load_source("odd", "train", data_dir)
    for index, record in enumerate(source.records(range(len(names)))):
        folder = record.file_name.split("/")[0]
        assert source.class_names[record.label] == folder
        assert source[index]["image"][0, 0, 0] == names.index(folder)


def test_pipes_among_the_pictures_are_passed_over(tmp_path):
    root = write(tmp_path / "src", by_class(2))
    os.mkfifo(root / "cat" / "pipe.png")
    listing = list_folder(root, 0)
    assert len(listing.splits["train"]) == 4 and not listing.ignored


def test_wrong_arguments_are_named(tmp_path, data_dir):
    with pytest.raises(
        UserError, match=r"nothing: expected a folder of images by class, found nothing"
    ):
        list_folder(tmp_path / "nothing")
    root = write(tmp_path / "src", by_class(2))
    with pytest.raises(UserError, match=r"--validation-fraction: .* below 1, found 1.0"):
        list_folder(root, 1.0)
    for name in ("digits", "My Set", "", "../x"):
        with pytest.raises(UserError, match=r"--name: expected small letters"):
            prepare_folder(root, name, data_dir)


def test_turned_photographs_are_stored_as_they_are_and_come_out_upright(tmp_path, data_dir):
    files = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"train/a/{orientation}.jpg"] = encode(photograph()[:40, :60], exif=exif)
        assert exif_orientation(files[f"train/a/{orientation}.jpg"]) == orientation
    prepare_folder(write(tmp_path / "src", files), "turned", data_dir)
    source = load_source("turned", "train", data_dir)
    for index, record in enumerate(source.records(range(8))):
        expected = ImageOps.exif_transpose(Image.open(tmp_path / "src" / record.file_name))
        np.testing.assert_array_equal(source[index]["image"], np.asarray(expected))
    assert exif_orientation(b"no image") == exif_orientation(picture(1)) == 1


def test_an_interrupted_preparation_is_started_again(tmp_path, data_dir, monkeypatch):
    root = write(tmp_path / "src", by_class(6))
    with monkeypatch.context() as patch:
        patch.setattr("googlenet_jax.data.folder.exif_orientation", lambda encoded: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_folder(root, "pets", data_dir)
    (data_dir / "pets" / "incomplete.ABC_1.0.0").mkdir(parents=True)  # what a kill leaves
    prepare_folder(root, "pets", data_dir)
    assert [path.name for path in (data_dir / "pets").iterdir()] == ["1.0.0"]
    before = (data_dir / "pets" / "1.0.0").stat().st_mtime_ns
    prepare_folder(root, "pets", data_dir)  # a third time nothing is done
    assert (data_dir / "pets" / "1.0.0").stat().st_mtime_ns == before
    write(root, {"cat/new.png": picture(77)})
    with pytest.raises(
        UserError,
        match=r"holds \{'train': 10, 'validation': 2\}, but .* holds \{'train': 11, .*delete",
    ):
        prepare_folder(root, "pets", data_dir)


def test_the_inventory_reads_every_image_and_names_those_that_it_cannot(tmp_path, data_dir):
    files = by_class(4) | {"dog/bad.jpg": b"", "dog/cut.jpg": encode(photograph())[:5000]}
    prepare_folder(write(tmp_path / "src", files), "pets", data_dir, validation_fraction=0)
    inventory = take_inventory(load_source("pets", "train", data_dir), threads=2, progress=False)
    assert inventory.counts == {"cat": 4, "dog": 6}
    assert len(inventory.unreadable) == 2 and len(inventory.samples) == 8
    assert all(name in " ".join(inventory.unreadable) for name in ("dog/bad.jpg", "dog/cut.jpg"))
    write_counts(tmp_path / "counts.json", {"train": inventory})
    assert json.loads((tmp_path / "counts.json").read_text())["train"]["classes"] == {
        "cat": 4,
        "dog": 6,
    }
    draw_samples(tmp_path / "samples.png", inventory.samples)
    assert Image.open(tmp_path / "samples.png").size[0] > 300


def test_a_check_sum_tells_sets_of_one_name_and_number_apart(tmp_path, data_dir):
    sums = []
    for number, value in enumerate((1, 1, 2)):
        files = by_class(3) | {"cat/last.png": picture(value)}
        root = write(tmp_path / f"src{number}", files)
        prepare_folder(root, "pets", data_dir / str(number), validation_fraction=0)
        sums.append(load_source("pets", "train", data_dir / str(number)).checksum())
    assert sums[0] == sums[1] != sums[2]


def test_neither_writing_nor_reading_imports_tensorflow(tmp_path, data_dir):
    root = write(tmp_path / "src", by_class(2))
    code = (
        "import sys, pathlib; from googlenet_jax.data.folder import prepare_folder;"
        "prepare_folder(pathlib.Path(sys.argv[1]), 'pets', pathlib.Path(sys.argv[2])); "
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(data_dir)], capture_output=True, text=True
    )
    assert done.stdout.endswith("False\n"), done.stderr
