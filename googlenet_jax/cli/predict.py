"""`googlenet-jax predict`: what a network, or an ensemble, sees in pictures."""

import argparse
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add_weights, load_members
from googlenet_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from googlenet_jax.evaluation.predict import Prediction

BATCH_SIZE = 32  # crops at a time: bounds the memory
GRID = 100  # pictures that a grid holds at most
STDIN = "-"
# Of JPEG, PNG, GIF, BMP, TIFF (both byte orders) and WebP.
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


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
    parser.add_argument(
        "--crops",
        type=int,
        default=1,
        choices=(1, 10, 144),
        help="average over this many crops of each picture (default: 1)",
    )
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to show (default: 5)"
    )
    parser.add_argument(
        "--grid",
        metavar="FILE.png",
        help="draw the pictures with their predictions into this file (PNG, PDF, SVG or JPG)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON alone, a line for each picture as it comes"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the predictions; returns 0, or 1 where a picture could not be read."""
    from googlenet_jax.evaluation.ensemble import Ensemble
    from googlenet_jax.evaluation.pictures import check_grid_path, draw_grid
    from googlenet_jax.runtime.process import prepare, say_settings
    from googlenet_jax.runtime.sharding import create_mesh

    if args.top < 1:
        raise UserError(f"--top: expected at least 1, found {args.top}")
    if args.grid:
        check_grid_path(args.grid)
    prepare()
    pictures, count = _pictures(args.images)
    ensemble = Ensemble(
        [each.member for each in load_members(args)],
        crops=args.crops,
        batch_size=BATCH_SIZE,
        mesh=create_mesh(),
        images_at_most=count,
    )
    say_settings()
    grid: list[tuple[np.ndarray, str, list[Prediction]]] = []
    failed = 0
    for name, crop, top in _predict(ensemble, pictures, args.top, bool(args.grid)):
        if isinstance(top, UserError):
            failed += 1
            print(f"googlenet-jax: {top}", file=sys.stderr)
        elif args.grid and len(grid) < GRID:
            grid.append((crop, Path(name).name, top))
        _print(name, top, args.json)
    if grid:
        draw_grid(args.grid, *zip(*grid, strict=True))
        if not args.json:
            print(f"\nwrote {args.grid}")
    return 1 if failed else 0


def _pictures(arguments: list[str]) -> tuple[Iterable[str | io.BytesIO], int | None]:
    """The names of the pictures, or a picture's bytes, and how many there are, None if unknown."""
    from googlenet_jax.evaluation.pictures import find_pictures

    if STDIN not in arguments:
        found = [path for argument in arguments for path in find_pictures(argument)]
        return found, len(found)
    if len(arguments) > 1:
        raise UserError("-: standard input goes alone; leave out the other pictures")
    return _from_stdin(), None


def _from_stdin() -> Iterator[str | io.BytesIO]:
    stdin: Any = sys.stdin.buffer
    stream = io.BufferedReader(stdin)  # which can peek
    if stream.peek(8).startswith(SIGNATURES):
        yield io.BytesIO(stream.read())
        return
    for line in stream:
        name = line.decode(errors="surrogateescape").strip("\r\n")
        if name:
            yield name


def _predict(
    ensemble: Any, pictures: Iterable[str | io.BytesIO], top: int, keep: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yields each picture's name, its centre crop (if they are to be kept), and its predictions.

    Where a picture can't be read, the UserError stands in the predictions' place.
    """
    import numpy as np

    from googlenet_jax.data.pipeline import eval_image
    from googlenet_jax.evaluation.ensemble import average_of_prefixes
    from googlenet_jax.evaluation.pictures import read_picture
    from googlenet_jax.evaluation.predict import top_predictions

    preprocessing = ensemble.members[0].preprocessing

    def read(batch: list[str | io.BytesIO]) -> tuple[list[Any], list[tuple[str, Any, Any]]]:
        images: list[Any] = []
        about: list[tuple[str, Any, Any]] = []
        for picture in batch:
            name = picture if isinstance(picture, str) else STDIN
            try:
                image = read_picture(picture)
            except UserError as error:
                about.append((name, None, error))
            else:
                images.append(image)
                about.append((name, eval_image(image, preprocessing) if keep else None, None))
        return images, about

    batches = _batched(pictures, ensemble.images_at_a_time)
    for about, values in ensemble.run(batches, read, threads=2):
        rows = iter(np.exp(average_of_prefixes(values)[:, -1, -1]))
        for name, crop, error in about:
            yield name, crop, error or top_predictions(next(rows), ensemble.class_names, top)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _print(name: str, top: Any, as_json: bool) -> None:
    failed = isinstance(top, UserError)
    if as_json:
        result = {"error": str(top)} if failed else {"predictions": [p._asdict() for p in top]}
        print(json.dumps({"image": name, **result}), flush=True)
    elif not failed:
        width = max(len(prediction.class_name) for prediction in top)
        print(name)
        for prediction in top:
            print(f"  {prediction.class_name:{width}}  {100 * prediction.probability:6.2f} %")
