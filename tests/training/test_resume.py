"""A process killed with SIGKILL and started again ends as if it had never been killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from googlenet_jax.training.writers import read_metrics

ROOT = Path(__file__).parents[2]


def start(workdir, data_dir, compiled_dir):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(compiled_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.training.tiny_run", str(workdir), str(data_dir)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, stderr=subprocess.DEVNULL)


def saving(workdir):
    return any(workdir.glob("checkpoints/*tmp*"))


def past_the_middle(workdir):
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and any(line["step"] >= 15 for line in read_metrics(metrics))


def final_state(workdir):
    path = workdir / "checkpoints" / "24" / "state"
    return {
        name: np.asarray(array)
        for name, array in ocp.PyTreeCheckpointer().restore(path.absolute()).items()
    }


def lines_of(workdir):
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


@pytest.mark.proof
def test_a_killed_run_ends_as_one_never_killed(tmp_path, data_dir, compiled_dir):
    """Killed twice: while a checkpoint is being written, and between two of them."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, data_dir, compiled_dir).wait() == 0
    for moment in (saving, past_the_middle):
        process = start(killed, data_dir, compiled_dir)
        while process.poll() is None and not moment(killed):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(killed, data_dir, compiled_dir).wait() == 0

    ours, theirs = final_state(killed), final_state(whole)
    assert (
        ours.keys() == theirs.keys()
        and "opt_state/1/trace/head/kernel" in ours
        and "ema/batch_stats/bn/mean" in ours
    )
    assert [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    assert lines_of(killed) == lines_of(whole)
