"""Anybody's PyTorch module, watched while it runs: its convolutions and fully connected layers.

Every call of a torch function is seen, whether a module or a line of `forward` made it, so that the
style in which a network is written does not matter.
"""

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from googlenet_jax.errors import UserError, nearest

ACTIVATIONS = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu", "hardtanh"),
    *("clamp", "clamp_", "clamp_min", "sigmoid", "tanh", "softplus", "hardswish"),
}
LAYOUT = {"permute", "transpose", "contiguous", "clone", "movedim", "to", "double", "float"}
FLATTENING = {"flatten", "reshape", "view", "squeeze"}
ADDING = {"add", "__add__", "__radd__", "add_", "__iadd__"}


@dataclasses.dataclass
class TorchUnit:
    """A convolution or fully connected layer with the batch norm and activation that follow it.

    Attributes:
      weight: its parameter's name. shape: the parameter's shape.
      parts: "bias", "bn/scale", "bn/bias", "bn/mean", "bn/var" → parameter's or buffer's name.
      input, output: arrays as PyTorch has them. linear: the output before norm and activation.
      flattened: the shape [N, …] of the map whose flattening is the input; None where it is none.
    """

    weight: str
    shape: tuple[int, ...]
    groups: int
    parts: dict[str, str]
    input: np.ndarray
    linear: np.ndarray
    output: np.ndarray
    flattened: tuple[int, ...] | None = None
    epsilon: float | None = None


