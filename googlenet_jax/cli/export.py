"""`googlenet-jax export`: a network as StableHLO, which runs without this project."""

import argparse
import json
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add_weights, load_members
from googlenet_jax.errors import UserError

# Above rounding: of the folding in the model's dtype, in units of the logits' root mean square.
TOLERANCE = {"bfloat16": 0.2, "float16": 0.05, "float32": 1e-3, "float64": 1e-9}


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "export",
        help="a network as StableHLO for CPU, CUDA and TPU, with its preprocessing beside it",
        description="Writes OUT and, beside it, OUT with .json: how images are prepared, and the "
        "class names. It is checked in a process that has jax and numpy alone.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, as the weights have it")
    add_weights(parser, one=True)
    parser.add_argument(
        "--output", type=Path, metavar="OUT", help="default: MODEL.stablehlo in this folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Writes both files; returns 0."""
    from googlenet_jax.models.registry import create_model, model_name
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.storage import check_output, write_atomically, writing
    from googlenet_jax.weights.export import LOADABLE, check_artifact, describe, export_model

    path = args.output or Path(f"{args.model}.stablehlo")
    beside = path.with_suffix(".json")
    if beside == path:
        raise UserError(f"--output: expected another ending than .json, found {path}")
    check_output(path)
    create_model(args.model)  # raises, before weights are read, where there is none of that name
    prepare()
    loaded = load_members(args)
    if len(loaded) != 1:
        raise UserError(f"--weights: expected one model, found {len(loaded)}")
    (member,) = loaded
    member.check_complete()
    assert member.preprocessing is not None  # checked
    name = model_name(member.model)
    if name != args.model:
        raise UserError(f"{member.source}: expected weights of {args.model}, found {name}'s")
    log_settings()
    network = (member.model, member.variables, member.preprocessing)
    artifact = export_model(*network)
    about = describe(name, member.preprocessing, member.class_names)
    difference = 0.0

    def write(part: Path) -> None:
        """Checked before it has its name: a file that fails never takes a good one's place."""
        nonlocal difference
        part.write_bytes(artifact)
        difference = check_artifact(part, *network)
        limit = TOLERANCE[member.model.dtype.name]
        if not difference <= limit:
            raise UserError(f"{path}: its logits differ by {difference:.1e}, over {limit:.0e}")

    with writing(path):
        write_atomically(path, write)
        write_atomically(beside, lambda part: part.write_text(about, encoding="utf-8"))
    result = {
        "artifact": str(path),
        "preprocessing": str(beside),
        "bytes": len(artifact),
        "largest_difference": difference,
        "loadable": LOADABLE,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"wrote {path} ({len(artifact) / 1e6:.1f} MB) and {beside}")
        print(f"run by itself, its logits differ by {difference:.1e} of their root mean square")
        print(f"it can be loaded {LOADABLE}")
    return 0
