"""Brings a recorded graph to normal forms. Each is checked by numbers before it takes effect."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from googlenet_jax.verification.graph import (
    Const,
    Graph,
    Node,
    evaluate,
    execute,
    windows_of,
)

# Functions of one number that have a name; the first that fits is taken.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "SELU": F.selu,
    "ELU": F.elu,
    "SiLU": F.silu,
    "Mish": F.mish,
    "GELU": F.gelu,
    "GELU (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "square": torch.square,
    "absolute value": torch.abs,
    "exponential": torch.exp,
}
_GRID = torch.cat([torch.linspace(-8, 8, 129), torch.tensor([-40.0, -0.01, 0.01, 40.0])]).double()


def lift(graph: Graph) -> Graph:
    """The graph in normal form; changed in place, and returned."""
    _whole_functions(graph)
    _merge(graph)
    _name_activations(graph)
    _merge(graph)
    _merge_averages(graph)
    _absorb_pads(graph)
    _flatten_concats(graph)
    _drop_identities(graph)
    return graph


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two values are equal but for rounding."""
    if one.shape != other.shape:
        return False
    tolerance = tolerance if other.dtype == torch.float64 else max(tolerance, 1e-3)
    size = float(other.abs().max()) if other.numel() else 0.0
    return bool((one.double() - other.double()).abs().max() <= tolerance * max(size, 1e-30))


# ---------------------------------------------------------------------------------- whole functions


def _whole_functions(graph: Graph) -> None:
    """LRN, softmax and log softmax, which come in many small operations."""
    for node in graph.nodes():
        if node.op not in ("mul", "call") or len(node.inputs) != 2 or len(node.shape) != 4:
            continue
        made = _lrn_of(node) or _softmax_of(node)
        if made is not None:
            graph.replaced({id(node): made})


def _region(node: Node, entry: Node, limit: int = 24) -> bool:
    """Whether the node depends on `entry` alone, through few operations."""
    seen, stack = set(), [node]
    while stack:
        each = stack.pop()
        if each is entry or id(each) in seen:
            continue
        seen.add(id(each))
        if not each.inputs or each.op == "conv" or len(seen) > limit:
            return False
        stack += each.inputs
    return True


def _lrn_of(node: Node) -> Node | None:
    x, other = node.inputs
    if other is x or x.shape != node.shape or x.shape[3] < 3 or not _region(other, x):
        if x.shape == other.shape and _region(x, other) and node.op == "mul":
            x, other = other, x
        else:
            return None
    channels = x.shape[3]
    middle = channels // 2

    def ratios(value: float) -> Tensor:
        given = torch.full(x.shape, 1e-6, dtype=torch.float64)
        given[..., middle] = value
        return (evaluate([node], {id(x): given})[0] / given)[0, 0, 0]

    try:
        high, higher, base = ratios(1e6), ratios(1e7), ratios(1e-6)
    except (RuntimeError, ValueError, TypeError):
        return None
    first = float(base[middle])
    if not 0 < float(higher[middle]) < float(high[middle]) < first:
        return None
    beta = -math.log10(float(higher[middle] / high[middle])) / 2
    k = first ** (-1 / beta)
    size = int(((high - base).abs() > 1e-9 * first).sum())
    alpha = (float(high[middle]) ** (-1 / beta) - k) / 1e12 * size
    numbers = {"k": k, "alpha": alpha, "beta": beta}
    numbers = {name: float(f"{value:.6g}") for name, value in numbers.items()}
    made = node.like(op="lrn", inputs=[x], attrs={"size": size, **numbers})
    assert x.value is not None and node.value is not None
    return made if close(execute(made, [x.value]), node.value, 1e-6) else None


def _softmax_of(node: Node) -> Node | None:
    ancestors: list[Node] = []
    stack = list(node.inputs)
    while stack and len(ancestors) < 12:
        each = stack.pop(0)
        if each not in ancestors:
            ancestors.append(each)
            if each.op != "conv":
                stack += each.inputs
    assert node.value is not None
    for each in reversed(ancestors):
        if each.shape != node.shape or each.shape[3] < 2 or each.value is None:
            continue
        for name, function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
            if each.value.is_floating_point() and close(function(each.value, -1), node.value):
                run = lambda v, f=function: f(v, -1)  # noqa: E731
                return node.like(op=name, inputs=[each], attrs={"function": run})
    return None


