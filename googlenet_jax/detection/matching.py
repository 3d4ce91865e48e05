"""MultiBox's priors and its loss (Erhan et al., arXiv 1312.2249).

Boxes here are (top, left, bottom, right) as shares of the image, 0 to 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.cluster import KMeans

from googlenet_jax.errors import UserError

ALPHA = 0.3  # the weight of the locations beside the confidences


def kmeans_priors(boxes: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Returns the k-means centres of the training boxes, [count, 4] float32, in ascending order.

    Args:
      boxes: [N, 4], shares of the image.
      count: K, how many boxes the network predicts.
      seed: of the first centres.
    Raises:
      UserError: there are fewer different boxes than centres.
    """
    different = len(np.unique(boxes, axis=0))
    if different < count:
        raise UserError(
            f"multibox.boxes: {count} priors need as many different boxes to train on, "
            f"found {different}; lower multibox.boxes"
        )
    means = KMeans(count, n_init=1, random_state=seed).fit(boxes.astype(np.float64))
    centres = means.cluster_centers_
    return centres[np.lexsort(centres.T[::-1])].astype(np.float32)


def match(
    locations: jax.Array, logits: jax.Array, objects: jax.Array, valid: jax.Array, alpha: float
) -> jax.Array:
    """Gives each object the prediction for which the loss over all of them is smallest.

    Args:
      locations: [K, 4], predicted boxes.
      logits: [K], of the confidences.
      objects: [G, 4], with G at most K; valid: bool [G], False for padding.
      alpha: the weight of the locations.
    Returns:
      int32 [G], for each object its prediction; what padding has is of no meaning, but no object's.
    """
    distances = ((objects[:, None] - locations[None]) ** 2).sum(axis=-1)
    # What it costs that prediction i is object j's, over what it costs that it is none's.
    costs = alpha / 2 * distances - logits[None]
    rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid[:, None], costs, 0.0))
    return jnp.zeros(len(objects), jnp.int32).at[rows].set(columns.astype(jnp.int32))


def matching_loss(
    locations: jax.Array,
    logits: jax.Array,
    objects: jax.Array,
    valid: jax.Array,
    alpha: float = ALPHA,
) -> tuple[jax.Array, jax.Array]:
    """Returns one image's loss in two parts, of the locations and the confidences; scalars.

    α/2 Σ x_ij ‖l_i − g_j‖² and −Σ x_ij log c_i − Σ_i (1 − Σ_j x_ij) log(1 − c_i), where x gives
    each object one prediction and makes the sum of the two smallest. The gradient passes through
    the predictions, not through x. Arguments as of `match`.
    """
    matched = match(*jax.lax.stop_gradient((locations, logits)), objects, valid, alpha)
    squares = ((locations[matched] - objects) ** 2).sum(axis=-1)
    location_loss = alpha / 2 * jnp.where(valid, squares, 0).sum()
    taken = jnp.zeros(len(logits), bool).at[matched].max(valid)
    confidence_loss = optax.sigmoid_binary_cross_entropy(logits, taken.astype(logits.dtype)).sum()
    return location_loss, confidence_loss
