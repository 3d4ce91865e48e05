"""The learning rates at which a config's training goes, by a short run in which the rate rises."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from googlenet_jax.errors import UserError, check_whole
from googlenet_jax.runtime.sharding import create_mesh, place, replicate, shard_batch
from googlenet_jax.training.config import resolve
from googlenet_jax.training.optimizer import SCHEDULES
from googlenet_jax.training.plan import make_plan
from googlenet_jax.training.task import with_given


def rising_schedule(learning_rate: float, steps: int, lowest: float = 1e-5) -> optax.Schedule:
    """From `lowest` to `learning_rate` by a constant factor a step."""
    return optax.exponential_decay(lowest, max(1, steps - 1), learning_rate / lowest)


if "rising" not in SCHEDULES:
    SCHEDULES.register("rising", rising_schedule)


@dataclasses.dataclass(frozen=True)
class RateRange:
    """What the run has shown.

    Attributes:
      rates, losses: of each step; losses are smoothed, and end where they have grown to four times
        the least.
      suggestion: a tenth of the rate at which the smoothed loss was least.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float

    def draw(self, path: str | Path) -> None:
        """Draws the losses over the rates into a PNG, PDF or SVG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses)
        axes.axvline(self.suggestion, linestyle="--", color="C1", label=f"{self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
        axes.legend()
        figure.savefig(path)


def find_learning_rate(
    config: ConfigDict | Mapping[str, Any],
    *,
    train: Any = None,
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
) -> RateRange:
    """Trains a config from its first state while the rate rises from `lowest` to `highest` over
    `steps` steps (the range test of arXiv 1506.01186), and writes nothing.

    Args:
      train: data in place of the config's, as `gj.train` takes them.
      smoothing: share of the average loss that a step keeps, corrected for its start.
    Raises:
      UserError: as `gj.train`; rates that don't rise; a loss that is not finite at the first step.
    """
    steps = check_whole("steps", steps, 2)
    if not 0 < lowest < highest < math.inf:
        raise UserError(f"lowest, highest: expected 0 < {lowest:g} < {highest:g}")
    given = None if train is None else (train, None)
    tree = ConfigDict(with_given(config, given), type_safe=False).to_dict()
    tree["schedule"] = {
        "name": "rising",
        "options": {"lowest": lowest},
        "learning_rate": highest,
        "warmup": "0 steps",
    }
    tree |= {"duration": f"{steps} steps", "skip_not_finite": 0}
    resolved = resolve(tree)
    mesh = create_mesh(axes=resolved.config.devices.mesh)
    task = resolved.open(mesh, given)
    plan = make_plan(resolved, task, mesh)
    state = plan.create_state(plan.init_key)
    state = place(state, jax.tree.map(lambda leaf: leaf.sharding, plan.shapes))
    key = replicate(plan.step_key, mesh)
    rates: list[float] = []
    losses: list[float] = []
    average, rise = 0.0, rising_schedule(highest, steps, lowest)
    with contextlib.closing(task.batches(0)) as batches:
        for step in range(steps):
            state, metrics = plan.train_step(state, shard_batch(next(batches), mesh), key)
            if "learning_rate" not in metrics:
                raise UserError(
                    f"optimizer.name: {resolved.config.optimizer.name} applies no schedule's rate, "
                    "so that there is none to find"
                )
            average = smoothing * average + (1 - smoothing) * float(metrics["loss"])
            smooth = average / (1 - smoothing ** (step + 1))
            if not math.isfinite(smooth) or (losses and smooth > 4 * min(losses)):
                break
            rates.append(float(rise(step)))
            losses.append(smooth)
    if not losses:
        raise UserError(f"lowest: the first step's loss is not finite at a rate of {lowest:g}")
    suggestion = rates[int(np.argmin(losses))] / 10
    return RateRange(tuple(rates), tuple(losses), suggestion)
