"""`googlenet-jax plot`: the curves of several runs in one picture."""

import argparse
import json
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "plot", help="loss, top-1 and learning rate of one or several runs in one picture"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="DIR",
        help="a run's folder (train.py's --workdir), or a folder of runs; of those that differ in "
        "seeds alone, mean and standard deviation are drawn",
    )
    parser.add_argument(
        "--output",
        default="curves.png",
        metavar="FILE",
        help="PNG, PDF or SVG (default: curves.png)",
    )
    add(parser, "--json", help="print JSON alone: each run's last line of each split")


def run(args: argparse.Namespace) -> int:
    """Draws the picture and says where it is; returns 0."""
    from googlenet_jax.errors import UserError
    from googlenet_jax.runtime.storage import check_output, write_atomically, writing
    from googlenet_jax.training import curves
    from googlenet_jax.training.comparison import grouped, mean_lines, read_runs

    output = Path(args.output)
    if output.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(
            f"--output: expected a name that ends in .png, .pdf or .svg, found {args.output!r}"
        )
    check_output(output)
    found = read_runs(args.runs)
    runs = {each.folder: each.lines for each in found}
    groups = grouped(found)
    spread = any(group.has_spread for group in groups)
    drawn = {group.name: mean_lines(group.runs) for group in groups} if spread else runs
    with writing(output):
        write_atomically(output, lambda path: curves.draw_curves(drawn, path))
    last = {
        folder: list({(line["split"], line.get("weights")): line for line in lines}.values())
        for folder, lines in runs.items()
    }
    if args.json:
        print(json.dumps({"output": str(output), "runs": last}))
        return 0
    for folder, lines in last.items():
        for line in lines:
            what = " ".join([line["split"], *([line["weights"]] if "weights" in line else [])])
            top1 = f", top-1 {100 * line['top1']:.2f} %" if "top1" in line else ""
            loss = f": loss {line['loss']:.4f}" if "loss" in line else ""
            print(f"{folder}  epoch {line['epoch']:g}  {what}{loss}{top1}")
    print(f"wrote {output}")
    return 0
