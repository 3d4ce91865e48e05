"""Training losses: functions of (output, batch) that give a batch's loss and its parts.

A loss returns `(total, parts)`, scalars; `parts` is a dictionary of what else should stand in the
training lines. Its further arguments are options of the config: `loss.aux_weight` and
`loss.label_smoothing` where it takes them, and those in `loss.options`. One that takes `step` gets
the number of the step, from 0, in training; in evaluation its default holds.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_jax.errors import UserError, naming
from googlenet_jax.evaluation.metrics import Batch, batch_mean, cross_entropy
from googlenet_jax.models.network import Output
from googlenet_jax.registry import Registry, arguments

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def weighted_cross_entropy(
    output: Output,
    batch: Batch,
    aux_weight: float = 0.3,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | str = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the main head and, with their weight, of the auxiliary heads (arXiv
    1409.4842, section 5).

    Returns the batch's mean loss, main + aux_weight · (aux1 + aux2 + …), and its unweighted parts,
    "loss_main", "loss_aux1", …; all are scalars in promote_types(dtype, float32). batch["label"] is
    int [N], or targets [N, K]. `class_weights`, a number for each class or in a config "balanced",
    make the mean a weighted one, as PyTorch's `weight` does.
    """
    labels = batch["label"]
    batch = _weighted_by_class(batch, output.logits.shape[-1], class_weights)
    return with_aux_heads(
        lambda logits: cross_entropy(logits, labels, label_smoothing), output, batch, aux_weight
    )


def binary_cross_entropy(
    output: Output,
    batch: Batch,
    aux_weight: float = 0.3,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Binary cross entropy of every class by itself, their mean over the classes: for images with
    several labels, or none (PyTorch's BCEWithLogitsLoss).

    As `weighted_cross_entropy`; batch["label"] is float [N, K], or int [N]. Label smoothing moves
    targets to (1 − ε) · target + ε / 2. `class_weights` weigh the classes' terms.
    """
    targets = batch["label"]
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, output.logits.shape[-1])
    targets = (1 - label_smoothing) * targets + label_smoothing / 2
    weights = jnp.asarray(class_weights or 1.0)

    def each(logits: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return (weights * optax.sigmoid_binary_cross_entropy(logits, targets)).mean(-1)

    return with_aux_heads(each, output, batch, aux_weight)


def with_aux_heads(
    each: Callable[[jax.Array], jax.Array], output: Output, batch: Batch, aux_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `each` head's logits [N, K] -> [N], the auxiliary ones' with their weight."""
    parts = {"loss_main": batch_mean(each(output.logits), batch)}
    total = parts["loss_main"]
    for name, logits in sorted(output.aux_logits.items()):
        parts[f"loss_{name}"] = batch_mean(each(logits), batch)
        total += aux_weight * parts[f"loss_{name}"]
    return total, parts


def _weighted_by_class(batch: Batch, classes: int, weights: Sequence[float] | str) -> Batch:
    """The batch with its examples' weights multiplied by those of their classes."""
    if not weights or isinstance(weights, str):
        return batch
    labels, values = batch["label"], jnp.asarray(weights)
    targets = jax.nn.one_hot(labels, classes) if labels.ndim == 1 else labels
    own = (targets * values).sum(-1)
    mean_one = own / jnp.maximum(own.mean(), jnp.finfo(own.dtype).tiny)
    return batch | {"weight": batch.get("weight", 1.0) * mean_one}


LOSSES: Registry[Loss] = Registry(
    "loss",
    {"cross_entropy": weighted_cross_entropy, "binary_cross_entropy": binary_cross_entropy},
)
register_loss = LOSSES.register


def create_loss(
    name: str = "cross_entropy",
    *,
    aux_weight: float = 0.3,
    label_smoothing: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Loss:
    """Returns a registered loss with its options set: a function of (output, batch).

    `aux_weight` and `label_smoothing` go to the losses that take them; `options` go over whole.
    Raises UserError naming the field for an unknown name, an option that the loss does not take,
    and a field changed from its default that it has no use for.
    """
    with naming("loss.name"):
        loss = LOSSES[name]
    fields = {"aux_weight": (aux_weight, 0.3), "label_smoothing": (label_smoothing, 0.0)}
    taken = arguments(
        loss, f"loss {name!r}", "loss", fields, options or {}, own=("output", "batch", "step")
    )
    step = inspect.signature(loss).parameters.get("step")
    if step is not None and step.default is step.empty:
        raise UserError(f"loss {name!r}: give its `step` a default, which evaluation takes")
    return functools.partial(loss, **taken)
