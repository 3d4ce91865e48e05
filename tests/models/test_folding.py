"""Batch norm folded into the convolutions: the same outputs from an ordinary network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.errors import UserError


def unfolded(name: str, dtype: str = "float64", size: int = 16, **options):
    """A narrow network with random variables, none of them zero or one, and images."""
    options = options or {"stem": "small"}
    dtypes = {"dtype": dtype, "param_dtype": dtype}
    model = gj.create_model(name, width=0.1, num_classes=7, **dtypes, **options)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, size, size, 3)), dtype)
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), {"params": key, "dropout": key}, images
    )

    def draw(leaf):
        values = rng.uniform(0.05, 0.4, leaf.shape) * rng.choice([1, 1, -1], leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    return (
        model,
        variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])},
        images,
    )


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("googlenet_bn", 16, {"stem": "small"}),
        ("googlenet_slim", 16, {"stem": "small"}),
        ("bn_inception", 64, {"stem": "separable"}),
        ("inception_v3", 75, {"aux_heads": False}),
    ],
)
def test_a_folded_network_gives_the_same_logits(name, size, options, tmp_path):
    """In float64, where only the order of operations differs; googlenet_slim's batch norms have no scale."""
    with jax.enable_x64(True):
        model, variables, images = unfolded(name, size=size, **options)
        folded, params = gj.fold_batch_norm(model, variables)
        assert set(params) == {"params"} and "bn" not in str(jax.tree.structure(params))
        expected = jax.jit(functools.partial(model.apply, train=False, aux=True))(variables, images)
        # Through a file: the folded network is one like any other.
        gj.save_weights(tmp_path / "folded.safetensors", folded, params)
        loaded, weights = gj.load_weights(tmp_path / "folded.safetensors")
        assert loaded == folded != model
        output = jax.jit(functools.partial(loaded.apply, train=False, aux=True))(weights, images)
        for ours, theirs in zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=True):
            assert float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)) < 1e-12


def test_kernels_are_rounded_once_to_their_own_dtype():
    model, variables, _ = unfolded("googlenet_bn", "float32")
    _, folded = gj.fold_batch_norm(model, variables)
    kernel, bn = variables["params"]["conv1"]["kernel"], variables["params"]["conv1"]["bn"]
    var = np.asarray(variables["batch_stats"]["conv1"]["bn"]["var"], np.float64)
    exact = (
        np.asarray(kernel, np.float64) * np.asarray(bn["scale"], np.float64) / np.sqrt(var + 0.01)
    )
    assert folded["params"]["conv1"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(folded["params"]["conv1"]["kernel"], exact.astype(np.float32))


def test_what_has_no_batch_norm_is_refused():
    with pytest.raises(UserError, match=r"expected a network with batch norms, found GoogLeNet$"):
        gj.fold_batch_norm(gj.create_model("googlenet"), {})
    with pytest.raises(UserError, match="folded already"):
        gj.fold_batch_norm(gj.create_model("googlenet_bn", bn_folded=True), {})
