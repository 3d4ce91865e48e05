"""BN-Inception (arXiv 1502.03167, Fig. 5): GoogLeNet's successor, batch-normalised, two 3×3 in
place of each 5×5.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from googlenet_jax.models.googlenet import STEMS
from googlenet_jax.models.inception_modules import GridReductionA, InceptionStyle, ModuleA, WidthsA
from googlenet_jax.models.layers import he_fan_in_truncated, pads, torch_uniform
from googlenet_jax.models.network import NormedNetwork, Output

Array = jax.Array

# Of the paper's there is no code: what it does not say is as in TensorFlow, where its network lived
# on.
PAPER = InceptionStyle(
    kernel_init=he_fan_in_truncated,
    dense_init=he_fan_in_truncated,
    padding="same",
    pool="same",
    reduction="same",
)
SLIM = dataclasses.replace(PAPER, norm_scale=False)
PORT = InceptionStyle(
    kernel_init=torch_uniform,
    dense_init=torch_uniform,
    logits_bias_init=None,
    bias_beside_norm=True,
    count_padding=True,
    reduction="half",
)
STYLES = {"paper": PAPER, "port": PORT, "slim": SLIM}

BRANCHES = {
    "conv_1x1": "1x1",
    "conv_3x3_reduce": "3x3_reduce",
    "conv_3x3": "3x3",
    "conv_double_3x3_reduce": "double_3x3_reduce",
    "conv_double_3x3_1": "double_3x3_1",
    "conv_double_3x3_2": "double_3x3_2",
    "pool_proj": "pool_proj",
}
MODULES = ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
TORCH_NAMES = {
    "conv1": "conv1_7x7_s2",
    "conv2_reduce": "conv2_3x3_reduce",
    "conv2": "conv2_3x3",
    **{
        f"inception_{m}/{ours}": f"inception_{m}_{theirs}"
        for m in MODULES
        for ours, theirs in BRANCHES.items()
    },
    "head": "last_linear",
}
TORCH_UNIT = {
    "depthwise_kernel": "_depthwise.weight",
    "kernel": ".weight",
    "bias": ".bias",
    "bn/scale": "_bn.weight",
    "bn/bias": "_bn.bias",
    "bn/mean": "_bn.running_mean",
    "bn/var": "_bn.running_var",
    "bn/count": "_bn.num_batches_tracked",
}


class BNInception(NormedNetwork):
    """BN-Inception as its paper prints it, as the common PyTorch port has it, or as TF-slim's
    `inception_v2`. No auxiliary heads.

    | | paper | port | slim |
    |---|---|---|---|
    | biases beside batch norm | no | yes | no |
    | batch norm has a scale | yes | yes | no |
    | padding | SAME | half the kernel; max pools in ceil mode | SAME |
    | average pools count padding | no | yes | no |
    | `stem` | separable | dense | separable, with biases in place of batch norm |
    | `pool_proj_4c` | 128 | 128 | 96 |
    | `bn_epsilon`, `bn_momentum` | 0.001, 0.9 | 1e-5, 0.9 | 0.001, 0.9997 |
    | `dropout` | 0 | 0 | 0.2 |
    | `num_classes` | 1000 | 1000 | 1001 |

    The port wants images whose map is a multiple of 4 where inception_3c begins, since its
    convolutions and pools round odd maps apart: 31 to 38 pixels, 63 to 70, and so on by 32 to 223
    to 230 and beyond.

    Attributes:
      flavour: one of these columns, which sets the options named in it where they are not given to
        `create_model`.
      stem: "dense" (7×7/2); "separable", a depthwise 7×7 with multiplier 8, then a 1×1; "small" for
        images such as 32×32: a 3×3/1, and no pool2.
      pool_proj_4c: width of the pool projections of 4c and 4d. 128 is what the paper prints beside
        sums (576, 576, 1024) that need 96.
      lrn: whether local response norm stands in the stem, as in GoogLeNet: the paper's BN-Baseline
        kept it, x5 and x30 removed it.
    """

    aux_heads: bool = False
    dropout: float = 0.0
    flavour: str = "paper"
    stem: str = "separable"
    pool_proj_4c: int = 128
    lrn: bool = False

    choices: ClassVar[Mapping[str, tuple]] = {"stem": tuple(STEMS), "aux_heads": (False,)}
    flavours: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "paper": {},
        "port": {"stem": "dense", "bn_epsilon": 1e-5},
        "slim": {"num_classes": 1001, "pool_proj_4c": 96, "bn_momentum": 0.9997, "dropout": 0.2},
    }
    torch_names: ClassVar[Mapping[str, str]] = TORCH_NAMES
    torch_unit: ClassVar[Mapping[str, str]] = TORCH_UNIT

    @property
    def style(self) -> InceptionStyle:  # type: ignore[override]
        """The flavour's."""
        return dataclasses.replace(STYLES[self.flavour], lrn=self.lrn)

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return (8 if self.stem == "small" else 31) if self.flavour == "port" else 1

    @nn.nowrap
    def size_problem(self, height: int, width: int, aux: bool) -> str:
        """See `Network.size_problem`."""
        problem = super().size_problem(height, width, aux)
        if problem or self.flavour != "port":
            return problem
        if _map_at_3c(height, self.stem) % 4 or _map_at_3c(width, self.stem) % 4:
            return (
                "the port takes 224, 256 and other sizes whose maps halve evenly (flavour 'paper'"
                f" takes all), found {height}×{width}"
            )
        return ""

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
        conv, pool, lrn, p = layers.conv, layers.pool, layers.lrn, self.pool_proj_4c
        kernel, stride, multiplier = STEMS[self.stem]
        # slim's batch norm follows its convolutions, of which the separable one is none.
        bare = self.flavour == "slim" and self.stem == "separable"
        first = {"depth_multiplier": multiplier} | (
            {"norm": None, "use_bias": True} if bare else {}
        )

        def inception(name: str, x: Array, *widths: int, pool_max: bool = False) -> Array:
            return ModuleA(layers, WidthsA(*widths), pool_max=pool_max, name=name)(x)

        def reduction(
            name: str, x: Array, reduce: int, conv_3x3: int, double_reduce: int, double: int
        ) -> Array:
            return GridReductionA(layers, conv_3x3, double_reduce, double, reduce, name=name)(x)

        # fmt: off
        # Fig. 5                                                             output at 224
        x = conv("conv1", x, 64, kernel, stride, **first)                    # 112×112×64
        x = pool("pool1", x)                                                 # 56×56×64
        x = lrn("norm1", x)
        x = conv("conv2_reduce", x, 64)                                      # 56×56×64
        x = conv("conv2", x, 192, 3)                                         # 56×56×192
        x = lrn("norm2", x)
        if self.stem != "small":
            x = pool("pool2", x)                                             # 28×28×192
        #                                 1×1 3×3r  3×3 dblr  dbl proj
        x = inception("inception_3a", x,   64,  64,  64,  64,  96,  32)      # 28×28×256
        x = inception("inception_3b", x,   64,  64,  96,  64,  96,  64)      # 28×28×320
        x = reduction("inception_3c", x,       128, 160,  64,  96)           # 14×14×576
        x = inception("inception_4a", x,  224,  64,  96,  96, 128, 128)      # 14×14×576
        x = inception("inception_4b", x,  192,  96, 128,  96, 128, 128)      # 14×14×576
        x = inception("inception_4c", x,  160, 128, 160, 128, 160,   p)      # 14×14×608 (slim 576)
        x = inception("inception_4d", x,   96, 128, 192, 160, 192,   p)      # 14×14×608 (slim 576)
        x = reduction("inception_4e", x,       128, 192, 192, 256)           # 7×7×1056 (slim 1024)
        x = inception("inception_5a", x,  352, 192, 320, 160, 224, 128)      # 7×7×1024
        x = inception("inception_5b", x,  352, 192, 320, 192, 224, 128, pool_max=True)   # 7×7×1024
        # fmt: on
        return self.finish(layers, "pool5", x)  # 1×1×1024


def _map_at_3c(size: int, stem: str) -> int:
    """Side of the port's map where inception_3c begins."""
    if stem != "small":
        size = (size + 1) // 2
    for _ in range(1 if stem == "small" else 2):
        before, after = pads(size, 3, 2, "ceil")
        size = (size + before + after - 3) // 2 + 1
    return size
