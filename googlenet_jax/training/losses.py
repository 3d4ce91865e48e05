"""Training losses: functions of (output, batch) that give a batch's loss and its parts.

A loss returns `(total, parts)`, scalars; `parts` is a dictionary of what else should stand in the
training lines. Its further arguments are options of the config: `loss.aux_weight` and
`loss.label_smoothing` where it takes them, and those in `loss.options`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.metrics import Batch, batch_mean, cross_entropy
from googlenet_jax.models.network import Output
from googlenet_jax.registry import Registry, arguments

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def weighted_cross_entropy(
    output: Output, batch: Batch, aux_weight: float = 0.3, label_smoothing: float = 0.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the main head and, with their weight, of the auxiliary heads (arXiv
    1409.4842, section 5).

    Returns the batch's mean loss, main + aux_weight · (aux1 + aux2 + …), and its unweighted parts,
    "loss_main", "loss_aux1", …; all are scalars in promote_types(dtype, float32). batch["label"] is
    int [N], or targets [N, K].
    """
    labels = batch["label"]
    parts = {"loss_main": batch_mean(cross_entropy(output.logits, labels, label_smoothing), batch)}
    total = parts["loss_main"]
    for name, logits in sorted(output.aux_logits.items()):
        losses = cross_entropy(logits, labels, label_smoothing)
        parts[f"loss_{name}"] = batch_mean(losses, batch)
        total += aux_weight * parts[f"loss_{name}"]
    return total, parts


LOSSES: Registry[Loss] = Registry("loss", {"cross_entropy": weighted_cross_entropy})
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
    try:
        loss = LOSSES[name]
    except UserError as error:
        raise UserError(f"loss.name: {error}") from error
    fields = {"aux_weight": (aux_weight, 0.3), "label_smoothing": (label_smoothing, 0.0)}
    taken = arguments(
        loss, f"loss {name!r}", "loss", fields, options or {}, own=("output", "batch")
    )
    return functools.partial(loss, **taken)
