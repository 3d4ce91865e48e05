import json

import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.training.classification import build_model
from googlenet_jax.training.config import (
    changed_fields,
    default_config,
    in_steps,
    period,
    resolve,
    steps,
)
from googlenet_jax.training.loop import is_due

DEFAULTS = default_config().to_dict()


def changed(**fields):
    """The default config with some fields changed; "__" stands for the dot."""
    config = default_config()
    for name, value in fields.items():
        *groups, field = name.split("__")
        group = config
        for key in groups:
            group = group[key]
        setattr(group, field, value)
    return config


def test_default_config_is_valid():
    resolve(default_config())


def test_whole_numbers_count_as_numbers_and_lists_as_tuples():
    resolve(
        changed(
            optimizer__momentum=0,
            schedule__power=1,
            augment__area=[0.5, 1],
            data__eval_splits=["a", "b"],
        )
    )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"bacth_size": 8}, r"^bacth_size: .*did you mean 'batch_size'"),
        ({"learning_rate": 0.1}, r"^learning_rate: .*did you mean 'schedule.learning_rate'"),
        ({"optimizer__momentun": 0.9}, r"^optimizer.momentun: .*did you mean 'optimizer.momentum'"),
        ({"model": "googlenet"}, r"^model: .*did you mean 'model.name'"),
        ({"batch_size": "32"}, r"^batch_size: expected a whole number .*found '32'"),
        ({"batch_size": True}, r"^batch_size: expected a whole number .*found True"),
        ({"batch_size": 32.0}, r"^batch_size: expected a whole number .*found 32.0"),
        ({"batch_size": 0}, r"^batch_size: .*from 1 to .*, found 0"),
        ({"eval_batch_size": -1}, r"^eval_batch_size: "),
        ({"deterministic": 1}, r"^deterministic: expected True or False"),
        ({"seed": -1}, r"^seed: "),
        ({"dtype": "float16"}, r"^dtype: expected one of .*found 'float16' \(did you mean 'bfloat16'\?\)"),
        ({"duration": 60}, r"^duration: expected a string such as '90 epochs'"),
        ({"duration": "sixty epochs"}, r"^duration: .*'60 epochs'.*found 'sixty epochs'"),
        ({"duration": "0 epochs"}, r"^duration: expected a duration above zero"),
        ({"eval_every": "1.5 steps"}, r"^eval_every: "),
        ({"log_every": "-1 steps"}, r"^log_every: "),
        ({"augment__area": (1.0, 0.08)}, r"^augment.area: .*ascending"),
        ({"augment__area": (0.08, 1.1)}, r"^augment.area: "),
        ({"augment__area": (0.08, "1")}, r"^augment.area: each item"),
        ({"augment__aspect": (0, 1)}, r"^augment.aspect: "),
        ({"data__eval_splits": ()}, r"^data.eval_splits: "),
        ({"data__eval_splits": "test"}, r"^data.eval_splits: expected a tuple"),
        ({"preprocessing__std": (1, 0, 1)}, r"^preprocessing.std: "),
        ({"preprocessing__mean": (1, 1)}, r"^preprocessing.mean: "),
        ({"preprocessing__channel_order": "gbr"}, r"^preprocessing.channel_order: "),
        ({"preprocessing__resize": 200}, r"^preprocessing.resize: "),
        ({"model__name": "googlenet", "preprocessing__size": 16}, r"^preprocessing.size: googlenet: .*at least \d+ high and wide"),
        ({"optimizer__momentum": 1.0}, r"^optimizer.momentum: .*below 1, found 1.0"),
        ({"optimizer__weight_decay": -1e-4}, r"^optimizer.weight_decay: "),
        ({"optimizer__nesterov": True, "optimizer__momentum": 0}, r"^optimizer.nesterov: "),
        ({"schedule__learning_rate": -0.1}, r"^schedule.learning_rate: "),
        ({"schedule__learning_rate": float("nan")}, r"^schedule.learning_rate: "),
        ({"schedule__name": "cosin"}, r"^schedule.name: .*found 'cosin' \(did you mean 'cosine'\?\)"),
        ({"schedule__factor": 1.5}, r"^schedule.factor: "),
        ({"schedule__warmup": "90 epochs"}, r"^schedule.warmup: "),
        ({"loss__label_smoothing": 1.0}, r"^loss.label_smoothing: "),
        ({"ema__decay": 1.0}, r"^ema.decay: "),
        ({"checkpoint__keep": 0}, r"^checkpoint.keep: "),
        ({"model__name": "googlenet_b"}, r"^model: .*did you mean 'googlenet_bn'"),
        ({"model__options": {"widht": 0.5}}, r"^model: .*did you mean 'width'"),
        ({"model__options": {"width": -1}}, r"^model: .*width"),
        ({"model__options": {"bn_groups": 3}, "batch_size": 8}, r"^batch_size: .*multiple of model.options.bn_groups, 3, found 8"),
        ({"duration": "3000000000 steps"}, r"^duration: .*at most 2,147,483,647 steps"),
        ({"duration": "1" + "0" * 400 + " epochs"}, r"^duration: .*at most 2,147,483,647 steps"),
        ({"log_every": "3000000000 steps"}, r"^log_every: .*at most 2,147,483,647 steps"),
        ({"data__threads": 10**23}, r"^data.threads: expected a whole number from 1 to 4,096"),
        ({"data__workers": 10**23}, r"^data.workers: expected a whole number from 0 to 4,096"),
        ({"augment__size": 10**23}, r"^augment.size: "),
        ({"eval_batch_size": 10**23}, r"^eval_batch_size: "),
        ({"eval_batch_size": 2**30}, r"^eval_batch_size: .* the host has"),
        ({"optimizer__name": "adamw", "optimizer__options": {"b2": 5}}, r"^optimizer.options: adamw's b2: .*below 1, found 5"),
        ({"task": "segmentation"}, r"^task: expected one of .*'classification'.*, found 'segmentation'"),
        ({"optimizer__name": "adamv"}, r"^optimizer.name: .*did you mean 'adamw'"),
        ({"optimizer__name": "lion", "optimizer__momentum": 0.5}, r"^optimizer.momentum: .*has no use for it"),
        ({"optimizer__clip_norm": -1}, r"^optimizer.clip_norm: "),
        ({"optimizer__options": {"b1": 0.9}}, r"^optimizer.options.b1: "),
        ({"loss__name": "focall"}, r"^loss.name: expected one of .*'cross_entropy'"),
        ({"loss__options": {"gamma": 2}}, r"^loss.options.gamma: loss 'cross_entropy' has no such option"),
        ({"metrics": ("top1", "top6")}, r"^metrics: .*found 'top6' \(did you mean 'top5'\?\)"),
        ({"checkpoint__best": "top6"}, r"^checkpoint.best: expected one of 'loss', 'top1', 'top5', found 'top6'"),
        ({"checkpoint__best_mode": "least"}, r"^checkpoint.best_mode: "),
        ({"augment__mixup": -1}, r"^augment.mixup: "),
        ({"augment__transforms": ("blur",)}, r"^augment.transforms: .*found 'blur'"),
        ({"augment__transforms": (1,)}, r"^augment.transforms: each item should be a string"),
        ({"model__options": {"num_classes": 10}}, r"^model.options.num_classes: "),
    ],
)  # fmt: skip
def test_error_names_the_field(fields, error):
    with pytest.raises(UserError, match=error) as caught:
        resolve(changed(**fields))
    assert "\n" not in str(caught.value)


