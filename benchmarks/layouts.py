"""Trains the tiny network of tests/faults/ for 20 steps in float64 on processes × devices of this
machine, and compares the final states with those of one process on one device. Prints JSON.

    python benchmarks/layouts.py [--layouts 1x8 2x4 4x2] [--groups 1 8] [--config.field=value …]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from googlenet_jax.data.digits import prepare_digits  # noqa: E402
from tests.faults.launch import Run, final_state, largest_difference  # noqa: E402

STEPS = 20


def main() -> int:
    """Prints the largest differences; returns 0 where none is above 1e-10."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layouts", nargs="+", default=["1x8", "2x4", "4x2"], help="processes x devices of each"
    )
    parser.add_argument(
        "--groups", nargs="+", type=int, default=[1, 8], help="bn_groups: 1 is the global batch"
    )
    args, fields = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        prepare_digits(data)
        for groups in args.groups:
            whole = None
            for layout in ["1x1", *args.layouts]:
                state, seconds = train(
                    Path(folder, f"{layout}-{groups}"),
                    data,
                    layout,
                    [f"--config.model.options.bn_groups={groups}", *fields],
                )
                whole = whole or state
                worst = largest_difference(state, whole)
                rows.append(
                    {
                        "bn_groups": groups,
                        "layout": layout,
                        "largest_difference": worst,
                        "seconds": round(seconds, 1),
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"steps": STEPS, "dtype": "float64", "rows": rows}, indent=2))
    return 0 if all(row["largest_difference"] < 1e-10 for row in rows) else 1


def train(
    workdir: Path, data: Path, layout: str, fields: list[str]
) -> tuple[dict[str, np.ndarray], float]:
    """The final state's arrays, and the seconds that the run took."""
    processes, devices = map(int, layout.split("x"))
    often = [f"--config.{name}={STEPS} steps" for name in ("eval_every", "checkpoint_every")]
    begin = time.perf_counter()
    run = Run(workdir, data, workdir.parent / "cache", processes, devices, *often, *fields)
    if any(run.wait(timeout=3600)):
        raise SystemExit("\n".join(map(run.said, range(processes))))
    seconds = time.perf_counter() - begin
    return final_state(workdir, STEPS), seconds


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
