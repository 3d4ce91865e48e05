"""3×3 convolutions by Winograd's tiles compared with direct convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.models import ops, winograd

HALF = ((1, 1), (1, 1))


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradients(form, x, kernel, pads):
    """The output, and both gradients of half the sum of its squares."""
    y, pull = jax.vjp(functools.partial(form, pads=pads), x, kernel)
    return y, *pull(y)


def plain(x, kernel, pads):
    return ops.plain_conv(x, kernel, 1, pads)


@pytest.mark.parametrize(
    ("shape", "features", "pads"),
    [
        ((2, 8, 8, 3), 5, HALF),  # whole tiles
        ((2, 7, 10, 3), 2, HALF),  # the last ones stick out
        ((1, 6, 9, 4), 3, ((0, 0), (0, 0))),
        ((2, 5, 5, 1), 2, ((0, 2), (2, 1))),
        ((2, 3, 4, 2), 2, ((0, 0), (0, 1))),  # one output row: less than a tile
        ((1, 4, 4, 2), 1, ((3, 3), (3, 3))),  # windows that lie in the padding alone
    ],
)
def test_outputs_and_gradients_are_those_of_the_sum(shape, features, pads):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=shape))
        kernel = jnp.asarray(rng.normal(size=(3, 3, shape[-1], features)))
        ours, theirs = (gradients(form, x, kernel, pads) for form in (winograd.conv, plain))
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_a_batch_in_parts_is_the_whole_one(monkeypatch):
    """With room for two images at a time, six come in three parts; what is summed over is all of
    them.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(6, 8, 8, 2)))
        kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 3)))
        monkeypatch.setattr(winograd, "_PART_BYTES", 2 * 36 * 4 * (2 + 3) * 8)
        assert winograd._parts(x, kernel, HALF) == 3
        ours, theirs = (gradients(form, x, kernel, HALF) for form in (winograd.conv, plain))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_in_float32_the_error_is_a_few_times_that_of_the_sum():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 16, 16, 128)), rng.normal(size=(3, 3, 128, 64)) / 34
    with jax.enable_x64(True):
        exact = np.asarray(plain(jnp.asarray(x), jnp.asarray(kernel), HALF))
    errors = [
        np.sqrt(np.mean((form(jnp.float32(x), jnp.float32(kernel), HALF) - exact) ** 2))
        for form in (winograd.conv, plain)
    ]
    assert errors[0] < 3e-6 * exact.std()
    assert errors[0] < 8 * errors[1]


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "by_tiles"),
    [
        ((1, 14, 14, 64), (3, 3, 64, 64), "float32", True),
        ((32, 7, 7, 192), (3, 3, 192, 384), "float64", True),
        ((1, 7, 7, 192), (3, 3, 192, 384), "float32", False),  # four tiles
        ((32, 149, 149, 32), (3, 3, 32, 64), "float32", False),  # few channels
        ((32, 14, 14, 64), (3, 3, 64, 64), "bfloat16", False),
        ((32, 14, 14, 64), (5, 5, 64, 64), "float32", False),
    ],
)
def test_a_cpu_convolves_by_tiles_where_that_is_faster(shape, kernel, dtype, by_tiles):
    with jax.enable_x64(True):
        x, kernel = (jax.ShapeDtypeStruct(size, dtype) for size in (shape, kernel))
        lowered = jax.jit(functools.partial(ops.conv, stride=1, pads=HALF)).lower(x, kernel)
    assert ("stablehlo.convolution" not in lowered.as_text()) == by_tiles


def test_elsewhere_the_convolution_is_xlas_own():
    x, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((8, 28, 28, 64), (3, 3, 64, 64)))
    conv = jax.jit(functools.partial(ops.conv, stride=1, pads=HALF))
    text = jax.export.export(conv, platforms=("cuda",))(x, kernel).mlir_module()
    assert "stablehlo.convolution" in text and "stablehlo.while" not in text


def test_xla_keeps_the_first_transforms_apart():
    """Fused into the second ones, they would be computed anew for each of their terms."""
    x, kernel = (jax.ShapeDtypeStruct(s, "float32") for s in ((1, 16, 16, 4), (3, 3, 4, 4)))
    compiled = jax.jit(functools.partial(winograd.conv, pads=HALF)).lower(x, kernel).compile()
    assert compiled.as_text().count(" call(") == 3  # the kernel's, the tiles', the products'
