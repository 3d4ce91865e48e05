"""Stochastic gradient descent as PyTorch's, out of Optax's pieces, and the learning rate's schedules."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from googlenet_jax.errors import UserError
from googlenet_jax.training.config import steps


def create_optimizer(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns a recipe's optimizer, and its schedule from the step (0 is the first) to the learning rate.

    As PyTorch's SGD: d = gradient + weight_decay · p; buffer = momentum · buffer + d; p −= rate · buffer, or rate · (d + momentum ·
    buffer) under Nesterov. The buffer holds no learning rate, so a change of rate acts at once; Caffe's holds rate · d, so there a
    change fades in over about 1 / (1 − momentum) steps. At a rate of one value the two are the same.

    Kernels alone decay. The biases of convolutions and linear layers learn at bias_rate_multiplier × the rate (Caffe's lr_mult: 2);
    batch norm's scale and bias at the rate itself.

    Raises UserError where the warm-up is as long as the run.
    """
    schedule = create_schedule(config, steps_per_epoch, total_steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.optimizer.weight_decay, mask=_where(is_kernel)),
        optax.trace(config.optimizer.momentum, nesterov=config.optimizer.nesterov),
        optax.masked(optax.scale(config.optimizer.bias_rate_multiplier), _where(is_layer_bias)),
        optax.scale_by_learning_rate(schedule),
    )
    return optimizer, schedule


def is_kernel(path: tuple[str, ...]) -> bool:
    """Whether a path in the parameter tree, such as ("inception_3a", "conv_1x1", "kernel"), names a layer's weights."""
    return path[-1] in ("kernel", "depthwise_kernel")


def is_layer_bias(path: tuple[str, ...]) -> bool:
    """Whether a path in the parameter tree names the bias of a convolution or a linear layer, and not batch norm's."""
    return path[-1] == "bias" and path[-2:-1] != ("bn",)


def _where(matches: Callable[[tuple[str, ...]], bool]) -> Callable[[Any], Any]:
    """Returns Optax's form of a mask: from a tree of parameters to one of the answers of `matches` to each path."""
    return functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: matches(tuple(entry.key for entry in path)))


def create_schedule(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    """Returns a recipe's learning rate as a function of the step, from 0.

    "step": rate · factor ^ ⌊step / every⌋. "polynomial": rate · (1 − step / steps) ^ power, Caffe's "poly". "cosine": rate · (1 +
    cos(π · step / steps)) / 2. A warm-up of W steps comes before, rate · (1 + step) / (W + 1): the schedule proper begins at step W
    with the full rate, and ends with the run.
    """
    rate = config.schedule.learning_rate
    warmup = steps(config.schedule.warmup, steps_per_epoch)
    if warmup >= total_steps:
        raise UserError(f"schedule.warmup: {config.schedule.warmup!r} is {warmup} steps, expected fewer than the run's {total_steps}")
    proper = _proper_schedule(config, steps_per_epoch, total_steps - warmup)
    if warmup == 0:
        return proper
    return optax.join_schedules([optax.linear_schedule(rate / (warmup + 1), rate, warmup), proper], [warmup])


def _proper_schedule(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
    rate = config.schedule.learning_rate
    if config.schedule.name == "polynomial":
        return optax.polynomial_schedule(rate, 0.0, config.schedule.power, total_steps)
    if config.schedule.name == "cosine":
        return optax.cosine_decay_schedule(rate, total_steps)
    every, factor = steps(config.schedule.every, steps_per_epoch), config.schedule.factor
    # Whole-number division: optax.exponential_decay's float one can fall short at a stair where a device divides approximately.
    return lambda step: rate * factor ** (step // every)
