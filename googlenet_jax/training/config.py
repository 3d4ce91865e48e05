"""Every field of a recipe with its default, and the checks that a recipe passes before anything is compiled or downloaded."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model

DTYPES = ("float32", "bfloat16", "float64")
SCHEDULES = ("step", "polynomial", "cosine")

# Fields that a resumed run may change: none of them reaches the parameters. `duration` may change too, but only under the "step"
# schedule, whose rates don't depend on the end; the polynomial and the cosine end where the run ends, so it would bend their past.
MAY_CHANGE = frozenset(
    {"data.dir", "data.threads", "eval_batch_size", "eval_every", "checkpoint_every", "log_every", "checkpoint.keep"}
)  # fmt: skip


def default_config() -> ConfigDict:
    """Returns a recipe with every field there is. Durations are strings: "60 epochs", "0.5 epochs", "2400000 steps".

    The fields are not type-checked as they are set: `validate` names every wrong one.
    """
    config = ConfigDict(type_safe=False)

    config.seed = 0  # of the initial parameters, the order of the examples, crops, flips and dropout
    config.dtype = "float32"  # of the computation, one of DTYPES; parameters and statistics are float32 (float64 under "float64")
    config.deterministic = False  # the same bits in every run on a GPU too, at some cost in speed; a CPU is always so

    config.model = ConfigDict(type_safe=False)
    config.model.name = "googlenet_bn"  # a name of list_models()
    config.model.options = ConfigDict(type_safe=False)  # of that model, as create_model takes them: {"width": 0.5, "stem": "small"}

    config.data = ConfigDict(type_safe=False)
    config.data.name = "imagenet2012"  # a TFDS classification set, or "digits"
    config.data.dir = ""  # where prepared data sets lie; "" is TFDS's own place
    config.data.train_split = "train"  # slices too: "train[:90%]"
    config.data.eval_splits = ("validation",)  # the first decides which checkpoint is the best
    config.data.threads = 16  # that decode and crop images

    config.preprocessing = ConfigDict(type_safe=False)
    config.preprocessing.size = 224  # height and width of the network's input, in pixels
    config.preprocessing.resize = 256  # short side before the centre crop of an evaluation, in pixels
    config.preprocessing.mean = (123.675, 116.28, 103.53)  # by channel in channel_order, in units of 0–255
    config.preprocessing.std = (58.395, 57.12, 57.375)
    config.preprocessing.channel_order = "rgb"  # what the network sees: "rgb", or "bgr" as Caffe's

    config.augment = ConfigDict(type_safe=False)
    config.augment.size = 0  # height and width of the images to train on; 0 is preprocessing.size. Smaller is faster (arXiv 1906.06423)
    config.augment.area = (0.08, 1.0)  # smallest and largest share of the image's area that a random crop takes
    config.augment.aspect = (3 / 4, 4 / 3)  # smallest and largest width ÷ height of a random crop
    config.augment.flip = True  # mirror half of the images

    config.batch_size = 256  # of a training step, over all devices
    config.eval_batch_size = 256
    config.duration = "90 epochs"  # of the whole run
    config.eval_every = "1 epoch"
    config.checkpoint_every = "1 epoch"
    config.log_every = "100 steps"

    config.optimizer = ConfigDict(type_safe=False)  # stochastic gradient descent, as PyTorch's
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4  # on the kernels of convolutions and linear layers only
    config.optimizer.bias_rate_multiplier = 1.0  # on the learning rate of the biases of convolutions and linear layers; Caffe's is 2

    config.schedule = ConfigDict(type_safe=False)
    config.schedule.name = "cosine"  # one of SCHEDULES
    config.schedule.learning_rate = 0.1  # the highest
    config.schedule.warmup = "0 epochs"  # of a linear rise to the highest rate, before the schedule proper
    config.schedule.factor = 0.96  # step: the rate is multiplied by this …
    config.schedule.every = "8 epochs"  # … each time that this has passed
    config.schedule.power = 0.5  # polynomial: rate × (1 − progress) ^ power

    config.loss = ConfigDict(type_safe=False)
    config.loss.aux_weight = 0.3  # of each auxiliary head's cross entropy
    config.loss.label_smoothing = 0.0  # share of a target that is spread evenly over all classes

    config.ema = ConfigDict(type_safe=False)  # Polyak averaging of parameters and batch statistics
    config.ema.decay = 0.0  # share of the average that a step keeps; 0 is no averaging
    config.ema.start = "0 epochs"  # until then the average is a copy of the parameters

    config.checkpoint = ConfigDict(type_safe=False)
    config.checkpoint.keep = 3  # so many of the last ones, besides the best

    return config


_DURATION = re.compile(r"(\d+(?:\.\d+)?) (epochs?|steps?)")


def _parse_duration(duration: str) -> tuple[float, bool]:
    """Returns a duration's number, and whether it counts epochs."""
    match = _DURATION.fullmatch(duration)
    if match is None or (match[2].startswith("step") and "." in match[1]):
        raise UserError(f"expected a duration such as '60 epochs', '0.5 epochs' or '5000 steps', found {duration!r}")
    return float(match[1]), match[2].startswith("epoch")


