"""What `--weights` names, loaded: the members of an ensemble."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.storage import is_store

if TYPE_CHECKING:
    from googlenet_jax.evaluation.ensemble import Member

OF_A_RUN = (
    "; of a run DIR@raw or DIR@ema (default: ema where the run has it) and DIR@STEP, a kept "
    "checkpoint (default: the newest)"
)
ONE = "a run's folder (train.py's --workdir) or a weight file" + OF_A_RUN
SEVERAL = (
    "run folders (train.py's --workdir) and weight files, separated by commas: their probabilities "
    "are averaged" + OF_A_RUN
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A member with where it came from.

    Attributes:
      about: for results: name, model, and of a run step and weights.
      config: the run's recipe; empty for a weight file.
    """

    member: "Member"
    about: dict[str, Any]
    config: dict[str, Any]


def add_weights(parser: Any) -> None:
    """Adds the argument that `load_members` reads; `--run` is the same one's older name."""
    parser.add_argument(
        "--weights", "--run", required=True, action="append", metavar="A,B,…", help=SEVERAL
    )


def load_members(args: argparse.Namespace) -> list[Loaded]:
    """Loads each of `--weights`, in order.

    Raises:
      UserError: naming what can't be read, or that it holds no preprocessing.
    """
    names = [name for given in args.weights for name in given.split(",") if name]
    if not names:
        raise UserError("--weights: expected a run's folder or a weight file, found nothing")
    return [_load(name) for name in names]


def _load(name: str) -> Loaded:
    path, *choices = name.split("@") if not Path(name).exists() else [name]
    if is_store(path):
        return _load_run(name, path, choices)
    if not Path(path).exists():
        hint = f"; of a run's weights, say DIR@{path}" if path in ("raw", "ema") else ""
        raise UserError(
            f"--weights: expected a run's folder or a .safetensors file, found no {path!r}{hint}"
        )
    if Path(path).is_dir():
        return _load_run(name, path, choices)
    if choices:
        raise UserError(f"--weights: {name}: a file has no choice of weights; name it without '@'")
    return _load_file(path)


def _load_run(name: str, folder: str, choices: list[str]) -> Loaded:
    from googlenet_jax.evaluation.ensemble import Member
    from googlenet_jax.weights.load import load_run

    weights = step = None
    for choice in choices:
        if choice in ("raw", "ema"):
            weights = choice
        elif re.fullmatch(r"\d+", choice):
            step = int(choice)
        else:
            raise UserError(
                f"--weights: {name}: expected raw, ema or a step after '@', found {choice!r}"
            )
    trained = load_run(folder, weights, step)
    member = Member(
        name, trained.model, trained.variables, trained.preprocessing, trained.class_names
    )
    about = {"name": name, "step": trained.step, "weights": trained.weights}
    return Loaded(member, about, trained.config)


def _load_file(path: str) -> Loaded:
    from googlenet_jax.data.preprocessing import Preprocessing
    from googlenet_jax.evaluation.ensemble import Member
    from googlenet_jax.weights.safetensors import load_weights, read_metadata

    model, variables = load_weights(path)
    metadata = read_metadata(path)
    if metadata["preprocessing"] is None:
        raise UserError(
            f"--weights: {path}: the file doesn't say how images are prepared for it; "
            "write it anew with save_weights(…, preprocessing=…)"
        )
    preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
    offset = getattr(preprocessing, "class_offset", 0)
    names = None if metadata["class_names"] is None else tuple(metadata["class_names"][offset:])
    member = Member(path, model, variables, preprocessing, names, offset)
    return Loaded(member, {"name": path}, {})
