"""Every field of a config with its default, and the checks that a config passes before anything is
compiled or downloaded.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from googlenet_jax.data.bad_images import POLICIES
from googlenet_jax.data.pipeline import MOST_THREADS, SAMPLINGS
from googlenet_jax.data.preprocessing import LARGEST
from googlenet_jax.data.resampling import INTERPOLATIONS
from googlenet_jax.errors import UserError, nearest
from googlenet_jax.training.finetune import complete_from_initial
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.task import TASKS, Resolved

DTYPES = ("float32", "bfloat16", "float64")

# Fields that a resumed run may change: none of them reaches the parameters. `duration` may change
# too, but only under the "step" schedule, whose rates don't depend on the end; the polynomial and
# the cosine end where the run ends, so it would bend their past.
MAY_CHANGE = frozenset(
    {
        "data.dir",
        "data.threads",
        "data.workers",
        "data.on_bad_image",
        "data.bad_image_limit",
        "eval_batch_size",
        "eval_every",
        "checkpoint_every",
        "log_every",
        "checkpoint.keep",
        "skip_not_finite",
        "writers.names",
        # To rounding, as another number of devices does.
        "devices.rematerialize",
        "devices.mesh",
        "devices.shard",
        "devices.shard_optimizer",
    }
)


def default_config() -> ConfigDict:
    """Returns a config with every field there is.

    Durations are strings: "60 epochs", "0.5 epochs", "2400000 steps". The fields are not
    type-checked as they are set: `resolve` names every wrong one.
    """
    config = ConfigDict(type_safe=False)

    config.task = "classification"  # what is trained: a registered task
    # Of the initial parameters, the order of the examples, crops, flips and dropout.
    config.seed = 0
    config.init_seed = -1  # of the initial parameters alone; -1 is `seed`
    # Of the computation, one of DTYPES; parameters and statistics are float32, or float64 under it.
    config.dtype = "float32"
    # The same bits in every run on a GPU too, at some cost in speed; a CPU is always so.
    config.deterministic = False

    config.model = ConfigDict(type_safe=False)
    config.model.name = "googlenet_bn"  # a name of list_models(); "" is init_from's network
    # Of that model, as create_model takes them: {"width": 0.5, "stem": "small"}
    config.model.options = ConfigDict(type_safe=False)

    # Weights to begin with: whatever `gj.load` opens; "" initialises them. What has another shape,
    # such as a head of other classes, is initialised.
    config.init_from = ""
    # Parts that stay as they are, patterns over the parameter tree: ("conv*", "inception_3*");
    # "all_but=2" is all but the last two modules and the heads.
    config.freeze = ()
    # Whether their batch norms keep and use their running statistics too.
    config.freeze_statistics = True

    config.data = ConfigDict(type_safe=False)
    # A TFDS classification set, "digits", "huggingface:NAME_OR_FOLDER" or "tar:PATTERN".
    config.data.name = "imagenet2012"
    config.data.dir = ""  # where prepared data sets lie, gs://BUCKET/FOLDER too; "" is TFDS's place
    config.data.train_split = "train"  # slices too: "train[:90%]"
    config.data.eval_splits = ("validation",)  # the first decides which checkpoint is the best
    # "shuffle", or "balanced": every class as often as another, by seed and step.
    config.data.sampling = "shuffle"
    # Of the training split, drawn by subset_seed: so many examples a class (0 is all), and all but
    # a fold ("2/5": the second of five), which is evaluated first, as the split "fold".
    config.data.per_class = 0
    config.data.fold = ""
    config.data.subset_seed = 0
    config.data.threads = 16  # that decode and crop images; not used where there are workers
    config.data.workers = 0  # processes that decode and crop images; 0 is none
    # Whether training decodes every image whole. False is faster: JPEGs at half their size where
    # the crop allows it, colours upsampled plainly. Evaluation is always exact.
    config.data.exact_decoding = True
    # What becomes of an image that can't be read: "error", or "skip", an example of weight 0 …
    config.data.on_bad_image = "error"
    config.data.bad_image_limit = 100  # … until there are more than so many

    config.preprocessing = ConfigDict(type_safe=False)
    # Height and width of the network's input, in pixels; 0 takes all preprocessing from init_from.
    config.preprocessing.size = 224
    # Short side before the centre crop of an evaluation, in pixels.
    config.preprocessing.resize = 256
    # By channel in channel_order, or one for all; in the images' units, 0–255 for uint8.
    config.preprocessing.mean = (123.675, 116.28, 103.53)
    config.preprocessing.std = (58.395, 57.12, 57.375)
    config.preprocessing.channel_order = "rgb"  # what the network sees: "rgb", or "bgr" as Caffe's
    # Of an evaluation's resizing, as `Preprocessing` names them.
    config.preprocessing.crop = "center"
    config.preprocessing.interpolation = "auto"

    config.augment = ConfigDict(type_safe=False)
    # Height and width of the images to train on; 0 is preprocessing.size. Smaller is faster
    # (arXiv 1906.06423).
    config.augment.size = 0
    # Smallest and largest share of the image's area that a random crop takes.
    config.augment.area = (0.08, 1.0)
    config.augment.aspect = (3 / 4, 4 / 3)  # smallest and largest width ÷ height of a random crop
    # What scales the crop: "auto" (averages areas where it shrinks), "bilinear", "area",
    # "nearest", "bicubic", "bilinear_antialiased", or "random": of the paper's four, the four
    # in the middle.
    config.augment.interpolation = "auto"
    config.augment.flip = True  # mirror half of the images
    # An image's brightness, contrast and saturation are multiplied by 1 − x to 1 + x, its hue is
    # turned by −x to x of the circle, in random order.
    config.augment.brightness = 0.0
    config.augment.contrast = 0.0
    config.augment.saturation = 0.0
    config.augment.hue = 0.0
    # Standard deviation of AlexNet's lighting noise, in those of ImageNet's colours; AlexNet's 0.1.
    config.augment.lighting = 0.0
    config.augment.transforms = ()  # registered ones, on the device after the flip, in this order
    # Of these transforms, by name: {"invert": {"share": 0.3}}
    config.augment.options = ConfigDict(type_safe=False)
    # Α of MixUp's Beta distribution (arXiv 1710.09412: 0.1–0.4 on ImageNet).
    config.augment.mixup = 0.0
    # Α of CutMix's (arXiv 1905.04899: 1); with both, a fair coin a batch.
    config.augment.cutmix = 0.0

    config.batch_size = 256  # of a training step, over all devices
    config.eval_batch_size = 256
    config.duration = "90 epochs"  # of the whole run
    config.eval_every = "1 epoch"
    config.checkpoint_every = "1 epoch"
    config.log_every = "100 steps"

    config.optimizer = ConfigDict(type_safe=False)
    # "sgd" as PyTorch's, "rmsprop" as TensorFlow's, "adamw", "lamb", "lion", "muon", or a
    # registered one
    config.optimizer.name = "sgd"
    config.optimizer.options = ConfigDict(type_safe=False)  # as Optax names them: {"b2": 0.95}
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    # Of the kernels of convolutions and linear layers only; L2 in sgd and rmsprop, otherwise
    # decoupled.
    config.optimizer.weight_decay = 1e-4
    # On the update of the biases of convolutions and linear layers; Caffe's is 2.
    config.optimizer.bias_rate_multiplier = 1.0
    # On the update of what a pattern names, "PATTERN=FACTOR" each: ("head=10",)
    config.optimizer.rate_multipliers = ()
    config.optimizer.clip_norm = 0.0  # largest norm of all gradients together; 0 is no clipping

    config.schedule = ConfigDict(type_safe=False)
    # "step", "polynomial", "cosine", "cosine_restarts", "constant", or a registered one
    config.schedule.name = "cosine"
    config.schedule.options = ConfigDict(type_safe=False)  # of that schedule: {"restarts": 3}
    config.schedule.learning_rate = 0.1  # the highest
    # Of a linear rise to the highest rate, before the schedule proper.
    config.schedule.warmup = "0 epochs"
    config.schedule.factor = 0.96  # step: the rate is multiplied by this …
    config.schedule.every = "8 epochs"  # … each time that this has passed
    config.schedule.power = 0.5  # polynomial: rate × (1 − progress) ^ power

    config.loss = ConfigDict(type_safe=False)
    config.loss.name = "cross_entropy"  # or a registered loss
    config.loss.options = ConfigDict(type_safe=False)  # of a registered loss: its further arguments
    config.loss.aux_weight = 0.3  # of each auxiliary head's cross entropy
    config.loss.label_smoothing = 0.0  # share of a target that is spread evenly over all classes
    config.metrics = ("top1", "top5")  # in all lines, besides the losses; registered ones too

    # A step whose loss or gradients are not finite stops the run, or with a number here is left
    # out, until there are more than so many.
    config.skip_not_finite = 0

    config.devices = ConfigDict(type_safe=False)  # how a step is laid out on them
    # Parts of a batch computed one after the other; batch norm sees one at a time.
    config.devices.accumulate = 1
    # Compute anew in the backward pass what lies within Inception modules: less memory, more time.
    config.devices.rematerialize = False
    # The mesh's axes and lengths, such as "data=4,model=2"; "" is "data" with all devices. Batches
    # are split over "data".
    config.devices.mesh = ""
    # What is split over an axis, "PATTERN=AXIS" each: ("*/kernel=model",), or ("*=data",), FSDP.
    config.devices.shard = ()
    config.devices.shard_optimizer = False  # split the optimizer's arrays over the devices

    config.ema = ConfigDict(type_safe=False)  # Polyak averaging of parameters and batch statistics
    # Share of the average that a step keeps, less in the first steps; 0 is no averaging.
    config.ema.decay = 0.0
    config.ema.start = "0 epochs"  # until then the average is a copy of the parameters

    config.checkpoint = ConfigDict(type_safe=False)
    config.checkpoint.keep = 3  # so many of the last ones, besides the best
    # What decides which is the best, on the first evaluation split: "loss" or one of `metrics` …
    config.checkpoint.best = "top1"
    # … and whether the highest value is the best or the lowest, "min".
    config.checkpoint.best_mode = "max"

    # Registered callbacks, such as ("early_stopping",), and their options by name:
    # {"early_stopping": {"metric": "top1", "patience": 3}}
    config.callbacks = ConfigDict(type_safe=False)
    config.callbacks.names = ()
    config.callbacks.options = ConfigDict(type_safe=False)
    # Further writers of the lines, "wandb", "mlflow" or registered ones, and their options by name.
    config.writers = ConfigDict(type_safe=False)
    config.writers.names = ()
    config.writers.options = ConfigDict(type_safe=False)

    return config


LARGEST_STEPS = 2**31 - 1  # they are counted in 32 bits
_DURATION = re.compile(r"(\d+(?:\.\d+)?) (epochs?|steps?)")


def _parse_duration(duration: str) -> tuple[float, bool]:
    """Returns a duration's number, and whether it counts epochs."""
    match = _DURATION.fullmatch(duration)
    if match is None or (match[2].startswith("step") and "." in match[1]):
        raise UserError(
            f"expected a duration such as '60 epochs', '0.5 epochs' or '5000 steps', found {duration!r}"
        )
    return float(match[1]), match[2].startswith("epoch")


