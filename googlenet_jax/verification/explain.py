"""Why segments differ: rewrites of the reference that make them the candidate's, as few as will do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from googlenet_jax.verification.edits import Differ, Edit, apply
from googlenet_jax.verification.graph import Graph, Node, evaluated, topological
from googlenet_jax.verification.naming import (
    Finding,
    kernel_names,
    names_of,
    same_values,
    setting_names,
)
from googlenet_jax.verification.rows import Pairing, Row, difference

SETTINGS = ("stride", "pads", "dilation", "groups")


@dataclasses.dataclass
class Explanation:
    """What was found.

    Attributes:
      findings: each tested. unexplained: rows that still part, and where in them, in words.
      edits: the rewrites behind the findings. tried: how many sets of rewrites were applied.
    """

    findings: list[Finding]
    unexplained: list[tuple[Row, str]]
    edits: list[Edit]
    tried: int


class Explainer:
    """Goes through the rows that part, one after the other."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing
        units = pairing.alignment.reference
        mine = {u.node.order: u.node for u in units if id(u.node) in pairing.matched}
        mine[pairing.reference.input.order] = pairing.reference.input
        matched = {
            id(pairing.matched[id(u.node)]): u.node.order
            for u in units
            if id(u.node) in pairing.matched
        }
        matched[id(pairing.candidate.input)] = pairing.reference.input.order
        self.matched = matched
        self.differ = Differ(mine, matched)
        self.edits: list[Edit] = []
        self.tried = 0
        self.regions = {id(row): self._region(row) for row in pairing.rows}

    def run(self) -> Explanation:
        """Explains what can be explained."""
        findings: list[Finding] = []
        unexplained: list[tuple[Row, str]] = []
        equal = [row for row in self.pairing.rows if not row.parted]
        for row in [row for row in self.pairing.rows if row.parted]:
            if self._passes(row, self.edits):
                continue
            found = self._layer(row) if row.kind == "convolution" else self._segment(row)
            if found is not None:
                names, edits = found
                if self._harmless(edits, equal):
                    findings += [each for each in names if each not in findings]
                    self.edits += edits
                    equal.append(row)
                    continue
            unexplained.append((row, self._where(row)))
        return Explanation(_moved(findings), self._nearest(unexplained), self.edits, self.tried)

    def _nearest(self, unexplained: list[tuple[Row, str]]) -> list[tuple[Row, str]]:
        """A segment that holds another unexplained one has its place."""
        inner = lambda row: self.regions[id(row)] - {row.node.order}  # type: ignore[union-attr]  # noqa: E731
        found = []
        for row, where in unexplained:
            held = [w for other, w in unexplained if inner(other) and inner(other) < inner(row)]
            found.append((row, held[0] if held else where))
        return found

    # ------------------------------------------------------------------------------------ testing

    def _region(self, row: Row) -> frozenset[int]:
        """The operations of a row's segment, by their order."""
        assert row.node is not None
        if row.kind == "convolution":
            return frozenset([row.node.order])
        found, stack = {row.node.order}, list(row.node.inputs)
        while stack:
            node = stack.pop()
            if node.order in found or id(node) in self.differ.stops:
                continue
            found.add(node.order)
            stack += node.inputs
        return frozenset(found)

    def _graph(self, edits: Sequence[Edit]) -> Graph:
        return apply(self.pairing.reference, edits, self.matched)

    def _passes(self, row: Row, edits: Sequence[Edit]) -> bool:
        """Whether the segment makes the candidate's value with the edits in place."""
        assert row.node is not None
        self.tried += 1
        graph = self._graph(edits)
        given = self.pairing.given(graph)
        node = next((n for n in graph.nodes() if n.order == row.node.order), None)
        if node is None:
            return False
        return self.pairing.same(row, self.pairing.value_of(row, node, given))

    def _harmless(self, edits: Sequence[Edit], equal: Sequence[Row]) -> bool:
        """Whether every row that was equal stays so."""
        touched = {edit.at for edit in edits}
        near = [row for row in equal if self.regions[id(row)] & touched]
        return all(self._passes(row, [*self.edits, *edits]) for row in near)

    # ------------------------------------------------------------------------------------- layers

    def _layer(self, row: Row) -> tuple[list[Finding], list[Edit]] | None:
        """A convolution: its settings and its kernel are compared one by one."""
        unit, candidate = row.unit, row.of_candidate
        assert unit is not None and candidate is not None
        reference = unit.node.attrs
        changed = [name for name in SETTINGS if reference[name] != candidate.attrs[name]]
        kernel = not same_values(reference["kernel"].value, candidate.attrs["kernel"].value)
        parts = [*changed, *(["kernel"] if kernel else [])]
        edit = lambda names: [  # noqa: E731
            Edit("set", unit.node.order, values=tuple((n, candidate.attrs[n]) for n in names))
        ]
        if not self._passes(row, [*self.edits, *edit(parts)]):
            return None
        for name in list(parts):
            fewer = [each for each in parts if each != name]
            if fewer and self._passes(row, [*self.edits, *edit(fewer)]):
                parts = fewer
        found = setting_names(unit, candidate, [n for n in parts if n != "kernel"])
        if "kernel" in parts and "groups" not in parts:
            named = kernel_names(unit, candidate, self.pairing.alignment.reference)
            if named is None:
                return None
            found += named
        return found, edit(parts)

    # ----------------------------------------------------------------------------------- segments

    def _segment(self, row: Row) -> tuple[list[Finding], list[Edit]] | None:
        assert row.node is not None and row.of_candidate is not None
        if self._adapted(row):
            return [], []
        if row.kind == "output" and (swapped := self._swapped(row)):
            return swapped
        edits = self.differ.edits(row.node, 0, row.of_candidate)
        spliced = [each for each in edits if each.kind == "splice"]
        if spliced or not self._passes(row, [*self.edits, *edits]):
            return None
        edits = self._fewest(row, edits)
        found: list[Finding] = []
        for edit in edits:
            names = self._names(edit, row)
            if names is None:
                return None
            found += names
        return found, edits

    def _fewest(self, row: Row, edits: list[Edit]) -> list[Edit]:
        """Edits without which the segment would differ."""
        changed = True
        while changed:
            changed = False
            for edit in list(reversed(edits)):
                fewer = [each for each in edits if each is not edit]
                if self._passes(row, [*self.edits, *fewer]):
                    edits, changed = fewer, True
        return edits

    def _names(self, edit: Edit, row: Row) -> list[Finding] | None:
        if edit.kind == "rewire":
            return self._rewired(edit, row)
        leaves = self.pairing.reference.leaves, self.pairing.candidate.leaves
        return names_of(edit, self._place(edit, row), *leaves)

    def _place(self, edit: Edit, row: Row) -> str:
        """The layer in which an edit is."""
        node = edit.reference or edit.below
        assert node is not None
        new = edit.candidate if edit.kind == "insert" else None
        if row.kind == "output" and new is not None and new.op in ("softmax", "log_softmax"):
            return f"output {row.name}"
        place = self.pairing.place_of(node)
        if place != node.op:
            return place
        # Of no module that has a name: behind the last layer that has one.
        before = [n.order for n in topological([node]) if n.order in self.pairing.names]
        return f"after {self.pairing.names[max(before)]}" if before else place

    def _rewired(self, edit: Edit, row: Row) -> list[Finding]:
        names = {u.node.order: u.name for u in self.pairing.alignment.reference}
        names[self.pairing.reference.input.order] = "images"
        assert edit.reference is not None
        new, old = names.get(edit.source, "?"), names.get(edit.reference.order, "?")
        return [Finding("other source", row.name, f"reads {new} in place of {old}")]

    def _swapped(self, row: Row) -> tuple[list[Finding], list[Edit]] | None:
        """Whether an output is what another one should be."""
        assert row.node is not None
        for name, node in self.pairing.reference.outputs.items():
            if name != row.name and node.op == "probe":
                edit = Edit("rewire", row.node.order, source=node.inputs[0].order)
                if self._passes(row, [*self.edits, edit]):
                    both = ", ".join(sorted({row.name, name}))
                    return [Finding("swapped outputs", both)], [edit]
        return None

    # -------------------------------------------------------------------------- maps of other sizes

    def _adapted(self, row: Row) -> bool:
        """Whether pools only see maps of another size than they were recorded with: padding that
        depends on the size is then worked out anew, by the rules that the recorded one fits.
        """
        assert row.node is not None
        graph = self._graph(self.edits)
        given = self.pairing.given(graph)
        nodes = {n.order: n for n in graph.nodes()}
        for order in sorted(self.regions[id(row)]):
            node = nodes.get(order)
            if node is None or node.op != "max_pool":
                continue
            below = evaluated(node.inputs[0], given)
            if below is None:
                return False
            size = below.shape[1:3]
            if size == node.inputs[0].shape[1:3]:
                continue
            for pads in _pads_at(node, size):
                edit = Edit("set", order, values=(("pads", pads),))
                if self._passes(row, [*self.edits, edit]):
                    self.edits.append(edit)
                    return True
        return False

    def _where(self, row: Row) -> str:
        """The place in a segment where the two first differ, as far as it can be told."""
        if row.kind == "convolution":
            return row.name
        assert row.node is not None and row.of_candidate is not None
        graph = self._graph(self.edits)
        given = self.pairing.given(graph)
        nodes = {n.order: n for n in graph.nodes()}
        mine = [nodes[o] for o in self.regions[id(row)] if o in nodes]
        candidate = [n for n in topological([row.of_candidate]) if n.value is not None]
        for node in sorted(mine, key=lambda n: n.order):
            if node.op not in ("act", "affine", "max_pool", "average", "concat", "add", "lrn"):
                continue
            made = evaluated(node, given)
            if made is not None and not any(
                difference(made, each.value)[0] <= row.bound for each in candidate
            ):
                return self._label(node)
        return row.name

    def _label(self, node: Node) -> str:
        originals = {n.order: n for n in self.pairing.reference.nodes()}
        return self.pairing.place_of(originals.get(node.order, node))


