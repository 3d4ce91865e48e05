"""`googlenet-jax verify`: a network of ours beside another framework's, layer by layer."""

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import fields
from googlenet_jax.errors import UserError, check_whole
from googlenet_jax.runtime.storage import check_output

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from googlenet_jax.models.network import Network
    from googlenet_jax.verification.of_keras import KerasSide
    from googlenet_jax.weights.trained_model import TrainedModel


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "verify",
        help="a network beside another framework's: where they part, and why",
        description="Runs a network and another framework's on the same inputs and weights, and "
        "reports the first layer where they part, with an explanation that was tested. "
        "Exit status 0: equal, to rounding; 3: different. FILE.py runs as your own code.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, such as googlenet")
    parser.add_argument(
        "--weights", metavar="FILE", help="a weight file of any known kind (default: random)"
    )
    parser.add_argument(
        "--against",
        default="torch",
        metavar="torch|keras|FILE.py:CLASS",
        help="this project's PyTorch reference (default), keras.applications, or a class of yours",
    )
    parser.add_argument(
        "--keep-weights",
        action="store_true",
        help="leave the other side the weights it comes with; without --weights ours become these",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="pictures, folders or patterns (default: four generated images)",
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="of the images, in pixels (default: the model's own)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the model, such as width=0.25 or num_classes=10",
    )
    parser.add_argument(
        "--steps", type=int, default=1, metavar="K", help="of SGD (default: 1; 0: none)"
    )
    parser.add_argument(
        "--dtype",
        default="float64",
        metavar="DTYPE",
        help="float64 (default: only logic can differ), float32 or bfloat16",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and images (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page")


DIFFERENT = 3  # exit status; 1 and 2 are errors


def run(args: argparse.Namespace) -> int:
    """Prints the verification; returns 0 where the two are equal, and 3 where they differ."""
    if args.html:
        check_output(args.html)
    for name, smallest in (("steps", 0), ("seed", 0), ("size", 1)):
        if getattr(args, name) is not None:
            check_whole(f"--{name}", getattr(args, name), smallest)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "verify needs PyTorch: pip install 'googlenet-jax[verify]' and run the command again"
        ) from None
    from googlenet_jax.verification.report import text, write_html
    from googlenet_jax.verification.verify import verify

    model, weights = _model(args)
    images = _images(args, model, weights)
    size = args.size or model.input_size if images is None else images.shape[1]
    module = _other(args, model, size)
    found = verify(
        model,
        module,
        weights.variables if weights else None,
        images=images,
        size=args.size,
        steps=args.steps,
        dtype=args.dtype,
        keep_weights=args.keep_weights,
        seed=args.seed,
        say=lambda line: print(f"{line} …", file=sys.stderr, flush=True),
    )
    if args.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(text(found))
    if args.html:  # last: a page that can't be written takes nothing else with it
        write_html(args.html, found, _command(args))
        if not args.json:
            print(f"wrote {args.html}")
    return 0 if found.first is None else DIFFERENT


def _model(args: argparse.Namespace) -> "tuple[Network, TrainedModel | None]":
    from googlenet_jax.models.registry import create_model

    options = fields("--option", args.option)
    if not args.weights:
        return create_model(args.model, **options), None
    from googlenet_jax.weights.load import load_of

    weights = load_of(args.weights, args.model, options)
    return weights.model, weights


def _other(args: argparse.Namespace, model: "Network", size: int) -> "nn.Module | KerasSide":
    from googlenet_jax.verification.theirs import load_class
    from googlenet_jax.verification.verify import reference_of

    if args.against == "torch":
        return reference_of(model)
    if args.against == "keras":
        from googlenet_jax.verification.of_keras import KerasSide

        return KerasSide.of(model, size, args.dtype)
    return load_class(args.against, model.num_classes)


def _images(
    args: argparse.Namespace, model: "Network", weights: "TrainedModel | None"
) -> "np.ndarray | None":
    if not args.images:
        return None
    import dataclasses

    import numpy as np

    from googlenet_jax.data.pipeline import eval_image
    from googlenet_jax.data.preprocessing import Preprocessing, normalize
    from googlenet_jax.evaluation.pictures import find_pictures, read_picture

    preprocessing = weights.preprocessing if weights else None
    if preprocessing is None:
        preprocessing = Preprocessing(size=model.input_size, resize=model.input_size)
    if args.size:
        size, resize = args.size, max(args.size, preprocessing.resize)
        preprocessing = dataclasses.replace(preprocessing, size=size, resize=resize)
    files = [path for each in args.images for path in find_pictures(each)]
    pictures = np.stack([eval_image(read_picture(path), preprocessing) for path in files])
    return np.asarray(normalize(pictures, preprocessing))  # type: ignore[arg-type]


def _command(args: argparse.Namespace) -> str:
    """The command that was given, without what only says where the report goes."""
    given = ["googlenet-jax", "verify", args.model]
    for name in ("weights", "against", "size", "steps", "dtype", "seed"):
        if getattr(args, name) is not None:
            given += [f"--{name}", str(getattr(args, name))]
    given += ["--keep-weights"] * args.keep_weights
    given += ["--images", *args.images] if args.images else []
    for option in args.option:
        given += ["--option", option]
    return shlex.join(given)
