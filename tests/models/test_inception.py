"""BN-Inception, Inception-v2 and -v3: flavours, sizes, names, what they refuse, and Table 1 of
"Rethinking" beside `summary`.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import model_options
from googlenet_jax.profiling.summary import summarize
from tests.models.test_networks import KEYS, SMALL, count, shapes, small


def test_keras_flavour_counts_as_keras_does_with_its_statistics():
    variables = shapes("inception_v3", flavour="keras")[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 23_851_784


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Counted from the PyTorch references, and from TF-slim's own variables.
        ("bn_inception", {}, 11_278_528),
        ("bn_inception", {"flavour": "slim", "num_classes": 1000}, 11_178_336),
        ("inception_v3", {"flavour": "slim"}, 27_145_970),
        ("inception_v3", {"flavour": "fid"}, 23_850_960),
        ("inception_v2", {}, 29_731_120),
        ("inception_v2", {"aux_bn": True}, 29_731_120 + 768),
    ],
)
def test_parameters(name, options, expected):
    assert count(name, **options) == expected


@pytest.mark.parametrize(
    ("name", "flavour", "expected"),
    [
        (
            "inception_v3",
            "torchvision",
            {"num_classes": 1000, "dropout": 0.5, "bn_momentum": 0.9, "aux_heads": True},
        ),
        (
            "inception_v3",
            "slim",
            {"num_classes": 1001, "dropout": 0.2, "bn_momentum": 0.9997, "aux_heads": True},
        ),
        (
            "inception_v3",
            "keras",
            {"num_classes": 1000, "dropout": 0.0, "bn_momentum": 0.99, "aux_heads": False},
        ),
        ("inception_v3", "fid", {"num_classes": 1008, "dropout": 0.0, "aux_heads": False}),
        (
            "bn_inception",
            "paper",
            {"num_classes": 1000, "pool_proj_4c": 128, "stem": "separable", "bn_epsilon": 1e-3},
        ),
        (
            "bn_inception",
            "port",
            {"num_classes": 1000, "pool_proj_4c": 128, "stem": "dense", "bn_epsilon": 1e-5},
        ),
        (
            "bn_inception",
            "slim",
            {"num_classes": 1001, "pool_proj_4c": 96, "stem": "separable", "bn_momentum": 0.9997},
        ),
    ],
)
def test_a_flavour_sets_its_options_and_given_ones_win(name, flavour, expected):
    options = model_options(gj.create_model(name, flavour=flavour))
    assert {option: options[option] for option in expected} == expected
    assert gj.create_model(name, flavour=flavour, dropout=0.7).dropout == 0.7


def test_flavours_differ_in_scales_and_biases():
    units = {
        (name, flavour): shapes(name, flavour=flavour)[1]["params"][layer]
        for name, layer in (("inception_v3", "conv1a"), ("bn_inception", "conv2"))
        for flavour in gj.create_model(name).flavours
    }
    assert {key for key, unit in units.items() if "scale" not in unit["bn"]} == {
        ("inception_v3", "slim"),
        ("inception_v3", "keras"),
        ("bn_inception", "slim"),
    }
    assert [key for key, unit in units.items() if "bias" in unit] == [("bn_inception", "port")]


def test_slims_separable_stem_has_a_bias_and_no_batch_norm():
    for stem, parts in (
        ("separable", {"depthwise_kernel", "kernel", "bias"}),
        ("dense", {"kernel", "bn"}),
    ):
        params = shapes("bn_inception", flavour="slim", stem=stem)[1]["params"]
        assert params["conv1"].keys() == parts


@pytest.mark.parametrize(
    ("aux_bn", "parts"), [(False, {"kernel", "bias"}), (True, {"kernel", "bn"})]
)
def test_batch_norm_in_v2s_auxiliary_head_is_an_option(aux_bn, parts):
    head = shapes("inception_v2", aux_bn=aux_bn)[1]["params"]["aux1"]
    assert head["conv_5x5"].keys() == parts
    assert head["conv"].keys() == {"kernel", "bn"}


@pytest.mark.parametrize("name", ["inception_v2", "inception_v3"])
def test_the_auxiliary_head_needs_299_and_says_how_to_go_without(name):
    model = gj.create_model(name, width=0.1)
    with pytest.raises(
        ValueError,
        match="at least 299 high and wide, found 298×299; aux_heads=False takes 75 and more",
    ):
        jax.eval_shape(
            functools.partial(model.init, train=False), KEYS, jnp.zeros((1, 298, 299, 3))
        )
    _, variables = shapes(name, width=0.1)
    apply = functools.partial(jax.eval_shape, functools.partial(model.apply, train=False))
    assert apply(variables, jnp.zeros((2, 139, 75, 3))).logits.shape == (
        2,
        1000,
    )  # in evaluation it is not asked
    with pytest.raises(ValueError, match="at least 75 high and wide, found 74×80"):
        apply(variables, jnp.zeros((2, 74, 80, 3)))
    with pytest.raises(ValueError, match="aux_heads=False"):
        jax.eval_shape(
            functools.partial(model.apply, train=True, rngs=KEYS, mutable=["batch_stats"]),
            variables,
            jnp.zeros((2, 224, 224, 3)),
        )


@pytest.mark.parametrize(
    ("size", "fits"),
    [(31, True), (38, True), (39, False), (224, True), (230, True), (231, False), (256, True)],
)
def test_the_port_takes_sizes_whose_maps_halve_evenly(size, fits):
    """PyTorch's port itself fails where a convolution and a pool round an odd map apart."""
    model = gj.create_model("bn_inception", flavour="port", width=0.05)
    init = functools.partial(jax.eval_shape, functools.partial(model.init, train=False), KEYS)
    if fits:
        init(jnp.zeros((1, size, size, 3)))
    else:
        with pytest.raises(ValueError, match=f"flavour 'paper' takes all.*found {size}×{size}"):
            init(jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bn_inception", {"aux_heads": True}, "'aux_heads' must be False, found True"),
        (
            "bn_inception",
            {"flavour": "torch"},
            r"'flavour' must be one of 'paper', 'port', 'slim'.*found 'torch'",
        ),
        ("inception_v3", {"flavour": "kears"}, r"\(did you mean 'keras'\?\)"),
        ("inception_v2", {"stem": "small"}, "'stem' must be one of 'factorised', 'dense'"),
        ("inception_v2", {"flavour": "slim"}, "inception_v2 has no option 'flavour'"),
        ("bn_inception", {"pool_proj_4c": 0}, "'pool_proj_4c' must be a positive whole number"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        gj.create_model(name, **options)


def test_summary_of_v2_stands_beside_table_1(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["summary", "inception_v2"]) == 0
    lines = {
        line.split()[0]: line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.strip()
    }
    printed = {
        "conv1a": "149×149×32",
        "conv2a": "147×147×32",
        "conv2b": "147×147×64",
        "pool1": "73×73×64",
        "conv3b": "71×71×80",
        "conv4a": "35×35×192",
        "conv4b": "35×35×288",
        "inception_6a": "17×17×768",
        "inception_7a": "8×8×1280",
        "inception_7c": "8×8×2048",
    }
    for layer, size in printed.items():
        assert lines[layer].count(size) == 2, layer  # computed and printed
        assert "equal" in lines[layer]


def test_summary_below_299_says_what_to_do(capsys):
    assert main(["summary", "inception_v3", "--size", "224"]) == 1
    assert "aux_heads=False takes 75 and more" in capsys.readouterr().err
    assert main(["summary", "inception_v3", "--size", "224", "--no-aux"]) == 0


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3"])
def test_endpoints_stand_in_the_networks_order(name):
    settings, size = SMALL[name]
    rows = summarize(gj.create_model(name, width=0.1, **settings), size).rows
    assert [row.name for row in rows] == {
        "bn_inception": [
            *(
                "conv1",
                "pool1",
                "conv2_reduce",
                "conv2",
                "inception_3a",
                "inception_3b",
                "inception_3c",
            ),
            *(
                "inception_4a",
                "inception_4b",
                "inception_4c",
                "inception_4d",
                "inception_4e",
                "inception_5a",
                "inception_5b",
            ),
            *("pool5", "head"),
        ],
        "inception_v3": [
            *(
                "conv1a",
                "conv2a",
                "conv2b",
                "pool1",
                "conv3b",
                "conv4a",
                "pool2",
                "inception_5b",
                "inception_5c",
                "inception_5d",
            ),
            *("inception_6a", "inception_6b", "inception_6c", "inception_6d", "inception_6e"),
            *("inception_7a", "inception_7b", "inception_7c", "pool3", "head"),
        ],
    }[name]


@pytest.mark.parametrize("name", ["bn_inception", "inception_v3"])
def test_bfloat16_computes_in_it_and_answers_in_float32(name):
    model, variables, images = small(name, dtype="bfloat16")
    named = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, mutable=["intermediates"]), variables, images
    )
    assert named[0].logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(named[1]) if leaf.ndim == 4} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


def test_keras_keeps_the_biased_variance():
    assert {
        flavour: gj.create_model("inception_v3", flavour=flavour).norm.unbiased
        for flavour in ("torchvision", "slim", "keras")
    } == {
        "torchvision": True,
        "slim": True,
        "keras": False,
    }
