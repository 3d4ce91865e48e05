"""A small Inception with batch norm for images such as CIFAR's 32×32, made to learn much in few
epochs.

Its module is that of "Inception (small)" of arXiv 1611.03530, Fig. 3. What makes it quick is known
from speed runs on CIFAR-10 (Page 2018; Jordan, arXiv 2404.00498): few layers, a first one that
whitens, and most of the work at half the image's size and below.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.models.layers import Normal, he_fan_out, sow
from googlenet_jax.models.network import Layers, NormedNetwork, Output, Style

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Filters that whiten patches of photographs: principal components over their standard
    deviations, each beside its negative.

    The patches' covariance is not measured but modelled: the correlation of two pixels falls with
    their distance, and is the same between all channels; so no data is needed. Components beyond
    the patch's are repeated.

    Attributes:
      neighbours: correlation of pixels at distance one. colours: of two channels. epsilon: added to
        the variances.
    """

    neighbours: float = 0.95
    colours: float = 0.9
    epsilon: float = 0.01

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """The kernel `[h, w, in, out]`; `key` is not used."""
        height, width, channels, out = shape
        places = np.indices((height, width)).reshape(2, -1).T
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
        mixed = np.full((channels, channels), self.colours) + (1 - self.colours) * np.eye(channels)
        variances, components = np.linalg.eigh(np.kron(self.neighbours**distances, mixed))
        filters = (components / np.sqrt(variances + self.epsilon))[:, ::-1]
        signed = np.stack([filters, -filters], -1).reshape(len(filters), -1)
        kernel = signed[:, np.arange(out) % signed.shape[1]]
        return jnp.asarray(kernel.reshape(shape), dtype)


class SmallInception(nn.Module):
    """1×1 beside 3×3, concatenated; no reductions."""

    layers: Layers
    conv_1x1: int
    conv_3x3: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, conv_1x1 + conv_3x3]`."""
        conv = self.layers.conv
        branches = conv("conv_1x1", x, self.conv_1x1), conv("conv_3x3", x, self.conv_3x3, 3)
        return sow(self, "output", jnp.concatenate(branches, axis=-1))


TORCH_NAMES = {
    "conv1": "conv1",
    "conv2": "conv2",
    **{
        f"inception_{module}/{unit}": f"inception_{module}.{unit}"
        for module in ("3a", "3b", "4a", "4b", "5a")
        for unit in ("conv_1x1", "conv_3x3")
    },
    "head": "head",
}


class InceptionSmall(NormedNetwork):
    """Five modules behind a convolution that whitens and one more; no auxiliary heads.

    `freeze = ("conv1",)` keeps the first convolution as it begins, which saves its gradient and
    loses nothing that was measured.
    """

    num_classes: int = 10
    aux_heads: bool = False
    dropout: float = 0.0

    input_size = 32
    choices: ClassVar[Mapping[str, tuple]] = {"aux_heads": (False,)}
    torch_names: ClassVar[Mapping[str, str]] = TORCH_NAMES
    style = Style(kernel_init=he_fan_out, dense_init=Normal(0.01), pool=0)

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return 8

    @nn.compact
    def __call__(
        self,
        images: Array,
        train: bool,
        aux: bool | None = None,
        use_running_average: bool | None = None,
    ) -> Output:
        """Runs the network; see `Network.begin`."""
        layers, x, _ = self.begin(images, train, aux, use_running_average)
        conv, pool = layers.conv, layers.pool
        whitening: dict[str, Any] = {"kernel_init": Whitening(), "norm": None, "use_bias": False}

        def inception(name: str, x: Array, *widths: int) -> Array:
            return SmallInception(layers, *widths, name=name)(x)

        # fmt: off
        x = conv("conv1", x, 24, 3, **whitening)           # 32×32×24
        x = conv("conv2", x, 64, 3)                        # 32×32×64
        x = pool("pool1", x, 2)                            # 16×16×64
        #                                 1×1  3×3
        x = inception("inception_3a", x,  16,  48)         # 16×16×64
        x = inception("inception_3b", x,  64, 192)         # 16×16×256
        x = pool("pool2", x, 2)                            # 8×8×256
        x = inception("inception_4a", x,  64, 192)         # 8×8×256
        x = inception("inception_4b", x,  64, 192)         # 8×8×256
        x = pool("pool3", x, 2)                            # 4×4×256
        x = inception("inception_5a", x,  64, 192)         # 4×4×256
        # fmt: on
        return self.finish(layers, "pool4", x)
