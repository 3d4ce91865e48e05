"""The modules of BN-Inception (arXiv 1502.03167) and of "Rethinking the Inception architecture"
(arXiv 1512.00567).

Figures are the latter's. Each module stands alone: `ModuleB(layers, 128)(x)`, with `Layers` as
`network.py` has them.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from googlenet_jax.models.layers import Padding, TruncatedNormal, avg_pool, sow, statistics_dtype
from googlenet_jax.models.network import VALID, Layers, Style

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class InceptionStyle(Style):
    """Where published implementations of these networks differ.

    Attributes:
      count_padding: whether the modules' average pools count what is padded, so that a mean at the
        map's border is of nine values.
      unbiased: whether batch norm's running variance is the unbiased one.
      reduction: padding of the stride-2 convolutions of grid reductions.
      last_max_pool: whether the last module pools by maximum.
    """

    count_padding: bool = False
    unbiased: bool = True
    reduction: Padding = VALID
    last_max_pool: bool = False


class TwoConv3x3(nn.Module):
    """Two 3×3 convolutions in place of a 5×5 (Fig. 1): the same reach with 18/25 of the weights
    where the widths are equal.
    """

    layers: Layers
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, features]`."""
        x = self.layers.conv("conv_3x3_1", x, self.features, 3)
        return sow(self, "output", self.layers.conv("conv_3x3_2", x, self.features, 3))


class AsymmetricConv(nn.Module):
    """A 1×n convolution, then an n×1, in place of an n×n (Fig. 3): the same reach with 2/n of the
    weights where the widths are equal.
    """

    layers: Layers
    features: int
    n: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, features]`."""
        x = self.layers.conv(f"conv_1x{self.n}", x, self.features, (1, self.n))
        return sow(
            self, "output", self.layers.conv(f"conv_{self.n}x1", x, self.features, (self.n, 1))
        )


class WidthsA(NamedTuple):
    """The columns of BN-Inception's table: the output channels of a module A's convolutions."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    double_reduce: int
    double: int
    pool_proj: int


class ModuleA(nn.Module):
    """1×1 | 1×1 → 3×3 | 1×1 → 3×3 → 3×3 | pool → 1×1, concatenated in this order (Fig. 5): two 3×3
    in place of the 5×5.

    Attributes:
      kernel: of the second branch: 5 in Inception-v3 as released.
      pool_max: whether the fourth branch pools by maximum and not by average.
    """

    layers: Layers
    widths: WidthsA
    kernel: int = 3
    pool_max: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, sum of the branches' widths]`."""
        conv, w, k = self.layers.conv, self.widths, self.kernel
        branch_1x1 = conv("conv_1x1", x, w.conv_1x1)
        branch_3x3 = conv(f"conv_{k}x{k}_reduce", x, w.conv_3x3_reduce)
        branch_3x3 = conv(f"conv_{k}x{k}", branch_3x3, w.conv_3x3, k)
        double = conv("conv_double_3x3_reduce", x, w.double_reduce)
        double = conv("conv_double_3x3_1", double, w.double, 3)
        double = conv("conv_double_3x3_2", double, w.double, 3)
        pooled = conv("pool_proj", _branch_pool(self.layers, x, self.pool_max), w.pool_proj)
        return sow(
            self, "output", jnp.concatenate([branch_1x1, branch_3x3, double, pooled], axis=-1)
        )


class ModuleB(nn.Module):
    """1×1 | 1×1 → 1×n → n×1 | 1×1 → n×1 → 1×n → n×1 → 1×n | average → 1×1 (Fig. 6): n×n
    convolutions, factorised.

    Attributes:
      middle: width inside the two factorised branches.
      features: of each of the four branches.
      n: of the factorised kernels.
    """

    layers: Layers
    middle: int
    features: int = 192
    n: int = 7

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, 4 · features]`."""
        conv, c, n = self.layers.conv, self.middle, self.n
        row, column = (1, n), (n, 1)
        branch_1x1 = conv("conv_1x1", x, self.features)
        single = conv(f"conv_{n}x{n}_reduce", x, c)
        single = conv(f"conv_1x{n}", single, c, row)
        single = conv(f"conv_{n}x1", single, self.features, column)
        double = conv(f"conv_double_{n}x{n}_reduce", x, c)
        double = conv(f"conv_double_{n}x1_1", double, c, column)
        double = conv(f"conv_double_1x{n}_1", double, c, row)
        double = conv(f"conv_double_{n}x1_2", double, c, column)
        double = conv(f"conv_double_1x{n}_2", double, self.features, row)
        pooled = conv("pool_proj", _branch_pool(self.layers, x), self.features)
        return sow(self, "output", jnp.concatenate([branch_1x1, single, double, pooled], axis=-1))


