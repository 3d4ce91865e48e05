"""Our network run layer by layer, with each layer's input and output kept and with faults applied.

Nothing is compiled as a whole: a fault changes one layer, and only that layer is new to XLA.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from googlenet_jax.models.layers import AvgPool, ConvUnit, Dense, LocalResponseNorm, MaxPool
from googlenet_jax.models.network import Network, variable_shapes

Pads = tuple[tuple[int, int], tuple[int, int]]


def _same(value: Any) -> Any:
    return value


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault as it can be applied to our own side.

    Attributes:
      name: what it is called. layer: where; "" is everywhere. detail: with which numbers.
      fields: (layer, module) → fields of the module to be replaced while it runs.
      pads: what to pad the layer's input with, ((before, after) of rows, of columns).
      reads: layer → layer whose bare output it reads in place of its input.
      images, variables, outputs: change the whole run's.
    """

    name: str
    layer: str = ""
    detail: str = ""
    fields: Callable[[str, nn.Module], Mapping[str, Any]] = lambda layer, module: {}
    pads: Pads | None = None
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Callable[[Any], Any] = _same
    variables: Callable[[Any], Any] = _same
    outputs: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = _same

    def __str__(self) -> str:
        where = self.layer or "every layer"
        return f"{self.name} ({where}{': ' if self.detail else ''}{self.detail})"


@dataclasses.dataclass(frozen=True)
class Call:
    """One layer's run.

    Attributes:
      layer: its path, such as "inception_3a/conv_1x1". module: what ran, unbound.
      input, output: arrays [N, H, W, C] or [N, C].
      source: the name of what made the input, where a layer made it.
    """

    layer: str
    module: nn.Module
    input: Any
    output: Any
    source: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """One run: the calls in the network's order, and its outputs."""

    calls: list[Call]
    outputs: dict[str, np.ndarray]

    def units(self) -> dict[str, Call]:
        """The convolution units and fully connected layers."""
        return {c.layer: c for c in self.calls if isinstance(c.module, ConvUnit | Dense)}


class _Enough(Exception):
    """The layer that was asked for has run."""


def trace(
    model: Network,
    variables: Mapping[str, Any],
    images: np.ndarray,
    faults: Sequence[Fault] = (),
    until: str = "",
) -> Trace:
    """Runs the network in evaluation, its auxiliary heads too, with `faults` applied.

    `until` stops after the layer of that name; there are no outputs then.
    """
    calls: list[Call] = []
    for fault in faults:
        images, variables = fault.images(images), fault.variables(variables)
    given_images = jnp.asarray(images)
    kept: list[Any] = [given_images]  # an id means something while its array lives
    makers: dict[int, str] = {}
    bare: dict[str, Any] = {}

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, layer = context.module, "/".join(context.module.path)
        if context.method_name != "__call__" or not layer:
            return function(*args, **kwargs)
        given = args[0]
        source = makers.get(id(given), f"{layer} input" if calls else "images")
        for fault in faults:
            if layer in fault.reads:
                given = bare[fault.reads[layer]]
        result = with_faults(function, (given, *args[1:]), kwargs, module, layer, faults)
        bare[layer] = result
        if isinstance(module, ConvUnit | Dense | MaxPool | AvgPool | LocalResponseNorm):
            about = module.clone(parent=None)  # unbound, so that its fields can be read later
            calls.append(Call(layer, about, given, result, source))
        if not isinstance(module, nn.Dropout):
            makers[id(result)] = layer
        elif id(given) in makers:
            makers[id(result)] = source
        kept.append(result)
        if layer == until:
            raise _Enough
        return result

    try:
        with nn.intercept_methods(intercept):
            output = model.apply(variables, given_images, train=False, aux=True)
    except _Enough:
        return Trace(calls, {})
    outputs = {"logits": output.logits, **output.aux_logits}  # type: ignore[union-attr]
    for fault in faults:
        outputs = fault.outputs(outputs)
    return Trace(calls, {name: np.asarray(value) for name, value in outputs.items()})


def with_faults(
    function: Any, args: Any, kwargs: Any, module: Any, layer: str, faults: Sequence[Fault]
) -> Any:
    """Calls the layer with its fields replaced, and puts them back."""
    given = args[0]
    before: dict[str, Any] = {}
    for fault in faults:
        fields = dict(fault.fields(layer, module))
        if fault.pads is not None and layer == fault.layer:
            value = -jnp.inf if isinstance(module, MaxPool) else 0.0
            given = jnp.pad(given, ((0, 0), *fault.pads, (0, 0)), constant_values=value)
            fields["padding"] = 0
        for name, value in fields.items():
            before.setdefault(name, getattr(module, name))
            # A module is frozen while it runs; the interceptor is the one place that knows better.
            object.__setattr__(module, name, value)
    try:
        return function(given, *args[1:], **kwargs)
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def draw_variables(model: Network, size: int, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Random variables, none of them zero or one; kernels such that activations keep their size."""
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        part, parent = path[-1].key, path[-2].key
        shape = leaf.shape
        if "kernel" in part:
            value = generator.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif part in ("var", "scale"):
            value = generator.uniform(0.5, 1.5, shape)
        else:
            value = generator.normal(0, 0.2, shape) if parent else np.zeros(shape)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model, size))
