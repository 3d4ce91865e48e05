"""Every field of a config, in one table, and the checks that a config passes before anything is
compiled or downloaded.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from googlenet_jax.data.bad_images import POLICIES
from googlenet_jax.data.pipeline import MOST_THREADS, SAMPLINGS
from googlenet_jax.data.preprocessing import LARGEST
from googlenet_jax.data.resampling import INTERPOLATIONS
from googlenet_jax.errors import UserError, naming, nearest
from googlenet_jax.training.finetune import complete_from_initial, read_initial
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.task import TASKS, Resolved

DTYPES = ("float32", "bfloat16", "float64")

LARGEST_STEPS = 2**31 - 1  # they are counted in 32 bits
_DURATION = re.compile(r"(\d+(?:\.\d+)?) (epochs?|steps?)")


def _parse_duration(duration: str) -> tuple[float, bool]:
    """Returns a duration's number, and whether it counts epochs."""
    match = _DURATION.fullmatch(duration)
    if match is None or (match[2].startswith("step") and "." in match[1]):
        raise UserError(
            "expected a duration such as '60 epochs', '0.5 epochs' or '5000 steps', found"
            f" {duration!r}"
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


Check = tuple[Callable[[Any], object], str]  # whether a value is possible, what is expected


def from_to(low: int, high: int) -> Check:
    return lambda value: low <= value <= high, f"a whole number from {low} to {high:,}"


def one_of(names: tuple[str, ...]) -> Check:
    return lambda value: value in names, "one of " + ", ".join(map(repr, names))


def duration_of(low: float) -> Check:
    expected = "a duration above zero" if low else "a duration"
    return (
        lambda value: (
            (_parse_duration(value)[0] > 0 or not low)
            and _parse_duration(value)[0] <= LARGEST_STEPS
        ),
        (
            f"{expected}, of at most {LARGEST_STEPS:,} steps, such as '60 epochs', '0.5 epochs' or"
            " '5000 steps'"
        ),
    )


def share_up_to(high: float) -> Check:
    return lambda value: 0 <= value <= high, f"a number from 0 to {high:g}"


COUNT: Check = from_to(0, LARGEST_STEPS)
AT_LEAST_ONE: Check = from_to(1, LARGEST_STEPS)
_NAME: Check = (lambda value: value != "", "a name")
POSITIVE: Check = (lambda value: value > 0, "a number above 0")
_NOT_NEGATIVE: Check = (lambda value: value >= 0, "a number of at least 0")
_FRACTION: Check = (lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      name: dotted, such as "schedule.warmup".
      default: its type is the field's; a dictionary is a group's options.
      help: what it is, for the documentation.
      check: whether a value of the right type is possible, and what is expected; None takes any.
      may_change: whether a resumed run may change it: then it does not reach the parameters. So may
        `duration`, but only under the "step" schedule, whose rates don't depend on the end; the
        polynomial and the cosine end where the run ends, so it would bend their past.
    """

    name: str
    default: Any
    help: str
    check: Check | None = None
    may_change: bool = False


# Every field of a config, in the order of config.json. Durations are strings: "60 epochs",
# "0.5 epochs", "2400000 steps".
# fmt: off
FIELDS = (
    Field("task", "classification", "What is trained: a registered task."),
    Field("seed", 0,
          "Of the initial parameters, the order of the examples, crops, flips and dropout.",
          (lambda value: 0 <= value < 2**31, "a whole number of at least 0 and below 2^31")),
    Field("init_seed", -1, "Of the initial parameters alone; -1 is `seed`.",
          (lambda value: -1 <= value < 2**31,
           "-1 for `seed`, or a whole number of at least 0 and below 2^31")),
    Field("dtype", "float32",
          "Of the computation; parameters and statistics are float32, or float64 under it.",
          one_of(DTYPES)),
    Field("deterministic", False,
          "The same bits in every run on a GPU too, at some cost in speed; a CPU is always so."),
    Field("model.name", "googlenet_bn", 'A name of list_models(); "" is init_from\'s network.'),
    Field("model.options", {},
          'Of that model, as create_model takes them: {"width": 0.5, "stem": "small"}.'),
    Field("init_from", "",
          'Weights to begin with: whatever `gj.load` opens; "" initialises them. What has another '
          "shape, such as a head of other classes, is initialised."),
    Field("freeze", (),
          'Parts that stay as they are, patterns over the parameter tree: ("conv*", "inception_3*"); '
          '"all_but=2" is all but the last two modules and the heads.'),
    Field("freeze_statistics", True,
          "Whether their batch norms keep and use their running statistics too."),

    Field("data.name", "imagenet2012",
          'A TFDS classification set, "digits", "huggingface:NAME_OR_FOLDER" or "tar:PATTERN".',
          _NAME),
    Field("data.dir", "",
          'Where prepared data sets lie, gs://BUCKET/FOLDER too; "" is TFDS\'s own place.',
          may_change=True),
    Field("data.train_split", "train", 'Slices too: "train[:90%]".', _NAME),
    Field("data.eval_splits", ("validation",), "The first decides which checkpoint is the best.",
          (lambda splits: len(splits) > 0 and all(splits),
           "at least one split, such as ('test',)")),
    Field("data.sampling", "shuffle",
          '"shuffle", or "balanced": every class as often as another, by seed and step.',
          one_of(SAMPLINGS)),
    Field("data.per_class", 0,
          "So many examples a class of the training split, drawn by subset_seed; 0 is all.",
          COUNT),
    Field("data.fold", "",
          'All of the training split but a fold, drawn likewise ("2/5": the second of five), which '
          'is evaluated first, as the split "fold".'),
    Field("data.subset_seed", 0, "Draws per_class and fold.", COUNT),
    Field("data.threads", 16,
          "Threads that decode and crop images; not used where there are workers.",
          from_to(1, MOST_THREADS), may_change=True),
    Field("data.workers", 0, "Processes that decode and crop images; 0 is none.",
          from_to(0, MOST_THREADS), may_change=True),
    Field("data.exact_decoding", True,
          "Whether training decodes every image whole. False is faster: JPEGs at half their size "
          "where the crop allows it, colours upsampled plainly. Evaluation is always exact."),
    Field("data.on_bad_image", "error",
          'What becomes of an image that can\'t be read: "error", or "skip", an example of weight 0.',
          one_of(POLICIES), may_change=True),
    Field("data.bad_image_limit", 100, "So many are skipped at most.",
          COUNT, may_change=True),

    Field("preprocessing.size", 224,
          "Height and width of the network's input, in pixels; 0 takes all preprocessing from "
          "init_from."),
    Field("preprocessing.resize", 256,
          "Short side before the centre crop of an evaluation, in pixels."),
    Field("preprocessing.mean", (123.675, 116.28, 103.53),
          "By channel in channel_order, or one for all; in the images' units, 0–255 for uint8."),
    Field("preprocessing.std", (58.395, 57.12, 57.375), "Likewise."),
    Field("preprocessing.channel_order", "rgb",
          'What the network sees: "rgb", or "bgr" as Caffe\'s.'),
    Field("preprocessing.crop", "center", "Of an evaluation, as `Preprocessing` names it."),
    Field("preprocessing.interpolation", "auto",
          "Of an evaluation's resizing, as `Preprocessing` names it."),

    Field("augment.size", 0,
          "Height and width of the images to train on; 0 is preprocessing.size. Smaller is faster "
          "(arXiv 1906.06423).", from_to(0, LARGEST)),
    Field("augment.area", (0.08, 1.0),
          "Smallest and largest share of the image's area that a random crop takes."),
    Field("augment.aspect", (3 / 4, 4 / 3), "Smallest and largest width ÷ height of a random crop."),
    Field("augment.interpolation", "auto",
          'What scales the crop: "auto" (averages areas where it shrinks), "bilinear", "area", '
          '"nearest", "bicubic", "bilinear_antialiased", or "random": of the paper\'s four, the four '
          "in the middle.", one_of((*INTERPOLATIONS, "random"))),
    Field("augment.flip", True, "Mirror half of the images."),
    Field("augment.brightness", 0.0,
          "An image's brightness is multiplied by 1 − x to 1 + x; in random order with the next three.",
          share_up_to(1)),
    Field("augment.contrast", 0.0, "Likewise its contrast.", share_up_to(1)),
    Field("augment.saturation", 0.0, "Likewise its saturation.", share_up_to(1)),
    Field("augment.hue", 0.0, "Its hue is turned by −x to x of the circle.", share_up_to(0.5)),
    Field("augment.lighting", 0.0,
          "Standard deviation of AlexNet's lighting noise, in those of ImageNet's colours; AlexNet's "
          "0.1.", _NOT_NEGATIVE),
    Field("augment.transforms", (),
          "Registered ones, on the device after the flip, in this order."),
    Field("augment.options", {}, 'Of these transforms, by name: {"invert": {"share": 0.3}}.'),
    Field("augment.mixup", 0.0,
          "α of MixUp's Beta distribution (arXiv 1710.09412: 0.1–0.4 on ImageNet).", _NOT_NEGATIVE),
    Field("augment.cutmix", 0.0,
          "α of CutMix's (arXiv 1905.04899: 1); with both, a fair coin a batch.", _NOT_NEGATIVE),

    Field("batch_size", 256, "Of a training step, over all devices.", AT_LEAST_ONE),
    Field("eval_batch_size", 256, "Of an evaluation, over all devices.",
          AT_LEAST_ONE, may_change=True),
    Field("duration", "90 epochs", "Of the whole run.", duration_of(1)),
    Field("eval_every", "1 epoch", "From one evaluation to the next.", duration_of(1),
          may_change=True),
    Field("checkpoint_every", "1 epoch", "From one checkpoint to the next.", duration_of(1),
          may_change=True),
    Field("log_every", "100 steps", "From one training line to the next.", duration_of(1),
          may_change=True),

    Field("optimizer.name", "sgd",
          '"sgd" as PyTorch\'s, "rmsprop" as TensorFlow\'s, "adamw", "lamb", "lion", "muon", or a '
          "registered one."),
    Field("optimizer.options", {}, 'As Optax names them: {"b2": 0.95}.'),
    Field("optimizer.momentum", 0.9, "Of sgd and rmsprop.", _FRACTION),
    Field("optimizer.nesterov", False, "Nesterov's momentum."),
    Field("optimizer.weight_decay", 1e-4,
          "Of the kernels of convolutions and linear layers only; L2 in sgd and rmsprop, otherwise "
          "decoupled.", _NOT_NEGATIVE),
    Field("optimizer.bias_rate_multiplier", 1.0,
          "On the update of the biases of convolutions and linear layers; Caffe's is 2.", POSITIVE),
    Field("optimizer.rate_multipliers", (),
          'On the update of what a pattern names, "PATTERN=FACTOR" each: ("head=10",).'),
    Field("optimizer.clip_norm", 0.0, "Largest norm of all gradients together; 0 is no clipping.",
          _NOT_NEGATIVE),

    Field("schedule.name", "cosine",
          '"step", "polynomial", "cosine", "cosine_restarts", "constant", or a registered one.'),
    Field("schedule.options", {}, 'Of that schedule: {"restarts": 3}.'),
    Field("schedule.learning_rate", 0.1, "The highest.", POSITIVE),
    Field("schedule.warmup", "0 epochs",
          "Of a linear rise to the highest rate, before the schedule proper.", duration_of(0)),
    Field("schedule.factor", 0.96, "step: the rate is multiplied by this each `every`.",
          (lambda value: 0 < value <= 1, "a number above 0 and at most 1")),
    Field("schedule.every", "8 epochs", "step: from one multiplication to the next.", duration_of(1)),
    Field("schedule.power", 0.5, "polynomial: rate × (1 − progress) ^ power.", POSITIVE),

    Field("loss.name", "cross_entropy", "Or a registered loss."),
    Field("loss.options", {}, "Of a registered loss: its further arguments."),
    Field("loss.aux_weight", 0.3, "Of each auxiliary head's cross entropy.", _NOT_NEGATIVE),
    Field("loss.label_smoothing", 0.0,
          "Share of a target that is spread evenly over all classes.", _FRACTION),
    Field("metrics", ("top1", "top5"), "In all lines, besides the losses; registered ones too."),
    Field("skip_not_finite", 0,
          "A step whose loss or gradients are not finite stops the run, or with a number here is "
          "left out, until there are more than so many.",
          COUNT, may_change=True),

    # How a step is laid out on the devices; what may change does so to rounding, as another number
    # of devices does.
    Field("devices.accumulate", 1,
          "Parts of a batch computed one after the other; batch norm sees one at a time.",
          AT_LEAST_ONE),
    Field("devices.rematerialize", False,
          "Compute anew in the backward pass what lies within Inception modules: less memory, more "
          "time.", may_change=True),
    Field("devices.mesh", "",
          'The mesh\'s axes and lengths, such as "data=4,model=2"; "" is "data" with all devices. '
          'Batches are split over "data".', may_change=True),
    Field("devices.shard", (),
          'What is split over an axis, "PATTERN=AXIS" each: ("*/kernel=model",), or ("*=data",), '
          "FSDP.", may_change=True),
    Field("devices.shard_optimizer", False, "Split the optimizer's arrays over the devices.",
          may_change=True),

    Field("ema.decay", 0.0,
          "Polyak averaging of parameters and batch statistics: the share of the average that a step "
          "keeps, less in the first steps; 0 is no averaging.", _FRACTION),
    Field("ema.start", "0 epochs", "Until then the average is a copy of the parameters.",
          duration_of(0)),

    Field("checkpoint.keep", 3, "So many of the last ones, besides the best.",
          AT_LEAST_ONE, may_change=True),
    Field("checkpoint.best", "top1",
          'What decides which is the best, on the first evaluation split: "loss" or one of '
          "`metrics`."),
    Field("checkpoint.best_mode", "max",
          'Whether the highest value is the best or the lowest, "min".', one_of(("max", "min"))),

    Field("callbacks.names", (), 'Registered callbacks, such as ("early_stopping",).'),
    Field("callbacks.options", {},
          'Their options by name: {"early_stopping": {"metric": "top1", "patience": 3}}.'),
    Field("writers.names", (), 'Further writers of the lines, "wandb", "mlflow" or registered ones.',
          may_change=True),
    Field("writers.options", {}, "Their options by name; a resumed run may change them."),
)
# fmt: on
_CHECKS = {field.name: field.check for field in FIELDS if field.check}
MAY_CHANGE = frozenset(field.name for field in FIELDS if field.may_change)


def default_config() -> ConfigDict:
    """Returns a config with every field there is: see `FIELDS`.

    The fields are not type-checked as they are set: `resolve` names every wrong one.
    """
    tree = unflatten_dict({tuple(field.name.split(".")): field.default for field in FIELDS})
    return ConfigDict(tree, type_safe=False)


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
        with naming(name):
            counted[name] = steps((config[group] if group else config)[field], epoch)
    total, warmup = counted["duration"], counted["schedule.warmup"]
    if warmup >= total:
        raise UserError(
            f"schedule.warmup: {config.schedule.warmup!r} is {warmup} steps, expected fewer than"
            f" the run's {total}"
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
    with naming("task"):
        kind = TASKS[given.get("task", "classification")]
    config = kind.defaults()
    defaults = _fields(config.to_dict())
    for name in given.keys() - defaults.keys():
        raise UserError(f"{name}: a config has no such field{nearest(name, defaults)}")
    for name, default in defaults.items():
        value = given.get(name, default)
        _check_type(name, value, default)
        _check_value(name, value, _CHECKS.get(name))
    config.update_from_flattened_dict({name: _as_config(value) for name, value in given.items()})
    initial = functools.cache(lambda: read_initial(config))
    complete_from_initial(config, initial, kept)
    _check_together(config)
    # The optimizer and the schedule check their own options, here for some length; the run's is
    # known with the data.
    fields = config.to_dict()
    optimizer: Any = functools.partial(create_optimizer, **fields["optimizer"])
    optimizer(lambda step: step)
    del fields["schedule"]["warmup"], fields["schedule"]["every"]  # which may be in epochs
    create_schedule(total_steps=1000, **fields["schedule"])

    def schedule(when: Durations) -> optax.Schedule:
        durations: dict[str, Any] = {"warmup": when.warmup, "every": when.decay_every}
        return create_schedule(total_steps=when.total, **durations, **fields["schedule"])

    return Resolved(config, kind, kind.build(config), optimizer, schedule, initial)


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


def check_fields(config: ConfigDict, fields: Iterable[Field]) -> None:
    """Raises UserError for the first field whose value is not possible."""
    given = _fields(config.to_dict())
    for field in fields:
        _check_value(field.name, given[field.name], field.check)


def _check_value(name: str, value: Any, check: Check | None) -> None:
    if check is None:
        return
    is_possible, expected = check
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
            f"schedule.warmup: expected less than duration, {config.duration!r}, found"
            f" {config.schedule.warmup!r}"
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
    passed = MAY_CHANGE
    if before.get("schedule.name") == after.get("schedule.name") == "step":
        passed |= {"duration"}
    absent = object()
    changed = []
    for name in sorted(before.keys() | after.keys()):
        if name in passed or name.startswith("writers.options."):
            continue
        a, b = (
            list(value) if isinstance(value, tuple) else value
            for value in (before.get(name, absent), after.get(name, absent))
        )
        if a != b:
            changed.append(
                f"{name}: {'not set' if a is absent else repr(a)} →"
                f" {'not set' if b is absent else repr(b)}"
            )
    return changed
