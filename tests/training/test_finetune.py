"""Runs that begin with given weights: what is taken, what stays frozen, what learns faster."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import googlenet_jax as gj
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.layers import ConvUnit, Norm
from googlenet_jax.models.network import Network, Output
from googlenet_jax.models.registry import register_model
from googlenet_jax.training.config import resolve
from googlenet_jax.training.loop import train
from googlenet_jax.training.patterns import (
    check_patterns,
    expanded,
    matches,
    parse_multipliers,
    scale_by_pattern,
)
from googlenet_jax.weights.safetensors import load_weights
from tests.training.tiny_run import tiny_config


class Trunk(Network):
    """Two convolution units with batch norm, and a classifier."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, **_: Any) -> Output:
        unit = partial(ConvUnit, 4, (3, 3), norm=Norm(), use_bias=False, padding="same")
        x = unit(name="conv1")(images, not train)
        x = unit(name="conv2")(x, not train)
        return Output(nn.Dense(self.num_classes, name="head")(x.mean((1, 2))), {})


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of five classes, with statistics unlike those of a fresh network."""
    register_model("trunk", Trunk)
    model = gj.create_model("trunk", num_classes=5)
    variables = model.init(jax.random.key(7), jnp.zeros((1, 8, 8, 3)), train=False)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.03), variables)
    path = tmp_path_factory.mktemp("weights") / "given.safetensors"
    gj.save_weights(path, model, variables, Preprocessing(size=8, resize=8).to_dict())
    return path


def make_config(data_dir: Path, given: Path, **fields: Any) -> ConfigDict:
    """Six steps on the ten digits."""
    config = tiny_config(data_dir)
    config.model.name = "trunk"
    config.init_from = str(given)
    config.duration, config.eval_every, config.checkpoint_every = "6 steps", "6 steps", "6 steps"
    config.data.eval_splits = ("test[:50]",)
    config.update(**fields)
    return config


def variables_of(workdir: Path, weights: str) -> dict[str, np.ndarray]:
    return {
        k: np.asarray(v)
        for k, v in flatten_dict(gj.load(f"{workdir}@{weights}").variables, sep="/").items()
    }


@pytest.mark.parametrize("statistics", [True, False])
def test_what_is_frozen_stays_bit_for_bit(
    statistics: bool, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(
        make_config(tmp_path / "d", given, freeze=("conv1",), freeze_statistics=statistics),
        tmp_path / "run",
    )
    before = {k: np.asarray(v) for k, v in flatten_dict(load_weights(given)[1], sep="/").items()}
    for weights in ("raw", "ema"):
        after = variables_of(tmp_path / "run", weights)
        for path in before.keys() - {"params/head/kernel", "params/head/bias"}:
            frozen = path.startswith("params/conv1/") or ("stats/conv1" in path and statistics)
            same = before[path].tobytes() == after[path].tobytes()
            assert same == frozen, (weights, path)
        assert after["params/head/kernel"].shape == (4, 10)
    said = capsys.readouterr().err
    assert "loaded (10): conv1, conv2" in said
    assert "new (2): head" in said
    assert "skipped (2): head" in said
    assert "preprocessing.mean: they were trained with [123.675" in said


def test_frozen_batch_norms_normalize_with_their_running_statistics(given: Path) -> None:
    from googlenet_jax.training.patterns import Frozen

    model, variables = load_weights(given)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)) * 3

    def logits(frozen: Frozen, train: bool) -> jax.Array:
        with frozen.running_statistics():
            return model.apply(variables, images, train=train, mutable=["batch_stats"])[0].logits

    inference = logits(Frozen(), train=False)
    assert jnp.array_equal(logits(Frozen(("conv*",)), train=True), inference)
    assert not jnp.allclose(logits(Frozen(("conv1",)), train=True), inference)
    assert not jnp.allclose(logits(Frozen(("conv*",), statistics=False), train=True), inference)


def test_weights_of_another_network_are_refused(given: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "d", given)
    config.model.name = "googlenet_bn"
    config.model.options = ConfigDict(
        {"width": 0.05, "stem": "small", "aux_heads": False}, type_safe=False
    )
    with pytest.raises(
        UserError, match=r"of this network.s .* have their names and shapes in .*Trunk"
    ):
        train(config, tmp_path / "run")


def test_a_frozen_part_that_would_stay_random_is_refused(given: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"freeze: 'head' would keep head/.* at random"):
        train(make_config(tmp_path / "d", given, freeze=("head",)), tmp_path / "run")


def test_the_config_takes_network_and_preprocessing_from_the_weights(
    given: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "d", given)
    config.model.name, config.preprocessing.size = "", 0
    found = resolve(config).config
    assert (found.model.name, found.preprocessing.size, found.preprocessing.resize) == (
        "trunk",
        8,
        8,
    )
    config.init_from = "inception_v3_keras"  # public weights are not downloaded for it
    found = resolve(config).config
    assert (found.model.name, found.model.options.flavour) == ("inception_v3", "keras")
    assert tuple(found.preprocessing.mean) == (127.5,) * 3 and found.preprocessing.crop == "squash"
    config.init_from = ""
    with pytest.raises(UserError, match=r"model\.name: not set"):
        resolve(config)


def test_all_but_the_last_modules_are_frozen() -> None:
    params = dict.fromkeys(
        ("aux1", "conv1", "head", "inception_4e", "inception_5a", "inception_5b")
    )
    assert expanded(("all_but=2", "head"), params) == ("conv1", "inception_4e", "head")
    for wrong in ("all_but=0", "all_but=4", "all_but=x"):
        with pytest.raises(UserError, match="freeze: expected all_but=N"):
            expanded((wrong,), params)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init_from": "googlenet_torchvison"}, "did you mean 'googlenet_torchvision'"),
        (
            {"freeze": ("conv3",)},
            r"freeze: 'conv3' names no part of the network \(did you mean 'conv",
        ),
        ({"freeze": ("*",)}, "nothing would learn"),
        ({"optimizer": {"rate_multipliers": ("head",)}}, "expected PATTERN=FACTOR"),
        (
            {"optimizer": {"rate_multipliers": ("haed=2",)}},
            "rate_multipliers: 'haed' names no part",
        ),
    ],
)
def test_impossible_fields_are_named(
    fields: dict[str, Any], says: str, given: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        train(make_config(tmp_path / "d", given, **fields), tmp_path / "run")


def test_patterns() -> None:
    path = ("inception_3a", "conv_1x1", "kernel")
    for pattern in (
        "inception_3a",
        "inception_3*",
        "inception_3a/conv_1x1",
        "*/kernel",
        "*conv_1x1",
    ):
        assert matches(pattern, path)
    for pattern in ("inception_3", "conv_1x1", "inception_3b", "kernel", "Inception_3a"):
        assert not matches(pattern, path)
    check_patterns(
        "freeze", ["conv1"], {"conv1": {"kernel": 0}, "head": {"kernel": 0}}, must_leave=True
    )


def test_rates_by_pattern() -> None:
    factors = parse_multipliers(("head=10", "*/bias=0.5"))
    assert factors == {"head": 10.0, "*/bias": 0.5}
    params = {
        "conv1": {"kernel": jnp.ones(2)},
        "head": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
    }
    tx = optax.chain(optax.sgd(0.1), scale_by_pattern(factors))
    updates, _ = tx.update(params, tx.init(params), params)
    found = {path: float(leaf[0]) for path, leaf in flatten_dict(updates, sep="/").items()}
    assert found == pytest.approx({"conv1/kernel": -0.1, "head/kernel": -1.0, "head/bias": -0.5})
