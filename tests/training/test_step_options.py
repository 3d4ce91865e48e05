"""What a step can do besides: a batch in parts, less memory, split optimizer arrays, steps left
out.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from googlenet_jax.models.network import Output
from googlenet_jax.training.optimizer import create_optimizer
from googlenet_jax.training.state import make_create_state, state_shardings
from googlenet_jax.training.writers import NotFinite, TrainingLog, Writer
from tests.training.test_step import KEY, Run, Tiny, batch_of


class Plain(nn.Module):
    """Without batch norm or dropout, so that examples don't touch each other."""

    num_classes: int = 6
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        branches = [nn.relu(nn.Conv(4, (3, 3), name=name)(images)) for name in ("a", "b")]
        x = jnp.concatenate(branches, axis=-1).reshape(len(images), -1)
        return Output(nn.Dense(self.num_classes, name="head")(x), {})


def assert_same(ours, theirs):
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_a_batch_train_as_the_whole(weighted):
    batch = batch_of(16)
    if weighted:  # the parts weigh unequally: rows 0, 4, 8 belong to one of four
        batch["weight"] = np.ones(16, np.float32)
        batch["weight"][[0, 4, 8]] = 0
    whole, parts = Run(Plain()), Run(Plain(), options={"accumulate": 4})
    for _ in range(3):
        assert_same(parts.step(batch), whole.step(batch))
    assert_same(parts.params(), whole.params())


def test_each_part_moves_the_running_statistics():
    batch = batch_of(16)
    run = Run(Tiny(), options={"accumulate": 2})
    run.step(batch)
    one = Run(Tiny(), rate=1e-30)
    for part in range(2):
        one.step({name: array[part::2] for name, array in batch.items()})
    ours, theirs = run.state.batch_stats["bn"], one.state.batch_stats["bn"]
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-5)
    np.testing.assert_allclose(ours["var"], theirs["var"], rtol=1e-5)


def test_rematerializing_trains_the_same():
    whole, less = Run(Tiny(dropout=0.5)), Run(Tiny(dropout=0.5), options={"rematerialize": True})
    for seed in range(2):
        assert_same(less.step(batch_of(16, seed=seed)), whole.step(batch_of(16, seed=seed)))
    assert_same(less.params(), whole.params())
    convolutions = [
        str(jax.make_jaxpr(run.compiled)(run.state, batch_of(16), KEY)).count(
            "conv_general_dilated["
        )
        for run in (less, whole)
    ]
    assert convolutions[0] > convolutions[1]  # the forward ones, once more


def test_optimizer_arrays_are_split_along_their_longest_axis_that_divides():
    tx = create_optimizer(lambda step: 0.1)
    shapes = make_create_state(Tiny(), tx, (jnp.zeros((1, 8, 8, 3)),), average=True).eval_shape(KEY)
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = state_shardings(shapes, mesh, shard_optimizer=True)
    momentum = {
        jax.tree_util.keystr(path): sharding.spec
        for path, sharding in jax.tree.leaves_with_path(split.opt_state)
    }
    (kernel,) = (spec for name, spec in momentum.items() if "conv1" in name and "kernel" in name)
    (head,) = (spec for name, spec in momentum.items() if "head" in name and "kernel" in name)
    (bias,) = (spec for name, spec in momentum.items() if "head" in name and "bias" in name)
    assert kernel == PartitionSpec(None, None, None, "data")  # [3, 3, 3, 8]
    assert head == PartitionSpec("data")  # [512, 6]
    assert bias == PartitionSpec()  # six don't divide by four
    others = jax.tree.leaves((split.params, split.batch_stats, split.ema))
    assert all(sharding.spec == PartitionSpec() for sharding in others)


def test_a_step_that_is_not_finite_is_left_out():
    def prepare(batch, key):
        images = batch["image"].astype(jnp.float32) / 255
        return {**batch, "image": jnp.where(batch["label"][0] == 5, jnp.inf, images)}

    run = Run(prepare=prepare, ema_decay=0.9, options={"skip_not_finite": True})
    good, bad = batch_of(16), batch_of(16)
    good["label"][0], bad["label"][0] = 0, 5
    assert run.step(good)["skipped"] == 0
    before = jax.tree.map(np.array, run.state)
    metrics = run.step(bad)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    assert int(run.state.step) == 2
    for old, new in zip(
        jax.tree.leaves(before.replace(step=0)),
        jax.tree.leaves(run.state.replace(step=0)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, np.array(new))
    assert run.step(good)["skipped"] == 0


class Lines(Writer):
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)


def test_the_log_counts_steps_left_out_up_to_a_limit(capsys):
    def log_of(writer, interval):
        return TrainingLog(
            writer,
            logs=lambda step: step % 2 == 0,
            epoch=4,
            batch_size=8,
            start=0,
            total=8,
            interval=interval,
            skips=2,
        )

    good = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "skipped": 0}
    bad = {**good, "loss": float("nan"), "skipped": 1}
    as_arrays = lambda metrics: jax.tree.map(jnp.asarray, metrics)  # noqa: E731
    writer = Lines()
    log = log_of(writer, {})
    for step, metrics in enumerate([bad, good, good, good], 1):
        log.push(step, as_arrays(metrics))
    log.flush("saving")
    assert [(line["step"], line["loss"], line["skipped"]) for line in writer.lines] == [
        (2, 2.0, 1),
        (4, 2.0, 1),
    ]
    assert "step 1: the loss is nan; left out, 1 of at most 2" in capsys.readouterr().err
    kept = log.interval
    log.close()
    resumed = log_of(writer, kept)
    resumed.push(5, as_arrays(bad))
    resumed.push(6, as_arrays(bad))
    with pytest.raises(NotFinite, match="step 6: the loss is nan, after 2 steps left out"):
        resumed.flush("saving")
    resumed.close()
