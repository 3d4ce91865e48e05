"""The likeliest classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """A class and its probability, from 0 to 1."""

    class_name: str
    probability: float


def top_predictions(
    probabilities: np.ndarray, class_names: Sequence[str], count: int
) -> list[Prediction]:
    """Returns the `count` most probable classes (all where there are fewer), the likeliest first.

    Equals stay in class order. `probabilities` is `[num_classes]`.
    """
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [Prediction(class_names[index], float(probabilities[index])) for index in order]
