"""Fine-tuning: which weights a run begins with."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError, nearest
from googlenet_jax.runtime.process import say
from googlenet_jax.runtime.storage import is_store
from googlenet_jax.training.state import TrainState
from googlenet_jax.weights.convert import read_weights
from googlenet_jax.weights.load import load_run
from googlenet_jax.weights.pretrained import list_pretrained, pretrained_file
from googlenet_jax.weights.trained_model import Weights


def read_initial(config: ConfigDict) -> Weights:
    """Reads what `config.init_from` names: pretrained weights, a weight file, or a run's folder.

    Raises UserError where there is no such thing, or it can't be read.
    """
    source = config.init_from
    path = Path(source).expanduser()
    if is_store(source) or path.is_dir():
        run = load_run(source if is_store(source) else path)
        return Weights(run.model, run.variables, run.preprocessing, run.class_names)
    if source in list_pretrained():
        return read_weights(pretrained_file(source))
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        names = list_pretrained()
        raise UserError(
            f"init_from: {source!r} is no file, no run's folder and no pretrained weights"
            f"{nearest(source, names)}; those are {', '.join(names)}"
        )
    options = {k: v for k, v in config.model.options.to_dict().items() if k != "aux_heads"}
    try:
        return read_weights(path)
    except UserError as error:
        if "--model" not in str(error):
            raise
    return read_weights(path, config.model.name, options=options)


@dataclasses.dataclass(frozen=True)
class Taken:
    """What of a file became the first state: paths of parameters and statistics."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    skipped: tuple[str, ...]

    def lines(self) -> list[str]:
        """By name, for a person: parts of the network that are wholly of one sort stand alone."""
        sorts = {"loaded": self.loaded, "new": self.new, "skipped": self.skipped}
        shown = []
        for sort, paths in sorts.items():
            others = {p for other, ps in sorts.items() if other != sort for p in ps}
            names = _parts(paths, others)
            shown.append(f"  {sort} ({len(paths)}): {', '.join(names) or 'nothing'}")
        return shown


def _parts(paths: Iterable[str], others: Iterable[str]) -> list[str]:
    """The shortest names that stand for `paths` and for none of `others`."""
    taken: dict[str, None] = {}
    others = list(others)
    for path in paths:
        pieces = path.split("/")
        for length in range(1, len(pieces) + 1):
            name = "/".join(pieces[:length])
            if length == len(pieces) or not any(
                o == name or o.startswith(name + "/") for o in others
            ):
                taken[name] = None
                break
    return list(taken)


def begin_with(
    state: TrainState, tx: optax.GradientTransformation, weights: Weights
) -> tuple[TrainState, Taken]:
    """Returns the first state with all of `weights` that fits: equal names and shapes.

    Args:
      state: as drawn from the seed; what the weights lack keeps its values.
    Raises:
      UserError: nothing fits.
    """
    given = flatten_dict(dict(weights.variables), sep="/")
    drawn = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    loaded, new = [], []
    for path, leaf in drawn.items():
        found = given.get(path)
        if found is not None and np.shape(found) == leaf.shape:
            loaded.append(path)
            drawn[path] = jax.device_put(jnp.asarray(found, leaf.dtype), leaf.sharding)
        else:
            new.append(path)
    if not any(path.startswith("params/") for path in loaded):
        raise UserError(
            "init_from: nothing in it has the names and shapes of this network "
            f"(its first entries are {', '.join(list(given)[:3])}); is it of this model?"
        )
    tree = unflatten_dict(drawn, sep="/")
    params, stats = tree["params"], tree.get("batch_stats", {})
    ema = (
        None
        if state.ema is None
        else jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats})
    )
    opt_state = jax.jit(tx.init)(params)
    state = dataclasses.replace(
        state, params=params, batch_stats=stats, opt_state=opt_state, ema=ema
    )
    short = {path: path.split("/", 1)[1] for path in (*drawn, *given)}
    used = set(loaded)
    skipped = [short[path] for path in given if path not in used and path.split("/")[0] in tree]
    taken = Taken(tuple(short[p] for p in loaded), tuple(short[p] for p in new), tuple(skipped))
    return state, taken


def tell(taken: Taken, config: ConfigDict, weights: Weights) -> None:
    """Prints what was taken by name, and where the recipe feeds the network otherwise than it was
    trained.
    """
    say(f"init_from {config.init_from}:")
    for line in taken.lines():
        say(line)
    if weights.preprocessing is not None and "preprocessing" in config:
        theirs = weights.preprocessing.to_dict()
        ours = Preprocessing.from_dict(config.preprocessing.to_dict()).to_dict()
        fields = ("mean", "std", "channel_order")
        for field in (field for field in fields if theirs[field] != ours[field]):
            say(
                f"  preprocessing.{field}: they were trained with {theirs[field]}, here {ours[field]}"
            )
