"""Local comparison: each segment of the reference is given what the candidate recorded before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from googlenet_jax.verification.align import Alignment, Unit
from googlenet_jax.verification.graph import Graph, Node, evaluated

MARGIN = 8
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclasses.dataclass
class Row:
    """One comparison.

    Attributes:
      name: the layer, or the place whose output is read. kind: "convolution" (its products, of what
        the candidate's read), "value" (what a layer reads, made of the products before it) or
        "output".
      relative: ‖reference − candidate‖₂ / ‖candidate‖₂ where the reference's segment was given the
        candidate's inputs; infinite where shapes differ or it can't run on them.
      whole: the same, end to end. largest: largest absolute difference. bound: what rounding may
        make of `relative`.
      channels: the largest absolute difference of each.
    """

    name: str
    kind: str
    relative: float = 0.0
    whole: float = 0.0
    largest: float = 0.0
    bound: float = 0.0
    reference: tuple[int, ...] = ()
    candidate: tuple[int, ...] = ()
    channels: tuple[float, ...] = ()
    node: Node | None = dataclasses.field(default=None, repr=False)
    of_candidate: Node | None = dataclasses.field(default=None, repr=False)
    unit: Unit | None = dataclasses.field(default=None, repr=False)

    @property
    def parted(self) -> bool:
        """Whether the segment differs by more than rounding."""
        return not self.relative <= self.bound


def rounding(units: Sequence[Unit], dtype: str) -> float:
    """The bound on a relative error at the end of a network.

    Rounding errors of layers are independent, so squares add up; a layer's own is a unit in the
    last place for its output and one for each root of its number of terms, in the accumulator's
    dtype.
    """
    accumulator = min(EPSILON[dtype], EPSILON["float32"])
    total = 0.0
    for unit in units:
        terms = math.prod(unit.shape[:3])
        total += (2 + math.sqrt(terms) * accumulator / EPSILON[dtype]) ** 2
    return MARGIN * math.sqrt(max(total, 1.0)) * EPSILON[dtype]


def difference(of_reference: Tensor | None, of_candidate: Tensor | None) -> tuple[float, float]:
    """(‖reference − candidate‖₂ / ‖candidate‖₂, largest absolute difference); infinite where shapes
    differ.

    Where the candidate is all zeros, 0 if the reference is too and infinite if not. Not-a-number is
    infinite.
    """
    if of_reference is None or of_candidate is None or of_reference.shape != of_candidate.shape:
        return math.inf, math.inf
    distance = (of_reference.double() - of_candidate.double()).numpy()
    if not np.isfinite(distance).all():
        return math.inf, math.inf
    size, norm = float(torch.linalg.norm(of_candidate.double())), float(np.linalg.norm(distance))
    largest = float(np.abs(distance).max(initial=0.0))
    if size == 0:
        return (0.0 if norm == 0 else math.inf), largest
    return norm / size, largest


class Pairing:
    """A reference graph with a probe wherever a layer reads, and the candidate's values beside it."""

    def __init__(
        self,
        reference: Graph,
        candidate: Graph,
        alignment: Alignment,
        dtype: str,
        outputs: Mapping[str, str],
    ) -> None:
        self.reference, self.candidate, self.alignment = reference, candidate, alignment
        self.bound = rounding(alignment.reference, dtype)
        self.matched = alignment.nodes()
        self.names = {u.node.order: u.name for u in alignment.reference}
        self.labels: dict[int, str] = {}
        self.rows: list[Row] = []
        self._probe_units()
        for name, of_candidate in outputs.items():
            node = reference.outputs[name]
            probe = _probe(node)
            reference.outputs[name] = probe
            row = Row(name, "output", node=probe, of_candidate=candidate.outputs[of_candidate])
            self.rows.append(row)

    def _probe_units(self) -> None:
        probes: dict[tuple[int, int], Node] = {}
        units = self.alignment.reference
        for place, unit in enumerate(units):
            of_candidate = self.alignment.pairs.get(place)
            if of_candidate is None:
                continue
            other = self.alignment.candidate[of_candidate].node
            given, their_given = unit.node.inputs[0], other.inputs[0]
            key = (id(given), id(their_given))
            if key not in probes:
                probes[key] = _probe(given)
                name = self.place_of(given)
                if name == given.op:  # made by no layer of its own
                    name = self.labels.setdefault(id(given), f"input of {unit.name}")
                self.rows.append(Row(name, "value", node=probes[key], of_candidate=their_given))
            unit.node.inputs = [probes[key]]
            self.rows.append(
                Row(unit.name, "convolution", node=unit.node, of_candidate=other, unit=unit)
            )

    def place_of(self, node: Node) -> str:
        """Where a value comes from, in words."""
        if node.op == "input":
            return "images"
        unit = self.unit_below(node) or self.labels.get(id(node), "")
        return unit or _tidy(node.scope) or node.op

    def unit_below(self, node: Node) -> str:
        """The layer whose norm or activation the node is; "" where it is of none."""
        while node.op in ("affine", "act", "conv", "dropout", "probe"):
            if node.op == "conv":
                return self.names.get(node.order, "")
            node = node.inputs[0]
        return ""

    def given(self, graph: Graph) -> dict[int, Tensor]:
        """The candidate's recorded products, for the convolutions of a (changed) reference."""
        by_order = {
            u.node.order: self.matched[id(u.node)].value
            for u in self.alignment.reference
            if id(u.node) in self.matched
        }
        found = {id(n): by_order[n.order] for n in graph.nodes() if n.order in by_order}
        return found | {id(graph.input): graph.input.value}  # type: ignore[dict-item, return-value]

    def value_of(self, row: Row, node: Node, given: Mapping[int, Tensor]) -> Tensor | None:
        """What a row's segment makes of the candidate's values; None where it can't run on them.

        `node`: the row's node in the graph that is asked.
        """
        if row.kind != "convolution":
            return evaluated(node.inputs[0], given)
        assert row.of_candidate is not None and row.of_candidate.inputs[0].value is not None
        return evaluated(node, {id(node.inputs[0]): row.of_candidate.inputs[0].value})

    def compare(self) -> None:
        """Fills in all rows."""
        given = self.given(self.reference)
        for row in self.rows:
            assert row.node is not None and row.of_candidate is not None
            made, value = self.value_of(row, row.node, given), row.of_candidate.value
            row.bound = self.bound
            row.relative, row.largest = difference(made, value)
            row.candidate = row.of_candidate.shape
            row.reference = tuple(made.shape) if made is not None else row.node.shape
            own = row.node if row.kind == "convolution" else row.node.inputs[0]
            row.whole = difference(own.value, value)[0]
            if made is not None and value is not None and made.shape == value.shape:
                apart = (made.double() - value.double()).abs()
                row.channels = tuple(apart.reshape(-1, apart.shape[-1]).amax(0).tolist())

    def same(self, row: Row, made: Tensor | None) -> bool:
        """Whether a value is the candidate's, to rounding."""
        assert row.of_candidate is not None
        return difference(made, row.of_candidate.value)[0] <= row.bound


def _probe(node: Node) -> Node:
    return Node("probe", [node], {}, node.shape, node.value, node.scope)


def _tidy(scope: str) -> str:
    words = scope.replace(".", "/").split("/")
    return "/".join(w for w in words if w not in ("bn", ""))
