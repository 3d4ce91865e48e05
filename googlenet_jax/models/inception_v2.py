"""Inception-v2 of "Rethinking the Inception architecture" (arXiv 1512.00567), Table 1, which no
public code builds.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from googlenet_jax.models.inception_modules import (
    AuxHead,
    GridReductionA,
    GridReductionB,
    InceptionStyle,
    ModuleA,
    ModuleB,
    ModuleC,
    WidthsA,
    torchvision_names,
)
from googlenet_jax.models.inception_v3 import InceptionV2V3Base
from googlenet_jax.models.layers import he_fan_in_truncated
from googlenet_jax.models.network import VALID, Output, PrintedRow, PrintedTable

Array = jax.Array

# Not published: initialisers and pools are those of TF-slim's v3, batch norm has its scale as in
# arXiv 1502.03167.
STYLE = InceptionStyle(kernel_init=he_fan_in_truncated, dense_init=he_fan_in_truncated, pool=VALID)

STEM = {
    "conv1": "Conv2d_1a_7x7",
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_3x3",
    "conv4a": "Conv2d_4a_3x3",
    "conv4b": "Conv2d_4b_3x3",
}

# The paper prints what goes into each row: an output is the next row's input. A grid reduction
# belongs to the modules before it.
# fmt: off
TABLE_1 = PrintedTable(
    source="Table 1 of arXiv 1512.00567",
    input_size=299,
    options={"num_classes": 1000, "width": 1.0, "stem": "factorised"},
    rows=(
        PrintedRow(("conv1a",), (149, 149, 32)),
        PrintedRow(("conv2a",), (147, 147, 32)),
        PrintedRow(("conv2b",), (147, 147, 64)),
        PrintedRow(("pool1",), (73, 73, 64)),
        PrintedRow(("conv3b",), (71, 71, 80)),
        PrintedRow(("conv4a",), (35, 35, 192)),
        PrintedRow(("conv4b",), (35, 35, 288)),
        PrintedRow(("inception_5b", "inception_5c", "inception_5d", "inception_6a"), (17, 17, 768)),
        PrintedRow(("inception_6b", "inception_6c", "inception_6d", "inception_6e", "inception_6f", "inception_7a"), (8, 8, 1280)),
        PrintedRow(("inception_7b", "inception_7c"), (8, 8, 2048)),
        PrintedRow(("pool2",), (2048,)),
        PrintedRow(("head",), (1000,)),
    ),
)
# fmt: on


class InceptionV2(InceptionV2V3Base):
    """Inception-v2: 42 layers, modules A, B and C between two grid reductions.

    The branches' widths are not published: they are those of v3 as released; of the five modules B,
    one more than v3 has, the last repeats v3's last. Module A is the paper's Fig. 5, with a 3×3
    where the released v3 kept a 5×5.

    The rows of the paper's ablation (Table 3) are options: `stem`, `aux_bn`, and label smoothing in
    the config.

    Attributes:
      stem: "factorised" (three 3×3, as in Table 1) or "dense" (the 7×7/2 that they replace, to the
        same 147×147×64).
      aux_bn: whether batch norm follows the auxiliary head's fully connected layer too.
    """

    stem: str = "factorised"
    aux_bn: bool = False

    style: ClassVar[InceptionStyle] = STYLE
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"stem": ("factorised", "dense")}
    torch_names: ClassVar[Mapping[str, str]] = torchvision_names(STEM, last_b="f")
    printed: ClassVar[PrintedTable | None] = TABLE_1

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
        conv, pool = layers.conv, layers.pool
        aux_logits: dict[str, Array] = {}

        def module_a(name: str, x: Array) -> Array:
            return ModuleA(layers, WidthsA(64, 48, 64, 64, 96, 64), name=name)(x)

        def module_b(name: str, x: Array, middle: int) -> Array:
            return ModuleB(layers, middle, name=name)(x)

        # fmt: off
        # Table 1                                                            output at 299
        if self.stem == "dense":
            x = conv("conv1", x, 64, 7, 2, VALID)                            # 147×147×64
        else:
            x = conv("conv1a", x, 32, 3, 2, VALID)                           # 149×149×32
            x = conv("conv2a", x, 32, 3, 1, VALID)                           # 147×147×32
            x = conv("conv2b", x, 64, 3)                                     # 147×147×64
        x = pool("pool1", x)                                                 # 73×73×64
        x = conv("conv3b", x, 80, 3, 1, VALID)                               # 71×71×80
        x = conv("conv4a", x, 192, 3, 2, VALID)                              # 35×35×192
        x = conv("conv4b", x, 288, 3)                                        # 35×35×288
        x = module_a("inception_5b", x)                                      # 35×35×288
        x = module_a("inception_5c", x)                                      # 35×35×288
        x = module_a("inception_5d", x)                                      # 35×35×288
        x = GridReductionA(layers, 384, 64, 96, name="inception_6a")(x)      # 17×17×768
        x = module_b("inception_6b", x, 128)                                 # 17×17×768
        x = module_b("inception_6c", x, 160)                                 # 17×17×768
        x = module_b("inception_6d", x, 160)                                 # 17×17×768
        x = module_b("inception_6e", x, 192)                                 # 17×17×768
        x = module_b("inception_6f", x, 192)                                 # 17×17×768
        if wants_aux:
            aux_logits["aux1"] = AuxHead(layers, self.num_classes, self.aux_bn, name="aux1")(x)
        x = GridReductionB(layers, name="inception_7a")(x)                   # 8×8×1280
        x = ModuleC(layers, name="inception_7b")(x)                          # 8×8×2048
        x = ModuleC(layers, name="inception_7c")(x)                          # 8×8×2048
        # fmt: on
        return self.finish(layers, "pool2", x, aux_logits)  # 1×1×2048
