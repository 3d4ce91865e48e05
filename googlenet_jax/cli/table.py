"""`googlenet-jax table`: mean and standard deviation over the seeds of several runs."""

import argparse
import json
from typing import Any

from googlenet_jax.cli.members import add

FORMATS = ("text", "csv", "markdown", "latex")


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "table", help="mean ± standard deviation over the seeds of several runs"
    )
    parser.add_argument(
        "runs", nargs="+", metavar="DIR", help="a run's folder, or a folder of runs, as of `sweep`"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default: text)")
    parser.add_argument(
        "--metrics", default="", metavar="NAME,…", help="which (default: loss and the config's)"
    )
    parser.add_argument("--split", default="", help="of the evaluation (default: the first)")
    parser.add_argument(
        "--weights",
        default="",
        choices=("raw", "ema"),
        help="of the evaluation (default: the average, where there is one)",
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prints the table; returns 0."""
    from googlenet_jax.training.comparison import read_runs, tabulate

    metrics = [name for name in args.metrics.split(",") if name]
    table = tabulate(read_runs(args.runs), metrics, args.split, args.weights)
    print(json.dumps(table.to_json()) if args.json else table.text(args.format), end="")
    if args.json:
        print()
    return 0
