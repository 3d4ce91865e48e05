"""Two runs side by side, in our network's order, and the first layer where they part."""

import dataclasses
import math
from typing import Any

import numpy as np

from googlenet_jax.models.layers import Dense
from googlenet_jax.verification.match import Match, in_our_layout
from googlenet_jax.verification.ours import Call, Trace
from googlenet_jax.verification.theirs import TorchTrace, TorchUnit

MARGIN = 8
NOWHERE = (10**9, 0)
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer's comparison.

    Attributes:
      layer: our name; of a layer without weights where a layer with weights reads it.
      unit: the layer with weights whose input or output it is.
      relative: ‖ours − theirs‖₂ / ‖theirs‖₂; infinite where the shapes differ.
      largest: largest absolute difference. bound: what rounding may make of `relative`.
      place: its order in the network: (of the layer with weights, 0 for an input and 1 for an
        output). channels: the largest absolute difference of each.
    """

    layer: str
    unit: str
    relative: float
    largest: float
    bound: float
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    place: tuple[int, int] = (0, 0)
    channels: tuple[float, ...] = ()

    @property
    def parted(self) -> bool:
        """Whether the difference is more than rounding."""
        return not self.relative <= self.bound


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows in the network's order, the outputs last."""

    rows: list[Row]

    @property
    def first(self) -> Row | None:
        """The first row where the two part."""
        return next((row for row in self.rows if row.parted), None)

    def reached(self) -> tuple[int, int]:
        """The place of the first row that parts, behind all of them where none does."""
        return self.first.place if self.first else NOWHERE


def rounding(depth_units: float, dtype: str) -> float:
    """The bound on a relative error, MARGIN times the root of the sum of each layer's own squared.

    Rounding errors of layers are independent, so squares add up; a layer's own is a unit for its
    output's rounding and one for each root of its number of terms, in the accumulator's dtype.
    """
    return MARGIN * math.sqrt(depth_units) * EPSILON[dtype]


def layer_units(terms: int, dtype: str) -> float:
    """A layer's squared rounding error in units in the last place: see `rounding`."""
    accumulator = min(EPSILON[dtype], EPSILON["float32"])
    return (2 + math.sqrt(terms) * accumulator / EPSILON[dtype]) ** 2


def _terms(call: Call) -> int:
    """How many products a value of the layer's output is the sum of."""
    kernel = math.prod(getattr(call.module, "kernel", (1, 1)))
    return kernel * call.input.shape[-1]


def compare(ours: Trace, theirs: TorchTrace, match: Match, dtype: str) -> Comparison:
    """Compares each matched layer's input and output, then the outputs."""
    units = {unit.weight: unit for unit in theirs.units}
    rows: list[Row] = []
    seen: dict[str, bool] = {}  # our name → whether it parts
    total = 0.0
    for place, (layer, call) in enumerate(ours.units().items()):
        weight = match.pairs.get(layer)
        reading = match.pairs.get(f"{layer}/depthwise", weight)
        total += layer_units(_terms(call), dtype)
        if weight is None or weight not in units or reading not in units:
            continue
        unit, bound = units[weight], rounding(total, dtype)
        given = units[reading]
        reads = _row((place, 0), call.source, layer, call.input, given.input, given, bound)
        if call.source not in seen:
            rows.append(reads)
            seen[call.source] = reads.parted
        elif reads.parted and not seen[call.source]:  # something stands between the two layers
            rows.append(dataclasses.replace(reads, layer=f"{layer} input"))
        value = unit.linear if isinstance(call.module, Dense) else unit.output
        rows.append(_row((place, 1), layer, layer, call.output, value, unit, bound))
        seen[layer] = rows[-1].parted
    for i, (name, mine) in enumerate(ours.outputs.items()):
        if name in theirs.outputs:
            other = theirs.outputs[name]
            relative, largest = difference(mine, other)
            at, bound = (len(ours.units()), i), rounding(total, dtype)
            shapes = mine.shape, other.shape
            rows.append(Row(f"output {name}", "", relative, largest, bound, *shapes, place=at))
    return Comparison(rows)


def _row(
    place: tuple[int, int],
    layer: str,
    unit: str,
    ours: Any,
    value: np.ndarray,
    their: TorchUnit,
    bound: float,
) -> Row:
    mine = np.asarray(ours).astype(np.float64)
    other = in_our_layout(value, their, mine)
    relative, largest = difference(mine, other)
    channels: tuple[float, ...] = ()
    if mine.shape == other.shape:
        axes = tuple(range(mine.ndim - 1))
        channels = tuple(np.abs(mine - other).max(axes).tolist())
    return Row(layer, unit, relative, largest, bound, mine.shape, other.shape, place, channels)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """(‖ours − theirs‖₂ / ‖theirs‖₂, largest absolute difference); infinite where shapes differ.

    Where theirs is all zeros, 0 if ours is too and infinite if not. Not-a-number is infinite.
    """
    if ours.shape != theirs.shape:
        return math.inf, math.inf
    distance = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if not np.isfinite(distance).all():
        return math.inf, math.inf
    size, norm = np.linalg.norm(theirs), np.linalg.norm(distance)
    largest = float(np.abs(distance).max(initial=0.0))
    if size == 0:
        return (0.0 if norm == 0 else math.inf), largest
    return float(norm / size), largest
