"""The networks of 2014: GoogLeNet as published (arXiv 1409.4842) and its well-known variants.

`MODULES` and `Network.inception_layers` are the paper's Table 1 from inception_3a down; each class states its stem and what it does
otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from googlenet_jax.models import layers
from googlenet_jax.models.layers import BatchNorm, ConvUnit, Dense, adaptive_avg_pool, avg_pool_valid, local_response_norm, max_pool, sow

Array = jax.Array


@flax.struct.dataclass
class Output:
    """What a network returns.

    Attributes:
      logits: `[N, num_classes]`, `promote_types(dtype, float32)`.
      aux_logits: the auxiliary heads' logits by name, in training or where asked for; else empty.
    """

    logits: Array
    aux_logits: dict[str, Array]


class Widths(NamedTuple):
    """A row of the paper's Table 1: the output channels of a module's convolutions."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    conv_5x5_reduce: int
    conv_5x5: int
    pool_proj: int


MODULES = {
    "inception_3a": Widths(64, 96, 128, 16, 32, 32),
    "inception_3b": Widths(128, 128, 192, 32, 96, 64),
    "inception_4a": Widths(192, 96, 208, 16, 48, 64),
    "inception_4b": Widths(160, 112, 224, 24, 64, 64),
    "inception_4c": Widths(128, 128, 256, 24, 64, 64),
    "inception_4d": Widths(112, 144, 288, 32, 64, 64),
    "inception_4e": Widths(256, 160, 320, 32, 128, 128),
    "inception_5a": Widths(256, 160, 320, 32, 128, 128),
    "inception_5b": Widths(384, 192, 384, 48, 128, 128),
}

Unit = Callable[..., ConvUnit]
Attach = Callable[[str, Array], Array]


class Inception(nn.Module):
    """The Inception module with dimension reductions (Fig. 2b): 1×1 | 1×1 → 3×3 | 1×1 → 5×5 | pool → 1×1, concatenated in this order.

    Attributes:
      widths: the module's row of the table.
      unit: makes a convolution unit of `(features, window, name=…)`, stride 1, that keeps the map's size.
      wide: window of the `conv_5x5` branch; 3 for the networks that shipped with a 3×3 there.
    """

    widths: Widths
    unit: Unit
    wide: int = 5

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool) -> Array:
        """`[N, H, W, C]` → `[N, H, W, sum of the branches' widths]`."""
        w = self.widths

        def conv(name: str, features: int, window: int) -> Callable[[Array], Array]:
            return functools.partial(self.unit(features, window, name=name), use_running_average=use_running_average)

        branch_1x1 = conv("conv_1x1", w.conv_1x1, 1)(x)
        branch_3x3 = conv("conv_3x3", w.conv_3x3, 3)(conv("conv_3x3_reduce", w.conv_3x3_reduce, 1)(x))
        branch_5x5 = conv("conv_5x5", w.conv_5x5, self.wide)(conv("conv_5x5_reduce", w.conv_5x5_reduce, 1)(x))
        branch_pool = conv("pool_proj", w.pool_proj, 1)(max_pool(x, 3, 1, 1))
        return sow(self, "output", jnp.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool], axis=-1))


class NaiveInception(nn.Module):
    """The naive Inception module (Fig. 2a): 1×1 | 3×3 | 5×5 | pool, without reductions and projection: its output outgrows its input."""

    widths: Widths
    unit: Unit

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool) -> Array:
        """`[N, H, W, C]` → `[N, H, W, conv_1x1 + conv_3x3 + conv_5x5 + C]`."""
        w = self.widths
        branches = [
            self.unit(features, window, name=name)(x, use_running_average)
            for name, features, window in (("conv_1x1", w.conv_1x1, 1), ("conv_3x3", w.conv_3x3, 3), ("conv_5x5", w.conv_5x5, 5))
        ]
        return sow(self, "output", jnp.concatenate([*branches, max_pool(x, 3, 1, 1)], axis=-1))


