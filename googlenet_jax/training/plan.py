"""What a checked config makes of a task on a mesh: the first state, its places, and the step."""

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from googlenet_jax.runtime.process import log
from googlenet_jax.runtime.sharding import check_batch_size, parse_shards
from googlenet_jax.training.applied_rate import follows_schedule
from googlenet_jax.training.config import Durations, in_steps
from googlenet_jax.training.optimizer import OWN
from googlenet_jax.training.patterns import Frozen, check_patterns, expanded
from googlenet_jax.training.state import TrainState, make_create_state, state_shardings
from googlenet_jax.training.step import make_train_step
from googlenet_jax.training.task import Resolved, Task


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained with.

    Attributes:
      when: the config's durations in steps.
      optimizer: Optax's.
      init_key, step_key: of the first state, and of what the steps draw.
      create_state: the compiled function init_key -> the first state.
      shapes: the state as ShapeDtypeStructs, each with its place on the mesh.
      freeze: the patterns of what stays as it is; see `patterns.expanded`.
      train_step: the compiled step (state, batch, step_key) -> (state, metrics).
    """

    when: Durations
    optimizer: optax.GradientTransformation
    init_key: jax.Array
    step_key: jax.Array
    create_state: Any
    shapes: TrainState
    freeze: tuple[str, ...]
    train_step: Any


def make_plan(resolved: Resolved, task: Task, mesh: Mesh) -> Plan:
    """Returns the plan of a config's run; computes nothing but `follows_schedule`, of an optimizer
    that is not this package's, and says where that doesn't.

    Raises UserError where the batch does not divide among the devices.
    """
    config = resolved.config
    layout = config.devices
    check_batch_size(config.batch_size, mesh, layout.accumulate)
    when = in_steps(config, task.examples)
    schedule = resolved.schedule(when)
    optimizer = resolved.optimizer(schedule)
    # A step's randomness is drawn from `step_key` and its number.
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    if config.init_seed >= 0:
        init_key, _ = jax.random.split(jax.random.key(config.init_seed))
    create_state = make_create_state(
        task.model, optimizer, task.inputs(task.example), average=config.ema.decay > 0
    )
    shapes = create_state.eval_shape(init_key)
    rules = parse_shards(layout.shard, mesh)
    check_patterns("devices.shard", [pattern for pattern, _ in rules], shapes.params)
    shardings = state_shardings(shapes, mesh, shard_optimizer=layout.shard_optimizer, rules=rules)
    freeze = expanded(config.freeze, shapes.params)
    train_step = make_train_step(
        task,
        optimizer,
        schedule if _follows_schedule(resolved) else None,
        mesh,
        ema_decay=config.ema.decay,
        ema_start=when.ema_start,
        frozen=Frozen(freeze, config.freeze_statistics),
        accumulate=layout.accumulate,
        rematerialize=layout.rematerialize,
        skip_not_finite=config.skip_not_finite > 0,
        shardings=shardings,
    )
    placed = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    return Plan(when, optimizer, init_key, step_key, create_state, placed, freeze, train_step)


def _follows_schedule(resolved: Resolved) -> bool:
    """Whether the rate to log is the schedule's; says once where it is not."""
    name = resolved.config.optimizer.name
    alone = functools.partial(
        resolved.optimizer, weight_decay=0.0, clip_norm=0.0, rate_multipliers=()
    )
    if name in OWN or follows_schedule(alone):
        return True
    log(
        f"optimizer.name: {name} does not take each step's rate from the schedule; the metrics have"
        " no learning_rate"
    )
    return False