class ModuleC(nn.Module):
    """1×1 | 1×1 → {1×3, 3×1} | 1×1 → 3×3 → {1×3, 3×1} | pool → 1×1 (Fig. 7): the filter bank spread
    wide, on the coarsest grid.

    Attributes:
      pool_max: whether the last branch pools by maximum and not by average.
    """

    layers: Layers
    pool_max: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H, W, 2048]`."""
        conv = self.layers.conv
        branch_1x1 = conv("conv_1x1", x, 320)
        single = conv("conv_3x3_reduce", x, 384)
        double = conv("conv_double_3x3_reduce", x, 448)
        double = conv("conv_double_3x3", double, 384, 3)
        spread = [
            conv("conv_1x3", single, 384, (1, 3)),
            conv("conv_3x1", single, 384, (3, 1)),
            conv("conv_double_1x3", double, 384, (1, 3)),
            conv("conv_double_3x1", double, 384, (3, 1)),
        ]
        pooled = conv("pool_proj", _branch_pool(self.layers, x, self.pool_max), 192)
        return sow(self, "output", jnp.concatenate([branch_1x1, *spread, pooled], axis=-1))


class GridReductionA(nn.Module):
    """[1×1 →] 3×3/2 | 1×1 → 3×3 → 3×3/2 | max 3×3/2 (Fig. 10): half the grid, without a pool that
    all would have to pass.

    Attributes:
      conv_3x3, double_reduce, double: widths of the convolutions.
      conv_3x3_reduce: of the first branch's 1×1, which BN-Inception has; 0 where there is none.
    """

    layers: Layers
    conv_3x3: int
    double_reduce: int
    double: int
    conv_3x3_reduce: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, ~H/2, ~W/2, conv_3x3 + double + C]`."""
        conv, padding = self.layers.conv, self.layers.style.reduction
        single = conv("conv_3x3_reduce", x, self.conv_3x3_reduce) if self.conv_3x3_reduce else x
        single = conv("conv_3x3", single, self.conv_3x3, 3, 2, padding)
        double = conv("conv_double_3x3_reduce", x, self.double_reduce)
        double = conv("conv_double_3x3_1", double, self.double, 3)
        double = conv("conv_double_3x3_2", double, self.double, 3, 2, padding)
        pooled = self.layers.max_pool(x, 3, 2, self.layers.style.pool)
        return sow(self, "output", jnp.concatenate([single, double, pooled], axis=-1))


class GridReductionB(nn.Module):
    """1×1 → 3×3/2 | 1×1 → 1×7 → 7×1 → 3×3/2 | max 3×3/2: the second reduction, as released in
    Inception-v3.
    """

    layers: Layers

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, ~H/2, ~W/2, 512 + C]`."""
        conv, padding = self.layers.conv, self.layers.style.reduction
        single = conv("conv_3x3_reduce", x, 192)
        single = conv("conv_3x3", single, 320, 3, 2, padding)
        long = conv("conv_7x7_reduce", x, 192)
        long = conv("conv_1x7", long, 192, (1, 7))
        long = conv("conv_7x1", long, 192, (7, 1))
        long = conv("conv_7x7_3x3", long, 192, 3, 2, padding)
        pooled = self.layers.max_pool(x, 3, 2, self.layers.style.pool)
        return sow(self, "output", jnp.concatenate([single, long, pooled], axis=-1))


