"""A run's folder, read for use: the model that it trained, with its weights."""

import dataclasses
from pathlib import Path
from typing import Any

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model
from googlenet_jax.training.checkpoint import load_run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model and what it takes to use it.

    Attributes:
      variables: `params` and, with batch norm, `batch_stats`, on the default device.
      config: the run's recipe, as nested dictionaries.
      step: steps taken; weights: "raw" or "ema".
    """

    model: Network
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    config: dict[str, Any]
    step: int
    weights: str


def load_trained(folder: str | Path, weights: str | None = None, step: int | None = None) -> Trained:
    """Reads a checkpoint of the run in `folder`, and changes nothing there.

    `weights` is "raw" or "ema" (the average), None for "ema" where the run has it; `step` None is the newest whole checkpoint.

    Raises:
      UserError: there is no checkpoint, none of that step, none that is whole, or no average although "ema" was asked for.
    """
    run = load_run(folder, weights=weights, step=step)
    about = run.description
    return Trained(
        model=create_model(about.model_name, **about.model_options),
        variables=run.variables,
        preprocessing=Preprocessing.from_dict(about.preprocessing),
        class_names=about.class_names,
        config=about.config,
        step=run.step,
        weights=run.weights,
    )
