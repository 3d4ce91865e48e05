"""Makes an op graph from a run's calls, whatever layout they have.

Maps are kept [N, H, W, C] and matrices [N, 1, 1, C]. A tensor of the run is a `Ref`: a node, and
how the tensor's axes lie in the node's, so that transposing, flattening and squeezing make no
nodes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from googlenet_jax.verification.graph import (
    Const,
    Node,
    Windows,
    execute,
    number,
    relaid,
    windows_of,
)

Value = Any  # Ref, Const or a plain number
POINTWISE = {"affine", "act"}


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of the run: axis i is the product of the node's axes `axes[i]`, those of size 1 left
    out.
    """

    node: Node
    axes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(math.prod(self.node.shape[a] for a in group) for group in self.axes)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.axes)

    def recorded(self) -> Tensor:
        """The value as the run has it."""
        value = self.node.value
        assert value is not None
        atoms = [a for group in self.axes for a in group]
        rest = [a for a in range(value.ndim) if a not in atoms]
        return value.permute(*atoms, *rest).reshape(self.shape)


def place(value: Tensor, axes: Sequence[tuple[int, ...]], shape: Sequence[int]) -> Tensor:
    """A tensor of the run as its node has it: the inverse of `Ref.recorded`."""
    atoms = [a for group in axes for a in group]
    rest = [a for a in range(len(shape)) if a not in atoms]
    value = value.reshape([shape[a] for a in (*atoms, *rest)])
    back = sorted(range(len(shape)), key=lambda i: (*atoms, *rest)[i])
    return value.permute(*back)


class Impossible(Exception):
    """A normal form does not fit; the caller takes another."""


