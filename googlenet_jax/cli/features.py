"""`googlenet-jax features`: a layer's activations of images, into a file."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from googlenet_jax.cli.members import add
from googlenet_jax.errors import UserError, check_whole

BATCH_SIZE = 32


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser("features", help="a layer's activations of images, into a file")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folders, .zip or .tar archives, .npy or .npz arrays uint8 [N, H, W, 3], or prepared "
        "data sets as NAME@SPLIT",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="public weights by name, a run's folder or a weight file",
    )
    parser.add_argument(
        "--layer", default="pool3", metavar="NAME", help="an endpoint (default: pool3)"
    )
    parser.add_argument("--output", required=True, metavar="F.npz", help="features and names")
    parser.add_argument(
        "--resize",
        choices=("tf1", "torch", "clean"),
        help="for the FID's network (default: tf1); others have their own preprocessing",
    )
    add(parser, "--mixed")
    add(parser, "--data-dir", help="where TFDS's data sets lie")
    add(parser, "--batch-size", default=BATCH_SIZE)
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Writes the file; returns 0."""
    from googlenet_jax.data.image_kind import RGB
    from googlenet_jax.metrics.extract import extract
    from googlenet_jax.metrics.images import open_images
    from googlenet_jax.metrics.summary import to_stderr
    from googlenet_jax.runtime.process import log_settings, prepare
    from googlenet_jax.runtime.sharding import create_mesh
    from googlenet_jax.weights.load import load

    check_whole("--batch-size", args.batch_size, 1)
    prepare()
    sets = [open_images(path, args.data_dir) for path in args.paths]
    trained = load(args.model)
    is_fid = getattr(trained.model, "flavour", None) == "fid"
    if args.resize and not is_fid:
        raise UserError("--resize: of the FID's network alone; this one has its own preprocessing")
    if trained.images != RGB:
        raise UserError(
            f"--model: {args.model} takes {trained.images}, and these commands read {RGB}; from "
            "Python, gj.load(…).features(arrays) gives its features"
        )
    if not is_fid and trained.preprocessing is None:
        raise UserError(
            f"--model: {args.model} doesn't say how images are prepared for it; write it anew with "
            "save_weights(…, preprocessing=…)"
        )
    shape = extract(
        sets,
        trained.model,
        trained.variables,
        args.layer,
        Path(args.output),
        preprocessing=None if is_fid else trained.preprocessing,
        resize_as=args.resize or "tf1",
        mixed=args.mixed,
        mesh=create_mesh(),
        batch_size=args.batch_size,
        progress=sys.stderr.isatty(),
        log=to_stderr,
    )
    log_settings()
    result = {"output": args.output, "layer": args.layer, "shape": list(shape)}
    print(
        json.dumps(result)
        if args.json
        else f"wrote {args.output}: {args.layer}, {'×'.join(map(str, shape))}"
    )
    return 0
