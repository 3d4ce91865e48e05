"""Pooling, LRN and batch norm against PyTorch's operators and against the plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_jax.models import layers, ops

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def to_torch(x: jax.Array) -> torch.Tensor:
    """`[N, H, W, C]` → `[N, C, H, W]`, of the same dtype, with gradients."""
    return (
        torch.tensor(np.asarray(x, np.float64))
        .permute(0, 3, 1, 2)
        .to(DTYPES[x.dtype.name])
        .requires_grad_()
    )


def from_torch(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().permute(0, 2, 3, 1).numpy()


def with_gradient(f, x: jax.Array, dy=None) -> tuple[jax.Array, jax.Array]:
    """f(x) and the gradient of its sum, or of its product with `dy`, compiled as one program."""

    def run(x):
        y, pull = jax.vjp(f, x)
        return y, pull(jnp.ones_like(y) if dy is None else dy(y.shape))[0]

    return jax.jit(run)(x)


def quantised(
    rng: np.random.Generator, shape: tuple[int, ...], levels: int, dtype: str
) -> jax.Array:
    """Values of a few levels, so that windows have ties."""
    return jnp.asarray(rng.integers(0, levels, shape), dtype)


@st.composite
def pools(draw):
    window, stride = draw(st.sampled_from([(3, 2), (2, 2), (3, 1)]))
    padding = draw(st.sampled_from([1, "ceil"] if window == 3 else ["ceil", 0]))
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(window, 13)),
        draw(st.integers(window, 13)),
        draw(st.integers(1, 3)),
    )
    return (
        window,
        stride,
        padding,
        shape,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(sorted(DTYPES))),
    )


@SETTINGS
@given(pools())
def test_max_pool_and_its_gradient_are_pytorchs_ties_included(case):
    window, stride, padding, shape, levels, seed, dtype = case
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = quantised(rng, shape, levels, dtype)
        pads = {"padding": 0, "ceil_mode": True} if padding == "ceil" else {"padding": padding}
        theirs_in = to_torch(x)
        theirs = F.max_pool2d(theirs_in, window, stride, **pads)
        # Whole numbers: their sums are exact in every dtype.
        dy = jnp.asarray(rng.integers(-3, 4, (shape[0], *theirs.shape[2:], shape[3])), dtype)
        ours, dx = with_gradient(
            lambda x: layers.max_pool(x, window, stride, padding), x, lambda _: dy
        )
        np.testing.assert_array_equal(np.asarray(ours, np.float64), from_torch(theirs))
        theirs.backward(to_torch(dy).detach())
        np.testing.assert_array_equal(np.asarray(dx, np.float64), from_torch(theirs_in.grad))


@pytest.mark.parametrize(
    ("window", "stride", "pads"),
    [(3, 2, ((0, 1), (0, 1))), (3, 1, ((1, 1), (1, 1))), (2, 2, ((0, 0), (0, 0)))],
)
def test_indexed_max_pool_is_the_plain_one(window, stride, pads):
    x = quantised(np.random.default_rng(0), (2, 8, 10, 3), 3, "float32")
    forms = [
        functools.partial(form, window=window, stride=stride, pads=pads)
        for form in (ops.plain_max_pool, ops._indexed_max_pool)
    ]
    plain, indexed = (with_gradient(form, x) for form in forms)
    for a, b in zip(plain, indexed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_a_cpu_pools_do_not_scatter_and_1x1_convolutions_are_products():
    x, kernel = jnp.zeros((1, 9, 9, 2)), jnp.zeros((1, 1, 2, 3))

    def loss(x, kernel):
        return ops.conv(layers.max_pool(x), kernel, 1, ((0, 0), (0, 0))).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    assert "stablehlo.dot_general" in compiled
    assert "select_and_scatter" not in compiled and "stablehlo.convolution" not in compiled


def test_max_pool_passes_nan_on():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(x)).any()


@SETTINGS
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**16))
def test_adaptive_average_has_pytorchs_windows(height, width, seed):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(1, height, width, 2)))
        np.testing.assert_allclose(
            layers.adaptive_avg_pool(x, 4),
            from_torch(F.adaptive_avg_pool2d(to_torch(x), 4)),
            atol=1e-12,
        )


def test_the_papers_average_pool_differs_from_the_adaptive_one_at_14():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 14, 14, 2)), jnp.float32)
    paper, adaptive = layers.avg_pool(x, 5, 3), layers.adaptive_avg_pool(x, 4)
    assert paper.shape == adaptive.shape == (1, 4, 4, 2)
    np.testing.assert_allclose(paper, from_torch(F.avg_pool2d(to_torch(x), 5, 3)), atol=1e-6)
    assert float(jnp.abs(paper - adaptive).max()) > 0.1


@SETTINGS
@given(st.integers(1, 12), st.sampled_from([3, 5]), st.floats(0.1, 50), st.integers(0, 2**16))
def test_lrn_and_its_gradient_are_pytorchs(channels, size, scale, seed):
    with jax.enable_x64(True):
        x = jnp.asarray(scale * np.random.default_rng(seed).normal(size=(2, 3, 2, channels)))
        theirs_in = to_torch(x)
        theirs = F.local_response_norm(theirs_in, size, alpha=1e-2, beta=0.75, k=1.0)
        ours, dx = with_gradient(lambda x: layers.local_response_norm(x, size, alpha=1e-2), x)
        np.testing.assert_allclose(ours, from_torch(theirs), rtol=1e-12)
        theirs.sum().backward()
        np.testing.assert_allclose(dx, from_torch(theirs_in.grad), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2.0**-8)])
def test_lrn_rounds_once(dtype, rounding):
    """bfloat16 is computed in float32: one rounding of the result."""
    x = jnp.asarray(30 * np.random.default_rng(0).normal(size=(2, 3, 4, 12)), dtype)
    ours = layers.local_response_norm(x)
    theirs = from_torch(
        F.local_response_norm(
            torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2),
            5,
            alpha=1e-4,
            beta=0.75,
            k=1.0,
        )
    )
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=rounding)


@pytest.mark.parametrize(("batch", "size"), [(2, 7), (8, 24), (3, 39)])
def test_convolutions_and_their_gradients_are_the_plain_ones(batch, size):
    """8·24² and 3·39² rows are above where a product is split, the second odd; 2·7² below."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(batch, size, size, 3)))
        for window in (1, 3):
            kernel = jnp.asarray(rng.normal(size=(window, window, 3, 4)))
            pads = ((window // 2, window // 2),) * 2
            (plain, plain_pull), (ours, pull) = (
                jax.vjp(lambda x, k, form=form, pads=pads: form(x, k, 1, pads), x, kernel)
                for form in (ops.plain_conv, ops.conv)
            )
            np.testing.assert_allclose(ours, plain, rtol=1e-11, atol=1e-14)
            for a, b in zip(pull(plain), plain_pull(plain), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_and_its_gradients_are_the_plain_ones(groups, relu):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, dy = (jnp.asarray(rng.normal(3, 2, size=(4, 3, 5, 2))) for _ in range(2))
        gamma, beta = jnp.asarray([1.5, -0.7]), jnp.asarray([0.3, 0.1])
        forms = [
            functools.partial(_positional, epsilon=1e-3, groups=groups, relu=relu, forms=name)
            for name in ("plain", "fast")
        ]
        (plain, plain_pull), (ours, pull) = (jax.vjp(form, x, gamma, beta) for form in forms)
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
        cotangents = (dy, jnp.zeros((groups, 2)), jnp.zeros((groups, 2)))
        for a, b in zip(pull(cotangents), plain_pull(cotangents), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def _positional(x, gamma, beta, epsilon, groups, relu, forms):
    return ops.batch_norm(x, gamma, beta, epsilon, groups, relu, None, forms)


def run_batch_norm(x: jax.Array, **settings) -> tuple[jax.Array, dict]:
    module = layers.BatchNorm(**settings)
    variables = module.init(jax.random.key(0), x, False)
    y, updated = module.apply(variables, x, False, mutable=["batch_stats"])
    return y, updated["batch_stats"]


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("size", [5, 8])
def test_average_pool_counts_what_is_padded_or_does_not(size, count_padding):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(size).normal(size=(2, size, size + 1, 3)))
        ours = layers.avg_pool(x, 3, 1, 1, count_padding)
        theirs = F.avg_pool2d(to_torch(x), 3, 1, 1, count_include_pad=count_padding)
        assert ours.shape == from_torch(theirs).shape
        np.testing.assert_allclose(ours, from_torch(theirs), rtol=1e-12, atol=1e-14)


def test_tensorflows_same_puts_what_is_left_over_behind():
    """Windows of 3 with a stride of 2 over 1 2 3 4 are 1 2 3 and 3 4 ·; put before they would be ·
    1 2 and 2 3 4.
    """
    x = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1) * jnp.ones((1, 1, 4, 1))
    np.testing.assert_array_equal(layers.max_pool(x, 3, 2, "same")[0, :, 0, 0], [3, 4])
    unit = layers.ConvUnit(1, (3, 3), 2, "same", relu=False, bias_init=layers.Constant(0.0))
    params = {"kernel": jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0), "bias": jnp.zeros(1)}
    first = unit.apply({"params": params}, x, True)
    np.testing.assert_array_equal(first[0, :, 0, 0], [1, 3])


def test_average_pool_without_counting_padding_is_tensorflows_same():
    """At a corner of a 3×3/1 window four values count, at an edge six."""
    ones = jnp.ones((1, 4, 4, 1))
    np.testing.assert_allclose(layers.avg_pool(ones, 3, 1, "same"), ones, rtol=1e-6)
    counted = np.asarray(layers.avg_pool(ones, 3, 1, "same", count_padding=True))[0, :, :, 0]
    np.testing.assert_allclose(counted[:2, :2], [[4 / 9, 6 / 9], [6 / 9, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "expected"),
    [
        ((1, 7), 1, "half", (9, 8)),
        ((7, 1), 1, "half", (9, 8)),
        ((3, 3), 2, 0, (4, 3)),
        ((3, 3), 2, "same", (5, 4)),
        ((3, 1), 1, 0, (7, 8)),
    ],
)
def test_convolution_units_take_any_kernel_and_padding(kernel, stride, padding, expected):
    unit = layers.ConvUnit(5, kernel, stride, padding, relu=False, bias_init=layers.Constant(0.0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 3)), jnp.float32)
    y, variables = unit.init_with_output(jax.random.key(0), x, True)
    assert y.shape == (2, *expected, 5)
    if padding != "same":
        pads = tuple(k // 2 for k in kernel) if padding == "half" else 0
        weight = torch.tensor(np.asarray(variables["params"]["kernel"])).permute(3, 2, 0, 1)
        theirs = F.conv2d(to_torch(x).float(), weight, stride=stride, padding=pads)
        np.testing.assert_allclose(y, from_torch(theirs), rtol=1e-4, atol=1e-5)


def test_a_bias_may_stand_beside_batch_norm():
    unit = layers.ConvUnit(4, norm=layers.Norm(epsilon=1e-5), use_bias=True)
    variables = unit.init(jax.random.key(0), jnp.ones((1, 2, 2, 3)), True)
    assert set(variables["params"]) == {"kernel", "bias", "bn"}


@pytest.mark.parametrize("unbiased", [True, False])
def test_running_variance_by_flavour(unbiased):
    x = jnp.asarray(np.random.default_rng(0).normal(5, 3, size=(2, 2, 2, 3)), jnp.float32)
    _, stats = run_batch_norm(x, momentum=0.9, unbiased=unbiased)
    expected = 0.9 + 0.1 * np.var(np.asarray(x), axis=(0, 1, 2), ddof=int(unbiased))
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        stats["mean"], 0.1 * np.mean(np.asarray(x), axis=(0, 1, 2)), rtol=1e-5
    )


def test_the_variance_does_not_cancel_far_from_zero():
    x = jnp.asarray(1e4 + np.random.default_rng(0).normal(size=(8, 4, 4, 1)), jnp.float32)
    y, _ = run_batch_norm(x, epsilon=1e-5)
    assert abs(float(y.std()) - 1) < 1e-2  # E[x²] − E[x]² would be off by several units here


def test_grouped_statistics_are_those_of_each_part():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 3)), jnp.float32)
    grouped, _ = run_batch_norm(x, groups=2)
    parts = [run_batch_norm(part)[0] for part in (x[:2], x[2:])]
    np.testing.assert_allclose(grouped, jnp.concatenate(parts), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="a batch of 4 does not split into 3 groups"):
        run_batch_norm(x, groups=3)
