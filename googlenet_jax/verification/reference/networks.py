"""The six reference networks. Every one runs its layers in the order of GoogLeNet; what differs is
set out in its class.

Options common to all: `num_classes`; `width`, a multiplier of every layer's channels but the
classifiers'; `stem="small"`, a 3×3/1 in place of the 7×7/2, and no pool2; `side`, with which the
classifier reads the whole side×side map in place of its average.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from googlenet_jax.verification.reference import layers
from googlenet_jax.verification.reference.layers import (
    MODULES,
    AuxHead,
    Inception,
    NaiveInception,
    PaperAuxPool,
    SeparableUnit,
    Unit,
)

_ORDER = (
    *("conv1", "pool1", "norm1", "conv2", "conv3", "norm2", "pool2"),
    *("inception3a", "inception3b", "pool3"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "pool4"),
    *("inception5a", "inception5b", "pool5"),
)
_AUX_AFTER = {"inception4a": "aux1", "inception4d": "aux2"}


class Network(nn.Module):
    """GoogLeNet's order of layers; a network that lacks a layer has no attribute of that name."""

    def __init__(
        self, num_classes: int, width: float, stem: str, side: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_classes, self.width, self.stem, self.side = num_classes, width, stem, side
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        """[N, 3, H, W] → "logits" and, in training or with `aux`, "aux1" and "aux2"."""
        outputs = {}
        for name in _ORDER:
            if hasattr(self, name):
                x = getattr(self, name)(x)
            head = _AUX_AFTER.get(name, "")
            if (self.training if aux is None else aux) and hasattr(self, head):
                outputs[head] = getattr(self, head)(x)
        outputs["logits"] = self.fc(self.dropout(torch.flatten(x, 1)))
        return outputs

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def add_first(
        self, unit: Callable[..., nn.Module], pool: nn.Module, channels: int = 64, **options
    ) -> None:
        kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
        self.conv1, self.pool1 = unit(3, self.scaled(channels), kernel, stride, **options), pool

    def add_pools(self, pool2: nn.Module, pool3: nn.Module, pool4: nn.Module) -> None:
        if self.stem != "small":
            self.pool2 = pool2
        self.pool3, self.pool4 = pool3, pool4

    def add_modules(self, inputs: int, make: Callable[[int, tuple[int, ...]], nn.Module]) -> None:
        """Adds inception3a … 5b as `make(inputs, columns)` gives them, then the head."""
        inputs = self.scaled(inputs)
        for name, columns in MODULES.items():
            module = make(inputs, tuple(self.scaled(column) for column in columns))
            setattr(self, f"inception{name}", module)
            inputs = module.outputs
        self.pool5 = nn.Identity() if self.side else nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs * max(self.side, 1) ** 2, self.num_classes)

    def add_aux(
        self, unit: Callable[..., nn.Module], pool: nn.Module, dropout: tuple[float, float]
    ) -> None:
        widths = self.scaled(128), self.scaled(1024)
        for name, after in (("aux1", self.inception4a), ("aux2", self.inception4d)):
            head = AuxHead(after.outputs, self.num_classes, unit, pool, dropout, widths)
            setattr(self, name, head)


_lrn = partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=1.0)
_ceil_pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
_padded_pool = partial(nn.MaxPool2d, 3, 2, padding=1)
_module_pool = partial(nn.MaxPool2d, 3, 1, padding=1)


