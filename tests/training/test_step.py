"""The steps on a small network; run as a script, this file trains on every device there is and
writes the parameters to the path given.
"""

import functools
import itertools
import os
import subprocess
import sys
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from googlenet_jax.data.augment import apply_transforms, device_transforms
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.evaluate import make_eval_step
from googlenet_jax.evaluation.metrics import METRICS, cross_entropy
from googlenet_jax.models.layers import BatchNorm, max_pool
from googlenet_jax.models.network import Output
from googlenet_jax.runtime.sharding import create_mesh, replicate, shard_batch
from googlenet_jax.training.losses import create_loss
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from googlenet_jax.training.state import TrainState, eval_variables, make_create_state
from googlenet_jax.training.step import average_decay, make_train_step
from googlenet_jax.training.task import Task

PREPROCESSING = Preprocessing(size=8, resize=8)
KEY = jax.random.key(7)


class Tiny(nn.Module):
    """A network in miniature, of the project's layers: convolution, batch norm, pool, dropout, an
    auxiliary head.

    `images` matter by position, so flips show.
    """

    num_classes: int = 6
    dropout: float = 0.0
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(8, (3, 3), dtype=self.dtype, name="conv1")(images)
        x = BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="bn")(x, not train, relu=True)
        x = max_pool(x, 3, 1, 1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        aux = (
            {"aux1": nn.Dense(self.num_classes, name="aux1")(x)}
            if train or self.is_initializing()
            else {}
        )
        return Output(nn.Dense(self.num_classes, name="head")(x), aux)


def batch_of(examples, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (examples, 8, 8, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, classes, examples).astype(np.int32)}


class Run:
    """A model, its state and its compiled step, as classification trains it."""

    def __init__(
        self,
        model=None,
        mesh=None,
        *,
        rate=0.01,
        ema_decay=0.0,
        ema_start=0,
        prepare=None,
        options=None,
        **augment,
    ):
        self.model, self.mesh = model or Tiny(), mesh or create_mesh()
        classes = self.model.num_classes
        transforms = device_transforms(
            PREPROCESSING, dtype=self.model.dtype, num_classes=classes, **augment
        )
        images = jnp.zeros((1, 8, 8, 3), self.model.dtype)
        task = Task(
            model=self.model,
            inputs=lambda batch: (batch["image"],),
            example={"image": images},
            examples=1000,
            batches=lambda start: iter(()),
            prepare=prepare or functools.partial(apply_transforms, transforms),
            loss=create_loss(),
            metrics={name: METRICS[name] for name in ("top1", "top5")},
            evaluations={},
            description={},
        )
        schedule = create_schedule("step", rate, 100, every=100)
        tx = create_optimizer(schedule)
        self.state = replicate(
            make_create_state(self.model, tx, (images,), average=ema_decay > 0)(KEY), self.mesh
        )
        self.compiled = make_train_step(
            task,
            tx,
            schedule,
            self.mesh,
            ema_decay=ema_decay,
            ema_start=ema_start,
            **(options or {}),
        )

    def step(self, batch, key=KEY):
        self.state, metrics = self.compiled(self.state, shard_batch(batch, self.mesh), key)
        return {name: float(value) for name, value in metrics.items()}

    def params(self):
        return {
            name: np.array(value)
            for name, value in flatten_dict(self.state.params, sep=".").items()
        }


def test_metrics_are_those_of_the_batch_before_the_step():
    run, batch = Run(), batch_of(16)
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    images = normalize(jnp.asarray(batch["image"]), PREPROCESSING)
    output, _ = run.model.apply(variables, images, train=True, mutable=["batch_stats"])
    metrics = run.step(batch)
    assert metrics.keys() == {
        "loss",
        "loss_main",
        "loss_aux1",
        "top1",
        "top5",
        "learning_rate",
        "grad_norm",
    }
    np.testing.assert_allclose(
        metrics["loss_main"], cross_entropy(output.logits, batch["label"]).mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss_main"] + 0.3 * metrics["loss_aux1"], rtol=1e-6
    )
    assert metrics["top1"] == np.mean(output.logits.argmax(-1) == batch["label"])
    np.testing.assert_allclose(metrics["learning_rate"], 0.01)


def test_training_fits_the_batch():
    run, batch = Run(), batch_of(16)
    first, *_, last = (run.step(batch) for _ in range(30))
    assert last["loss"] < first["loss"] / 10
    assert last["top1"] == 1
    assert int(run.state.step) == 30
    assert all(
        np.any(np.array(statistic) != start)
        for statistic, start in zip(jax.tree.leaves(run.state.batch_stats), (0, 1), strict=True)
    )


def test_a_step_is_traced_once_and_another_batch_size_would_not_pass_unseen():
    # The assertion stands inside the step, since chex refuses what is jitted: a second trace would
    # be a second compilation.
    transforms = device_transforms(PREPROCESSING, dtype=jnp.float32, num_classes=6)
    run = Run(
        prepare=chex.assert_max_traces(
            lambda batch, key: apply_transforms(transforms, batch, key), n=1
        )
    )
    for seed in range(3):
        run.step(batch_of(16, seed=seed), key=jax.random.key(seed))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        run.step(batch_of(8))


def test_the_given_state_is_used_up():
    run = Run(ema_decay=0.9)
    before = run.state
    run.step(batch_of(8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_top5_is_absent_below_five_classes():
    for classes in (4, 5):
        run = Run(Tiny(num_classes=classes))
        _, metrics = run.compiled.eval_shape(run.state, batch_of(8), KEY)
        assert ("top5" in metrics) == (classes == 5)


def test_randomness_is_a_function_of_key_and_step():
    batch = batch_of(8)

    def losses(run, key):
        start = jax.tree.map(jnp.copy, run.state)
        two = [run.step(batch, key)["loss"] for _ in range(2)]
        run.state = start
        return two

    for options in (
        {"model": Tiny(dropout=0.5)},
        {"mirror": True},
        {"mixup": 0.5},
        {"cutmix": 1.0},
    ):
        run = Run(rate=1e-30, **options)
        first, second = losses(run, KEY)
        assert losses(run, KEY) == [first, second]
        assert first != second
        assert losses(run, jax.random.key(8))[0] != first
    run = Run(rate=1e-30)
    assert losses(run, KEY) == losses(run, jax.random.key(8)), (
        "without dropout and flips nothing is random"
    )


def test_bfloat16_keeps_float32_parameters_and_statistics():
    run = Run(Tiny(dtype=jnp.bfloat16), ema_decay=0.9)
    run.step(batch_of(8))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.state) if leaf.ndim} == {"float32"}


def mix(kept: float, old: Any, new: Any) -> Any:
    return kept * old + (1 - kept) * new


def test_average_of_a_short_run_is_not_of_its_random_beginning():
    shares = [float(average_decay(jnp.int32(step), 0.99, 0)) for step in range(34)]
    assert shares[0] == pytest.approx(0.1)
    assert np.prod(shares[-20:]) < 2e-3  # what is left of step 14 at the end
    assert float(average_decay(jnp.int32(10_000), 0.99, 0)) == pytest.approx(0.99)
    assert float(average_decay(jnp.int32(4), 0.99, 5)) == 0


def test_average_starts_as_a_copy_and_then_follows():
    run, batch = Run(ema_decay=0.75, ema_start=2), batch_of(8)
    history = []
    for _ in range(4):
        run.step(batch)
        history.append((eval_variables(run.state, "raw"), eval_variables(run.state, "ema")))
        history[-1] = jax.tree.map(np.array, history[-1])  # the next step uses the state up
    for raw, average in history[:2]:
        jax.tree.map(np.testing.assert_array_equal, raw, average)
    for n, ((_, before), (raw, average)) in enumerate(itertools.pairwise(history[1:])):
        kept = min(0.75, (1 + n) / (10 + n))  # TensorFlow's rule for the first steps
        expected = jax.tree.map(functools.partial(mix, kept), before, raw)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), average, expected
        )
    assert history[-1][1].keys() == {"params", "batch_stats"}


