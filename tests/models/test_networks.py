"""The networks' public surface: parameters, options, sizes, dtypes, outputs and what they refuse."""

import dataclasses
import functools
import json
import pickle
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.models.googlenet import GoogLeNetBN, Inception
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_name, model_options

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
TREES = Path(__file__).with_name("parameter_trees.json")


# What makes a network take images of 16×16, or nearly so.
SMALL = {name: ({"stem": "small"}, 16) for name in gj.list_models()}
SMALL["inception_small"] = ({}, 16)
SMALL |= dict.fromkeys(("inception_v2", "inception_v3"), ({"aux_heads": False}, 75))


@functools.cache
def shapes(name: str, size: int = 0, **options):
    """Shapes of the variables and of the output of `init`, without any computation."""
    model = gj.create_model(name, **options)
    size = size or max(64, model.min_size)
    return jax.eval_shape(
        lambda: model.init_with_output(
            KEYS, jnp.zeros((1, size, size, 3), model.dtype), train=False
        )
    )


def count(name: str, **options) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(name, **options)[1]["params"]))


def small(name: str, **options):
    """A narrow model with its variables."""
    settings, size = SMALL[name]
    model = gj.create_model(name, **{"width": 0.1, "num_classes": 7, **settings} | options)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, size, size, 3)), model.dtype)
    tree = jax.eval_shape(functools.partial(model.init, train=False), KEYS, images)
    # Drawn here: compiling `init` takes longer than all else. Positive, as variances must be.
    return (
        model,
        jax.tree.map(
            lambda leaf: jnp.asarray(rng.uniform(0.01, 0.2, leaf.shape), leaf.dtype), tree
        ),
        images,
    )


def run(model, variables, images, **settings):
    """`model.apply`, compiled."""
    return jax.jit(functools.partial(model.apply, **settings))(variables, images)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("googlenet", {}, 13_378_280),
        ("googlenet", {"aux_heads": False}, 6_998_552),
        ("googlenet_bn", {}, 13_385_816),
        ("googlenet_torchvision", {}, 13_004_888),
        ("googlenet_torchvision", {"aux_heads": False}, 6_624_904),
        ("googlenet_plain", {"num_classes": 1000}, 6_994_392),
        ("bn_inception", {"flavour": "port"}, 11_295_240),
        ("inception_v3", {}, 27_161_264),
        ("inception_v3", {"aux_heads": False}, 23_834_568),
    ],
)
def test_parameters_are_as_published(name, options, expected):
    assert count(name, **options) == expected


def test_the_separable_stem_has_the_tables_first_row():
    tree = shapes("googlenet", stem="separable")[1]["params"]["conv1"]
    assert tree["depthwise_kernel"].size + tree["kernel"].size == 2712


@pytest.mark.parametrize("name", gj.list_models())
def test_the_parameter_tree_is_pinned(name):
    """Checkpoints, freeze patterns and converters name it: a change here breaks them all."""
    flat = traverse_util.flatten_dict(shapes(name)[1], sep="/")
    found = {path: list(leaf.shape) for path, leaf in sorted(flat.items())}
    assert found == json.loads(TREES.read_text())[name]


@pytest.mark.parametrize("name", gj.list_models())
def test_output_in_evaluation_and_training(name):
    model, variables, images = small(name)
    aux = {"aux1", "aux2"} if model.aux_heads else set()
    assert aux == {key for key in variables["params"] if key.startswith("aux")}
    output = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    chex.assert_shape(output.logits, (2, 7))
    chex.assert_type(output.logits, jnp.float32)
    assert output.aux_logits == {}
    trained, _ = run(model, variables, images, train=True, mutable=["batch_stats"], rngs=KEYS)
    assert set(trained.aux_logits) == aux
    chex.assert_shape(list(trained.aux_logits.values()), (2, 7))
    chex.assert_tree_all_finite(trained)


