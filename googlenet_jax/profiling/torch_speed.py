"""The peer of `speed.py`: the same networks in PyTorch at its best public settings (channels_last,
autocast, its own folding of batch norm), timed the same way.

The networks are built of PyTorch's own layers from the paper's table, for timing alone: their
initialisation is PyTorch's, and each batch norm stands where PyTorch's folding finds it.
"""

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.profiling.speed import Timing, resident_bytes, time_steps
from googlenet_jax.verification.reference import INCEPTIONS, NETWORKS
from googlenet_jax.verification.reference.layers import MODULES

_TORCHVISION = {"googlenet_torchvision": "googlenet", "inception_v3": "inception_v3"}


class _Unit(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: bool) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
        parts = [conv, nn.BatchNorm2d(outputs, eps=1e-2)] if norm else [conv]
        super().__init__(*parts, nn.ReLU(inplace=True))


class _Inception(nn.Module):
    def __init__(self, inputs: int, widths: tuple[int, ...], norm: bool) -> None:
        super().__init__()
        unit = functools.partial(_Unit, stride=1, norm=norm)
        one, reduce_3, three, reduce_5, five, projection = widths
        self.one = unit(inputs, one, 1)
        self.three = nn.Sequential(unit(inputs, reduce_3, 1), unit(reduce_3, three, 3))
        self.five = nn.Sequential(unit(inputs, reduce_5, 1), unit(reduce_5, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, projection, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class _AuxHead(nn.Module):
    def __init__(self, inputs: int, classes: int, norm: bool) -> None:
        super().__init__()
        average: nn.Module = nn.AdaptiveAvgPool2d(4) if norm else nn.AvgPool2d(5, 3)
        self.features = nn.Sequential(average, _Unit(inputs, 128, 1, 1, norm), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(2048, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(1024, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class GoogLeNet(nn.Module):
    """`googlenet_bn` with `norm`, else `googlenet` with its LRN and ceil-mode pools."""

    def __init__(self, norm: bool, classes: int = 1000) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, 1) if norm else nn.MaxPool2d(3, 2, ceil_mode=True)

        def lrn() -> nn.Module:
            return nn.Identity() if norm else nn.LocalResponseNorm(5, alpha=1e-4, k=1.0)

        first, second = _Unit(3, 64, 7, 2, norm), _Unit(64, 64, 1, 1, norm)
        third = _Unit(64, 192, 3, 1, norm)
        self.stem = nn.Sequential(first, pool(), lrn(), second, third, lrn(), pool())
        self.blocks, self.aux = nn.ModuleDict(), nn.ModuleDict()
        inputs = 192
        for name, widths in MODULES.items():
            block: nn.Module = _Inception(inputs, widths, norm)
            self.blocks[name] = nn.Sequential(pool(), block) if name in ("4a", "5a") else block
            inputs = widths[0] + widths[2] + widths[4] + widths[5]
            if name in ("4a", "4d"):
                self.aux[name] = _AuxHead(inputs, classes, norm)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(inputs, classes)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] → the main logits and, in training, the auxiliary heads'."""
        x, aux = self.stem(x), []
        for name, block in self.blocks.items():
            x = block(x)
            if self.training and name in self.aux:
                aux.append(self.aux[name](x))
        return [self.head(x), *aux]


def create(name: str) -> nn.Module:
    """The peer of one of our networks, which `whose` names. Raises UserError where there is none."""
    if name in ("googlenet", "googlenet_bn"):
        return GoogLeNet(norm=name == "googlenet_bn")
    if name not in _TORCHVISION:
        peers = ", ".join(["googlenet", "googlenet_bn", *_TORCHVISION])
        raise UserError(f"--peer torch: there is no PyTorch form of {name}; there are: {peers}")
    torchvision, _ = _torchvision()
    if torchvision is None:
        return {**NETWORKS, **INCEPTIONS}[name]()
    make = getattr(torchvision.models, _TORCHVISION[name])
    return make(weights=None, aux_logits=True, init_weights=False)


def whose(name: str) -> str:
    """Who wrote the peer of a network, for people."""
    if name not in _TORCHVISION:
        return "built here of PyTorch's layers"
    torchvision, reason = _torchvision()
    if torchvision is None:
        return f"this project's reference, as torchvision can't be imported ({reason})"
    return f"torchvision {torchvision.__version__}'s"


def _torchvision() -> tuple[Any, str]:
    """The module, or None and why."""
    try:
        import torchvision
    except Exception as error:  # one that was made for another PyTorch raises RuntimeError
        return None, one_line(error)
    return torchvision, ""


def time_peer(
    name: str, *, train: bool, batch_size: int, size: int, steps: int, dtype: str, compiled: bool
) -> Timing:
    """As `speed.time_network`: SGD with momentum and the auxiliary losses, or folded inference; on
    a GPU where PyTorch has one.
    """
    gpu = torch.cuda.is_available()
    # A GPU's kernels are chosen by timing and float32 products may round to TF32: XLA does both.
    torch.backends.cudnn.benchmark = gpu
    torch.set_float32_matmul_precision("high" if gpu else "highest")
    device = torch.device("cuda" if gpu else "cpu")
    network = create(name).train(train).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs lack it
    if not train:
        network = _fold(network)
    images = torch.randn(batch_size, 3, size, size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % 1000
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    enqueue = _training(run, optimizer, images, labels) if train else _inference(run, images)
    wide = dtype == "float32"
    cast = contextlib.nullcontext() if wide else torch.autocast(device.type, getattr(torch, dtype))

    def step() -> None:
        enqueue()
        if gpu:
            torch.cuda.synchronize()

    with cast:
        start = time.perf_counter()
        step()
        compile_seconds = time.perf_counter() - start
        times = time_steps(step, steps)
    if gpu:
        peak = torch.cuda.max_memory_allocated()
        return Timing(*times, compile_seconds, peak, torch.cuda.get_device_name())
    return Timing(*times, compile_seconds, resident_bytes(), "cpu")


def _training(run: Any, optimizer: Any, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        outputs = run(images)
        if isinstance(outputs, dict):  # this project's reference
            outputs = outputs.values()
        main, *aux = [each for each in outputs if each is not None]
        loss = F.cross_entropy(main, labels)
        for logits in aux:
            loss = loss + 0.3 * F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _inference(run: Any, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            run(images)

    return step


def _fold(network: nn.Module) -> nn.Module:
    """PyTorch's own folding of batch norm, wherever one follows a convolution directly."""
    network = copy.deepcopy(network)
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, conv_name, nn.utils.fusion.fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return network
