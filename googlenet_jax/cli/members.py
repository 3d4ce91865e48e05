"""`--weights`, the same in every command: what it names, loaded."""

import argparse
from typing import TYPE_CHECKING, Any

from googlenet_jax.errors import UserError

if TYPE_CHECKING:
    from googlenet_jax.weights.trained_model import TrainedModel

ONE = (
    "a run's folder (DIR@raw, DIR@ema, DIR@STEP: its weights), a weight file of this or another "
    "framework, public weights by name, or hf-hub:OWNER/NAME"
)
SEVERAL = f"one or several, separated by commas, whose probabilities are averaged; each {ONE}"


def add_weights(parser: Any, *, one: bool = False) -> None:
    """Adds the arguments that `load_members` reads."""
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="X" if one else "A,B,…",
        help=ONE if one else SEVERAL,
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the network, where a foreign file doesn't tell it, such as flavour=slim; "
        "model=NAME names the network itself",
    )


def load_members(args: argparse.Namespace) -> "list[TrainedModel]":
    """Loads each of `--weights`, in order, and logs what was supposed of it.

    Raises:
      UserError: naming what can't be read.
    """
    from googlenet_jax.runtime.process import log
    from googlenet_jax.weights.load import load

    names = [name for given in args.weights for name in given.split(",") if name]
    if not names:
        raise UserError("--weights: expected a run's folder or a weight file, found nothing")
    options = fields("--option", getattr(args, "option", []))
    loaded = []
    for name in names:
        try:
            trained = load(name, **options)
        except UserError as error:
            raise UserError(f"--weights: {error}") from error
        for note in trained.notes:
            log(f"{name}: {note}")
        loaded.append(trained)
    return loaded


def about(trained: "TrainedModel") -> dict[str, Any]:
    """For results: the name, and of a run its step and weights."""
    if trained.step is None:
        return {"name": trained.source}
    return {"name": trained.source, "step": trained.step, "weights": trained.weights}


def fields(flag: str, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is JSON where it can be, else a text."""
    import json

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{flag}: expected NAME=VALUE, found {pair!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
