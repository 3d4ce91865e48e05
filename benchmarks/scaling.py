"""What a training step of `imagenet_googlenet_bn` costs on TPU v5e, from 1 chip to several slices.

    pip install -e '.[tpu]'                 # its compiler needs no TPU
    python -m benchmarks scaling FILE.json [--chips 1 4 16 64 256] [--batch 128]

From the compiler: memory, operations, bytes, the collectives and theirs, each for one chip.
Computed here from published speeds (cloud.google.com/tpu/docs/v5e), with nothing overlapped: the
least time of the operations or bytes, that of the collectives, a step's, and what is beyond one
slice. Nothing is measured. A compilation takes some minutes; rows that FILE.json has already are
not compiled again. The table is printed.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = "imagenet_googlenet_bn"
SIDES = {1: "2x2", 4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
WRAPS = 16  # an axis of so many chips is a ring, a shorter one a line
PEAK, MEMORY = 197e12, 819e9  # operations (bfloat16) and bytes a second
LINK = 50e9  # bytes a second, each way, of each of a chip's four links (400 GB/s in all)
HOP = 1e-6  # seconds, an assumption
NETWORK = 3.125e9  # bytes a second for each chip between slices (6.4 Tb/s a pod of 256)
NETWORK_DELAY = 100e-6  # seconds, an assumption
SLICES = (2, 4, 16)  # of 256 chips
MODES: dict[str, dict[str, Any]] = {
    "batch": {},
    "groups": {"groups": True},
    "batch, rematerialized": {"rematerialize": True},
    "batch, optimizer split": {"shard_optimizer": True},
}
# More than the first two only where one chip count tells all: the others hold the same.
EVERYWHERE, ONCE_AT = ("batch", "groups"), 16


def main() -> int:
    """Completes the file and prints the table; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--chips", nargs="+", type=int, default=list(SIDES), choices=SIDES)
    parser.add_argument("--batch", type=int, default=128, help="examples a chip (%(default)s)")
    args = parser.parse_args()
    rows = json.loads(args.file.read_text())["rows"] if args.file.exists() else []
    for mode in MODES:
        for chips in args.chips:
            done = any((row["mode"], row["chips"]) == (mode, chips) for row in rows)
            if not (done or (mode == "groups" and chips == 1)) and (
                mode in EVERYWHERE or chips == ONCE_AT
            ):
                rows.append(compile_row(mode, chips, args.batch))
                args.file.write_text(json.dumps({**about(), "rows": rows}, indent=1) + "\n")
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    return 0


def about() -> dict[str, Any]:
    """What the numbers belong to."""
    names = ("jax", "jaxlib", "flax", "libtpu")
    versions = {name: importlib.metadata.version(name) for name in names}
    speeds = {"peak": PEAK, "memory": MEMORY, "link": LINK, "hop": HOP}
    speeds |= {"network": NETWORK, "network_delay": NETWORK_DELAY}
    return {"config": CONFIG, "chip": "TPU v5e", "versions": versions, "assumed": speeds}


def compile_row(mode: str, chips: int, batch: int) -> dict[str, Any]:
    """The compiler's report of one step, and the seconds that it took to compile."""
    from googlenet_jax.cli.train import read_config
    from googlenet_jax.profiling.ahead import compile_step

    options, config = MODES[mode], read_config(CONFIG, [])
    config.batch_size = batch * chips
    config.devices.rematerialize = "rematerialize" in options
    config.devices.shard_optimizer = "shard_optimizer" in options
    if "groups" in options:
        config.model.options.bn_groups = chips
    begin = time.perf_counter()
    topology = f"v5e:{SIDES[chips]}"
    report = compile_step(config, topology, chips=chips, classes=1000, examples=1_281_167)
    seconds = round(time.perf_counter() - begin, 1)
    return {"mode": mode, **dataclasses.asdict(report), "compiled_in_seconds": seconds}


def least_seconds(row: dict[str, Any]) -> float:
    """Computed: what a chip takes at its peaks, without collectives."""
    return max(row["operations"] / PEAK, row["bytes_accessed"] / MEMORY)


def collective_seconds(row: dict[str, Any]) -> float:
    """Computed: the time of a step's collectives on the links of a square slice, one after the
    other, each along both axes at once.
    """
    side = math.isqrt(row["chips"])
    if side == 1:
        return 0.0
    ring = side >= WRAPS
    axis = LINK * (2 if ring else 1)
    hops = 2 * (side // 2 if ring else side - 1)
    share = (row["chips"] - 1) / row["chips"]
    seconds = 0.0
    for kind, found in row["collectives"].items():
        passes = 2 if kind == "all-reduce" else 1  # a reduction and a gathering
        seconds += passes * (found["bytes"] * share / (2 * axis) + found["count"] * hops * HOP)
    return seconds


def network_seconds(row: dict[str, Any], slices: int) -> float:
    """Computed: what the same collectives take besides between slices, each chip exchanging its
    share of the slice's sum with its like.
    """
    size = sum(found["bytes"] for found in row["collectives"].values()) / row["chips"]
    count = sum(found["count"] for found in row["collectives"].values())
    return 2 * (size * (slices - 1) / slices / NETWORK + count * NETWORK_DELAY)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the largest slice's several times over."""
    lines = [
        (
            "| batch norm over | chips | memory, MiB | collectives | their MiB | their ms | step,"
            " ms | images/s | efficiency |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spent = collective_seconds(row)
        lines.append(_line(row, 1, spent))
        if row["chips"] == 256:
            lines += [_line(row, many, spent + network_seconds(row, many)) for many in SLICES]
    return "\n".join(lines)


def _line(row: dict[str, Any], slices: int, spent: float) -> str:
    found = row["collectives"].values()
    count, size = (sum(each[name] for each in found) for name in ("count", "bytes"))
    compute = least_seconds(row)
    step, chips = compute + spent, row["chips"] * slices
    cells = [
        row["mode"],
        f"{chips:,}",
        f"{row['memory']['total'] / 2**20:,.0f}",
        f"{count}",
        f"{size / 2**20:,.1f}",
        f"{spent * 1e3:.2f}",
        f"{step * 1e3:.2f}",
        f"{row['batch_size'] * slices / step:,.0f}",
        f"{compute / step:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.exit(main())
