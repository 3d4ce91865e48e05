"""How two segments differ, as rewrites of the reference's graph that can be applied one by one."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from googlenet_jax.verification.graph import Graph, Node
from googlenet_jax.verification.lift import on_grid

FAMILY = {
    "max_pool": "pool",
    "average": "pool",
    "softmax": "softmax",
    "log_softmax": "softmax",
}
MERGES = ("concat", "add", "mul")


@dataclasses.dataclass(frozen=True)
class Edit:
    """One rewrite; nodes of the reference are named by their `order`, which copies keep.

    Attributes:
      kind: "replace" (node `at` by `candidate`'s operation), "delete" (node `at`), "insert"
        (`candidate`'s operation on input `slot` of node `at`), "permute" (inputs of `at`, to
        `order`), "keep" (input `slot` of `at` in its place), "rewire" (input `slot` of `at` reads
        node `source`), "splice" (it reads the candidate's own operations) or "set" (attributes of
        `at`).
      reference: the reference's node that it is about; below: the node that an inserted one reads.
    """

    kind: str
    at: int
    slot: int = 0
    candidate: Node | None = None
    reference: Node | None = None
    below: Node | None = None
    order: tuple[int, ...] = ()
    source: int = 0
    values: tuple[tuple[str, Any], ...] = ()


def apply(graph: Graph, edits: Iterable[Edit], matched: Mapping[int, int]) -> Graph:
    """A copy of the reference with edits. `matched`: id of a candidate's node → order of the
    reference's.
    """
    made, _ = graph.copy()
    nodes = {node.order: node for node in made.nodes()}
    gone: dict[int, Node] = {}
    for edit in edits:
        if edit.at not in nodes:
            continue
        node = nodes[edit.at]
        match edit.kind:
            case "replace":
                assert edit.candidate is not None
                node.op, node.attrs = edit.candidate.op, dict(edit.candidate.attrs)
            case "set":
                node.attrs = {**node.attrs, **dict(edit.values)}
            case "delete":
                gone[id(node)] = node.inputs[0]
            case "keep":
                gone[id(node)] = node.inputs[edit.slot]
            case "insert":
                assert edit.candidate is not None
                below = node.inputs[edit.slot]
                new = Node(
                    edit.candidate.op, [below], dict(edit.candidate.attrs), scope=below.scope
                )
                node.inputs[edit.slot] = new
            case "permute":
                node.inputs = [node.inputs[i] for i in edit.order]
            case "rewire":
                node.inputs[edit.slot] = nodes[edit.source]
            case "splice":
                assert edit.candidate is not None
                node.inputs[edit.slot] = _spliced(edit.candidate, nodes, matched)
    for node in made.nodes():
        node.inputs = [_through(each, gone) for each in node.inputs]
    made.outputs = {name: _through(node, gone) for name, node in made.outputs.items()}
    return made


def _through(node: Node, gone: Mapping[int, Node]) -> Node:
    while id(node) in gone:
        node = gone[id(node)]
    return node


def _spliced(node: Node, nodes: Mapping[int, Node], matched: Mapping[int, int]) -> Node:
    """The candidate's operations down to what the two sides share."""
    done: dict[int, Node] = {}

    def copy(each: Node) -> Node:
        if id(each) in matched and matched[id(each)] in nodes:
            return nodes[matched[id(each)]]
        if id(each) not in done:
            inputs = [copy(i) for i in each.inputs]
            done[id(each)] = dataclasses.replace(each, inputs=inputs, attrs=dict(each.attrs))
        return done[id(each)]

    return copy(node)


class Differ:
    """Finds the edits that turn a segment of the reference into the candidate's."""

    def __init__(self, mine: Mapping[int, Node], matched: Mapping[int, int]) -> None:
        """`mine`: order → the reference's nodes that the two sides share, convolutions and the
        input; `matched`: id of the candidate's → that order.
        """
        self.mine, self.matched = mine, matched
        self.stops = {id(node) for node in mine.values()}

    def edits(self, consumer: Node, slot: int, candidate: Node) -> list[Edit]:
        """The edits of input `slot` of `consumer`, which is to become what `candidate` is."""
        reference, base, low, low_slot = self._spine(consumer, slot)
        other, their_base = self._their_spine(candidate)
        if base.op in MERGES and id(base) not in self.stops:
            if their_base.op != base.op or len(their_base.inputs) != len(base.inputs):
                place = self._kept(base, their_base)
                if place is None:
                    return [self._splice(consumer, slot, candidate)]
                return [
                    Edit("keep", base.order, place, reference=base, candidate=their_base),
                    *self._through(reference, consumer, slot, base, place, candidate),
                ]
            found = self._merge(base, their_base)
            return [*found, *self._aligned(reference, other, consumer, slot, base)]
        if their_base.op in MERGES and id(their_base) not in self.matched:
            return [self._splice(consumer, slot, candidate)]
        source = self.matched.get(id(their_base))
        if source is None or id(base) not in self.stops:
            return [self._splice(consumer, slot, candidate)]
        found = []
        if base.order != source:
            found = [
                Edit("rewire", low.order, low_slot, candidate, self.mine[base.order], source=source)
            ]
            base = self.mine[source]
        return [*found, *self._aligned(reference, other, consumer, slot, base)]

    def _splice(self, consumer: Node, slot: int, candidate: Node) -> Edit:
        return Edit("splice", consumer.order, slot, candidate, consumer.inputs[slot])

    def _through(
        self, above: list[Node], consumer: Node, slot: int, merge: Node, place: int, candidate: Node
    ) -> list[Edit]:
        """Past a merge that the candidate lacks."""
        reference, base, low, low_slot = self._spine(merge, place)
        other, their_base = self._their_spine(candidate)
        source = self.matched.get(id(their_base))
        if id(base) in self.stops and source is not None:
            found = []
            if base.order != source:
                found = [Edit("rewire", low.order, low_slot, candidate, base, source=source)]
            return found + self._aligned([*above, *reference], other, consumer, slot, base)
        if base.op == their_base.op and len(base.inputs) == len(their_base.inputs):
            found = self._merge(base, their_base)
            return found + self._aligned([*above, *reference], other, consumer, slot, base)
        return [self._splice(consumer, slot, candidate)]

    def _spine(self, consumer: Node, slot: int) -> tuple[list[Node], Node, Node, int]:
        """(unary operations from the top down, what they begin with, who reads that, at which
        input).
        """
        found: list[Node] = []
        node = consumer.inputs[slot]
        while id(node) not in self.stops and len(node.inputs) == 1:
            if node.op != "probe":
                found.append(node)
            consumer, slot, node = node, 0, node.inputs[0]
        return found, node, consumer, slot

    def _their_spine(self, node: Node) -> tuple[list[Node], Node]:
        found: list[Node] = []
        while id(node) not in self.matched and len(node.inputs) == 1:
            found.append(node)
            node = node.inputs[0]
        return found, node

    # ------------------------------------------------------------------------------------- merges

    def _sources(self, node: Node, reference: bool) -> frozenset[int]:
        found: set[int] = set()
        stack, seen = [node], set()
        while stack:
            each = stack.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if reference and id(each) in self.stops:
                found.add(each.order)
            elif not reference and id(each) in self.matched:
                found.add(self.matched[id(each)])
            else:
                stack += each.inputs
        return frozenset(found)

    def _kept(self, merge: Node, candidate: Node) -> int | None:
        """Which input of a merge the candidate has in its place."""
        wanted = self._sources(candidate, reference=False)
        inputs = [self._sources(each, reference=True) for each in merge.inputs]
        fits = [i for i, found in enumerate(inputs) if found == wanted]
        return fits[0] if len(fits) == 1 else None

    def _merge(self, reference: Node, candidate: Node) -> list[Edit]:
        """Inputs paired by the layers that they come from; another order is an edit of its own."""
        one = [self._sources(each, reference=True) for each in reference.inputs]
        two = [self._sources(each, reference=False) for each in candidate.inputs]
        score = np.array(
            [
                [len(a & b) / max(len(a | b), 1) - 0.01 * abs(i - j) for j, b in enumerate(two)]
                for i, a in enumerate(one)
            ]
        )
        rows, columns = linear_sum_assignment(-score)
        place = dict(zip(columns.tolist(), rows.tolist(), strict=True))  # candidate → reference
        order = tuple(place[j] for j in range(len(two)))
        found: list[Edit] = []
        for j, i in enumerate(order):
            found += self.edits(reference, i, candidate.inputs[j])
        if reference.op == "concat" and order != tuple(range(len(order))):
            found.append(
                Edit(
                    "permute",
                    reference.order,
                    order=order,
                    reference=reference,
                    candidate=candidate,
                )
            )
        return found

    # ------------------------------------------------------------------------------------- spines

    def _aligned(
        self,
        reference: Sequence[Node],
        candidate: Sequence[Node],
        consumer: Node,
        slot: int,
        base: Node,
    ) -> list[Edit]:
        """The cheapest edits between two sequences of unary operations, both from the top down."""
        one, two = list(reversed(reference)), list(reversed(candidate))
        cost = np.zeros((len(one) + 1, len(two) + 1))
        cost[:, 0], cost[0, :] = range(len(one) + 1), range(len(two) + 1)
        for i, a in enumerate(one, 1):
            for j, b in enumerate(two, 1):
                cost[i, j] = min(
                    cost[i - 1, j] + 1, cost[i, j - 1] + 1, cost[i - 1, j - 1] + _apart(a, b)
                )
        found: list[Edit] = []
        i, j = len(one), len(two)
        reader = (consumer.order, slot)  # of what stands at place i
        while i or j:
            if i and j and cost[i, j] == cost[i - 1, j - 1] + _apart(one[i - 1], two[j - 1]):
                if _apart(one[i - 1], two[j - 1]):
                    found.append(_changed(one[i - 1], two[j - 1]))
                i, j = i - 1, j - 1
                reader = (one[i].order, 0)
            elif j and cost[i, j] == cost[i, j - 1] + 1:
                j -= 1
                below = one[i - 1] if i else base
                found.append(Edit("insert", *reader, two[j], below=below))
            else:
                i -= 1
                found.append(Edit("delete", one[i].order, reference=one[i]))
                reader = (one[i].order, 0)
        return list(reversed(found))


def _changed(reference: Node, candidate: Node) -> Edit:
    return Edit("replace", reference.order, reference=reference, candidate=candidate)


def _apart(a: Node, b: Node) -> float:
    """0 for one operation, 0.9 for two of a kind, much for others."""
    if FAMILY.get(a.op, a.op) != FAMILY.get(b.op, b.op):
        return 9.0
    return 0.0 if same_operation(a, b) else 0.9


def same_operation(a: Node, b: Node) -> bool:
    """Whether two nodes do the same, whatever they are given."""
    if a.op != b.op:
        return False
    match a.op:
        case "affine":
            return all(_near(a.attrs[n].value, b.attrs[n].value) for n in ("scale", "shift"))
        case "act":
            if a.attrs["kind"] and a.attrs["kind"] == b.attrs["kind"] != "PReLU":
                return a.attrs["numbers"] == b.attrs["numbers"]
            one, other = on_grid(a), on_grid(b)
            return one is not None and other is not None and _near(one, other)
        case "max_pool":
            return pool_windows(a) == pool_windows(b)
        case "average":
            return all(
                a.attrs[n].rule == b.attrs[n].rule != ("matrix",) for n in ("rows", "columns")
            )
        case "lrn":
            return all(
                np.isclose(a.attrs[n], b.attrs[n], 1e-6) for n in ("size", "k", "alpha", "beta")
            )
        case "softmax" | "log_softmax":
            return True
        case "layout":
            return a.attrs == b.attrs
        case "reorder":
            return a.attrs["index"] == b.attrs["index"]
        case "slice" | "pad":
            return a.attrs == b.attrs
    return False


def pool_windows(node: Node) -> tuple[Any, ...]:
    """What a max pool does, without padding that no window reaches."""
    attrs = node.attrs
    found = []
    for axis in range(2):
        size, out = node.inputs[0].shape[1 + axis], node.shape[1 + axis]
        window, stride = attrs["window"][axis], attrs["stride"][axis]
        before = attrs["pads"][axis][0]
        reach = (out - 1) * stride + attrs["dilation"][axis] * (window - 1) + 1 - before
        found.append((window, stride if out > 1 else 0, before, max(reach - size, 0)))
    return (*found, out, attrs["dilation"])


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        a, b = torch.broadcast_tensors(a.double(), b.double())
    except RuntimeError:
        return False
    size = max(float(b.abs().max()), 1e-30) if b.numel() else 1.0
    return bool(torch.allclose(a, b, 1e-9, 1e-9 * size))
