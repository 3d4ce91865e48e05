"""The learning rate that an optimizer applies, which need not be its schedule's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 3  # that are tried
NEVER = 1 << 20
# The factor on the rate that optimizers keep which find one themselves: prodigy, dadapt_adamw.
OWN_FACTOR = "estim_lr"


def follows_schedule(make: Callable[[optax.Schedule], optax.GradientTransformation]) -> bool:
    """Whether each step of an optimizer applies its schedule's rate at that step: whether another
    rate at step k alone makes another update at step k, unless that update is zero anyway.

    Tries it: three steps of six parameters.
    """

    @jax.jit
    def updates(changed: jax.Array) -> list[Any]:
        return _updates(make(lambda step: jnp.where(step == changed, 0.02, 0.01)))

    try:
        plain = updates(NEVER)
        moving = [step for step in range(STEPS) if any(map(np.any, jax.tree.leaves(plain[step])))]
        return bool(moving) and all(_differ(updates(step)[step], plain[step]) for step in moving)
    except jax.errors.ConcretizationTypeError:  # it asked for a number of its own before any step
        return False


def _updates(optimizer: optax.GradientTransformation) -> list[Any]:
    """The first steps' updates, at gradients that differ."""
    params = {
        "head": {"kernel": jnp.array([[0.5, -1.0], [0.25, 2.0]]), "bias": jnp.array([1.0, -0.5])}
    }
    state, found = optimizer.init(params), []
    update = optax.with_extra_args_support(optimizer).update
    for step in range(STEPS):
        grads = jax.tree.map(lambda leaf, by=step: jnp.sin(leaf + by), params)
        updates, state = update(
            grads, state, params, grad_fn=lambda params, *_: jax.tree.map(jnp.sin, params)
        )
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found


def _differ(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def applied_rate(schedule: optax.Schedule, step: jax.Array, opt_state: Any) -> jax.Array:
    """The rate of the step that is about to be taken: the schedule's at as many updates as the
    optimizer has counted, times its own factor where it finds one.
    """
    counts = _scalars(opt_state, "count")
    own = _scalars(opt_state, OWN_FACTOR)
    rate = schedule(counts[0] if counts else step)
    return rate * own[0] if len(own) == 1 else rate


def _scalars(opt_state: Any, name: str) -> list[jax.Array]:
    found = [value for _, value in optax.tree.get_all_with_path(opt_state, name)]
    return [value for value in found if isinstance(value, jax.Array) and value.ndim == 0]
