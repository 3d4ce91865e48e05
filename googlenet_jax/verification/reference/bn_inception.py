"""BN-Inception (arXiv 1502.03167, Fig. 5) under the names of its common PyTorch port, in three
flavours: paper, port, slim.
"""

from functools import partial

import torch
from torch import Tensor, nn

from googlenet_jax.verification.reference.layers import (
    SameConv2d,
    SameMaxPool2d,
    ShiftBatchNorm2d,
    average_pool,
    same_padding,
)

# 1×1 | 3×3 reduce, 3×3 | double 3×3 reduce, 3×3, 3×3 | pool projection; None: the branch is
# missing, and the module halves the map.
MODULES = {
    "3a": (64, 64, 64, 64, 96, 96, 32),
    "3b": (64, 64, 96, 64, 96, 96, 64),
    "3c": (None, 128, 160, 64, 96, 96, None),
    "4a": (224, 64, 96, 96, 128, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128, 128),
    "4c": (160, 128, 160, 128, 160, 160, "P"),
    "4d": (96, 128, 192, 160, 192, 192, "P"),
    "4e": (None, 128, 192, 192, 256, 256, None),
    "5a": (352, 192, 320, 160, 224, 224, 128),
    "5b": (352, 192, 320, 192, 224, 224, 128),
}
NORMS = {
    "paper": partial(nn.BatchNorm2d, eps=0.001),
    "port": nn.BatchNorm2d,
    "slim": partial(ShiftBatchNorm2d, eps=0.001, momentum=0.0003),
}
_UNITS = {
    "1x1": "conv_1x1",
    "3x3_reduce": "conv_3x3_reduce",
    "3x3": "conv_3x3",
    "double_3x3_reduce": "conv_double_3x3_reduce",
    "double_3x3_1": "conv_double_3x3_1",
    "double_3x3_2": "conv_double_3x3_2",
    "pool_proj": "pool_proj",
}
_OTHERS = {
    "conv1_7x7_s2_relu": "conv1",
    "pool1_3x3_s2": "pool1",
    "conv2_3x3_reduce_relu": "conv2_reduce",
    "conv2_3x3_relu": "conv2",
    "pool2_3x3_s2": "pool2",
    "norm1": "norm1",
    "norm2": "norm2",
    "global_pool": "pool5",
    "last_linear": "head",
}


