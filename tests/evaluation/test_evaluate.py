"""Evaluation counts every example once, whatever the batch size and the number of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source, load_source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import evaluate_source, make_eval_step
from googlenet_jax.models.network import Output
from googlenet_jax.runtime.sharding import create_mesh, replicate

PREPROCESSING = Preprocessing(size=8, resize=8)


def digits(folder: Path) -> Source:
    return load_source("digits", "test", str(folder))


class Tiny(nn.Module):
    """A network of the same interface, compiled at once; random, so that its answers are right now
    and then.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        x = nn.relu(nn.Conv(8, (3, 3))(images))
        return Output(nn.Dense(10)(x.reshape(len(x), -1)), {})


def evaluate(source: Source, batch_size: int) -> dict[str, float]:
    mesh, model = create_mesh(), Tiny()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    step = make_eval_step(model, PREPROCESSING, mesh)
    return evaluate_source(
        step,
        replicate(variables, mesh),
        source,
        batch_size=batch_size,
        preprocessing=PREPROCESSING,
        mesh=mesh,
        threads=2,
        progress=False,
    )


def evaluate_on(devices: int, folder: Path, batch_sizes: list[int]) -> list[dict[str, float]]:
    """In a process of its own with that many simulated devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, str(folder), *map(str, batch_sizes)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert [result.pop("devices") for result in results] == [devices] * len(batch_sizes)
    return results


def test_every_example_counts_once_whatever_batch_size_and_devices(tmp_path: Path) -> None:
    source = digits(tmp_path)
    results = [
        result for devices in (1, 8) for result in evaluate_on(devices, tmp_path, [7, 64, 1000])
    ]
    assert [result["examples"] for result in results] == [len(source)] * 6
    assert len({result["top1"] for result in results}) == 1
    assert len({result["top5"] for result in results}) == 1
    np.testing.assert_allclose(
        [result["loss"] for result in results], results[0]["loss"], rtol=1e-5
    )
    assert 0 < results[0]["top1"] < results[0]["top5"] < 1


def test_sums_are_means_over_the_examples(tmp_path: Path) -> None:
    source = digits(tmp_path)
    mesh = create_mesh()
    seen: list[int] = []

    def step(variables: None, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        weight = batch["weight"]
        seen.extend(np.asarray(batch["label"])[np.asarray(weight) > 0].tolist())
        return {
            "loss": (weight * batch["label"]).sum(),
            "top1": (weight * (batch["label"] == 3)).sum(),
            "examples": weight.sum(),
        }

    result = evaluate_source(
        step,
        None,
        source,
        batch_size=50,
        preprocessing=PREPROCESSING,
        mesh=mesh,
        threads=2,
        progress=False,
    )
    labels = [source[i]["label"] for i in range(len(source))]
    assert seen == labels
    assert result == {
        "loss": pytest.approx(np.mean(labels)),
        "top1": labels.count(3) / len(labels),
        "examples": len(labels),
    }


def test_a_batch_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch size: expected at least 1, found 0"):
        evaluate(digits(tmp_path), 0)


if __name__ == "__main__":
    source = digits(Path(sys.argv[1]))
    print(
        json.dumps(
            [
                {"devices": jax.device_count(), **evaluate(source, int(size))}
                for size in sys.argv[2:]
            ]
        )
    )
