"""Networks inside JAX's transformations: the fast forms give what the plain ones give, in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import googlenet_jax as gj
from googlenet_jax.models import ops
from googlenet_jax.models.googlenet import TUTORIAL
from googlenet_jax.models.network import NormedNetwork
from tests.models.compose import AS_IT_IS, JITTED, transform

NAMES = (*JITTED, *AS_IT_IS)
QUICK = ("grad of grad", "hvp", "vmap of grad", "remat", "grad of shard_map")
SMALL = {name: ({"stem": "small"}, 16) for name in gj.list_models()}
SMALL["inception_small"] = ({}, 16)
SMALL |= dict.fromkeys(("inception_v2", "inception_v3"), ({"aux_heads": False}, 75))


class Every(NormedNetwork):
    """A 3×3 and a 1×1 convolution with batch norm, and max pools of both strides: what has forms."""

    style = TUTORIAL

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None):
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        x = layers.conv("conv1", x, 3, 3)
        x = layers.pool("pool1", x)
        x = layers.conv("conv2", layers.max_pool(x, 3, 1, 1), 2)
        return self.finish(layers, "pool", x)


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    monkeypatch.setattr(ops, "_gains_by_winograd", lambda x, kernel: True)
    with jax.enable_x64(True):
        yield


def loss_of(model, size, train):
    """(loss, parameters, images): the loss reads the logits and, in training, the new statistics
    too.
    """
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, size, size, 3)))
    tree = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    variables = jax.tree.map(lambda v: jnp.asarray(rng.uniform(-0.5, 0.5, v.shape)), tree)
    rest = {k: jax.tree.map(jnp.abs, v) for k, v in variables.items() if k != "params"}

    def loss(params, images):
        output, updated = model.apply(
            {"params": params, **rest},
            images,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        found = [output.logits, *output.aux_logits.values()]
        found += jax.tree.leaves(updated) if train else []
        return sum(jnp.sin(value).sum() for value in found)

    return loss, variables["params"], images


def apart(model, size, name, train):
    """The largest distance between the two forms' results, by the largest value of each leaf."""
    fast, plain = (
        transform(name, *loss_of(model.clone(forms=forms), size, train))
        for forms in ("fast", "plain")
    )
    assert len(fast) == len(plain)
    scale = max(np.abs(leaf).max() for leaf in plain)
    assert scale > 0 and np.isfinite(scale)
    return max(np.abs(a - b).max() for a, b in zip(fast, plain, strict=True)) / scale


def tiny():
    return Every(num_classes=3, dropout=0.0, dtype=jnp.float64, param_dtype=jnp.float64)


@pytest.mark.parametrize("name", QUICK)
def test_a_network_in_training(name):
    assert apart(tiny(), 6, name, train=True) < 1e-11


def test_a_network_in_evaluation():
    assert apart(tiny(), 6, "hvp", train=False) < 1e-11


@pytest.mark.exhaustive
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_layer_in_every_transformation(name, train):
    assert apart(tiny(), 6, name, train) < 1e-11


@pytest.mark.exhaustive
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["grad", "hvp", "vmap of grad", "grad of shard_map"])
@pytest.mark.parametrize("network", gj.list_models())
def test_every_network(network, name, train):
    options, size = SMALL[network]
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    rates = {
        key: 0.0 for key in ("dropout", "aux_dropout") if hasattr(gj.create_model(network), key)
    }
    model = gj.create_model(network, num_classes=3, width=0.05, **options, **dtypes, **rates)
    assert apart(model, size, name, train) < 1e-9


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_every_derivative(dtype):
    model = Every(num_classes=3, dropout=0.0, dtype=jnp.dtype(dtype))
    with jax.enable_x64(False):
        found = transform("hvp", *loss_of(model, 6, train=True))
    assert all(np.isfinite(leaf).all() for leaf in found) and max(map(np.max, found)) > 0


def test_gradients_flow_through_batch_statistics():
    """DeepInversion's loss: the gradient by the images of what the running statistics become."""
    model = tiny()
    _, params, images = loss_of(model, 6, True)
    stats = jax.tree.map(
        jnp.zeros_like,
        jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))["batch_stats"],
    )

    def loss(images):
        _, updated = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(updated))

    found = jax.jit(jax.grad(loss))(images)
    step, loss = 1e-5 * jnp.sign(found), jax.jit(loss)
    by_differences = (loss(images + step) - loss(images - step)) / 2
    assert float(by_differences) == pytest.approx(float((found * step).sum()), rel=1e-6)
    assert float(jnp.abs(found).max()) > 1e-3


def test_statistics_over_an_axis_are_the_whole_batchs():
    """`bn_axis_name`: a vmapped part of the batch sees the mean and variance of all of it."""
    model = tiny()
    _, params, images = loss_of(model, 6, True)
    stats = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))[
        "batch_stats"
    ]
    variables = {"params": params, "batch_stats": stats}

    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    # Of the plain forms: the axis has no fast one.
    whole, updated = run(model.clone(forms="plain"), images)
    parts, of_parts = jax.vmap(
        functools.partial(run, model.clone(bn_axis_name="parts")), axis_name="parts"
    )(images.reshape(2, 2, *images.shape[1:]))
    np.testing.assert_allclose(parts.logits.reshape(4, 3), whole.logits, rtol=1e-9)
    for ours, theirs in zip(jax.tree.leaves(of_parts), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-9)


def test_one_value_a_channel_is_refused_in_words():
    model = tiny()
    sample = jnp.zeros((1, 1, 1, 3))
    variables = jax.jit(lambda key: model.init(key, sample, train=False))(jax.random.key(0))
    with pytest.raises(ValueError, match="has one value, which has no variance; give more images"):
        model.apply(variables, jnp.zeros((1, 1, 1, 3)), train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("forms", ["plain", "indexed", "fast"])
def test_the_option_chooses_the_forms_everywhere(forms):
    loss, *arguments = loss_of(tiny().clone(forms=forms), 6, True)
    text = jax.jit(jax.grad(loss)).lower(*arguments).as_text()
    plain = forms == "plain"
    assert ("select_and_scatter" in text) == plain
    assert ("optimization_barrier" in text) != plain
