"""`googlenet-jax compile`: what a config's step needs on a TPU slice, from its compiler."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add

if TYPE_CHECKING:
    from googlenet_jax.profiling.ahead import Report


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments; `--config.field=value` are left over, in `args.fields`."""
    parser = subparsers.add_parser(
        "compile",
        help="what a config's step needs on a TPU slice, by its compiler: memory, collectives, …",
        usage="%(prog)s --config=NAME[:ARG] --topology=v5e:4x4 [--config.field=value …]",
        allow_abbrev=False,
        epilog="It needs the extra [tpu], and no TPU.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:ARG]",
        help="a config's name, such as imagenet_googlenet_bn, or its file",
    )
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="such as v5e:16x16, v6e:4x4 or v5p:2x2x1"
    )
    parser.add_argument("--chips", type=int, metavar="N", help="its first N chips (default: all)")
    parser.add_argument(
        "--classes", type=int, default=1000, metavar="N", help="of the data set (%(default)s)"
    )
    parser.add_argument(
        "--examples", type=int, default=1_281_167, metavar="N", help="likewise (%(default)s)"
    )
    add(parser, "--json")
    parser.set_defaults(takes_fields=True)


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 0."""
    from googlenet_jax.cli.train import read_config
    from googlenet_jax.errors import check_whole

    for name in ("classes", "examples", "chips"):
        if getattr(args, name) is not None:
            check_whole(f"--{name}", getattr(args, name), 1)
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler alone is wanted, also beside a TPU
    config = read_config(args.config, args.fields)
    from googlenet_jax.profiling.ahead import compile_step

    report = compile_step(
        config, args.topology, chips=args.chips, classes=args.classes, examples=args.examples
    )
    print(json.dumps(dataclasses.asdict(report), indent=2) if args.json else as_text(report))
    return 0


def as_text(report: "Report") -> str:
    """The report for a person; all but the batch is per chip."""
    lines = [
        (
            f"{report.topology}: {report.chips} chips of {report.hosts} hosts, "
            f"batch {report.batch_size}; per chip and step:"
        ),
        *(
            f"  memory, {part:<12} {size / 2**20:12,.1f} MiB"
            for part, size in report.memory.items()
        ),
        f"  operations           {report.operations / 1e9:12,.1f} G",
        f"  bytes accessed       {report.bytes_accessed / 1e9:12,.2f} GB",
    ]
    if report.optimal_seconds is not None:
        lines.append(
            f"  optimal time         {report.optimal_seconds * 1e3:12,.2f} ms (the compiler's"
            " estimate)"
        )
    for kind, found in report.collectives.items():
        lines.append(f"  {kind:<20} {found.count:8} times, {found.bytes / 2**20:,.2f} MiB")
    return "\n".join(lines if report.collectives else [*lines, "  no collectives"])
