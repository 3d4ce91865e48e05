"""Data sets in a bucket, as a server on this machine speaks it: copied once, read there, refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from googlenet_jax.cli.main import main
from googlenet_jax.data import bucket
from googlenet_jax.data.sources import load_source
from googlenet_jax.errors import UserError
from googlenet_jax.metrics.images import open_images
from googlenet_jax.runtime import copies
from googlenet_jax.training.loop import train
from googlenet_jax.training.writers import read_metrics
from tests.runtime.gcs_server import BUCKET, FORBIDDEN, serving
from tests.training.tiny_run import tiny_config

URL = f"gs://{BUCKET}/data"
TEST = "digits-test.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def server(digits_dir):
    """What the server holds, with the digits; this process and those that it starts find it."""
    with serving() as (environment, held), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for path in digits_dir.glob("digits/1.0.0/*"):
            (epath.Path(URL) / "digits" / "1.0.0" / path.name).write_bytes(path.read_bytes())
        yield held


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """Where copies go."""
    monkeypatch.setenv(bucket.CACHE, str(tmp_path / "copies"))
    monkeypatch.delenv(bucket.LIMIT, raising=False)
    return tmp_path / "copies"


def copied(cache):
    return sorted(path.name for path in cache.glob("*/*") if path.name[0] != ".")


def alike(one, other):
    assert len(one) == len(other) and one.identity() == other.identity()
    for index in (0, len(one) - 1):
        assert np.array_equal(one[index]["image"], other[index]["image"])


def test_a_split_is_copied_once(cache, digits_dir, capfd, monkeypatch):
    local = load_source("digits", "test[:50]", digits_dir)
    alike(load_source("digits", "test[:50]", URL), local)
    (folder,) = cache.iterdir()
    assert f"copying 198kB of {URL}/digits/1.0.0 to {folder}" in capfd.readouterr().err
    assert copied(cache) == ["dataset_info.json", TEST, "features.json", "label.labels.txt"]
    monkeypatch.setattr(copies, "_copy", None)  # nothing is copied again
    again = load_source("digits", "test[:50]", f"{URL}/")
    assert again.checksum() == local.checksum()
    alike(pickle.loads(pickle.dumps(again)), local)
    assert "copying" not in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv(bucket.CACHE, str(cache))
    (folder / TEST).write_bytes(b"cut short by hand")
    alike(load_source("digits", "test[:50]", URL), local)


def test_processes_side_by_side_copy_once(cache):
    program = (
        "from googlenet_jax.data.sources import load_source; from googlenet_jax.runtime import copies\n"
        "copy, said = copies._copy, []\n"
        "copies._copy = lambda client, stored, *rest: (said.append(1), copy(client, stored, *rest))\n"
        f"print(len(load_source('digits', 'test', {URL!r})), len(said))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(each.communicate(timeout=100)[0].split()[-2:] for each in started)
    assert said == [["360", "0"], ["360", "4"]] and len(copied(cache)) == 4


def test_a_set_that_has_changed_is_copied_beside_the_old_one(cache):
    load_source("digits", "test", URL)
    shard = epath.Path(URL) / "digits" / "1.0.0" / TEST
    shard.write_bytes(shard.read_bytes())
    load_source("digits", "test", URL)
    assert len(list(cache.iterdir())) == 2


def test_what_is_larger_than_copies_may_be_is_read_where_it_is(
    cache, digits_dir, monkeypatch, capfd
):
    monkeypatch.setenv(bucket.LIMIT, "0")
    local = load_source("digits", "test[:50]", digits_dir)
    there = load_source("digits", "test[:50]", URL)
    alike(there, local)
    assert there.checksum() == local.checksum() and not cache.exists()
    said = capfd.readouterr().err
    assert f"digits: read from {URL}/digits/1.0.0 example by example, as its copy takes" in said


def test_what_can_not_be_copied_or_read_is_refused(cache, monkeypatch):
    monkeypatch.setattr(bucket, "_readable", lambda objects: False)
    monkeypatch.setenv(bucket.LIMIT, "0.0001")
    with pytest.raises(
        UserError, match=rf"takes 198kB more in .* {bucket.LIMIT}=0\.0002 allows it"
    ):
        load_source("digits", "test", URL)
    monkeypatch.delenv(bucket.LIMIT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(UserError, match=rf"has 0.00B free: {bucket.CACHE} names another folder"):
        load_source("digits", "test", URL)
    monkeypatch.setenv(bucket.LIMIT, "much")
    with pytest.raises(UserError, match="expected a number of gigabytes such as 200, found 'much'"):
        load_source("digits", "test", URL)


def test_a_copy_is_checked(cache, server, monkeypatch):
    get = type(server).get_file

    def damaged(self, *args):
        content = get(self, *args)
        return content[:-1] + b"?" if args[1].endswith(TEST) else content

    with monkeypatch.context() as patch:
        patch.setattr(type(server), "get_file", damaged)
        with pytest.raises(UserError, match=rf"{TEST}: expected .* bytes with the checksum"):
            load_source("digits", "test", URL)
    assert TEST not in copied(cache) and not list(cache.glob("*/*.partial"))

    listed = copies.list_objects

    def changing(folder):
        found = listed(folder)
        shard = epath.Path(URL) / "digits" / "1.0.0" / TEST
        shard.write_bytes(shard.read_bytes())
        return found

    monkeypatch.setattr(bucket, "list_objects", changing)
    with pytest.raises(UserError, match=rf"{TEST}: it was changed or removed while"):
        load_source("digits", "test", URL)


def test_a_full_disk_is_named(cache, monkeypatch):
    def full(self, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(copies._Counted, "write", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        load_source("digits", "test", URL)


@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("digits", "gs://nobucket/data", "there is no such bucket"),
        ("digits", f"gs://{FORBIDDEN}/data", "ask for the roles"),
        ("digits", f"gs://{BUCKET}", "data.dir: expected a folder or gs://BUCKET/FOLDER"),
        ("digits", "s3://bucket/data", "data.dir: expected a folder or gs://BUCKET/FOLDER"),
        ("cifar10", URL, rf"not prepared in {URL}; .*gcloud storage cp -r DIR/cifar10 {URL}/"),
        ("digits", f"{URL}/other", "not prepared in"),
    ],
)
def test_what_is_not_there_is_named(cache, name, folder, said):
    with pytest.raises(UserError, match=said):
        load_source(name, "test", folder)


def test_a_missing_shard_is_named(cache, digits_dir):
    for path in digits_dir.glob("digits/1.0.0/*"):
        if path.name != TEST:
            (epath.Path(URL) / "lacks" / "digits" / "1.0.0" / path.name).write_bytes(
                path.read_bytes()
            )
    with pytest.raises(UserError, match=f"lacks {TEST}; copy the whole folder there"):
        load_source("digits", "test", f"{URL}/lacks")


def test_the_commands_read_a_bucket_and_prepare_writes_a_disk(cache, capsys):
    assert main(["prepare", "digits", "--data-dir", URL]) == 1
    assert "data sets are written on a disk" in capsys.readouterr().err
    assert main(["proposals", "digits", "--split", "test", "--data-dir", URL]) == 1
    assert "choose a detection set" in capsys.readouterr().err
    assert open_images("digits@test[:2]", URL).read(0).shape == (8, 8, 3)


@pytest.mark.proof
def test_a_run_of_data_in_a_bucket_is_evaluated_on_them(cache, tmp_path, capsys):
    config = tiny_config(tmp_path)
    config.data.update(dir=URL, train_split="train[:64]", eval_splits=("test[:40]",))
    config.duration = config.eval_every = config.checkpoint_every = "2 steps"
    train(config, tmp_path / "run")
    (seen,) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1:]
    capsys.readouterr()
    assert main(["evaluate", "--weights", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == seen["examples"] == 40