def test_aux_heads_answer_in_evaluation_where_asked_for():
    model, variables, images = small("googlenet")
    asked, plain = (run(model, variables, images, train=False, aux=aux) for aux in (True, None))
    assert set(asked.aux_logits) == {"aux1", "aux2"}
    chex.assert_trees_all_close(asked.logits, plain.logits, rtol=1e-5)


@pytest.mark.exhaustive  # op by op it takes longer than any other test here
def test_compiled_or_not_the_output_is_the_same():
    model, variables, images = small("googlenet_torchvision")
    compiled = run(model, variables, images, train=False)
    chex.assert_trees_all_close(model.apply(variables, images, train=False), compiled, rtol=1e-4)


@pytest.mark.parametrize("name", gj.list_models())
def test_init_with_train_true_makes_the_same_parameters(name):
    settings, size = SMALL[name]
    model = gj.create_model(name, width=0.1, **settings)
    images = jnp.zeros((2, size, size, 3))
    trees = [
        jax.eval_shape(functools.partial(model.init, train=train), KEYS, images)
        for train in (True, False)
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(*trees)


def test_frozen_statistics_in_training():
    model, variables, images = small("googlenet_bn", dropout=0.0, aux_dropout=0.0)
    frozen, updated = run(
        model,
        variables,
        images,
        train=True,
        use_running_average=True,
        mutable=["batch_stats"],
        rngs=KEYS,
    )
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])
    chex.assert_trees_all_close(
        frozen.logits, run(model, variables, images, train=False).logits, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_dtypes(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        param_dtype = "float64" if dtype == "float64" else "float32"
        model, variables, images = small(name, dtype=dtype, param_dtype=param_dtype)
        chex.assert_tree_all_finite(variables)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {param_dtype}
        endpoints = gj.endpoints(model, variables, images)
        assert endpoints["head"].dtype.name == param_dtype
        assert endpoints["inception_4a"].dtype.name == dtype


@pytest.mark.parametrize("name", gj.list_models())
def test_the_smallest_size_works_and_smaller_ones_are_refused(name):
    for stem in gj.create_model(name).choices.get("stem", ("",)):
        options = {"width": 0.1} | ({"stem": stem} if stem else {})
        model = gj.create_model(name, **options)
        size = model.min_size
        assert shapes(name, size, **options)[0].logits.shape == (1, model.num_classes)
        if size > 1:
            with pytest.raises(
                ValueError, match=f"at least {size} high and wide, found {size - 1}×{size}"
            ):
                jax.eval_shape(
                    functools.partial(model.init, train=False),
                    KEYS,
                    jnp.zeros((1, size - 1, size, 3)),
                )


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 64, 64, 3), np.uint8), "must be normalised floats, found uint8"),
        (np.zeros((64, 64, 3), np.float32), r"must be \[N, H, W, 3\], found shape \[64, 64, 3\]"),
        (
            np.zeros((1, 3, 64, 64), np.float32),
            r"must be \[N, H, W, 3\], found shape \[1, 3, 64, 64\]",
        ),
    ],
)
def test_wrong_images_are_refused(images, words):
    model = gj.create_model("googlenet")
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(functools.partial(model.init, train=False), KEYS, images)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("googlenet_nb", {}, r"unknown model 'googlenet_nb' \(did you mean 'googlenet_bn'\?\)"),
        ("googlenet", {"drop_out": 0.1}, r"has no option 'drop_out' \(did you mean 'dropout'\?\)"),
        ("googlenet", {"dropout": 1.0}, "'dropout' must be a rate from 0 to below 1, found 1.0"),
        (
            "googlenet_bn",
            {"stem": "separable"},
            "'stem' must be one of 'dense', 'small', found 'separable'",
        ),
        (
            "googlenet",
            {"num_classes": 0},
            "'num_classes' must be a positive whole number of at most 10,000,000, found 0",
        ),
        ("googlenet", {"width": float("nan")}, "'width' must be a positive number"),
        ("googlenet", {"aux_heads": "no"}, "'aux_heads' must be true or false, found 'no'"),
        (
            "googlenet",
            {"width": 1e300},
            "'width' must be a positive number of at most 64, found 1e",
        ),
        (
            "googlenet",
            {"num_classes": 10**30},
            "'num_classes' must be a positive whole number of at most 10,000,000",
        ),
        (
            "googlenet",
            {"dropout": "abc"},
            "'dropout' must be a rate from 0 to below 1, found 'abc'",
        ),
        (
            "googlenet",
            {"dtype": "int32"},
            "'dtype' must be one of 'float16', 'bfloat16', 'float32', 'float64', found 'int32'",
        ),
        ("googlenet", {"dtype": "float8_e4m3fn"}, "'dtype' must be one of 'float16'"),
        ("googlenet", {"dtype": "float64"}, "set JAX_ENABLE_X64=1"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        gj.create_model(name, **options)


def test_numpys_numbers_are_options_too():
    model = gj.create_model(
        "googlenet",
        num_classes=np.int64(3),
        width=np.float32(0.5),
        dropout=np.float64(0.25),
        aux_heads=np.bool_(False),
    )
    assert model == gj.create_model(
        "googlenet", num_classes=3, width=0.5, dropout=0.25, aux_heads=False
    )
    assert json.loads(json.dumps(model_options(model)))["num_classes"] == 3


class Twice(Network):
    """A network of a user's own."""

    depth: int = 2

    @nn.compact
    def __call__(self, images, train, aux=None, use_running_average=None):
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        for i in range(self.depth):
            x = layers.conv(f"conv{i + 1}", x, 8, 3, 2)
        return self.finish(layers, "pool", x)

    style = gj.create_model("googlenet").style


def test_a_registered_network_is_created_run_and_converted(monkeypatch):
    from googlenet_jax.models import registry

    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    gj.register_model("twice", Twice)
    gj.register_model("twice", Twice)  # again, as where a module is imported twice
    model = gj.create_model("twice", num_classes=5, depth=3, width=0.5)
    assert "twice" in gj.list_models()
    assert gj.create_model(model_name(model), **model_options(model)) == model
    variables = model.init(KEYS, jnp.zeros((1, 8, 8, 3)), train=False)
    assert list(gj.endpoints(model, variables, jnp.zeros((1, 8, 8, 3)))) == [
        "conv1",
        "conv2",
        "conv3",
        "pool",
        "head",
    ]
    with pytest.raises(UserError, match="its class names no PyTorch counterpart of params/conv1"):
        gj.weights.to_torch(model, variables)
    with pytest.raises(UserError, match=r"'twice' is .*Twice; choose another name"):
        gj.register_model("twice", type("Other", (Network,), {}))


@pytest.mark.parametrize(
    ("name", "cls", "words"),
    [
        ("a name", Twice, "letters, digits and underscores"),
        ("dense", nn.Dense, "subclass of googlenet_jax.Network"),
        ("x", 3, "found 3"),
    ],
)
def test_what_is_no_network_is_not_registered(name, cls, words):
    with pytest.raises(UserError, match=words):
        gj.register_model(name, cls)


def test_blocks_are_data_fit_for_remat_and_pickle():
    """Tools that held the calling module would make blocks unequal and leak tracers under
    `nn.remat`.
    """
    model, variables, images = small("googlenet_bn", dropout=0.0, aux_dropout=0.0)
    assert pickle.loads(pickle.dumps(model)) == model

    class Rematerialised(GoogLeNetBN):
        style = dataclasses.replace(GoogLeNetBN.style, inception=nn.remat(Inception))

    remat = Rematerialised(**{field: getattr(model, field) for field in model_options(model)})

    def gradient(model):
        def loss(v):
            output, _ = model.apply(v, images, train=True, rngs=KEYS, mutable=["batch_stats"])
            return output.logits.sum()

        return jax.eval_shape(jax.grad(loss), variables)

    chex.assert_trees_all_equal_shapes_and_dtypes(gradient(remat), gradient(model))
    layers, _, _ = model.begin(images, train=True)
    assert Inception(layers, (1,) * 6) == Inception(model.begin(images, train=True)[0], (1,) * 6)


@pytest.mark.parametrize("name", gj.list_models())
def test_options_build_the_same_model_again(name):
    model = gj.create_model(name, num_classes=3, width=0.5)
    options = json.loads(json.dumps(model_options(model)))
    assert gj.create_model(model_name(model), **options) == model


def test_width_scales_every_layer_but_the_classifiers():
    tree = shapes("googlenet", width=0.5, num_classes=10)[1]["params"]
    assert tree["conv1"]["kernel"].shape == (7, 7, 3, 32)
    assert tree["inception_3a"]["conv_3x3"]["kernel"].shape == (3, 3, 48, 64)
    assert tree["aux1"]["fc"]["kernel"].shape == (4 * 4 * 64, 512)
    assert tree["head"]["kernel"].shape == (512, 10)


def test_a_fully_connected_head_reads_the_whole_map():
    average = shapes("googlenet", 224)[1]["params"]["head"]["kernel"]
    connected = shapes("googlenet", 224, fully_connected_head=True)[1]["params"]["head"]["kernel"]
    assert average.shape == (1024, 1000)
    assert connected.shape == (7 * 7 * 1024, 1000)


def test_initialisation_is_caffes():
    model = gj.create_model("googlenet", num_classes=50)
    # Unoptimised: it runs once.
    init = jax.jit(
        functools.partial(model.init, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    params = init(KEYS, jnp.zeros((1, 32, 32, 3)))["params"]
    kernel = np.asarray(params["inception_5b"]["conv_3x3"]["kernel"])
    bound = np.sqrt(3 / (9 * 192))
    assert np.abs(kernel).max() <= bound * (1 + 1e-6)
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
    assert (np.asarray(params["inception_5b"]["conv_3x3"]["bias"]) == np.float32(0.2)).all()
    assert (np.asarray(params["head"]["bias"]) == 0).all()


@pytest.mark.parametrize("name", ["googlenet_torchvision", "googlenet_bn"])
def test_transform_input_turns_imagenets_normalisation_into_plus_minus_one(name):
    with_it, variables, images = small(name, transform_input=True)
    without = gj.create_model(name, num_classes=7, width=0.1, stem="small")
    pixels = jax.nn.sigmoid(images)
    mean, std = (
        np.array([0.485, 0.456, 0.406], np.float32),
        np.array([0.229, 0.224, 0.225], np.float32),
    )
    ours = run(with_it, variables, (pixels - mean) / std, train=False).logits
    chex.assert_trees_all_close(
        ours, run(without, variables, pixels * 2 - 1, train=False).logits, rtol=1e-4
    )


def test_endpoints_stand_in_the_networks_order():
    model, variables, images = small("googlenet")
    named = gj.endpoints(model, variables, images)
    top = [name for name in named if "/" not in name]
    assert top[:7] == ["conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "inception_3a"]
    assert top[-4:] == ["inception_5a", "inception_5b", "pool5", "head"]
    assert {"aux1", "aux2", "aux1/conv", "aux1/fc", "inception_4c/conv_5x5_reduce"} <= set(named)
    chex.assert_trees_all_close(
        named["head"], run(model, variables, images, train=False).logits, rtol=1e-4
    )


@pytest.mark.parametrize(("name", "papers"), [("googlenet", True), ("googlenet_bn", False)])
def test_only_the_papers_network_pools_5x5_with_stride_3_before_its_aux_heads(name, papers):
    """By `aux1`'s endpoints: the 1×1 after the pool sees the mean of [3, 8) in the paper's, of [3,
    7) in PyTorch's adaptive windows.
    """
    model = gj.create_model(name, num_classes=5, width=0.1)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 224, 224, 3)), jnp.float32)
    rng = np.random.default_rng(1)
    tree = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.01, 0.2, leaf.shape), leaf.dtype),
        shapes(name, num_classes=5, width=0.1)[1],
    )
    named = gj.endpoints(model, tree, images)
    end = 8 if papers else 7
    pooled = np.asarray(named["inception_4a"], np.float64)[:, 3:end, 3:end].mean((1, 2))
    unit, statistics = (
        tree["params"]["aux1"]["conv"],
        tree.get("batch_stats", {}).get("aux1", {}).get("conv"),
    )
    expected = pooled @ np.asarray(unit["kernel"], np.float64)[0, 0]
    if papers:
        expected += unit["bias"]
    else:
        norm = {
            key: np.asarray(value, np.float64)
            for key, value in (unit["bn"] | statistics["bn"]).items()
        }
        expected = (expected - norm["mean"]) / np.sqrt(norm["var"] + model.bn_epsilon) * norm[
            "scale"
        ] + norm["bias"]
    np.testing.assert_allclose(named["aux1/conv"][:, 1, 1], np.maximum(expected, 0), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("googlenet", [0.7, 0.7, 0.4]),
        ("googlenet_bn", [0.4, 0.4, 0.4, 0.4, 0.4]),  # twice in each auxiliary head
        ("googlenet_torchvision", [0.7, 0.7, 0.2]),
        ("googlenet_plain", [0.4]),
        ("googlenet_slim", [0.2]),
    ],
)
def test_dropout_rates_are_as_published(name, rates):
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            found.append(context.module.rate)
        return call(*args, **kwargs)

    model = gj.create_model(name, width=0.1, stem="small")
    with nn.intercept_methods(note):
        jax.eval_shape(functools.partial(model.init, train=True), KEYS, jnp.zeros((2, 16, 16, 3)))
    assert found == rates