def steps(duration: str, steps_per_epoch: float) -> int:
    """Converts a duration ("60 epochs", "0.5 epochs", "2400000 steps") into training steps.

    A part of a step is rounded, and a duration above zero is at least one step. Raises UserError where `duration` does not parse.
    """
    number, is_epochs = _parse_duration(duration)
    if number == 0:
        return 0
    return max(1, round(number * steps_per_epoch) if is_epochs else int(number))


def is_due(duration: str, step: int, steps_per_epoch: float) -> bool:
    """Whether something that happens every `duration` happens after `step` steps.

    Each multiple is rounded by itself: with 22.45 steps to an epoch, "1 epoch" is due after 22, 45, 67, … steps and "2 epochs" after every
    second of these. Multiples of a rounded duration would drift apart. Raises UserError where `duration` does not parse.
    """
    number, is_epochs = _parse_duration(duration)
    period = max(1.0, number * steps_per_epoch if is_epochs else number)
    count = round(step / period)
    return count > 0 and round(count * period) == step


def build_model(config: ConfigDict, num_classes: int) -> Network:
    """Builds a recipe's model. Raises UserError where the recipe's `model` or `dtype` do not make one."""
    options = config.model.options.to_dict()
    for name in ("num_classes", "dtype", "param_dtype"):
        if name in options:
            raise UserError(f"model.options.{name}: not an option of a recipe's model (the data set fixes the classes, `dtype` the types)")
    param_dtype = jnp.float64 if config.dtype == "float64" else jnp.float32
    try:
        return create_model(config.model.name, num_classes=num_classes, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype, **options)
    except UserError as error:
        raise UserError(f"model: {error}") from error


Check = Callable[[Any], bool]


def _at_least(low: int) -> tuple[Check, str]:
    return lambda value: value >= low, f"a whole number of at least {low}"


def _one_of(names: tuple[str, ...]) -> tuple[Check, str]:
    return lambda value: value in names, "one of " + ", ".join(map(repr, names))


def _duration(low: float) -> tuple[Check, str]:
    expected = "a duration above zero" if low else "a duration"
    return lambda value: _parse_duration(value)[0] > 0 or not low, f"{expected} such as '60 epochs', '0.5 epochs' or '5000 steps'"


def _range(low: float, high: float) -> tuple[Check, str]:
    return lambda pair: len(pair) == 2 and low < pair[0] <= pair[1] <= high, f"two numbers in ascending order, above {low:g}" + (
        f" and at most {high:g}" if math.isfinite(high) else ""
    )


_NAME: tuple[Check, str] = (lambda value: value != "", "a name")
_POSITIVE: tuple[Check, str] = (lambda value: value > 0, "a number above 0")
_NOT_NEGATIVE: tuple[Check, str] = (lambda value: value >= 0, "a number of at least 0")
_FRACTION: tuple[Check, str] = (lambda value: 0 <= value < 1, "a number of at least 0 and below 1")

# Field -> (whether a value of the right type is possible, what is expected).
_CHECKS: dict[str, tuple[Check, str]] = {
    "seed": (lambda value: 0 <= value < 2**31, "a whole number of at least 0 and below 2^31"),
    "dtype": _one_of(DTYPES),
    "data.name": _NAME,
    "data.train_split": _NAME,
    "data.eval_splits": (lambda splits: len(splits) > 0 and all(splits), "at least one split, such as ('test',)"),
    "data.threads": _at_least(1),
    "augment.size": _at_least(0),
    "augment.area": _range(0, 1),
    "augment.aspect": _range(0, math.inf),
    "batch_size": _at_least(1),
    "eval_batch_size": _at_least(1),
    "duration": _duration(1),
    "eval_every": _duration(1),
    "checkpoint_every": _duration(1),
    "log_every": _duration(1),
    "optimizer.momentum": _FRACTION,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.bias_rate_multiplier": _POSITIVE,
    "schedule.name": _one_of(SCHEDULES),
    "schedule.learning_rate": _POSITIVE,
    "schedule.warmup": _duration(0),
    "schedule.factor": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "schedule.every": _duration(1),
    "schedule.power": _POSITIVE,
    "loss.aux_weight": _NOT_NEGATIVE,
    "loss.label_smoothing": _FRACTION,
    "ema.decay": _FRACTION,
    "ema.start": _duration(0),
    "checkpoint.keep": _at_least(1),
}