def steps(duration: str, steps_per_epoch: float) -> int:
    """Converts a duration ("60 epochs", "0.5 epochs", "2400000 steps") into training steps.

    A part of a step is rounded, and a duration above zero is at least one step. Raises UserError
    where `duration` does not parse.
    """
    number, is_epochs = _parse_duration(duration)
    if number == 0:
        return 0
    count = number * steps_per_epoch if is_epochs else number
    if count > LARGEST_STEPS:
        raise UserError(f"expected at most {LARGEST_STEPS:,} steps, found {duration!r}")
    return max(1, round(count))


def period(duration: str, steps_per_epoch: float) -> float:
    """Converts a duration into a period in steps, at least 1 and not rounded, for `loop.is_due`.

    Raises UserError where `duration` does not parse.
    """
    number, is_epochs = _parse_duration(duration)
    return max(1.0, number * steps_per_epoch if is_epochs else number)


@dataclasses.dataclass(frozen=True)
class Durations:
    """A config's durations in steps; an epoch is not whole where the batch size does not divide the
    examples.

    `eval_every`, `checkpoint_every` and `log_every` are periods for `loop.is_due`, the others whole
    numbers of steps.
    """

    epoch: float
    total: int
    eval_every: float
    checkpoint_every: float
    log_every: float
    warmup: int
    decay_every: int
    ema_start: int


