"""float32 and bfloat16 beside the float64 reference, with tolerances that follow from the dtype and
the depth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.models import layers
from tests.parity.harness import images, make_pair, randomise, relative_error

# A path crosses at most 22 layers. Each rounds its input, its kernel, its sum and its norm,
# relatively by at most the unit roundoff and independently, and batch norm may raise the share of
# the error that an activation carries by its kernel's: 4 roundings · √22 layers, twice that for
# safety.
DEPTH = 22
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
TOLERANCE = {dtype: 2 * 4 * DEPTH**0.5 * roundoff for dtype, roundoff in ROUNDOFF.items()}


def error(dtype: str, **options) -> float:
    network, _, _ = make_pair("googlenet_torchvision", width=0.25)
    # Small variances, where epsilon counts.
    randomise(network, 5, variance=(0.02, 0.05))
    network.eval()
    batch = images(97) / 64.0 - 1.5
    with torch.no_grad():
        theirs = network(torch.from_numpy(batch).permute(0, 3, 1, 2))["logits"].numpy()
    model = gj.create_model("googlenet_torchvision", width=0.25, dtype=dtype, **options)
    variables = gj.weights.from_torch(
        model, {name: value.float() for name, value in network.state_dict().items()}
    )
    apply = jax.jit(functools.partial(model.apply, train=False))
    return relative_error(apply(variables, jnp.asarray(batch, jnp.float32)).logits, theirs)


@pytest.mark.proof
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_logits_are_within_rounding_and_a_wrong_epsilon_is_not(dtype: str) -> None:
    assert error(dtype) < TOLERANCE[dtype]
    assert error(dtype, bn_epsilon=0.01) > 2 * TOLERANCE[dtype]


def unit_and_bound(dtype: str, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convolution unit with batch norm in `dtype`; what it should give, with an epsilon of 0.001;
    and how far each value may be off.

    The bound is the running error analysis of a sum of n products (Higham, Accuracy and Stability,
    section 3.1): with unit roundoff u of the dtype and v of the sums, float32 in both, |error of
    the sum| ≤ (2u + n·v + u) · Σ|x·k|, for the rounding of either factor, of the n additions and of
    the stored sum. Batch norm multiplies that by its factor, and adds its own roundings: of four
    operations in float32 and of the result in the dtype.
    """
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 8, 5)), rng.normal(size=(3, 3, 5, 4)) / 45**0.5
    mean, var, bias = (
        rng.normal(0, 0.2, 4),
        rng.uniform(0.02, 0.05, 4),
        rng.normal(0, 0.2, 4),
    )  # variances where epsilon counts
    unit = layers.ConvUnit(
        4,
        (3, 3),
        norm=layers.Norm(epsilon=epsilon, use_scale=False),
        use_bias=False,
        relu=False,
        dtype=dtype,
    )
    variables = {
        "params": {"kernel": kernel, "bn": {"bias": bias}},
        "batch_stats": {"bn": {"mean": mean, "var": var}},
    }
    variables = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), variables)
    found = np.asarray(unit.apply(variables, jnp.asarray(x, jnp.float32), True), np.float64)

    def conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        x, kernel = (
            torch.from_numpy(x).permute(0, 3, 1, 2),
            torch.from_numpy(kernel).permute(3, 2, 0, 1),
        )
        return torch.nn.functional.conv2d(x, kernel, padding=1).permute(0, 2, 3, 1).numpy()

    factor = 1 / np.sqrt(var + 0.001)
    total = conv(x, kernel)
    expected = (total - mean) * factor + bias
    u, v, n = float(jnp.finfo(dtype).eps) / 2, 2.0**-24, kernel[..., 0].size
    of_sum = (3 * u + n * v) * conv(np.abs(x), np.abs(kernel))
    # Parameters and statistics come in float32, hence one rounding more of each.
    bound = (
        factor * of_sum
        + 8 * v * (np.abs(total) + np.abs(mean)) * factor
        + 2 * v * np.abs(bias)
        + u * np.abs(expected)
    )
    return found, expected, bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_unit_is_within_the_bound_of_its_roundings_and_a_wrong_epsilon_is_not(dtype: str) -> None:
    found, expected, bound = unit_and_bound(dtype, 0.001)
    assert (np.abs(found - expected) <= bound).all()
    found, expected, bound = unit_and_bound(dtype, 0.01)
    assert (np.abs(found - expected) > bound).mean() > 0.5
