import inspect

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
from googlenet_jax.training.optimizer import (
    OPTIMIZERS,
    create_optimizer,
    create_schedule,
    is_kernel,
    is_layer_bias,
)

SHAPES = {
    "conv1.kernel": (3, 3, 2, 4),
    "conv1.bn.scale": (4,),
    "conv1.bn.bias": (4,),
    "head.kernel": (4, 3),
    "head.bias": (3,),
}


@pytest.mark.parametrize("nesterov", [False, True])
def test_ten_steps_are_pytorchs(nesterov):
    """Parameters and momenta, in float64, through two changes of the rate; biases at twice the
    rate, kernels alone decay.
    """
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(10)
    ]

    schedule = create_schedule("step", 0.1, 10, factor=0.5, every=4)
    tx = create_optimizer(
        schedule, momentum=0.9, nesterov=nesterov, weight_decay=0.01, bias_rate_multiplier=2.0
    )
    params, opt_state = train_optax(tx, start, gradients)
    momenta = flatten(optax.tree_utils.tree_get(opt_state, "trace"))
    expected, expected_momenta = train_torch(nesterov, start, gradients)
    for name in SHAPES:
        for ours, theirs in (
            (params[name], expected[name]),
            (momenta[name], expected_momenta[name]),
        ):
            assert np.linalg.norm(ours - theirs) <= 1e-14 * np.linalg.norm(theirs)


def flatten(tree):
    return {
        name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(tree, sep=".").items()
    }


def train_optax(tx, start, gradients):
    """The parameters, flat, and Optax's state after a step with each of the gradients, in float64."""

    def nest(flat):
        return flax.traverse_util.unflatten_dict(
            {k: jnp.asarray(v) for k, v in flat.items()}, sep="."
        )

    with jax.enable_x64(True):
        params = nest(start)
        opt_state = tx.init(params)
        for gradient in gradients:
            updates, opt_state = tx.update(nest(gradient), opt_state, params)
            params = optax.apply_updates(params, updates)
        return flatten(params), opt_state


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
    """Each is a kernel, a layer's bias or batch norm's: none escapes decay or the biases' rate by
    its name.
    """
    model = create_model(name, num_classes=10)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    for path, param in flax.traverse_util.flatten_dict(variables["params"]).items():
        assert is_kernel(path) == (param.ndim > 1)
        assert is_layer_bias(path) == (param.ndim == 1 and "bn" not in path)


def test_step_schedule_falls_at_exact_steps():
    schedule = create_schedule("step", 0.01, 10_000_000, factor=0.96, every=320_000)
    for step, power in (
        (0, 0),
        (319_999, 0),
        (320_000, 1),
        (639_999, 1),
        (640_000, 2),
        (9_919_999, 30),
        (9_920_000, 31),
    ):
        np.testing.assert_allclose(
            jax.jit(schedule)(jnp.int32(step)), 0.01 * 0.96**power, rtol=1e-6
        )


def test_polynomial_schedule_is_caffes():
    schedule = create_schedule("polynomial", 0.01, 2_400_000, power=0.5)
    for step in (0, 1, 600_000, 2_399_999, 2_400_000):
        np.testing.assert_allclose(
            schedule(jnp.int32(step)), 0.01 * (1 - step / 2_400_000) ** 0.5, rtol=1e-6, atol=1e-8
        )


def test_cosine_after_a_linear_warmup():
    schedule = create_schedule("cosine", 0.4, 120, warmup=20)
    rates = jax.vmap(schedule)(jnp.arange(121))
    np.testing.assert_allclose(rates[:21], 0.4 * np.arange(1, 22) / 21, rtol=1e-6)
    np.testing.assert_allclose(
        rates[20:], 0.2 * (1 + np.cos(np.pi * np.arange(101) / 100)), atol=1e-7
    )


