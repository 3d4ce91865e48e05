"""GoogLeNet with batch norm as somebody else might write it: nested Sequentials, other names,
images and maps [N, H, W, C], 1×1 convolutions as Linear, and fully connected layers as
convolutions.
"""

import torch
from torch import Tensor, nn

WIDTHS = [
    [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    [
        *[(192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)],
        *[(112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)],
    ],
    [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
]
WIDTH = 0.125


def scaled(channels: int) -> int:
    return max(1, round(channels * WIDTH))


class Turned(nn.Module):
    """Runs a layer for [N, C, H, W] on a map [N, H, W, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    if kernel == 1:
        linear: nn.Module = nn.Linear(inputs, outputs, bias=False)
    else:
        linear = Turned(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
    return nn.Sequential(linear, Turned(nn.BatchNorm2d(outputs, eps=0.01)), nn.ReLU(inplace=True))


class Parallel(nn.Module):
    """Its paths run in another order than their results are joined in."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pool = map(scaled, widths)
        self.paths = nn.ModuleList(
            [
                nn.Sequential(Turned(nn.MaxPool2d(3, 1, 1)), block(inputs, pool, 1)),
                nn.Sequential(block(inputs, five_in, 1), block(five_in, five, 5)),
                nn.Sequential(block(inputs, three_in, 1), block(three_in, three, 3)),
                nn.Sequential(block(inputs, one, 1)),
            ]
        )
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        results = [path(x) for path in self.paths]
        return torch.cat(results[::-1], -1)


def classifier(inputs: int, classes: int) -> nn.Module:
    first = nn.Conv2d(inputs, scaled(128), 1, bias=False)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Sequential(first, nn.BatchNorm2d(scaled(128), eps=0.01), nn.ReLU(), nn.Dropout(0.4)),
        nn.Sequential(nn.Conv2d(scaled(128), scaled(1024), 4), nn.ReLU(), nn.Dropout(0.4)),
        nn.Conv2d(scaled(1024), classes, 1),
        nn.Flatten(),
    )


class Net(nn.Module):
    """Images [N, H, W, 3] → logits, in training (logits, first head's, second head's)."""

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        halve = lambda: Turned(nn.MaxPool2d(3, 2, 1))  # noqa: E731
        stem = [block(3, scaled(64), 7, 2), halve(), block(scaled(64), scaled(64), 1)]
        self.parts = nn.ModuleList([nn.Sequential(*stem, block(scaled(64), scaled(192), 3))])
        inputs, self.side = scaled(192), nn.ModuleDict()
        for group in WIDTHS:
            self.parts.append(halve())
            for widths in group:
                self.parts.append(Parallel(inputs, widths))
                inputs = self.parts[-1].outputs
                if len(self.parts) in (6, 9):
                    self.side[str(len(self.parts))] = classifier(inputs, num_classes)
        self.last = nn.Sequential(nn.Dropout(0.4), nn.Conv2d(inputs, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, others = images, []
        for place, part in enumerate(self.parts, 1):
            x = part(x)
            if str(place) in self.side and self.training:
                others.append(self.side[str(place)](x.permute(0, 3, 1, 2)))
        x = self.last(x.mean((1, 2))[:, :, None, None]).flatten(1)
        return (x, *others) if self.training else x
