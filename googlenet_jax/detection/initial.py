"""Initial variables from other weights: fine-tuning begins here."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from googlenet_jax.errors import UserError
from googlenet_jax.training.run import load_run
from googlenet_jax.weights.safetensors import load_weights


@dataclasses.dataclass(frozen=True)
class StartingFrom:
    """A model whose initial variables are given where name and shape fit, and its own elsewhere."""

    model: Any
    given: dict[tuple[str, ...], np.ndarray]

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own `init`."""
        own = flatten_dict(self.model.init(*args, **kwargs))
        fits = {
            path: jnp.asarray(self.given[path], leaf.dtype)
            for path, leaf in own.items()
            if path in self.given and self.given[path].shape == leaf.shape
        }
        return unflatten_dict(own | fits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def starting_from(model: Any, place: str, inputs: tuple[jax.Array, ...]) -> Any:
    """Gives a model the variables of a run's folder or a weight file to start from.

    What does not fit, such as the classifier of other classes, keeps its own first values; how many
    were taken and which are new is said on standard error.

    Raises:
      UserError: there are no weights, or none that fit.
    """
    given = {path: np.asarray(leaf) for path, leaf in flatten_dict(_read(place)).items()}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    own = flatten_dict(jax.eval_shape(lambda: model.init(keys, *inputs, train=False)))
    fits = {p for p, leaf in own.items() if p in given and given[p].shape == leaf.shape}
    new = sorted({"/".join(path[:-1]) for path in own.keys() - fits})
    if not fits:
        raise UserError(f"init_from: nothing in {place} fits this model; take weights of its kind")
    if jax.process_index() == 0:
        print(
            f"{len(fits)} of {len(own)} arrays from {place}; new are {', '.join(new) or 'none'}",
            file=sys.stderr,
        )
    return StartingFrom(model, given)


def _read(place: str) -> dict[str, Any]:
    if Path(place).is_dir():
        return load_run(place).variables
    return load_weights(place)[1]
