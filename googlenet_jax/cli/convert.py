"""`googlenet-jax convert`: weights of one framework as those of another."""

import argparse
import json
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "convert",
        help="weights from and to PyTorch, Keras, TF-slim, Caffe and safetensors",
        description=(
            "Reads a weight file of any kind that is known and writes it as another. Nothing in a"
            " file is run."
        ),
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help=(
            "a weight file (for TensorFlow the checkpoint's prefix), a run's folder, public weights"
            " by name, or hf-hub:OWNER/NAME"
        ),
    )
    parser.add_argument(
        "goal", metavar="DST", help=".safetensors (this project's), .pth or .weights.h5"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="what the weights are of, where the file's names and shapes fit several networks",
    )
    parser.add_argument(
        "--flavour",
        metavar="F",
        help="of the model, where it has several (default: the file kind's)",
    )
    add(parser, "--option", help="another option of the model, such as width=0.5")
    parser.add_argument(
        "--from", dest="kind", metavar="KIND", help="where the content does not say what it is"
    )
    parser.add_argument(
        "--to",
        metavar="KIND",
        help="where DST's ending does not say; safetensors is PyTorch's names in that format",
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights where the file has both"
    )
    parser.add_argument(
        "--background",
        choices=("keep", "drop"),
        default="keep",
        help="the first of TF-slim's 1,001 classes",
    )
    parser.add_argument(
        "--preprocessing",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="such as size=192; carried in DST",
    )
    parser.add_argument(
        "--class-names", metavar="FILE", help="one a line, in the order of the logits"
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Converts and prints what was written; returns 0."""
    from googlenet_jax.cli.members import fields
    from googlenet_jax.models.registry import model_name, model_options
    from googlenet_jax.runtime.storage import check_output
    from googlenet_jax.weights.convert import convert
    from googlenet_jax.weights.kinds import goal_kind
    from googlenet_jax.weights.load import load
    from googlenet_jax.weights.tree import flatten

    changes = {
        "to": args.to,
        "preprocessing": fields("--preprocessing", args.preprocessing),
        "class_names": _names(args.class_names),
    }
    options = fields("--option", args.option) | ({"flavour": args.flavour} if args.flavour else {})
    reading: dict[str, Any] = {
        **options,
        "kind": args.kind,
        "ema": args.ema,
        "background": args.background,
    }
    goal_kind(args.goal, args.to)  # before the work, not after
    check_output(args.goal)
    weights = convert(load(args.source, args.model, **reading), args.goal, **changes)
    arrays = flatten(weights.variables)
    result = {
        "source": args.source,
        "written": args.goal,
        "model": model_name(weights.model),
        "options": model_options(weights.model),
        "tensors": len(arrays),
        "parameters": sum(array.size for path, array in arrays.items() if path[0] == "params"),
        "preprocessing": weights.preprocessing.to_dict() if weights.preprocessing else None,
        "class_names": len(weights.class_names) if weights.class_names else None,
        "notes": list(weights.notes),
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(
        f"wrote {args.goal}: {result['model']}, {result['parameters']:,} parameters in"
        f" {result['tensors']} tensors"
    )
    for note in weights.notes:
        print(f"  {note}")
    return 0


def _names(path: str | None) -> list[str] | None:
    from googlenet_jax.errors import UserError

    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--class-names: {path} can't be read as text, one name a line: {error}"
        ) from None
