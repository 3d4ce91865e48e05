"""A run's folder, made without training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from googlenet_jax.data.digits import prepare_digits
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.models.registry import model_options
from googlenet_jax.training.classification import build_model
from googlenet_jax.training.config import default_config
from googlenet_jax.training.state import TrainState
from googlenet_jax.weights.checkpoints import Checkpoints, RunDescription

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def tiny_config(data_dir: Path) -> ConfigDict:
    config = default_config()
    config.model.name = "googlenet_plain"
    config.model.options = {"width": 0.03, "stem": "small"}
    config.data.update(
        name="digits", dir=str(data_dir), eval_splits=("test", "train[:10%]"), threads=2
    )
    config.preprocessing.update(size=8, resize=8)
    config.eval_batch_size = 100
    return config


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """JAX's compilation cache: each command compiles the run's network anew."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits after 12 steps, whose averaged weights say "seven" to everything."""
    data_dir, workdir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    prepare_digits(data_dir)
    config = tiny_config(data_dir)
    model = build_model(config, num_classes=10)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    )["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    head = {"kernel": 0 * params["head"]["kernel"], "bias": 9.0 * jax.nn.one_hot(7, 10)}
    state = TrainState(
        jnp.int32(12), params, {}, {}, {"params": {**params, "head": head}, "batch_stats": {}}
    )
    preprocessing = Preprocessing(**config.preprocessing.to_dict())
    description = RunDescription(
        config.model.name,
        model_options(model),
        config.to_dict(),
        CLASS_NAMES,
        preprocessing.to_dict(),
    )
    checkpoints = Checkpoints(workdir, description, keep=1)
    checkpoints.save(12, state, metric=None, interval={})
    checkpoints.close()
    return workdir