class SameDepthwise(nn.Conv2d):
    """7×7/2 a channel at a time with TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(same_padding(x, 7, 2, 0.0))


class BNInception(nn.Module):
    """The network as a list of flat attributes, as the port has it: `inception_3a_double_3x3_1`,
    `inception_3a_double_3x3_1_bn`.

    port: biases before batch norm, epsilon 1e-5, a dense 7×7, average pools that count padding,
    ceil-mode max pools, P = 128. slim (its `inception_v2`): a separable 7×7 of multiplier 8 with a
    bias and no batch norm, SAME, no gamma, averages without padding, P = 96.
    paper: as printed, P = 128; a separable 7×7, gamma, no biases; SAME and averages without
    padding, as TensorFlow's are.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        flavour: str = "paper",
        width: float = 1.0,
        dropout: float | None = None,
        pool_proj_4c: int | None = None,
        stem: str = "",
        lrn: bool = False,
    ) -> None:
        super().__init__()
        slim = flavour == "slim"
        self.num_classes = (1001 if slim else 1000) if num_classes is None else num_classes
        self.flavour, self.width = flavour, width
        p = (96 if slim else 128) if pool_proj_4c is None else pool_proj_4c
        stem = stem or ("dense" if flavour == "port" else "separable")
        if stem == "separable":
            self.conv1_7x7_s2_depthwise = SameDepthwise(3, 24, 7, 2, groups=3, bias=False)
            self.unit("conv1_7x7_s2", 24, 64, 1, bare=slim)
        else:
            kernel, stride = (3, 1) if stem == "small" else (7, 2)
            self.unit("conv1_7x7_s2", 3, 64, kernel, stride)
        self.pool1_3x3_s2 = self.max_pool(2)
        if lrn:
            self.norm1, self.norm2 = (
                nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) for _ in range(2)
            )
        self.unit("conv2_3x3_reduce", 64, 64, 1)
        self.unit("conv2_3x3", 64, 192, 3)
        self.pool2_3x3_s2 = nn.Sequential() if stem == "small" else self.max_pool(2)
        self.small = stem == "small"
        inputs = 192
        for name, columns in MODULES.items():
            columns = tuple(p if column == "P" else column for column in columns)
            inputs = self.module(f"inception_{name}", inputs, *columns)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0 if dropout is None else dropout)
        self.last_linear = nn.Linear(sum(map(self.scaled, inputs)), self.num_classes)

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width))

    def max_pool(self, stride: int) -> nn.Module:
        if self.flavour != "port":
            return SameMaxPool2d(3, stride)
        return nn.MaxPool2d(3, 2, ceil_mode=True) if stride == 2 else nn.MaxPool2d(3, 1, padding=1)

    def unit(
        self, name: str, inputs, outputs: int, kernel: int, stride: int = 1, bare: bool = False
    ) -> None:
        """`inputs`: in unscaled channels, or a list of such that are scaled one by one, as where
        branches are joined.

        `bare`: with a bias in place of batch norm.
        """
        columns = inputs if isinstance(inputs, list) else [inputs]
        given = sum(
            24 if name == "conv1_7x7_s2" and c == 24 else c if c == 3 else self.scaled(c)
            for c in columns
        )
        biased = self.flavour == "port"
        made = (
            nn.Conv2d(given, self.scaled(outputs), kernel, stride, padding=kernel // 2)
            if biased
            else SameConv2d(given, self.scaled(outputs), kernel, stride, bias=bare)
        )
        setattr(self, name, made)
        norm = nn.Identity() if bare else NORMS[self.flavour](self.scaled(outputs))
        setattr(self, f"{name}_bn", norm)
        setattr(self, f"{name}_relu", nn.ReLU())

    def module(
        self,
        name: str,
        inputs,
        one,
        three_reduce,
        three,
        double_reduce,
        double_1,
        double_2,
        projection,
    ) -> list[int]:
        stride = 2 if one is None else 1
        if one is not None:
            self.unit(f"{name}_1x1", inputs, one, 1)
        self.unit(f"{name}_3x3_reduce", inputs, three_reduce, 1)
        self.unit(f"{name}_3x3", three_reduce, three, 3, stride)
        self.unit(f"{name}_double_3x3_reduce", inputs, double_reduce, 1)
        self.unit(f"{name}_double_3x3_1", double_reduce, double_1, 3)
        self.unit(f"{name}_double_3x3_2", double_1, double_2, 3, stride)
        if projection is None:
            pool, passed = self.max_pool(2), inputs
        else:
            pool = (
                self.max_pool(1) if name == "inception_5b" else average_pool(self.flavour == "port")
            )
            self.unit(f"{name}_pool_proj", inputs, projection, 1)
            passed = projection
        setattr(self, f"{name}_pool", pool)
        setattr(self, f"{name}_output", nn.Identity())
        joined = [*([one] if one is not None else []), three, double_2]
        return joined + (passed if isinstance(passed, list) else [passed])

    def run(self, name: str, x: Tensor) -> Tensor:
        for part in (name, f"{name}_bn", f"{name}_relu"):
            x = getattr(self, part)(x)
        return x

    def run_module(self, name: str, x: Tensor) -> Tensor:
        branches = [self.run(f"{name}_1x1", x)] if hasattr(self, f"{name}_1x1") else []
        branches.append(self.run(f"{name}_3x3", self.run(f"{name}_3x3_reduce", x)))
        double = self.run(f"{name}_double_3x3_1", self.run(f"{name}_double_3x3_reduce", x))
        branches.append(self.run(f"{name}_double_3x3_2", double))
        pooled = getattr(self, f"{name}_pool")(x)
        branches.append(
            self.run(f"{name}_pool_proj", pooled) if hasattr(self, f"{name}_pool_proj") else pooled
        )
        return getattr(self, f"{name}_output")(torch.cat(branches, 1))

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        """[N, 3, H, W] → "logits"."""
        if hasattr(self, "conv1_7x7_s2_depthwise"):
            x = self.conv1_7x7_s2_depthwise(x)
        x = self.pool1_3x3_s2(self.run("conv1_7x7_s2", x))
        x = self.norm1(x) if hasattr(self, "norm1") else x
        x = self.run("conv2_3x3", self.run("conv2_3x3_reduce", x))
        x = self.pool2_3x3_s2(self.norm2(x) if hasattr(self, "norm2") else x)
        for name in MODULES:
            x = self.run_module(f"inception_{name}", x)
        return {"logits": self.last_linear(self.dropout(torch.flatten(self.global_pool(x), 1)))}

    def endpoint_names(self) -> dict[str, str]:
        """{module's name here: endpoint's name}."""
        names = {
            name: ours
            for name, ours in _OTHERS.items()
            if hasattr(self, name) and not (self.small and ours == "pool2")
        }
        for module in MODULES:
            prefix = f"inception_{module}"
            names[f"{prefix}_output"] = prefix
            names |= {
                f"{prefix}_{unit}_relu": f"{prefix}/{ours}"
                for unit, ours in _UNITS.items()
                if hasattr(self, f"{prefix}_{unit}")
            }
        return names
