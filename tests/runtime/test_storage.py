"""A run on Google Cloud Storage, as a server on this machine speaks it: whole, stopped, killed,
held by one run, refused.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from googlenet_jax.cli import members
from googlenet_jax.cli.main import main
from googlenet_jax.errors import UserError
from googlenet_jax.runtime import google_cloud, storage
from googlenet_jax.training import loop, writers
from googlenet_jax.training.finetune import read_initial
from googlenet_jax.training.folder import write_config
from googlenet_jax.training.loop import train
from googlenet_jax.training.writers import METRICS_FILE, read_metrics
from googlenet_jax.weights import checkpoints as checkpoint
from googlenet_jax.weights.load import load
from tests.runtime.gcs_server import BUCKET, FORBIDDEN, serving
from tests.training.tiny_run import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def server():
    """What the server holds; this process and those that it starts find it."""
    with serving() as (environment, held), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield held


@pytest.fixture
def quick(monkeypatch):
    """Signs of life in tenths of a second."""
    monkeypatch.setattr(google_cloud, "BEAT", 0.05)
    monkeypatch.setattr(google_cloud, "SILENCE", 0.5)


def config_of(data_dir):
    """12 steps: an evaluation and a checkpoint after 4, 8 and 12."""
    config = tiny_config(Path(data_dir))
    config.duration, config.data.eval_splits = "3 epochs", ("test[:100]",)
    return config


# A process that trains, to be killed.
TRAIN = """
import sys
from googlenet_jax.training.loop import train
from tests.runtime.test_storage import config_of
train(config_of(sys.argv[1]), sys.argv[2])
"""


def bits(workdir):
    run = load(f"{workdir}@ema")
    leaves = [run.variables["params"]["head"]["kernel"], run.variables["batch_stats"]["bn"]["mean"]]
    return run.step, [np.asarray(leaf).tobytes() for leaf in leaves]


def lines_of(workdir):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(storage.run_folder(workdir) / "metrics.jsonl")
    ]


def objects(folder):
    """Name -> bytes of all that lies in a store's folder."""
    found = {}
    for path in folder.iterdir():
        if path.is_dir():
            found |= {f"{path.name}/{name}": value for name, value in objects(path).items()}
        else:
            found[path.name] = path.read_bytes()
    return found


def stopped_in_the_evaluation_of(step, monkeypatch):
    """Sends this process SIGTERM as the evaluation after `step` steps begins."""
    evaluate = loop._evaluate

    def stopped(task, state, now, *rest):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(task, state, now, *rest)

    monkeypatch.setattr(loop, "_evaluate", stopped)


