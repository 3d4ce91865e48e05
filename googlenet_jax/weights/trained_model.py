"""What a weight file gives once it is read."""

import dataclasses
from typing import Any

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.models.network import Network


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model with its weights and what it takes to use them.

    Attributes:
      variables: `params` and, with batch norm, `batch_stats`, numpy arrays with the file's dtypes.
      preprocessing: what the network wants of an image; None where the file does not say.
      class_names: in the order of the logits; None where they are not known.
      notes: what a person should know: what was left out, made anew or supposed.
    """

    model: Network
    variables: dict[str, Any]
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