class AuxHead(nn.Module):
    """The auxiliary classifier: average 5×5/3, 1×1, a 5×5 that is a fully connected layer on the
    17×17 grid, classifier.

    Attributes:
      norm_5x5: whether batch norm follows the 5×5 too ("BN-auxiliary" in Table 3); a bias where
        not.
    """

    layers: Layers
    num_classes: int
    norm_5x5: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]`, at least 17 high and wide → logits `[N, num_classes]`."""
        x = self.layers.conv("conv", avg_pool(x, 5, 3), 128)
        settings = {"kernel_init": TruncatedNormal(0.01)} | (
            {} if self.norm_5x5 else {"norm": None, "use_bias": True}
        )
        x = self.layers.conv("conv_5x5", x, 768, 5, 1, VALID, **settings)
        x = x.astype(statistics_dtype(x.dtype)).mean((1, 2))
        return sow(
            self, "output", self.layers.logits("head", x, self.num_classes, TruncatedNormal(0.001))
        )


def _branch_pool(layers: Layers, x: Array, by_maximum: bool = False) -> Array:
    """A module's 3×3/1 pool, which keeps the map's size."""
    if by_maximum:
        return layers.max_pool(x, 3, 1, 1)
    return avg_pool(x, 3, 1, 1, layers.style.count_padding)


# ------------------------------------------------------------------------------ torchvision's names

_DOUBLE = {
    "conv_double_3x3_reduce": "branch3x3dbl_1",
    "conv_double_3x3_1": "branch3x3dbl_2",
    "conv_double_3x3_2": "branch3x3dbl_3",
}
_MODULE_A = {
    "conv_1x1": "branch1x1",
    "conv_3x3_reduce": "branch3x3_1",
    "conv_3x3": "branch3x3_2",
    "conv_5x5_reduce": "branch5x5_1",
    "conv_5x5": "branch5x5_2",
    **_DOUBLE,
    "pool_proj": "branch_pool",
}
_REDUCTION_A = {"conv_3x3": "branch3x3", **_DOUBLE}
_MODULE_B = {
    "conv_1x1": "branch1x1",
    "conv_7x7_reduce": "branch7x7_1",
    "conv_1x7": "branch7x7_2",
    "conv_7x1": "branch7x7_3",
    "conv_double_7x7_reduce": "branch7x7dbl_1",
    "conv_double_7x1_1": "branch7x7dbl_2",
    "conv_double_1x7_1": "branch7x7dbl_3",
    "conv_double_7x1_2": "branch7x7dbl_4",
    "conv_double_1x7_2": "branch7x7dbl_5",
    "pool_proj": "branch_pool",
}
_REDUCTION_B = {
    "conv_3x3_reduce": "branch3x3_1",
    "conv_3x3": "branch3x3_2",
    "conv_7x7_reduce": "branch7x7x3_1",
    "conv_1x7": "branch7x7x3_2",
    "conv_7x1": "branch7x7x3_3",
    "conv_7x7_3x3": "branch7x7x3_4",
}
_MODULE_C = {
    "conv_1x1": "branch1x1",
    "conv_3x3_reduce": "branch3x3_1",
    "conv_1x3": "branch3x3_2a",
    "conv_3x1": "branch3x3_2b",
    "conv_double_3x3_reduce": "branch3x3dbl_1",
    "conv_double_3x3": "branch3x3dbl_2",
    "conv_double_1x3": "branch3x3dbl_3a",
    "conv_double_3x1": "branch3x3dbl_3b",
    "pool_proj": "branch_pool",
}
_AUX_HEAD = {
    "aux1/conv": "AuxLogits.conv0",
    "aux1/conv_5x5": "AuxLogits.conv1",
    "aux1/head": "AuxLogits.fc",
}


def torchvision_names(stem: dict[str, str], last_b: str) -> dict[str, str]:
    """torchvision's names of the layers, in the order of its state dict.

    Args:
      stem: of the stem's convolutions.
      last_b: letter of the last module B, which the auxiliary head follows.
    """
    modules = [*((f"5{letter}", _MODULE_A) for letter in "bcd"), ("6a", _REDUCTION_A)]
    modules += [(f"6{chr(letter)}", _MODULE_B) for letter in range(ord("b"), ord(last_b) + 1)]
    names = dict(stem)
    for module, branches in modules:
        names |= {
            f"inception_{module}/{ours}": f"Mixed_{module}.{theirs}"
            for ours, theirs in branches.items()
        }
    names |= _AUX_HEAD
    for module, branches in (("7a", _REDUCTION_B), ("7b", _MODULE_C), ("7c", _MODULE_C)):
        names |= {
            f"inception_{module}/{ours}": f"Mixed_{module}.{theirs}"
            for ours, theirs in branches.items()
        }
    return names | {"head": "fc"}
