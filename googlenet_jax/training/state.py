"""What a training run carries from step to step, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.sharding import replicated


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
    return jax.jit(create, compiler_options=options)


def state_shardings(shapes: TrainState, mesh: Mesh, *, shard_optimizer: bool) -> TrainState:
    """Returns each array's place on the mesh: whole on every device or, with `shard_optimizer`, the
    optimizer's arrays split over them.

    Of these, the longest axis that divides by the devices is split; one without such an axis stays
    whole. `shapes` is a state of arrays or ShapeDtypeStructs.
    """
    whole = replicated(mesh)

    def place(leaf: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % mesh.size == 0]
        if not axes:
            return whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    shardings = jax.tree.map(lambda _: whole, shapes)
    if not shard_optimizer:
        return shardings
    return shardings.replace(opt_state=jax.tree.map(place, shapes.opt_state))


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
