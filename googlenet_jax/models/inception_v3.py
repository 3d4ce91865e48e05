"""Inception-v3 (arXiv 1512.00567), as TF-slim released it and others carried it on."""

import dataclasses
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
from googlenet_jax.models.layers import Norm, TruncatedNormal, glorot_uniform, he_fan_in_truncated
from googlenet_jax.models.network import VALID, NormedNetwork, Output

Array = jax.Array

TORCHVISION = InceptionStyle(
    kernel_init=TruncatedNormal(0.1),
    dense_init=TruncatedNormal(0.1),
    logits_bias_init=None,
    pool=VALID,
    count_padding=True,
)
SLIM = InceptionStyle(
    kernel_init=he_fan_in_truncated, dense_init=he_fan_in_truncated, norm_scale=False, pool=VALID
)
KERAS = InceptionStyle(
    kernel_init=glorot_uniform,
    dense_init=glorot_uniform,
    norm_scale=False,
    pool=VALID,
    unbiased=False,
)
FID = dataclasses.replace(TORCHVISION, count_padding=False, last_max_pool=True)
STYLES = {"torchvision": TORCHVISION, "slim": SLIM, "keras": KERAS, "fid": FID}

STEM = {
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
}


class InceptionV2V3Base(NormedNetwork):
    """What Inception-v2 and -v3 share: the sizes that they take.

    The auxiliary head ends in a 5×5 on what a 5×5/3 pool leaves, which needs a 17×17 map: 299
    pixels. Without it 75 do.
    """

    dropout: float = 0.5

    input_size = 299
    min_size_without_aux: ClassVar[int] = 75

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image, for the auxiliary head too where there is one."""
        return 299 if self.aux_heads else self.min_size_without_aux


class InceptionV3(InceptionV2V3Base):
    """Inception-v3: torchvision's, TF-slim's, Keras's or the one that the Fréchet Inception
    distance is defined by.

    | | torchvision | slim | keras | fid |
    |---|---|---|---|---|
    | batch norm has a scale | yes | no | no | yes |
    | average pools count padding | yes | no | no | no |
    | the last module pools by | average | average | average | maximum |
    | `bn_momentum` | 0.9 | 0.9997 | 0.99 | 0.9 |
    | `dropout` | 0.5 | 0.2 | 0 | 0 |
    | `aux_heads` | yes | yes | no | no |
    | `num_classes` | 1000 | 1001 | 1000 | 1008 |

    Attributes:
      flavour: one of these columns, which sets the options below the first three rows where they
        are not given to `create_model`.
      transform_input: see `Network.begin`; torchvision's released weights want it.
    """

    flavour: str = "torchvision"
    transform_input: bool = False

    flavours: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "torchvision": {},
        "slim": {"num_classes": 1001, "dropout": 0.2, "bn_momentum": 0.9997},
        "keras": {"aux_heads": False, "dropout": 0.0, "bn_momentum": 0.99},
        "fid": {"num_classes": 1008, "aux_heads": False, "dropout": 0.0},
    }
    torch_names: ClassVar[Mapping[str, str]] = torchvision_names(STEM, last_b="e")

    @property
    def style(self) -> InceptionStyle:  # type: ignore[override]
        """The flavour's."""
        return STYLES[self.flavour]

    @property
    def norm(self) -> Norm | None:
        """The batch norms, unless they are folded."""
        norm = super().norm
        return norm and dataclasses.replace(norm, unbiased=self.style.unbiased)

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
        conv, pool, last_max_pool = layers.conv, layers.pool, self.style.last_max_pool
        aux_logits: dict[str, Array] = {}

        def module_a(name: str, x: Array, *widths: int) -> Array:
            return ModuleA(layers, WidthsA(*widths), kernel=5, name=name)(x)

        def module_b(name: str, x: Array, middle: int) -> Array:
            return ModuleB(layers, middle, name=name)(x)

        # fmt: off
        #                                                                    output at 299
        x = conv("conv1a", x, 32, 3, 2, VALID)                               # 149×149×32
        x = conv("conv2a", x, 32, 3, 1, VALID)                               # 147×147×32
        x = conv("conv2b", x, 64, 3)                                         # 147×147×64
        x = pool("pool1", x)                                                 # 73×73×64
        x = conv("conv3b", x, 80)                                            # 73×73×80
        x = conv("conv4a", x, 192, 3, 1, VALID)                              # 71×71×192
        x = pool("pool2", x)                                                 # 35×35×192
        #                                1×1  5×5r 5×5  dblr dbl  proj
        x = module_a("inception_5b", x,   64,  48,  64,  64,  96,  32)       # 35×35×256
        x = module_a("inception_5c", x,   64,  48,  64,  64,  96,  64)       # 35×35×288
        x = module_a("inception_5d", x,   64,  48,  64,  64,  96,  64)       # 35×35×288
        x = GridReductionA(layers, 384, 64, 96, name="inception_6a")(x)      # 17×17×768
        x = module_b("inception_6b", x, 128)                                 # 17×17×768
        x = module_b("inception_6c", x, 160)                                 # 17×17×768
        x = module_b("inception_6d", x, 160)                                 # 17×17×768
        x = module_b("inception_6e", x, 192)                                 # 17×17×768
        if wants_aux:
            aux_logits["aux1"] = AuxHead(layers, self.num_classes, name="aux1")(x)
        x = GridReductionB(layers, name="inception_7a")(x)                   # 8×8×1280
        x = ModuleC(layers, name="inception_7b")(x)                          # 8×8×2048
        x = ModuleC(layers, last_max_pool, name="inception_7c")(x)           # 8×8×2048
        # fmt: on
        return self.finish(layers, "pool3", x, aux_logits)  # 1×1×2048
