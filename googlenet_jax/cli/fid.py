"""`googlenet-jax fid`: FID and its relatives of two sets of images."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add
from googlenet_jax.errors import UserError, check_whole, nearest

if TYPE_CHECKING:
    from googlenet_jax.metrics.features import InceptionFeatures
    from googlenet_jax.metrics.summary import Summary

METRICS = ("fid", "kid", "is", "pr", "sfid")
BATCH_SIZE = 32
SUBSET = 1000  # of KID


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "fid", help="FID, KID, Inception score, precision and recall of images"
    )
    what = (
        "a folder, a .zip or .tar archive, an .npy or .npz array uint8 [N, H, W, 3], a prepared "
        "data set as NAME@SPLIT, or stored statistics (.npz)"
    )
    parser.add_argument("reference", metavar="A", help=f"the real images: {what}")
    parser.add_argument(
        "judged",
        metavar="B",
        nargs="?",
        help="the generated ones, likewise; without it, see --output",
    )
    parser.add_argument(
        "--metrics",
        default="fid",
        metavar="M,M,…",
        help=f"some of {','.join(METRICS)} (default: fid)",
    )
    parser.add_argument(
        "--resize",
        choices=("tf1", "torch", "clean"),
        default="tf1",
        help="to 299 pixels as TensorFlow 1 and torch-fidelity, pytorch-fid, or clean-fid do "
        "(default: tf1)",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="of the FID's network (default: the public ones)"
    )
    add(parser, "--data-dir", help="where TFDS's data sets lie")
    add(parser, "--batch-size", default=BATCH_SIZE)
    add(parser, "--mixed")
    parser.add_argument(
        "--output", metavar="FILE.npz", help="write A's statistics, which pytorch-fid reads too"
    )
    parser.add_argument(
        "--kid-subset-size", type=int, default=SUBSET, metavar="N", help="(default: 1000)"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="compute anew what is known already"
    )
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prints the figures, or writes A's statistics; returns 0."""
    from googlenet_jax.metrics.summary import to_stderr
    from googlenet_jax.runtime.process import log_settings, prepare

    metrics = _metrics(args.metrics)
    if args.judged is None and not args.output:
        raise UserError("fid: expected two sets of images, or one with --output FILE.npz")
    check_whole("--batch-size", args.batch_size, 1)
    prepare()
    names = [name for name in (args.reference, args.judged) if name is not None]
    sides = _summaries(args, names, metrics)
    log_settings()
    for line in [note for side in sides for note in side.notes]:
        to_stderr(line)
    result: dict[str, Any] = {
        "reference": args.reference,
        "resize": sides[0].resize,
        "images": [side.count for side in sides],
    }
    if args.output:
        _write(args.output, sides[0])
        result["output"] = args.output
    if args.judged is not None:
        check_comparable(*sides)
        result |= {
            "judged": args.judged,
            **figures(sides[0], sides[1], metrics, args.kid_subset_size),
        }
    _print(result, args.json)
    return 0


def _metrics(given: str) -> tuple[str, ...]:
    names = tuple(name for name in given.split(",") if name)
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"--metrics: expected some of {', '.join(METRICS)}, found {name!r}"
                f"{nearest(name, METRICS)}"
            )
    if not names:
        raise UserError(f"--metrics: expected some of {', '.join(METRICS)}, found nothing")
    return names


def load_features(args: argparse.Namespace) -> "InceptionFeatures":
    """The network that `--weights` and `--resize` name, over all devices."""
    import jax

    from googlenet_jax.metrics.features import inception_features
    from googlenet_jax.runtime.sharding import create_mesh
    from googlenet_jax.weights.load import load

    mesh = create_mesh() if jax.device_count() > 1 else None
    trained = load(args.weights or "inception_v3_fid")
    return inception_features(trained.model, trained.variables, args.resize, mesh)