def validate(config: ConfigDict) -> None:
    """Checks a whole recipe without compiling, reading or downloading anything.

    Raises UserError for an unknown or missing field, a wrong type, an impossible value, two fields that contradict each other, a model
    that does not exist or does not take these options, and images below the model's smallest size.
    """
    fields, expected = _fields(config.to_dict()), _fields(default_config().to_dict())
    for name in fields.keys() - expected.keys():
        raise UserError(f"{name}: a recipe has no such field{nearest(name, expected)}")
    for name, default in expected.items():
        if name not in fields:
            raise UserError(f"{name}: the field is missing; start a recipe from default_config()")
        _check_type(name, fields[name], default)
        _check_value(name, fields[name])
    _check_together(config)
    model = build_model(config, num_classes=1000)
    for name, size in (("preprocessing.size", config.preprocessing.size), ("augment.size", training_size(config))):
        if size < model.min_size:
            raise UserError(f"{name}: {config.model.name} takes images of at least {model.min_size} pixels, found {size}")
    if model.fully_connected_head and training_size(config) != config.preprocessing.size:
        raise UserError(f"augment.size: a fully connected head takes one size, {config.preprocessing.size}, found {config.augment.size}")
    groups = getattr(model, "bn_groups", 1)
    if config.batch_size % groups:
        raise UserError(f"batch_size: expected a multiple of model.options.bn_groups, {groups}, found {config.batch_size}")


def training_size(config: ConfigDict) -> int:
    """Returns the height and width of the images that a recipe trains on, in pixels."""
    return config.augment.size or config.preprocessing.size


def _fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's fields by dotted name; `model.options` is one field."""
    return flatten_dict(tree, sep=".", is_leaf=lambda path, _: path == ("model", "options"))


def _is_type(value: Any, expected: type) -> bool:
    """Whether `value` can stand for a field of that type: a whole number for a number, a list for a tuple, but no bool for a number."""
    if isinstance(value, bool) or expected is bool:
        return isinstance(value, bool) and expected is bool
    if expected is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, list | tuple if expected is tuple else expected)


_TYPE_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple", dict: "a dictionary"}


def _check_type(name: str, value: Any, default: Any) -> None:
    kind = type(default)
    if not _is_type(value, kind):
        raise UserError(f"{name}: expected {_TYPE_NAMES[kind]} such as {default!r}, found {value!r}")
    if kind is tuple and not all(_is_type(item, type(default[0])) for item in value):
        raise UserError(f"{name}: each item should be {_TYPE_NAMES[type(default[0])]}, as in {default!r}, found {value!r}")


def _check_value(name: str, value: Any) -> None:
    if name not in _CHECKS:
        return
    is_possible, expected = _CHECKS[name]
    try:
        possible = is_possible(value)
    except UserError:  # a duration that does not parse
        possible = False
    if not possible:
        names = re.findall(r"'(\w+)'", expected) if expected.startswith("one of") else ()
        raise UserError(f"{name}: expected {expected}, found {value!r}{nearest(value, names)}")


def _check_together(config: ConfigDict) -> None:
    """Checks fields against each other."""
    Preprocessing.from_dict(config.preprocessing.to_dict())  # which checks its own values
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise UserError("optimizer.nesterov: needs optimizer.momentum above 0, found 0")
    (warmup, warmup_is_epochs), (duration, duration_is_epochs) = map(_parse_duration, (config.schedule.warmup, config.duration))
    if warmup_is_epochs == duration_is_epochs and warmup >= duration:
        raise UserError(f"schedule.warmup: expected less than duration, {config.duration!r}, found {config.schedule.warmup!r}")


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what keeps a run of the recipe `old` from being resumed with `new`, as "schedule.power: 0.5 → 1.0"; empty if nothing does.

    Both are nested dictionaries, as `ConfigDict.to_dict` or a config.json gives them. The fields of MAY_CHANGE are passed over, and so
    is `duration` where both use the "step" schedule.
    """
    before, after = (flatten_dict(tree, sep=".") for tree in (old, new))
    passed = set(MAY_CHANGE)
    if before.get("schedule.name") == after.get("schedule.name") == "step":
        passed.add("duration")
    absent = object()
    changed = []
    for name in sorted((before.keys() | after.keys()) - passed):
        a, b = (list(value) if isinstance(value, tuple) else value for value in (before.get(name, absent), after.get(name, absent)))
        if a != b:
            changed.append(f"{name}: {'not set' if a is absent else repr(a)} → {'not set' if b is absent else repr(b)}")
    return changed