def in_steps(config: ConfigDict, examples: int) -> Durations:
    """Returns a config's durations for a training split of so many examples.

    Raises UserError where the warm-up is as long as the run.
    """
    epoch = examples / config.batch_size
    counted = {}
    for name in ("duration", "schedule.warmup", "schedule.every", "ema.start"):
        group, _, field = name.rpartition(".")
        try:
            counted[name] = steps((config[group] if group else config)[field], epoch)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    total, warmup = counted["duration"], counted["schedule.warmup"]
    if warmup >= total:
        raise UserError(
            f"schedule.warmup: {config.schedule.warmup!r} is {warmup} steps, expected fewer than the run's {total}"
        )
    return Durations(
        epoch=epoch,
        total=total,
        eval_every=period(config.eval_every, epoch),
        checkpoint_every=period(config.checkpoint_every, epoch),
        log_every=period(config.log_every, epoch),
        warmup=warmup,
        decay_every=counted["schedule.every"],
        ema_start=counted["ema.start"],
    )


Check = Callable[[Any], bool]


def _from_to(low: int, high: int) -> tuple[Check, str]:
    return lambda value: low <= value <= high, f"a whole number from {low} to {high:,}"


def _one_of(names: tuple[str, ...]) -> tuple[Check, str]:
    return lambda value: value in names, "one of " + ", ".join(map(repr, names))


