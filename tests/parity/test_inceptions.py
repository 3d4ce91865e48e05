"""BN-Inception, Inception-v2 and -v3 beside their PyTorch references in float64, flavour by
flavour.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import googlenet_jax as gj
from tests.parity.harness import (
    TOLERANCE,
    endpoint_errors,
    images,
    make_pair,
    relative_error,
    training_errors,
)

NARROW = {"width": 0.125, "num_classes": 7}
WITHOUT_AUX = {"aux_heads": False}
# Through this many batch norms rounding grows tenfold with a step at the rate of the other
# networks' proof (1e-4), until after ten steps nothing is left to compare; at this one it stays.
# `proofs/parity_inception.py` goes to the configs' rates, with a control.
RATE = {"schedule.learning_rate": 1e-6}


def further(*case: Any) -> Any:
    """A case of `pytest -m exhaustive` alone."""
    return pytest.param(*case, marks=pytest.mark.exhaustive)


def check(errors: dict[str, float]) -> None:
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


# 299; 224 and 139 without the auxiliary head; the smallest. Odd maps tell ceil, SAME and VALID
# apart, and the averages' borders are part of every map.
@pytest.mark.proof
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        further("bn_inception", 224, {}),
        ("bn_inception", 97, {"lrn": True, "pool_proj_4c": 96}),
        further("bn_inception", 224, {"flavour": "port"}),
        ("bn_inception", 31, {"flavour": "port"}),
        ("bn_inception", 139, {"flavour": "slim"}),
        ("inception_v3", 299, {"transform_input": True}),
        further("inception_v3", 224, WITHOUT_AUX),
        further("inception_v3", 75, WITHOUT_AUX),
        further("inception_v3", 299, {"flavour": "slim"}),
        ("inception_v3", 139, {"flavour": "keras"}),
        ("inception_v3", 139, {"flavour": "fid"}),
        further("inception_v2", 299, {}),
        further("inception_v2", 139, {"stem": "dense", **WITHOUT_AUX}),
        ("inception_v2", 75, WITHOUT_AUX),
    ],
)
def test_every_endpoint_equals_pytorchs(name: str, size: int, options: dict) -> None:
    errors = endpoint_errors(name, size, **NARROW, **options)
    assert len(errors) > 80
    check(errors)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        further("bn_inception", 64, {"flavour": "port"}),
        ("bn_inception", 64, {"flavour": "slim", "loss.label_smoothing": 0.1}),
        further("inception_v2", 75, WITHOUT_AUX),
        further("inception_v3", 75, WITHOUT_AUX),
        further("inception_v3", 75, {"flavour": "keras"}),  # below with RMSProp
    ],
)
def test_ten_steps_equal_pytorchs(name: str, size: int, options: dict) -> None:
    check(zero_gradients_apart(training_errors(name, size, width=0.125, **RATE, **options)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["inception_v2", "inception_v3"])
def test_steps_with_the_auxiliary_head_equal_pytorchs(name: str) -> None:
    errors = training_errors(name, 299, batch_size=4, steps=2, width=0.0625, **RATE)
    assert "loss_aux1 step 1" in errors
    check(errors)


def zero_gradients_apart(errors: dict[str, float]) -> dict[str, float]:
    """Without what is zero by mathematics and so rounding alone: a bias under batch norm, which the
    port's convolutions have.
    """
    return {name: error for name, error in errors.items() if not _under_batch_norm(name)}


def _under_batch_norm(name: str) -> bool:
    kind, _, parameter = name.partition(" ")
    layer = parameter.removesuffix(".bias")
    return (
        kind in ("gradient", "momentum")
        and layer != parameter
        and "_bn" not in layer
        and layer.startswith(("conv", "inception_"))
    )


@pytest.mark.exhaustive
def test_a_bias_under_batch_norm_has_no_gradient() -> None:
    """Held to 1e-12 of its kernel's gradient norm: batch norm subtracts what a bias adds."""
    _, model, variables = make_pair("bn_inception", flavour="port", **NARROW)
    batch = jnp.asarray(images(64, 6) / 64.0 - 1.5)

    def loss(params):
        output, _ = model.apply(
            {**variables, "params": params}, batch, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(output.logits, jnp.arange(6)).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for module in ("inception_3a", "inception_4e", "inception_5b"):
        for unit in gradient[module].values():
            assert np.linalg.norm(unit["bias"]) <= 1e-12 * np.linalg.norm(unit["kernel"])


class TensorFlowsRMSProp:
    """RMSProp as TensorFlow 1 computes it, written out: the accumulator starts at one, epsilon
    stands inside the root, the momentum buffer holds the rate."""

    def __init__(
        self, network: torch.nn.Module, decay: float, epsilon: float, momentum: float
    ) -> None:
        self.parameters, self.settings = list(network.parameters()), (decay, epsilon, momentum)
        self.square = [torch.ones_like(p) for p in self.parameters]
        self.buffer = [torch.zeros_like(p) for p in self.parameters]

    def step(self, rate: float) -> None:
        decay, epsilon, momentum = self.settings
        with torch.no_grad():
            for parameter, square, buffer in zip(
                self.parameters, self.square, self.buffer, strict=True
            ):
                square.copy_(decay * square + (1 - decay) * parameter.grad**2)
                buffer.copy_(
                    momentum * buffer + rate * parameter.grad / torch.sqrt(square + epsilon)
                )
                parameter.sub_(buffer)


@pytest.mark.proof
def test_ten_rmsprop_steps_equal_tensorflows() -> None:
    """The project's own optimizer, clipped to a global norm as the config of Inception-v3 does."""
    from googlenet_jax.training.optimizer import create_optimizer

    network, model, variables = make_pair("inception_v3", flavour="keras", **NARROW)
    rate, clip = 1e-3, 2.0
    options = {"decay": 0.9, "eps": 1.0}
    optimizer = create_optimizer(
        lambda step: rate,
        "rmsprop",
        momentum=0.9,
        weight_decay=0.0,
        clip_norm=clip,
        options=options,
    )
    theirs = TensorFlowsRMSProp(network.train(), 0.9, 1.0, 0.9)

    @jax.jit
    def step(params, statistics, state, batch, labels):
        def loss(params):
            output, updated = model.apply(
                {"params": params, "batch_stats": statistics},
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(
                output.logits, labels
            ).mean(), updated["batch_stats"]

        gradient, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), statistics, state

    params, statistics = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    for i in range(10):
        batch, labels = np.roll(images(75, 12), i, 0) / 64.0 - 1.5, (np.arange(12) * 5 + i) % 7
        params, statistics, state = step(
            params, statistics, state, jnp.asarray(batch), jnp.asarray(labels)
        )
        network.zero_grad()
        logits = network(torch.from_numpy(batch).permute(0, 3, 1, 2))["logits"]
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters()))
        for parameter in network.parameters():  # PyTorch's own adds 1e-6 to the norm
            parameter.grad *= min(1.0, clip / float(norm))
        theirs.step(rate)
    ours = gj.weights.to_torch(
        model, jax.tree.map(np.asarray, {"params": params, "batch_stats": statistics})
    )
    expected = {
        name: value.numpy()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    check({name: relative_error(ours[name], value) for name, value in expected.items()})


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3"])
def test_state_dicts_come_back_as_they_went(name: str) -> None:
    options = {"flavour": "port"} if name == "bn_inception" else {}
    network, model, variables = make_pair(name, width=0.05, num_classes=3, **options)
    back = gj.weights.to_torch(model, variables)
    assert list(back) == list(network.state_dict())
    network.load_state_dict(
        {key: torch.from_numpy(np.array(value)) for key, value in back.items()}, strict=True
    )
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(back[key], value.numpy())
