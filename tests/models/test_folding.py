"""Batch norm folded into the convolutions: the same outputs from an ordinary network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.weights.safetensors import load_weights


def draw(rng, leaf):
    values = rng.uniform(0.05, 0.4, leaf.shape) * rng.choice([1, 1, -1], leaf.shape)
    return jnp.asarray(values, leaf.dtype)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("googlenet_slim", 16, {"stem": "small"}),
        pytest.param("googlenet_bn", 16, {"stem": "small"}, marks=pytest.mark.exhaustive),
        pytest.param(
            "bn_inception",
            32,
            {"stem": "separable", "flavour": "slim"},
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_folded_network_gives_the_same_logits(name, size, options, tmp_path):
    """In float64, where only the order of operations differs; TF-slim's batch norms have no scale."""
    with jax.enable_x64(True):
        dtypes = {"dtype": "float64", "param_dtype": "float64"}
        model = gj.create_model(name, width=0.1, num_classes=7, **dtypes, **options)
        rng, key = np.random.default_rng(0), jax.random.key(0)
        images = jnp.asarray(rng.normal(size=(2, size, size, 3)))
        shapes = jax.eval_shape(
            functools.partial(model.init, train=False), {"params": key, "dropout": key}, images
        )
        variables = jax.tree.map(functools.partial(draw, rng), shapes)
        variables |= {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}
        folded, params = gj.fold_batch_norm(model, variables)
        assert set(params) == {"params"} and "bn" not in str(jax.tree.structure(params))
        expected = jax.jit(functools.partial(model.apply, train=False, aux=True))(variables, images)
        # Through a file: the folded network is one like any other.
        gj.save_weights(tmp_path / "folded.safetensors", folded, params)
        loaded, weights = load_weights(tmp_path / "folded.safetensors")
        assert loaded == folded != model
        output = jax.jit(functools.partial(loaded.apply, train=False, aux=True))(weights, images)
        for ours, theirs in zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=True):
            assert float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)) < 1e-12


@pytest.mark.parametrize("flavour", ["torchvision", "fid"])
def test_inception_v3_has_norms_of_its_own_which_fold_too(flavour):
    model = gj.create_model("inception_v3", flavour=flavour)
    assert model.norm is not None and model.clone(bn_folded=True).norm is None


def test_kernels_are_rounded_once_to_their_own_dtype():
    """The formula in float64, for one unit."""
    rng = np.random.default_rng(0)
    kernel = draw(rng, jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32))
    column = jax.ShapeDtypeStruct((4,), jnp.float32)
    scale, bias, mean, var = (np.abs(draw(rng, column)) for _ in range(4))
    variables = {
        "params": {"unit": {"kernel": kernel, "bn": {"scale": scale, "bias": bias}}},
        "batch_stats": {"unit": {"bn": {"mean": mean, "var": var}}},
    }
    _, folded = gj.fold_batch_norm(gj.create_model("googlenet_bn"), variables)
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + 0.01)
    exact = np.asarray(kernel, np.float64) * factor
    unit = folded["params"]["unit"]
    assert set(unit) == {"kernel", "bias"} and unit["kernel"].dtype == np.float32
    np.testing.assert_array_equal(unit["kernel"], exact.astype(np.float32))
    shift = bias.astype(np.float64) - mean.astype(np.float64) * factor
    np.testing.assert_array_equal(unit["bias"], shift.astype(np.float32))


def test_what_has_no_batch_norm_is_refused():
    with pytest.raises(UserError, match=r"expected a network with batch norms, found GoogLeNet$"):
        gj.fold_batch_norm(gj.create_model("googlenet"), {})
    with pytest.raises(UserError, match="folded already"):
        gj.fold_batch_norm(gj.create_model("googlenet_bn", bn_folded=True), {})
