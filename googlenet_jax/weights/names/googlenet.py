"""GoogLeNet in Caffe (bvlc_googlenet) and in TF-slim (inception_v1)."""

from collections.abc import Mapping

from googlenet_jax.weights.names.scheme import Scheme

_MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")

# -------------------------------------------------------------------------------------------- Caffe

_CAFFE_BRANCHES = {
    "conv_1x1": "1x1",
    "conv_3x3_reduce": "3x3_reduce",
    "conv_3x3": "3x3",
    "conv_5x5_reduce": "5x5_reduce",
    "conv_5x5": "5x5",
    "pool_proj": "pool_proj",
}


def _caffe_layers() -> dict[str, str]:
    layers = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
    layers |= {
        f"inception_{m}/{ours}": f"inception_{m}/{theirs}"
        for m in _MODULES
        for ours, theirs in _CAFFE_BRANCHES.items()
    }
    heads = {
        f"aux{i}/{ours}": f"loss{i}/{theirs}"
        for i in (1, 2)
        for ours, theirs in (("conv", "conv"), ("fc", "fc"), ("head", "classifier"))
    }
    return layers | heads | {"head": "loss3/classifier"}


def _caffe_entry(layer: str, entry: str, dense: bool) -> str:
    return f"{layer}/{('kernel', 'bias').index(entry)}"


CAFFE = Scheme(
    layers=_caffe_layers(),
    entry=_caffe_entry,
    # bvlc_googlenet's train_val.prototxt: 256×256 images, not of one short side, centre crop 224,
    # mean (104, 117, 123) in BGR order.
    preprocessing={
        "mean": (104.0, 117.0, 123.0),
        "std": (1.0, 1.0, 1.0),
        "channel_order": "bgr",
        "crop": "squash",
        "interpolation": "bilinear",
    },
    logits="loss3/classifier/1",
    oihw=True,
)

# ------------------------------------------------------------------------------------------ TF-slim

SLIM_LEAVES: Mapping[str, str] = {
    "kernel": "weights",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
    "bn/scale": "BatchNorm/gamma",
    "bn/bias": "BatchNorm/beta",
    "bn/mean": "BatchNorm/moving_mean",
    "bn/var": "BatchNorm/moving_variance",
    "bias": "biases",
}
_SLIM_BRANCHES = {
    "conv_1x1": "Branch_0/Conv2d_0a_1x1",
    "conv_3x3_reduce": "Branch_1/Conv2d_0a_1x1",
    "conv_3x3": "Branch_1/Conv2d_0b_3x3",
    "conv_5x5_reduce": "Branch_2/Conv2d_0a_1x1",
    "conv_5x5": "Branch_2/Conv2d_0b_3x3",
    "pool_proj": "Branch_3/Conv2d_0b_1x1",
}
_SLIM_MODULES = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")


def slim_entry(layer: str, entry: str, dense: bool) -> str:
    """TF-slim's variable for an entry of a layer."""
    return f"{layer}/{SLIM_LEAVES[entry]}"


def _slim_layers() -> dict[str, str]:
    layers = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
    for ours, theirs in zip(_MODULES, _SLIM_MODULES, strict=True):
        layers |= {
            f"inception_{ours}/{unit}": f"Mixed_{theirs}/{scope}"
            for unit, scope in _SLIM_BRANCHES.items()
        }
    # One scope of the library's is named unlike the others.
    layers["inception_5a/conv_5x5"] = "Mixed_5b/Branch_2/Conv2d_0a_3x3"
    layers["head"] = "Logits/Conv2d_0c_1x1"
    return {ours: f"InceptionV1/{theirs}" for ours, theirs in layers.items()}


SLIM_PREPROCESSING = {
    "mean": (127.5,) * 3,
    "std": (127.5,) * 3,
    "crop": "squash",
    "interpolation": "bilinear",
}

SLIM = Scheme(
    layers=_slim_layers(),
    entry=slim_entry,
    preprocessing={**SLIM_PREPROCESSING, "size": 224, "resize": 256},  # the central 87.5 %
    logits="InceptionV1/Logits/Conv2d_0c_1x1/biases",
    dense_is_conv=True,
)
