"""What `googlenet-jax verify` says of planted faults, and of every network without one.

    python -m proofs verify_faults            # some minutes on 2 cores; prints JSON

Faults are planted in the PyTorch references, narrow ones on small images: nine that `verify` knows,
one at a time; four pairs; three that it does not know. Then every network, narrow, beside its
reference in float64: layers, and one step of SGD. Exits with 1 where a fault is not named as
planted, or a network differs.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet_jax as gj
from googlenet_jax.verification.verify import Verification, reference_of, verify
from tests.verification.small import BiasedNorm

WIDTH, CLASSES, SIZE = 0.125, 10, 64
BN = "googlenet_bn"  # the network that most faults are planted in
Plant = Callable[[Any], None]


class TransposedConv(nn.Conv2d):
    """Height and width of its kernel exchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.transpose(2, 3), self.bias)


class PaddedBefore(nn.Conv2d):
    """All of its padding stands before, none after."""

    def forward(self, x: Tensor) -> Tensor:
        before = self.kernel_size[0] - 1
        return F.conv2d(F.pad(x, (before, 0, before, 0)), self.weight, self.bias)


class Leaky(nn.Module):
    """A unit with a leaky ReLU; it keeps its layers' names."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.conv, self.bn = unit.conv, unit.bn

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.1)


def turned(path: str, kind: type[nn.Module]) -> Plant:
    """Makes a layer one of another class, its weights kept."""

    def plant(net: nn.Module) -> None:
        net.get_submodule(path).__class__ = kind

    return plant


def changed(path: str, name: str, value: Any) -> Plant:
    """Sets an attribute of a layer, or replaces a layer."""
    return lambda net: setattr(net.get_submodule(path), name, value)


def every_norm(change: Plant) -> Plant:
    """Changes every batch norm."""

    def plant(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)

    return plant


def reversed_channels(net: nn.Module) -> None:
    """The network reads blue, green, red."""
    net.register_forward_pre_hook(lambda module, given: (given[0].flip(1),))


def swapped_heads(net: nn.Module) -> None:
    """The network's auxiliary outputs bear one another's names."""
    names = {"aux1": "aux2", "aux2": "aux1"}
    net.register_forward_hook(
        lambda module, given, outputs: {names.get(k, k): value for k, value in outputs.items()}
    )


def leaky(net: Any) -> None:
    net.inception4b.branch1 = Leaky(net.inception4b.branch1)


# Fault: network, layer that is to be named ("" is every layer), steps of training, how it is planted.
FAULTS: dict[str, tuple[str, str, int, Plant]] = {
    "transposed kernel": (
        *(BN, "inception_4c/conv_3x3", 0),
        turned("inception4c.branch2.1.conv", TransposedConv),
    ),
    "padding side": (
        *(BN, "inception_3b/conv_5x5", 0),
        turned("inception3b.branch3.1.conv", PaddedBefore),
    ),
    "pooling that counts padding": (
        *("bn_inception", "inception_3a", 0),
        changed("", "inception_3a_pool", nn.AvgPool2d(3, 1, 1)),
    ),
    "ceil against floor": (
        *(BN, "pool3", 0),
        changed("", "pool3", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
    ),
    "channel order": (BN, "images", 0, reversed_channels),
    "BN epsilon": (BN, "", 0, every_norm(lambda norm: setattr(norm, "eps", 1e-5))),
    "biased running variance": (
        *(BN, "", 1),
        every_norm(lambda norm: setattr(norm, "__class__", BiasedNorm)),
    ),
    "swapped aux heads": (BN, "aux1, aux2", 0, swapped_heads),
    "missing ReLU": (
        *(BN, "inception_4a/conv_3x3_reduce", 0),
        changed("inception4a.branch2.0", "relu", False),
    ),
}
PAIRS = [
    ("channel order", "missing ReLU"),
    ("ceil against floor", "transposed kernel"),
    ("BN epsilon", "pooling that counts padding"),
    ("padding side", "swapped aux heads"),
]
OUTSIDE: dict[str, tuple[str, int, Plant]] = {
    "leaky ReLU in inception_4b/conv_1x1": (BN, 0, leaky),
    "LRN with twice the alpha": ("googlenet", 0, changed("norm2", "alpha", 2e-4)),
    "BN momentum 0.01": (BN, 1, every_norm(lambda norm: setattr(norm, "momentum", 0.01))),
}


def run(name: str, steps: int, *plants: Plant) -> Verification:
    """A narrow network beside its reference with faults."""
    torch.manual_seed(0)
    model = gj.create_model(name, num_classes=CLASSES, width=WIDTH)
    module = reference_of(model)
    for plant in plants:
        plant(module)
    return verify(model, module, size=SIZE, steps=steps)


def row(planted: str, name: str, found: Verification, began: float, well: bool) -> dict[str, Any]:
    """One planted fault's result, said on the way too."""
    result = {
        "planted": planted,
        "network": name,
        "as_planted": well,
        "sentence": found.sentence(),
        "first": found.first.layer if found.first else None,
        "named": [str(fault) for fault in found.faults],
        "unexplained": found.unexplained.layer if found.unexplained else None,
        "suspects_tried": found.tried,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(f"{'ok ' if well else 'NOT'} {planted}: {found.sentence()}", file=sys.stderr, flush=True)
    return result


def planted_faults() -> list[dict[str, Any]]:
    """The nine, the pairs, and those outside the list."""
    rows = []
    for fault, (name, layer, steps, plant) in FAULTS.items():
        began = time.perf_counter()
        found = run(name, steps, plant)
        named = [(each.name, each.layer) for each in found.faults]
        well = named == [(fault, layer)] and found.unexplained is None
        rows.append(row(fault, name, found, began, well))
    for pair in PAIRS:
        began = time.perf_counter()
        name = FAULTS[pair[1]][0]
        found = run(name, 0, *(FAULTS[fault][3] for fault in pair))
        named = [(each.name, each.layer) for each in found.faults]
        well = sorted(named) == sorted((fault, FAULTS[fault][1]) for fault in pair)
        rows.append(row(" and ".join(pair), name, found, began, well and found.unexplained is None))
    for fault, (name, steps, plant) in OUTSIDE.items():
        began = time.perf_counter()
        found = run(name, steps, plant)
        well = found.unexplained is not None and not found.faults
        rows.append(row(fault, name, found, began, well))
    return rows


def without_a_fault() -> list[dict[str, Any]]:
    """Every network's largest relative differences, and the bounds that they were held to."""
    rows = []
    for name in gj.list_models():
        began = time.perf_counter()
        model = gj.create_model(name, num_classes=CLASSES, width=WIDTH)
        size = max(model.min_size, 32)
        found = verify(model, reference_of(model), size=size, steps=1)
        result = {
            "network": name,
            "size": size,
            "verdict": found.verdict,
            "layers": len(found.match.pairs),
            "not_matched": [*found.match.ours, *found.match.theirs],
            "largest_relative": max(each.relative for each in found.rows),
            "bound": found.bound,
            "entries_of_training": len(found.training),
            "largest_relative_in_training": max(each.relative for each in found.training),
            "nearest_to_its_bound": max(each.relative / each.bound for each in found.training),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{name}: {found.sentence()}", file=sys.stderr, flush=True)
        rows.append(result)
    return rows


def main() -> int:
    result = {
        "faults": planted_faults(),
        "without_a_fault": without_a_fault(),
        "dtype": "float64",
        "width": WIDTH,
        "size_of_faults": SIZE,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))
    good = all(each["as_planted"] for each in result["faults"])
    same = all(each["verdict"].startswith("equal") for each in result["without_a_fault"])
    return 0 if good and same else 1


if __name__ == "__main__":
    sys.exit(main())