class Googlenet(Network):
    """The 2014 paper's network as Caffe's bvlc_googlenet runs it: LRN, biases, ceil-mode pools, aux
    heads on 5×5/3 averages.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        stem: str = "dense",
        side: int = 0,
        dropout: float = 0.4,
        aux_dropout: float = 0.7,
    ) -> None:
        super().__init__(num_classes, width, stem, side, dropout)
        self.add_first(Unit, _ceil_pool())
        if stem == "separable":
            self.conv1 = SeparableUnit(self.scaled(64))
        self.norm1, self.norm2 = _lrn(), _lrn()
        self.conv2 = Unit(self.scaled(64), self.scaled(64), 1)
        self.conv3 = Unit(self.scaled(64), self.scaled(192), 3)
        self.add_pools(_ceil_pool(), _ceil_pool(), _ceil_pool())
        self.add_modules(192, self.make_module)
        if aux_heads:
            self.add_aux(Unit, PaperAuxPool(), (0.0, aux_dropout))

    def make_module(self, inputs: int, columns: tuple[int, ...]) -> nn.Module:
        return Inception(inputs, columns, Unit, _module_pool())


class GooglenetNaive(Googlenet):
    """`googlenet` with the paper's naive modules (Fig. 2a): no reductions, no projection, so that
    the channels pile up.
    """

    def make_module(self, inputs: int, columns: tuple[int, ...]) -> nn.Module:
        return NaiveInception(inputs, columns, Unit, _module_pool())


class GooglenetBN(Network):
    """Seed 003 repaired: batch norm with epsilon 0.01, pools 3×3/2 padded by one, two dropouts in
    each aux head.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        stem: str = "dense",
        side: int = 0,
        dropout: float = 0.4,
        aux_dropout: float = 0.4,
        eps: float = 0.01,
    ) -> None:
        super().__init__(num_classes, width, stem, side, dropout)
        unit = partial(Unit, norm=partial(nn.BatchNorm2d, eps=eps))
        self.add_first(unit, _padded_pool())
        self.conv2 = unit(self.scaled(64), self.scaled(64), 1)
        self.conv3 = unit(self.scaled(64), self.scaled(192), 3)
        self.add_pools(_padded_pool(), _padded_pool(), _padded_pool())
        self.add_modules(
            192, lambda inputs, columns: Inception(inputs, columns, unit, _module_pool())
        )
        if aux_heads:
            self.add_aux(unit, nn.AdaptiveAvgPool2d(4), (aux_dropout, aux_dropout))


class GooglenetTorchvision(Network):
    """torchvision's googlenet: epsilon 0.001, a 3×3 for the 5×5, ceil-mode pools of which the last
    is 2×2/2, its input transform.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        stem: str = "dense",
        side: int = 0,
        dropout: float = 0.2,
        aux_dropout: float = 0.7,
        transform_input: bool = False,
        eps: float = 0.001,
    ) -> None:
        super().__init__(num_classes, width, stem, side, dropout)
        self.transform_input = transform_input
        unit = partial(Unit, norm=partial(nn.BatchNorm2d, eps=eps))
        self.add_first(unit, _ceil_pool())
        self.conv2 = unit(self.scaled(64), self.scaled(64), 1)
        self.conv3 = unit(self.scaled(64), self.scaled(192), 3)
        self.add_pools(_ceil_pool(), _ceil_pool(), nn.MaxPool2d(2, 2, ceil_mode=True))
        self.add_modules(
            192, lambda inputs, columns: Inception(inputs, columns, unit, _module_pool(), five=3)
        )
        if aux_heads:
            self.add_aux(unit, nn.AdaptiveAvgPool2d(4), (0.0, aux_dropout))

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        return super().forward(layers.transformed(x) if self.transform_input else x, aux)


class GooglenetSlim(Network):
    """TF-slim's inception_v1: SAME padding, batch norm without scale (epsilon 0.001, decay 0.9997),
    a 3×3 for the 5×5, no aux heads.

    Its running variance is TensorFlow's fused batch norm's, which is unbiased as PyTorch's is. Its
    last pool is 2×2/2.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        stem: str = "dense",
        side: int = 0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(num_classes, width, stem, side, dropout)
        unit = partial(
            Unit, norm=partial(layers.ShiftBatchNorm2d, eps=0.001, momentum=0.0003), same=True
        )
        pool = layers.SameMaxPool2d
        self.add_first(unit, pool(3, 2))
        self.conv2 = unit(self.scaled(64), self.scaled(64), 1)
        self.conv3 = unit(self.scaled(64), self.scaled(192), 3)
        self.add_pools(pool(3, 2), pool(3, 2), pool(2, 2))
        self.add_modules(
            192, lambda inputs, columns: Inception(inputs, columns, unit, pool(3, 1), five=3)
        )


class GooglenetPlain(Network):
    """The network of seeds 000 to 002 repaired: no norm, no aux, no ReLU in the stem and no 1×1
    there; `base_dim` sets the stem alone.
    """

    def __init__(
        self,
        num_classes: int = 2,
        base_dim: int = 64,
        width: float = 1.0,
        stem: str = "dense",
        side: int = 0,
        dropout: float = 0.4,
    ) -> None:
        super().__init__(num_classes, width, stem, side, dropout)
        self.add_first(Unit, _padded_pool(), base_dim, relu=False)
        self.conv3 = Unit(self.scaled(base_dim), self.scaled(3 * base_dim), 3, relu=False)
        self.add_pools(_padded_pool(), _padded_pool(), _padded_pool())
        self.add_modules(
            3 * base_dim, lambda inputs, columns: Inception(inputs, columns, Unit, _module_pool())
        )