def test_a_field_that_an_older_config_lacks_has_its_default():
    old = json.loads(json.dumps(default_config().to_dict()))
    del (
        old["task"],
        old["metrics"],
        old["optimizer"]["name"],
        old["checkpoint"]["best"],
        old["augment"]["mixup"],
    )
    config = resolve(old).config
    assert json.loads(json.dumps(config.to_dict())) == json.loads(
        json.dumps(default_config().to_dict())
    )
    assert changed_fields(old, config.to_dict(), DEFAULTS) == []


def test_what_is_resolved_is_a_copy():
    given = changed(model__options={"width": 0.5})
    config = resolve(given).config
    assert config.model.options.width == 0.5
    config.model.options.width = 1.0
    config.batch_size = 7
    assert (given.model.options.width, given.batch_size) == (0.5, 256)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("60 epochs", 600),
        ("1 epoch", 10),
        ("0.5 epochs", 5),
        ("0.001 epochs", 1),
        ("2400000 steps", 2_400_000),
        ("1 step", 1),
        ("0 steps", 0),
    ],
)
def test_durations_in_steps(duration, expected):
    assert steps(duration, steps_per_epoch=10) == expected


def test_part_of_a_step_is_rounded():
    assert steps("3 epochs", steps_per_epoch=1437 / 64) == 67


