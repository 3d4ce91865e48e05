"""Meshes of a user's: the same run on every layout, parameters split over a second axis too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.sharding import create_mesh, parse_shards, split_longest


@pytest.mark.parametrize(
    "network", ["tiny", pytest.param("googlenet_bn", marks=pytest.mark.exhaustive)]
)
@pytest.mark.proof
def test_every_layout_trains_alike(tmp_path: Path, data_dir: Path, network: str) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.meshes", str(tmp_path), str(data_dir), network]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["1x1"]["split"] == found["1x8"]["split"] == {"params": 0, "optimizer": 0}
    for split in ("2x4", "fsdp"):
        assert min(found[split]["split"].values()) > 3
    one = np.load(tmp_path / "1x1.npz")
    for name in ("1x8", "2x4", "fsdp"):
        other = np.load(tmp_path / f"{name}.npz")
        for key in one.files:
            difference = np.linalg.norm(other[key] - one[key])
            assert difference <= 1e-9 * max(np.linalg.norm(one[key]), 1e-3), (name, key)
        assert found[name]["loss"] == pytest.approx(found["1x1"]["loss"], rel=1e-9)


def test_what_can_not_be_a_mesh() -> None:
    with pytest.raises(UserError, match=r"devices\.mesh: .* takes 3 devices, and there are"):
        create_mesh(axes="data=3")
    for axes in ("model=1", "data=", "data=1;model=1", "data=1,data=1"):
        with pytest.raises(UserError, match=r"devices\.mesh: expected axes"):
            create_mesh(axes=axes)
    mesh = create_mesh(jax.devices()[:1], "data=1,model=1")
    assert parse_shards(("*/kernel=model",), mesh) == [("*/kernel", "model")]
    assert split_longest((3, 3, 8, 16), mesh, "model").spec == PartitionSpec(
        None, None, None, "model"
    )
    with pytest.raises(UserError, match=r"devices\.shard: expected PATTERN=AXIS.*data, model"):
        parse_shards(("*=expert",), mesh)
