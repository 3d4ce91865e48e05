"""The Inception modules by themselves: what each computes, what it costs, how its pools treat the
map's border.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.models.inception_modules import (
    AsymmetricConv,
    AuxHead,
    GridReductionA,
    GridReductionB,
    InceptionStyle,
    ModuleA,
    ModuleB,
    ModuleC,
    TwoConv3x3,
    WidthsA,
)
from googlenet_jax.models.layers import xavier_fan_in
from googlenet_jax.models.network import Layers

KEY = jax.random.key(0)


def layers(width: float = 1.0, **style) -> Layers:
    """Tools without batch norm."""
    settings = {
        "kernel_init": xavier_fan_in,
        "dense_init": xavier_fan_in,
        "bias_init": nn.initializers.zeros,
        "pool": 0,
    } | style
    return Layers(InceptionStyle(**settings), None, width, jnp.float32, jnp.float32, False, True)


def shapes(module: nn.Module, *shape: int):
    """The output's shape and the parameters' shapes; nothing is computed."""
    output, variables = jax.eval_shape(lambda: module.init_with_output(KEY, jnp.zeros(shape)))
    return output.shape, variables["params"]


def weights(module: nn.Module, *shape: int) -> int:
    """Entries of the kernels."""
    _, params = shapes(module, *shape)
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    )


def test_two_3x3_have_18_weights_for_a_5x5s_25():
    assert weights(TwoConv3x3(layers(), 8), 1, 9, 9, 8) == 18 * 8 * 8


@pytest.mark.parametrize("n", [3, 7])
def test_1xn_then_nx1_has_2n_weights_for_n_squared(n):
    module = AsymmetricConv(layers(), 8, n)
    assert weights(module, 1, 9, 9, 8) == 2 * n * 8 * 8
    assert shapes(module, 1, 9, 9, 8)[1].keys() == {f"conv_1x{n}", f"conv_{n}x1"}


def reach(module: nn.Module) -> np.ndarray:
    """Which places of a 15×15 map the output's middle depends on."""
    x = jnp.ones((1, 15, 15, 1))
    variables = jax.tree.map(jnp.ones_like, module.init(KEY, x))
    gradient = jax.grad(lambda x: module.apply(variables, x)[0, 7, 7].sum())(x)
    return np.argwhere(np.asarray(gradient)[0, :, :, 0] != 0)


@pytest.mark.parametrize(
    ("module", "side"),
    [
        (TwoConv3x3(layers(), 1), 5),
        (AsymmetricConv(layers(), 1, 3), 3),
        (AsymmetricConv(layers(), 1, 7), 7),
    ],
)
def test_a_factorised_convolution_reaches_as_far_as_the_whole(module, side):
    places = reach(module)
    assert len(places) == side * side
    assert places.min() == 7 - side // 2
    assert places.max() == 7 + side // 2


def test_1xn_then_nx1_is_the_nxn_of_rank_one():
    """A kernel that is a column times a row can be applied as a 1×n, then an n×1, where no
    rectifier cuts between them.
    """
    rng = np.random.default_rng(0)
    row, column = rng.uniform(0.1, 1, 3), rng.uniform(0.1, 1, 3)
    x = jnp.asarray(rng.uniform(0, 1, (1, 9, 9, 1)), jnp.float32)
    params = {
        "conv_1x3": {
            "kernel": jnp.asarray(row.reshape(1, 3, 1, 1), jnp.float32),
            "bias": jnp.zeros(1),
        },
        "conv_3x1": {
            "kernel": jnp.asarray(column.reshape(3, 1, 1, 1), jnp.float32),
            "bias": jnp.zeros(1),
        },
    }
    whole = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(np.outer(column, row).reshape(3, 3, 1, 1), jnp.float32),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        AsymmetricConv(layers(), 1, 3).apply({"params": params}, x), whole, rtol=1e-5
    )


# Sizes and widths of "Rethinking", Figs. 5–7 and 10, and of Inception-v3 as released.
@pytest.mark.parametrize(
    ("module", "given", "expected"),
    [
        (
            ModuleA(layers(), WidthsA(64, 48, 64, 64, 96, 32), kernel=5),
            (35, 35, 192),
            (35, 35, 256),
        ),
        (ModuleA(layers(), WidthsA(64, 48, 64, 64, 96, 64)), (35, 35, 288), (35, 35, 288)),
        (GridReductionA(layers(), 384, 64, 96), (35, 35, 288), (17, 17, 768)),
        (
            GridReductionA(layers(pool="ceil", reduction="half"), 160, 64, 96, 128),
            (28, 28, 320),
            (14, 14, 576),
        ),
        (
            GridReductionA(layers(pool="same", reduction="same"), 160, 64, 96, 128),
            (27, 27, 320),
            (14, 14, 576),
        ),
        (ModuleB(layers(), 128), (17, 17, 768), (17, 17, 768)),
        (ModuleB(layers(), 16, 8, 3), (17, 17, 24), (17, 17, 32)),
        (GridReductionB(layers()), (17, 17, 768), (8, 8, 1280)),
        (ModuleC(layers()), (8, 8, 1280), (8, 8, 2048)),
        (AuxHead(layers(), 10), (17, 17, 768), (10,)),
        (AuxHead(layers(), 10), (23, 23, 768), (10,)),
    ],
)
def test_a_modules_output_has_its_published_size(module, given, expected):
    assert shapes(module, 1, *given)[0] == (1, *expected)