class AuxHead(nn.Module):
    """An auxiliary classifier: average pool to 4×4, 1×1 convolution, ReLU layer, dropout, classifier.

    Attributes:
      widths: of the 1×1 convolution and of the fully connected layer.
      paper_pool: average 5×5/3 where the map is 14×14, as the paper has it, instead of PyTorch's adaptive windows.
      dropout: rate after the fully connected layer and, with `dropout_after_conv`, after the convolution.
    """

    num_classes: int
    unit: Unit
    dense: Callable[..., Dense]
    classifier: Callable[..., Dense]
    widths: tuple[int, int] = (128, 1024)
    paper_pool: bool = False
    dropout: float = 0.7
    dropout_after_conv: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool, use_running_average: bool) -> Array:
        """`[N, H, W, C]` → logits `[N, num_classes]`."""
        pooled = avg_pool_valid(x, 5, 3) if self.paper_pool and x.shape[1:3] == (14, 14) else adaptive_avg_pool(x, 4)
        x = self.unit(self.widths[0], 1, name="conv")(pooled, use_running_average)
        if self.dropout_after_conv:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = sow(self, "fc_output", nn.relu(self.dense(self.widths[1], name="fc")(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = self.classifier(self.num_classes, name="head")(x)
        return sow(self, "output", x)


class Network(nn.Module):
    """What the networks share: their options, the check of the input, the modules 3a to 5b and the heads. A variant states the rest.

    Attributes:
      num_classes: of the main and the auxiliary classifiers.
      aux_heads: whether the auxiliary classifiers exist.
      dropout, aux_dropout: rates before the main and the auxiliary classifiers.
      width: multiplies the channels of every layer but the classifiers.
      stem: "dense" (7×7/2); "separable" (`googlenet` alone); "small" for images such as 32×32: a 3×3/1 in place of the 7×7/2, and no pool2,
        so that the modules begin at half the image's size instead of an eighth.
      fully_connected_head: the classifier reads the whole last map in place of its global average; fixes the image's size.
      dtype: of the computation. param_dtype: of the parameters.
    """

    num_classes: int = 1000
    aux_heads: bool = True
    dropout: float = 0.4
    aux_dropout: float = 0.7
    width: float = 1.0
    stem: str = "dense"
    fully_connected_head: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    # The smallest image, by stem.
    min_sizes: ClassVar[dict[str, int]] = {}
    same_padding: ClassVar[bool] = False
    # In the place of the 5×5: 3 for the networks that shipped with a 3×3 there.
    wide: ClassVar[int] = 5
    kernel_init: ClassVar[Any]
    bias_init: ClassVar[Any] = None
    dense_init: ClassVar[Any]
    dense_bias_init: ClassVar[Any] = staticmethod(nn.initializers.zeros)
    classifier_bias_init: ClassVar[Any] = staticmethod(nn.initializers.zeros)
    aux_settings: ClassVar[dict[str, Any]] = {}

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return self.min_sizes[self.stem]

    # The layers as this network has them. `nowrap`, since modules below make their layers with them.

    @nn.nowrap
    def norm(self) -> Callable[..., BatchNorm] | None:
        """Makes this network's batch norms, if it has any."""
        return None

    @nn.nowrap
    def unit(self, features: int, window: int = 1, stride: int = 1, **settings: Any) -> ConvUnit:
        """A convolution unit; at stride 1 it keeps the map's size."""
        padding = "same" if self.same_padding else (window // 2, window // 2)
        settings |= {"norm": self.norm(), "kernel_init": self.kernel_init, "bias_init": self.bias_init}
        return ConvUnit(features, (window, window), stride, padding, dtype=self.dtype, param_dtype=self.param_dtype, **settings)

    @nn.nowrap
    def dense(self, features: int, name: str) -> Dense:
        """A fully connected layer inside a head."""
        return Dense(features, self.dense_init, self.dense_bias_init, self.dtype, self.param_dtype, name=name)

    @nn.nowrap
    def classifier(self, features: int, name: str) -> Dense:
        """The last layer of a head, computed in the dtype of the logits."""
        dtype = layers.statistics_dtype(self.dtype)
        return Dense(features, self.dense_init, self.classifier_bias_init, dtype, self.param_dtype, name=name)

    @nn.nowrap
    def scaled(self, features: int) -> int:
        """`features` times `width`, at least one."""
        return max(1, round(features * self.width))

    @nn.nowrap
    def widths(self, name: str) -> Widths:
        """That module's row of the table, times `width`."""
        return Widths(*(self.scaled(features) for features in MODULES[name]))

    def pool(self, x: Array) -> Array:
        """The stride-2 pools: 3×3 in ceil mode, without padding."""
        return max_pool(x, 3, 2, "ceil")

    def last_pool(self, x: Array) -> Array:
        """The one after inception_4e."""
        return self.pool(x)

    def conv(self, name: str, x: Array, frozen: bool, features: int, window: int = 1, stride: int = 1, **settings: Any) -> Array:
        """A convolution unit of the stem."""
        return self.unit(self.scaled(features), window, stride, name=name, **settings)(x, frozen)

    def first(self, x: Array, frozen: bool, features: int = 64, **settings: Any) -> Array:
        """The stem's first convolution and pool1."""
        window, stride = (3, 1) if self.stem == "small" else (7, 2)
        x = self.conv("conv1", x, frozen, features, window, stride, **settings)
        return sow(self, "pool1", self.pool(x))

    def second_pool(self, x: Array) -> Array:
        """pool2, which a stem for small images leaves out."""
        return x if self.stem == "small" else sow(self, "pool2", self.pool(x))

    def module(self, name: str, x: Array, frozen: bool) -> Array:
        """The Inception module of that name."""
        return Inception(self.widths(name), self.unit, self.wide, name=name)(x, frozen)

    def aux_head(self, name: str) -> AuxHead:
        """The auxiliary classifier of that name."""
        widths = (self.scaled(128), self.scaled(1024))
        settings = {"dropout": self.aux_dropout, **self.aux_settings}
        return AuxHead(self.num_classes, self.unit, self.dense, self.classifier, widths, name=name, **settings)

    def stem_layers(self, x: Array, frozen: bool) -> Array:
        """From the image to the input of inception_3a."""
        raise NotImplementedError

    def inception_layers(self, x: Array, frozen: bool, attach: Attach) -> Array:
        """From inception_3a to inception_5b, the same in every network of this file."""
        module = functools.partial(self.module, frozen=frozen)
        x = module("inception_3a", x)
        x = module("inception_3b", x)
        x = sow(self, "pool3", self.pool(x))
        x = attach("aux1", module("inception_4a", x))
        x = module("inception_4b", x)
        x = module("inception_4c", x)
        x = attach("aux2", module("inception_4d", x))
        x = module("inception_4e", x)
        x = sow(self, "pool4", self.last_pool(x))
        x = module("inception_5a", x)
        return module("inception_5b", x)

    def head(self, x: Array, train: bool) -> Array:
        """Global average (or the whole map), dropout, classifier: `[N, H, W, C]` → `[N, num_classes]`."""
        x = x.astype(layers.statistics_dtype(x.dtype))
        x = sow(self, "pool5", x.reshape(x.shape[0], -1) if self.fully_connected_head else x.mean((1, 2)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.classifier(self.num_classes, name="head")(x)

    @nn.compact
    def __call__(self, images: Array, train: bool, aux: bool | None = None, use_running_average: bool | None = None) -> Output:
        """Runs the network.

        Args:
          images: floats `[N, H, W, 3]`, at least `min_size` high and wide, normalised as the network's preprocessing says.
          train: whether dropout acts (it draws from the "dropout" stream), the auxiliary heads answer and batch norm uses the batch.
          aux: whether the auxiliary heads answer, where that should differ from `train`.
          use_running_average: whether batch norm uses its running statistics, where that should differ from `not train`.
        Raises:
          ValueError: images of another rank, channel count or dtype, or smaller than `min_size`.
        """
        check_images(self, images)
        frozen = not train if use_running_average is None else use_running_average
        answer = self.aux_heads and ((train if aux is None else aux) or self.is_initializing())
        aux_logits: dict[str, Array] = {}

        def attach(name: str, x: Array) -> Array:
            if answer:
                aux_logits[name] = self.aux_head(name)(x, train, frozen)
            return x

        x = self.stem_layers(images.astype(self.dtype), frozen)
        x = self.inception_layers(x, frozen, attach)
        return Output(self.head(x, train), aux_logits)


def check_images(model: Network, images: Array) -> None:
    """Raises ValueError, in words, where a network can't take `images`."""
    name = type(model).__name__
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name}: images must be [N, H, W, 3], found shape {list(images.shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name}: images must be normalised floats, found {images.dtype}; see googlenet_jax.data.preprocessing.normalize")
    height, width = images.shape[1:3]
    if min(height, width) < model.min_size:
        raise ValueError(f"{name} with stem={model.stem!r}: images must be at least {model.min_size} high and wide, found {height}×{width}")


class GoogLeNet(Network):
    """GoogLeNet as published (arXiv 1409.4842, Table 1 and Fig. 3; Caffe's bvlc_googlenet): LRN, biases, ceil-mode pooling.

    Initialised as Caffe's: Xavier-uniform by fan-in, biases 0.2, those of the classifiers 0.
    `stem="separable"` is Table 1's first row as printed (2.7K weights): a depthwise 7×7 with multiplier 8, then a 1×1.
    """

    min_sizes: ClassVar[dict[str, int]] = {"dense": 31, "separable": 31, "small": 8}
    kernel_init: ClassVar[Any] = staticmethod(layers.xavier_fan_in)
    bias_init: ClassVar[Any] = staticmethod(nn.initializers.constant(0.2))
    dense_init: ClassVar[Any] = staticmethod(layers.xavier_fan_in)
    dense_bias_init: ClassVar[Any] = staticmethod(nn.initializers.constant(0.2))
    aux_settings: ClassVar[dict[str, Any]] = {"paper_pool": True}

    def stem_layers(self, x: Array, frozen: bool) -> Array:
        x = self.first(x, frozen, depth_multiplier=8 if self.stem == "separable" else None)
        x = sow(self, "norm1", local_response_norm(x))
        x = self.conv("conv2_reduce", x, frozen, 64)
        x = self.conv("conv2", x, frozen, 192, 3)
        x = sow(self, "norm2", local_response_norm(x))
        return self.second_pool(x)


class GoogLeNetNaive(GoogLeNet):
    """GoogLeNet of the naive modules (Fig. 2a), with the same widths: what it costs to leave out the 1×1 reductions."""

    def module(self, name: str, x: Array, frozen: bool) -> Array:
        return NaiveInception(self.widths(name), self.unit, name=name)(x, frozen)


class GoogLeNetPlain(Network):
    """The network of the seeds, repaired: no normalisation, no auxiliary heads, no ReLU and no reduction in the stem, pools padded by one.

    Attributes:
      base_dim: width of the stem: `base_dim`, then three times that.
    """

    num_classes: int = 2
    aux_heads: bool = False
    base_dim: int = 64

    min_sizes: ClassVar[dict[str, int]] = {"dense": 1, "small": 1}
    kernel_init: ClassVar[Any] = staticmethod(layers.torch_uniform)
    dense_init: ClassVar[Any] = staticmethod(layers.torch_uniform)
    dense_bias_init: ClassVar[Any] = None
    classifier_bias_init: ClassVar[Any] = None

    def pool(self, x: Array) -> Array:
        return max_pool(x, 3, 2, 1)

    def stem_layers(self, x: Array, frozen: bool) -> Array:
        x = self.first(x, frozen, self.base_dim, relu=False)
        x = self.conv("conv2", x, frozen, 3 * self.base_dim, 3, relu=False)
        return self.second_pool(x)


class NormedNetwork(Network):
    """What the networks with batch norm share.

    Attributes:
      bn_epsilon, bn_momentum: of every batch norm; see `layers.BatchNorm`.
      bn_groups: equal parts of a training batch that have statistics of their own.
    """

    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9
    bn_groups: int = 1

    bn_scale: ClassVar[bool] = True

    @nn.nowrap
    def norm(self) -> Callable[..., BatchNorm]:
        return functools.partial(BatchNorm, self.bn_momentum, self.bn_epsilon, use_scale=self.bn_scale, groups=self.bn_groups)

    def stem_layers(self, x: Array, frozen: bool) -> Array:
        x = self.first(x, frozen)
        x = self.conv("conv2_reduce", x, frozen, 64)
        x = self.conv("conv2", x, frozen, 192, 3)
        return self.second_pool(x)


class GoogLeNetBN(NormedNetwork):
    """GoogLeNet with batch norm, of seed 003, repaired: true 5×5, pools padded by one, He initialisation.

    The auxiliary heads have two dropouts, after the convolution and after the fully connected layer, both of `aux_dropout`.
    """

    aux_dropout: float = 0.4
    bn_epsilon: float = 1e-2

    min_sizes: ClassVar[dict[str, int]] = {"dense": 1, "small": 1}
    kernel_init: ClassVar[Any] = staticmethod(layers.he_fan_out)
    dense_init: ClassVar[Any] = staticmethod(nn.initializers.normal(0.01))
    aux_settings: ClassVar[dict[str, Any]] = {"dropout_after_conv": True}

    def pool(self, x: Array) -> Array:
        return max_pool(x, 3, 2, 1)


class GoogLeNetTorchvision(NormedNetwork):
    """torchvision's `googlenet`: batch norm, a 3×3 in the place of the 5×5 (its issue 906), ceil-mode pools of which the last is 2×2/2.

    Attributes:
      transform_input: turns images normalised with ImageNet's mean and standard deviation into the [−1, 1] that the released weights want.
    """

    dropout: float = 0.2
    transform_input: bool = False

    min_sizes: ClassVar[dict[str, int]] = {"dense": 15, "small": 4}
    wide: ClassVar[int] = 3
    kernel_init: ClassVar[Any] = staticmethod(nn.initializers.normal(0.01))
    dense_init: ClassVar[Any] = staticmethod(nn.initializers.normal(0.01))
    dense_bias_init: ClassVar[Any] = None
    classifier_bias_init: ClassVar[Any] = None

    def last_pool(self, x: Array) -> Array:
        return max_pool(x, 2, 2, "ceil")

    def stem_layers(self, x: Array, frozen: bool) -> Array:
        if self.transform_input:
            mean, std = jnp.array([0.485, 0.456, 0.406], x.dtype), jnp.array([0.229, 0.224, 0.225], x.dtype)
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        return super().stem_layers(x, frozen)


class GoogLeNetSlim(NormedNetwork):
    """TF-slim's `inception_v1`: SAME padding, a 3×3 in the place of the 5×5, batch norm without gamma, no auxiliary heads."""

    aux_heads: bool = False
    dropout: float = 0.2
    bn_momentum: float = 0.9997

    min_sizes: ClassVar[dict[str, int]] = {"dense": 1, "small": 1}
    same_padding: ClassVar[bool] = True
    wide: ClassVar[int] = 3
    bn_scale: ClassVar[bool] = False
    kernel_init: ClassVar[Any] = staticmethod(layers.truncated_normal(0.01))
    dense_init: ClassVar[Any] = staticmethod(layers.he_fan_in_truncated)

    def pool(self, x: Array) -> Array:
        return max_pool(x, 3, 2, "same")

    def last_pool(self, x: Array) -> Array:
        return max_pool(x, 2, 2, "same")