# ------------------------------------------------------------------------------------------ merging


def _single(graph: Graph) -> Callable[[Node], bool]:
    """Tells whether a node is read once."""
    readers = graph.consumers()
    outputs = {id(node) for node in graph.outputs.values()}

    def alone(node: Node) -> bool:
        return id(node) not in outputs and len(readers.get(id(node), [])) == 1

    return alone


def _merge(graph: Graph) -> None:
    """Affine after affine, and function after function where that has a name, become one."""
    alone = _single(graph)
    for node in graph.nodes():
        while node.op in ("affine", "act") and node.inputs[0].op == node.op:
            inner = node.inputs[0]
            pair = _affine_pair if node.op == "affine" else _act_pair
            attrs = pair(inner, node) if alone(inner) else None
            if attrs is None:
                break
            node.attrs, node.inputs, node.order = attrs, list(inner.inputs), inner.order


def _affine_pair(inner: Node, outer: Node) -> dict[str, Any]:
    scale = Const.apply(torch.mul, inner.attrs["scale"], outer.attrs["scale"])
    moved = Const.apply(torch.mul, inner.attrs["shift"], outer.attrs["scale"])
    shift = Const.apply(torch.add, moved, outer.attrs["shift"])
    return {"scale": scale, "shift": shift}


def _act_pair(inner: Node, outer: Node) -> dict[str, Any] | None:
    first, second = inner.attrs["function"], outer.attrs["function"]
    leaves = inner.attrs.get("leaves", frozenset()) | outer.attrs.get("leaves", frozenset())
    whole = lambda x, leaves=None: second(first(x, leaves), leaves)  # noqa: E731
    attrs = {"function": whole, "kind": "", "numbers": (), "leaves": leaves}
    made = outer.like(inputs=inner.inputs, attrs=attrs)
    kind = activation(made)
    if kind is None:
        return None
    return attrs | {"kind": kind[0], "numbers": kind[1]}


def _name_activations(graph: Graph) -> None:
    for node in graph.nodes():
        if node.op != "act" or node.attrs["kind"]:
            continue
        line = _line(graph, node)
        if line is not None:
            graph.replaced({id(node): line})
            continue
        found = activation(node)
        if found is not None:
            node.attrs["kind"], node.attrs["numbers"] = found


def on_grid(node: Node, leaves: Mapping[str, Tensor] | None = None) -> Tensor | None:
    """What an activation makes of some numbers: [numbers, channels]."""
    channels = node.shape[-1] if node.shape else 1
    grid = _GRID.reshape(-1, *(1 for _ in node.shape[1:]))
    given = grid.expand(-1, *(1 for _ in node.shape[1:-1]), channels)
    try:
        made = node.attrs["function"](given.contiguous(), leaves)
    except (RuntimeError, TypeError):
        return None
    return made.reshape(len(_GRID), -1).double() if made.shape == given.shape else None


def activation(node: Node) -> tuple[str, tuple[float, ...]] | None:
    """(its name, its numbers), found by what it does to numbers."""
    y = on_grid(node)
    if y is None or not torch.isfinite(y).all():
        return None
    grid = _GRID[:, None]
    same = lambda other: bool(torch.allclose(y, other.expand_as(y), 1e-6, 1e-6))  # noqa: E731
    for name, function in ACTIVATIONS.items():
        if same(function(grid)):
            return name, ()
    positive, negative = grid[:, 0] > 0, grid[:, 0] < 0
    if torch.allclose(y[positive], grid[positive].expand_as(y[positive]), 1e-6, 1e-6):
        slopes = (y[negative] / grid[negative]).double()
        if torch.allclose(slopes, slopes[:1].expand_as(slopes), 1e-5, 1e-6):
            slope = slopes[0]
            one = torch.allclose(slope, slope[:1].expand_as(slope), 1e-6)
            numbers = tuple(float(f"{v:.6g}") for v in slope[: 1 if one else 3].tolist())
            learnt = bool(node.attrs.get("leaves"))
            return "PReLU" if learnt or not one else "leaky ReLU", numbers
        alpha = float(-y[grid[:, 0] == -40][0, 0])
        if same(F.elu(grid, alpha)):
            return "ELU", (float(f"{alpha:.6g}"),)
    low, high = float(y[grid[:, 0] == -40][0, 0]), float(y[grid[:, 0] == 40][0, 0])
    if low < high and same(grid.clamp(low, high)):
        return "clip", tuple(each for each in (low, high) if abs(each) != 40)
    return None


