"""Every config in configs/: valid, and one step of it at its smallest trains."""

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.sharding import create_mesh, shard_batch
from googlenet_jax.training.classification import make_task
from googlenet_jax.training.config import in_steps, resolve
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.state import make_create_state
from googlenet_jax.training.step import make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
ENSEMBLE = tuple(f"ensemble{number}" for number in range(7))
ARGUMENTS = {name: ("", "tune") for name in ("cifar10", "cifar10_fast")}
ARGUMENTS |= {"imagenet_googlenet": ("", *ENSEMBLE), "imagenet_googlenet_bn": ("", "lars", "lamb")}
ARGUMENTS |= {name: ("", "multibox") for name in ("detection_digits", "detection_voc")}
CASES = [(path, arg) for path in CONFIGS for arg in ARGUMENTS.get(path.stem, ("",))]


def get_config(path, arg=""):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {
        "digits",
        "cifar10",
        "imagenet_googlenet",
        "imagenet_googlenet_bn",
    }


@pytest.mark.parametrize(("path", "arg"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_config_is_valid(path, arg):
    resolve(get_config(path, arg))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_holds_command_hardware_and_result(path):
    text = path.read_text()
    for part in (
        f"python train.py --config=configs/{path.name} --workdir=runs/{path.stem}",
        "Hardware:",
        "Result:",
    ):
        assert part in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_unknown_argument_is_named(path):
    with pytest.raises(UserError, match=f"{path.name}.*'tine'"):
        get_config(path, "tine")


@pytest.mark.parametrize("name", ["cifar10", "cifar10_fast"])
def test_tuning_never_sees_the_test_set(name):
    data = get_config(next(path for path in CONFIGS if path.stem == name), "tune").data
    assert (data.train_split, data.eval_splits) == ("train[:45000]", ("train[45000:]",))


def test_seven_models_share_initialization_and_rates_and_one_is_wider():
    path = next(path for path in CONFIGS if path.stem == "imagenet_googlenet")
    configs = [get_config(path, arg).to_dict() for arg in ENSEMBLE]
    assert len({config["seed"] for config in configs}) == 7
    assert {config["init_seed"] for config in configs} == {0}
    assert (
        len({(config["augment"]["area"], config["augment"]["aspect"]) for config in configs}) >= 6
    )
    assert [config["model"]["options"].get("width", 1) for config in configs] == [1] * 6 + [1.25]
    for config in configs:
        assert config["schedule"] == configs[0]["schedule"] == get_config(path).schedule.to_dict()
        for name in ("seed", "augment", "model"):
            config.pop(name)
    assert all(config == configs[0] for config in configs)


class TenClasses(list):
    """A data set of which nothing is read."""

    num_classes, class_names = 10, tuple("0123456789")

    def __len__(self):
        return 10_000


# Each takes half a minute to compile; the others run with `pytest -m exhaustive`.
ALWAYS = ("imagenet_googlenet",)


@pytest.mark.proof
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.exhaustive] * (path.stem not in ALWAYS))
        for path in CONFIGS
        if get_config(path).task == "classification"
    ],
)
def test_one_step_at_the_smallest_size(path):
    config = get_config(path)
    config.model.options.width = 0.05
    resolved = resolve(config)
    config, mesh, source = resolved.config, create_mesh(), TenClasses()
    size = max(resolved.parts.model.min_size, 8)
    small = dataclasses.replace(resolved.parts.preprocessing, size=size, resize=size)
    parts = dataclasses.replace(resolved.parts, preprocessing=small)
    task = make_task(dataclasses.replace(resolved, parts=parts), mesh, source, [])
    when = in_steps(config, len(source))

    schedule = create_schedule(
        config.schedule.name, config.schedule.learning_rate, when.total, warmup=when.warmup
    )
    tx = create_optimizer(schedule, **config.optimizer.to_dict())
    state = make_create_state(
        task.model, tx, task.inputs(task.example), average=config.ema.decay > 0
    )(jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, size, size, 3), dtype=np.uint8),
        "label": np.arange(4, dtype=np.int32),
    }
    batch, key = shard_batch(batch, mesh), jax.random.key(1)
    train_step: Any = make_train_step(
        task, tx, schedule, mesh, ema_decay=config.ema.decay, ema_start=when.ema_start
    )
    # One step is not worth optimised code, which takes twice as long to compile.
    compiled = train_step.lower(state, batch, key).compile(
        compiler_options={"xla_backend_optimization_level": 0}
    )
    state, metrics = compiled(state, batch, key)

    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics.keys() >= {"loss", "loss_main", "top1", "top5", "learning_rate", "grad_norm"}
    assert np.any(before["head"]["kernel"] != state.params["head"]["kernel"])
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize("examples", [1, 8, 150, 10_000])
def test_fine_tuning_scales_with_the_number_of_images(examples):
    module_path = next(path for path in CONFIGS if path.stem == "finetune_folder")
    spec = importlib.util.spec_from_file_location(module_path.stem, module_path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    module.scale(config, examples)
    when = in_steps(config, examples)
    assert when.total >= max(300, 20 * examples // config.batch_size)
    assert config.batch_size in (8, 16, 32)
    assert config.batch_size == 32 or config.batch_size >= examples // 4
    # The average is over the last steps alone, in which the cosine's rate is under a hundredth.
    window = 1 / (1 - config.ema.decay)
    assert window <= 0.06 * when.total
