"""What a training run carries from step to step, as one tree."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.compiled import Shared
from googlenet_jax.runtime.sharding import replicated, split_longest
from googlenet_jax.training.patterns import matches


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, the number of steps taken; params and batch_stats: the model's ({}
    without batch norm); opt_state: Optax's;
    ema: {"params": …, "batch_stats": …}, their averages, or None under ema.decay = 0."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] | None


def make_create_state(
    model: Any, tx: optax.GradientTransformation, inputs: tuple[jax.Array, ...], *, average: bool
) -> Any:
    """Returns the compiled function key -> TrainState: the state before the first step.

    `inputs` are the model's, such as images [1, S, S, 3]; `average` says whether the state keeps
    averages. The same key gives the same bits. Its `eval_shape(key)` gives shapes and dtypes
    without compiling.
    """

    def create(key: jax.Array) -> TrainState:
        params_key, dropout_key = jax.random.split(key)
        variables = model.init({"params": params_key, "dropout": dropout_key}, *inputs, train=False)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        ema = {"params": params, "batch_stats": batch_stats} if average else None
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), ema)

    # It runs once: on a CPU, optimizing the code of some fifty random tensors takes four times as
    # long as not.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return Shared(jax.jit(create, compiler_options=options))


def state_shardings(
    shapes: TrainState,
    mesh: Mesh,
    *,
    shard_optimizer: bool,
    rules: Sequence[tuple[str, str]] = (),
) -> TrainState:
    """Returns each array's place on the mesh: whole on every device, unless it is split.

    `shapes` is a state of arrays or ShapeDtypeStructs. Of the rules (pattern, axis of the mesh) the
    first whose pattern names a parameter splits it, its average and what the optimizer keeps of
    its shape, on the longest axis that divides evenly. With `shard_optimizer` the rest of the
    optimizer's arrays is split over all devices likewise.
    """
    paths = {path: leaf.shape for path, leaf in flatten_dict(shapes.params).items()}

    def place(path: Any, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        # The parameter that it is of: the longest end of its path that names one.
        ends = (names[first:] for first in range(len(names)))
        own = next((end for end in ends if paths.get(end) == leaf.shape), None)
        if own is not None:
            for pattern, axis in rules:
                if matches(pattern, own):
                    return split_longest(leaf.shape, mesh, axis)
        if shard_optimizer and names[:1] == ("opt_state",):
            return split_longest(leaf.shape, mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, shapes)


@jax.jit
def is_finite(tree: Any) -> jax.Array:
    """Whether every float of a tree of arrays is finite; a bool scalar."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # As one array: a reduction for each of hundreds takes four times as long to compile.
    return jnp.isfinite(jnp.concatenate([leaf.ravel() for leaf in floats])).all()


def eval_variables(state: TrainState, weights: str) -> dict[str, Any]:
    """Returns the variables for `model.apply`: weights "raw" are the parameters themselves, "ema"
    their averages.

    Raises UserError for other weights, and for "ema" where the run keeps no average.
    """
    if weights == "raw":
        params, batch_stats = state.params, state.batch_stats
    elif weights != "ema":
        raise UserError(f"weights: expected 'raw' or 'ema', found {weights!r}")
    elif state.ema is None:
        raise UserError("weights: this run keeps no average, 'ema' (its ema.decay is 0); use 'raw'")
    else:
        params, batch_stats = state.ema["params"], state.ema["batch_stats"]
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
