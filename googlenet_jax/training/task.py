"""What the loop has to know of what it trains: a task, handed in. The loop knows of no images,
labels or heads.

A kind of task is registered under the name that configs give in `task`. Opened with a config it is
a `Task`: a model, its data and what is made of both.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from googlenet_jax.data.sources import GIVEN
from googlenet_jax.errors import UserError
from googlenet_jax.registry import Registry
from googlenet_jax.weights.trained_model import TrainedModel

# The training examples, and the evaluations' by split.
Given = tuple[Any, Mapping[str, Any] | None]
Array = jax.Array
Batch = dict[str, Array]
# (variables, should_stop) -> a line's "loss", "examples" and metrics. Before each batch it asks
# `should_stop()`, and raises `evaluation.evaluate.CutShort` where that says so.
Evaluate = Callable[[Any, Callable[[], bool]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One task, opened.

    Attributes:
      model: a linen module, called as model.apply(variables, *inputs(batch), train=…).
      inputs: the positional arguments of the model's call from a prepared batch, such as
        (batch["image"],).
      example: a prepared batch of zeros, as small as the model takes, from which the variables are
        initialized.
      examples: how many there are to train on; an epoch is so many.
      batches: from the number of the first step to a generator of the host's batches, this
        process's share of each: {name: [B, …]}. Which examples make up batch k, and how the host
        changes them, depends on the config and k alone.
      prepare: (batch, key) -> batch, on the device inside jit: augmentation and normalization.
      loss: (output, batch) -> (loss, parts); what training lines hold besides the loss. Scalars.
      metrics: name -> (output, batch) -> [N], of which training lines hold the means; None where
        one does not apply.
      evaluations: split -> the evaluation of that whole split. The first split decides which
        checkpoint is the best.
      description: what a checkpoint tells about the model: see `checkpoint.RunDescription`.
    """

    model: Any
    inputs: Callable[[Batch], tuple[Array, ...]]
    example: Batch
    examples: int
    batches: Callable[[int], Generator[Mapping[str, np.ndarray], None, None]]
    prepare: Callable[[Batch, Array], Batch]
    loss: Callable[[Any, Batch], tuple[Array, dict[str, Array]]]
    metrics: Mapping[str, Callable[[Any, Batch], Array | None]]
    evaluations: Mapping[str, Evaluate]
    description: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskKind:
    """A kind of task, as configs name it.

    Attributes:
      defaults: returns a config of this kind with every field there is.
      build: builds what the config describes, its model, loss and the like: the parts of a
        `Resolved`. Raises UserError for what no single field's type and range says; reads and
        compiles nothing.
      open: opens the data, and makes a task of them and of the parts.
      make: makes a task of data that are handed over: (resolved, mesh, training examples, the
        evaluations' by split); None where that kind can't.
    """

    defaults: Callable[[], ConfigDict]
    build: Callable[[ConfigDict], Any]
    open: Callable[["Resolved", Mesh], Task]
    make: Callable[["Resolved", Mesh, Any, Mapping[str, Any] | None], Task] | None = None


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config, checked and whole, and what it describes, built once.

    Attributes:
      parts: what the kind's `build` has returned.
      optimizer: from a learning rate's schedule, which needs the run's length, to the optimizer;
        `create_optimizer` with the config's fields.
      schedule: from the run's `config.Durations` to the schedule.
      initial: loads what `init_from` names, once.
    """

    config: ConfigDict
    kind: TaskKind
    parts: Any
    optimizer: Callable[..., optax.GradientTransformation]
    schedule: Callable[[Any], optax.Schedule]
    initial: Callable[[], TrainedModel]

    def open(self, mesh: Mesh, given: Given | None = None) -> Task:
        """Opens the data, or takes those that are given.

        Raises UserError where there is no such set or split.
        """
        if given is None:
            return self.kind.open(self, mesh)
        if self.kind.make is None:
            raise UserError(f"train: the task {self.config.task!r} takes no data but the config's")
        return self.kind.make(self, mesh, *given)


def with_given(
    config: ConfigDict | Mapping[str, Any], given: Given | None
) -> ConfigDict | Mapping[str, Any]:
    """The config, whose data are those that were handed over, if any."""
    if given is None:
        return config
    tree = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    splits = tuple(given[1] or {"train": None})
    data = {"name": GIVEN, "train_split": "train", "eval_splits": splits}
    return {**tree, "data": {**tree.get("data", {}), **data}}


TASKS: Registry[TaskKind] = Registry("task", {})
register_task = TASKS.register
