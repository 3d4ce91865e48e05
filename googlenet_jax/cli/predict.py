"""`googlenet-jax predict`: what a network, or an ensemble, sees in pictures."""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add, add_weights, load_members
from googlenet_jax.errors import UserError, printable

if TYPE_CHECKING:
    import numpy as np

    from googlenet_jax.evaluation.predict import Picture, Predicted, Prediction

BATCH_SIZE = 32  # crops at a time: bounds the memory
GRID = 100  # pictures that a grid holds at most


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("predict", help="the most probable classes of pictures")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="picture files, folders, patterns such as 'photos/**/*.jpg', or - for standard input: "
        "a picture, or names of files, one a line",
    )
    add_weights(parser)
    add(parser, "--crops", help="average over this many crops of each picture (default: 1)")
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to show (default: 5)"
    )
    parser.add_argument(
        "--grid",
        metavar="FILE.png",
        help="draw the pictures with their predictions into this file (PNG, PDF, SVG or JPG)",
    )
    add(parser, "--json", help="print JSON alone, a line for each picture as it comes")


def run(args: argparse.Namespace) -> int:
    """Prints the predictions; returns 0, or 1 where a picture could not be read."""
    from googlenet_jax.evaluation.ensemble import Ensemble
    from googlenet_jax.evaluation.pictures import check_grid_path, draw_grid
    from googlenet_jax.evaluation.predict import predict_pictures
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.sharding import create_mesh

    if args.top < 1:
        raise UserError(f"--top: expected at least 1, found {args.top}")
    if args.grid:
        check_grid_path(args.grid)
    prepare()
    pictures, count = _pictures(args.images)
    ensemble = Ensemble(
        load_members(args),
        crops=args.crops,
        batch_size=BATCH_SIZE,
        mesh=create_mesh(),
        images_at_most=count,
    )
    log_settings()
    grid: list[tuple[np.ndarray, str, list[Prediction]]] = []
    failed = 0
    for result in predict_pictures(ensemble, pictures, top=args.top, keep_crops=bool(args.grid)):
        if result.error is not None:
            failed += 1
            print(f"googlenet-jax: {printable(str(result.error))}", file=sys.stderr)
        elif result.crop is not None and len(grid) < GRID:
            grid.append((result.crop, Path(result.name).name, result.predictions))
        _print(result, args.json)
    if grid:
        draw_grid(args.grid, *zip(*grid, strict=True))
        if not args.json:
            print(f"\nwrote {args.grid}")
    return 1 if failed else 0


def _pictures(arguments: list[str]) -> "tuple[Iterable[Picture], int | None]":
    """The names of the pictures, or a picture's bytes, and how many there are, None if unknown."""
    from googlenet_jax.evaluation.pictures import find_pictures
    from googlenet_jax.evaluation.predict import STDIN

    if STDIN not in arguments:
        found = [path for argument in arguments for path in find_pictures(argument)]
        return found, len(found)
    if len(arguments) > 1:
        raise UserError("-: standard input goes alone; leave out the other pictures")
    return _from_stdin(), None


def _from_stdin() -> Iterator[str | io.BytesIO]:
    from googlenet_jax.data.decoding import picture_format

    stdin: Any = sys.stdin.buffer
    stream = io.BufferedReader(stdin)  # which can peek
    begin = stream.peek(16)[:16]
    form = picture_format(begin)
    # A name may begin as a picture does: BMW/photo.jpg. Lengths in headers are no text.
    if form is not None and (form == "PPM" or any(byte < 9 or byte > 126 for byte in begin)):
        yield io.BytesIO(stream.read())
        return
    for line in stream:
        name = line.decode(errors="surrogateescape").strip("\r\n")
        if name:
            yield name


def _print(result: "Predicted", as_json: bool) -> None:
    if as_json:
        found = {"predictions": [each._asdict() for each in result.predictions]}
        line = found if result.error is None else {"error": str(result.error)}
        print(json.dumps({"image": result.name, **line}, allow_nan=False), flush=True)
    elif result.error is None:
        width = max(len(each.class_name) for each in result.predictions)
        print(result.name)
        for each in result.predictions:
            print(f"  {each.class_name:{width}}  {100 * each.probability:6.2f} %")
