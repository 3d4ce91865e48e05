"""Metrics of classification: functions of (output, batch) that give each example's value.

`output` is the network's, `batch` a dictionary of arrays; its "label" is int [N], or float [N, K]
where augmentation has made soft targets of them. Means are taken where a metric is used: over a
training batch, or over the examples of a whole split.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_jax.models.network import Output
from googlenet_jax.registry import Registry

Batch = dict[str, jax.Array]
Metric = Callable[
    [Any, Batch], jax.Array | None
]  # [N], bool or float; None where it does not apply


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns each example's cross entropy [N], in promote_types(logits.dtype, float32).

    logits [N, K]; labels int [N], or target distributions [N, K]. Label smoothing is PyTorch's: (1
    − ε) · (−log p of the label) + ε · mean over the classes of −log p.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = optax.smooth_labels(labels.astype(logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def batch_mean(values: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean of the examples' values [N], a scalar; weighted where the batch has a
    "weight", float [N], which is 0 for an image that couldn't be read.
    """
    if "weight" not in batch:
        return values.mean()
    weight = batch["weight"].astype(jnp.promote_types(values.dtype, jnp.float32))
    return (values * weight).sum() / jnp.maximum(weight.sum(), 1)


def label_ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many classes stand before the label's, int32 [N]: 0 is a top-1 hit, below 5 a
    top-5 hit.

    logits [N, K]; labels int [N], or targets [N, K], of which the heaviest counts. Equal logits
    stand in the order of the classes, so each example has one class a place, and a constant
    prediction is no hit for every label. A logit that is not a number stands before all others, and
    no label of its own is ever a hit.
    """
    if labels.ndim == 2:
        labels = labels.argmax(axis=1)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[1])
    # "Not below" in place of "above": comparisons with NaN are false, and must count against the
    # label.
    stands_before = ~(logits < own) & ~((logits == own) & (classes >= labels[:, None]))
    return stands_before.sum(axis=1, dtype=jnp.int32)


def top1(output: Output, batch: Batch) -> jax.Array:
    """Returns whether the label's class is the most probable, bool [N]."""
    return label_ranks(output.logits, batch["label"]) < 1


def top5(output: Output, batch: Batch) -> jax.Array | None:
    """Returns whether the label's class is among the five most probable, bool [N]; None below five
    classes.
    """
    return label_ranks(output.logits, batch["label"]) < 5 if output.logits.shape[1] >= 5 else None


METRICS: Registry[Metric] = Registry("metric", {"top1": top1, "top5": top5})
register_metric = METRICS.register