def test_module_a_has_two_3x3_or_the_released_5x5():
    widths = WidthsA(64, 48, 64, 64, 96, 32)
    fig_5, released = (
        shapes(ModuleA(layers(), widths, kernel), 1, 9, 9, 192)[1] for kernel in (3, 5)
    )
    assert fig_5["conv_3x3"]["kernel"].shape == (3, 3, 48, 64)
    assert released["conv_5x5"]["kernel"].shape == (5, 5, 48, 64)
    assert (
        fig_5["conv_double_3x3_2"]["kernel"].shape
        == released["conv_double_3x3_2"]["kernel"].shape
        == (3, 3, 96, 96)
    )


def test_module_bs_long_branch_begins_with_the_column():
    """c → 7×1 c → 1×7 c → 7×1 c → 1×7 192, and the short one with the row."""
    params = shapes(ModuleB(layers(), 16), 1, 17, 17, 8)[1]
    long = ("7x7_reduce", "7x1_1", "1x7_1", "7x1_2", "1x7_2")
    kernels = [params[f"conv_double_{name}"]["kernel"].shape for name in long]
    assert kernels == [
        (1, 1, 8, 16),
        (7, 1, 16, 16),
        (1, 7, 16, 16),
        (7, 1, 16, 16),
        (1, 7, 16, 192),
    ]
    assert params["conv_1x7"]["kernel"].shape == (1, 7, 16, 16)
    assert params["conv_7x1"]["kernel"].shape == (7, 1, 16, 192)


@pytest.mark.parametrize(
    ("count_padding", "corner", "edge"), [(True, 4 / 9, 6 / 9), (False, 1.0, 1.0)]
)
def test_border_means_count_the_padding_or_do_not(count_padding, corner, edge):
    """On a map of ones a corner's window holds four of nine places, an edge's six."""
    module = ModuleA(layers(count_padding=count_padding), WidthsA(1, 1, 1, 1, 1, 1))
    x = jnp.ones((1, 5, 5, 1))
    variables = jax.tree.map(jnp.ones_like, module.init(KEY, x))
    variables["params"]["pool_proj"]["bias"] = jnp.zeros(1)
    pooled = np.asarray(module.apply(variables, x))[0, :, :, 3]
    np.testing.assert_allclose(
        [pooled[0, 0], pooled[0, 4], pooled[4, 0], pooled[4, 4]], corner, rtol=1e-6
    )
    np.testing.assert_allclose(
        [pooled[0, 2], pooled[2, 0], pooled[4, 2], pooled[2, 4]], edge, rtol=1e-6
    )
    np.testing.assert_allclose(pooled[1:4, 1:4], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda by: ModuleA(layers(), WidthsA(1, 1, 1, 1, 1, 1), pool_max=by),
        lambda by: ModuleC(layers(1 / 448), by),
    ],
)
def test_the_last_modules_pool_may_take_the_maximum(make):
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, 5, 5, 1)), jnp.float32)
    variables = jax.tree.map(jnp.ones_like, make(False).init(KEY, x))
    average, maximum = (
        np.asarray(make(by).apply(variables, x))[0, 2, 2, -1] - 1 for by in (False, True)
    )
    inside = np.asarray(x)[0, 1:4, 1:4, 0]
    assert average == pytest.approx(inside.mean(), rel=1e-5)
    assert maximum == pytest.approx(inside.max(), rel=1e-5)


def test_a_reduction_halves_the_grid_without_a_bottleneck():
    """All of the input's channels pass the pool beside the convolutions: the module is wider than
    its input.
    """
    module = GridReductionA(layers(), 2, 1, 1)
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (1, 7, 7, 4)), jnp.float32)
    output = np.asarray(module.apply(module.init(KEY, x), x))
    assert output.shape == (1, 3, 3, 2 + 1 + 4)
    windows = [
        [np.asarray(x)[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(3)]
        for i in range(3)
    ]
    np.testing.assert_array_equal(output[0, :, :, 3:], windows)
