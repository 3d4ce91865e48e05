"""Resident memory of the input pipeline over many batches, in threads and in worker processes.

    python -m benchmarks memory NAME SPLIT [--data-dir DIR] [--batches 10000] [--workers 0] >
    FILE.json

Prints the memory of this process and of its workers, in MB, at ten points of the way.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

from googlenet_jax.data.pipeline import RandomCrop, train_batches
from googlenet_jax.data.resampling import ANTIALIASED
from googlenet_jax.data.sources import load_source


def resident(pid: int) -> float:
    """Megabytes, without what is shared with other processes' files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(
        sum(
            int(line.split()[1])
            for line in status.splitlines()
            if line.startswith(("RssAnon", "RssShmem"))
        )
        / 1024,
        1,
    )


def children() -> list[int]:
    """This process's worker processes."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", "googlenet_jax.data.workers"]
    return [
        int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("split")
    parser.add_argument("--data-dir")
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    batches = train_batches(
        load_source(args.name, args.split, args.data_dir),
        batch_size=args.batch_size,
        size=args.size,
        augment=RandomCrop(),
        seed=0,
        threads=2,
        workers=args.workers,
        interpolation=ANTIALIASED,
        exact_decoding=False,
    )
    points, began = [], time.perf_counter()
    for number in range(1, args.batches + 1):
        next(batches)
        if number == 100 or number % (args.batches // 10) == 0:
            points.append(
                {
                    "batches": number,
                    "process_mb": resident(os.getpid()),
                    "workers_mb": [resident(pid) for pid in children()],
                }
            )
    seconds = time.perf_counter() - began
    batches.close()
    print(
        json.dumps(
            {
                **vars(args),
                "images_per_second": round(args.batches * args.batch_size / seconds),
                "memory": points,
            }
        )
    )


if __name__ == "__main__":
    main()