def test_dropout_has_its_rate_and_scale_and_differs_by_head_and_key():
    model, variables, _ = small("googlenet", dropout=0.4, aux_dropout=0.7)
    images = jnp.ones((200, 8, 8, 3))

    def dropped(key: int) -> dict[str, jax.Array]:
        watch = {
            "capture_intermediates": lambda module, _: type(module).__name__ == "Dropout",
            "mutable": ["intermediates"],
        }
        _, state = run(
            model, variables, images, train=True, rngs={"dropout": jax.random.key(key)}, **watch
        )
        flat = traverse_util.flatten_dict(state["intermediates"], sep="/")
        return {path: leaf[0] for path, leaf in flat.items() if path.endswith("__call__")}

    first, second = dropped(0), dropped(1)
    assert len(first) == 3
    clean = gj.endpoints(model, variables, images)
    kept = {}
    for path, value in first.items():
        rate, source = (
            (0.7, clean[path.split("/")[0] + "/fc"])
            if path.startswith("aux")
            else (0.4, clean["pool5"])
        )
        alive = np.asarray(source) > 1e-6
        kept[path] = (np.asarray(value) != 0)[alive]
        assert kept[path].mean() == pytest.approx(
            1 - rate, abs=5 * np.sqrt(rate * (1 - rate) / alive.sum())
        )
        scaled = np.where(np.asarray(value) != 0, np.asarray(source) / (1 - rate), 0)
        np.testing.assert_allclose(np.asarray(value)[alive], scaled[alive], rtol=1e-4)
        assert (kept[path] != (np.asarray(second[path]) != 0)[alive]).mean() > 0.2
    aux = [np.asarray(value) != 0 for path, value in first.items() if path.startswith("aux")]
    both = (np.asarray(clean["aux1/fc"]) > 1e-6) & (np.asarray(clean["aux2/fc"]) > 1e-6)
    assert (aux[0] != aux[1])[both].mean() == pytest.approx(2 * 0.3 * 0.7, abs=0.05)
