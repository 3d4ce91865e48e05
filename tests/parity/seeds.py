"""The networks that the four seed documents print, as their code would compute them once it is
repaired, written anew.

They share nothing with `googlenet_jax.verification.reference`, so that the two check one another.
Parameters stand in the same order as there.
"""

from functools import partial

import torch
from torch import Tensor, nn

# 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, projection, as the documents print them; None is a pool
# between stages.
_STAGES = [
    *[(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None],
    *[(192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)],
    *[(112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None],
    *[(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
]


class _Concatenate(nn.ModuleList):
    """Runs every member on the same input and joins the results by channel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def _plain_conv(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.ReLU()]


def _bn_conv(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=0.01),
        nn.ReLU(),
    ]


def _module(conv, inputs: int, a: int, b0: int, b: int, c0: int, c: int, d: int) -> nn.Module:
    return _Concatenate(
        [
            nn.Sequential(*conv(inputs, a, 1)),
            nn.Sequential(*conv(inputs, b0, 1), *conv(b0, b, 3)),
            nn.Sequential(*conv(inputs, c0, 1), *conv(c0, c, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(inputs, d, 1)),
        ]
    )


def _stages(conv, inputs: int) -> list[nn.Module]:
    members: list[nn.Module] = []
    for columns in _STAGES:
        if columns is None:
            members.append(nn.MaxPool2d(3, 2, 1))
        else:
            members.append(_module(conv, inputs, *columns))
            inputs = columns[0] + columns[2] + columns[4] + columns[5]
    return members


def seed_000(base_dim: int = 64, num_classes: int = 2) -> nn.Module:
    """Seeds 000 and 001, which print one network. Input 224×224: the 7×7 average pool needs a 7×7
    map.

    Repairs: the missing commas after the convolutions of `conv_1` and `conv_1_3`; the trailing
    commas that made two branches tuples; the second module's input, printed `base_dim * 4`, is the
    first's 256 outputs (the same at 64, and the only width that works at another).
    """
    return nn.Sequential(
        nn.Conv2d(3, base_dim, 7, 2, 3),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(base_dim, 3 * base_dim, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        *_stages(_plain_conv, 3 * base_dim),
        nn.AvgPool2d(7, 1),
        nn.Dropout2d(0.4),
        nn.Flatten(),
        nn.Linear(1024, num_classes),
    )


seed_001 = seed_000


def seed_002(base_dim: int = 64, num_classes: int = 2) -> nn.Module:
    """Seed 002: the network of seed 000 again, once it runs.

    Repairs: `nn.ReLu` → `nn.ReLU`; `nn.MaxMaxPool2` → `nn.MaxPool2d`; the stem's second
    convolution, printed `3, 3, 1, 1` (stride 3: the 7×7 average would find a 3×3 map), is `3, 1,
    1`; 4c's 5×5 width 48 (496 channels where the next module takes 512) is 64; `view` by the batch
    size given at construction is a flatten; the classifier's fixed 1000 is `num_classes`; the
    second module's input as in seed 000.
    """
    return seed_000(base_dim, num_classes)


class seed_003(nn.Module):
    """Seed 003, GoogLeNet with batch normalization; in training it returns (logits, aux1, aux2).

    Repairs: `epos=0.01` → `eps=0.01`; `conv_block(64, 64, 1, 1)` and `conv_block(64, 192, 3, …)`
    name their kernel sizes; `self.inception4d` is called; `avgpool` loses the comma that made it a
    tuple.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        stages = _stages(_bn_conv, 192)
        self.to_4a = nn.Sequential(
            *_bn_conv(3, 64, 7, 2),
            nn.MaxPool2d(3, 2, 1),
            *_bn_conv(64, 64, 1),
            *_bn_conv(64, 192, 3),
            nn.MaxPool2d(3, 2, 1),
            *stages[:4],
        )
        self.to_4d = nn.Sequential(*stages[4:7])
        self.to_5b = nn.Sequential(*stages[7:])
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, num_classes)
        )
        aux = partial(self._aux, classes=num_classes)
        self.aux1, self.aux2 = aux(512), aux(528)

    @staticmethod
    def _aux(inputs: int, classes: int) -> nn.Module:
        pooled = [nn.AdaptiveAvgPool2d(4), *_bn_conv(inputs, 128, 1), nn.Dropout(0.4), nn.Flatten()]
        return nn.Sequential(
            *pooled, nn.Linear(2048, 1024), nn.ReLU(), nn.Dropout(0.4), nn.Linear(1024, classes)
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        after_4a = self.to_4a(x)
        after_4d = self.to_4d(after_4a)
        logits = self.classifier(self.to_5b(after_4d))
        return (logits, self.aux1(after_4a), self.aux2(after_4d)) if self.training else logits
