"""The networks of 2014: GoogLeNet as published (arXiv 1409.4842) and its well-known variants.

`GoogLeNet.__call__` is the paper's Table 1. A variant is a `Style`, its smallest sizes and its
options' defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from googlenet_jax.models.layers import (
    Constant,
    Normal,
    TruncatedNormal,
    activate,
    adaptive_avg_pool,
    avg_pool,
    he_fan_in_truncated,
    he_fan_out,
    sow,
    torch_uniform,
    xavier_fan_in,
)
from googlenet_jax.models.network import (
    Layers,
    Network,
    NormedNetwork,
    Output,
    PrintedRow,
    PrintedTable,
    Style,
)

Array = jax.Array


class Widths(NamedTuple):
    """The columns of the paper's Table 1: the output channels of a module's convolutions."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    conv_5x5_reduce: int
    conv_5x5: int
    pool_proj: int


class Inception(nn.Module):
    """The module with dimension reductions (Fig. 2b): 1×1 | 1×1 → 3×3 | 1×1 → 5×5 | pool → 1×1,
    concatenated in this order.
    """

    layers: Layers
    widths: Widths

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, sum of the branches' widths]`."""
        conv, w = self.layers.conv, self.widths
        branch_1x1 = conv("conv_1x1", x, w.conv_1x1)
        branch_3x3 = conv("conv_3x3_reduce", x, w.conv_3x3_reduce)
        branch_3x3 = conv("conv_3x3", branch_3x3, w.conv_3x3, 3)
        branch_5x5 = conv("conv_5x5_reduce", x, w.conv_5x5_reduce)
        branch_5x5 = conv("conv_5x5", branch_5x5, w.conv_5x5, self.layers.style.kernel_5x5)
        branch_pool = conv("pool_proj", self.layers.max_pool(x, 3, 1, 1), w.pool_proj)
        branches = [branch_1x1, branch_3x3, branch_5x5, branch_pool]
        return sow(self, "output", jnp.concatenate(branches, axis=-1))


