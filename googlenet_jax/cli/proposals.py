"""`googlenet-jax proposals`: boxes that may hold an object, kept beside a data set; their
recall.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add

if TYPE_CHECKING:
    from googlenet_jax.detection.proposals import Proposals
    from googlenet_jax.detection.sources import DetectionSource


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "proposals", help="propose boxes for a detection set, and show their recall"
    )
    parser.add_argument(
        "data", metavar="NAME", help="the data set, such as digit_scenes or voc/2007"
    )
    parser.add_argument("--split", required=True, metavar="S", help="such as train or test")
    parser.add_argument(
        "--methods",
        default="selective_search_x2",
        metavar="A,B",
        help=(
            "selective_search (with _xF: superpixels F times as large, _wN: images scaled to width"
            " N, _sN: boxes of at least N pixels), multibox, or several joined with + for their"
            " union (default: selective_search_x2). What is there already is not computed again."
        ),
    )
    parser.add_argument(
        "--multibox", metavar="RUN", help="the run's folder that multibox comes from"
    )
    add(parser, "--data-dir", help="where prepared data sets lie (default: TFDS's place)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default: one a processor)"
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Makes what is missing and prints the table; returns 0."""
    from googlenet_jax.detection.proposals import check_method
    from googlenet_jax.detection.report import TOGETHER, format_recall, recall_table
    from googlenet_jax.detection.sources import load_detection_source
    from googlenet_jax.errors import UserError

    rows = args.methods.split(",")
    names = list(dict.fromkeys(name for row in rows for name in row.split(TOGETHER)))
    for name in names:
        check_method(name)
    if args.workers < 0:
        raise UserError(f"--workers: expected at least 0, found {args.workers}")
    source = load_detection_source(args.data, args.split, args.data_dir)
    methods = {name: _made(source, name, args.multibox, args.workers) for name in names}
    truth = [each.objects for each in source.annotations()]
    table = recall_table(truth, methods, rows)
    if args.json:
        print(json.dumps({"data": source.name, "split": source.split, "table": table}))
        return 0
    objects = sum(int((~each.ignored).sum()) for each in truth)
    print(f"{source.name} {source.split}: {len(source):,} images, {objects:,} objects\n")
    print(format_recall(table))
    return 0


def _made(source: "DetectionSource", name: str, run: str | None, workers: int) -> "Proposals":
    """The split's proposals by a method, computed unless they are there."""
    from googlenet_jax.detection import proposals

    by_run = name == proposals.MULTIBOX and run is not None
    if proposals.proposals_file(source, name).exists() and not by_run:
        return proposals.load_proposals(source, name)
    if by_run:
        from googlenet_jax.detection.multibox import propose_split
        from googlenet_jax.runtime.process import log_settings, prepare
        from googlenet_jax.runtime.sharding import create_mesh

        prepare()
        log_settings()
        made = propose_split(str(run), source, create_mesh())
    elif name == proposals.MULTIBOX:
        return proposals.load_proposals(source, name)  # which says what to do
    else:
        settings = proposals.SelectiveSearch.from_name(name)
        made = proposals.search_split(source, settings, workers)
    proposals.save_proposals(source, name, made)
    return made