def _moved(found: list[Finding]) -> list[Finding]:
    """A norm that a layer lacks and has behind its activation has moved; each reader of the layer
    shows it.
    """
    at = lambda name: {f.layer for f in found if f.name == name}  # noqa: E731
    moved = at("activation before batch norm")
    moved |= at("missing batch norm") & at("extra batch norm")
    parts = ("missing batch norm", "extra batch norm", "activation before batch norm")
    kept = [f for f in found if f.layer not in moved or f.name not in parts]
    return [*kept, *(Finding("activation before batch norm", layer) for layer in sorted(moved))]


def _pads_at(node: Node, size: Sequence[int]) -> list[Any]:
    """Paddings for a map of another size, by each rule that the recorded padding fits."""
    attrs = node.attrs
    rules = []
    for rule in (_ceil, _same):
        made, fits = [], True
        for axis in range(2):
            window, stride = attrs["window"][axis], attrs["stride"][axis]
            before, after = attrs["pads"][axis]
            old = rule(node.inputs[0].shape[1 + axis], window, stride, before)
            fits = fits and old == (before, after)
            made.append(rule(size[axis], window, stride, before))
        if fits:
            rules.append(tuple(made))
    return rules


def _ceil(size: int, window: int, stride: int, before: int) -> tuple[int, int]:
    out = max(-(-(size + 2 * before - window) // stride), 0) + 1
    if (out - 1) * stride >= size + before:
        out -= 1
    return before, max((out - 1) * stride + window - size - before, 0)


def _same(size: int, window: int, stride: int, before: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
