"""A run's folder, read for use: the model that it trained, with its weights."""

import dataclasses
from pathlib import Path
from typing import Any

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model
from googlenet_jax.weights.checkpoints import read_run


@dataclasses.dataclass(frozen=True)
class Run:
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


def load_run(workdir: str | Path, weights: str | None = None, step: int | None = None) -> Run:
    """Reads a checkpoint of the run in `workdir`, which may be a gs:// URL, and changes nothing
    there.

    `weights` is "raw" or "ema" (the average), None for "ema" where the run has it; `step` None is
    the newest whole checkpoint.

    Raises:
      UserError: there is no checkpoint, none of that step, none that is whole, or no average
        although "ema" was asked for, or the store can't be reached.
    """
    read = read_run(workdir, weights=weights, step=step)
    about = read.description
    try:
        model = create_model(about.model_name, **about.model_options)
    except UserError as error:
        raise UserError(
            f"{workdir}: {error}; a network of your own has to be registered first (--import MODULE)"
        ) from error
    return Run(
        model=model,
        variables=read.variables,
        preprocessing=Preprocessing.from_dict(about.preprocessing),
        class_names=about.class_names,
        config=about.config,
        step=read.step,
        weights=read.weights,
    )