class NaiveInception(nn.Module):
    """The naive module (Fig. 2a): 1×1 | 3×3 | 5×5 | pool, without reductions and projection: its
    output outgrows its input.
    """

    layers: Layers
    widths: Widths

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, conv_1x1 + conv_3x3 + conv_5x5 + C]`."""
        conv, w = self.layers.conv, self.widths
        branch_1x1 = conv("conv_1x1", x, w.conv_1x1)
        branch_3x3 = conv("conv_3x3", x, w.conv_3x3, 3)
        branch_5x5 = conv("conv_5x5", x, w.conv_5x5, 5)
        branches = [branch_1x1, branch_3x3, branch_5x5, self.layers.max_pool(x, 3, 1, 1)]
        return sow(self, "output", jnp.concatenate(branches, axis=-1))


class AuxHead(nn.Module):
    """An auxiliary classifier: average to 4×4, 1×1 convolution, fully connected layer, dropout,
    classifier.

    The average is 5×5/3 where the style has the paper's and the map is 14×14, else PyTorch's
    adaptive one.
    """

    layers: Layers
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → logits `[N, num_classes]`."""
        layers, style = self.layers, self.layers.style
        papers = style.aux_pool_5x5 and x.shape[1:3] == (14, 14)
        x = avg_pool(x, 5, 3) if papers else adaptive_avg_pool(x, 4)
        x = layers.conv("conv", x, 128)
        if style.aux_dropout_after_conv:
            x = layers.dropout(x, self.dropout)
        x = layers.dense("fc", x.reshape(x.shape[0], -1), 1024)
        x = layers.dropout(sow(self, "fc_output", activate(layers.activation, x)), self.dropout)
        return sow(self, "output", layers.logits("head", x, self.num_classes))


@dataclasses.dataclass(frozen=True)
class GoogLeNetStyle(Style):
    """Where the published GoogLeNets differ.

    Attributes:
      inception: the module.
      kernel_5x5: of the branch of that name; 3 in the networks that shipped with a 3×3 there.
      pool4: window of the pool after inception_4e.
      conv2_reduce: whether the stem has its 1×1. stem_relu: whether the stem has rectifiers.
      aux_pool_5x5, aux_dropout_after_conv: see `AuxHead`.
    """

    inception: type[nn.Module] = Inception
    kernel_5x5: int = 5
    pool4: int = 3
    conv2_reduce: bool = True
    stem_relu: bool = True
    aux_pool_5x5: bool = False
    aux_dropout_after_conv: bool = False


CAFFE = GoogLeNetStyle(
    kernel_init=xavier_fan_in,
    bias_init=Constant(0.2),
    dense_init=xavier_fan_in,
    dense_bias_init=Constant(0.2),
    lrn=True,
    aux_pool_5x5=True,
)
NAIVE = dataclasses.replace(CAFFE, inception=NaiveInception)
TUTORIAL = GoogLeNetStyle(
    kernel_init=he_fan_out, dense_init=Normal(0.01), pool=1, aux_dropout_after_conv=True
)
TORCHVISION = GoogLeNetStyle(
    kernel_init=Normal(0.01),
    dense_init=Normal(0.01),
    dense_bias_init=None,
    logits_bias_init=None,
    kernel_5x5=3,
    pool4=2,
)
SLIM = GoogLeNetStyle(
    kernel_init=TruncatedNormal(0.01),
    dense_init=he_fan_in_truncated,
    norm_scale=False,
    padding="same",
    pool="same",
    kernel_5x5=3,
    pool4=2,
)
PLAIN = GoogLeNetStyle(
    kernel_init=torch_uniform,
    dense_init=torch_uniform,
    dense_bias_init=None,
    logits_bias_init=None,
    pool=1,
    conv2_reduce=False,
    stem_relu=False,
)

# As printed. The weights fit no single rounding, and the first row fits the separable stem.
# fmt: off
TABLE_1 = PrintedTable(
    source="Table 1 of arXiv 1409.4842",
    input_size=224,
    options={"num_classes": 1000, "width": 1.0, "fully_connected_head": False, "stem": ("dense", "separable")},
    notes={"conv1": "the paper's row fits the separable stem"},
    rows=(
        PrintedRow(("conv1",),                  (112, 112, 64),   2.7,  34, weights_unit=0.1),
        PrintedRow(("pool1",),                  (56, 56, 64)),
        PrintedRow(("conv2_reduce", "conv2"),   (56, 56, 192),    112, 360),
        PrintedRow(("pool2",),                  (28, 28, 192)),
        PrintedRow(("inception_3a",),           (28, 28, 256),    159, 128),
        PrintedRow(("inception_3b",),           (28, 28, 480),    380, 304),
        PrintedRow(("pool3",),                  (14, 14, 480)),
        PrintedRow(("inception_4a",),           (14, 14, 512),    364,  73),
        PrintedRow(("inception_4b",),           (14, 14, 512),    437,  88),
        PrintedRow(("inception_4c",),           (14, 14, 512),    463, 100),
        PrintedRow(("inception_4d",),           (14, 14, 528),    580, 119),
        PrintedRow(("inception_4e",),           (14, 14, 832),    840, 170),
        PrintedRow(("pool4",),                  (7, 7, 832)),
        PrintedRow(("inception_5a",),           (7, 7, 832),     1072,  54),
        PrintedRow(("inception_5b",),           (7, 7, 1024),    1388,  71),
        PrintedRow(("pool5",),                  (1024,)),
        PrintedRow(("head",),                   (1000,),         1000,   1),
    ),
)
# fmt: on

# Stem → conv1's kernel, stride and depth multiplier.
STEMS = {"dense": (7, 2, None), "separable": (7, 2, 8), "small": (3, 1, None)}
SMALL_OR_DENSE = {"stem": ("dense", "small")}

BRANCHES = {
    "conv_1x1": "branch1",
    "conv_3x3_reduce": "branch2.0",
    "conv_3x3": "branch2.1",
    "conv_5x5_reduce": "branch3.0",
    "conv_5x5": "branch3.1",
    "pool_proj": "branch4.1",
}
NAIVE_BRANCHES = {"conv_1x1": "branch1", "conv_3x3": "branch2", "conv_5x5": "branch3"}


def torchvision_names(branches: Mapping[str, str]) -> dict[str, str]:
    """torchvision's names of the layers, in the order of its state dict."""
    names = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for branch, theirs in branches.items():
            names[f"inception_{module}/{branch}"] = f"inception{module}.{theirs}"
    for head in ("aux1", "aux2"):
        names |= {f"{head}/conv": f"{head}.conv", f"{head}/fc": f"{head}.fc1"}
        names[f"{head}/head"] = f"{head}.fc2"
    return names | {"head": "fc"}


class GoogLeNet(Network):
    """GoogLeNet as published (arXiv 1409.4842, Table 1 and Fig. 3; Caffe's bvlc_googlenet): LRN,
    biases, ceil-mode pooling.

    Initialised as Caffe's: Xavier-uniform by fan-in, biases 0.2, those of the classifiers 0.
    `stem="separable"` is Table 1's first row as printed (2.7K weights): a depthwise 7×7 with
    multiplier 8, then a 1×1.

    Attributes:
      aux_dropout: rate before the auxiliary classifiers.
      stem: "dense" (7×7/2); "separable"; "small" for images such as 32×32: a 3×3/1 in place of the
        7×7/2, and no pool2, so that the modules begin at half the image's size instead of an
        eighth.
      fully_connected_head: the classifier reads the whole last map in place of its global average;
        fixes the image's size.
    """

    aux_dropout: float = 0.7
    stem: str = "dense"
    fully_connected_head: bool = False

    style: ClassVar[GoogLeNetStyle] = CAFFE
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": tuple(STEMS)}
    min_sizes: ClassVar[Mapping[str, int]] = {"dense": 31, "separable": 31, "small": 8}
    base_dim = 64  # width of the stem
    torch_names: ClassVar[Mapping[str, str]] = torchvision_names(BRANCHES)
    printed: ClassVar[PrintedTable | None] = TABLE_1

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return self.min_sizes[self.stem]

    @nn.compact
    def __call__(
        self,
        images: Array,
        train: bool,
        aux: bool | None = None,
        use_running_average: bool | None = None,
    ) -> Output:
        """Runs the network; see `Network.begin`."""
        layers, x, wants_aux = self.begin(images, train, aux, use_running_average)
        conv, pool, lrn, style = layers.conv, layers.pool, layers.lrn, self.style
        kernel, stride, multiplier = STEMS[self.stem]
        width, relu = self.base_dim, style.stem_relu
        first = {"depth_multiplier": multiplier, "relu": relu}
        aux_logits: dict[str, Array] = {}

        def inception(name: str, x: Array, *widths: int) -> Array:
            return style.inception(layers, Widths(*widths), name=name)(x)

        def aux_head(name: str, x: Array) -> None:
            if wants_aux:
                head = AuxHead(layers, self.num_classes, self.aux_dropout, name=name)
                aux_logits[name] = head(x)

        # fmt: off
        # Table 1                                                                   output at 224
        x = conv("conv1", x, width, kernel, stride, **first)                        # 112×112×64
        x = pool("pool1", x)                                                        # 56×56×64
        x = lrn("norm1", x)
        if style.conv2_reduce:
            x = conv("conv2_reduce", x, 64)                                         # 56×56×64
        x = conv("conv2", x, 3 * width, 3, relu=relu)                               # 56×56×192
        x = lrn("norm2", x)
        if self.stem != "small":
            x = pool("pool2", x)                                                    # 28×28×192
        #                                 1×1  3×3r  3×3  5×5r  5×5 proj
        x = inception("inception_3a", x,   64,   96, 128,   16,  32,  32)           # 28×28×256
        x = inception("inception_3b", x,  128,  128, 192,   32,  96,  64)           # 28×28×480
        x = pool("pool3", x)                                                        # 14×14×480
        x = inception("inception_4a", x,  192,   96, 208,   16,  48,  64)           # 14×14×512
        aux_head("aux1", x)
        x = inception("inception_4b", x,  160,  112, 224,   24,  64,  64)           # 14×14×512
        x = inception("inception_4c", x,  128,  128, 256,   24,  64,  64)           # 14×14×512
        x = inception("inception_4d", x,  112,  144, 288,   32,  64,  64)           # 14×14×528
        aux_head("aux2", x)
        x = inception("inception_4e", x,  256,  160, 320,   32, 128, 128)           # 14×14×832
        x = pool("pool4", x, style.pool4)                                           # 7×7×832
        x = inception("inception_5a", x,  256,  160, 320,   32, 128, 128)           # 7×7×832
        x = inception("inception_5b", x,  384,  192, 384,   48, 128, 128)           # 7×7×1024
        # fmt: on
        return self.finish(layers, "pool5", x, aux_logits, average=not self.fully_connected_head)


class GoogLeNetNaive(GoogLeNet):
    """GoogLeNet of the naive modules (Fig. 2a), with the same widths: what it costs to leave out
    the 1×1 reductions.
    """

    style = NAIVE
    torch_names = torchvision_names(NAIVE_BRANCHES)
    printed = None


class GoogLeNetPlain(GoogLeNet):
    """The network of many tutorials: no normalisation, no auxiliary heads, no ReLU and no reduction
    in the stem, pools padded by one.

    Attributes:
      base_dim: width of the stem: `base_dim`, then three times that.
    """

    num_classes: int = 2
    aux_heads: bool = False
    base_dim: int = 64

    style = PLAIN
    choices = SMALL_OR_DENSE
    min_sizes: ClassVar[Mapping[str, int]] = {"dense": 1, "small": 1}
    printed = None


class GoogLeNetBN(NormedNetwork, GoogLeNet):
    """GoogLeNet with batch norm, as common PyTorch tutorials build it: true 5×5, pools padded by
    one, He initialisation.

    The auxiliary heads have two dropouts, after the convolution and after the fully connected
    layer, both of `aux_dropout`.

    Attributes:
      transform_input: see `Network.begin`.
    """

    aux_dropout: float = 0.4
    bn_epsilon: float = 1e-2
    transform_input: bool = False

    style = TUTORIAL
    choices = SMALL_OR_DENSE
    min_sizes: ClassVar[Mapping[str, int]] = {"dense": 1, "small": 1}
    printed = None


class GoogLeNetTorchvision(NormedNetwork, GoogLeNet):
    """torchvision's `googlenet`: batch norm, a 3×3 in the place of the 5×5 (its issue 906),
    ceil-mode pools of which the last is 2×2/2.

    Attributes:
      transform_input: see `Network.begin`; its released weights want it.
    """

    dropout: float = 0.2
    transform_input: bool = False

    style = TORCHVISION
    choices = SMALL_OR_DENSE
    min_sizes: ClassVar[Mapping[str, int]] = {"dense": 15, "small": 4}
    printed = None


class GoogLeNetSlim(NormedNetwork, GoogLeNet):
    """TF-slim's `inception_v1`: SAME padding, a 3×3 in the place of the 5×5, batch norm without
    gamma, no auxiliary heads.
    """

    aux_heads: bool = False
    dropout: float = 0.2
    bn_momentum: float = 0.9997

    style = SLIM
    choices = SMALL_OR_DENSE
    min_sizes: ClassVar[Mapping[str, int]] = {"dense": 1, "small": 1}
    printed = None
