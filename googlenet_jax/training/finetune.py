"""Fine-tuning: which weights a run begins with."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import model_name, model_options
from googlenet_jax.runtime.process import log
from googlenet_jax.training.patterns import matches
from googlenet_jax.training.state import TrainState
from googlenet_jax.weights.load import load
from googlenet_jax.weights.pretrained import describe
from googlenet_jax.weights.trained_model import TrainedModel


def read_initial(config: ConfigDict) -> TrainedModel:
    """Loads what `config.init_from` names, anything that `gj.load` opens.

    Raises UserError where there is no such thing, or it can't be read.
    """
    source = config.init_from
    try:
        return load(source)
    except UserError as error:
        # Where a file's names don't tell, the config does.
        if "model=" not in str(error) or not config.model.name:
            raise UserError(f"init_from: {error}") from error
    options = {k: v for k, v in config.model.options.to_dict().items() if k != "aux_heads"}
    return load(source, config.model.name, **options)


def complete_from_initial(
    config: ConfigDict, initial: Callable[[], TrainedModel], kept: Mapping[str, Any] | None = None
) -> None:
    """Sets `model` where its name is "", and `preprocessing` where its size is 0, to those of
    `init_from`; options of the model that the config sets stay.

    Args:
      initial: loads `init_from`, where no smaller file tells.
      kept: the config of the run that is resumed: it is taken where it is there.
    Raises:
      UserError: no `init_from`, or it can't be read or says no preprocessing.
    """
    wanted = [
        field
        for field, unset in (
            ("model.name", not config.model.name),
            ("preprocessing.size", config.get("preprocessing", {}).get("size") == 0),
        )
        if unset
    ]
    if not wanted:
        return
    if kept:
        config.model.update(kept["model"])
        config.preprocessing.update(kept["preprocessing"])
        return
    if not config.init_from:
        raise UserError(f"{wanted[0]}: not set, and neither is init_from, which would tell it")
    about = describe(config.init_from) or initial()
    if "model.name" in wanted:
        options = {
            name: value
            for name, value in model_options(about.model).items()
            if name not in ("num_classes", "dtype", "param_dtype")
        }
        options["aux_heads"] = False  # they serve training from the beginning
        config.model.name = model_name(about.model)
        config.model.options = ConfigDict({**options, **config.model.options.to_dict()})
    if "preprocessing.size" in wanted:
        if about.preprocessing is None:
            raise UserError(f"preprocessing.size: {config.init_from} doesn't say it; set it")
        fields = about.preprocessing.to_dict()
        config.preprocessing.update({k: v for k, v in fields.items() if k in config.preprocessing})


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
    state: TrainState,
    tx: optax.GradientTransformation,
    weights: TrainedModel,
    frozen: Sequence[str] = (),
) -> tuple[TrainState, Taken]:
    """Returns the first state with all of `weights` that fits: equal names and shapes.

    Args:
      state: as initialised from the seed; what the weights lack keeps its values.
      frozen: patterns of what is not trained.
    Raises:
      UserError: most of the network is not in the weights, or a frozen part of it.
    """
    drawn = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    given = {
        path: leaf
        for path, leaf in flatten_dict(dict(weights.variables), sep="/").items()
        if path.split("/")[1] not in weights.initialised
    }
    loaded, new = [], []
    for path, leaf in drawn.items():
        found = given.get(path)
        if found is not None and np.shape(found) == leaf.shape:
            loaded.append(path)
            drawn[path] = jax.device_put(jnp.asarray(found, leaf.dtype), leaf.sharding)
        else:
            new.append(path)
    _check_fit(weights, loaded, new, list(given), frozen)
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


def _check_fit(
    weights: TrainedModel,
    loaded: Sequence[str],
    new: Sequence[str],
    given: Sequence[str],
    frozen: Sequence[str],
) -> None:
    """Refuses weights of another network, and a frozen part that would stay random."""
    if len(loaded) < len(new):
        raise UserError(
            f"init_from: {len(loaded)} of this network's {len(loaded) + len(new)} parameters and "
            f"statistics have their names and shapes in {weights.source}, a "
            f"{type(weights.model).__name__} (its first entries are {', '.join(given[:3])}); take "
            "weights of this network, or set model.name and model.options to theirs"
        )
    for path in new:
        pattern = next((p for p in frozen if matches(p, path.split("/")[1:])), None)
        if pattern is not None:
            raise UserError(
                f"freeze: {pattern!r} would keep {path.split('/', 1)[1]} as it is initialised, at "
                f"random: {weights.source} has none of its name and shape; train it, or take other "
                "weights"
            )


def tell(taken: Taken, config: ConfigDict, weights: TrainedModel) -> None:
    """Prints what was taken by name, and where the config feeds the network otherwise than it was
    trained.
    """
    log(f"init_from {config.init_from}:")
    for line in taken.lines():
        log(line)
    if weights.preprocessing is not None and "preprocessing" in config:
        theirs = weights.preprocessing.to_dict()
        ours = Preprocessing.from_dict(config.preprocessing.to_dict()).to_dict()
        fields = ("mean", "std", "channel_order")
        for field in (field for field in fields if theirs[field] != ours[field]):
            log(
                f"  preprocessing.{field}: they were trained with {theirs[field]}, here"
                f" {ours[field]}"
            )
