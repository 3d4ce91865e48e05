"""The arguments that are the same in every command that takes them, and what `--weights` names,
loaded.
"""

import argparse
from typing import TYPE_CHECKING, Any

from googlenet_jax.errors import UserError, naming

if TYPE_CHECKING:
    from googlenet_jax.weights.trained_model import TrainedModel

ONE = (
    "a run's folder (DIR@raw, DIR@ema, DIR@STEP: its weights), a weight file of this or another "
    "framework, public weights by name, or hf-hub:OWNER/NAME"
)
SEVERAL = f"one or several, separated by commas, whose probabilities are averaged; each {ONE}"
SHARED: dict[str, dict[str, Any]] = {
    "--json": {"action": "store_true", "help": "print JSON alone"},
    "--option": {"action": "append", "default": [], "metavar": "NAME=VALUE"},
    "--data-dir": {"metavar": "D", "help": "where prepared data sets lie (default: the run's)"},
    "--batch-size": {"type": int, "metavar": "N", "help": "images at a time (%(default)s)"},
    "--mixed": {"action": "store_true", "help": "take images of several sizes or modes"},
    "--crops": {"type": int, "default": 1, "choices": (1, 10, 144)},
}


def add(parser: Any, flag: str, **changed: Any) -> None:
    """Adds an argument of `SHARED`, with what differs in this command."""
    parser.add_argument(flag, **SHARED[flag] | changed)


def add_weights(parser: Any, *, one: bool = False) -> None:
    """Adds the arguments that `load_members` and `load_member` read."""
    parser.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="X" if one else "A,B,…",
        help=ONE if one else SEVERAL,
    )
    add(
        parser,
        "--option",
        help="of the network, where a foreign file doesn't tell it, such as flavour=slim; "
        "model=NAME names the network itself",
    )


def load_member(args: argparse.Namespace) -> "TrainedModel":
    """Loads the one model that `--weights` names; raises UserError as `load_members`."""
    loaded = load_members(args)
    if len(loaded) != 1:
        raise UserError(f"--weights: expected one model, found {len(loaded)}")
    return loaded[0]


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
    options = fields("--option", args.option)
    loaded = []
    for name in names:
        with naming("--weights"):
            trained = load(name, **options)
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