class WithoutDropout(TorchFunctionMode):
    """Dropout does nothing, wherever it is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            return args[0] if args else kwargs["input"]
        return self.seen(name, args, kwargs, func(*args, **kwargs))

    def seen(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """Takes note of a call; returns its result."""
        return result


class _Tape(WithoutDropout):
    """Records the units of one forward pass."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = dict(names)
        self.units: list[TorchUnit] = []
        self.owner: dict[int, TorchUnit] = {}
        self.unpadded: dict[int, Tensor] = {}
        self.flattened: dict[int, tuple[int, ...]] = {}
        self.kept: list[Tensor] = []  # an id means something while its tensor lives

    def seen(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """Takes note of a call; returns its result."""
        if isinstance(result, Tensor):
            self._note(name, args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        self.kept.append(result)
        if name in ("conv2d", "linear"):
            self._add_unit(name, args, kwargs, result)
            return
        first = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        if first is None:
            return
        if id(first) in self.names and first is not result:
            tensors = [each for each in args[1:] if isinstance(each, Tensor)]
            if not tensors:
                self.names[id(result)] = self.names[id(first)]  # a parameter, rearranged
        unit = self.owner.get(id(first))
        if name == "batch_norm" and unit is not None:
            self._add_norm(unit, args, kwargs)
        if name == "pad":
            self.unpadded[id(result)] = first
        if name in FLATTENING and result.ndim == 2:
            self.flattened[id(result)] = tuple(first.shape)
        if name in ADDING:
            unit = self._biased(args)
        if unit is not None and name in ACTIVATIONS | {"batch_norm"} | ADDING:
            unit.output = _array(result)
        if unit is not None and name in ACTIVATIONS | LAYOUT | FLATTENING | {"batch_norm"} | ADDING:
            self.owner[id(result)] = unit

    def _biased(self, args: Any) -> TorchUnit | None:
        """The unit to which a parameter is added by hand as its bias."""
        for one, other in (args, args[::-1]) if len(args) == 2 else ():
            unit = self.owner.get(id(one))
            if unit is not None and id(other) in self.names and "bias" not in unit.parts:
                unit.parts["bias"] = self.names[id(other)]
                return unit
        return None

    def _add_unit(self, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(order, args, strict=False)) | kwargs
        weight, bias = given["weight"], given.get("bias")
        if id(weight) not in self.names:
            return
        source = self.unpadded.get(id(given["input"]), given["input"])
        value = _array(result)
        parts = {} if bias is None else {"bias": self.names.get(id(bias), "")}
        unit = TorchUnit(
            self.names[id(weight)],
            tuple(weight.shape),
            int(given.get("groups", 1)) if name == "conv2d" else 1,
            {part: entry for part, entry in parts.items() if entry},
            _array(source),
            value,
            value,
            self.flattened.get(id(given["input"])),
        )
        self.units.append(unit)
        self.owner[id(result)] = unit

    def _add_norm(self, unit: TorchUnit, args: Any, kwargs: Any) -> None:
        order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum")
        given = dict(zip((*order, "eps"), args, strict=False)) | kwargs
        ours = {"running_mean": "mean", "running_var": "var", "weight": "scale", "bias": "bias"}
        for theirs, part in ours.items():
            entry = self.names.get(id(given.get(theirs)))
            if entry is not None:
                unit.parts[f"bn/{part}"] = entry
        unit.epsilon = float(given.get("eps", 1e-5))


@dataclasses.dataclass(frozen=True)
class TorchTrace:
    """One forward pass: its units in order, and its outputs ("logits", "aux1", …)."""

    units: list[TorchUnit]
    outputs: dict[str, np.ndarray]


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    wide = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return wide.numpy().copy()


class Theirs:
    """A PyTorch module, its parameters by name, and what it computes."""

    def __init__(self, module: nn.Module, dtype: str) -> None:
        self.module = module.to(getattr(torch, dtype))
        self.dtype, self.precision = getattr(torch, dtype), dtype
        self.channels_last = False  # found out where it first runs

    def entries(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def prepare(self, train: bool) -> None:
        """Training mode, in which auxiliary heads answer; batch norm and dropout act as told."""
        self.module.train()
        for each in self.module.modules():
            if isinstance(each, nn.modules.dropout._DropoutNd):
                each.p = 0.0
            if isinstance(each, nn.modules.batchnorm._BatchNorm) and not train:
                each.eval()

    def pixels(self, images: np.ndarray) -> Tensor:
        """Images [N, H, W, 3] as the module takes them: [N, 3, H, W], or as they are."""
        given = images if self.channels_last else images.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.array(given, np.float64, order="C")).to(self.dtype)

    def trace(self, images: np.ndarray) -> TorchTrace:
        """Runs the module in evaluation, its auxiliary heads too, on images [N, H, W, 3].

        Raises UserError where it runs on images of neither layout.
        """
        self.prepare(train=False)
        names = {id(value): name for name, value in self.entries().items()}
        errors: list[Exception] = []
        for channels_last in (self.channels_last, not self.channels_last):
            self.channels_last = channels_last
            try:
                with torch.no_grad(), _Tape(names) as tape:
                    result = self.module(self.pixels(images))
            except Exception as error:
                errors.append(error)
                continue
            outputs = {
                name: _array(value).reshape(len(images), -1) for name, value in named(result)
            }
            return TorchTrace(tape.units, outputs)
        text = " ".join(str(errors[0]).split())[:200]
        raise UserError(
            f"--against: the module does not run on images [N, 3, {images.shape[1]}, "
            f"{images.shape[2]}]: {type(errors[0]).__name__}: {text}"
        ) from errors[0]

    def push(self, values: Mapping[str, np.ndarray]) -> None:
        """Overwrites parameters and buffers by name."""
        entries = self.entries()
        with torch.no_grad():
            for name, value in values.items():
                entries[name].copy_(torch.from_numpy(np.array(value, np.float64, order="C")))

    def pull(self) -> dict[str, np.ndarray]:
        """Copies of the parameters and buffers by name."""
        return {name: _array(value) for name, value in self.entries().items()}


def named(result: Any) -> list[tuple[str, Tensor]]:
    """The outputs of a module by our names: a tensor, a dictionary, torchvision's named tuples, or
    a plain tuple (logits, first auxiliary head's, second's).

    Raises UserError for anything else.
    """
    if isinstance(result, Tensor):
        return [("logits", result)]
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        found = {_output_name(str(name)): value for name, value in result.items()}
    elif isinstance(result, (tuple, list)):
        found = {f"aux{i}" if i else "logits": value for i, value in enumerate(result)}
    else:
        raise UserError(
            "--against: expected the module to return logits, a tuple or a dictionary of them, "
            f"found {type(result).__name__}"
        )
    return [(name, value) for name, value in found.items() if isinstance(value, Tensor)]


def _output_name(name: str) -> str:
    if name.startswith("aux"):
        return "aux" + (name[-1] if name[-1].isdigit() else "1")
    return "logits" if name in ("out", "output", "main") else name


def load_class(where: str, num_classes: int) -> nn.Module:
    """Runs the file of FILE.py:CLASS, as the user's own code, and makes the module.

    `num_classes` is passed where the class takes it.
    Raises UserError naming what is missing or what the file or class raised.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not name or not path.is_file():
        raise UserError(
            f"--against: expected torch, keras or FILE.py:CLASS with a file that exists, "
            f"found {where!r}"
        )
    spec = importlib.util.spec_from_file_location(f"verified_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--against: expected a Python file, found {file!r}")
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # where dataclasses look their own module up
    sys.path.insert(0, str(path.resolve().parent))  # its own imports of files beside it
    try:
        spec.loader.exec_module(code)
        if not hasattr(code, name):
            hint = nearest(name, [each for each in vars(code) if not each.startswith("_")])
            raise UserError(f"--against: {file} has no {name!r}{hint}")
        make = getattr(code, name)
        takes = "num_classes" in inspect.signature(make).parameters
        module = make(num_classes=num_classes) if takes else make()
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"--against: {where}: {type(error).__name__}: {text}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"--against: expected {where} to be a torch.nn.Module, found {type(module).__name__}"
        )
    return module
