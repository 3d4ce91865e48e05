"""The pieces of the reference networks: convolution units, pools, the Inception modules, the
auxiliary head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# 1×1 | 3×3 reduce, 3×3 | 5×5 reduce, 5×5 | pool projection: arXiv 1409.4842, Table 1.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def same_padding(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """Pads [N, C, H, W] as TensorFlow's SAME: ⌈size/stride⌉ outputs, the odd pixel of padding
    after.
    """
    padding = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding; `padding` is not to be given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(same_padding(x, self.kernel_size[0], self.stride[0], 0.0))


class SameMaxPool2d(nn.Module):
    """Max pooling with TensorFlow's SAME padding, which never wins."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(
            same_padding(x, self.kernel, self.stride, -torch.inf), self.kernel, self.stride
        )


class ShiftBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with a shift and no scale (TF-slim's default, `scale=False`)."""

    def __init__(self, channels: int, **options: float) -> None:
        super().__init__(channels, **options)
        self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class BiasedBatchNorm2d(ShiftBatchNorm2d):
    """Keras's: a shift and no scale, and the running variance follows the batch's biased variance
    (PyTorch's is n/(n−1) of it).
    """

    def forward(self, x: Tensor) -> Tensor:
        before = self.running_var.clone()
        y = super().forward(x)
        if self.training:
            biased = x.detach().var((0, 2, 3), unbiased=False)
            # A new tensor: the gradient still needs the one that PyTorch's own update wrote.
            self.running_var = before + self.momentum * (biased - before)
        return y


def average_pool(counts_padding: bool) -> nn.Module:
    """3×3/1 padded by one; at the borders the padding counts as zeros or not at all."""
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=counts_padding)


def transformed(x: Tensor) -> Tensor:
    """From ImageNet's mean and deviation to (x − 0.5) / 0.5."""
    mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
    return x * (std / 0.5).view(3, 1, 1) + ((mean - 0.5) / 0.5).view(3, 1, 1)


class Unit(nn.Module):
    """Convolution → batch norm (where `norm` is given; the convolution then has no bias) → ReLU
    (unless `relu=False`).

    `kernel` is a number or (height, width), `padding` likewise (default: half the kernel).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padding: int | tuple[int, int] | None = None,
        norm: Callable | None = None,
        same: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = (SameConv2d if same else nn.Conv2d)(
            inputs, outputs, kernel, stride, 0 if same else padding, bias=norm is None
        )
        if norm is not None:
            self.bn = norm(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if hasattr(self, "bn"):
            x = self.bn(x)
        return F.relu(x) if self.relu else x


class SeparableUnit(nn.Module):
    """7×7/2 a channel at a time, `multiplier` results each, then 1×1: no bias or ReLU between the
    two (Table 1's 2.7 K weights).
    """

    def __init__(self, outputs: int, multiplier: int = 8) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3 * multiplier, 7, 2, padding=3, groups=3, bias=False)
        self.conv = nn.Conv2d(3 * multiplier, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.depthwise(x)))


class Inception(nn.Module):
    """Four branches, concatenated in the order 1×1, 3×3, 5×5, pool. `five` is the "5×5" branch's
    true kernel size.
    """

    def __init__(
        self,
        inputs: int,
        columns: tuple[int, ...],
        unit: Callable[..., nn.Module],
        pool: nn.Module,
        five: int = 5,
    ) -> None:
        super().__init__()
        one, three_reduce, three, five_reduce, fives, projection = columns
        self.branch1 = unit(inputs, one, 1)
        self.branch2 = nn.Sequential(unit(inputs, three_reduce, 1), unit(three_reduce, three, 3))
        self.branch3 = nn.Sequential(unit(inputs, five_reduce, 1), unit(five_reduce, fives, five))
        self.branch4 = nn.Sequential(pool, unit(inputs, projection, 1))
        self.outputs = one + three + fives + projection

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class NaiveInception(nn.Module):
    """The paper's Fig. 2a: 1×1, 3×3 and 5×5 on the input itself, and the pooled input passed on
    whole.
    """

    def __init__(
        self, inputs: int, columns: tuple[int, ...], unit: Callable[..., nn.Module], pool: nn.Module
    ) -> None:
        super().__init__()
        one, _, three, _, fives, _ = columns
        self.branch1, self.branch2, self.branch3 = (
            unit(inputs, one, 1),
            unit(inputs, three, 3),
            unit(inputs, fives, 5),
        )
        self.branch4 = pool
        self.outputs = one + three + fives + inputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class PaperAuxPool(nn.Module):
    """Average 5×5/3 where the map is the paper's 14×14 (to 4×4), adaptive 4×4 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (14, 14):
            return F.avg_pool2d(x, 5, 3)
        return F.adaptive_avg_pool2d(x, (4, 4))


class AuxHead(nn.Module):
    """Pool to 4×4, 1×1 unit, linear, ReLU, linear; `dropout` is (after the unit, before the last
    linear).
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        unit: Callable[..., nn.Module],
        pool: nn.Module,
        dropout: tuple[float, float],
        widths: tuple[int, int] = (128, 1024),
    ) -> None:
        super().__init__()
        self.pool = pool
        self.conv = unit(inputs, widths[0], 1)
        self.fc1 = nn.Linear(4 * 4 * widths[0], widths[1])
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(widths[1], classes)
        self.dropout1, self.dropout2 = nn.Dropout(dropout[0]), nn.Dropout(dropout[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout1(self.conv(self.pool(x)))
        return self.fc2(self.dropout2(self.relu(self.fc1(torch.flatten(x, 1)))))