@pytest.mark.proof
def test_killed_stopped_and_damaged_a_run_on_a_store_ends_as_a_local_one(
    tmp_path, data_dir, compiled_dir, monkeypatch, capfd, server
):
    url, local = f"gs://{BUCKET}/run", tmp_path / "whole"
    folder = epath.Path(url)
    train(config_of(data_dir), local)

    # Killed as the second checkpoint is about to count: it does not, and the lease that is left
    # does not block.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    unfinished, marker = folder / "checkpoints" / "8", "commit_success.txt"
    command = [sys.executable, "-c", TRAIN, str(data_dir), url]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | cache, stderr=subprocess.DEVNULL
    ) as process:
        server.instead[f"run/checkpoints/8/{marker}"] = process.kill
    assert process.returncode == -signal.SIGKILL
    assert (folder / ".lock").exists() and not (unfinished / marker).exists()
    with monkeypatch.context() as patch:
        stopped_in_the_evaluation_of(8, patch)
        with pytest.raises(SystemExit):
            train(config_of(data_dir), url)
    said = capfd.readouterr().err
    assert f"{unfinished} is a checkpoint that was never finished; it is removed" in said
    assert f"{url}: resuming after step 4" in said and "waiting" not in said
    assert "stopped by SIGTERM after step 8 of 12, which is saved" in said

    # The evaluation is made up for, and its checkpoint replaced.
    train(config_of(data_dir), url)
    assert f"{url}: finished all 12 steps" in capfd.readouterr().err
    assert bits(url) == bits(local) and lines_of(url) == lines_of(local)
    there = objects(folder)
    assert {name.split("/")[0] for name in there} == {
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "tensorboard",
    }
    assert {name.split("/")[1] for name in there if "/" in name} & {"4", "8", "12"} == {
        "4",
        "8",
        "12",
    }
    assert main(["plot", url, "--output", str(tmp_path / "curves.png"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][url][-1]["step"] == 12

    # What reads a run takes the URL.
    assert members._load(f"{url}@raw@8").about == {
        "name": f"{url}@raw@8",
        "step": 8,
        "weights": "raw",
    }
    assert read_initial(ConfigDict({"init_from": url})).class_names == load(local).class_names

    # An array's bytes are damaged: the checkpoint before it is taken.
    for name in there:
        if name.startswith("checkpoints/12/state/") and "/d/" in name:
            (folder / name).write_bytes(b"damaged")
    assert load(url).step == 8
    assert f"checkpoint {folder / 'checkpoints' / '12'} is damaged" in capfd.readouterr().err
    checkpoint._move_aside(folder / "checkpoints" / "12")
    assert (folder / "checkpoints" / "damaged-12" / marker).exists()
    assert not (folder / "checkpoints" / "12").exists() and load(url).step == 8


def test_a_second_run_is_refused_while_the_first_gives_signs_of_life(quick, monkeypatch):
    monkeypatch.setattr(
        google_cloud, "SILENCE", 5
    )  # a loaded machine's threads are silent for long
    folder = epath.Path(f"gs://{BUCKET}/held")
    refusal = rf"^{folder}: process {os.getpid()} on .* is training in this folder; wait for it"
    with (
        google_cloud.leased(folder / ".lock"),
        pytest.raises(UserError, match=refusal),
        google_cloud.leased(folder / ".lock"),
    ):
        pytest.fail("two runs hold one folder")
    assert not (folder / ".lock").exists()


def test_who_is_silent_for_long_is_replaced_and_ends(quick, monkeypatch, capfd):
    folder = epath.Path(f"gs://{BUCKET}/silent")
    first, second = google_cloud._Lease(folder / ".lock"), google_cloud._Lease(folder / ".lock")
    first.take()
    assert not second._write(0), "the store must let one of two that start at once have it"
    second.take()
    assert "waiting 0.5 s for a sign of its life" in capfd.readouterr().err
    statuses = []
    monkeypatch.setattr(google_cloud.os, "_exit", statuses.append)
    first.start()
    while not statuses:
        time.sleep(0.01)
    first._ended.set()
    first._thread.join()
    assert (
        set(statuses) == {1}
        and "another process has taken this folder over" in capfd.readouterr().err
    )
    second.start()
    second.release()


def test_lines_are_uploaded_with_an_evaluation_and_from_time_to_time(monkeypatch):
    folder = epath.Path(f"gs://{BUCKET}/lines")
    line = {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0}
    writer = writers.MirrorWriter(
        folder, lambda local: writers.JsonLinesWriter(local / METRICS_FILE)
    )
    writer.write(line)
    assert not (folder / METRICS_FILE).exists()
    writer.write({**line, "split": "test", "weights": "raw"})
    assert len(read_metrics(folder / METRICS_FILE)) == 2
    monkeypatch.setattr(writers, "SECONDS_BETWEEN_UPLOADS", 0)
    writer.write({**line, "step": 2})
    assert len(read_metrics(folder / METRICS_FILE)) == 3
    writer.close()
    assert [path.name for path in folder.iterdir()] == [METRICS_FILE]


STATES = {
    "the old one is being copied": ({"8/a", "8/end", "unevaluated-8/a"}, "old"),
    "both are there": ({"8/a", "8/end", "unevaluated-8/a", "unevaluated-8/end"}, "old"),
    "the old one is being removed": ({"8/a", "unevaluated-8/a", "unevaluated-8/end"}, "old"),
    "the new one is being written": ({"8/b", "unevaluated-8/a", "unevaluated-8/end"}, "old"),
    "the new one is there": ({"8/b", "8/end", "unevaluated-8/a", "unevaluated-8/end"}, "new"),
    "the old copy is being removed": ({"8/b", "8/end", "unevaluated-8/a"}, "new"),
}


@pytest.mark.parametrize(("names", "left"), STATES.values(), ids=STATES)
def test_a_replacement_cut_short_leaves_one_of_the_two_whole(names, left):
    folder = epath.Path(f"gs://{BUCKET}/{uuid.uuid4().hex}/checkpoints")
    for name in names:
        (folder / name.replace("end", "commit_success.txt")).write_bytes(b"")
    checkpoint._tidy(folder)
    kept = "8/a" if left == "old" else "8/b"
    assert set(objects(folder)) == {".keep", kept, "8/commit_success.txt"}


@pytest.mark.parametrize(
    ("workdir", "text"),
    [
        (f"s3://{BUCKET}/run", "--workdir: expected a folder or gs://BUCKET/FOLDER, found 's3://"),
        (
            f"gs://{BUCKET}",
            "--workdir: expected a folder or gs://BUCKET/FOLDER, found 'gs://bucket'",
        ),
        ("gs://none/run", "gs://none: there is no such bucket; create it first, or name another"),
        (f"gs://{FORBIDDEN}/run", "ask for the roles Storage Object User"),
        (f"gs://{BUCKET}/empty", f"gs://{BUCKET}/empty: no folder 'checkpoints' in it"),
    ],
)
def test_what_can_not_be_used_is_refused_in_one_line(workdir, text):
    with pytest.raises(UserError) as caught:
        load(workdir)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_what_may_not_be_written_is_one_line():
    folder = epath.Path(f"gs://{FORBIDDEN}/run")
    with (
        pytest.raises(UserError, match=rf"^{folder}: .*; ask for the roles"),
        storage.reaching(folder),
    ):
        write_config(folder, {})


def test_without_its_package_credentials_or_network_a_store_is_refused(monkeypatch):
    google_cloud.check_bucket.cache_clear()
    monkeypatch.setattr(google_cloud, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="run the same command again when it answers"):
        load("gs://bucket/run")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with pytest.raises(UserError, match="name a key's file in GOOGLE_APPLICATION_CREDENTIALS"):
        load("gs://bucket/run")
    monkeypatch.setattr(google_cloud, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gcsfs; pip install 'googlenet-jax\[gcs\]'"):
        load("gs://bucket/run")


def test_a_store_that_does_not_answer_is_no_damage():
    """The texts are TensorStore's own."""
    unreachable = (
        "ABORTED: Error reading gs://b/manifest.ocdbt: All 33 retry attempts failed: CURL error"
    )
    damaged = "DATA_LOSS: Error decoding gs://b/manifest.ocdbt: Encoded length (1) is less than 16"
    on_store, on_disk = storage.storage_of("gs://b/run"), storage.storage_of("/b/run")
    assert "the store can't be used" in on_store.refusal(ValueError(unreachable))
    assert on_disk.refusal(ValueError(unreachable)) is None
    assert on_store.refusal(ValueError(damaged)) is None
    assert on_store.refusal(FileNotFoundError("b/manifest.ocdbt")) is None
