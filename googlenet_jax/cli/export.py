"""`googlenet-jax export`: a network as StableHLO or ONNX, which runs without this project."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add, add_weights, load_member
from googlenet_jax.errors import UserError

Form = tuple[Callable[..., float], dict[str, Any], str]

# Above rounding: of the folding in the model's dtype, in units of the logits' root mean square.
TOLERANCE = {"bfloat16": 0.2, "float16": 0.05, "float32": 1e-3, "float64": 1e-9}


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "export",
        help="a network as StableHLO for CPU, CUDA and TPU, or as ONNX, with its preprocessing "
        "beside it",
        description="Writes OUT and, beside it, OUT with .json: how images are prepared, and the "
        "class names. StableHLO is checked in a process that has jax and numpy alone, ONNX by "
        "onnxruntime.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, as the weights have it")
    add_weights(parser, one=True)
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="stablehlo",
        help="default: stablehlo; onnx needs the extra of that name",
    )
    parser.add_argument(
        "--output", type=Path, metavar="OUT", help="default: MODEL.FORMAT in this folder"
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Writes both files; returns 0."""
    from googlenet_jax.models.registry import create_model
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.storage import check_output, write_atomically, writing
    from googlenet_jax.weights.export import describe

    path = args.output or Path(f"{args.model}.{args.format}")
    beside = path.with_suffix(".json")
    if beside == path:
        raise UserError(f"--output: expected another ending than .json, found {path}")
    check_output(path)
    create_model(args.model)  # raises, before weights are read, where there is none of that name
    make, form, told = FORMATS[args.format]()
    prepare()
    member = _member(args)
    log_settings()
    network = (member.model, member.variables, member.preprocessing)
    about = describe(args.model, member.preprocessing, member.images, member.class_names, form)
    difference = 0.0

    def write(part: Path) -> None:
        """Checked before it has its name: a file that fails never takes a good one's place."""
        nonlocal difference
        difference = make(part, *network)
        limit = TOLERANCE[member.model.dtype.name]
        if not difference <= limit:
            raise UserError(f"{path}: its logits differ by {difference:.1e}, over {limit:.0e}")

    with writing(path):
        write_atomically(path, write)
        write_atomically(beside, lambda part: part.write_text(about, encoding="utf-8"))
    result = {
        "artifact": str(path),
        "preprocessing": str(beside),
        "bytes": path.stat().st_size,
        "largest_difference": difference,
        **form,
    }
    print(json.dumps(result) if args.json else _text(result, told))
    return 0


def _text(result: dict[str, Any], told: str) -> str:
    return (
        f"wrote {result['artifact']} ({result['bytes'] / 1e6:.1f} MB) and "
        f"{result['preprocessing']}\nrun by itself, its logits differ by "
        f"{result['largest_difference']:.1e} of their root mean square\n{told}"
    )


def _member(args: argparse.Namespace) -> Any:
    from googlenet_jax.models.registry import model_name

    member = load_member(args)
    member.check_complete()
    name = model_name(member.model)
    if name != args.model:
        raise UserError(f"{member.source}: expected weights of {args.model}, found {name}'s")
    return member


def _stablehlo() -> Form:
    from googlenet_jax.weights.export import LOADABLE, STABLEHLO, check_artifact, export_model

    def make(part: Path, *network: Any) -> float:
        part.write_bytes(export_model(*network))
        return check_artifact(part, *network)

    return make, STABLEHLO, f"it can be loaded {LOADABLE}"


def _onnx() -> Form:
    try:
        from googlenet_jax.verification.to_onnx import OPSET, check_onnx, check_packages, write_onnx
    except ImportError:
        raise UserError("--format onnx needs torch; pip install 'googlenet-jax[onnx]'") from None
    check_packages()

    def make(part: Path, *network: Any) -> float:
        write_onnx(part, *network)
        return check_onnx(part, *network)

    return make, {"opset": OPSET}, f"opset {OPSET}; it was run by onnxruntime"


# Name → what gives: a function that writes and checks the file, what is said of it in the .json,
# and to a person.
FORMATS: dict[str, Callable[[], Form]] = {"stablehlo": _stablehlo, "onnx": _onnx}
