"""LRN, pooling and the tie rule beside PyTorch's operators, over shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.models import layers
from tests.parity.harness import relative_error

SIZES = st.integers(3, 16)
FEW = settings(max_examples=25, deadline=None)


def levels(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values of 8 levels, negative ones among them: most windows have ties."""
    return np.random.default_rng(seed).integers(-4, 4, shape).astype(np.float64)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


@FEW
@given(SIZES, SIZES, st.sampled_from([(3, 2, "ceil"), (2, 2, "ceil"), (3, 2, 1), (3, 1, 1)]), st.integers(0, 99))
def test_max_pool_and_its_gradient_at_ties(height: int, width: int, pool: tuple, seed: int) -> None:
    window, stride, padding = pool
    x = levels((2, height, width, 3), seed)
    theirs = channels_first(x)
    ceil = {"ceil_mode": True} if padding == "ceil" else {"padding": padding}
    pooled = F.max_pool2d(theirs, window, stride, **ceil)
    ours, pull = jax.vjp(lambda x: layers.max_pool(x, window, stride, padding), jnp.asarray(x))
    np.testing.assert_array_equal(ours, channels_last(pooled))
    weights = np.random.default_rng(seed).normal(size=ours.shape)
    pooled.backward(torch.from_numpy(np.ascontiguousarray(weights.transpose(0, 3, 1, 2))))
    # Which of two equal values gets the gradient is the rule under test; sums of the same terms may round differently.
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], channels_last(theirs.grad), rtol=0, atol=1e-14)


@FEW
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_adaptive_average_pool(height: int, width: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2, height, width, 3))
    theirs = F.adaptive_avg_pool2d(channels_first(x), 4)
    assert relative_error(layers.adaptive_avg_pool(jnp.asarray(x), 4), channels_last(theirs)) < 1e-14


def test_the_papers_aux_pool_is_not_the_adaptive_one() -> None:
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 3))
    ours = layers.avg_pool_valid(jnp.asarray(x), 5, 3)
    assert relative_error(ours, channels_last(F.avg_pool2d(channels_first(x), 5, 3))) < 1e-14
    assert relative_error(layers.adaptive_avg_pool(jnp.asarray(x), 4), ours) > 0.1


# One rounding of the result, and of the few steps before it (bfloat16's are computed in float32).
ROUNDING = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 2.0**-8}


@FEW
@given(st.integers(1, 12), st.sampled_from(sorted(ROUNDING)), st.floats(0.1, 100), st.integers(0, 99))
def test_local_response_norm(channels: int, dtype: str, scale: float, seed: int) -> None:
    x = jnp.asarray(scale * np.random.default_rng(seed).normal(size=(2, 3, 4, channels)), dtype)
    theirs = F.local_response_norm(channels_first(np.asarray(x, np.float64)), 5, alpha=1e-4, beta=0.75, k=1.0)
    ours = layers.local_response_norm(x)
    assert ours.dtype == dtype
    assert relative_error(ours, channels_last(theirs)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pool_gives_ties_to_the_first_in_every_dtype(dtype: str) -> None:
    x = jnp.zeros((1, 7, 7, 2), dtype)
    gradient = jax.grad(lambda x: layers.max_pool(x, 3, 2, "ceil").sum())(x)
    expected = np.zeros((7, 7))
    expected[::2, ::2][:3, :3] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 1], expected)
