"""Class probabilities for pictures."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.models.network import Network


class Prediction(NamedTuple):
    """A class and its probability, from 0 to 1."""

    class_name: str
    probability: float


def predict(
    model: Network, variables: dict[str, Any], images: np.ndarray, preprocessing: Preprocessing, batch_size: int = 32
) -> np.ndarray:
    """Returns the softmax of the main head's logits.

    Args:
      images: uint8 `[N, S, S, 3]`, RGB, resized and cropped as for evaluation; N at least 1.
      batch_size: images at a time, which bounds the memory.
    Returns:
      Probabilities `[N, num_classes]`, float32 or wider.
    """
    batch_size = min(batch_size, len(images))
    apply = jax.jit(functools.partial(_probabilities, model, preprocessing))
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)  # the last batch is padded, or it would be compiled for its own size
        parts.append(np.asarray(apply(variables, np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))))[: len(batch)])
    return np.concatenate(parts)


def _probabilities(model: Network, preprocessing: Preprocessing, variables: dict[str, Any], images: jax.Array) -> jax.Array:
    output: Any = model.apply(variables, normalize(images, preprocessing, model.dtype), train=False)
    return jax.nn.softmax(output.logits)


def top_predictions(probabilities: np.ndarray, class_names: Sequence[str], count: int) -> list[Prediction]:
    """Returns the `count` most probable classes (all of them where there are fewer), the most probable first; equals stay in class order.

    `probabilities` is `[num_classes]`.
    """
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [Prediction(class_names[index], float(probabilities[index])) for index in order]
