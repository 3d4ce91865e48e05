"""Inception-v2 and -v3 of "Rethinking the Inception architecture" (arXiv 1512.00567), under
torchvision's names.

Widths are of the released network; `scaled` multiplies them. Flavours of v3: torchvision, slim,
keras, fid.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from googlenet_jax.verification.reference.layers import (
    BiasedBatchNorm2d,
    ShiftBatchNorm2d,
    Unit,
    average_pool,
    transformed,
)

Scale = Callable[[int], int]
NORMS = {
    "torchvision": partial(nn.BatchNorm2d, eps=0.001),
    "slim": partial(ShiftBatchNorm2d, eps=0.001, momentum=0.0003),
    "keras": partial(BiasedBatchNorm2d, eps=0.001, momentum=0.01),
    "fid": partial(nn.BatchNorm2d, eps=0.001),
}


def concatenate(*branches: Tensor) -> Tensor:
    """Joins [N, C, H, W] along the channels."""
    return torch.cat(branches, 1)


class ModuleA(nn.Module):
    """35×35: 1×1 64 | 48 → 5×5 64 (v2: 3×3) | 64 → 3×3 96 → 3×3 96 | average → `projection`."""

    def __init__(
        self,
        inputs: int,
        projection: int,
        unit: Callable,
        scaled: Scale,
        pool: nn.Module,
        five: int = 5,
    ) -> None:
        super().__init__()
        s = scaled
        self.branch1x1 = unit(inputs, s(64), 1)
        setattr(self, f"branch{five}x{five}_1", unit(inputs, s(48), 1))
        setattr(self, f"branch{five}x{five}_2", unit(s(48), s(64), five, padding=five // 2))
        self.branch3x3dbl_1 = unit(inputs, s(64), 1)
        self.branch3x3dbl_2 = unit(s(64), s(96), 3, padding=1)
        self.branch3x3dbl_3 = unit(s(96), s(96), 3, padding=1)
        self.pool = pool
        self.branch_pool = unit(inputs, s(projection), 1)
        self.five = five
        self.outputs = s(64) + s(64) + s(96) + s(projection)

    def forward(self, x: Tensor) -> Tensor:
        name = f"branch{self.five}x{self.five}"
        first, second = getattr(self, f"{name}_1"), getattr(self, f"{name}_2")
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return concatenate(
            self.branch1x1(x), second(first(x)), double, self.branch_pool(self.pool(x))
        )


class ReductionA(nn.Module):
    """35×35 → 17×17: 3×3/2 384 | 64 → 96 → 3×3/2 96 | max 3×3/2; nothing is padded at stride 2."""

    def __init__(self, inputs: int, unit: Callable, scaled: Scale) -> None:
        super().__init__()
        s = scaled
        self.branch3x3 = unit(inputs, s(384), 3, 2)
        self.branch3x3dbl_1 = unit(inputs, s(64), 1)
        self.branch3x3dbl_2 = unit(s(64), s(96), 3, padding=1)
        self.branch3x3dbl_3 = unit(s(96), s(96), 3, 2)
        self.pool = nn.MaxPool2d(3, 2)
        self.outputs = s(384) + s(96) + inputs

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.pool(x),
        )


class ModuleB(nn.Module):
    """17×17: 192 | c → 1×7 c → 7×1 192 | c → 7×1 c → 1×7 c → 7×1 c → 1×7 192 | average → 192."""

    def __init__(self, inputs: int, c: int, unit: Callable, scaled: Scale, pool: nn.Module) -> None:
        super().__init__()
        c, wide = scaled(c), scaled(192)
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = unit(inputs, wide, 1)
        self.branch7x7_1 = unit(inputs, c, 1)
        self.branch7x7_2 = unit(c, c, **row)
        self.branch7x7_3 = unit(c, wide, **column)
        self.branch7x7dbl_1 = unit(inputs, c, 1)
        self.branch7x7dbl_2 = unit(c, c, **column)
        self.branch7x7dbl_3 = unit(c, c, **row)
        self.branch7x7dbl_4 = unit(c, c, **column)
        self.branch7x7dbl_5 = unit(c, wide, **row)
        self.pool = pool
        self.branch_pool = unit(inputs, wide, 1)
        self.outputs = 4 * wide

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return concatenate(self.branch1x1(x), single, double, self.branch_pool(self.pool(x)))


class ReductionB(nn.Module):
    """17×17 → 8×8: 192 → 3×3/2 320 | 192 → 1×7 → 7×1 → 3×3/2 192 | max 3×3/2."""

    def __init__(self, inputs: int, unit: Callable, scaled: Scale) -> None:
        super().__init__()
        wide = scaled(192)
        self.branch3x3_1 = unit(inputs, wide, 1)
        self.branch3x3_2 = unit(wide, scaled(320), 3, 2)
        self.branch7x7x3_1 = unit(inputs, wide, 1)
        self.branch7x7x3_2 = unit(wide, wide, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = unit(wide, wide, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = unit(wide, wide, 3, 2)
        self.pool = nn.MaxPool2d(3, 2)
        self.outputs = scaled(320) + wide + inputs

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return concatenate(self.branch3x3_2(self.branch3x3_1(x)), long, self.pool(x))


class ModuleC(nn.Module):
    """8×8: 320 | 384 → {1×3, 3×1} 384 each | 448 → 3×3 384 → {1×3, 3×1} 384 each | pool → 192."""

    def __init__(self, inputs: int, unit: Callable, scaled: Scale, pool: nn.Module) -> None:
        super().__init__()
        s = scaled
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = unit(inputs, s(320), 1)
        self.branch3x3_1 = unit(inputs, s(384), 1)
        self.branch3x3_2a = unit(s(384), s(384), **row)
        self.branch3x3_2b = unit(s(384), s(384), **column)
        self.branch3x3dbl_1 = unit(inputs, s(448), 1)
        self.branch3x3dbl_2 = unit(s(448), s(384), 3, padding=1)
        self.branch3x3dbl_3a = unit(s(384), s(384), **row)
        self.branch3x3dbl_3b = unit(s(384), s(384), **column)
        self.pool = pool
        self.branch_pool = unit(inputs, s(192), 1)
        self.outputs = s(320) + 4 * s(384) + s(192)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        spread = [
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
        ]
        return concatenate(self.branch1x1(x), *spread, self.branch_pool(self.pool(x)))


class AuxHead(nn.Module):
    """After the last module B: average 5×5/3, 1×1 128, 5×5 768, mean over what is left, linear. At
    299 the 17×17 map ends as 1×1.
    """

    def __init__(
        self, inputs: int, classes: int, unit: Callable, scaled: Scale, last: Callable | None = None
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3)
        self.conv0 = unit(inputs, scaled(128), 1)
        self.conv1 = (last or unit)(scaled(128), scaled(768), 5)
        self.fc = nn.Linear(scaled(768), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(self.conv0(self.pool(x))).mean((2, 3)))


# Modules' and units' names here → the endpoints'.
_STEM = {
    "Conv2d_1a_3x3": "conv1a",
    "Conv2d_2a_3x3": "conv2a",
    "Conv2d_2b_3x3": "conv2b",
    "Conv2d_1a_7x7": "conv1",
    "Conv2d_3b_1x1": "conv3b",
    "Conv2d_3b_3x3": "conv3b",
    "Conv2d_4a_3x3": "conv4a",
    "Conv2d_4b_3x3": "conv4b",
    "maxpool1": "pool1",
    "maxpool2": "pool2",
    "AuxLogits": "aux1",
    "fc": "head",
}
_UNITS = {
    "branch1x1": "conv_1x1",
    "branch3x3": "conv_3x3",
    "branch3x3_1": "conv_3x3_reduce",
    "branch3x3_2": "conv_3x3",
    "branch3x3_2a": "conv_1x3",
    "branch3x3_2b": "conv_3x1",
    "branch5x5_1": "conv_5x5_reduce",
    "branch5x5_2": "conv_5x5",
    "branch3x3dbl_1": "conv_double_3x3_reduce",
    "branch3x3dbl_2": "conv_double_3x3_1",
    "branch3x3dbl_3": "conv_double_3x3_2",
    "branch3x3dbl_3a": "conv_double_1x3",
    "branch3x3dbl_3b": "conv_double_3x1",
    "branch7x7_1": "conv_7x7_reduce",
    "branch7x7_2": "conv_1x7",
    "branch7x7_3": "conv_7x1",
    "branch7x7dbl_1": "conv_double_7x7_reduce",
    "branch7x7dbl_2": "conv_double_7x1_1",
    "branch7x7dbl_3": "conv_double_1x7_1",
    "branch7x7dbl_4": "conv_double_7x1_2",
    "branch7x7dbl_5": "conv_double_1x7_2",
    "branch7x7x3_1": "conv_7x7_reduce",
    "branch7x7x3_2": "conv_1x7",
    "branch7x7x3_3": "conv_7x1",
    "branch7x7x3_4": "conv_7x7_3x3",
    "branch_pool": "pool_proj",
    "conv0": "conv",
    "conv1": "conv_5x5",
}


class InceptionV2V3Base(nn.Module):
    """What v2 and v3 share: the order of the layers, the auxiliary head, the classifier, the names
    of the endpoints.
    """

    # Name of the layer that the auxiliary head follows; the endpoint's name of the last pool.
    aux_after: ClassVar[str]
    last_pool: ClassVar[str]

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        self.num_classes, self.width = num_classes, width
        self.order: list[str] = []

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def add(self, name: str, module: nn.Module) -> None:
        setattr(self, name, module)
        self.order.append(name)

    def add_head(self, inputs: int, dropout: float) -> None:
        self.avgpool, self.dropout = nn.AdaptiveAvgPool2d(1), nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, self.num_classes)

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        """[N, 3, H, W] → "logits" and, in training or with `aux`, "aux1"."""
        outputs = {}
        for name in self.order:
            x = getattr(self, name)(x)
            if (
                name == self.aux_after
                and (self.training if aux is None else aux)
                and hasattr(self, "AuxLogits")
            ):
                outputs["aux1"] = self.AuxLogits(x)
        outputs["logits"] = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return outputs

    def endpoint_names(self) -> dict[str, str]:
        """{module's name here: endpoint's name}."""
        names = {"avgpool": self.last_pool}
        for name, module in self.named_children():
            ours = _STEM.get(name, name.replace("Mixed_", "inception_"))
            if ours == name:
                continue
            names[name] = ours
            units = _UNITS
            if isinstance(module, ModuleC):  # one 3×3 alone
                units = {**_UNITS, "branch3x3dbl_2": "conv_double_3x3"}
            names |= {
                f"{name}.{unit}": f"{ours}/{units[unit]}"
                for unit, _ in module.named_children()
                if unit in units
            }
        return names


class InceptionV3(InceptionV2V3Base):
    """Inception-v3 as released, in its four flavours; torchvision's state dicts load into the
    torchvision and fid ones.
    """

    aux_after, last_pool = "Mixed_6e", "pool3"

    def __init__(
        self,
        num_classes: int | None = None,
        flavour: str = "torchvision",
        aux_heads: bool | None = None,
        width: float = 1.0,
        dropout: float | None = None,
        transform_input: bool = False,
        eps: float = 0.001,
    ) -> None:
        classes = {"torchvision": 1000, "slim": 1001, "keras": 1000, "fid": 1008}[flavour]
        super().__init__(classes if num_classes is None else num_classes, width)
        self.transform_input = transform_input
        s = self.scaled
        unit = partial(Unit, norm=partial(NORMS[flavour], eps=eps), padding=0)
        pool = partial(average_pool, flavour == "torchvision")
        self.add("Conv2d_1a_3x3", unit(3, s(32), 3, 2))
        self.add("Conv2d_2a_3x3", unit(s(32), s(32), 3))
        self.add("Conv2d_2b_3x3", unit(s(32), s(64), 3, padding=1))
        self.add("maxpool1", nn.MaxPool2d(3, 2))
        self.add("Conv2d_3b_1x1", unit(s(64), s(80), 1))
        self.add("Conv2d_4a_3x3", unit(s(80), s(192), 3))
        self.add("maxpool2", nn.MaxPool2d(3, 2))
        inputs = s(192)
        last_pool = nn.MaxPool2d(3, 1, padding=1) if flavour == "fid" else pool()
        for name, make in (
            *(
                (f"5{letter}", partial(ModuleA, projection=p, pool=pool()))
                for letter, p in (("b", 32), ("c", 64), ("d", 64))
            ),
            ("6a", ReductionA),
            *(
                (f"6{letter}", partial(ModuleB, c=c, pool=pool()))
                for letter, c in zip("bcde", (128, 160, 160, 192), strict=True)
            ),
            ("7a", ReductionB),
            ("7b", partial(ModuleC, pool=pool())),
            ("7c", partial(ModuleC, pool=last_pool)),
        ):
            module = make(inputs, unit=unit, scaled=s)
            self.add(f"Mixed_{name}", module)
            inputs = module.outputs
            if name == "6e" and (
                flavour in ("torchvision", "slim") if aux_heads is None else aux_heads
            ):
                self.AuxLogits = AuxHead(inputs, self.num_classes, unit, s)
        self.add_head(
            inputs,
            {"torchvision": 0.5, "slim": 0.2, "keras": 0.0, "fid": 0.0}[flavour]
            if dropout is None
            else dropout,
        )

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        return super().forward(transformed(x) if self.transform_input else x, aux)


class InceptionV2(InceptionV2V3Base):
    """Table 1 of "Rethinking", which no public code builds: three 3×3 for the 7×7 stem, 3 × A, 5 ×
    B, 2 × C, both grid reductions.

    The branches' widths are not published: they are v3's, module B's c of the five modules 128,
    160, 160, 192, 192. Module A is the paper's Fig. 5, its single convolution branch a 3×3.
    `stem="dense"`: the 7×7/2 itself, before it was factorised. `aux_bn`: batch norm also on the
    auxiliary head's fully connected layer, which is a 5×5 convolution of a 5×5 map.
    """

    aux_after, last_pool = "Mixed_6f", "pool2"
    middles = (128, 160, 160, 192, 192)

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        dropout: float = 0.5,
        stem: str = "factorised",
        aux_bn: bool = False,
    ) -> None:
        super().__init__(num_classes, width)
        s = self.scaled
        unit = partial(Unit, norm=partial(nn.BatchNorm2d, eps=0.001), padding=0)
        pool = partial(average_pool, False)
        if stem == "dense":
            self.add("Conv2d_1a_7x7", unit(3, s(64), 7, 2))
        else:
            self.add("Conv2d_1a_3x3", unit(3, s(32), 3, 2))
            self.add("Conv2d_2a_3x3", unit(s(32), s(32), 3))
            self.add("Conv2d_2b_3x3", unit(s(32), s(64), 3, padding=1))
        self.add("maxpool1", nn.MaxPool2d(3, 2))
        self.add("Conv2d_3b_3x3", unit(s(64), s(80), 3))
        self.add("Conv2d_4a_3x3", unit(s(80), s(192), 3, 2))
        self.add("Conv2d_4b_3x3", unit(s(192), s(288), 3, padding=1))
        inputs = s(288)
        for name, make in (
            *(
                (f"5{letter}", partial(ModuleA, projection=64, pool=pool(), five=3))
                for letter in "bcd"
            ),
            ("6a", ReductionA),
            *(
                (f"6{letter}", partial(ModuleB, c=c, pool=pool()))
                for letter, c in zip("bcdef", self.middles, strict=True)
            ),
            ("7a", ReductionB),
            *((f"7{letter}", partial(ModuleC, pool=pool())) for letter in "bc"),
        ):
            module = make(inputs, unit=unit, scaled=s)
            self.add(f"Mixed_{name}", module)
            inputs = module.outputs
            if name == "6f" and aux_heads:
                self.AuxLogits = AuxHead(
                    inputs, num_classes, unit, s, unit if aux_bn else partial(Unit, padding=0)
                )
        self.add_head(inputs, dropout)
