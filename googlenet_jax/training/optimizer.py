"""Optimizers by name, out of Optax's pieces, and the learning rate's schedules."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_jax.errors import UserError, naming
from googlenet_jax.registry import Registry, arguments
from googlenet_jax.training.muon import muon
from googlenet_jax.training.patterns import parse_multipliers, scale_by_pattern

Mask = Callable[[Any], Any]
# (learning_rate=schedule, **options) -> transformation, as Optax's own optimizers are called.
OptimizerFactory = Callable[..., optax.GradientTransformation]


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    bias_rate_multiplier: float = 1.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent as PyTorch's, with L2 decay.

    d = gradient + weight_decay · p; buffer = momentum · buffer + d; p −= rate · buffer, or rate ·
    (d + momentum · buffer) under Nesterov. The buffer holds no learning rate, so a change of rate
    acts at once; Caffe's holds rate · d, so there a change fades in over about 1 / (1 − momentum)
    steps. At a rate of one value the two are the same.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.trace(momentum, nesterov=nesterov),
        optax.masked(optax.scale(bias_rate_multiplier), _where(is_layer_bias)),
        optax.scale_by_learning_rate(learning_rate),
    )


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    decay: float = 0.9,
    eps: float = 1e-10,
) -> optax.GradientTransformation:
    """RMSProp as TensorFlow 1's, which Inception-v2 and v3 were trained with (arXiv 1512.00567:
    decay 0.9, eps 1), with L2 decay.

    d = gradient + weight_decay · p; square = decay · square + (1 − decay) · d², beginning with 1
    and not with 0; buffer = momentum · buffer + rate · d / √(square + eps); p −= buffer. The buffer
    holds the learning rate, unlike SGD's.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.rmsprop(
            learning_rate, decay, eps, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum
        ),
    )


def sam(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    rho: float = 0.05,
) -> optax.GradientTransformation:
    """Sharpness-aware minimization (arXiv 2010.01412) around `sgd`: the gradient is taken where the
    parameters have gone `rho` along the first gradient, normalized; two gradients a step.
    """
    away = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    inner = sgd(learning_rate, momentum, nesterov, weight_decay, mask)
    return optax.contrib.sam(inner, away, sync_period=2, opaque_mode=True)


def muon_and_sgd(
    learning_rate: optax.Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    bias_rate_multiplier: float = 1.0,
    iterations: int = 3,
    others: float = 1.0,
) -> optax.GradientTransformation:
    """Muon on the kernels of convolutions, SGD at `others` times the rate on all else, which alone
    decays; see `muon.muon`.

    The rate is the share of a kernel that a step changes: 0.05 to 0.25 at first.
    """
    rest = sgd(
        lambda step: others * learning_rate(step),
        momentum,
        nesterov,
        weight_decay,
        mask,
        bias_rate_multiplier,
    )
    return muon(learning_rate, rest, momentum, nesterov, iterations)


_DECAYS = ("b1", "b2", "b3", "decay", "momentum")  # of averages over the steps
OPTIMIZERS: Registry[OptimizerFactory] = Registry(
    "optimizer",
    {
        "sgd": sgd,
        "rmsprop": rmsprop,
        "adamw": optax.adamw,
        "lamb": optax.lamb,
        "lars": optax.lars,
        "lion": optax.lion,
        "muon": muon_and_sgd,
        "sam": sam,
    },
)
OWN = frozenset(OPTIMIZERS)  # which a test has shown to follow their schedules
register_optimizer = OPTIMIZERS.register


