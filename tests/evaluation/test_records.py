"""An evaluation counts every example once, and goes on where it was stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import Ensemble
from googlenet_jax.evaluation.records import Record, evaluate_ensemble, identity
from googlenet_jax.runtime.sharding import create_mesh
from googlenet_jax.weights.trained_model import TrainedModel
from tests.evaluation.test_ensemble import CLASSES, images, member

COUNT = 23


class Pictures(Source):
    """A source of real pictures of many shapes; counts what is read."""

    name, split = "pictures", "test"
    class_names = tuple("abcdef")

    def __init__(self, kill_at: int | None = None) -> None:
        self.reads: list[int] = []
        self._images = images(COUNT)
        self._kill_at = kill_at

    def __len__(self) -> int:
        return COUNT

    def checksum(self) -> int:
        return sum(int(image.sum()) for image in self._images)

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        if self._kill_at is not None and self._kill_at in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        self.reads += indices
        return [{"image": self._images[i], "label": i % CLASSES} for i in indices]


def two_members() -> list[TrainedModel]:
    """Of one input size, so that crops are cut by one program."""
    rgb = member("rgb", 0, Preprocessing(size=14, resize=16))
    return [rgb, member("bgr", 1, Preprocessing(size=14, resize=20, channel_order="bgr"))]


def evaluate(
    source: Pictures, path: Path | None = None, *, batch_size: int = 4, crops: int = 10
) -> list[Record]:
    ensemble = Ensemble(
        two_members(),
        crops=crops,
        batch_size=batch_size,
        mesh=create_mesh(),
        class_names=source.class_names,
        images_at_most=COUNT,
    )
    chosen: Any = source
    return evaluate_ensemble(ensemble, chosen, path=path, threads=1, progress=False)


def in_a_process(mode: str, path: Path, devices: int = 1) -> subprocess.CompletedProcess:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.evaluation.test_records", mode, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def assert_same(found: list[Record], expected: list[Record]) -> None:
    for name in ("index", "label", "rank", "classes"):
        assert [each[name] for each in found] == [each[name] for each in expected], name
    for name in ("log_probability", "probabilities"):
        values = [[each[name] for each in records] for records in (found, expected)]
        np.testing.assert_allclose(*values, atol=1e-4)


@pytest.mark.proof
def test_every_example_counts_once_whatever_batch_size_and_devices(tmp_path: Path) -> None:
    expected = evaluate(Pictures(), crops=144, batch_size=600)
    assert [each["index"] for each in expected] == list(range(COUNT))
    assert [each["label"] for each in expected] == [i % CLASSES for i in range(COUNT)]
    process = in_a_process("devices", tmp_path, devices=8)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert results["devices"] == 8
    for found in results["records"]:
        assert_same(found, expected)


@pytest.mark.proof
def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "output" / "examples.jsonl"
    process = in_a_process("kill", path)
    assert process.returncode == -signal.SIGKILL, process.stderr
    done = path.read_text().count("\n") - 1
    assert 0 < done < COUNT
    source = Pictures()
    records = evaluate(source, path, batch_size=40)
    assert source.reads == list(range(done, COUNT))
    assert_same(records, evaluate(Pictures()))
    assert evaluate(again := Pictures(), path) == records and again.reads == []


def test_a_record_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    records = evaluate(Pictures(), path)
    whole = path.read_bytes()
    for cut_at in (len(whole) - 1, len(whole) - 100, whole.index(b"\n") - 5, 0):
        path.write_bytes(whole[:cut_at])
        assert_same(evaluate(Pictures(), path), records)
        assert path.read_bytes().count(b"\n") == COUNT + 1


def test_another_evaluation_in_the_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    evaluate(Pictures(), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"examples\.jsonl: holds an evaluation with another crops"):
        evaluate(Pictures(), path, crops=1)
    other = Pictures()
    other.split = "train"
    with pytest.raises(UserError, match="another split"):
        evaluate(other, path)
    assert path.read_bytes() == before


def test_other_pictures_of_the_same_name_and_number_are_another_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    evaluate(Pictures(), path)
    other = Pictures()
    other._images[3] = 255 - other._images[3]
    with pytest.raises(UserError, match="another content"):
        evaluate(other, path)


def test_networks_that_differ_in_an_option_alone_are_two(tmp_path: Path) -> None:
    """As `transform_input`, which is in no variable."""
    source: Any = Pictures()
    model = gj.create_model("googlenet_torchvision", num_classes=6, width=0.02)
    sample = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(lambda key: model.init(key, sample, train=False))(jax.random.key(0))
    preprocessing = Preprocessing(size=32, resize=32)
    identities = [
        identity(
            Ensemble(
                [TrainedModel(network, variables, preprocessing, names, "m")],
                batch_size=4,
                mesh=create_mesh(),
                class_names=source.class_names,
            ),
            source,
        )
        for network in (model, model.clone(transform_input=True), model.clone())
        for names in (tuple("abcdef"), tuple("fedcba"))
    ]
    assert [identities.index(each) for each in identities] == [0, 1, 2, 3, 0, 1]
    assert json.loads(json.dumps(identities)) == identities


@pytest.mark.parametrize("line", ["not JSON", '{"index": 7}', "[]", '{"no": "index"}'])
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "examples.jsonl"
    evaluate(Pictures(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[4:]]) + "\n")
    with pytest.raises(UserError, match=r"examples\.jsonl, line 4: .*remove the file"):
        evaluate(Pictures(), path)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_evaluation_in_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another evaluation writes it"):
            evaluate(Pictures(), path)
        other.stdin.close()
    evaluate(Pictures(), path)


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        evaluate(Pictures(), tmp_path / "file" / "examples.jsonl")


def test_outputs_that_are_not_finite_are_named() -> None:
    broken = two_members()
    kernel = broken[1].variables["params"]["Dense_0"]["kernel"]
    broken[1].variables["params"]["Dense_0"]["kernel"] = kernel.at[0, 0].set(np.nan)
    ensemble = Ensemble(broken, batch_size=4, mesh=create_mesh())
    with pytest.raises(UserError, match="bgr: its outputs for example 0 are not finite"):
        evaluate_ensemble(ensemble, Pictures(), threads=1, progress=False)  # type: ignore[arg-type]


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "kill":
        evaluate(Pictures(kill_at=15), folder)
    else:
        runs = [evaluate(Pictures(), crops=144, batch_size=size) for size in (8, 2000)]
        import jax

        print(json.dumps({"devices": jax.device_count(), "records": runs}))
