"""Does evaluation count every example once? A run's split, evaluated with several batch sizes on
one and on eight simulated devices.

    python -m proofs evaluation_exactness --run runs/cifar10 --split test

Prints JSON: a row for each of the six evaluations, whether all six counted the same number of
examples, and by how many examples their top-1 differ at most. Sums in another order round
differently, so that an example on the edge may fall to either side.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

BATCH_SIZES = (64, 96, 10_007)
DEVICES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--split", metavar="S", help="default: the run's first evaluation split")
    parser.add_argument(
        "--data-dir", metavar="D", help="where prepared data sets lie (default: the run's)"
    )
    args = parser.parse_args()
    given = {"--run": args.run, "--split": args.split, "--data-dir": args.data_dir}
    arguments = [part for option, value in given.items() if value for part in (option, value)]
    rows = [
        evaluate(arguments, batch_size, devices)
        for devices in DEVICES
        for batch_size in BATCH_SIZES
    ]
    hits = [round(row["top1"] * row["examples"]) for row in rows]
    result = {
        "run": args.run,
        "split": rows[0]["split"],
        "rows": rows,
        "same_count": len({row["examples"] for row in rows}) == 1,
        "top1_differs_by_examples": max(hits) - min(hits),
    }
    print(json.dumps(result, indent=2))


def evaluate(arguments: list[str], batch_size: int, devices: int) -> dict[str, Any]:
    """One evaluation in a process of its own, because the number of simulated devices is fixed when
    JAX starts.
    """
    flags = [
        f"--xla_force_host_platform_device_count={devices}",
        # More devices than cores take turns: none may be given up for late.
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=3600",
        "--xla_cpu_collective_call_terminate_timeout_seconds=7200",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    command = [
        sys.executable,
        "-m",
        "googlenet_jax",
        "evaluate",
        *arguments,
        "--batch-size",
        str(batch_size),
        "--json",
    ]
    start = time.perf_counter()
    process = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    metrics = json.loads(process.stdout)
    return {
        "devices": devices,
        "batch_size": batch_size,
        "seconds": round(time.perf_counter() - start, 1),
        **metrics,
    }


if __name__ == "__main__":
    main()
