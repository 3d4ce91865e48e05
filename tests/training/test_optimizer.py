import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import create_model
from googlenet_jax.training.config import default_config
from googlenet_jax.training.optimizer import create_optimizer, create_schedule, is_kernel, is_layer_bias

SHAPES = {"conv1.kernel": (3, 3, 2, 4), "conv1.bn.scale": (4,), "conv1.bn.bias": (4,), "head.kernel": (4, 3), "head.bias": (3,)}


def recipe(**schedule):
    config = default_config()
    config.schedule.update(schedule)
    return config


@pytest.mark.parametrize("nesterov", [False, True])
def test_ten_steps_are_pytorchs(nesterov):
    """Parameters and momenta, in float64, through two changes of the rate; biases at twice the rate, kernels alone decay."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(10)]

    config = recipe(name="step", learning_rate=0.1, factor=0.5, every="4 steps")
    config.optimizer.update({"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01, "bias_rate_multiplier": 2.0})
    params, momenta = train_optax(config, start, gradients)
    expected, expected_momenta = train_torch(nesterov, start, gradients)
    for name in SHAPES:
        for ours, theirs in ((params[name], expected[name]), (momenta[name], expected_momenta[name])):
            assert np.linalg.norm(ours - theirs) <= 1e-14 * np.linalg.norm(theirs)


def train_optax(config, start, gradients):
    with jax.enable_x64(True):
        nest = lambda flat: flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep=".")  # noqa: E731
        params = nest(start)
        tx, _ = create_optimizer(config, steps_per_epoch=5, total_steps=10)
        opt_state = tx.init(params)
        for gradient in gradients:
            updates, opt_state = tx.update(nest(gradient), opt_state, params)
            params = optax.apply_updates(params, updates)
        momenta = optax.tree_utils.tree_get(opt_state, "trace")
        return (jax.tree.map(np.asarray, flax.traverse_util.flatten_dict(tree, sep=".")) for tree in (params, momenta))


def train_torch(nesterov, start, gradients):
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [params["conv1.kernel"], params["head.kernel"]], "weight_decay": 0.01},
        {"params": [params["conv1.bn.scale"], params["conv1.bn.bias"]]},
        {"params": [params["head.bias"]], "lr": 0.2},
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.StepLR(sgd, step_size=4, gamma=0.5)
    for gradient in gradients:
        for name, param in params.items():
            param.grad = torch.tensor(gradient[name])
        sgd.step()
        scheduler.step()
    momenta = {name: sgd.state[param]["momentum_buffer"].numpy() for name, param in params.items()}
    return {name: param.detach().numpy() for name, param in params.items()}, momenta


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_every_parameter_of_a_network_is_of_one_kind(name):
    """Each is a kernel, a layer's bias or batch norm's: none escapes decay or the biases' rate by its name."""
    model = create_model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    for path, param in flax.traverse_util.flatten_dict(variables["params"]).items():
        assert is_kernel(path) == (param.ndim > 1)
        assert is_layer_bias(path) == (param.ndim == 1 and "bn" not in path)


def test_step_schedule_falls_at_exact_steps():
    schedule = create_schedule(
        recipe(name="step", learning_rate=0.01, factor=0.96, every="8 epochs"), steps_per_epoch=40_000, total_steps=10_000_000
    )
    for step, power in ((0, 0), (319_999, 0), (320_000, 1), (639_999, 1), (640_000, 2), (9_919_999, 30), (9_920_000, 31)):
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), 0.01 * 0.96**power, rtol=1e-6)


def test_polynomial_schedule_is_caffes():
    schedule = create_schedule(recipe(name="polynomial", learning_rate=0.01, power=0.5), steps_per_epoch=100, total_steps=2_400_000)
    for step in (0, 1, 600_000, 2_399_999, 2_400_000):
        np.testing.assert_allclose(schedule(jnp.int32(step)), 0.01 * (1 - step / 2_400_000) ** 0.5, rtol=1e-6, atol=1e-8)


def test_cosine_after_a_linear_warmup():
    schedule = create_schedule(recipe(name="cosine", learning_rate=0.4, warmup="2 epochs"), steps_per_epoch=10, total_steps=120)
    rates = jax.vmap(schedule)(jnp.arange(121))
    np.testing.assert_allclose(rates[:21], 0.4 * np.arange(1, 22) / 21, rtol=1e-6)
    np.testing.assert_allclose(rates[20:], 0.2 * (1 + np.cos(np.pi * np.arange(101) / 100)), atol=1e-7)


def test_warmup_shifts_the_steps():
    schedule = create_schedule(
        recipe(name="step", learning_rate=1.0, factor=0.5, every="3 steps", warmup="1 step"), steps_per_epoch=10, total_steps=8
    )
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(8)), [0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.25])


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(UserError, match=r"^schedule.warmup: '20 steps' is 20 steps, .*the run's 20"):
        create_schedule(recipe(warmup="20 steps"), steps_per_epoch=10, total_steps=20)
