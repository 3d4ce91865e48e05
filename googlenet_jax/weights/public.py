"""What the public weights of each network want of an image: preprocessing can't be guessed from a
file, and a wrong one costs accuracy in silence.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import model_name
from googlenet_jax.weights.names import SCHEMES

_ANTIALIASED = {"interpolation": "bilinear_antialiased"}  # Pillow's, which torchvision takes


class Published(NamedTuple):
    """How one publisher's weights of a network are used.

    Attributes:
      fields: of `Preprocessing`, where they differ from its defaults.
      options: of the model.
      why: whose weights want it, for people.
    """

    fields: Mapping[str, Any]
    options: Mapping[str, Any]
    why: str


_UNKNOWN = Published(
    _ANTIALIASED, {}, "ImageNet's usual, as no public weights of this network are known"
)
_TRANSFORM = {"transform_input": True}
_HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
# (model, flavour) → as PyTorch's and safetensors' files of it are used, whoever wrote them.
_PUBLISHED: dict[tuple[str, str | None], Published] = {
    ("googlenet_torchvision", None): Published(
        _ANTIALIASED, _TRANSFORM, "as torchvision's googlenet wants it"
    ),
    ("inception_v3", "torchvision"): Published(
        {**_ANTIALIASED, "size": 299, "resize": 342},
        _TRANSFORM,
        "as torchvision's inception_v3 wants it",
    ),
    ("inception_v3", "slim"): Published(
        SCHEMES["tensorflow"]["inception_v3"].preprocessing, {}, "as TF-slim's weights want it"
    ),
    ("inception_v3", "keras"): Published(
        SCHEMES["keras"]["inception_v3"].preprocessing, {}, "as Keras's weights want it"
    ),
    ("inception_v3", "fid"): Published(
        {**_ANTIALIASED, **_HALF, "size": 299, "resize": 299, "crop": "squash"},
        {},
        "as the network of the Fréchet Inception distance wants it",
    ),
    ("googlenet_slim", None): Published(
        SCHEMES["tensorflow"]["googlenet_slim"].preprocessing, {}, "as TF-slim's weights want it"
    ),
    ("bn_inception", "slim"): Published(
        SCHEMES["tensorflow"]["bn_inception"].preprocessing, {}, "as TF-slim's weights want it"
    ),
    ("bn_inception", "port"): Published(
        {
            **_ANTIALIASED,
            "mean": (104.0, 117.0, 128.0),
            "std": (1.0, 1.0, 1.0),
            "channel_order": "bgr",
        },
        {},
        "as the common PyTorch port wants it",
    ),
}
# Files with torchvision's names and other preprocessing, by the names under which timm has them.
_BY_FILE_NAME: tuple[tuple[str, Published], ...] = (
    (
        r"gluon_inception_v3|inception_v3[._-]gluon",
        Published(
            {"size": 299, "resize": 341, "interpolation": "bicubic"}, {}, "as timm's gluon wants it"
        ),
    ),
    (
        r"(tf|adv)_?inception_v3|inception_v3[._-](tf|tf_adv)[._-]",
        Published(
            {**_HALF, "size": 299, "resize": 341, "interpolation": "bicubic"},
            {},
            "as timm's port of TensorFlow's weights wants it",
        ),
    ),
)


def published(model: Network, file_name: str) -> Published:
    """How the public weights of a network are used, of which a file of PyTorch's layout may be."""
    name, flavour = model_name(model), getattr(model, "flavour", None)
    if name == "inception_v3" and flavour == "torchvision":
        for pattern, found in _BY_FILE_NAME:
            if re.search(pattern, file_name):
                return found
    return _PUBLISHED.get((name, flavour), _UNKNOWN)
