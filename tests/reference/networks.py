"""The six reference networks. Every one runs its layers in the order of GoogLeNet; what differs is set out in its class."""

from functools import partial

import torch
from torch import Tensor, nn

from tests.reference import layers
from tests.reference.layers import MODULES, AuxHead, Inception, NaiveInception, PaperAuxPool, SeparableUnit, Unit

_ORDER = (
    *("conv1", "pool1", "norm1", "conv2", "conv3", "norm2", "pool2"),
    *("inception3a", "inception3b", "pool3"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "pool4"),
    *("inception5a", "inception5b", "pool5"),
)
_AUX_AFTER = {"inception4a": "aux1", "inception4d": "aux2"}


class Network(nn.Module):
    """GoogLeNet's order of layers; a network that lacks a layer has no attribute of that name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name in _ORDER:
            if hasattr(self, name):
                x = getattr(self, name)(x)
            aux = _AUX_AFTER.get(name, "")
            if self.training and hasattr(self, aux):
                outputs[aux] = getattr(self, aux)(x)
        outputs["logits"] = self.fc(self.dropout(torch.flatten(x, 1)))
        return outputs

    def add_modules(self, inputs: int, make, width: float = 1.0) -> int:
        """Adds inception3a … 5b as `make(inputs, columns)` gives them; returns the channels of the last."""
        for name, columns in MODULES.items():
            module = make(inputs, tuple(round(column * width) for column in columns))
            setattr(self, f"inception{name}", module)
            inputs = module.outputs
        return inputs

    def add_aux(self, classes: int, **options) -> None:
        self.aux1 = AuxHead(self.inception4a.outputs, classes, **options)
        self.aux2 = AuxHead(self.inception4d.outputs, classes, **options)


def _lrn() -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def _ceil_pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _module_pool() -> nn.Module:
    return nn.MaxPool2d(3, 1, padding=1)


class googlenet(Network):  # the models' names are the project's
    """The 2014 paper's network as Caffe's bvlc_googlenet runs it: LRN, biases, ceil-mode pools, aux heads on 5×5/3 averages."""

    def __init__(
        self, num_classes: int = 1000, aux_heads: bool = True, width: float = 1.0, stem: str = "dense", dropout=0.4, aux_dropout=0.7
    ):
        super().__init__()
        first, second = round(64 * width), round(192 * width)
        self.conv1 = Unit(3, first, 7, 2) if stem == "dense" else SeparableUnit(first)
        self.pool1, self.norm1 = _ceil_pool(), _lrn()
        self.conv2, self.conv3 = Unit(first, first, 1), Unit(first, second, 3)
        self.norm2, self.pool2 = _lrn(), _ceil_pool()
        channels = self.add_modules(second, lambda inputs, columns: Inception(inputs, columns, Unit, _module_pool()), width)
        self.pool3, self.pool4, self.pool5 = _ceil_pool(), _ceil_pool(), nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        if aux_heads:
            widths = (round(128 * width), round(1024 * width))
            self.add_aux(num_classes, unit=Unit, pool=PaperAuxPool(), dropout=(0.0, aux_dropout), widths=widths)


class googlenet_bn(Network):
    """Seed 003 repaired: batch norm with epsilon 0.01, pools 3×3/2 padded by one, two dropouts in each aux head."""

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        dropout: float = 0.4,
        aux_dropout: float = 0.4,
        eps: float = 0.01,
    ):
        super().__init__()
        unit = partial(Unit, norm=partial(nn.BatchNorm2d, eps=eps))
        pool = partial(nn.MaxPool2d, 3, 2, padding=1)
        first, second = round(64 * width), round(192 * width)
        self.conv1, self.pool1 = unit(3, first, 7, 2), pool()
        self.conv2, self.conv3, self.pool2 = unit(first, first, 1), unit(first, second, 3), pool()
        channels = self.add_modules(second, lambda inputs, columns: Inception(inputs, columns, unit, _module_pool()), width)
        self.pool3, self.pool4, self.pool5 = pool(), pool(), nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        if aux_heads:
            widths = (round(128 * width), round(1024 * width))
            self.add_aux(num_classes, unit=unit, pool=nn.AdaptiveAvgPool2d(4), dropout=(aux_dropout, aux_dropout), widths=widths)


class googlenet_torchvision(Network):
    """torchvision's googlenet: epsilon 0.001, a 3×3 for the 5×5, ceil-mode pools of which the last is 2×2/2, its input transform."""

    def __init__(
        self,
        num_classes: int = 1000,
        aux_heads: bool = True,
        width: float = 1.0,
        transform_input: bool = False,
        dropout: float = 0.2,
        aux_dropout: float = 0.7,
    ):
        super().__init__()
        self.transform_input = transform_input
        unit = partial(Unit, norm=partial(nn.BatchNorm2d, eps=0.001))
        first, second = round(64 * width), round(192 * width)
        self.conv1, self.pool1 = unit(3, first, 7, 2), _ceil_pool()
        self.conv2, self.conv3, self.pool2 = unit(first, first, 1), unit(first, second, 3), _ceil_pool()
        channels = self.add_modules(second, lambda inputs, columns: Inception(inputs, columns, unit, _module_pool(), five=3), width)
        self.pool3, self.pool4, self.pool5 = _ceil_pool(), nn.MaxPool2d(2, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1)
        if aux_heads:
            widths = (round(128 * width), round(1024 * width))
            self.add_aux(num_classes, unit=unit, pool=nn.AdaptiveAvgPool2d(4), dropout=(0.0, aux_dropout), widths=widths)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.transform_input:  # from ImageNet's mean and deviation to (x − 0.5) / 0.5
            mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
            x = x * (std / 0.5).view(3, 1, 1) + ((mean - 0.5) / 0.5).view(3, 1, 1)
        return super().forward(x)


