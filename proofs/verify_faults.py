"""What `googlenet-jax verify` says of planted faults, and of every network without one.

    python -m proofs verify_faults [NETWORK …] [--only FAULT …]      # some minutes on 2 cores; JSON

Thirteen spellings of one network come first. Faults are planted in the PyTorch twins of
`googlenet_torchvision`, `inception_v3` and `googlenet`, an eighth of their channels, and of a small
ResNet written in Equinox (where that is installed); some alone, four at once, some that are on no
list. Then every network without a fault. Exits with 1 where one is not named as planted, or a
network without a fault differs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import googlenet_jax as gj
from googlenet_jax.verification.report import sentence
from googlenet_jax.verification.verify import (
    Report,
    default_images,
    own_network,
    reference_of,
    verify,
)

WIDTH, CLASSES = (
    0.125,
    10,
)  # the small ResNet has as many channels, so that its classifier is square
Plant = Callable[[Any], None]
Wanted = set[tuple[str, str]]


def put(path: str, name: str, value: Any) -> Plant:
    """Sets an attribute of a layer, or replaces a layer."""
    return lambda net: setattr(net.get_submodule(path), name, value)


def runs(path: str, function: Callable[[Any, Tensor], Tensor]) -> Plant:
    """Another forward pass of a unit with `conv` and `bn`."""

    def plant(net: Any) -> None:
        unit = net.get_submodule(path)
        unit.forward = lambda x: function(unit, x)

    return plant


def act(path: str, function: Callable[[Tensor], Tensor]) -> Plant:
    """Another activation of a unit."""
    return runs(path, lambda unit, x: function(unit.bn(unit.conv(x))))


def norms(change: Callable[[nn.BatchNorm2d], None]) -> Plant:
    """Changes every batch norm."""

    def plant(net: Any) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)

    return plant


def given(change: Callable[[Tensor], Tensor]) -> Plant:
    """Other images."""
    return lambda net: net.register_forward_pre_hook(lambda module, args: (change(args[0]),))


def logits(change: Callable[[Tensor], Tensor]) -> Plant:
    """Other logits."""
    return lambda net: net.register_forward_hook(
        lambda module, args, out: {**out, "logits": change(out["logits"])}
    )


def swapped(net: Any) -> None:
    names = {"aux1": "aux2", "aux2": "aux1"}
    net.register_forward_hook(
        lambda module, args, out: {names.get(k, k): value for k, value in out.items()}
    )


def transposed(unit: Any, x: Tensor) -> Tensor:
    kernel = unit.conv.weight.transpose(2, 3)
    return F.relu(unit.bn(F.conv2d(x, kernel, padding=unit.conv.padding)))


def dropped(net: Any) -> None:
    linear = net.fc.forward
    net.fc.forward = lambda x: linear(F.dropout(x, 0.5, training=True))


def without_scale(norm: nn.BatchNorm2d) -> None:
    norm.forward = lambda x: F.batch_norm(
        x, norm.running_mean, norm.running_var, None, norm.bias, False, 0.1, norm.eps
    )


def unit(path: str, function: Callable[..., Tensor]) -> Plant:
    """Another convolution of a unit: function(images, kernel)."""
    return runs(path, lambda u, x: F.relu(u.bn(function(x, u.conv.weight))))


def same_weights(path: str, other: str) -> Plant:
    """The layer at `path` is the one at `other`."""
    return lambda net: setattr(
        net.get_submodule(path.rpartition(".")[0]),
        path.rpartition(".")[2],
        net.get_submodule(other),
    )


def both(*plants: Plant) -> Plant:
    def plant(net: Any) -> None:
        for each in plants:
            each(net)

    return plant


def reordered(path: str) -> Plant:
    """Another order of a module's concatenated branches."""

    def plant(net: Any) -> None:
        module = net.get_submodule(path)
        branches = [getattr(module, f"branch{i}") for i in (4, 1, 2, 3)]
        module.forward = lambda x: torch.cat([branch(x) for branch in branches], 1)

    return plant