def test_warmup_shifts_the_steps():
    schedule = create_schedule("step", 1.0, 8, factor=0.5, every=3, warmup=1)
    np.testing.assert_allclose(
        jax.vmap(schedule)(jnp.arange(8)), [0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    )


def random_problem(steps=5):
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return start, [
        {name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)
    ]


def test_rmsprop_is_tensorflows():
    """By TensorFlow 1's formulas: the mean square begins at one, epsilon is under the root, the
    buffer holds the rate.
    """
    start, gradients = random_problem()
    rate, decay, eps, momentum = 0.045, 0.9, 1.0, 0.8
    options = {"decay": decay, "eps": eps}
    tx = create_optimizer(
        lambda step: rate,
        "rmsprop",
        momentum=momentum,
        weight_decay=0.01,
        bias_rate_multiplier=2.0,
        options=options,
    )
    params, _ = train_optax(tx, start, gradients)
    for name, value in start.items():
        square, buffer = np.ones_like(value), np.zeros_like(value)
        for gradient in gradients:
            d = gradient[name] + (0.01 * value if name.endswith("kernel") else 0)
            square = decay * square + (1 - decay) * d**2
            buffer = momentum * buffer + rate * d / np.sqrt(square + eps)
            value = value - buffer * (2 if name == "head.bias" else 1)
        np.testing.assert_allclose(params[name], value, rtol=1e-13)


def test_adamw_is_pytorchs_with_decay_on_kernels_alone():
    start, gradients = random_problem()
    tx = create_optimizer(lambda step: 0.1, "adamw", weight_decay=0.01, options={"b2": 0.95})
    params, _ = train_optax(tx, start, gradients)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [value], "weight_decay": 0.01 if name.endswith("kernel") else 0.0}
        for name, value in theirs.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=1e-8)
    for gradient in gradients:
        for name, value in theirs.items():
            value.grad = torch.tensor(gradient[name])
        adamw.step()
    for name, value in theirs.items():
        np.testing.assert_allclose(params[name], value.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion"])
def test_decay_reaches_kernels_alone_and_the_multiplier_biases_alone(name):
    start, gradients = random_problem(1)

    def after(**fields):
        return train_optax(create_optimizer(lambda step: 0.1, name, **fields), start, gradients)[0]

    plain = after(weight_decay=0.0)
    decayed, multiplied = after(weight_decay=0.1), after(weight_decay=0.0, bias_rate_multiplier=3.0)
    for path in SHAPES:
        assert np.any(decayed[path] != plain[path]) == path.endswith("kernel"), path
        factor = 3 if path == "head.bias" else 1
        np.testing.assert_allclose(
            multiplied[path] - start[path], factor * (plain[path] - start[path]), rtol=1e-12
        )


def test_an_optimizer_that_knows_no_decay_gets_it_decoupled():
    """p −= rate · (update + weight_decay · p), at the rate of each step."""
    OPTIMIZERS.register("sign", optax.sign_sgd)
    start, gradients = random_problem(2)
    params, _ = train_optax(
        create_optimizer(lambda step: 0.1 / (step + 1), "sign", weight_decay=0.2), start, gradients
    )
    for name, value in start.items():
        decay = 0.2 if name.endswith("kernel") else 0.0
        for rate, gradient in zip((0.1, 0.05), gradients, strict=True):
            value = value - rate * (np.sign(gradient[name]) + decay * value)
        np.testing.assert_allclose(params[name], value, rtol=1e-12)


def test_gradients_are_clipped_by_their_norm_together():
    start, (gradient,) = random_problem(1)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    params, _ = train_optax(
        create_optimizer(lambda step: 1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.5),
        start,
        [gradient],
    )
    for name, value in start.items():
        np.testing.assert_allclose(params[name], value - gradient[name] * 0.5 / norm, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "fields", "error"),
    [
        ("adam", {}, r"^optimizer.name: expected one of .*'adamw'"),
        (
            "adamw",
            {"momentum": 0.8},
            r"^optimizer.momentum: optimizer 'adamw' has no use for it.*found 0.8",
        ),
        ("rmsprop", {"nesterov": True}, r"^optimizer.nesterov: optimizer 'rmsprop' has no use"),
        (
            "adamw",
            {"options": {"beta2": 0.9}},
            r"^optimizer.options.beta2: .* no such option.*b1, b2",
        ),
        (
            "sgd",
            {"options": {"momentum": 0.9}},
            r"^optimizer.options.momentum: set optimizer.momentum instead",
        ),
        ("sgd", {"options": {"b1": 0.9}}, r"^optimizer.options.b1: .*its options are none"),
        (
            "adamw",
            {"options": {"learning_rate": 0.9}},
            r"^optimizer.options.learning_rate: .*no such option",
        ),
        ("adamw", {"options": {"b1": 1}}, r"^optimizer.options: adamw's b1: .* found 1"),
        ("rmsprop", {"options": {"decay": -0.5}}, r"rmsprop's decay: .* found -0.5"),
        ("lamb", {"options": {"eps": -1e-8}}, r"lamb's eps: expected a number of at least 0"),
        ("adamw", {"options": {"b1": "high"}}, r"^optimizer.options: adamw can't take"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused_by_name(name, fields, error):
    with pytest.raises(UserError, match=error):
        create_optimizer(lambda step: 0.1, name, **fields)


def test_the_fields_defaults_are_the_configs():
    group = default_config().optimizer.to_dict()
    parameters = inspect.signature(create_optimizer).parameters
    for name in (
        "name",
        "momentum",
        "nesterov",
        "weight_decay",
        "bias_rate_multiplier",
        "clip_norm",
    ):
        assert group[name] == parameters[name].default
