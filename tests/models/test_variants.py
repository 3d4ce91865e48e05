"""Each layer gives PyTorch's values however it is run: compiled or not, on arrays of the device or
of the host.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from absl.testing import parameterized

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.models import layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 9, 9, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 6, 4)).astype(np.float32)
BIAS, MEAN = RNG.normal(size=(2, 4)).astype(np.float32)
VAR = RNG.uniform(0.5, 2, 4).astype(np.float32)
CONV, BN = (
    layers.ConvUnit(4, (3, 3), stride=2),
    layers.ConvUnit(4, (3, 3), norm=layers.Norm(epsilon=1e-3), use_bias=False),
)
NORMED = {
    "params": {"kernel": KERNEL, "bn": {"scale": np.full(4, 1.5, np.float32), "bias": BIAS}},
    "batch_stats": {"bn": {"mean": MEAN, "var": VAR}},
}


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def weight(kernel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(kernel).permute(3, 2, 0, 1)


def norm(x: torch.Tensor, train: bool) -> torch.Tensor:
    mean, var, bias = (torch.from_numpy(value.copy()) for value in (MEAN, VAR, BIAS))
    return F.relu(
        F.batch_norm(
            F.conv2d(x, weight(KERNEL), padding=1),
            mean,
            var,
            torch.full((4,), 1.5),
            bias,
            train,
            eps=1e-3,
        )
    )


def trained(x: jax.Array) -> jax.Array:
    return BN.apply(NORMED, x, False, mutable=["batch_stats"])[0]  # type: ignore[return-value]


Layer = Callable[..., Any]
CASES: tuple[tuple[str, Layer, Layer], ...] = (
    ("max_pool", layers.max_pool, lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)),
    (
        "avg_pool",
        lambda x: layers.avg_pool(x, 3, 1, 1, count_padding=True),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
    ),
    (
        "adaptive_avg_pool",
        lambda x: layers.adaptive_avg_pool(x, 4),
        lambda x: F.adaptive_avg_pool2d(x, 4),
    ),
    (
        "local_response_norm",
        lambda x: layers.local_response_norm(x, alpha=0.1),
        lambda x: F.local_response_norm(x, 5, alpha=0.1),
    ),
    (
        "conv_unit",
        lambda x: CONV.apply({"params": {"kernel": KERNEL, "bias": BIAS}}, x, True),
        lambda x: F.relu(F.conv2d(x, weight(KERNEL), torch.from_numpy(BIAS), stride=2, padding=1)),
    ),
    ("batch_norm", lambda x: BN.apply(NORMED, x, True), lambda x: norm(x, False)),
    ("batch_norm_in_training", trained, lambda x: norm(x, True)),
)


class LayersTest(chex.TestCase):
    """`all_variants` is jit, no jit, device, no device, and pmap where there is more than one
    device.
    """

    @chex.all_variants
    @parameterized.named_parameters(*CASES)
    def test_equals_pytorchs(self, ours: Layer, theirs: Layer) -> None:
        found = self.variant(ours)(jnp.asarray(X))
        np.testing.assert_allclose(
            found, theirs(nchw(X)).permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5
        )

    @chex.all_variants
    def test_dense_equals_numpys(self) -> None:
        kernel = KERNEL[0, 0]
        found = self.variant(
            lambda x: layers.Dense(4).apply({"params": {"kernel": kernel, "bias": BIAS}}, x)
        )(X[:, 0, 0])
        np.testing.assert_allclose(found, X[:, 0, 0] @ kernel + BIAS, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------- what a network is made of


def apply_small(model, images, train=False):
    variables = jax.jit(lambda key: model.init({"params": key}, images, train=False))(
        jax.random.key(0)
    )
    rngs = {"dropout": jax.random.key(1)}
    output, _ = jax.jit(
        lambda variables: model.apply(
            variables, images, train=train, rngs=rngs, mutable=["batch_stats"]
        )
    )(variables)
    return variables, output


def small(**options):
    return gj.create_model(
        "googlenet_bn", num_classes=3, width=0.05, stem="small", aux_heads=False, **options
    )


@pytest.mark.parametrize("normalization", ["group", "layer", "none"])
def test_another_norm_looks_at_no_other_image(normalization):
    model = small(normalization=normalization)
    images = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    variables, output = apply_small(model, images)
    assert "batch_stats" not in variables
    assert ("norm" in variables["params"]["conv1"]) == (normalization != "none")
    assert 0.03 < float(output.features.std()) < 30  # neither faded nor grown, without a norm too
    alone = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images[:1])
    np.testing.assert_allclose(alone.logits, output.logits[:1], rtol=2e-5, atol=1e-5)
    with pytest.raises(UserError, match="fold_batch_norm: expected a network with batch norms"):
        gj.fold_batch_norm(model, variables)


def test_another_activation_follows_every_unit():
    from googlenet_jax.models.endpoints import endpoints

    images = jax.random.normal(jax.random.key(2), (1, 16, 16, 3))
    model = small(activation="gelu")
    variables, _ = apply_small(model, images)
    found = endpoints(model, variables, images, names=("conv1",))["conv1"]
    rectified = endpoints(small(), variables, images, names=("conv1",))["conv1"]
    assert float(found.min()) < 0 <= float(rectified.min())
    np.testing.assert_allclose(
        jnp.where(rectified > 3, found, 0), jnp.where(rectified > 3, rectified, 0), rtol=1e-2
    )
    with pytest.raises(UserError, match="activation"):
        small(activation="swosh")


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels(channels):
    model = small(in_channels=channels)
    images = jax.random.normal(jax.random.key(2), (1, 16, 16, channels))
    key = jax.random.key(0)
    init = functools.partial(model.init, {"params": key, "dropout": key}, train=False)
    variables = jax.eval_shape(init, images)
    assert variables["params"]["conv1"]["kernel"].shape[2] == channels
    apply = functools.partial(model.apply, train=False)
    assert jax.eval_shape(apply, variables, images).logits.shape == (1, model.num_classes)
    with pytest.raises(ValueError, match=rf"\[N, H, W, {channels}\]"):
        jax.eval_shape(apply, variables, jnp.zeros((1, 16, 16, 3)))