def _duration(low: float) -> tuple[Check, str]:
    expected = "a duration above zero" if low else "a duration"
    return (
        lambda value: (
            (_parse_duration(value)[0] > 0 or not low)
            and _parse_duration(value)[0] <= LARGEST_STEPS
        ),
        f"{expected}, of at most {LARGEST_STEPS:,} steps, such as '60 epochs', '0.5 epochs' or '5000 steps'",
    )


def _share_up_to(high: float) -> tuple[Check, str]:
    return lambda value: 0 <= value <= high, f"a number from 0 to {high:g}"


_NAME: tuple[Check, str] = (lambda value: value != "", "a name")
_POSITIVE: tuple[Check, str] = (lambda value: value > 0, "a number above 0")
_NOT_NEGATIVE: tuple[Check, str] = (lambda value: value >= 0, "a number of at least 0")
_FRACTION: tuple[Check, str] = (lambda value: 0 <= value < 1, "a number of at least 0 and below 1")

# Field -> (whether a value of the right type is possible, what is expected).
_CHECKS: dict[str, tuple[Check, str]] = {
    "seed": (lambda value: 0 <= value < 2**31, "a whole number of at least 0 and below 2^31"),
    "init_seed": (
        lambda value: -1 <= value < 2**31,
        "-1 for `seed`, or a whole number of at least 0 and below 2^31",
    ),
    "dtype": _one_of(DTYPES),
    "data.name": _NAME,
    "data.train_split": _NAME,
    "data.eval_splits": (
        lambda splits: len(splits) > 0 and all(splits),
        "at least one split, such as ('test',)",
    ),
    "data.sampling": _one_of(SAMPLINGS),
    "data.per_class": _from_to(0, LARGEST_STEPS),
    "data.subset_seed": _from_to(0, LARGEST_STEPS),
    "data.threads": _from_to(1, MOST_THREADS),
    "data.workers": _from_to(0, MOST_THREADS),
    "data.on_bad_image": _one_of(POLICIES),
    "data.bad_image_limit": _from_to(0, LARGEST_STEPS),
    "augment.size": _from_to(0, LARGEST),
    "augment.interpolation": _one_of((*INTERPOLATIONS, "random")),
    "augment.brightness": _share_up_to(1),
    "augment.contrast": _share_up_to(1),
    "augment.saturation": _share_up_to(1),
    "augment.hue": _share_up_to(0.5),
    "augment.lighting": _NOT_NEGATIVE,
    "augment.mixup": _NOT_NEGATIVE,
    "augment.cutmix": _NOT_NEGATIVE,
    "batch_size": _from_to(1, LARGEST_STEPS),
    "eval_batch_size": _from_to(1, LARGEST_STEPS),
    "duration": _duration(1),
    "eval_every": _duration(1),
    "checkpoint_every": _duration(1),
    "log_every": _duration(1),
    "optimizer.momentum": _FRACTION,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.bias_rate_multiplier": _POSITIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "schedule.learning_rate": _POSITIVE,
    "schedule.warmup": _duration(0),
    "schedule.factor": (lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "schedule.every": _duration(1),
    "schedule.power": _POSITIVE,
    "loss.aux_weight": _NOT_NEGATIVE,
    "loss.label_smoothing": _FRACTION,
    "skip_not_finite": _from_to(0, LARGEST_STEPS),
    "devices.accumulate": _from_to(1, LARGEST_STEPS),
    "ema.decay": _FRACTION,
    "ema.start": _duration(0),
    "checkpoint.keep": _from_to(1, LARGEST_STEPS),
    "checkpoint.best_mode": _one_of(("max", "min")),
}


def resolve(
    config: ConfigDict | Mapping[str, Any], kept: Mapping[str, Any] | None = None
) -> Resolved:
    """Checks a config and builds what it describes, without compiling or downloading anything. Only
    where it takes its network or preprocessing from `init_from` is that read.

    Args:
      kept: the config of the run that is resumed, which has them already.

    A field that the config lacks, as one written by an older version may, has its default. Raises
    UserError for an unknown field, a wrong type, an impossible value, two fields that contradict
    each other, and whatever the kind of task refuses.
    """
    import googlenet_jax.training.classification  # noqa: F401  # registers the default task

    given = _fields(config.to_dict() if isinstance(config, ConfigDict) else config)
    try:
        kind = TASKS[given.get("task", "classification")]
    except UserError as error:
        raise UserError(f"task: {error}") from error
    config = kind.defaults()
    defaults = _fields(config.to_dict())
    for name in given.keys() - defaults.keys():
        raise UserError(f"{name}: a config has no such field{nearest(name, defaults)}")
    for name, default in defaults.items():
        value = given.get(name, default)
        _check_type(name, value, default)
        _check_value(name, value)
    config.update_from_flattened_dict({name: _as_config(value) for name, value in given.items()})
    complete_from_initial(config, kept)
    _check_together(config)
    _check_schedule(config)
    # The optimizer checks its own options; the schedule is known with the data.
    optimizer: Any = functools.partial(create_optimizer, **config.to_dict()["optimizer"])
    optimizer(lambda step: step)
    return Resolved(config, kind, kind.build(config), optimizer)


def _check_schedule(config: ConfigDict) -> None:
    """Builds the schedule for some length, which checks its name and options."""
    fields = config.schedule
    create_schedule(
        fields.name,
        fields.learning_rate,
        1000,
        factor=fields.factor,
        power=fields.power,
        options=fields.options.to_dict(),
    )


def _as_config(value: Any) -> Any:
    return ConfigDict(value, type_safe=False) if isinstance(value, dict) else value


def _fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's fields by dotted name; a group's `options` are one field."""
    return flatten_dict(dict(tree), sep=".", is_leaf=lambda path, _: path[-1:] == ("options",))


def _is_type(value: Any, expected: type) -> bool:
    """Whether `value` can stand for a field of that type: a whole number for a number, a list for a
    tuple, but no bool for a number.
    """
    if isinstance(value, bool) or expected is bool:
        return isinstance(value, bool) and expected is bool
    if expected is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, list | tuple if expected is tuple else expected)


_TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple",
    dict: "a dictionary",
}


def _check_type(name: str, value: Any, default: Any) -> None:
    kind = type(default)
    if not _is_type(value, kind):
        raise UserError(
            f"{name}: expected {_TYPE_NAMES[kind]} such as {default!r}, found {value!r}"
        )
    item_kind = type(default[0]) if kind is tuple and default else str
    if kind is tuple and not all(_is_type(item, item_kind) for item in value):
        example = f", as in {default!r}" if default else ""
        raise UserError(
            f"{name}: each item should be {_TYPE_NAMES[item_kind]}{example}, found {value!r}"
        )


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
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise UserError("optimizer.nesterov: needs optimizer.momentum above 0, found 0")
    warmup, warmup_is_epochs = _parse_duration(config.schedule.warmup)
    duration, duration_is_epochs = _parse_duration(config.duration)
    if warmup_is_epochs == duration_is_epochs and warmup >= duration:
        raise UserError(
            f"schedule.warmup: expected less than duration, {config.duration!r}, found {config.schedule.warmup!r}"
        )


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Returns what keeps a run of the config `old` from being resumed with `new`, as
    "schedule.power: 0.5 → 1.0"; empty if nothing does.

    All are nested dictionaries, as `ConfigDict.to_dict` or a config.json gives them; a field that
    `old` or `new` lacks has its default. The fields of MAY_CHANGE and the writers' options are
    passed over, and so is `duration` where both use the "step" schedule.
    """
    before, after = (
        {**flatten_dict(defaults, sep="."), **flatten_dict(tree, sep=".")} for tree in (old, new)
    )
    passed = set(MAY_CHANGE)
    if before.get("schedule.name") == after.get("schedule.name") == "step":
        passed.add("duration")
    absent = object()
    changed = []
    for name in sorted((before.keys() | after.keys()) - passed):
        if name.startswith("writers.options."):
            continue
        a, b = (
            list(value) if isinstance(value, tuple) else value
            for value in (before.get(name, absent), after.get(name, absent))
        )
        if a != b:
            changed.append(
                f"{name}: {'not set' if a is absent else repr(a)} → {'not set' if b is absent else repr(b)}"
            )
    return changed