@pytest.mark.parametrize(
    "duration",
    ["", "10", "epochs", "1.5 steps", "ten epochs", "1 epochs ", "1e3 steps", "nan epochs"],
)
def test_duration_that_does_not_parse(duration):
    with pytest.raises(UserError, match="expected a duration"):
        steps(duration, steps_per_epoch=10)


def test_built_model_has_the_configs_types():
    model = build_model(changed(dtype="bfloat16", model__options={"width": 0.5}), num_classes=7)
    assert (model.num_classes, model.width, model.dtype, model.param_dtype) == (
        7,
        0.5,
        "bfloat16",
        "float32",
    )


def test_json_changes_nothing():
    config = default_config().to_dict()
    assert changed_fields(json.loads(json.dumps(config)), config, DEFAULTS) == []


def test_changes_are_listed_by_name():
    old, new = (
        changed(model__options={"width": 0.5}).to_dict(),
        changed(batch_size=64, augment__area=(0.5, 1.0)).to_dict(),
    )
    assert changed_fields(old, new, DEFAULTS) == [
        "augment.area: [0.08, 1.0] → [0.5, 1.0]",
        "batch_size: 256 → 64",
        "model.options.width: 0.5 → not set",
    ]


def test_what_never_reaches_the_parameters_may_change():
    new = changed(
        log_every="1 step",
        eval_every="9 steps",
        checkpoint_every="2 steps",
        eval_batch_size=7,
        data__dir="x",
        data__threads=1,
    )
    assert changed_fields(DEFAULTS, new.to_dict(), DEFAULTS) == []


def test_duration_may_change_only_where_the_schedule_does_not_depend_on_it():
    for schedule, refused in (
        ("step", []),
        ("cosine", ["duration: '90 epochs' → '9 epochs'"]),
        ("polynomial", ["duration: '90 epochs' → '9 epochs'"]),
    ):
        old, new = (
            changed(schedule__name=schedule),
            changed(schedule__name=schedule, duration="9 epochs"),
        )
        assert changed_fields(old.to_dict(), new.to_dict(), DEFAULTS) == refused


def test_each_multiple_of_a_duration_is_counted_by_itself():
    """1,437 examples by 64 are 22.45 steps an epoch: two epochs end where every second single one
    ends, and the run with the last.
    """
    every = {"eval_every": "1 epoch", "checkpoint_every": "2 epochs", "log_every": "100 steps"}
    when = in_steps(changed(batch_size=64, duration="10 epochs", **every), 1437)
    evaluations = [step for step in range(when.total + 1) if is_due(when.eval_every, step)]
    assert evaluations == [22, 45, 67, 90, 112, 135, 157, 180, 202, 225] and when.total == 225
    assert [
        step for step in range(when.total + 1) if is_due(when.checkpoint_every, step)
    ] == evaluations[1::2]
    assert [step for step in range(when.total + 1) if is_due(when.log_every, step)] == [100, 200]


def test_a_period_is_a_step_at_least():
    assert (
        period("0.001 epochs", 10) == 1.0
        and all(is_due(1.0, step) for step in range(1, 5))
        and not is_due(1.0, 0)
    )


@pytest.mark.parametrize("field", ["duration", "schedule.every", "ema.start"])
def test_durations_of_more_steps_than_can_be_counted_are_named(field):
    config = default_config()
    config.update_from_flattened_dict({field: "3000000 epochs"})
    with pytest.raises(UserError, match=rf"^{field}: expected at most 2,147,483,647 steps"):
        in_steps(config, 1_281_167)


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(
        UserError, match=r"^schedule.warmup: '20 steps' is 20 steps, .*the run's 20"
    ):
        in_steps(changed(duration="2 epochs", batch_size=10, schedule__warmup="20 steps"), 100)
