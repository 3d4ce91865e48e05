"""`googlenet-jax explain`: what in pictures a network answers to, and what its layers see."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add, add_weights, fields, load_member
from googlenet_jax.errors import UserError, printable

if TYPE_CHECKING:
    from googlenet_jax.interpretability.explain import Explanation
    from googlenet_jax.weights.trained_model import TrainedModel

FILTERS = "filters"  # is of no image


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "explain",
        help="what in pictures a network answers to: Grad-CAM and others, as pictures and a page",
        description="Writes a picture for each image and method, and index.html, which shows them.",
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="picture files, folders or patterns"
    )
    add_weights(parser, one=True)
    parser.add_argument(
        "--method",
        default="gradcam",
        metavar="A,B,…",
        help="one or several of gradcam (the default), occlusion, integrated, filters, deepdream, "
        "activations; filters needs no image",
    )
    parser.add_argument(
        "--class",
        dest="target",
        metavar="NAME",
        help="the class to explain, a name or a number from 0 (default: the most probable one)",
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="the layer to look at, of gradcam, activations, deepdream"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the method, such as steps=128 or octaves=3; repeatable",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("explained"),
        metavar="DIR",
        help="a folder, made where it is not there (default: explained)",
    )
    add(parser, "--json", help="print JSON alone, a line a picture")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and the page; returns 0, or 1 where a picture could not be read."""
    from googlenet_jax.evaluation.pictures import find_pictures
    from googlenet_jax.interpretability.page import explanations_page
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.storage import write_text, writing

    methods = [name for name in args.method.split(",") if name]
    names: list[str] = [each for image in args.images for each in find_pictures(image)]
    options = _options(args, methods, bool(names))
    prepare()
    trained = load_member(args)
    log_settings()
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Explanation]] = {}
    for number, name in enumerate(names or [""]):
        try:
            found = _explain(trained, name, methods, args.target, options)
        except _Unreadable as error:
            print(f"googlenet-jax: {printable(str(error))}", file=sys.stderr)
            continue
        rows[printable(name) or "filters"] = found
        for each in found:
            stem = f"{number:03d}-{Path(name).stem}-" if name else ""
            path = args.output / f"{stem}{each.method}.png"
            each.save(path)
            _print(name, each, path, args.json)
    if not rows:
        return 1
    page, text = args.output / "index.html", explanations_page(trained.source, rows)
    write_text(page, text)
    if not args.json:
        print(f"wrote {page}")
    return 0 if len(rows) == len(names or [""]) else 1


class _Unreadable(UserError):
    """An image that is passed over."""


def _options(args: argparse.Namespace, methods: list[str], images: bool) -> dict[str, Any]:
    """The methods' options; raises UserError where the methods or their options are wrong."""
    from googlenet_jax.interpretability.explain import check_method

    options = fields("--set", args.set)
    if args.layer is not None:
        options["layer"] = args.layer
    if not methods:
        raise UserError("--method: expected a method, found nothing")
    for method in methods:
        check_method(method, options)
    if not images and methods != [FILTERS]:
        raise UserError(f"IMAGE: expected at least one picture for {', '.join(methods)}")
    return options


def _explain(
    trained: "TrainedModel",
    name: str,
    methods: list[str],
    target: str | None,
    options: dict[str, Any],
) -> "list[Explanation]":
    from googlenet_jax.evaluation.pictures import read_picture
    from googlenet_jax.interpretability.explain import explain

    image = None
    if name:
        try:
            image = read_picture(name, trained.images)
        except UserError as error:
            raise _Unreadable(str(error)) from error
    label: Any = int(target) if target is not None and not _is_name(trained, target) else target
    return [explain(trained, image, method, target=label, **options) for method in methods]


def _is_name(trained: "TrainedModel", target: str) -> bool:
    """A class may be called by a number."""
    return not target.isdecimal() or target in (trained.labels or ())


def _print(name: str, each: "Explanation", path: Path, as_json: bool) -> None:
    if as_json:
        about = {
            "image": name or None,
            "method": each.method,
            "class": each.class_name,
            "probability": each.probability,
            "layer": each.layer,
            "note": each.note,
            "picture": str(path),
        }
        print(json.dumps(about, allow_nan=False), flush=True)
        return
    said = f"{each.class_name} {100 * each.probability:.1f} %, " if each.probability else ""
    where = f" of {each.layer}" if each.layer else ""
    print(f"{printable(name)}: {said}{each.method}{where}: {printable(str(path))}")