def _line(graph: Graph, node: Node) -> Node | None:
    """An affine in the place of a function that is one."""
    y = on_grid(node)
    if y is None:
        return None
    low, high = _GRID.argmin(), _GRID.argmax()
    slope = (y[high] - y[low]) / (_GRID[high] - _GRID[low])
    shift = y[high] - slope * _GRID[high]
    if not torch.allclose(_GRID[:, None] * slope + shift, y, 1e-7, 1e-7):
        return None
    names = sorted(node.attrs.get("leaves", ()))
    consts = [Const(graph.leaves[name], name) for name in names]

    def at(x: float, *values: Tensor) -> Tensor:
        given = torch.full((1, *(1 for _ in node.shape[1:-1]), node.shape[-1]), x).double()
        return node.attrs["function"](given, dict(zip(names, values, strict=True))).reshape(-1)

    def scale_of(*values: Tensor) -> Tensor:
        return at(1.0, *values) - at(0.0, *values)

    scale = Const.apply(scale_of, *consts) if consts else Const(scale_of())
    shift_ = Const.apply(lambda *v: at(0.0, *v), *consts) if consts else Const(at(0.0))
    return node.like(op="affine", attrs={"scale": scale, "shift": shift_})


def _absorb_pads(graph: Graph) -> None:
    """Padding goes into the layer that reads it where that layer pads so itself."""
    for node in graph.nodes():
        while node.inputs and node.inputs[0].op == "pad":
            pad = node.inputs[0]
            pads, fill = pad.attrs["pads"], pad.attrs["fill"]
            fits = {"conv": 0.0, "max_pool": -math.inf, "average": 0.0}.get(node.op)
            lowest = node.op == "max_pool" and fill <= -1e30
            if fits is None or (fill != fits and not lowest):
                break
            if node.op == "average":
                for name, (before, _), size in zip(
                    ("rows", "columns"), pads, pad.inputs[0].shape[1:3], strict=True
                ):
                    matrix = node.attrs[name].matrix[:, before : before + size]
                    node.attrs[name] = windows_of(matrix)
            else:
                own = node.attrs["pads"]
                node.attrs["pads"] = tuple(
                    (a + c, b + d) for (a, b), (c, d) in zip(own, pads, strict=True)
                )
            node.inputs = [pad.inputs[0]]


def _flatten_concats(graph: Graph) -> None:
    alone = _single(graph)
    for node in graph.nodes():
        if node.op != "concat":
            continue
        parts: list[Node] = []
        for each in node.inputs:
            nested = each.op == "concat" and each.attrs == node.attrs and alone(each)
            parts += each.inputs if nested else [each]
        node.inputs = parts


def _drop_identities(graph: Graph) -> None:
    for node in graph.nodes():
        if _is_identity(node):
            graph.replaced({id(node): node.inputs[0]})


def _is_identity(node: Node) -> bool:
    match node.op:
        case "affine":
            scale, shift = node.attrs["scale"], node.attrs["shift"]
            plain = not scale.leaves and not shift.leaves
            one = bool(((scale.value - 1).abs() < 1e-12).all())
            return plain and one and bool((shift.value == 0).all())
        case "average":
            eyes = (
                torch.eye(w.matrix.shape[1]) for w in (node.attrs["rows"], node.attrs["columns"])
            )
            matrices = (node.attrs["rows"].matrix, node.attrs["columns"].matrix)
            return all(
                m.shape == e.shape and bool((m == e).all())
                for m, e in zip(matrices, eyes, strict=True)
            )
        case "concat":
            return len(node.inputs) == 1
        case "max_pool":
            return node.attrs["window"] == (1, 1) and node.attrs["stride"] == (1, 1)
    return False


def _merge_averages(graph: Graph) -> None:
    """Rows averaged, then columns: one average."""
    alone = _single(graph)
    for node in graph.nodes():
        inner = node.inputs[0] if node.inputs else None
        if node.op == "average" and inner is not None and inner.op == "average" and alone(inner):
            made = {}
            for name in ("rows", "columns"):
                product = node.attrs[name].matrix @ inner.attrs[name].matrix
                made[name] = windows_of(product)
            node.attrs |= made
            node.inputs = inner.inputs
