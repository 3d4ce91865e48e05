"""`googlenet-jax sweep`: a config with several values of its fields and several seeds."""

import argparse
import itertools
import json
import re
import shlex
import sys
from typing import Any

from googlenet_jax.cli.members import add
from googlenet_jax.errors import UserError


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments.

    `--config.field=value` are left over by the parser, in `args.fields`.
    """
    parser = subparsers.add_parser(
        "sweep",
        help="train a config with several values of its fields and several seeds",
        usage="%(prog)s NAME[:ARG] --workdir=DIR [--grid FIELD=VALUE,…] [--seeds N,…] "
        "[--config.field=value …]",
        allow_abbrev=False,
        epilog="The same command resumes: finished runs stay as they are. "
        "`googlenet-jax table DIR` sums them up.",
    )
    parser.add_argument("config", metavar="NAME[:ARG]", help="a config's name, or its file")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a folder of runs")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=VALUE,…",
        help="a field and its values, such as schedule.learning_rate=0.05,0.1; repeatable, for all "
        "combinations",
    )
    parser.add_argument("--seeds", default="", metavar="N,…", help="such as 0,1,2")
    parser.add_argument(
        "--print",
        action="store_true",
        help="print the commands, a line each, such as for a SLURM array, and train nothing",
    )
    add(parser, "--json", help="print JSON alone: each run's folder and what became of it")
    parser.set_defaults(takes_fields=True)


def run(args: argparse.Namespace) -> int:
    """Trains all, one after the other, or prints the commands; returns 0, or 1 where a run has
    failed.
    """
    grid = [parse_axis(each) for each in args.grid]
    if args.seeds:
        grid.append(parse_axis(f"seed={args.seeds}"))
    points = [
        list(zip((name for name, _ in grid), values, strict=True))
        for values in itertools.product(*(values for _, values in grid))
    ]
    runs = [
        (folder_name(point), [f"--config.{name}={value}" for name, value in point])
        for point in points
    ]
    if args.print:
        imports = [f"--import={each}" for each in (*args.imports_before, *args.imports)]
        for name, fields in runs:
            place = f"{args.workdir.rstrip('/')}/{name}"
            words = ["googlenet-jax", "train", f"--config={args.config}", f"--workdir={place}"]
            print(shlex.join([*words, *args.fields, *fields, *imports]))
        return 0
    return _train_all(args, runs)


def _train_all(args: argparse.Namespace, runs: list[tuple[str, list[str]]]) -> int:
    from googlenet_jax.cli.train import read_config
    from googlenet_jax.runtime.preemption import catching_signals

    with catching_signals():  # before the slow imports
        configs = [
            (name, read_config(args.config, [*args.fields, *fields])) for name, fields in runs
        ]
        from googlenet_jax.runtime.process import prepare

        prepare()
        from googlenet_jax.training.config import resolve
        from googlenet_jax.training.loop import train

        for _, config in configs:  # before the first is trained
            resolve(config)
        failed: dict[str, str] = {}
        for number, (name, config) in enumerate(configs, start=1):
            print(f"sweep: {number} of {len(configs)}, {name}", file=sys.stderr)
            try:
                train(config, f"{args.workdir.rstrip('/')}/{name}")
            except UserError as error:  # the others are worth having
                failed[name] = str(error)
                print(f"googlenet-jax: {name}: {error}", file=sys.stderr)
    if failed:
        print(
            f"googlenet-jax: {len(failed)} of {len(configs)} failed: {'; '.join(failed)}",
            file=sys.stderr,
        )
    if args.json:
        told = [{"run": name, "error": failed.get(name)} for name, _ in configs]
        print(json.dumps({"workdir": args.workdir, "runs": told}))
    return 1 if failed else 0


def parse_axis(text: str) -> tuple[str, list[str]]:
    """Parses "field=a,b" into the field's name and its values; commas within brackets and quotes
    part nothing.

    Raises UserError for another form.
    """
    name, equals, values = text.partition("=")
    parts = [part.strip() for part in re.findall(_VALUE, values)]
    if not equals or not parts or len(set(parts)) < len(parts):
        raise UserError(
            f"--grid: expected FIELD=VALUE,… with different values, such as "
            f"schedule.learning_rate=0.05,0.1, found {text!r}"
        )
    return name, parts


_VALUE = r"""(?:\([^()]*\)|\[[^\[\]]*\]|'[^']*'|"[^"]*"|[^,])+"""


def folder_name(point: list[tuple[str, str]]) -> str:
    """A folder's name for a point of the grid: "learning_rate=0.05,seed=1"."""
    names = [name.split(".")[-1] for name, _ in point]
    words = []
    for short, (name, value) in zip(names, point, strict=True):
        safe = re.sub(r"[^\w.+=-]+", "_", value).strip("_")
        words.append(f"{name if names.count(short) > 1 else short}={safe}")
    return ",".join(words) or "run"
