"""One training step and one evaluation step, compiled for a mesh of devices."""

import os
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing, flip, normalize
from googlenet_jax.models.network import Network, Output
from googlenet_jax.training.config import steps
from googlenet_jax.training.losses import cross_entropy, weighted_loss
from googlenet_jax.training.mesh import data_sharding, replicated
from googlenet_jax.training.state import TrainState, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def set_deterministic_flags() -> None:
    """Asks XLA for the same bits in every run on a GPU; a CPU's are always the same.

    Call it before anything runs on a device: XLA reads its flags once. On a GPU it rules out atomics and the choice of kernels by
    timing, at some cost in speed.
    """
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"


def label_ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes stand before the label's, int32 [N]: 0 is a top-1 hit, below 5 a top-5 hit.

    logits [N, K], labels int [N]. Equal logits stand in the order of the classes, so each example has one class a place, and a constant
    prediction is no hit for every label. A logit that is not a number stands before all others, and no label of its own is ever a hit.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])
    # "Not below" in place of "above": comparisons with NaN are false, and must count against the label.
    stands_before = ~(logits < own) & ~((logits == own) & (classes >= labels[:, None]))
    return stands_before.sum(axis=1, dtype=jnp.int32)


def _hits(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Returns which examples are hits: {"top1": bool [N], "top5": bool [N]}, top5 absent below five classes."""
    ranks = label_ranks(logits, labels)
    return {f"top{k}": ranks < k for k in (1, 5) if k == 1 or logits.shape[1] >= k}


def make_train_step(
    model: Network,
    config: ConfigDict,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    preprocessing: Preprocessing,
    mesh: Mesh,
    steps_per_epoch: float,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Returns the compiled step (state, batch, key) -> (state, metrics). The state given to it is used up (donated).

    batch: image uint8 [B, S, S, 3] and label int32 [B], split over the mesh. key is the run's; a step's own is drawn from it and the
    state's step, so the result depends on (state, batch, key) alone.
    metrics are scalars, of the batch as the step saw it: loss, loss_main, loss_aux1, …, top1 and top5 (fractions of 1; top5 absent
    below five classes), learning_rate, grad_norm (of all gradients together, before weight decay).
    """
    dtype = jnp.dtype(config.dtype)
    ema_start = steps(config.ema.start, steps_per_epoch)

    def loss_fn(params: Any, state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        applied = model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        output, updated = cast(tuple[Output, dict[str, Any]], applied)
        loss, parts = weighted_loss(output, labels, config.loss.aux_weight, config.loss.label_smoothing)
        return loss, (parts, output.logits, updated.get("batch_stats", {}))

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        dropout_key, flip_key = jax.random.split(jax.random.fold_in(key, state.step))
        images, labels = batch["image"], batch["label"]
        if config.augment.flip:
            images = flip(images, flip_key)
        images = normalize(images, preprocessing, dtype)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (parts, logits, batch_stats)), grads = gradient(state.params, state, images, labels, dropout_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = update_ema(ema, {"params": params, "batch_stats": batch_stats}, state.step, config.ema.decay, ema_start)

        hits = {name: hit.mean() for name, hit in _hits(logits, labels).items()}
        metrics = {"loss": loss, **parts, **hits, "learning_rate": schedule(state.step), "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    whole = replicated(mesh)
    return jax.jit(train_step, donate_argnums=0, in_shardings=(whole, data_sharding(mesh), whole), out_shardings=whole)


def make_eval_step(model: Network, preprocessing: Preprocessing, mesh: Mesh) -> Callable[[dict[str, Any], Batch], Metrics]:
    """Returns the compiled step (variables, batch) -> sums over the batch's examples.

    batch: image uint8 [B, S, S, 3], label int32 [B] and weight float32 [B] (1 an example, 0 padding), split over the mesh. The sums are
    scalars: loss (the main head's plain cross entropy), top1, top5 (hits; top5 absent below five classes) and examples, the counts
    int32. Add up batches in Python's numbers: float32 loses counts above 2^24.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> Metrics:
        images, labels, weights = batch["image"], batch["label"], batch["weight"]
        output = cast(Output, model.apply(variables, normalize(images, preprocessing, model.dtype), train=False))
        is_example = weights > 0
        hits = {name: (hit & is_example).sum(dtype=jnp.int32) for name, hit in _hits(output.logits, labels).items()}
        loss = jnp.where(is_example, cross_entropy(output.logits, labels), 0).sum()
        return {"loss": loss, **hits, "examples": is_example.sum(dtype=jnp.int32)}

    return jax.jit(eval_step, in_shardings=(replicated(mesh), data_sharding(mesh)), out_shardings=replicated(mesh))
