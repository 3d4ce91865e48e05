"""A small network of ours with every kind of layer that a fault can sit in, and its PyTorch twin."""

from typing import Any

import flax.linen as nn
import jax
import torch
import torch.nn.functional as F
from torch import nn as tnn

from googlenet_jax.models.inception_modules import InceptionStyle, ModuleA, WidthsA
from googlenet_jax.models.layers import adaptive_avg_pool, xavier_fan_in
from googlenet_jax.models.network import Layers, NormedNetwork, Output

SIZE, CLASSES = 14, 5
BRANCHES = {
    "conv_1x1": "b1",
    "conv_3x3_reduce": "b2a",
    "conv_3x3": "b2b",
    "conv_double_3x3_reduce": "b3a",
    "conv_double_3x3_1": "b3b",
    "conv_double_3x3_2": "b3c",
    "pool_proj": "b4",
}


class SmallAux(nn.Module):
    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layers.conv("conv", adaptive_avg_pool(x, 4), 4)
        x = nn.relu(self.layers.dense("fc", x.reshape(x.shape[0], -1), 6))
        return self.layers.logits("head", self.layers.dropout(x, 0.5), self.num_classes)


class Small(NormedNetwork):
    """3×3, max pool (ceil), 3×3, a module A with an average pool, two auxiliary heads."""

    style = InceptionStyle(kernel_init=xavier_fan_in, dense_init=xavier_fan_in)
    torch_names = {  # noqa: RUF012
        "conv1": "conv1",
        "conv2": "conv2",
        **{f"mixed/{ours}": f"mixed.{theirs}" for ours, theirs in BRANCHES.items()},
        **{f"{head}/conv": f"{head}.conv" for head in ("aux1", "aux2")},
        **{f"{head}/fc": f"{head}.fc1" for head in ("aux1", "aux2")},
        **{f"{head}/head": f"{head}.fc2" for head in ("aux1", "aux2")},
        "head": "fc",
    }
    input_size = SIZE

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, aux=None, use_running_average=None
    ) -> Output:
        layers, x, wants_aux = self.begin(images, train, aux, use_running_average)
        heads: dict[str, Any] = {}

        def head(name: str, x: jax.Array) -> None:
            if wants_aux:
                heads[name] = SmallAux(layers, self.num_classes, name=name)(x)

        x = layers.conv("conv1", x, 6, 3, 1)  # 14×14
        x = layers.pool("pool1", x, 3, 2)  # 7×7, 6×6 without ceil mode
        x = layers.conv("conv2", x, 8, 3)
        head("aux1", x)
        x = ModuleA(layers, WidthsA(4, 3, 4, 3, 4, 4), name="mixed")(x)
        head("aux2", x[..., :8])
        return self.finish(layers, "last", x, heads)


class BiasedNorm(tnn.BatchNorm2d):
    """The running variance follows the batch's biased one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            self.running_mean.lerp_(x.mean((0, 2, 3)), self.momentum)
            self.running_var.lerp_(x.var((0, 2, 3), unbiased=False), self.momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)


class Unit(tnn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.conv = tnn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = tnn.BatchNorm2d(outputs, eps=eps)
        self.transposed = self.before = self.leaky = self.bare = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight.transpose(2, 3) if self.transposed else self.conv.weight
        if self.before:  # all of the padding before
            k = weight.shape[2] - 1
            x = F.conv2d(F.pad(x, (k, 0, k, 0)), weight)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        x = self.bn(x)
        if self.leaky:
            return F.leaky_relu(x, 0.1)
        return x if self.bare else F.relu(x)


class Aux(tnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Unit(8, 4, 1)
        self.fc1 = tnn.Linear(64, 6)
        self.fc2 = tnn.Linear(6, CLASSES)
        self.rectified = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1))
        return self.fc2(F.dropout(F.relu(x) if self.rectified else x, 0.5, self.training))


class Mixed(tnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2a, self.b2b = Unit(8, 4, 1), Unit(8, 3, 1), Unit(3, 4, 3)
        self.b3a, self.b3b, self.b3c = Unit(8, 3, 1), Unit(3, 4, 3), Unit(4, 4, 3)
        self.b4 = Unit(8, 4, 1)
        self.counts = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.counts)
        branches = self.b1(x), self.b2b(self.b2a(x)), self.b3c(self.b3b(self.b3a(x)))
        return torch.cat([*branches, self.b4(pooled)], 1)


class Twin(tnn.Module):
    """The same in PyTorch; faults are planted by setting attributes."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1, self.conv2, self.mixed = Unit(3, 6, 3), Unit(6, 8, 3), Mixed()
        self.aux1, self.aux2, self.fc = Aux(), Aux(), tnn.Linear(16, num_classes)
        self.ceil, self.reversed, self.swapped, self.scale = True, False, False, 1.0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv1(x.flip(1) if self.reversed else x)
        x = F.max_pool2d(x, 3, 2, ceil_mode=self.ceil) * self.scale
        x = self.conv2(x)
        outputs = {"aux1": self.aux1(x)} if self.training else {}
        x = self.mixed(x)
        if self.training:
            outputs["aux2"] = self.aux2(x[:, :8])
        if self.swapped and self.training:
            outputs = {"aux1": outputs["aux2"], "aux2": outputs["aux1"]}
        return {"logits": self.fc(x.mean((2, 3)))} | outputs
