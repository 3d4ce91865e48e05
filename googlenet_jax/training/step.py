"""One training step, compiled for a mesh of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from googlenet_jax.data.mesh import data_sharding, replicated
from googlenet_jax.evaluation.metrics import batch_mean
from googlenet_jax.training.patterns import Frozen
from googlenet_jax.training.state import TrainState
from googlenet_jax.training.task import Batch, Task

Metrics = dict[str, jax.Array]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    *,
    ema_decay: float = 0.0,
    ema_start: int = 0,
    frozen: Frozen | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Returns the compiled step (state, batch, key) -> (state, metrics).

    The state given to it is used up (donated). batch is the task's, of the host: {name: [B, …]},
    split over the mesh. key is the run's; a step's own is drawn from it and the state's step, so
    the result depends on (state, batch, key) alone. `ema_start` is the step before which the
    average is a copy; `frozen` is what the step leaves as it is. metrics are scalars, of the batch
    as the step saw it: loss, the loss's parts, the means of the task's metrics, learning_rate,
    grad_norm (of all gradients together, before clipping and weight decay).
    """

    frozen = frozen or Frozen()

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        dropout_key, augment_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = task.prepare(batch, augment_key)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            with frozen.running_statistics():
                output, updated = task.model.apply(
                    {"params": frozen.stop_gradient(params), "batch_stats": state.batch_stats},
                    *task.inputs(batch),
                    train=True,
                    rngs={"dropout": dropout_key},
                    mutable=["batch_stats"],
                )
            loss, parts = task.loss(output, batch)
            return loss, (parts, output, updated.get("batch_stats", {}))

        (loss, (parts, output, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        old = {"params": state.params, "batch_stats": state.batch_stats}
        new = {"params": optax.apply_updates(state.params, updates), "batch_stats": batch_stats}
        new = frozen.keep(old, new)
        ema = state.ema
        if ema is not None:
            # decay · ema + (1 − decay) · new; before `ema_start` a copy of the new.
            average = optax.incremental_update(
                new, ema, jnp.where(state.step < ema_start, 1.0, 1.0 - ema_decay)
            )
            ema = frozen.keep(new, average)

        values = {name: metric(output, batch) for name, metric in task.metrics.items()}
        means = {
            name: batch_mean(value, batch) for name, value in values.items() if value is not None
        }
        rates = {"learning_rate": schedule(state.step), "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, new["params"], new["batch_stats"], opt_state, ema), {
            "loss": loss,
            **parts,
            **means,
            **rates,
        }

    whole = replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(whole, data_sharding(mesh), whole),
        out_shardings=whole,
    )
