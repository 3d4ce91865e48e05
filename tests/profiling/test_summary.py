"""The counts of `summary`, against figures that were worked out by hand or printed in the papers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network, Output
from googlenet_jax.models.registry import create_model, list_models
from googlenet_jax.profiling.printed import Comparison, compare
from googlenet_jax.profiling.summary import summarize


def beside_table_1(stem: str) -> dict[str, Comparison]:
    model = create_model("googlenet", stem=stem)
    rows = compare(summarize(model), model.printed)
    return {row.layers[-1]: row for row in rows}


def rounded(rows: dict[str, Comparison], field: str) -> dict[str, float]:
    values = {name: getattr(row, field) for name, row in rows.items()}
    return {name: round(value, 1) for name, value in values.items() if value is not None}


# The papers' table differs from its own widths here and nowhere else, in percent of the computed.
WEIGHTS_DIFFER = {
    "inception_4a": -0.7,
    "inception_4c": -6.9,
    "inception_4d": -1.8,
    "inception_4e": -0.8,
    "inception_5a": 5.3,
    "inception_5b": -1.5,
}
MULTIPLY_ADDS_DIFFER = {"inception_5a": 5.7}


def test_separable_stem_differs_from_table_1_only_where_known() -> None:
    rows = beside_table_1("separable")
    assert rounded(rows, "weights_difference") == WEIGHTS_DIFFER
    assert rounded(rows, "multiply_adds_difference") == MULTIPLY_ADDS_DIFFER
    assert [row.note for row in rows.values()] == [""] * 17
    assert all(row.output == row.paper_output for row in rows.values())


def test_dense_stem_differs_in_the_first_row_too_and_says_why() -> None:
    rows = beside_table_1("dense")
    assert rounded(rows, "weights_difference") == {"conv1": -70.6, **WEIGHTS_DIFFER}
    assert rounded(rows, "multiply_adds_difference") == {"conv1": -71.2, **MULTIPLY_ADDS_DIFFER}
    assert "separable" in rows["conv1"].note
    assert not any(row.note for name, row in rows.items() if name != "conv1")


def test_googlenet_totals() -> None:
    summary = summarize(create_model("googlenet"))
    assert summary.depth == 22
    assert summary.totals(aux=True)["parameters"] == 13_378_280
    assert summary.totals(aux=False)["parameters"] == 6_998_552
    assert summary.totals(aux=False)["multiply_adds"] == 1_582_671_872
    separable = summarize(create_model("googlenet", stem="separable"))
    assert separable.totals(aux=False)["multiply_adds"] == pytest.approx(1.499e9, abs=0.0005e9)


def test_googlenet_rows_follow_the_paper() -> None:
    summary = summarize(create_model("googlenet"))
    names = [row.name for row in summary.rows]
    assert names[:7] == ["conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2"]
    assert names[-3:] == ["aux1", "aux2", "head"]
    outputs = {row.name: row.output for row in summary.rows}
    assert outputs["conv1"] == (112, 112, 64)
    assert outputs["pool2"] == (28, 28, 192)
    assert outputs["inception_4e"] == (14, 14, 832)
    assert outputs["inception_5b"] == (7, 7, 1024)
    assert outputs["head"] == (1000,)
    depths = {row.name: row.depth for row in summary.rows}
    assert (
        depths["conv1"],
        depths["pool1"],
        depths["inception_3a"],
        depths["aux1"],
        depths["head"],
    ) == (1, 0, 2, 3, 1)


def test_without_aux_heads_there_are_no_rows_of_them() -> None:
    summary = summarize(create_model("googlenet_bn", aux_heads=False), 64)
    assert not any(row.aux for row in summary.rows)
    assert summary.totals(aux=True) == summary.totals(aux=False)


def test_torchvision_multiply_adds() -> None:
    assert summarize(create_model("googlenet_torchvision")).totals(aux=False)[
        "multiply_adds"
    ] == pytest.approx(1.498e9, abs=0.0005e9)


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_stands_in_one_row(name: str) -> None:
    model = create_model(name, num_classes=10, width=0.25)
    size = max(64, model.min_size)
    variables = jax.eval_shape(
        lambda: model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, size, size, 3)), train=False
        )
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    summary = summarize(model, size)
    assert summary.totals(aux=True)["parameters"] == parameters
    assert all(row.multiply_adds >= row.weights for row in summary.rows)


def test_input_below_the_smallest_is_refused() -> None:
    with pytest.raises(UserError, match=r"input size: .* at least 31"):
        summarize(create_model("googlenet"), 16)


class Forms(Network):
    """Products of every form that the count has to tell apart, in one network."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, aux: bool = False) -> Output:
        x = nn.Conv(6, (3, 3), strides=2, feature_group_count=3, name="grouped")(images)
        x = jnp.einsum(
            "ih,nhwc->niwc", jnp.ones((2, x.shape[1])), x
        )  # an average pool is no product with weights
        self.sow("intermediates", "pooled", x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        x = PerPlatform(name="per_platform")(x)
        x = (
            jnp.einsum("nhwc,nhwd->nhwcd", x, x).mean((1, 2)).reshape(len(x), -1)
        )  # both sides from the images
        return Output(nn.Dense(7, name="head")(x), {})


class PerPlatform(nn.Module):
    """A 1×1 convolution behind a jit, a custom gradient and a choice by platform."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.ones, (x.shape[-1], 5))
        product = jax.custom_vjp(lambda x, kernel: x @ kernel)
        product.defvjp(
            lambda x, kernel: (x @ kernel, None), lambda _, gradient: (gradient, gradient)
        )
        x, kernel = jax.lax.optimization_barrier((x, kernel))
        return jax.lax.platform_dependent(
            x, kernel, cpu=jax.jit(product), default=lambda x, kernel: x @ kernel
        )


def test_products_count_once_and_only_those_of_weights_with_images() -> None:
    summary = summarize(Forms(), 8)
    found = {row.name: (row.multiply_adds, row.depth) for row in summary.rows}
    assert found == {
        "pooled": (0, 0),
        "grouped": (4 * 4 * 9 * 6, 1),
        "per_platform": (2 * 4 * 6 * 5, 1),
        "head": (25 * 7, 1),
    }
