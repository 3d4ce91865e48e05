"""`googlenet-jax evaluate`: errors of a network, or of an ensemble, over a whole split."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import about, add, add_weights, load_members

if TYPE_CHECKING:
    from googlenet_jax.data.sources import Source
    from googlenet_jax.weights.trained_model import TrainedModel

RECORDS = "examples.jsonl"


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "evaluate", help="top-1 and top-5 error of one or several networks over a split"
    )
    add_weights(parser)
    add(
        parser,
        "--crops",
        help="average over this many crops; the smaller numbers are shown beside it (default: 1)",
    )
    parser.add_argument("--data", metavar="NAME", help="the data set (default: the first run's)")
    parser.add_argument(
        "--split", metavar="S", help="such as train[90%%:] (default: the run's first, or test)"
    )
    add(parser, "--data-dir")
    add(
        parser,
        "--batch-size",
        help="crops at a time, over all devices (default: the run's eval_batch_size, or 128)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write a report here: HTML, pictures, JSON, and each example's result; a stopped "
        "evaluation resumes there",
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prints the result; returns 0."""
    from googlenet_jax.data.imagenet import readable_names
    from googlenet_jax.data.pipeline import DEFAULT_THREADS
    from googlenet_jax.evaluation.ensemble import Ensemble
    from googlenet_jax.evaluation.records import evaluate_ensemble
    from googlenet_jax.evaluation.report import write_report
    from googlenet_jax.evaluation.results import summarize
    from googlenet_jax.runtime.process import log, log_settings, prepare
    from googlenet_jax.runtime.sharding import create_mesh

    prepare()
    loaded = load_members(args)
    config = loaded[0].config
    source = _open(args, config)
    default = config.get("eval_batch_size", 128)
    for each in loaded:
        _check_data(each, source)
    ensemble = Ensemble(
        loaded,
        crops=args.crops,
        batch_size=default if args.batch_size is None else args.batch_size,
        mesh=create_mesh(),
        class_names=source.class_names,
        images_at_most=len(source),
    )
    for each in loaded:
        if each.num_classes > len(source.class_names):
            log(
                f"{each.source}: {len(source.class_names)} of its {each.num_classes:,} classes are "
                f"compared, matched by name or WordNet id: the softmax is over these alone"
            )
    log_settings()
    records = evaluate_ensemble(
        ensemble,
        source,
        path=args.output and args.output / RECORDS,
        threads=config.get("data", {}).get("threads", DEFAULT_THREADS),
    )
    names = [each.source for each in loaded]
    results = {
        "data": source.name,
        "split": source.split,
        "members": [about(each) for each in loaded],
        **summarize(records, readable_names(source.class_names), names, ensemble.crops),
    }
    files = (
        write_report(args.output, {**results, "members": names}, records, source)
        if args.output
        else []
    )
    print(json.dumps(results) if args.json else _for_people(results, loaded, files))
    return 0


def _check_data(trained: "TrainedModel", source: "Source") -> None:
    """Raises UserError where the run was trained on other classes under the data set's name."""
    from googlenet_jax.errors import UserError
    from googlenet_jax.evaluation.ensemble import matched_classes

    names = trained.data.get("class_names")
    if trained.config.get("data", {}).get("name") != source.name or names is None:
        return
    if matched_classes(names, source.class_names) is None:
        raise UserError(
            f"{source.name}: its classes are {', '.join(source.class_names[:5])}, and "
            f"{trained.source} was trained on {', '.join(names[:5])} under this name; give "
            "the run's data with --data-dir, or name the set with --data"
        )


def _open(args: argparse.Namespace, config: Mapping[str, Any]) -> "Source":
    from googlenet_jax.data.sources import load_source
    from googlenet_jax.errors import UserError

    data = config.get("data", {})
    name = args.data or data.get("name")
    if name is None:
        raise UserError("--data: a weight file names no data set; give one, such as --data=digits")
    own = name == data.get("name")
    split = args.split or (data["eval_splits"][0] if own else "test")
    return load_source(name, split, args.data_dir or (own and data["dir"]) or None)


def _for_people(results: dict[str, Any], loaded: "list[TrainedModel]", files: list[Path]) -> str:
    from googlenet_jax.evaluation.results import format_table

    lines = [f"{results['data']} {results['split']}, {results['examples']:,} examples"]
    for member in results["members"]:
        step = f"step {member['step']}, {member['weights']} weights" if "step" in member else ""
        lines.append(", ".join(filter(None, [member["name"], step])))
    lines += ["", format_table(results["table"])]
    if len(loaded) > 1:
        lines += ["", "each by itself, with the most crops:"]
        last = [row for row in results["alone"] if row["crops"] == results["table"][-1]["crops"]]
        lines += [f"  top-1 error {100 * row['top1_error']:.2f} %  {row['model']}" for row in last]
    error = 100 * results["calibration"]["ece"]
    lines += ["", f"loss {results['loss']:.4f}, expected calibration error {error:.2f} %"]
    if files:
        lines += ["", *(f"wrote {file}" for file in files)]
    return "\n".join(lines)