def _summaries(
    args: argparse.Namespace, names: list[str], metrics: tuple[str, ...]
) -> list["Summary"]:
    from googlenet_jax.metrics.images import open_images
    from googlenet_jax.metrics.summary import is_statistics, summarise, weights_digest

    # Everything is opened before the network runs: a wrong name is said at once.
    opened = [None if is_statistics(name) else open_images(name, args.data_dir) for name in names]
    features = load_features(args) if any(opened) else None
    digest = weights_digest(features.variables) if features else ""
    sides = []
    for place, (name, images) in enumerate(zip(names, opened, strict=True)):
        if images is None:
            sides.append(_stored(name, metrics if place else [m for m in metrics if m != "is"]))
            continue
        assert features is not None
        # The score is of the generated images alone.
        wanted = [each for each in metrics if each != "is" or place == len(names) - 1]
        sides.append(
            summarise(
                images,
                features,
                wanted or ["fid"],
                weights=digest,
                batch_size=args.batch_size,
                mixed=args.mixed,
                cache=not args.no_cache,
                progress=sys.stderr.isatty(),
            )
        )
    return sides


def _stored(name: str, metrics: Any) -> "Summary":
    from googlenet_jax.metrics.stored import read_stored
    from googlenet_jax.metrics.summary import Summary

    stored = read_stored(name)
    if lacking := [each for each in metrics if each in ("kid", "pr", "is")]:
        raise UserError(
            f"{name}: {', '.join(lacking)} need the images, and statistics hold means and "
            "covariances alone; name the images, or leave these metrics out"
        )
    if "sfid" in metrics and "spatial" not in stored.layers:
        raise UserError(f"{name}: sfid needs mu_s and sigma_s, which this file lacks")
    count = stored.layers["pool3"].count
    return Summary(name, count, stored.layers, resize=stored.resize, weights=stored.weights)


def check_comparable(first: "Summary", second: "Summary") -> None:
    """Raises UserError where two sides were made in different ways."""
    for what, one, other in (
        ("resize", first.resize, second.resize),
        ("weights", first.weights, second.weights),
    ):
        if one is not None and other is not None and one != other:
            raise UserError(
                f"{first.name} and {second.name}: expected the same {what}, found {one} and "
                f"{other}: the distance would be the {what}'s; make one of them anew"
            )


def figures(
    real: "Summary", generated: "Summary", metrics: tuple[str, ...], subset_size: int = SUBSET
) -> dict[str, Any]:
    """The values by name, from both sides' summaries; warns on standard error of few images."""
    from googlenet_jax.metrics.distance import frechet_distance
    from googlenet_jax.metrics.kernel import kernel_distance
    from googlenet_jax.metrics.neighbours import neighbourhoods
    from googlenet_jax.metrics.scores import few_images
    from googlenet_jax.metrics.summary import to_stderr

    result: dict[str, Any] = {}
    for name, layer in (("fid", "pool3"), ("sfid", "spatial")):
        if name in metrics:
            sides = real.statistics[layer], generated.statistics[layer]
            if text := few_images(*sides):
                to_stderr(f"{name}: {text}")
            unsaid = [side.name for side in (real, generated) if side.resize is None]
            for each in unsaid:
                to_stderr(f"{name}: {each} doesn't say how its images were resized")
            result[name] = frechet_distance(*sides)
    if "kid" in metrics:
        assert real.rows is not None and generated.rows is not None
        kid = kernel_distance(real.rows, generated.rows, subset_size=subset_size)
        result["kid"] = {"mean": kid.mean, "std": kid.std}
    if "is" in metrics:
        assert generated.scores is not None
        scores = generated.scores
        result["is"] = {"mean": float(scores.mean()), "std": float(scores.std())}
    if "pr" in metrics:
        assert real.rows is not None and generated.rows is not None
        result |= neighbourhoods(real.rows, generated.rows)._asdict()
    return result


def _write(path: str, side: "Summary") -> None:
    from googlenet_jax.metrics.stored import write_statistics

    write_statistics(
        path,
        side.statistics["pool3"],
        side.statistics.get("spatial"),
        resize=side.resize,
        weights=side.weights,
    )


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            value = f"{value['mean']:.7g} ± {value['std']:.3g}"
        elif isinstance(value, float):
            value = f"{value:.7g}"
        elif isinstance(value, list):
            value = " and ".join("?" if each is None else f"{each:,}" for each in value)
        print(f"{name:10} {value}")
