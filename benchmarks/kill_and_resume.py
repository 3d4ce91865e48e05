"""Runs of configs/digits.py (shortened), each killed with SIGKILL once and started again, beside one that was never killed. Prints JSON.

    python benchmarks/kill_and_resume.py [--runs 10] [--steps 40] [--seed 0] [--config.field=value …]

Every other run is killed while a checkpoint is being written (up to 30 ms after its temporary folder appears), the others up to a second
after a random line of metrics.jsonl. Of each it is checked that all arrays of the final state (parameters, momenta, statistics, averages)
equal the uninterrupted run's bit for bit, that metrics.jsonl has every line once, and that the lines are the same, images_per_second apart.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from googlenet_jax.training.writers import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Prints the results; returns 0 where every run ended as the one never killed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, fields = parser.parse_known_args()
    rng, command = random.Random(args.seed), shortened(args.steps, fields)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        train(whole, command)
        runs = []
        for number in range(args.runs):
            workdir = Path(folder, f"run{number}")
            killed = kill(workdir, command, args.steps, rng, during_save=number % 2 == 1)
            train(workdir, command)
            runs.append({**killed, **compare(workdir, whole, args.steps)})
            print(f"{number + 1} of {args.runs}: {runs[-1]}", file=sys.stderr)
    identical = sum(run["killed"] and run["state_identical"] and run["lines_identical"] and run["each_line_once"] for run in runs)
    during_save = sum(run["killed_during_save"] for run in runs)
    print(json.dumps({"runs": len(runs), "killed_during_save": during_save, "identical": identical, "each": runs}, indent=2))
    return 0 if identical == len(runs) else 1


def shortened(steps: int, more: list[str]) -> list[str]:
    """The command that a person would give, without --workdir; `more` are further fields of the recipe."""
    fields = {"duration": f"{steps} steps", "schedule.warmup": "5 steps", "log_every": "3 steps"}
    fields |= {"checkpoint_every": "5 steps", "eval_every": "10 steps"}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "train.py", "--config=configs/digits.py", *overrides, *more]


def start(workdir: Path, command: list[str]) -> subprocess.Popen:
    """Starts the command in a folder."""
    return subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, stderr=subprocess.DEVNULL)


def train(workdir: Path, command: list[str]) -> None:
    """Trains to the end, or goes on to it."""
    if start(workdir, command).wait():
        raise SystemExit(f"the run in {workdir} failed; try: {' '.join(command)}")


def kill(workdir: Path, command: list[str], steps: int, rng: random.Random, *, during_save: bool) -> dict[str, Any]:
    """Starts a run and kills it at a random moment. Returns what it left."""
    process = start(workdir, command)
    if during_save:
        step, delay = rng.randrange(5, steps + 1, 5), rng.uniform(0, 0.03)
        wait(process, lambda: any(workdir.glob(f"checkpoints/{step}.*tmp*")))
    else:
        step, delay = rng.randint(1, steps - 2), rng.uniform(0, 1)
        wait(process, lambda: last_step(workdir) >= step)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    checkpoints = workdir / "checkpoints"
    return {
        "killed": status == -signal.SIGKILL,
        "killed_during_save": any(checkpoints.glob("*tmp*")),
        "last_line_step": last_step(workdir),
        "last_checkpoint_step": max((int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), default=0),
    }


def wait(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    """Returns at the moment, or when the process has ended."""
    while process.poll() is None and not moment():
        time.sleep(0.001)


def last_step(workdir: Path) -> int:
    """The step of the last line, 0 where there is none."""
    path = workdir / METRICS_FILE
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def compare(workdir: Path, whole: Path, steps: int) -> dict[str, Any]:
    """Whether a run that was killed ended as the one never killed."""
    ours, theirs = final_state(workdir, steps), final_state(whole, steps)
    lines = read_metrics(workdir / METRICS_FILE)
    count = collections.Counter((line["step"], line["split"], line.get("weights")) for line in lines)
    return {
        "arrays": len(ours),
        "state_identical": ours == theirs,
        "lines_identical": without_speed(lines) == without_speed(read_metrics(whole / METRICS_FILE)),
        "each_line_once": set(count.values()) == {1},
    }


def final_state(workdir: Path, steps: int) -> dict[str, bytes]:
    """The arrays of the last checkpoint, as bytes."""
    arrays = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(steps) / "state")
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def without_speed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what a clock decides."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