def test_average_that_is_not_kept_is_an_error():
    state = TrainState(jnp.int32(0), {}, {}, (), ema=None)
    with pytest.raises(UserError, match="'ema'"):
        eval_variables(state, "ema")
    with pytest.raises(UserError, match="'raw' or 'ema', found 'mean'"):
        eval_variables(state, "mean")


def test_evaluation_counts_examples_and_no_padding():
    run, batch = Run(), batch_of(12)
    weight = np.array([1] * 7 + [0] * 5, np.float32)
    eval_step = make_eval_step(run.model, PREPROCESSING, run.mesh)
    sums = eval_step(
        eval_variables(run.state, "raw"), shard_batch({**batch, "weight": weight}, run.mesh)
    )

    logits = run.model.apply(
        eval_variables(run.state, "raw"),
        normalize(jnp.asarray(batch["image"][:7]), PREPROCESSING),
        train=False,
    ).logits
    ranks = np.argsort(np.argsort(-logits, axis=1), axis=1)[np.arange(7), batch["label"][:7]]
    assert {name: int(value) for name, value in sums.items() if name != "loss"} == {
        "examples": 7,
        "top1": np.sum(ranks < 1),
        "top5": np.sum(ranks < 5),
    }
    np.testing.assert_allclose(
        sums["loss"], cross_entropy(logits, batch["label"][:7]).sum(), rtol=1e-6
    )


def trained_on_every_device():
    results = {}
    # How a batch lies on the devices: the rows that each holds.
    batch = shard_batch(batch_of(16), create_mesh())
    results["rows"] = np.array([shard.data.shape[0] for shard in batch["image"].addressable_shards])
    results["mesh size"] = np.array(create_mesh().size)
    for groups in (1, 2):
        run = Run(Tiny(dropout=0.5, bn_groups=groups), mirror=True, ema_decay=0.9)
        losses = [run.step(batch_of(16, seed=step))["loss"] for step in range(3)]
        arrays = {
            "losses": np.array(losses),
            **run.params(),
            "var": np.array(run.state.batch_stats["bn"]["var"]),
        }
        results |= {f"{name}, {groups} groups": array for name, array in arrays.items()}
    return results


def test_eight_devices_train_as_one(tmp_path):
    """The same dropout, flips, batch statistics and gradients; sums run in another order, hence
    float32's last digits.
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, __file__, tmp_path / "eight.npz"], env=environment, check=True)
    one, eight = trained_on_every_device(), np.load(tmp_path / "eight.npz")
    assert eight["devices"] == eight["mesh size"] == 8
    assert eight["rows"].tolist() == [2] * 8  # each device holds an eighth
    for name, expected in one.items():
        if name in ("rows", "mesh size"):
            continue
        assert np.linalg.norm(eight[name] - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-7, (
            name
        )


if __name__ == "__main__":
    np.savez(sys.argv[1], devices=jax.device_count(), **trained_on_every_device())
