"""`googlenet-jax probe`: a logistic regression on the features of weights as they are."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import about, add, add_weights, load_member
from googlenet_jax.errors import check_whole

if TYPE_CHECKING:
    from googlenet_jax.metrics.probe import Probe

BATCH_SIZE = 128


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "probe", help="how well a network's features tell a data set's classes apart, untrained"
    )
    parser.add_argument("data", metavar="NAME", help="the data set")
    add_weights(parser, one=True)
    parser.add_argument("--train-split", default="train", metavar="S", help="(default: train)")
    parser.add_argument("--split", default="test", metavar="S", help="tested on (default: test)")
    add(parser, "--data-dir")
    add(parser, "--batch-size", default=BATCH_SIZE)
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prints the result; returns 0."""
    from googlenet_jax.data.sources import load_source
    from googlenet_jax.metrics.probe import probe
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.sharding import create_mesh

    check_whole("--batch-size", args.batch_size, 1)
    prepare()
    trained = load_member(args)
    data = trained.config.get("data", {})
    folder = args.data_dir or (args.data == data.get("name") and data["dir"]) or None
    train, test = (load_source(args.data, s, folder) for s in (args.train_split, args.split))
    log_settings()
    found = probe(trained, train, test, mesh=create_mesh(), batch_size=args.batch_size)
    splits = {"train_split": args.train_split, "split": args.split}
    result = {"data": args.data, **splits, **about(trained), **dataclasses.asdict(found)}
    print(json.dumps(result) if args.json else _for_people(args, found))
    return 0


def _for_people(args: argparse.Namespace, found: "Probe") -> str:
    trained, tested = found.examples
    lines = [
        f"{args.data}: {trained:,} examples of {args.train_split}, {tested:,} of {args.split}",
        (
            f"top-1 {100 * found.top1:.2f} % (of those fitted {100 * found.train_top1:.2f} %), C ="
            f" {found.strength:g}"
        ),
    ]
    width = max(map(len, found.per_class))
    for name, share in found.per_class.items():
        lines.append(f"  {name:<{width}}  {'–' if share is None else f'{100 * share:.1f} %'}")
    return "\n".join(lines)