class googlenet_slim(Network):
    """TF-slim's inception_v1: SAME padding, batch norm without scale (epsilon 0.001, decay 0.9997), a 3×3 for the 5×5, no aux heads.

    Its running variance is TensorFlow's fused batch norm's, which is unbiased as PyTorch's is. Its last pool is 2×2/2.
    """

    def __init__(self, num_classes: int = 1001, width: float = 1.0, dropout: float = 0.2):
        super().__init__()
        unit = partial(Unit, norm=partial(layers.ShiftBatchNorm2d, eps=0.001, momentum=0.0003), same=True)
        pool = layers.SameMaxPool2d
        first, second = round(64 * width), round(192 * width)
        self.conv1, self.pool1 = unit(3, first, 7, 2), pool(3, 2)
        self.conv2, self.conv3, self.pool2 = unit(first, first, 1), unit(first, second, 3), pool(3, 2)
        channels = self.add_modules(second, lambda inputs, columns: Inception(inputs, columns, unit, pool(3, 1), five=3), width)
        self.pool3, self.pool4, self.pool5 = pool(3, 2), pool(2, 2), nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)


class googlenet_plain(Network):
    """The network of seeds 000 to 002 repaired: no norm, no aux, no ReLU in the stem and no 1×1 there; `base_dim` sets the stem alone."""

    def __init__(self, base_dim: int = 64, num_classes: int = 2, width: float = 1.0, dropout: float = 0.4):
        super().__init__()
        pool = partial(nn.MaxPool2d, 3, 2, padding=1)
        first, second = round(base_dim * width), round(3 * base_dim * width)
        self.conv1, self.pool1 = Unit(3, first, 7, 2, relu=False), pool()
        self.conv3, self.pool2 = Unit(first, second, 3, relu=False), pool()
        channels = self.add_modules(second, lambda inputs, columns: Inception(inputs, columns, Unit, _module_pool()), width)
        self.pool3, self.pool4, self.pool5 = pool(), pool(), nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)


class googlenet_naive(Network):
    """`googlenet` with the paper's naive modules (Fig. 2a): no reductions, no projection, so that the channels pile up."""

    def __init__(self, num_classes: int = 1000, aux_heads: bool = True, width: float = 1.0, dropout: float = 0.4, aux_dropout: float = 0.7):
        super().__init__()
        first, second = round(64 * width), round(192 * width)
        self.conv1, self.pool1, self.norm1 = Unit(3, first, 7, 2), _ceil_pool(), _lrn()
        self.conv2, self.conv3 = Unit(first, first, 1), Unit(first, second, 3)
        self.norm2, self.pool2 = _lrn(), _ceil_pool()
        channels = self.add_modules(second, lambda inputs, columns: NaiveInception(inputs, columns, Unit, _module_pool()), width)
        self.pool3, self.pool4, self.pool5 = _ceil_pool(), _ceil_pool(), nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        if aux_heads:
            widths = (round(128 * width), round(1024 * width))
            self.add_aux(num_classes, unit=Unit, pool=PaperAuxPool(), dropout=(0.0, aux_dropout), widths=widths)
