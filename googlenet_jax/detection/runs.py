"""Trained region classifiers, one or several, read for use."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from googlenet_jax.detection.classifier import Classifier
from googlenet_jax.detection.rcnn import NAME, default_rcnn_config
from googlenet_jax.detection.windows import BACKGROUND_NAME
from googlenet_jax.errors import UserError
from googlenet_jax.weights.load import load
from googlenet_jax.weights.trained_model import TrainedModel


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Region classifiers of the same classes.

    Attributes:
      names: the runs' folders.
      classifiers, variables: a network each.
      class_names: without the background.
      config: the first run's config.
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


def load_ensemble(names: Sequence[str], weights: str | None = None) -> Ensemble:
    """Loads region classifiers: runs, or weight files written from them.

    A file holds no config: its proposals are those of the task's defaults.

    Raises:
      UserError: one is no region classifier, or the classes differ.
    """
    loaded = [load(f"{name}@{weights}" if weights else name) for name in names]
    first = loaded[0].class_names
    for name, each in zip(names, loaded, strict=True):
        _check(name, each)
        if each.class_names != first:
            raise UserError(f"{name}: its classes are not those of {names[0]}")
    assert first is not None  # checked
    config = dict(loaded[0].config) or default_rcnn_config().to_dict()
    return Ensemble(
        names=tuple(names),
        classifiers=tuple(
            Classifier(each.model, each.preprocessing)
            for each in loaded
            if each.preprocessing is not None
        ),
        variables=tuple(each.variables for each in loaded),
        class_names=first[:-1],
        config=config,
    )


def _check(name: str, loaded: TrainedModel) -> None:
    """Raises UserError for what is no region classifier: its last class is the background."""
    loaded.check_complete()
    task = loaded.config.get("task", NAME)
    if task != NAME or (loaded.class_names or ("",))[-1] != BACKGROUND_NAME:
        found = f"a run with task {task!r}" if task != NAME else "a network of whole images"
        raise UserError(
            f"{name}: expected a region classifier, whose last class is {BACKGROUND_NAME!r}, found "
            f"{found}; train one with configs/detection_digits.py or configs/detection_voc.py"
        )