def not_counted(net: Any) -> None:
    net.Mixed_5b.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def halves(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel[:, : kernel.shape[1] // 2], padding=1, groups=2)


def biased(x: Tensor, kernel: Tensor) -> Tensor:
    bias = torch.linspace(-0.3, 0.5, len(kernel), dtype=x.dtype)
    return F.conv2d(x, kernel, bias)


def odd(x: Tensor) -> Tensor:
    return F.relu(x) + 0.1 * torch.sin(x)


# Name: (what is to be named and where, how it is planted). None: unexplained.
GOOGLENET: dict[str, tuple[Wanted | None, list[Plant]]] = {
    "PReLU": (
        {("activation", "conv1")},
        [act("conv1", lambda x: F.prelu(x, x.new_full((1,), 0.3)))],
    ),
    "SELU": ({("activation", "inception_3a/conv_1x1")}, [act("inception3a.branch1", F.selu)]),
    "Mish": ({("activation", "conv2")}, [act("conv3", F.mish)]),
    "no ReLU": ({("missing ReLU", "conv1")}, [act("conv1", lambda x: x)]),
    "epsilons": ({("BN epsilon", "")}, [norms(lambda n: setattr(n, "eps", 1e-5))]),
    "one epsilon": ({("BN epsilon", "conv1")}, [put("conv1.bn", "eps", 1e-5)]),
    "no scale": ({("missing batch norm scale", "")}, [norms(without_scale)]),
    "2x-1": ({("input transform", "images")}, [given(lambda x: 2 * x - 1)]),
    "BGR": ({("channel order", "images")}, [given(lambda x: x.flip(1))]),
    "floor": ({("ceil against floor", "pool1")}, [put("", "pool1", nn.MaxPool2d(3, 2))]),
    "average for max": (
        {("average for max", "pool3")},
        [put("", "pool3", nn.AvgPool2d(3, 2, ceil_mode=True))],
    ),
    "transposed": (
        {("transposed kernel", "inception_4c/conv_3x3")},
        [runs("inception4c.branch2.1", transposed)],
    ),
    "dilation": ({("dilation", "conv2")}, [put("conv3.conv", "dilation", (2, 2))]),
    "softmax": ({("softmax inside", "output logits")}, [logits(lambda x: F.softmax(x, -1))]),
    "swapped": ({("swapped outputs", "aux1, aux2")}, [swapped]),
    "dropout": ({("dropout on in evaluation", "input of head")}, [dropped]),
    "x255": ({("input transform", "images")}, [given(lambda x: x * 255)]),
    "minus mean": (
        {("input transform", "images")},
        [given(lambda x: x - x.new_tensor([0.4, 0.5, 0.6])[:, None, None])],
    ),
    "log softmax": (
        {("log softmax inside", "output logits")},
        [logits(lambda x: F.log_softmax(x, -1))],
    ),
    "order": ({("concatenation order", "inception_4a")}, [reordered("inception4a")]),
    "no norm": (
        {("missing batch norm", "inception_4d/pool_proj")},
        [runs("inception4d.branch4.1", lambda u, x: F.relu(u.conv(x)))],
    ),
    "bias before norm": ({("extra bias", "conv2_reduce")}, [unit("conv2", biased)]),
    "no pool": ({("missing pool", "pool2")}, [put("", "pool2", nn.Identity())]),
    "groups": ({("groups", "conv2")}, [unit("conv3", halves)]),
    "stride moved": (
        {("stride", "conv1"), ("stride", "conv2_reduce")},
        [put("conv1.conv", "stride", (1, 1)), put("conv2.conv", "stride", (2, 2))],
    ),
    "weight shared": (
        {("weight shared", "inception_4c/pool_proj")},
        [same_weights("inception4c.branch4.1.conv", "inception4b.branch4.1.conv")],
    ),
    "momentum": ({("BN momentum", "")}, [norms(lambda n: setattr(n, "momentum", 0.3))]),
    "ReLU before norm": (
        {("activation before batch norm", "conv1")},
        [runs("conv1", lambda u, x: u.bn(F.relu(u.conv(x))))],
    ),
    "unknown": (None, [act("inception4b.branch1", odd)]),
    "four": (
        {
            ("channel order", "images"),
            ("activation", "conv1"),
            ("transposed kernel", "inception_4c/conv_3x3"),
            ("softmax inside", "output logits"),
        },
        [
            given(lambda x: x.flip(1)),
            act("conv1", F.selu),
            runs("inception4c.branch2.1", transposed),
            logits(lambda x: F.softmax(x, -1)),
        ],
    ),
}
INCEPTION: dict[str, tuple[Wanted | None, list[Plant]]] = {
    **{name: GOOGLENET[name] for name in ("epsilons", "2x-1", "softmax", "no scale")},
    "GELU": (
        {("activation", "inception_6b/conv_1x7")},
        [act("Mixed_6b.branch7x7_2", F.gelu)],
    ),
    # The last maps have one place at 75 pixels, so that the pool before the head is none.
    "dropout": ({("dropout on in evaluation", "inception_7c")}, [dropped]),
    "padding not counted": ({("pooling that counts padding", "inception_5b")}, [not_counted]),
    "rows for columns": (
        None,
        [
            runs(
                "Mixed_6b.branch7x7_2",
                lambda u, x: F.relu(
                    u.bn(F.conv2d(x, u.conv.weight.transpose(2, 3), padding=(3, 0)))
                ),
            )
        ],
    ),
    "four": (
        {
            ("input transform", "images"),
            ("BN epsilon", "inception_5c/conv_1x1"),
            ("pooling that counts padding", "inception_5b"),
            ("softmax inside", "output logits"),
        },
        [
            given(lambda x: 2 * x - 1),
            put("Mixed_5c.branch1x1.bn", "eps", 0.1),
            not_counted,
            logits(lambda x: F.softmax(x, -1)),
        ],
    ),
}
# The 2014 network alone has response normalisation.
PAPER: dict[str, tuple[Wanted | None, list[Plant]]] = {
    "no LRN": ({("missing LRN", "norm1")}, [put("", "norm1", nn.Identity())]),
    "LRN's alpha": ({("LRN's numbers", "norm2")}, [put("norm2", "alpha", 1e-2)]),
}


def threshold_at_zero(net: Any) -> None:
    for module in net.modules():
        if hasattr(module, "bn"):
            module.forward = lambda x, u=module: F.threshold(u.bn(u.conv(x)), 0.0, 0.0)


def after_concatenation(net: Any) -> None:
    for module in list(net.modules()):
        if hasattr(module, "branch4"):
            for unit in module.modules():
                if hasattr(unit, "bn"):
                    last = unit in (
                        module.branch1,
                        module.branch2[-1],
                        module.branch3[-1],
                        module.branch4[-1],
                    )
                    unit.relu = not last
            module.register_forward_hook(lambda m, args, out: F.relu(out))


def norm_by_hand(norm: nn.BatchNorm2d) -> None:
    def forward(x: Tensor) -> Tensor:
        mean, variance, scale, shift = (
            v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (x - mean) / torch.sqrt(variance + norm.eps) * scale + shift

    norm.forward = forward


def norm_as_function(norm: nn.BatchNorm2d) -> None:
    norm.forward = lambda x: F.batch_norm(
        *(x, norm.running_mean, norm.running_var, norm.weight, norm.bias),
        *(norm.training, norm.momentum, norm.eps),
    )


def norm_in_mode_of(net: Any) -> Callable[[nn.BatchNorm2d], None]:
    """Batch norm as a function, told by the network itself whether it trains."""

    def change(norm: nn.BatchNorm2d) -> None:
        norm.forward = lambda x: F.batch_norm(
            *(x, norm.running_mean, norm.running_var, norm.weight, norm.bias),
            *(net.training, norm.momentum, norm.eps),
        )

    return change


def pool_before_relu(net: Any) -> None:
    net.conv1.relu = False
    pool = net.pool1
    net.pool1 = nn.Sequential(pool, nn.ReLU())


# Spellings of the same network.
EQUAL: dict[str, tuple[Wanted | None, list[Plant]]] = {
    name: (set(), [plant])
    for name, plant in {
        "clip": act("conv1", lambda x: x.clip(min=0)),
        "maximum": act("conv1", lambda x: torch.maximum(x, x.new_zeros(()))),
        "threshold": threshold_at_zero,
        "where": act("conv3", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
        "times its sign": act("conv2", lambda x: x * (x > 0)),
        "in place": act("conv1", F.relu_),
        "after the pool": pool_before_relu,
        "after the concatenation": after_concatenation,
        "norm as a function": norms(norm_as_function),
        "norm in the network's mode": lambda net: norms(norm_in_mode_of(net))(net),
        "norm by hand": norms(norm_by_hand),
        "frozen": lambda net: net.requires_grad_(False),
        "linear as 1x1": lambda net: setattr(
            net.fc,
            "forward",
            lambda x: F.conv2d(x[..., None, None], net.fc.weight[..., None, None], net.fc.bias)[
                ..., 0, 0
            ],
        ),
    }.items()
}


def resnet() -> tuple[Any, Any, Any]:
    """(a small ResNet in Equinox, its twin in PyTorch, images); ImportError without Equinox."""
    import equinox as eqx

    class Block(eqx.Module):
        one: Any
        two: Any

        def __call__(self, x: Any) -> Any:
            return jax.nn.relu(x + self.two(jax.nn.relu(self.one(x))))

    class Net(eqx.Module):
        stem: Any
        blocks: list[Any]
        head: Any

        def __init__(self, key: Any) -> None:
            keys = jax.random.split(key, 8)
            conv = lambda i, o, k: eqx.nn.Conv2d(i, o, 3, padding=1, key=k)  # noqa: E731
            self.stem = conv(3, CLASSES, keys[0])
            self.blocks = [
                Block(
                    conv(CLASSES, CLASSES, keys[2 * i + 1]), conv(CLASSES, CLASSES, keys[2 * i + 2])
                )
                for i in range(3)
            ]
            self.head = eqx.nn.Linear(CLASSES, CLASSES, key=keys[7])

        def __call__(self, x: Any) -> Any:
            x = jax.nn.relu(self.stem(x))
            x = eqx.nn.MaxPool2d(2, 2)(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    return Net(jax.random.key(0)), TorchResNet(), default_images(16)


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(CLASSES, CLASSES, 3, padding=1) for _ in range(2))
        self.shortcut, self.act = True, F.relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.act(self.one(x)))
        return F.relu(x + y if self.shortcut else y)


class TorchResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CLASSES, 3, padding=1)
        self.blocks = nn.ModuleList([TorchBlock() for _ in range(3)])
        self.head, self.pool = nn.Linear(CLASSES, CLASSES), nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


RESNET: dict[str, tuple[Wanted | None, list[Plant]]] = {
    "no fault": (set(), []),
    "no shortcut": (
        {("missing shortcut", "after blocks/1/two")},
        [put("blocks.1", "shortcut", False)],
    ),
    "leaky": (
        {("activation", "blocks/2/one")},
        [put("blocks.2", "act", lambda x: F.leaky_relu(x, 0.2))],
    ),
    "average for max": (
        {("average for max", "input of blocks/0/one")},
        [put("", "pool", nn.AvgPool2d(2, 2))],
    ),
    "2x-1": GOOGLENET["2x-1"],
    "transposed classifier": (
        {("transposed classifier", "head")},
        [
            lambda net: setattr(
                net.head, "forward", lambda x: F.linear(x, net.head.weight.T, net.head.bias)
            )
        ],
    ),
    "no bias": ({("missing bias", "blocks/0/two")}, [put("blocks.0.two", "bias", None)]),
    "weight shared": (
        {("weight shared", "blocks/2/one")},
        [same_weights("blocks.2.one", "blocks.1.one")],
    ),
    "unknown": (None, [put("blocks.1", "act", odd)]),
    "four": (
        {
            ("input transform", "images"),
            ("average for max", "input of blocks/0/one"),
            ("missing shortcut", "after blocks/1/two"),
            ("transposed classifier", "head"),
        },
        [
            given(lambda x: 2 * x - 1),
            put("", "pool", nn.AvgPool2d(2, 2)),
            put("blocks.1", "shortcut", False),
            lambda net: setattr(
                net.head, "forward", lambda x: F.linear(x, net.head.weight.T, net.head.bias)
            ),
        ],
    ),
}


def judged(found: Report, wanted: Wanted | None) -> bool:
    """Whether what was planted is what is named; unexplained where it is on no list."""
    named = {(f.name, f.layer) for f in (*found.findings, *found.training_findings)}
    if wanted is None:
        return not named and bool(found.unexplained)
    if not wanted:
        return found.equal
    return named == wanted and not found.unexplained


def rows(names: set[str], only: set[str]) -> Iterator[dict[str, Any]]:
    """One result a fault, of these networks (none: of all) and these faults (none: of all)."""
    chosen = lambda table: {k: v for k, v in table.items() if not only or k in only}  # noqa: E731
    for name, table, size in (
        ("googlenet_torchvision", {**EQUAL, **GOOGLENET}, 64),
        ("inception_v3", INCEPTION, 75),
        ("googlenet", PAPER, 64),
    ):
        if names and name not in names:
            continue
        options = {"aux_heads": False} if name == "inception_v3" else {}
        model = gj.create_model(name, num_classes=CLASSES, width=WIDTH, **options)
        ours, images = own_network(model, None, size, "float64", 0), default_images(size)
        for planted, (wanted, plants) in chosen({"no fault": (set(), []), **table}).items():
            module = reference_of(model)
            for plant in plants:
                plant(module)
            steps = 2 if planted == "momentum" else 0
            run = lambda m=module, o=ours, i=images, s=steps: verify(o, m, i, steps=s)  # noqa: E731
            yield row(name, planted, wanted, run)
    if not names or "resnet" in names:
        for planted, (wanted, plants) in chosen(RESNET).items():
            ours, module, images = resnet()
            for plant in plants:
                plant(module)
            yield row("resnet", planted, wanted, lambda m=module, o=ours, i=images: verify(o, m, i))
    done = {"googlenet_torchvision", "inception_v3", "googlenet"}
    for name in gj.list_models():
        if not only and name not in done and (not names or name in names):
            model = gj.create_model(name, num_classes=CLASSES, width=WIDTH)
            size = max(model.min_size, 32)
            side = own_network(model, None, size, "float64", 0)
            module, images = reference_of(model), default_images(size)
            yield row(name, "no fault", set(), lambda s=side, m=module, i=images: verify(s, m, i))


def row(
    network: str, planted: str, wanted: Wanted | None, run: Callable[[], Report]
) -> dict[str, Any]:
    """One planted fault's result, said on the way too."""
    began, cpu = time.perf_counter(), time.process_time()
    found = run()
    well = judged(found, wanted)
    print(f"{'ok ' if well else 'NOT'} {network}, {planted}: {sentence(found)}", file=sys.stderr)
    return {
        "network": network,
        "planted": planted,
        "as_planted": well,
        "sentence": sentence(found),
        "rewrites_tried": found.tried,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="*", help="default: all")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT")
    args = parser.parse_args()
    result = list(rows(set(args.network), set(args.only)))
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    print(json.dumps({"rows": result, "versions": versions}, indent=2, ensure_ascii=False))
    return 0 if all(each["as_planted"] for each in result) else 1


if __name__ == "__main__":
    sys.exit(main())
