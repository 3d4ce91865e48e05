"""`googlenet-jax explain`: what a network sees in pictures, and why it says what it says."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add_weights, load_members
from googlenet_jax.errors import UserError

if TYPE_CHECKING:
    from googlenet_jax.interpretability.explain import Explanation

METHODS = ("gradcam", "occlusion", "integrated", "filters", "deepdream", "activations")


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "explain",
        help="pictures of why: Grad-CAM, occlusion, integrated gradients, features, DeepDream",
        description="Writes a picture for each IMAGE, and index.html with all of them.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files, folders, 'photos/**/*.jpg'"
    )
    add_weights(parser, one=True)
    parser.add_argument("--method", default="gradcam", choices=METHODS, help="default: gradcam")
    parser.add_argument("--endpoint", metavar="NAME", help="the layer, such as inception_4e")
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="default: the likeliest of each picture"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("explained"), metavar="DIR", help="default: explained"
    )
    parser.add_argument(
        "--grid", metavar="FILE.png", help="also draw all of them with their classes into this file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone, a line a picture")


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and the page; returns 0."""
    from googlenet_jax.evaluation.pictures import check_grid_path, find_pictures
    from googlenet_jax.interpretability.drawing import draw_explanations, write_page
    from googlenet_jax.interpretability.explain import explain
    from googlenet_jax.runtime.process import prepare, say_settings

    if args.grid:
        check_grid_path(args.grid)
    prepare()
    names = [path for argument in args.images for path in find_pictures(argument)]
    loaded = load_members(args)
    if len(loaded) != 1:
        raise UserError(f"--weights: expected one model, found {len(loaded)}")
    say_settings()
    done: list[tuple[str, Explanation]] = []
    for number, name in enumerate(names):
        (found,) = explain(
            loaded[0], name, args.method, endpoint=args.endpoint, class_name=args.class_name
        )
        file = args.output / f"{number:03d}-{Path(name).stem}-{args.method}.png"
        found.save(file)
        done.append((name, found))
        _print(name, found, file, args.json)
    page = args.output / "index.html"
    write_page(page, f"{loaded[0].source}: {args.method}", done)
    if args.grid:
        draw_explanations(args.grid, [found for _, found in done])
    if not args.json:
        print(f"wrote {page}")
    return 0


def _print(name: str, found: "Explanation", file: Path, as_json: bool) -> None:
    if as_json:
        about = {
            "image": name,
            "method": found.method,
            "endpoint": found.endpoint or None,
            "class_name": found.class_name,
            "predictions": [each._asdict() for each in found.predictions],
            "picture": str(file),
        }
        print(json.dumps(about), flush=True)
    else:
        best = found.predictions[0]
        print(f"{name}: {best.class_name} {100 * best.probability:.1f} %; wrote {file}")
