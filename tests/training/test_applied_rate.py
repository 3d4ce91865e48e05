"""The rate that is logged is the one that the optimizer applies."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.training import loop, optimizer
from googlenet_jax.training.applied_rate import applied_rate, follows_schedule
from googlenet_jax.training.config import resolve
from googlenet_jax.training.optimizer import OWN, create_optimizer
from googlenet_jax.training.rate_finder import find_learning_rate
from googlenet_jax.training.writers import read_metrics
from tests.training.tiny_run import tiny_config


def ignoring(learning_rate):
    return optax.sgd(0.1)


def at_its_first(learning_rate):
    return optax.sgd(learning_rate(0))


def at_its_first_as_a_number(learning_rate):
    return optax.sgd(float(learning_rate(0)))


def half_as_fast(learning_rate):
    return optax.sgd(lambda step: learning_rate(step // 2))


def later(learning_rate):
    return optax.sgd(lambda step: learning_rate(step - 1))


def for_decay_alone(learning_rate, weight_decay=0.0):
    return optax.chain(
        optax.add_decayed_weights(lambda step: weight_decay * learning_rate(step)), optax.sgd(0.1)
    )


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(optimizer.OPTIMIZERS, "_things", dict(optimizer.OPTIMIZERS._things))
    return optimizer.register_optimizer


@pytest.mark.parametrize("name", sorted(OWN))
def test_ours_follow_their_schedules(name):
    assert follows_schedule(functools.partial(create_optimizer, name=name, weight_decay=0.0))


@pytest.mark.parametrize(
    ("factory", "follows"),
    [
        (optax.adadelta, True),
        (optax.contrib.prodigy, True),
        (optax.contrib.schedule_free_sgd, True),
        (lambda learning_rate: optax.inject_hyperparams(optax.sgd)(learning_rate), True),
        (lambda learning_rate: optax.chain(optax.scale(0.0), optax.sgd(learning_rate)), False),
        (ignoring, False),
        (at_its_first, False),
        (at_its_first_as_a_number, False),
        (half_as_fast, False),
        (later, False),
        (for_decay_alone, False),
    ],
)
def test_whether_an_optimizer_follows_its_schedule(factory, follows):
    assert follows_schedule(lambda schedule: factory(learning_rate=schedule)) is follows


def test_an_optimizers_own_factor_is_part_of_the_rate():
    params = {"kernel": jnp.ones((2, 2))}
    made = optax.contrib.prodigy(lambda step: 2.0 - step, estim_lr0=1e-3)
    state, applied = made.init(params), []
    for step in range(2):
        applied.append(float(applied_rate(lambda step: 2.0 - step, step, state)))
        updates, state = made.update(params, state, params)
        # Adam's first step is its rate, in each parameter.
        if step == 0:
            np.testing.assert_allclose(-updates["kernel"], applied[0], rtol=1e-4)
        params = optax.apply_updates(params, updates)
    assert applied[0] == pytest.approx(2e-3) and applied[1] > 0


def test_steps_left_out_do_not_count():
    made = optax.adam(lambda step: 1.0 / (1 + step))
    state = made.init({"kernel": jnp.ones(2)})
    assert float(applied_rate(lambda step: 1.0 / (1 + step), jnp.int32(5), state)) == 1.0


@pytest.mark.proof
def test_a_run_says_what_it_does_not_know(tmp_path, data_dir, registered, capfd):
    registered("ignoring", ignoring)
    config = tiny_config(data_dir)
    config.optimizer.name, config.optimizer.momentum = "ignoring", 0.9
    config.data.update(train_split="train[:100]", eval_splits=("test[:20]",))
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "2 steps"
    config.schedule.warmup = "0 steps"
    loop.train(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines and not any("learning_rate" in line for line in lines)
    said = "optimizer.name: ignoring does not take each step's rate from the schedule"
    assert capfd.readouterr().err.count(said) == 1
    with pytest.raises(UserError, match=r"optimizer\.name: ignoring applies no schedule's rate"):
        find_learning_rate(config, steps=2)


def test_what_can_not_be_an_optimizer_is_refused_by_name(registered):
    registered("rateless", lambda: optax.sgd(0.1))
    registered("momo", optax.contrib.momo)
    for name, said in {
        "rateless": "rateless takes no learning_rate",
        "momo": "momo fails: .*'value'",
    }.items():
        with pytest.raises(UserError, match=rf"optimizer\.name: {said}"):
            resolve({"optimizer": {"name": name}, "model": {"name": "googlenet_bn"}})
