"""One training step, compiled for a mesh of devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from googlenet_jax.evaluation.metrics import batch_mean
from googlenet_jax.registry import given_step
from googlenet_jax.runtime.compiled import Shared
from googlenet_jax.runtime.sharding import data_sharding, replicated
from googlenet_jax.training.applied_rate import applied_rate
from googlenet_jax.training.patterns import Frozen
from googlenet_jax.training.state import TrainState
from googlenet_jax.training.task import Batch, Task

Metrics = dict[str, jax.Array]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule | None,
    mesh: Mesh,
    *,
    ema_decay: float = 0.0,
    ema_start: int = 0,
    frozen: Frozen | None = None,
    accumulate: int = 1,
    rematerialize: bool = False,
    skip_not_finite: bool = False,
    shardings: Any = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Returns the compiled step (state, batch, key) -> (state, metrics).

    The state given to it is used up (donated). batch is the task's, of the host: {name: [B, …]},
    split over the mesh. key is the run's; a step's own is drawn from it and the state's step, so
    the result depends on (state, batch, key) alone. `ema_start` is the step before which the
    average is a copy; `frozen` is what the step leaves as it is. metrics are scalars, of the batch
    as the step saw it: loss, the loss's parts, the means of the task's metrics, learning_rate,
    grad_norm (of all gradients together, before clipping and weight decay), and with
    `skip_not_finite` skipped.

    Args:
      schedule: the one that `tx` was made with; None where it does not follow one: the metrics
        hold no rate then.
      accumulate: parts of the batch that are computed one after the other; their gradients are
        averaged. Batch norm sees one part at a time, and dropout draws for each.
      rematerialize: whether the backward pass computes anew what lies between the ends of the
        Inception modules, instead of keeping it.
      skip_not_finite: whether a step whose loss or gradients are not finite leaves the state as it
        is, its number apart; `skipped` is 1 then.
      shardings: the state's, of `state.state_shardings`; None is whole on every device.
    """
    frozen = frozen or Frozen()
    apply = _make_apply(task, frozen, rematerialize)
    tx = optax.with_extra_args_support(tx)
    prepare, loss_of = given_step(task.prepare), given_step(task.loss)

    def gradients(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            output, updated = apply(params, batch_stats, task.inputs(batch), key)
            loss, parts = loss_of(output, batch, step=step)
            return loss, (parts, output, updated.get("batch_stats", {}))

        (loss, (parts, output, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        values = {name: metric(output, batch) for name, metric in task.metrics.items()}
        means = {
            name: batch_mean(value, batch) for name, value in values.items() if value is not None
        }
        return grads, updated, {"loss": loss, **parts, **means}

    if accumulate > 1:
        gradients = _accumulated(gradients, accumulate)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        dropout_key, augment_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = prepare(batch, augment_key, step=state.step)

        def at(params: Any) -> tuple[Any, Any, Metrics]:
            return gradients(params, state.batch_stats, batch, dropout_key, state.step)

        grads, batch_stats, metrics = at(state.params)
        updates, opt_state = tx.update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=lambda params, *_: at(params)[0],  # for those that ask elsewhere, as SAM
        )
        old = {"params": state.params, "batch_stats": state.batch_stats}
        new = {"params": optax.apply_updates(state.params, updates), "batch_stats": batch_stats}
        new = frozen.keep(old, new)
        ema = state.ema
        if ema is not None:
            average = optax.incremental_update(
                new, ema, 1.0 - average_decay(state.step, ema_decay, ema_start)
            )
            ema = frozen.keep(new, average)
        grad_norm = optax.tree.norm(grads)
        if schedule is not None:
            metrics["learning_rate"] = applied_rate(schedule, state.step, state.opt_state)
        metrics["grad_norm"] = grad_norm
        new_state = TrainState(state.step + 1, new["params"], new["batch_stats"], opt_state, ema)
        if skip_not_finite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
            kept = dataclasses.replace(state, step=state.step + 1)
            new_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new_state, kept)
            metrics["skipped"] = 1 - finite.astype(jnp.int32)
        return new_state, metrics

    whole = replicated(mesh)
    shardings = whole if shardings is None else shardings
    return Shared(
        jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(shardings, data_sharding(mesh), whole),
            out_shardings=(shardings, whole),
        )
    )


def average_decay(step: jax.Array, decay: float, start: int) -> jax.Array:
    """The share of the average that a step keeps: 0 before `start`, so that it is a copy.

    After n further steps it is min(decay, (1 + n) / (10 + n)), TensorFlow's rule
    (`ExponentialMovingAverage(num_updates=…)`): a run that is short beside 1 / (1 − decay) steps
    would otherwise average its random beginning.
    """
    n = jnp.maximum(step - start, 0).astype(jnp.float32)
    return jnp.where(step < start, 0.0, jnp.minimum(decay, (1 + n) / (10 + n)))


def _make_apply(task: Task, frozen: Frozen, rematerialize: bool) -> Callable[..., Any]:
    """Returns (params, batch_stats, inputs, key) -> (output, updated), in training."""

    def apply(params: Any, batch_stats: Any, inputs: Any, key: jax.Array) -> Any:
        with frozen.running_statistics():
            return task.model.apply(
                {"params": frozen.stop_gradient(params), "batch_stats": batch_stats},
                *inputs,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        """An Inception module ends with a concatenation: that alone is kept."""
        return primitive.name == "concatenate"

    return jax.checkpoint(apply, policy=keep) if rematerialize else apply


def _accumulated(gradients: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Returns `gradients` over a batch in so many parts, one after the other.

    The gradients, losses and metrics are the means over all examples; the running statistics of
    batch norm move once for each part.
    """

    def accumulated(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, Metrics]:
        # Part m has the rows m, m + parts, …: each device finds its own among those that it holds.
        split = {
            name: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)
            for name, array in batch.items()
        }

        def share(part: Batch) -> Any:
            """Of the whole batch's weight."""
            if "weight" not in batch:
                return 1 / parts
            return part["weight"].sum() / jnp.maximum(batch["weight"].sum(), 1)

        def one(carry: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            sums, statistics = carry
            part, number = numbered
            grads, statistics, metrics = gradients(
                params, statistics, part, jax.random.fold_in(key, number), step
            )
            added = jax.tree.map(lambda a, b: a + b * share(part), sums, (grads, metrics))
            return (added, statistics), None

        first = {name: array[0] for name, array in split.items()}
        shapes = jax.eval_shape(gradients, params, batch_stats, first, key, step)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)),
            (shapes[0], shapes[2]),
        )
        (sums, statistics), _ = jax.lax.scan(one, (zeros, batch_stats), (split, jnp.arange(parts)))
        return sums[0], statistics, sums[1]

    return accumulated
