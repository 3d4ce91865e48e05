"""BN-Inception and Inception-v3 in TF-slim (inception_v2, inception_v3), and Inception-v3 in
Keras.
"""

from collections.abc import Mapping

from googlenet_jax.weights.names.googlenet import SLIM_PREPROCESSING, slim_entry
from googlenet_jax.weights.names.scheme import Scheme

Branches = Mapping[str, str]

# ------------------------------------------------------------------------------------------ TF-slim

_DOUBLE = {
    "conv_double_3x3_reduce": "Branch_2/Conv2d_0a_1x1",
    "conv_double_3x3_1": "Branch_2/Conv2d_0b_3x3",
    "conv_double_3x3_2": "Branch_2/Conv2d_0c_3x3",
}
_A = {"conv_1x1": "Branch_0/Conv2d_0a_1x1", **_DOUBLE, "pool_proj": "Branch_3/Conv2d_0b_1x1"}
_V2_A = {**_A, "conv_3x3_reduce": "Branch_1/Conv2d_0a_1x1", "conv_3x3": "Branch_1/Conv2d_0b_3x3"}
_V2_REDUCTION = {
    "conv_3x3_reduce": "Branch_0/Conv2d_0a_1x1",
    "conv_3x3": "Branch_0/Conv2d_1a_3x3",
    "conv_double_3x3_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_double_3x3_1": "Branch_1/Conv2d_0b_3x3",
    "conv_double_3x3_2": "Branch_1/Conv2d_1a_3x3",
}
_V3_A = {**_A, "conv_5x5_reduce": "Branch_1/Conv2d_0a_1x1", "conv_5x5": "Branch_1/Conv2d_0b_5x5"}
# The library's own slips are part of its checkpoints' names: 5c's second branch, the 3×3 of 6a
# called 1x1, 7b's 3×1.
_V3_5C = {
    **_V3_A,
    "conv_5x5_reduce": "Branch_1/Conv2d_0b_1x1",
    "conv_5x5": "Branch_1/Conv_1_0c_5x5",
}
_V3_6A = {
    "conv_3x3": "Branch_0/Conv2d_1a_1x1",
    "conv_double_3x3_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_double_3x3_1": "Branch_1/Conv2d_0b_3x3",
    "conv_double_3x3_2": "Branch_1/Conv2d_1a_1x1",
}
_V3_B = {
    "conv_1x1": "Branch_0/Conv2d_0a_1x1",
    "conv_7x7_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_1x7": "Branch_1/Conv2d_0b_1x7",
    "conv_7x1": "Branch_1/Conv2d_0c_7x1",
    "conv_double_7x7_reduce": "Branch_2/Conv2d_0a_1x1",
    "conv_double_7x1_1": "Branch_2/Conv2d_0b_7x1",
    "conv_double_1x7_1": "Branch_2/Conv2d_0c_1x7",
    "conv_double_7x1_2": "Branch_2/Conv2d_0d_7x1",
    "conv_double_1x7_2": "Branch_2/Conv2d_0e_1x7",
    "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
_V3_7A = {
    "conv_3x3_reduce": "Branch_0/Conv2d_0a_1x1",
    "conv_3x3": "Branch_0/Conv2d_1a_3x3",
    "conv_7x7_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_1x7": "Branch_1/Conv2d_0b_1x7",
    "conv_7x1": "Branch_1/Conv2d_0c_7x1",
    "conv_7x7_3x3": "Branch_1/Conv2d_1a_3x3",
}
_V3_7C = {
    "conv_1x1": "Branch_0/Conv2d_0a_1x1",
    "conv_3x3_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_1x3": "Branch_1/Conv2d_0b_1x3",
    "conv_3x1": "Branch_1/Conv2d_0c_3x1",
    "conv_double_3x3_reduce": "Branch_2/Conv2d_0a_1x1",
    "conv_double_3x3": "Branch_2/Conv2d_0b_3x3",
    "conv_double_1x3": "Branch_2/Conv2d_0c_1x3",
    "conv_double_3x1": "Branch_2/Conv2d_0d_3x1",
    "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
_V3_7B = {**_V3_7C, "conv_3x1": "Branch_1/Conv2d_0b_3x1"}


def _slim(
    scope: str, stem: Branches, modules: Mapping[str, tuple[str, Branches]], heads: Branches
) -> dict[str, str]:
    """Our layers → the scopes; `modules` maps a module of ours to the library's letters for it and
    its branches.
    """
    layers = dict(stem)
    for module, (letters, branches) in modules.items():
        layers |= {
            f"inception_{module}/{ours}": f"Mixed_{letters}/{theirs}"
            for ours, theirs in branches.items()
        }
    return {ours: f"{scope}/{theirs}" for ours, theirs in (layers | dict(heads)).items()}


_HEAD = {"head": "Logits/Conv2d_1c_1x1"}
SLIM_V2 = Scheme(
    layers=_slim(
        "InceptionV2",
        {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"},
        # The library counts a grid reduction to the modules that follow it, the paper to those
        # before.
        {"3a": ("3b", _V2_A), "3b": ("3c", _V2_A), "3c": ("4a", _V2_REDUCTION)}
        | {
            "4a": ("4b", _V2_A),
            "4b": ("4c", _V2_A),
            "4c": ("4d", _V2_A),
            "4d": ("4e", _V2_A),
            "4e": ("5a", _V2_REDUCTION),
        }
        | {"5a": ("5b", _V2_A), "5b": ("5c", _V2_A)},
        _HEAD,
    ),
    entry=slim_entry,
    preprocessing={**SLIM_PREPROCESSING, "size": 224, "resize": 256},
    logits="InceptionV2/Logits/Conv2d_1c_1x1/biases",
    dense_is_conv=True,
)

_STEM = {
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
}
_AUX = {
    "aux1/conv": "AuxLogits/Conv2d_1b_1x1",
    "aux1/conv_5x5": "AuxLogits/Conv2d_2a_5x5",
    "aux1/head": "AuxLogits/Conv2d_2b_1x1",
}
SLIM_V3 = Scheme(
    layers=_slim(
        "InceptionV3",
        _STEM,
        {"5b": ("5b", _V3_A), "5c": ("5c", _V3_5C), "5d": ("5d", _V3_A), "6a": ("6a", _V3_6A)}
        | {module: (module, _V3_B) for module in ("6b", "6c", "6d", "6e")}
        | {"7a": ("7a", _V3_7A), "7b": ("7b", _V3_7B), "7c": ("7c", _V3_7C)},
        {**_AUX, **_HEAD},
    ),
    entry=slim_entry,
    preprocessing={**SLIM_PREPROCESSING, "size": 299, "resize": 342},  # the central 87.5 %
    logits="InceptionV3/Logits/Conv2d_1c_1x1/biases",
    dense_is_conv=True,
)

# -------------------------------------------------------------------------------------------- Keras

# The units of each module in the order in which Keras makes them.
_KERAS_A = (
    "conv_1x1",
    "conv_5x5_reduce",
    "conv_5x5",
    "conv_double_3x3_reduce",
    "conv_double_3x3_1",
    "conv_double_3x3_2",
    "pool_proj",
)
_KERAS_6A = ("conv_3x3", "conv_double_3x3_reduce", "conv_double_3x3_1", "conv_double_3x3_2")
_KERAS_B = tuple(_V3_B)
_KERAS_7A = tuple(_V3_7A)
_KERAS_C = tuple(_V3_7C)
_KERAS_MODULES = {
    **dict.fromkeys(("5b", "5c", "5d"), _KERAS_A),
    "6a": _KERAS_6A,
    **dict.fromkeys(("6b", "6c", "6d", "6e"), _KERAS_B),
    "7a": _KERAS_7A,
    **dict.fromkeys(("7b", "7c"), _KERAS_C),
}
_KERAS_LEAVES = {
    "kernel": ("conv2d", "kernel"),
    "bias": ("conv2d", "bias"),
    "bn/scale": ("batch_normalization", "gamma"),
    "bn/bias": ("batch_normalization", "beta"),
    "bn/mean": ("batch_normalization", "moving_mean"),
    "bn/var": ("batch_normalization", "moving_variance"),
}


def _keras_layers() -> dict[str, str]:
    units = [
        *_STEM,
        *(
            f"inception_{module}/{unit}"
            for module, units in _KERAS_MODULES.items()
            for unit in units
        ),
    ]
    return {unit: str(number) for number, unit in enumerate(units)} | {"head": "predictions"}


def _keras_entry(layer: str, entry: str, dense: bool) -> str:
    if dense:
        return f"predictions/{entry}"
    kind, leaf = _KERAS_LEAVES[entry]
    return f"{kind}_{layer}/{leaf}" if layer != "0" else f"{kind}/{leaf}"


KERAS_V3 = Scheme(
    layers=_keras_layers(),
    entry=_keras_entry,
    preprocessing={
        "mean": (127.5,) * 3,
        "std": (127.5,) * 3,
        "size": 299,
        "resize": 299,
        "crop": "squash",
        "interpolation": "bilinear",
    },
    logits="predictions/bias",
)
