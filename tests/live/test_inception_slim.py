"""TF-slim's own `inception_v2` and `inception_v3` beside the slim flavours of `bn_inception` and
`inception_v3`, in float64.
"""

import re
from collections.abc import Callable

import numpy as np
import pytest
from flax import traverse_util

import googlenet_jax as gj
from tests.live.slim import require_slim, run_slim
from tests.parity.harness import relative_error

require_slim()

TOLERANCE = 1e-9
CLASSES = 7
LEAVES = {
    "weights": ("params", "kernel"),
    "depthwise_weights": ("params", "depthwise_kernel"),
    "pointwise_weights": ("params", "kernel"),
    "biases": ("params", "bias"),
    "BatchNorm/beta": ("params", "bn", "bias"),
    "BatchNorm/moving_mean": ("batch_stats", "bn", "mean"),
    "BatchNorm/moving_variance": ("batch_stats", "bn", "var"),
}
V2_STEM = {
    "Conv2d_1a_7x7": "conv1",
    "Conv2d_2b_1x1": "conv2_reduce",
    "Conv2d_2c_3x3": "conv2",
    "Logits/Conv2d_1c_1x1": "head",
}
# slim counts a reduction as the first member of the next stage, and begins each stage at "a".
V2_MODULES = {
    "3b": "3a",
    "3c": "3b",
    "4a": "3c",
    "4b": "4a",
    "4c": "4b",
    "4d": "4c",
    "4e": "4d",
    "5a": "4e",
    "5b": "5a",
    "5c": "5b",
}
V3_STEM = {
    "Conv2d_1a_3x3": "conv1a",
    "Conv2d_2a_3x3": "conv2a",
    "Conv2d_2b_3x3": "conv2b",
    "Conv2d_3b_1x1": "conv3b",
    "Conv2d_4a_3x3": "conv4a",
    "AuxLogits/Conv2d_1b_1x1": "aux1/conv",
    "AuxLogits/Conv2d_2a_5x5": "aux1/conv_5x5",
    "AuxLogits/Conv2d_2b_1x1": "aux1/head",
    "Logits/Conv2d_1c_1x1": "head",
}
# By the branch's number, the units in slim's order of making them.
DOUBLE = ["conv_double_3x3_reduce", "conv_double_3x3_1", "conv_double_3x3_2"]
A = [["conv_1x1"], ["conv_3x3_reduce", "conv_3x3"], DOUBLE, ["pool_proj"]]
A5 = [["conv_1x1"], ["conv_5x5_reduce", "conv_5x5"], DOUBLE, ["pool_proj"]]
BN_REDUCTION = [["conv_3x3_reduce", "conv_3x3"], DOUBLE]
REDUCTION_A = [["conv_3x3"], DOUBLE]
LONG = [
    "conv_double_7x7_reduce",
    "conv_double_7x1_1",
    "conv_double_1x7_1",
    "conv_double_7x1_2",
    "conv_double_1x7_2",
]
B = [["conv_1x1"], ["conv_7x7_reduce", "conv_1x7", "conv_7x1"], LONG, ["pool_proj"]]
REDUCTION_B = [
    ["conv_3x3_reduce", "conv_3x3"],
    ["conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3"],
]
WIDE = ["conv_double_3x3_reduce", "conv_double_3x3", "conv_double_1x3", "conv_double_3x1"]
C = [["conv_1x1"], ["conv_3x3_reduce", "conv_1x3", "conv_3x1"], WIDE, ["pool_proj"]]
V3_BRANCHES = {"5": A5, "6": B, "7": C, "6a": REDUCTION_A, "7a": REDUCTION_B}


def v2_units(module: str) -> tuple[str, list[list[str]]]:
    return V2_MODULES[module], BN_REDUCTION if module in ("4a", "5a") else A


def v3_units(module: str) -> tuple[str, list[list[str]]]:
    return module, V3_BRANCHES.get(module, V3_BRANCHES[module[0]])


def convert(
    variables: dict[str, np.ndarray],
    stem: dict[str, str],
    units: Callable[[str], tuple[str, list[list[str]]]],
) -> dict:
    """slim's variables as ours. Its names inside a branch are irregular (0b and 0c for one place):
    their order is what counts.
    """
    flat: dict[tuple[str, ...], np.ndarray] = {}
    seen: dict[tuple[str, str], list[str]] = {}
    for name, value in variables.items():
        layer, leaf = re.fullmatch(
            r"InceptionV\d/(.*?)/((?:depthwise_|pointwise_)?weights|biases|BatchNorm/\w+)", name
        ).groups()  # type: ignore[union-attr]
        if layer in stem:
            place = stem[layer]
        else:
            module, branch, unit = re.fullmatch(r"Mixed_(\w\w)/Branch_(\d)/(\w+)", layer).groups()  # type: ignore[union-attr]
            order = seen.setdefault((module, branch), [])
            if unit not in order:
                order.append(unit)
            ours, branches = units(module)
            place = f"inception_{ours}/{branches[int(branch)][order.index(unit)]}"
        collection, *rest = LEAVES[leaf]
        if leaf == "depthwise_weights":  # [h, w, in, multiplier]
            value = value.reshape(*value.shape[:2], 1, -1)
        if place.endswith("head") and leaf == "weights":  # slim's classifiers are 1×1 convolutions
            value = value[0, 0]
        flat[collection, *place.split("/"), *rest] = value
    assert len(flat) == len(variables)
    return traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize(
    ("network", "name", "size", "stem", "units"),
    [
        ("inception_v2", "bn_inception", 224, V2_STEM, v2_units),
        ("inception_v2", "bn_inception", 139, V2_STEM, v2_units),
        ("inception_v3", "inception_v3", 299, V3_STEM, v3_units),
    ],
)
def test_logits_and_modules_equal_slims(
    network: str, name: str, size: int, stem: dict[str, str], units: Callable
) -> None:
    images = np.random.default_rng(0).normal(size=(1, size, size, 3))
    slim = run_slim(network, images, num_classes=CLASSES)
    model = gj.create_model(
        name, flavour="slim", num_classes=CLASSES, dtype="float64", param_dtype="float64"
    )
    ours = gj.endpoints(model, convert(slim.variables, stem, units), images)
    pairs = {"head": "Logits"} | ({"aux1": "AuxLogits"} if name == "inception_v3" else {})
    pairs |= {
        f"inception_{units(m.removeprefix('Mixed_'))[0]}": m
        for m in slim.endpoints
        if m.startswith("Mixed_")
    }
    pairs |= {place: layer for layer, place in stem.items() if layer in slim.endpoints}
    errors = {
        own: relative_error(ours[own], slim.endpoints[theirs].reshape(ours[own].shape))
        for own, theirs in pairs.items()
    }
    worst = max(errors, key=errors.__getitem__)
    print(
        f"{name} beside TF-slim's {network} at {size}: {len(errors)} end points, at most"
        f" {errors[worst]:.1e} ({worst})"
    )
    assert len(errors) >= 14
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"
