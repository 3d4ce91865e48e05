"""The training loss: cross entropy of the main head and, with their weight, of the auxiliary heads (1409.4842, section 5)."""

import jax
import jax.numpy as jnp
import optax

from googlenet_jax.models.network import Output


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns each example's cross entropy [N], in promote_types(logits.dtype, float32).

    logits [N, K], labels int [N]. Label smoothing is PyTorch's: (1 − ε) · (−log p of the label) + ε · mean over the classes of −log p.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def weighted_loss(output: Output, labels: jax.Array, aux_weight: float, label_smoothing: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the batch's mean loss, main + aux_weight · (aux1 + aux2 + …), and its unweighted parts.

    The parts are named "loss_main", "loss_aux1", …; all are scalars in promote_types(dtype, float32). labels are int [N].
    """
    parts = {"loss_main": cross_entropy(output.logits, labels, label_smoothing).mean()}
    total = parts["loss_main"]
    for name, logits in sorted(output.aux_logits.items()):
        parts[f"loss_{name}"] = cross_entropy(logits, labels, label_smoothing).mean()
        total += aux_weight * parts[f"loss_{name}"]
    return total, parts
