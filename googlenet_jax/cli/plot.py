"""`googlenet-jax plot`: the curves of several runs in one picture."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "plot", help="loss, top-1 and learning rate of one or several runs in one picture"
    )
    parser.add_argument(
        "runs", nargs="+", metavar="DIR", help="a run's folder (train.py's --workdir)"
    )
    parser.add_argument(
        "--output",
        default="curves.png",
        metavar="FILE",
        help="PNG, PDF or SVG (default: curves.png)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON alone: each run's last line of each split"
    )


def run(args: argparse.Namespace) -> int:
    """Draws the picture and says where it is; returns 0."""
    from googlenet_jax.errors import UserError
    from googlenet_jax.runtime.storage import (
        check_output,
        reaching,
        run_folder,
        write_atomically,
        writing,
    )
    from googlenet_jax.training.curves import draw_curves
    from googlenet_jax.training.writers import METRICS_FILE, read_metrics

    output = Path(args.output)
    if output.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(
            f"--output: expected a name that ends in .png, .pdf or .svg, found {args.output!r}"
        )
    check_output(output)
    runs = {}
    for folder in args.runs:
        with reaching(folder):
            runs[folder] = read_metrics(run_folder(folder) / METRICS_FILE)
    with writing(output):
        write_atomically(output, lambda path: draw_curves(runs, path))
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