class Builder:
    """Emits nodes. `record` keeps values: computed where the caller gives none."""

    def __init__(self) -> None:
        self.scope = ""

    def emit(
        self, op: str, inputs: Sequence[Node], value: Tensor | None = None, **attrs: Any
    ) -> Node:
        """A new node with its value."""
        node = Node(op, list(inputs), attrs, scope=self.scope)
        if value is None:
            values = [each.value for each in inputs]
            value = execute(node, values)  # type: ignore[arg-type]
        node.value, node.shape = value, tuple(value.shape)
        return node

    # ------------------------------------------------------------------------------------- layout

    def input(self, value: Tensor, channels_last: bool) -> Ref:
        """The images, or any other input, batch first."""
        if value.ndim == 4:
            axes: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (3,))
            axes = axes if channels_last else ((0,), (3,), (1,), (2,))
        elif value.ndim == 2:
            axes = ((0,), (3,))
        else:
            axes = tuple((i,) for i in range(value.ndim))
        order = [group[0] for group in axes]
        rank = 4 if value.ndim in (2, 4) else value.ndim
        shape = [1] * rank
        for axis, size in zip(order, value.shape, strict=True):
            shape[axis] = size
        node = self.emit("input", [], place(value, axes, shape))
        return Ref(node, _without_ones(axes, shape))

    def permute(self, x: Ref, order: Sequence[int]) -> Ref:
        """Axes in another order."""
        return Ref(x.node, tuple(x.axes[i] for i in order))

    def reshape(self, x: Ref, shape: Sequence[int]) -> Ref:
        """The same values under another shape; a node where an axis is split."""
        shape = [int(each) for each in shape]
        if -1 in shape:
            known = math.prod(each for each in shape if each != -1)
            shape[shape.index(-1)] = math.prod(x.shape) // known
        atoms = [a for group in x.axes for a in group]
        groups: list[tuple[int, ...]] = []
        for size in shape:
            group: list[int] = []
            product = 1
            while product < size and atoms:
                product *= x.node.shape[atoms[0]]
                group.append(atoms.pop(0))
            if product != size:
                return self._cut(x, shape)
            groups.append(tuple(group))
        return Ref(x.node, tuple(groups))

    def _cut(self, x: Ref, shape: Sequence[int]) -> Ref:
        """A new node of this very shape."""
        return _as_it_is(self.laid(x, list(shape)))

    def laid(self, x: Ref, shape: Sequence[int]) -> Node:
        """A node whose own axes are x's, under `shape`; x's node where that is so already."""
        atoms = [a for group in x.axes for a in group]
        if tuple(shape) == x.node.shape and atoms == sorted(atoms):
            return x.node
        rest = [a for a in range(len(x.node.shape)) if a not in atoms]
        order = (*atoms, *rest)
        if not shape or order[0] != 0 or x.node.shape[0] != shape[0]:
            raw = lambda v, order=order: v.permute(*order).reshape(list(shape))  # noqa: E731
            return self.emit("call", [x.node], function=raw, name="reshape")
        assert x.node.value is not None
        return self.emit(
            "layout",
            [x.node],
            relaid(x.node.value, order, shape[1:]),
            order=order,
            tail=tuple(shape[1:]),  # type: ignore[arg-type]
        )

    def channels_last(self, x: Ref, order: Sequence[int]) -> Node:
        """The node of x's axes in `order`, which is N, H, W, C."""
        turned = self.permute(x, order)
        return self.laid(turned, turned.shape)

    def expand(self, x: Ref, shape: Sequence[int], places: Sequence[int]) -> Ref:
        """Broadcast: x's axis i becomes axis `places[i]` of `shape`."""
        groups: list[tuple[int, ...]] = [()] * len(shape)
        for group, at in zip(x.axes, places, strict=True):
            groups[at] = group
        seen = Ref(x.node, tuple(groups))
        if seen.shape == tuple(shape):
            return seen
        small = self.laid(seen, seen.shape)
        grow = lambda v: v.expand(*shape)  # noqa: E731
        return _as_it_is(self.emit("call", [small], function=grow, name="expand"))

    # ---------------------------------------------------------------------------------- pointwise

    def pointwise(self, name: str, function: Callable[..., Tensor], args: Sequence[Value]) -> Value:
        """A function of each place alone: of refs, constants and numbers, broadcast."""
        refs = [each for each in args if isinstance(each, Ref)]
        if not refs:
            return Const.apply(function, *args)
        model = max(refs, key=lambda r: (r.ndim, math.prod(r.shape)))
        same = all(_lies_alike(each, model) for each in refs)
        if not same:
            refs = self._alike(refs)
            model = max(refs, key=lambda r: math.prod(r.shape))
            queue = list(refs)
            args = [queue.pop(0) if isinstance(each, Ref) else each for each in args]
        operands = [self._operand(each, model) for each in args]
        nodes = [each for each in operands if isinstance(each, Node)]
        node = self._linear(name, operands) or self._fused(function, operands, nodes)
        if node is None:
            node = self._several(name, function, operands, nodes)
        if math.prod(node.shape) != math.prod(model.node.shape):  # both operands broadcast
            return _as_it_is(node)
        return Ref(node, model.axes)

    def _alike(self, refs: Sequence[Ref]) -> list[Ref]:
        """The tensors with nodes laid out alike: as the first map is, or as the run has them."""
        rank = max(each.ndim for each in refs)
        refs = [Ref(r.node, ((),) * (rank - r.ndim) + r.axes) for r in refs]
        maps = [r for r in refs if len(r.node.shape) == 4 == rank and r.node.op != "call"]
        if maps and all(r.shape == maps[0].shape for r in refs):
            axes = maps[0].axes
            order = [axes.index((a,)) if (a,) in axes else -1 for a in range(4)]
            spare = [i for i in range(4) if i not in order]
            order = [spare.pop(0) if i < 0 else i for i in order]
            return [Ref(self.channels_last(r, order), axes) for r in refs]
        return [_as_it_is(self.laid(r, r.shape)) for r in refs]

    def _operand(self, value: Value, model: Ref) -> Any:
        if isinstance(value, Ref):
            node = value.node
            grown = node.op == "call" and node.attrs.get("name") == "expand"
            if grown and len(node.inputs[0].shape) == len(model.node.shape):
                return node.inputs[0]
            return node
        if isinstance(value, Const) and value.value.ndim:
            return Const.apply(lambda v: aligned(v, model), value)
        return value

    def _linear(self, name: str, operands: Sequence[Any]) -> Node | None:
        """x times a constant, plus a constant, each a number or one a channel."""
        if name not in ("add", "sub", "mul", "div", "neg", "rsub"):
            return None
        nodes = [each for each in operands if isinstance(each, Node)]
        if len(nodes) != 1:
            return None
        x, first = nodes[0], isinstance(operands[0], Node)
        if name == "neg":
            return self.affine(x, number(-1.0), number(0.0))
        other = operands[1] if first else operands[0]
        const = other if isinstance(other, Const) else number(float(other))
        if const.random or any(size != 1 for size in const.value.shape[:-1]):
            return None
        const = Const.apply(lambda v: v.reshape(-1) if v.numel() > 1 else v.reshape(()), const)
        zero, one = number(0.0), number(1.0)
        minus = lambda c: Const.apply(torch.neg, c)  # noqa: E731
        if name == "rsub":
            name, first = "sub", not first
        match name, first:
            case "add", _:
                return self.affine(x, one, const)
            case "mul", _:
                return self.affine(x, const, zero)
            case "sub", True:
                return self.affine(x, one, minus(const))
            case "sub", False:
                return self.affine(x, number(-1.0), const)
            case "div", True:
                return self.affine(x, Const.apply(torch.reciprocal, const), zero)
        return None

    def affine(self, x: Node, scale: Const, shift: Const) -> Node:
        """x · scale + shift."""
        return self.emit("affine", [x], scale=scale, shift=shift)

    def _fused(
        self, function: Callable[..., Tensor], operands: Sequence[Any], nodes: Sequence[Node]
    ) -> Node | None:
        """One function of one node, where all operands are such functions themselves."""
        chains = [_chain(node) for node in nodes]
        shared = [n for n in chains[0] if all(any(n is m for m in c) for c in chains)]
        consts = [each for each in operands if isinstance(each, Const)]
        if not shared or any(c.random or any(s != 1 for s in c.value.shape[:-1]) for c in consts):
            return None
        base = shared[0]
        if len({node.shape for node in nodes}) > 1:
            return None

        def whole(x: Tensor, leaves: Any = None) -> Tensor:
            return function(*(_apply(each, base, x, leaves) for each in operands))

        return self.emit(
            "act", [base], function=whole, kind="", numbers=(), leaves=_leaves(operands, base)
        )

    def _several(
        self,
        name: str,
        function: Callable[..., Tensor],
        operands: Sequence[Any],
        nodes: Sequence[Node],
    ) -> Node:
        consts = [each for each in operands if isinstance(each, Const)]
        if len(nodes) == 1 and len(consts) == 1 and name in ("mul", "div"):
            if mask := _mask(name, operands):
                return self.emit("dropout", nodes, mask=mask)
            if node := self._counted(name, nodes[0], consts[0]):
                return node
        if len(nodes) == 2 and len(operands) == 2 and name in ("add", "mul"):
            return self.emit(name, nodes)

        return self.emit("call", nodes, function=_filling(function, operands, Node), name=name)

    def _counted(self, name: str, node: Node, const: Const) -> Node | None:
        """Sums over windows, divided by how many places of each lie inside the map."""
        factor = 1.0
        if node.op == "affine" and node.attrs["scale"].value.ndim == 0:
            if float(node.attrs["shift"].value.abs().max()):
                return None
            node, factor = node.inputs[0], float(node.attrs["scale"].value)
        shape = const.value.shape
        if node.op != "average" or len(shape) != 4 or shape[0] != 1 or shape[3] != 1:
            return None
        map_ = const.value[0, :, :, 0].double()
        map_ = (1 / map_ if name == "div" else map_) * factor
        rows, columns = map_[:, :1] / map_[0, 0], map_[:1]
        if not torch.allclose(rows * columns, map_):
            return None
        made = []
        for key, weights in (("rows", rows.reshape(-1)), ("columns", columns.reshape(-1))):
            matrix = node.attrs[key].matrix
            made.append(matrix * weights.expand(len(matrix))[:, None])
        share = float(made[0].sum(1).max())  # between the two axes
        return self.average(
            node.inputs[0], windows_of(made[0] / share), windows_of(made[1] * share)
        )

    # --------------------------------------------------------------------------- weighted layers

    def conv(
        self,
        x: Node,
        kernel: Const,
        stride: Sequence[int],
        pads: Sequence[tuple[int, int]],
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        value: Tensor | None = None,
    ) -> Node:
        """`kernel` is [h, w, in/groups, out]."""
        settings = {"stride": tuple(stride), "dilation": tuple(dilation), "groups": groups}
        pads = tuple((int(a), int(b)) for a, b in pads)
        return self.emit("conv", [x], value, kernel=kernel, pads=pads, **settings)

    def product(self, x: Ref, matrix: Const) -> Ref:
        """x [..., in] times a matrix [in, out]: a convolution, 1×1 or over the whole map.

        Raises Impossible where x is neither a map nor a flattened one.
        """
        *lead, last = x.axes
        if len(x.node.shape) != 4:
            raise Impossible
        if 0 not in last and {a for group in lead for a in group} <= {0} | _ones(x.node):
            node = x.node
            atoms = [*last, *(a for a in (1, 2, 3) if a not in last)]
            sizes = [node.shape[a] for a in atoms]
            back = sorted(range(3), key=lambda i: atoms[i])

            def spread(m: Tensor) -> Tensor:
                return m.reshape(*sizes, -1).permute(*back, 3)

            made = self.conv(node, Const.apply(spread, matrix), (1, 1), ((0, 0), (0, 0)))
            return Ref(made, (*_without_ones(x.axes[:-1], made.shape), (3,)))
        if last == (3,) and all(a != 3 for group in lead for a in group):
            kernel = Const.apply(lambda m: m[None, None], matrix)
            made = self.conv(x.node, kernel, (1, 1), ((0, 0), (0, 0)))
            return Ref(made, (*lead, (3,)))
        raise Impossible

    # ------------------------------------------------------------------------------------- pooling

    def average(self, x: Node, rows: Windows | None, columns: Windows | None) -> Node:
        """Averages along the rows and columns; None leaves an axis as it is."""
        eye = lambda size: windows_of(torch.eye(size, dtype=torch.float64))  # noqa: E731
        return self.emit(
            "average",
            [x],
            rows=rows or eye(x.shape[1]),
            columns=columns or eye(x.shape[2]),
        )

    def mean(self, x: Ref, axes: Sequence[int], keep: bool, scale: float | None = None) -> Ref:
        """The mean (or with `scale` the sum times it) over the run's axes.

        Raises Impossible where it is not over rows or columns of a map.
        """
        axes = [a % x.ndim for a in axes]
        over = {a for i in axes for a in x.axes[i]}
        if len(x.node.shape) != 4 or not over <= {1, 2}:
            raise Impossible
        sizes = {a: x.node.shape[a] for a in over}
        node = x.node
        if over:
            node = self.average(node, *(_global(sizes[a]) if a in over else None for a in (1, 2)))
        if scale is not None:
            factor = scale * math.prod(sizes.values())
            node = self.affine(node, number(factor), number(0.0))
        groups = tuple(() if i in axes else group for i, group in enumerate(x.axes))
        if not keep:
            groups = tuple(group for i, group in enumerate(groups) if i not in axes)
        return Ref(node, groups)

    def max_pool(
        self, x: Ref, channels_last_order: Sequence[int], value: Tensor | None = None, **attrs: Any
    ) -> Ref:
        """A max pool of a tensor whose axes in `channels_last_order` are N, H, W, C."""
        node = self.emit("max_pool", [self.channels_last(x, channels_last_order)], value, **attrs)
        return self.back(node, channels_last_order)

    def back(self, node: Node, order: Sequence[int]) -> Ref:
        """A node [N, H, W, C] as a tensor whose axes in `order` are these."""
        axes: list[tuple[int, ...]] = [()] * 4
        for canonical, recorded in enumerate(order):
            axes[recorded] = (canonical,)
        return Ref(node, _without_ones(tuple(axes), node.shape))

    def average_pool(self, x: Ref, order: Sequence[int], rows: Windows, columns: Windows) -> Ref:
        """An average pool of a tensor whose axes in `order` are N, H, W, C."""
        return self.back(self.average(self.channels_last(x, order), rows, columns), order)

    # ---------------------------------------------------------------------------------------- rest

    def reorder(self, x: Ref, axis: int, index: Sequence[int]) -> Ref:
        """Channels picked in another order; raises Impossible where the axis is not theirs."""
        if x.axes[axis] != (3,):
            raise Impossible
        run = lambda v: v[..., list(index)]  # noqa: E731
        return Ref(self.emit("reorder", [x.node], function=run, index=tuple(index)), x.axes)

    def concat(self, parts: Sequence[Ref], axis: int) -> Ref:
        """Tensors joined along one of the run's axes."""
        axis %= parts[0].ndim
        model = parts[0]
        rank = len(model.node.shape)
        alike = all(len(p.node.shape) == rank and p.axes == model.axes for p in parts)
        if alike and len(model.axes[axis]) == 1:
            node = self.emit("concat", [p.node for p in parts], axis=model.axes[axis][0])
            return Ref(node, model.axes)
        if rank == 4 and model.ndim == 2 and axis == 1 and all(_is_row(p) for p in parts):
            rows = [self.laid(p, (p.shape[0], 1, 1, p.shape[1])) for p in parts]
            return Ref(self.emit("concat", rows, axis=3), ((0,), (3,)))
        laid = [self.laid(p, p.shape) for p in parts]
        return _as_it_is(self.emit("concat", laid, axis=axis))

    def pad(self, x: Ref, widths: Sequence[tuple[int, int]], fill: float) -> Ref:
        """Padded along the run's axes; raises Impossible where these are not a map's two."""
        by_axis = {}
        for group, (before, after) in zip(x.axes, widths, strict=True):
            if before or after:
                if len(group) != 1 or len(x.node.shape) != 4 or group[0] not in (1, 2):
                    raise Impossible
                by_axis[group[0]] = (before, after)
        if not by_axis:
            return x
        pads = (by_axis.get(1, (0, 0)), by_axis.get(2, (0, 0)))
        return Ref(self.emit("pad", [x.node], pads=pads, fill=fill), x.axes)

    def cut(self, x: Ref, axis: int, start: int, stop: int, step: int = 1) -> Ref:
        """A slice along one of the run's axes."""
        axis %= x.ndim
        size = x.shape[axis]
        if (start, step) == (0, 1) and stop >= size:
            return x
        group = x.axes[axis]
        if len(group) != 1:
            x = self._cut(x, x.shape)
            group = x.axes[axis]
        node = self.emit("slice", [x.node], axis=group[0], start=start, stop=stop, step=step)
        axes = _without_ones(x.axes, node.shape)
        return Ref(node, axes)

    def call(
        self, name: str, function: Callable[..., Tensor], args: Sequence[Value], value: Tensor
    ) -> Ref:
        """Anything else: runs on the tensors as the run has them."""
        refs = [each for each in args if isinstance(each, Ref)]
        laid = [self.laid(each, each.shape) for each in refs]
        node = self.emit("call", laid, value, function=_filling(function, args, Ref), name=name)
        return _as_it_is(node)