def create_optimizer(
    schedule: optax.Schedule,
    name: str = "sgd",
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    bias_rate_multiplier: float = 1.0,
    rate_multipliers: Sequence[str] = (),
    clip_norm: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Returns a registered optimizer.

    Args:
      schedule: from the step (0 is the first) to the learning rate.
      name: one of `OPTIMIZERS`. Each is called as Optax's own are: learning_rate and, where it
        takes them, momentum, nesterov, weight_decay and mask, and its options.
      weight_decay: of kernels alone. As L2, a part of the gradient, by sgd and rmsprop; by an
        optimizer's own rule where it has one, on all parameters if that takes no mask; decoupled,
        rate · weight_decay · p, otherwise.
      bias_rate_multiplier: on the update of the biases of convolutions and linear layers (Caffe's
        lr_mult: 2), and not of batch norm's.
      rate_multipliers: on the update of what a pattern names, "PATTERN=FACTOR" each.
      clip_norm: the gradients of all parameters together are scaled down to this norm at most; 0 is
        no clipping.
      options: of that optimizer, such as {"b2": 0.95}.
    Raises:
      UserError: an unknown name, an option that the optimizer does not take, or a field that it has
        no use for, changed from its default.
    """
    with naming("optimizer.name"):
        factory = OPTIMIZERS[name]
    fields = {
        "momentum": (momentum, 0.9),
        "nesterov": (nesterov, False),
        # Those below are done here for an optimizer that does not take them itself.
        "weight_decay": (weight_decay, weight_decay),
        "bias_rate_multiplier": (bias_rate_multiplier, bias_rate_multiplier),
    }
    takes_decay = _takes(factory, "weight_decay")
    decay_mask = _decay_mask(factory)
    takes_multiplier = _takes(factory, "bias_rate_multiplier")
    if not takes_decay:
        del fields["weight_decay"]
    _check_options(name, options or {})
    if not _takes(factory, "learning_rate"):
        raise UserError(
            f"optimizer.name: {name} takes no learning_rate, and is called as Optax's are: "
            "factory(learning_rate=schedule, …)"
        )
    own = ("learning_rate", *((decay_mask,) if decay_mask else ()))
    taken = arguments(factory, f"optimizer {name!r}", "optimizer", fields, options or {}, own)
    if decay_mask:
        taken[decay_mask] = _where(is_kernel)
    try:
        chain = [factory(learning_rate=schedule, **taken)]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"optimizer.options: {name} does not take {dict(options or {})!r}: {error}"
        ) from error
    if clip_norm:
        chain.insert(0, optax.clip_by_global_norm(clip_norm))
    if weight_decay and not takes_decay:
        chain.append(
            optax.add_decayed_weights(
                lambda step: -weight_decay * schedule(step), mask=_where(is_kernel)
            )
        )
    if bias_rate_multiplier != 1 and not takes_multiplier:
        chain.append(optax.masked(optax.scale(bias_rate_multiplier), _where(is_layer_bias)))
    if factors := parse_multipliers(rate_multipliers):
        chain.append(scale_by_pattern(factors))
    optimizer = chain[0] if len(chain) == 1 else optax.chain(*chain)
    if options or name not in OWN:
        _try(optimizer, name, options or {})
    return optimizer


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises UserError for a rate of decay outside [0, 1), with which averages grow without bounds,
    and for an eps below 0: the loss would be NaN after some steps, and nobody would know why.
    """
    for option, value in options.items():
        if option not in (*_DECAYS, "eps", "eps_root") or not isinstance(value, int | float):
            continue
        if not (0 <= value < 1 if option in _DECAYS else 0 <= value < math.inf):
            expected = "at least 0 and below 1" if option in _DECAYS else "at least 0"
            raise UserError(
                f"optimizer.options: {name}'s {option}: expected a number of {expected}, found "
                f"{value!r}"
            )


def _decay_mask(factory: OptimizerFactory) -> str | None:
    """The parameter by which an optimizer is told what decays: `mask` with most of Optax's,
    `weight_decay_mask` with others; None where it has none.
    """
    names = inspect.signature(factory).parameters
    return next((name for name in ("mask", "weight_decay_mask") if name in names), None)


def _takes(factory: OptimizerFactory, *names: str) -> bool:
    return set(names) <= inspect.signature(factory).parameters.keys()


def _try(optimizer: optax.GradientTransformation, name: str, options: Mapping[str, Any]) -> None:
    """Raises UserError where an option's value is of a kind that Optax can't compute with, or where
    an optimizer wants more for a step than there is; traces a step, and computes nothing.
    """

    def step(params: Any) -> Any:
        update = optax.with_extra_args_support(optimizer).update
        return update(params, optimizer.init(params), params, grad_fn=lambda params, *_: params)

    try:
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        jax.eval_shape(step, {"head": {"kernel": shape((1, 1)), "bias": shape((1,))}})
    except Exception as error:  # what lies within Optax may raise anything
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"options: {name} can't take {dict(options)!r}" if options else f"name: {name} fails"
        raise UserError(f"optimizer.{what}: {text}") from error


def is_kernel(path: tuple[str, ...]) -> bool:
    """Whether a path in the parameter tree, such as ("inception_3a", "conv_1x1", "kernel"), names a
    layer's weights.
    """
    return path[-1] in ("kernel", "depthwise_kernel")


def is_layer_bias(path: tuple[str, ...]) -> bool:
    """Whether a path in the parameter tree names the bias of a convolution or a linear layer, and
    not batch norm's.
    """
    return path[-1] == "bias" and path[-2:-1] != ("bn",)


def _where(matches: Callable[[tuple[str, ...]], bool]) -> Mask:
    """Returns Optax's form of a mask: from a tree of parameters to one of the answers of `matches`
    to each path.
    """
    return functools.partial(
        jax.tree_util.tree_map_with_path,
        lambda path, _: matches(tuple(entry.key for entry in path)),
    )


# (learning_rate, steps, **options) -> from the step after the warm-up to the rate.
ScheduleFactory = Callable[..., optax.Schedule]


def step_schedule(
    learning_rate: float, steps: int, factor: float = 0.96, every: int = 1
) -> optax.Schedule:
    """rate · factor ^ ⌊step / every⌋."""
    # Whole-number division: optax.exponential_decay's float one can fall short at a stair where a
    # device divides approximately.
    return lambda step: learning_rate * factor ** (step // every)


def polynomial_schedule(learning_rate: float, steps: int, power: float = 0.5) -> optax.Schedule:
    """rate · (1 − step / steps) ^ power, Caffe's "poly"."""
    return optax.polynomial_schedule(learning_rate, 0.0, power, steps)


def cosine_schedule(learning_rate: float, steps: int) -> optax.Schedule:
    """rate · (1 + cos(π · step / steps)) / 2 (arXiv 1608.03983 without restarts)."""
    return optax.cosine_decay_schedule(learning_rate, steps)


def cosine_restarts_schedule(learning_rate: float, steps: int, restarts: int = 1) -> optax.Schedule:
    """A cosine to zero, begun anew `restarts` times at equal distances (arXiv 1608.03983)."""
    length = -(-steps // (restarts + 1))
    cycle = optax.cosine_decay_schedule(learning_rate, length)
    return lambda step: cycle(step % length)


def constant_schedule(learning_rate: float, steps: int) -> optax.Schedule:
    """The same rate throughout."""
    return optax.constant_schedule(learning_rate)


SCHEDULES: Registry[ScheduleFactory] = Registry(
    "schedule",
    {
        "step": step_schedule,
        "polynomial": polynomial_schedule,
        "cosine": cosine_schedule,
        "cosine_restarts": cosine_restarts_schedule,
        "constant": constant_schedule,
    },
)
register_schedule = SCHEDULES.register


def create_schedule(
    name: str,
    learning_rate: float,
    total_steps: int,
    *,
    warmup: int = 0,
    factor: float = 0.96,
    every: int = 1,
    power: float = 0.5,
    options: Mapping[str, Any] | None = None,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0; all durations are steps,
    `warmup` below `total_steps`.

    A warm-up of W steps comes before the schedule proper, rate · (1 + step) / (W + 1): that begins
    at step W with the full rate, and ends with the run.

    Args:
      name: one of `SCHEDULES`. Each is called as (learning_rate, steps) with its options, and gives
        the rate by the step after the warm-up.
      factor, every, power: for the schedules that take them.
      options: of that schedule, such as {"restarts": 3}.
    Raises:
      UserError: an unknown name, or an option that the schedule doesn't take or can't use.
    """
    with naming("schedule.name"):
        factory = SCHEDULES[name]
    shared = {"factor": factor, "every": every, "power": power}
    fields = {key: (value, value) for key, value in shared.items()}
    own = ("learning_rate", "steps")
    taken = arguments(factory, f"schedule {name!r}", "schedule", fields, options or {}, own)
    steps = total_steps - warmup
    try:
        proper = factory(learning_rate, steps, **taken)
        float(proper(0))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"schedule.options: {name} does not take {dict(options or {})!r}: {error}"
        ) from error
    if warmup == 0:
        return proper
    rise = optax.linear_schedule(learning_rate / (warmup + 1), learning_rate, warmup)
    return optax.join_schedules([rise, proper], [warmup])
