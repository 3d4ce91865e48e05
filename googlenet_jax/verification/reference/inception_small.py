"""The small Inception: a convolution that whitens, then units and modules of a 1×1 beside a 3×3."""

import torch
from torch import Tensor, nn

# 1×1, 3×3.
MODULES = {"3a": (16, 48), "3b": (64, 192), "4a": (64, 192), "4b": (64, 192), "5a": (64, 192)}


class _Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, eps: float | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.Identity() if eps is None else nn.BatchNorm2d(outputs, eps=eps)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class _Module(nn.Module):
    def __init__(self, inputs: int, one: int, three: int, eps: float) -> None:
        super().__init__()
        self.conv_1x1 = _Unit(inputs, one, 1, eps)
        self.conv_3x3 = _Unit(inputs, three, 3, eps)
        self.outputs = one + three

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv_1x1(x), self.conv_3x3(x)], 1)


class InceptionSmall(nn.Module):
    """Pools are 2×2/2; the classifier reads the last map's average."""

    def __init__(
        self,
        num_classes: int = 10,
        width: float = 1.0,
        dropout: float = 0.0,
        eps: float = 0.001,
        in_channels: int = 3,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        self.conv1 = _Unit(in_channels, scaled(24), 3, None)
        self.conv2 = _Unit(scaled(24), scaled(64), 3, eps)
        inputs = scaled(64)
        for name, columns in MODULES.items():
            module = _Module(inputs, *map(scaled, columns), eps)
            setattr(self, f"inception_{name}", module)
            inputs = module.outputs
        for number in (1, 2, 3):
            setattr(self, f"pool{number}", nn.MaxPool2d(2))
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor, aux: bool | None = None) -> dict[str, Tensor]:
        """[N, 3, H, W] → "logits"; there are no auxiliary heads."""
        x = self.pool1(self.conv2(self.conv1(x)))
        x = self.pool2(self.inception_3b(self.inception_3a(x)))
        x = self.pool3(self.inception_4b(self.inception_4a(x)))
        x = self.pool4(self.inception_5a(x))
        return {"logits": self.head(self.dropout(torch.flatten(x, 1)))}

    def endpoint_names(self) -> dict[str, str]:
        """{module's name: endpoint's name}."""
        names = {name: name for name, _ in self.named_children() if name != "dropout"}
        for name in MODULES:
            for unit in ("conv_1x1", "conv_3x3"):
                names[f"inception_{name}.{unit}"] = f"inception_{name}/{unit}"
        return names
