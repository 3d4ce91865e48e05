"""Trained region classifiers, one or several, read for use."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from googlenet_jax.detection.classifier import Classifier
from googlenet_jax.detection.rcnn import NAME
from googlenet_jax.errors import UserError
from googlenet_jax.weights.load import load_run


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Region classifiers of the same classes.

    Attributes:
      names: the runs' folders.
      classifiers, variables: a network each.
      class_names: without the background.
      config: the first run's recipe.
    """

    names: tuple[str, ...]
    classifiers: tuple[Classifier, ...]
    variables: tuple[Any, ...]
    class_names: tuple[str, ...]
    config: dict[str, Any]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        """The first network, the first two, … all of them."""
        return [tuple(range(count)) for count in range(1, len(self.names) + 1)]


def load_ensemble(folders: Sequence[str], weights: str | None = None) -> Ensemble:
    """Reads the newest checkpoint of each run.

    Raises:
      UserError: a folder holds no run of a region classifier, or the classes differ.
    """
    runs = [load_run(folder, weights) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run.config.get("task") != NAME:
            raise UserError(
                f"{folder}: expected a run with task {NAME!r}, found {run.config.get('task')!r}; "
                "train one with configs/detection_digits.py or configs/detection_voc.py"
            )
        if run.class_names != runs[0].class_names:
            raise UserError(f"{folder}: its classes are not those of {folders[0]}")
    return Ensemble(
        names=tuple(folders),
        classifiers=tuple(Classifier(run.model, run.preprocessing) for run in runs),
        variables=tuple(run.variables for run in runs),
        class_names=runs[0].class_names[:-1],
        config=runs[0].config,
    )
