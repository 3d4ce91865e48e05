"""Runs of the tiny network of tests/faults/ on one, two and four processes, of which one is sent a
signal once at a random moment; then all are started again. Prints JSON.

    python -m proofs kill_processes [--runs 50] [--first 0] [--minutes M] [--seed 0]

A third of the signals come while a checkpoint is being written, the others at any moment of the
run, which evaluates every fourth step. Of each run it is checked that after SIGTERM all processes
ended with 0, after SIGKILL the others with 1 and a line that says who has died; that the final
state is that of a run never stopped, to 1e-10 in float64; that metrics.jsonl has every line once;
and that the ids read for the steps of each epoch, by all processes and starts together, are exactly
the data set's.
"""

import argparse
import collections
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.training.writers import METRICS_FILE, read_metrics
from tests.faults.launch import Run, final_state, ids_by_step, largest_difference

STEPS, EPOCH, BATCH = 20, 10, 24
FIELDS = ("--slow=0.05", "--config.eval_every=4 steps", "--config.checkpoint_every=3 steps")


def main() -> int:
    """Prints the results; returns 0 where every run passed, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which none begins")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, cache = folder / "data", folder / "cache"
        prepare_digits(data)
        whole = folder / "whole"
        begin = time.monotonic()
        if any(Run(whole, data, cache, 1, 1, *FIELDS).wait(3600)):
            raise SystemExit("the run never stopped has failed")
        seconds = time.monotonic() - begin
        for number in range(args.first, args.first + args.runs):
            if time.monotonic() - begin > args.minutes * 60:
                break
            rng = random.Random(f"{args.seed} {number}")
            processes = (1, 2, 4)[number % 3]
            workdir = folder / f"run{number}"
            row = disturb(
                Run(workdir, data, cache, processes, 1, *FIELDS), workdir, rng, seconds * processes
            )
            again = Run(workdir, data, cache, processes, 1, *FIELDS).wait(3600)
            row["resumed"] = not any(again)
            row |= compare(workdir, whole) if row["resumed"] else {"good": False}
            row["good"] = row["good"] and row["ended_as_it_should"]
            rows.append(row)
            print(number, row, file=sys.stderr, flush=True)
    good = sum(row["good"] for row in rows)
    print(json.dumps({"runs": len(rows), "good": good, "each": rows}, indent=2))
    return 0 if good == len(rows) else 1


def disturb(run: Run, workdir: Path, rng: random.Random, seconds: float) -> dict:
    """Sends one process a signal, and returns how all ended."""
    signum = rng.choice([signal.SIGKILL, signal.SIGTERM])
    victim = rng.randrange(len(run.processes))
    moment = rng.choice(["save", "any", "any"])
    if moment == "save":
        step = rng.randrange(3, STEPS, 3)
        until(run, lambda: any(workdir.glob(f"checkpoints/{step}.*tmp*")))
    else:
        step = rng.randrange(0, STEPS)
        until(run, lambda: last_step(workdir) >= step)
        time.sleep(rng.uniform(0, 0.3))
    run.processes[victim].send_signal(signum)
    statuses = run.wait(max(600, 5 * seconds))
    others = [number for number in range(len(statuses)) if number != victim]
    words = [own_words(run.said(number)) for number in others]
    finished = "finished all" in run.said(0)
    # After SIGKILL each of the others ends with an error, unless all was done before.
    named = all(statuses[number] == 1 for number in others) and all(
        f"process {victim} of" in text and "has died" in text for text in words
    )
    good = not any(statuses) if signum == signal.SIGTERM else finished or named
    return {
        "processes": len(statuses),
        "signal": signal.Signals(signum).name,
        "victim": victim,
        "moment": f"{moment} {step}",
        "statuses": statuses,
        "others_said": words,
        "ended_as_it_should": good,
    }


def own_words(text: str) -> str:
    """The last line of a process that says why it ends, "" for none."""
    return ([""] + [line for line in text.splitlines() if line.startswith("googlenet-jax: ")])[-1]


def until(run: Run, moment) -> None:
    """Returns at the moment, or when a process has ended."""
    while all(process.poll() is None for process in run.processes) and not moment():
        time.sleep(0.002)


def last_step(workdir: Path) -> int:
    """The step of the last line, -1 where there is none."""
    path = workdir / METRICS_FILE
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else -1


def compare(workdir: Path, whole: Path) -> dict:
    """Whether a run that was stopped came to the same end as one that was not."""
    lines, expected = (read_metrics(folder / METRICS_FILE) for folder in (workdir, whole))
    difference = largest_difference(final_state(workdir, STEPS), final_state(whole, STEPS))
    count = collections.Counter((line["step"], line["split"]) for line in lines)
    once = list(count) == [(line["step"], line["split"]) for line in expected] and set(
        count.values()
    ) == {1}
    read = ids_by_step(workdir)
    epochs = [
        sorted(itertools.chain.from_iterable(read[step] for step in range(first, first + EPOCH)))
        for first in range(0, STEPS, EPOCH)
    ]
    ids = all(epoch == list(range(EPOCH * BATCH)) for epoch in epochs)
    ids = ids and read == ids_by_step(whole)
    good = once and ids and difference < 1e-10
    return {"difference": difference, "lines_once": once, "ids_exact": ids, "good": good}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
