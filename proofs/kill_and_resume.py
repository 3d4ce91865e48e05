"""Runs of configs/digits.py (shortened), each ended by a signal once and started again, beside one
that was left alone. Prints JSON.

    python -m proofs kill_and_resume [--signal KILL|INT|TERM] [--runs 10] [--steps 40] [--seed 0] [--config.field=value …]

A third of the signals come while a checkpoint is being written (up to 30 ms after its temporary
folder appears), a third up to a second after a random line of metrics.jsonl, the others at any
moment from the start of the process on. Of each run it is checked that all arrays of the final
state (parameters, momenta, statistics, averages) equal the undisturbed run's bit for bit, that
metrics.jsonl has every line once, and that the lines are the same, images_per_second apart; after
SIGINT and SIGTERM also that the process ended by itself, with its exit status (130 or 0), a
traceback nowhere, and not more than a step after the signal.
"""

import argparse
import collections
import json
import os
import random
import shutil
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
STATUS = {"KILL": -signal.SIGKILL, "INT": 130, "TERM": 0}
MOMENTS = ("save", "line", "any")


def main() -> int:
    """Prints the results; returns 0 where every run passed, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signal", choices=STATUS, default="KILL")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, fields = parser.parse_known_args()
    rng, command = random.Random(args.seed), shortened(args.steps, fields)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        train(whole, command)  # fills the cache of compiled code
        shutil.rmtree(whole)
        begin = time.perf_counter()
        train(whole, command)
        seconds = time.perf_counter() - begin
        runs = []
        for number in range(args.runs):
            workdir = Path(folder, f"run{number}")
            killed = kill(
                workdir, command, args, rng, seconds, moment=MOMENTS[number % len(MOMENTS)]
            )
            train(workdir, command)
            runs.append({**killed, **compare(workdir, whole, args.steps)})
            print(f"{number + 1} of {args.runs}: {runs[-1]}", file=sys.stderr)
    checks = ("ended_as_it_should", "state_identical", "lines_identical", "each_line_once")
    good = sum(all(run[check] for check in checks) for run in runs)
    print(
        json.dumps({"signal": args.signal, "runs": len(runs), "good": good, "each": runs}, indent=2)
    )
    return 0 if good == len(runs) else 1


def shortened(steps: int, more: list[str]) -> list[str]:
    """The command that a person would give, without --workdir; `more` are further fields of the
    config.
    """
    fields = {"duration": f"{steps} steps", "schedule.warmup": "5 steps", "log_every": "3 steps"}
    fields |= {"checkpoint_every": "5 steps", "eval_every": "10 steps"}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "train.py", "--config=configs/digits.py", *overrides, *more]


def start(workdir: Path, command: list[str]) -> subprocess.Popen:
    """Starts the command in a folder; what it says goes to a file beside that."""
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, stderr=log)


def train(workdir: Path, command: list[str]) -> None:
    """Trains to the end, or goes on to it."""
    if start(workdir, command).wait():
        raise SystemExit(f"the run in {workdir} failed; try: {' '.join(command)}")


def kill(
    workdir: Path,
    command: list[str],
    args: argparse.Namespace,
    rng: random.Random,
    seconds: float,
    *,
    moment: str,
) -> dict[str, Any]:
    """Starts a run, which takes so many seconds, and sends it the signal at a random moment.
    Returns what it left.
    """
    process = start(workdir, command)
    delay = rng.uniform(0, 1)
    if moment == "save":
        step, delay = rng.randrange(5, args.steps + 1, 5), rng.uniform(0, 0.03)
        wait(process, lambda: any(workdir.glob(f"checkpoints/{step}.*tmp*")))
    elif moment == "line":
        step = rng.randint(1, args.steps - 2)
        wait(process, lambda: last_step(workdir) >= step)
    else:
        delay = rng.uniform(0.5, seconds)  # Python itself takes a part of the first second to start
    time.sleep(delay)
    at_signal, begin = last_step(workdir), time.perf_counter()
    process.send_signal(getattr(signal, f"SIG{args.signal}"))
    status = process.wait()
    said = workdir.with_suffix(".log").read_text()
    saved = max(
        (int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()), default=0
    )
    # A run that had finished before the signal came is none of its cases, but no fault either.
    too_late = status == 0 and "finished all" in said
    as_it_should = status == STATUS[args.signal] or too_late
    if args.signal != "KILL":
        # A line stands for up to three steps and is written a step late; then comes the step under
        # way.
        as_it_should &= "Traceback" not in said and saved <= at_signal + 3 + 1 + 1
        as_it_should &= "stopped by" in said or "finished all" in said
    return {
        "moment": moment,
        "status": status,
        "too_late": too_late,
        "ended_as_it_should": as_it_should,
        "left_an_unfinished_save": any(workdir.glob("checkpoints/*tmp*")),
        "last_line_at_signal": at_signal,
        "last_checkpoint": saved,
        "seconds_to_end": round(time.perf_counter() - begin, 2),
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
    """Whether a run that a signal ended came to the same end as the one left alone."""
    ours, theirs = final_state(workdir, steps), final_state(whole, steps)
    lines = read_metrics(workdir / METRICS_FILE)
    count = collections.Counter(
        (line["step"], line["split"], line.get("weights")) for line in lines
    )
    return {
        "arrays": len(ours),
        "state_identical": ours == theirs,
        "lines_identical": (
            without_speed(lines) == without_speed(read_metrics(whole / METRICS_FILE))
        ),
        "each_line_once": set(count.values()) == {1},
    }


def final_state(workdir: Path, steps: int) -> dict[str, bytes]:
    """The arrays of the last checkpoint, as bytes."""
    arrays = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(steps) / "state")
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def without_speed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what a clock decides."""
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in lines
    ]


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
