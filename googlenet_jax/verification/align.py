"""Which operation is which: two graphs aligned from the layers that carry weights.

Layers are convolutions (fully connected ones are convolutions too); two belong together by their
shapes, by what they read and who reads them, and by the order in which they run; names and equal
weights settle what these leave open.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from googlenet_jax.verification.graph import Const, Graph, Node

ROUNDS = 12  # in which what neighbours say is passed on
Layouts = dict[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Unit:
    """A convolution and where it stands.

    Attributes:
      name: the scope that it ran in. leaf: of its kernel, "" where that is none.
      parents, children: places of the units before and behind it; -1 is the input.
      offset: where its channels stand in the concatenation that reads them, from 0 to 1.
    """

    node: Node
    name: str
    leaf: str
    parents: frozenset[int]
    children: frozenset[int]
    offset: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel, [h, w, in/groups, out]."""
        return tuple(self.node.attrs["kernel"].value.shape)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Pairs of units.

    Attributes:
      reference, candidate: all units in the order in which they ran.
      pairs: place in `reference` → place in `candidate`. how: the same place → "names", "weights",
        "structure" or "map".
    """

    reference: list[Unit]
    candidate: list[Unit]
    pairs: dict[int, int]
    how: dict[int, str]

    def nodes(self) -> dict[int, Node]:
        """The id of a reference's convolution → the candidate's; those of unequal shape are left
        out.
        """
        return {
            id(self.reference[r].node): self.candidate[c].node
            for r, c in self.pairs.items()
            if self.reference[r].shape[-1] == self.candidate[c].shape[-1]
        }

    def left(self) -> tuple[list[str], list[str]]:
        """The units that have no partner."""
        mine = [u.name for i, u in enumerate(self.reference) if i not in self.pairs]
        other = [
            u.leaf or u.name for i, u in enumerate(self.candidate) if i not in self.pairs.values()
        ]
        return mine, other


def units_of(graph: Graph) -> list[Unit]:
    """The convolutions of a graph."""
    nodes = graph.nodes()
    convs = sorted((n for n in nodes if n.op == "conv"), key=lambda n: n.order)
    place = {id(node): i for i, node in enumerate(convs)}
    above: dict[int, frozenset[int]] = {}  # node → nearest units before it
    for node in nodes:
        found: frozenset[int] = frozenset([-1]) if node.op == "input" else frozenset()
        for each in node.inputs:
            found |= {place[id(each)]} if id(each) in place else above[id(each)]
        above[id(node)] = found
    children: dict[int, set[int]] = {i: set() for i in range(-1, len(convs))}
    for i, node in enumerate(convs):
        for parent in above[id(node)]:
            children[parent].add(i)
    offsets = _offsets(graph, convs)
    units = []
    for i, node in enumerate(convs):
        kernel: Const = node.attrs["kernel"]
        leaf = sorted(kernel.leaves)[0] if len(kernel.leaves) == 1 else ""
        name = unit_name(leaf) or node.scope or f"layer {i + 1}"
        units.append(Unit(node, name, leaf, above[id(node)], frozenset(children[i]), offsets[i]))
    return units


def unit_name(leaf: str) -> str:
    """A layer's name from its kernel's: "params/conv1/kernel" → "conv1"."""
    words = leaf.replace(".", "/").split("/")
    words = [w for w in words if w not in ("params", "value", "")]
    if words and words[-1] in ("kernel", "weight", "w", "weights"):
        words = words[:-1]
    if words and words[-1] == "conv" and len(words) > 1 and "." in leaf:
        words = words[:-1]  # torchvision's conv1.conv.weight
    return "/".join(words)


def _offsets(graph: Graph, convs: Sequence[Node]) -> list[float]:
    readers = graph.consumers()
    found = []
    for node in convs:
        seen, offset = node, 0.0
        for _ in range(6):
            above = readers.get(id(seen), [])
            if len(above) != 1:
                break
            if above[0].op == "concat":
                before = 0
                for each in above[0].inputs:
                    if each is seen:
                        break
                    before += each.shape[-1]
                offset = before / above[0].shape[-1]
                break
            seen = above[0]
        found.append(offset)
    return found


def align(
    reference: Graph,
    candidate: Graph,
    names: Mapping[str, str],
    given: Mapping[str, str] | None = None,
) -> Alignment:
    """Pairs units.

    Args:
      names: the reference's kernel leaf → the candidate's, where naming rules say so.
      given: the same, from the user: these are not questioned.
    """
    of_reference, of_candidate = units_of(reference), units_of(candidate)
    if not of_reference or not of_candidate:
        return Alignment(of_reference, of_candidate, {}, {})
    base = np.array([[_fit(a, b) for b in of_candidate] for a in of_reference])
    bonus = np.zeros_like(base)
    how = np.full(base.shape, "structure", dtype=object)
    for i, a in enumerate(of_reference):
        for j, b in enumerate(of_candidate):
            if not base[i, j]:
                continue
            bonus[i, j] += 0.1 * (1 - abs(i / len(of_reference) - j / len(of_candidate)))
            bonus[i, j] += 0.05 * (1 - abs(a.offset - b.offset)) + 0.03 * _alike(a, b)
            if names.get(a.leaf) == b.leaf and b.leaf and base[i, j] == 1:
                bonus[i, j] += 2
                how[i, j] = "names"
            if a.shape == b.shape and _equal(a, b):
                bonus[i, j] += 3
                how[i, j] = "weights"
            if given and given.get(a.leaf) == b.leaf:
                bonus[i, j] += 100
                how[i, j] = "map"
    score = _flooded(of_reference, of_candidate, base) + bonus
    score[base == 0] = -1000
    rows, columns = linear_sum_assignment(-score)
    pairs = {int(r): int(c) for r, c in zip(rows, columns, strict=True) if base[r, c] > 0}
    return Alignment(
        of_reference, of_candidate, pairs, {r: str(how[r, c]) for r, c in pairs.items()}
    )


def _fit(a: Unit, b: Unit) -> float:
    """1 where the kernels have one shape; less where it is another that a slip could have made."""
    if a.shape == b.shape:
        return 1.0
    (h, w, i, o), (p, q, k, m) = a.shape, b.shape
    if (h, w, o) == (p, q, m):
        return 0.5 if i * a.node.attrs["groups"] == k * b.node.attrs["groups"] else 0.3
    if (h, w) == (p, q) and (i == k or o == m):
        return 0.3
    if (h * w > 1) == (p * q > 1):
        return 0.15 if (i, o) == (k, m) else 0.05
    return 0.0


def _alike(a: Unit, b: Unit) -> float:
    return difflib.SequenceMatcher(None, a.name.lower(), b.name.lower()).quick_ratio()


def _equal(a: Unit, b: Unit) -> bool:
    one, other = a.node.attrs["kernel"].value, b.node.attrs["kernel"].value
    return bool(torch.allclose(one.double(), other.double(), 1e-6, 1e-9))


def _flooded(
    of_reference: Sequence[Unit], of_candidate: Sequence[Unit], base: np.ndarray
) -> np.ndarray:
    """Scores in which neighbours' scores flow together."""
    score = base.copy()
    for _ in range(ROUNDS):
        parents = _neighbours(of_reference, of_candidate, score, lambda unit: unit.parents)
        children = _neighbours(of_reference, of_candidate, score, lambda unit: unit.children)
        score = base * (0.3 + 0.35 * parents + 0.35 * children)
        score /= max(score.max(), 1e-12)
    return score


