"""`googlenet-jax verify`: two networks side by side, segment by segment."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add, fields
from googlenet_jax.errors import UserError, check_whole
from googlenet_jax.runtime.storage import check_output, write_text

if TYPE_CHECKING:
    import numpy as np

    from googlenet_jax.models.network import Network


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "verify",
        help="two networks, such as one of ours and a port: whether they are equal, and why not",
        description="Runs a reference and a candidate on the same inputs and weights. Each segment "
        "of the reference gets what the candidate recorded before it, so that every fault shows "
        "where it is; what differs is tried on the reference before it is named. "
        "Exit status 0: equal, to rounding; 3: different. FILE.py runs as your own code.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="the reference: a model's name, such as googlenet"
    )
    parser.add_argument(
        "--against",
        default="torch",
        metavar="torch|keras|FILE.py:NAME",
        help="MODEL's candidate: this project's PyTorch network (default), keras.applications, or "
        "a class, function or object of yours",
    )
    parser.add_argument(
        "--reference", metavar="FILE.py:NAME", help="any reference, in place of MODEL"
    )
    parser.add_argument("--candidate", metavar="FILE.py:NAME", help="its candidate")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="MODEL's: a weight file of any known kind (default: random)",
    )
    parser.add_argument(
        "--keep-weights",
        action="store_true",
        help="leave the candidate its own; a MODEL without --weights gets these, otherwise the "
        "reference keeps its own too",
    )
    parser.add_argument(
        "--map", metavar="FILE", help="which kernel is which, as --save-map writes it"
    )
    parser.add_argument("--save-map", metavar="FILE", help="write which kernel is which, as JSON")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help="pictures, folders or patterns (default: four generated images)",
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="of the images, in pixels (default: the model's own)"
    )
    add(parser, "--option", help="of MODEL, such as width=0.25 or num_classes=10")
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
    add(parser, "--json")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    parser.add_argument("--markdown", metavar="FILE", help="write it for a pull request")


DIFFERENT = 3  # exit status; 1 and 2 are errors


def run(args: argparse.Namespace) -> int:
    """Prints the verification; returns 0 where the two are equal, and 3 where they differ."""
    for name, smallest in (("steps", 0), ("seed", 0), ("size", 1)):
        if getattr(args, name) is not None:
            check_whole(f"--{name}", getattr(args, name), smallest)
    pair = args.reference and args.candidate
    if bool(args.model) == bool(pair) or bool(args.reference) != bool(args.candidate):
        raise UserError(
            "verify: give a MODEL, or --reference FILE.py:NAME and --candidate FILE.py:NAME"
        )
    for path in filter(None, (args.html, args.markdown, args.save_map)):
        check_output(path)
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "verify needs PyTorch: pip install 'googlenet-jax[verify]' and run the command again"
        ) from None
    from googlenet_jax.verification import report
    from googlenet_jax.verification.transfer import load_map, save_map
    from googlenet_jax.verification.verify import verify

    reference, candidate, images, weights = _pair(args) if pair else _model_and_candidate(args)
    found = verify(
        reference,
        candidate,
        images,
        weights=weights,
        pairs=load_map(args.map) if args.map else None,
        steps=args.steps,
        dtype=args.dtype,
        seed=args.seed,
        log=lambda line: print(f"{line} …", file=sys.stderr, flush=True),
    )
    print(report.as_json(found) if args.json else report.text(found))
    # Last: a file that can't be written takes nothing else with it.
    if args.save_map:
        save_map(args.save_map, found.alignment)
    command = _command(args)
    for path, make in ((args.html, report.page), (args.markdown, report.markdown)):
        if path:
            write_text(path, make(found, command))
    written = [path for path in (args.save_map, args.html, args.markdown) if path]
    if written and not args.json:
        print(f"wrote {', '.join(written)}")
    return 0 if found.equal else DIFFERENT


def _pair(args: argparse.Namespace) -> tuple[Any, Any, "np.ndarray", str]:
    """Both sides from files, on generated images."""
    from googlenet_jax.verification.sides import load_object
    from googlenet_jax.verification.verify import default_images

    reference = load_object(args.reference, "--reference")
    candidate = load_object(args.candidate, "--candidate")
    images = default_images(args.size or 64, seed=args.seed)
    return reference, candidate, images, "own" if args.keep_weights else "random"


def _model_and_candidate(args: argparse.Namespace) -> tuple[Any, Any, "np.ndarray", str]:
    from googlenet_jax.verification.verify import default_images, own_network

    model, weights = _model(args)
    images = _images(args, model, weights)
    if images is None:
        images = default_images(args.size or model.input_size, seed=args.seed)
    height, width = images.shape[1:3]
    if problem := model.size_problem(height, width, model.aux_heads):
        raise UserError(f"{args.model}: {problem}")
    candidate = _candidate(args, model, height)
    variables = weights.variables if weights else None
    side = own_network(model, variables, height, args.dtype, args.seed)
    if args.keep_weights:
        return side, candidate, images, "own" if weights else "candidate"
    return side, candidate, images, "reference" if weights else "random"


def _model(args: argparse.Namespace) -> "tuple[Network, Any]":
    from googlenet_jax.models.registry import create_model

    options = fields("--option", args.option)
    if not args.weights:
        return create_model(args.model, **options), None
    from googlenet_jax.weights.load import load_of

    weights = load_of(args.weights, args.model, options)
    return weights.model, weights


def _candidate(args: argparse.Namespace, model: "Network", size: int) -> Any:
    from googlenet_jax.verification.sides import keras_inception, load_object
    from googlenet_jax.verification.verify import reference_of

    if args.against == "torch":
        return reference_of(model)
    if args.against == "keras":
        return keras_inception(model, size, args.dtype)
    return load_object(args.against, "--against", model.num_classes)


def _images(args: argparse.Namespace, model: "Network", weights: Any) -> "np.ndarray | None":
    if not args.images:
        return None
    import dataclasses

    import numpy as np

    from googlenet_jax.data.image_kind import kind_of
    from googlenet_jax.data.pipeline import eval_image
    from googlenet_jax.data.preprocessing import Preprocessing, normalize
    from googlenet_jax.evaluation.pictures import find_pictures, read_picture

    preprocessing = weights.preprocessing if weights else None
    if preprocessing is None:
        preprocessing = Preprocessing(size=model.input_size, resize=model.input_size)
    if args.size:
        size, resize = args.size, max(args.size, preprocessing.resize)
        preprocessing = dataclasses.replace(preprocessing, size=size, resize=resize)
    kind = kind_of(model, preprocessing)
    files = [path for each in args.images for path in find_pictures(each)]
    pictures = np.stack([eval_image(read_picture(path, kind), preprocessing) for path in files])
    return np.asarray(normalize(pictures, preprocessing))  # type: ignore[arg-type]


def _command(args: argparse.Namespace) -> str:
    """The command that was given, without what only says where the report goes."""
    given = ["googlenet-jax", "verify"]
    given += [args.model] if args.model else []
    names = ("weights", "reference", "candidate", "map", "size", "steps", "dtype", "seed")
    for name in (*(("against",) if args.model else ()), *names):
        if getattr(args, name) is not None:
            given += [f"--{name}", str(getattr(args, name))]
    given += ["--keep-weights"] * args.keep_weights
    given += ["--images", *args.images] if args.images else []
    for option in args.option:
        given += ["--option", option]
    return shlex.join(given)
