"""Trains the tiny network of tests/faults/ for 20 steps in float64 on processes × devices of this
machine, and compares the final states with those of one process on one device. Prints JSON.

    python -m proofs layouts [--layouts 1x8 2x4 4x2] [--groups 1 8] [--config.field=value …]
    python -m proofs layouts --restore [--layouts 1x1 2x4 1x3] [--config.field=value …]

With --restore a run of 4x2 goes on from its step 10 on each layout, and one of each on 4x2.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from googlenet_jax.data.digits import prepare_digits
from tests.faults.launch import Run, final_state, largest_difference

STEPS, HALF = 20, 10


def main() -> int:
    """Prints the largest differences; returns 0 where none is above 1e-10."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", nargs="+", help="processes x devices of each")
    parser.add_argument(
        "--groups", nargs="+", type=int, default=[1, 8], help="bn_groups: 1 is the global batch"
    )
    parser.add_argument("--restore", action="store_true", help="go on from another layout")
    args, fields = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_digits(folder / "data")
        if args.restore:
            found = restore(folder, args.layouts or ["1x1", "2x4", "1x3"], fields)
        else:
            found = compare(folder, args.layouts or ["1x8", "2x4", "4x2"], args.groups, fields)
        for row in found:
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    print(json.dumps({"steps": STEPS, "dtype": "float64", "rows": rows}, indent=2))
    return 0 if all(row["largest_difference"] < 1e-10 for row in rows) else 1


def compare(
    folder: Path, layouts: list[str], groups: list[int], fields: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each layout and way of batch norm."""
    for count in groups:
        more = [f"--config.model.options.bn_groups={count}", *fields]
        whole = None
        for layout in ["1x1", *layouts]:
            begin = time.perf_counter()
            workdir = folder / f"{layout}-{count}"
            train(workdir, layout, more)
            seconds = round(time.perf_counter() - begin, 1)
            state = final_state(workdir, STEPS)
            whole = whole or state
            worst = largest_difference(state, whole)
            row = {"bn_groups": count, "layout": layout, "largest_difference": worst}
            yield {**row, "seconds": seconds}


def restore(folder: Path, layouts: list[str], fields: list[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for each pair of layouts, of which the second goes on with the first's run."""
    whole, many = folder / "1x1", "4x2"
    for layout in dict.fromkeys(["1x1", many, *layouts]):
        train(folder / layout, layout, fields)
    for first, second in [*((many, layout) for layout in layouts), *((x, many) for x in layouts)]:
        workdir = folder / f"{first}-{second}"
        shutil.copytree(folder / first, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(STEPS))
        run = train(workdir, second, fields)
        if f"resuming after step {HALF}" not in run.said(0):
            raise SystemExit(f"{first} to {second}: it did not go on\n{run.said(0)}")
        worst = largest_difference(final_state(workdir, STEPS), final_state(whole, STEPS))
        yield {"saved_on": first, "restored_on": second, "largest_difference": worst}


def train(workdir: Path, layout: str, fields: list[str]) -> Run:
    """A finished run, which has saved at half of its steps and at the end."""
    processes, devices = map(int, layout.split("x"))
    often = [f"--config.eval_every={STEPS} steps", f"--config.checkpoint_every={HALF} steps"]
    data, cache = (workdir.parent / name for name in ("data", "cache"))
    run = Run(workdir, data, cache, processes, devices, *often, *fields)
    if any(run.wait(timeout=3600)):
        raise SystemExit("\n".join(map(run.said, range(processes))))
    return run


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