def _neighbours(
    of_reference: Sequence[Unit],
    of_candidate: Sequence[Unit],
    score: np.ndarray,
    of: Callable[[Unit], frozenset[int]],
) -> np.ndarray:
    wide = np.pad(score, ((0, 1), (0, 1)))  # place -1 is the input
    wide[-1, -1] = 1.0
    (a, in_a), (b, in_b) = (
        _table([of(u) for u in of_reference]),
        _table([of(u) for u in of_candidate]),
    )
    part = wide[
        a[:, :, None, None], b[None, None]
    ]  # [of_reference, its neighbours, of_candidate, its neighbours]
    part = part * (in_a[:, :, None, None] & in_b[None, None])
    best = part.max(3).sum(1) + part.max(1).sum(2)
    counts = in_a.sum(1)[:, None] + in_b.sum(1)[None]
    return np.where(counts > 0, best / np.maximum(counts, 1), 1.0)


def _table(neighbours: Sequence[frozenset[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Places of neighbours as one array, and which of its entries are meant."""
    width = max(1, *(len(each) for each in neighbours))
    places = np.zeros((len(neighbours), width), int)
    meant = np.zeros((len(neighbours), width), bool)
    for row, each in enumerate(neighbours):
        places[row, : len(each)] = sorted(each)
        meant[row, : len(each)] = True
    return places, meant


# ------------------------------------------------------------------------------------------- roles


# What each role is where there is no such leaf.
NEUTRAL = {"var": 1.0, "mean": 0.0, "scale": 1.0, "bias": 0.0, "inner bias": 0.0}


@dataclasses.dataclass(frozen=True)
class Roles:
    """What the leaves of an affine do: role ("scale", "bias", "mean", "var", "inner bias") → leaf.

    `epsilon` is what is added to the variance, None where there is none.
    """

    leaves: dict[str, str]
    epsilon: float | None = None
    factor: float = 1.0


def roles_of(node: Node, leaves: Mapping[str, Tensor]) -> Roles:
    """Finds each leaf's role by changing it, so that no spelling matters."""
    scale, shift = node.attrs["scale"], node.attrs["shift"]
    found: dict[str, str] = {}
    epsilon: float | None = None

    def at(name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        given = {name: value}
        return scale.under(given).double(), shift.under(given).double()

    first, moved = scale.value.double(), shift.value.double()
    for name in sorted(scale.leaves | shift.leaves):
        leaf = leaves[name]
        step = torch.full_like(leaf, 0.5)
        scaled, shifted = at(name, leaf + step)
        if torch.allclose(scaled, first):
            role = _shift_role((shifted - moved), first)
        else:
            role, extra = _scale_role(functools.partial(_first_of, at, name), leaf)
            epsilon = extra if role == "var" else epsilon
        if role:
            found.setdefault(role, name)
    return Roles(found, epsilon)


def _first_of(at: Callable[..., tuple[Tensor, Tensor]], name: str, value: Tensor) -> Tensor:
    return at(name, value)[0]


def _shift_role(change: Tensor, scale: Tensor) -> str:
    half = torch.full_like(change, 0.5)
    if torch.allclose(change, half):
        return "bias"
    if torch.allclose(change, (-0.5 * scale).expand_as(change)):
        return "mean"
    if torch.allclose(change, (0.5 * scale).expand_as(change)):
        return "inner bias"
    return ""


def _scale_role(of: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[str, float]:
    one, two, three = (of(torch.full_like(leaf, v)).reshape(-1) for v in (1.0, 2.0, 3.0))
    if torch.allclose(two, 2 * one) and torch.allclose(three, 3 * one):
        return "scale", 0.0
    inverse = [1 / each**2 for each in (one, two, three)]
    slope = inverse[1] - inverse[0]
    if torch.allclose(inverse[2] - inverse[1], slope) and bool((slope > 0).all()):
        return "var", float(f"{float((inverse[0] / slope - 1)[0]):.6g}")
    return "", 0.0


def affine_after(unit: Node, readers: Mapping[int, Sequence[Node]]) -> Node | None:
    """The affine that alone reads a convolution."""
    above = readers.get(id(unit), [])
    return above[0] if len(above) == 1 and above[0].op == "affine" else None


def paired_affines(
    alignment: Alignment, reference: Graph, candidate: Graph
) -> list[tuple[Node, Node]]:
    """Affines with weights that belong together: those behind paired units, and those that stand
    between the same units.
    """
    one, other = reference.consumers(), candidate.consumers()
    pairs: list[tuple[Node, Node]] = []
    for mine, of_candidate in alignment.nodes().items():
        node = next(u.node for u in alignment.reference if id(u.node) == mine)
        a, b = affine_after(node, one), affine_after(of_candidate, other)
        if a is not None and b is not None:
            pairs.append((a, b))
    used = {id(each) for pair in pairs for each in pair}
    places = {c: r for r, c in alignment.pairs.items()}
    mine_free = _between(reference, alignment.reference, used, lambda i: i)
    their_free = _between(candidate, alignment.candidate, used, lambda i: places.get(i, -2))
    for key, nodes in mine_free.items():
        pairs += list(zip(nodes, their_free.get(key, []), strict=False))
    return pairs


def _between(
    graph: Graph, units: Sequence[Unit], used: set[int], name: Callable[[int], int]
) -> dict[tuple[str, frozenset[int], frozenset[int]], list[Node]]:
    """Nodes with weights that follow no unit, by the units before and behind them."""
    place = {id(unit.node): i for i, unit in enumerate(units)}
    nodes = graph.nodes()
    readers = graph.consumers()

    def nearest(node: Node, step: Callable[[Node], Sequence[Node]]) -> frozenset[int]:
        found, stack, seen = set(), list(step(node)), set()
        while stack:
            each = stack.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if id(each) in place:
                found.add(name(place[id(each)]))
            else:
                stack += step(each)
        return frozenset(found)

    result: dict[tuple[str, frozenset[int], frozenset[int]], list[Node]] = {}
    for node in nodes:
        weighted = node.op == "affine" and (node.attrs["scale"].leaves | node.attrs["shift"].leaves)
        weighted = weighted or (node.op == "act" and node.attrs.get("leaves"))
        if weighted and id(node) not in used:
            above = nearest(node, lambda n: n.inputs)
            below = nearest(node, lambda n: readers.get(id(n), []))
            result.setdefault((node.op, above, below), []).append(node)
    return result


# ------------------------------------------------------------------------------------- weights move


def into_leaf(
    value: Tensor, leaf: Tensor, name: str, kernel: Const, usual: Layouts
) -> Tensor | None:
    """What a leaf must hold so that the kernel is `value` where the leaf is read as is usual there.

    `usual`: rank of a leaf → the order of its axes that makes it [h, w, in, out], or of a matrix's
    [in, out]. A matrix that reads a whole map is laid out as the
    candidate reads it. None where the kernel is no plain rearrangement of the leaf.
    """
    order = usual.get(leaf.ndim)
    if leaf.ndim == 4 and order is not None:
        back = sorted(range(4), key=lambda i: order[i])
        turned = value.permute(*back)
        if turned.shape == leaf.shape:
            return turned
    if leaf.ndim == 2 and order is not None and value.shape[:2] == (1, 1):
        turned = value[0, 0] if order == (0, 1) else value[0, 0].t()
        if turned.shape == leaf.shape:
            return turned
    marked = torch.arange(leaf.numel(), dtype=torch.float64).reshape(leaf.shape)
    made = kernel.under({name: marked})
    whole = made.numel() == leaf.numel() == value.numel() and made.shape == value.shape
    if not whole or not torch.equal(made.reshape(-1).sort().values, marked.reshape(-1)):
        return None
    result = torch.empty(leaf.numel(), dtype=value.dtype)
    result[made.reshape(-1).long()] = value.reshape(-1)
    return result.reshape(leaf.shape)
