import argparse
import json

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from googlenet_jax.cli import prepare
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError


def run(*arguments) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_parser(parser.add_subparsers(dest="subcommand"))
    args = parser.parse_args(["prepare", *map(str, arguments)])
    return prepare.run(args)


def test_digits_are_prepared_without_a_network(tmp_path, capsys):
    assert run("digits", "--data-dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert "10 classes" in out and str(tmp_path / "digits" / "1.0.0") in out
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["train", "1,437", "examples"],
        ["test", "360", "examples"],
    ]
    assert len(load_source("digits", "test", tmp_path)) == 360


def test_counts_by_class_and_a_picture_of_samples_are_left_beside_the_set(tmp_path):
    assert run("digits", "--data-dir", tmp_path) == 0
    folder = tmp_path / "digits" / "1.0.0"
    counts = json.loads((folder / "counts.json").read_text())
    assert {split: found["examples"] for split, found in counts.items()} == {
        "train": 1437,
        "test": 360,
    }
    assert sum(found["classes"]["7"] for found in counts.values()) == 179  # scikit-learn's
    assert Image.open(folder / "samples.png").size > (300, 200)


def test_a_folder_is_prepared_without_a_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # TFDS leaves an empty folder there
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "My Pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(tmp_path / "My Pets" / name)
    (tmp_path / "My Pets" / "dog" / "bad.jpg").touch()
    (tmp_path / "My Pets" / "dog" / "notes.txt").touch()
    assert run("folder", tmp_path / "My Pets", "--data-dir", tmp_path / "data", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["num_classes"]) == ("my_pets", 2)
    assert sum(found["splits"].values()) == 5 and found["ignored"] == [
        str(tmp_path / "My Pets" / "dog" / "notes.txt")
    ]
    assert len(found["unreadable"]) == 1 and "dog/bad.jpg" in found["unreadable"][0]
    assert run("folder", tmp_path / "My Pets", "--data-dir", tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert "1 images can't be read; training stops at one unless data.on_bad_image is 'skip'" in out
    assert len(load_source("my_pets", "validation", tmp_path / "data")) >= 2


@pytest.mark.parametrize("arguments", [("folder",), ("digits", "somewhere")])
def test_only_a_folder_has_a_source(tmp_path, arguments):
    with pytest.raises(
        UserError, match="expected 'folder SRC' or 'detection-folder SRC', or the name"
    ):
        run(*arguments, "--data-dir", tmp_path)


def test_archives_that_are_fetched_by_hand_are_handed_on(tmp_path, monkeypatch):
    taken = {}

    def prepare_nothing(self, download_config):
        taken["manual_dir"] = download_config.manual_dir
        raise AssertionError("manual_dir should contain two files")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare_nothing)
    with pytest.raises(UserError, match="manual_dir should contain two files"):
        run("cifar10", "--data-dir", tmp_path, "--manual-dir", tmp_path / "archives")
    assert taken == {"manual_dir": str(tmp_path / "archives")}


def test_json_stands_alone_on_standard_output(tmp_path, capsys):
    for _ in range(2):  # a second time changes nothing
        assert run("digits", "--data-dir", tmp_path, "--json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "name": "digits",
            "folder": str(tmp_path / "digits" / "1.0.0"),
            "num_classes": 10,
            "splits": {"train": 1437, "test": 360},
            "unreadable": [],
            "ignored": [],
        }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", "TFDS knows no set of that name .did you mean 'cifar10'"),
        ("digitz", "did you mean 'digits'"),
        ("imdb_reviews", "expected the features image .* found only label, text"),
        ("cifar10:9.9.9", "only: 3.0.2"),
        ("../x", "Parsing builder name"),
    ],
)
def test_what_cannot_be_prepared_is_said_in_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        run(name, "--data-dir", tmp_path)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"),
            r"pip install 'googlenet-jax\[prepare\]'",
        ),
        (
            ModuleNotFoundError(
                "No module named 'importlib_resources'", name="importlib_resources"
            ),
            r"pip install 'googlenet-jax\[prepare\]'",
        ),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), "Python package scipy"),
        (ConnectionError("Max retries exceeded\nName or service not known"), "check the network"),
        (
            AssertionError("Manual directory /x does not exist.\nDownload it yourself."),
            "Manual directory /x does not exist. Download it",
        ),
    ],
)
def test_a_failed_preparation_says_what_to_do(tmp_path, monkeypatch, capsys, error, message):
    def fail(self, download_config):
        print("TFDS talks")
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=message) as raised:
        run("cifar10", "--data-dir", tmp_path, "--json")
    assert str(raised.value).startswith("data set 'cifar10': ") and "\n" not in str(raised.value)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "TFDS talks\n")