def _filling(
    function: Callable[..., Tensor], args: Sequence[Any], kind: type
) -> Callable[..., Tensor]:
    """The function of those of its arguments that are of one kind."""

    def run(*given: Tensor) -> Tensor:
        queue = list(given)
        plain = [each.value if isinstance(each, Const) else each for each in args]
        return function(*(queue.pop(0) if isinstance(each, kind) else each for each in plain))

    return run


def _ones(node: Node) -> set[int]:
    return {a for a, size in enumerate(node.shape) if size == 1}


def _is_row(x: Ref) -> bool:
    return x.ndim == 2 and x.node.shape[0] == x.shape[0]


def _global(size: int) -> Windows:
    return Windows(torch.full((1, size), 1 / size, dtype=torch.float64), ("global",))


def _as_it_is(node: Node) -> Ref:
    """A tensor whose axes are the node's own."""
    return Ref(node, _without_ones([(i,) for i in range(len(node.shape))], node.shape))


def _without_ones(
    axes: Sequence[tuple[int, ...]], shape: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(a for a in group if shape[a] != 1) for group in axes)


def _lies_alike(x: Ref, model: Ref) -> bool:
    """Whether two nodes can be computed with place by place as they are."""
    if len(x.node.shape) != len(model.node.shape):
        return False
    axes = ((),) * (model.ndim - x.ndim) + x.axes
    pairs = zip(axes, model.axes, strict=True)
    return all(one == other or not one for one, other in pairs) and all(
        x.node.shape[a] in (1, model.node.shape[a]) for a in range(len(x.node.shape))
    )


