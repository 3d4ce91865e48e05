"""TF-slim's own `inception_v1` beside `googlenet_slim`, in float64, at its default 224×224."""

import re

import numpy as np
import pytest
from flax import traverse_util

import googlenet_jax as gj
from tests.live.slim import SlimRun, require_slim, run_slim

require_slim()

TOLERANCE = 1e-9
CLASSES = 7
STEM = {
    "Conv2d_1a_7x7": "conv1",
    "Conv2d_2b_1x1": "conv2_reduce",
    "Conv2d_2c_3x3": "conv2",
    "Logits/Conv2d_0c_1x1": "head",
}
POOLS = {
    "MaxPool_2a_3x3": "pool1",
    "MaxPool_3a_3x3": "pool2",
    "MaxPool_4a_3x3": "pool3",
    "MaxPool_5a_2x2": "pool4",
    "Logits": "head",
}
# By branch and kernel: the third branch's kernel is a 3×3 where the paper has the 5×5.
BRANCHES = {
    ("0", "1x1"): "conv_1x1",
    ("1", "1x1"): "conv_3x3_reduce",
    ("1", "3x3"): "conv_3x3",
    ("2", "1x1"): "conv_5x5_reduce",
    ("2", "3x3"): "conv_5x5",
    ("3", "1x1"): "pool_proj",
}
LEAVES = {
    "weights": ("params", "kernel"),
    "biases": ("params", "bias"),
    "BatchNorm/beta": ("params", "bn", "bias"),
    "BatchNorm/moving_mean": ("batch_stats", "bn", "mean"),
    "BatchNorm/moving_variance": ("batch_stats", "bn", "var"),
}


def module_name(slim: str) -> str:
    """ "Mixed_3b" → "inception_3a": slim counts the pool before a stage as its first member."""
    stage, letter = slim[-2], slim[-1]
    return f"inception_{stage}{chr(ord(letter) - 1)}"


def variable_path(slim: str) -> tuple[str, ...]:
    layer, leaf = re.fullmatch(r"InceptionV1/(.*?)/(weights|biases|BatchNorm/\w+)", slim).groups()  # type: ignore[union-attr]
    if layer in STEM:
        place = (STEM[layer],)
    else:
        module, branch, kernel = re.fullmatch(
            r"(Mixed_\w+)/Branch_(\d)/Conv2d_0\w_(\dx\d)", layer
        ).groups()  # type: ignore[union-attr]
        place = (module_name(module), BRANCHES[branch, kernel])
    collection, *rest = LEAVES[leaf]
    return (collection, *place, *rest)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 224, 224, 3))


@pytest.fixture(scope="module")
def slim(images: np.ndarray) -> SlimRun:
    return run_slim("inception_v1", images, num_classes=CLASSES)


def test_every_end_point_equals_slims(slim: SlimRun, images: np.ndarray) -> None:
    model = gj.create_model(
        "googlenet_slim", num_classes=CLASSES, dtype="float64", param_dtype="float64"
    )
    flat = {variable_path(name): value for name, value in slim.variables.items()}
    flat["params", "head", "kernel"] = flat["params", "head", "kernel"][
        0, 0
    ]  # slim's classifier is a 1×1 convolution
    assert len(flat) == len(slim.variables) == 57 * 4 + 2
    ours = gj.endpoints(model, traverse_util.unflatten_dict(flat), images)
    errors = {}
    for name, theirs in slim.endpoints.items():
        if name == "Predictions":
            continue
        own = POOLS.get(name) or STEM.get(name) or module_name(name)
        assert ours[own].shape == theirs.shape, name
        errors[name] = np.linalg.norm(ours[own] - theirs) / np.linalg.norm(theirs)
    assert len(errors) == 17
    worst = max(errors, key=errors.__getitem__)
    print(
        f"googlenet_slim beside TF-slim's inception_v1: {len(errors)} end points, at most"
        f" {errors[worst]:.1e} ({worst})"
    )
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


def test_the_parameters_are_as_many(slim: SlimRun) -> None:
    """1000 classes in place of 7 give 6,617,624, the figure of `googlenet-jax summary
    googlenet_slim`.
    """
    moving = ("moving_mean", "moving_variance")
    count = sum(value.size for name, value in slim.variables.items() if not name.endswith(moving))
    assert count + (1000 - CLASSES) * 1025 == 6_617_624
