"""Classifiers that a foreign file has under other names, in another form, or not at all."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

# What stands before a classifier's names: torchvision's, and those of ports and transfer learning.
_ROOTS = ("fc.", "last_linear.", "classifier.", "head.", "logits.")


class Classifier(NamedTuple):
    """A file's entries with the classifier under its own names.

    Attributes:
      num_classes: None where there is no classifier that fits.
      notes: what a person should know.
    """

    tensors: dict[str, np.ndarray]
    num_classes: int | None
    notes: tuple[str, ...]


def settled_classifier(
    weight: str, bias: str, features: int, tensors: Mapping[str, np.ndarray]
) -> Classifier:
    """Finds a state dict's classifier, one linear layer that reads `features` numbers.

    Args:
      weight, bias: the names that it should have, such as "fc.weight" and "fc.bias".
    """
    given = dict(tensors)
    if weight in given and bias in given:
        array = given[bias]
        # What is misshapen is refused by name where the weights are read.
        return Classifier(given, int(array.size) if array.ndim == 1 else None, ())
    ours = weight.split(".")[0] + "."
    others = [name for name in given if name.startswith((ours, *_ROOTS))]
    linear = [name for name in others if name.endswith("weight") and given[name].ndim == 2]
    if len(linear) == 1 and given[linear[0]].shape[1] == features:
        theirs = linear[0].removesuffix("weight")
        matrix = given.pop(linear[0])
        given[weight] = matrix
        given[bias] = given.pop(theirs + "bias", np.zeros(len(matrix), matrix.dtype))
        rest = [name for name in others if name in given and name not in (weight, bias)]
        if not rest:
            return Classifier(given, len(matrix), (f"the classifier is the file's {theirs}*",))
    kept = {name: array for name, array in tensors.items() if name not in others}
    return Classifier(
        kept,
        None,
        (f"left out: {', '.join(others[:4])}, a classifier of another form",) * bool(others),
    )


def new_head(weight: str, features: int, num_classes: int) -> dict[str, np.ndarray]:
    """A state dict's entries of a classifier initialised anew."""
    kernel, bias = initialised(features, num_classes)
    return {weight: kernel.T.copy(), weight.removesuffix("weight") + "bias": bias}


def initialised(features: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A new classifier's kernel [in, out], Glorot uniform, and bias, zeros."""
    kernel = jax.nn.initializers.glorot_uniform()(jax.random.key(0), (features, num_classes))
    return np.asarray(kernel), np.zeros(num_classes, np.float32)


def new_head_note(num_classes: int) -> str:
    """What a person should know of it."""
    return (
        f"the file has no classifier that fits: one of {num_classes:,} classes was initialised "
        "anew, which knows nothing before it is trained"
    )