def aligned(value: Tensor, model: Ref) -> Tensor:
    """A constant that broadcasts against a tensor of the run, so that it does against its node.

    Axes along which it does not vary get size 1.
    """
    value = value.reshape((1,) * (model.ndim - value.ndim) + tuple(value.shape))
    for axis, size in enumerate(value.shape):
        first = value.narrow(axis, 0, 1)
        if size > 1 and (value.stride(axis) == 0 or bool((value == first).all())):
            value = first
    sizes = [1] * len(model.node.shape)
    order: list[int] = []
    flat: list[int] = []
    for group, size in zip(model.axes, value.shape, strict=True):
        inner = [model.node.shape[a] if size != 1 else 1 for a in group]
        flat += inner
        order += group
    rest = [a for a in range(len(sizes)) if a not in order]
    value = value.reshape(*flat, *(1 for _ in rest))
    back = sorted(range(len(sizes)), key=lambda i: (*order, *rest)[i])
    return value.permute(*back)


def _chain(node: Node) -> list[Node]:
    """The node and what it is a pointwise function of, nearest first."""
    chain = [node]
    while chain[-1].op in POINTWISE:
        chain.append(chain[-1].inputs[0])
    return chain


def _apply(operand: Any, base: Node, x: Tensor, leaves: Any) -> Any:
    """An operand of a fused function at x, the value of `base`."""
    if isinstance(operand, Const):
        value = operand.under(leaves) if leaves else operand.value
        return value.to(x.dtype) if value.is_floating_point() else value
    if not isinstance(operand, Node):
        return operand
    if operand is base:
        return x
    inner = _apply(operand.inputs[0], base, x, leaves)
    if operand.op == "act":
        return operand.attrs["function"](inner, leaves)
    consts = (operand.attrs[name] for name in ("scale", "shift"))
    scale, shift = (_apply(each, base, x, leaves) for each in consts)
    return inner * scale + shift


def _leaves(operands: Sequence[Any], base: Node) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for each in operands:
        if isinstance(each, Const):
            found |= each.leaves
        if isinstance(each, Node) and each is not base:
            inner = [each.attrs[name] for name in ("scale", "shift")] if each.op == "affine" else []
            found |= each.attrs.get("leaves", frozenset())
            found |= _leaves([*inner, each.inputs[0]], base)
    return found


def _mask(name: str, operands: Sequence[Any]) -> Const | None:
    """What dropout multiplies with: zeros and one other number."""
    if name != "mul":
        return None
    const = next(each for each in operands if isinstance(each, Const))
    kept = const.value[const.value != 0]
    whole = const.value.numel() > 1 and 0 < kept.numel() < const.value.numel()
    fits = const.random or (whole and const.value.ndim == 4 and bool((kept == kept[0]).all()))
    return const if fits else None
