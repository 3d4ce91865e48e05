"""Greedy suppression of overlapping detections, class by class, on the device."""

import functools

import jax
import jax.numpy as jnp

from googlenet_jax.detection.boxes import iou

SUPPRESSED = -jnp.inf


@functools.partial(jax.jit, static_argnames=("count", "threshold"))
def suppress(
    boxes: jax.Array, scores: jax.Array, *, count: int, threshold: float = 0.3
) -> tuple[jax.Array, jax.Array]:
    """Keeps each class's best boxes, and of boxes that overlap each other the best one alone.

    The best box of a class is kept, and those whose IoU with it is above `threshold` are dropped;
    then the best of the rest, and so on. Of equal scores the first stands before the others.

    Args:
      boxes: float [C, N, 4], one set a class, or [1, N, 4], one for all.
      scores: float [C, N]; -inf is no box (padding).
      count: K, the number of boxes kept for each class.
      threshold: R-CNN's 0.3 (arXiv 1311.2524).
    Returns:
      Which boxes are kept, int32 [C, K], the best first, and their scores [C, K]; -inf fills up
      where a class has fewer than K.
    """
    boxes = jnp.broadcast_to(boxes, (*scores.shape, 4))
    return jax.vmap(functools.partial(_suppress_class, count=count, threshold=threshold))(
        boxes, scores
    )


def _suppress_class(
    boxes: jax.Array, scores: jax.Array, count: int, threshold: float
) -> tuple[jax.Array, jax.Array]:
    def keep_one(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = left.argmax()
        overlap = iou(boxes[best][None], boxes)[0] > threshold
        # The box itself goes too: one without area has no overlap with itself.
        rest = jnp.where(overlap | (jnp.arange(len(left)) == best), SUPPRESSED, left)
        return rest, (best.astype(jnp.int32), left[best])

    _, kept = jax.lax.scan(keep_one, scores, length=count)
    return kept
