"""The pieces that the references of the Inception family share: units, averaging pools, batch
norms.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from googlenet_jax.verification.reference.layers import ShiftBatchNorm2d


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


class Unit(nn.Module):
    """Convolution → batch norm → ReLU; no bias, `kernel` a number or (height, width), `padding` a
    number or one for each axis.

    Without `norm` the convolution has a bias and no batch norm follows.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel, stride: int = 1, padding=0, *, norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm is None)
        if norm is not None:
            self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.bn(x) if hasattr(self, "bn") else x)


def average_pool(counts_padding: bool) -> nn.Module:
    """3×3/1 padded by one; at the borders the padding counts as zeros or not at all."""
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=counts_padding)


NORMS = {
    "torchvision": partial(nn.BatchNorm2d, eps=0.001),
    "slim": partial(ShiftBatchNorm2d, eps=0.001, momentum=0.0003),
    "keras": partial(BiasedBatchNorm2d, eps=0.001, momentum=0.01),
    "fid": partial(nn.BatchNorm2d, eps=0.001),
}


def concatenate(*branches: Tensor) -> Tensor:
    """Joins [N, C, H, W] along the channels."""
    return torch.cat(branches, 1)
