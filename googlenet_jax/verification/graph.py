"""The op graph that both sides are brought to: a few operations on maps [N, H, W, C], executed by
PyTorch.

A value is a `Node`'s; what depends on weights alone is a `Const`, which remembers how it came from
them. The operations:

| op | inputs | attributes |
|---|---|---|
| input | – | – |
| conv | x | kernel [h, w, in/groups, out], stride, pads, dilation, groups; a fully connected layer too |
| affine | x | scale, shift: a number, or one a channel |
| act | x | kind, numbers; see `activations` |
| max_pool | x | window, stride, pads, dilation |
| average | x | rows [H', H], columns [W', W]: any average pool, adaptive and global too |
| lrn, softmax, log_softmax, dropout, pad, concat, add, mul, layout, slice | | as named |
| call | any | function: an operation that no other name fits |
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_COUNTER = itertools.count()


class Const:
    """A value that does not depend on the inputs.

    Attributes:
      value: the tensor. name: of the leaf (parameter or buffer) that it is, "" where it is none.
      random: whether a random number generator made it.
    """

    def __init__(
        self,
        value: Tensor,
        name: str = "",
        made: tuple[Callable[..., Tensor], tuple[Any, ...]] | None = None,
        random: bool = False,
    ) -> None:
        self.value, self.name, self.made = value, name, made
        arguments = [each for each in (made[1] if made else ()) if isinstance(each, Const)]
        self.random: bool = random or any(each.random for each in arguments)
        self.leaves: frozenset[str] = frozenset([name] if name else []).union(
            *(each.leaves for each in arguments)
        )

    @classmethod
    def apply(cls, function: Callable[..., Tensor], *args: Any) -> "Const":
        """The constant that a function makes of constants and plain values."""
        values = [each.value if isinstance(each, Const) else each for each in args]
        known = any(isinstance(each, Const) and each.leaves for each in args)
        random = any(isinstance(each, Const) and each.random for each in args)
        return cls(function(*values), made=(function, args) if known else None, random=random)

    def under(self, leaves: Mapping[str, Tensor], memo: dict[int, Tensor] | None = None) -> Tensor:
        """The value where some leaves have other values."""
        if not self.leaves & leaves.keys():
            return self.value
        if self.made is None:
            return leaves[self.name]
        memo = {} if memo is None else memo
        if id(self) not in memo:
            function, args = self.made
            memo[id(self)] = function(
                *(each.under(leaves, memo) if isinstance(each, Const) else each for each in args)
            )
        return memo[id(self)]


def number(value: float) -> Const:
    """A plain number."""
    return Const(torch.tensor(value, dtype=torch.float64))


@dataclasses.dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
      attrs: see the module's table. value: what the real run had here, where it was kept.
      scope: where in the user's code, such as "inception_3a/conv_1x1". order: of execution.
    """

    op: str
    inputs: list["Node"]
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = ()
    value: Tensor | None = None
    scope: str = ""
    order: int = dataclasses.field(default_factory=lambda: next(_COUNTER))

    def like(self, **changes: Any) -> "Node":
        """A copy in the same place of the order."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass
class Graph:
    """One network's run.

    Attributes:
      input: the images. outputs: by name. leaves: parameters and buffers by name.
    """

    input: Node
    outputs: dict[str, Node]
    leaves: dict[str, Tensor]

    def nodes(self) -> list[Node]:
        """All nodes that the outputs depend on, inputs before what reads them."""
        return topological(self.outputs.values())

    def consumers(self) -> dict[int, list[Node]]:
        """The id of a node → the nodes that read it."""
        readers: dict[int, list[Node]] = {}
        for node in self.nodes():
            for each in dict.fromkeys(map(id, node.inputs)):
                readers.setdefault(each, []).append(node)
        return readers

    def replaced(self, table: Mapping[int, Node]) -> None:
        """Puts nodes in the place of others (by id), everywhere, in this graph."""

        def new(node: Node) -> Node:
            while id(node) in table:
                node = table[id(node)]
            return node

        for node in topological([*self.outputs.values(), *table.values()]):
            node.inputs = [new(each) for each in node.inputs]
        self.outputs = {name: new(node) for name, node in self.outputs.items()}

    def copy(self) -> tuple["Graph", dict[int, Node]]:
        """A copy that can be changed, and old id → new node."""
        table: dict[int, Node] = {}
        for node in topological([*self.outputs.values(), self.input]):
            inputs = [table[id(each)] for each in node.inputs]
            table[id(node)] = dataclasses.replace(node, inputs=inputs, attrs=dict(node.attrs))
        outputs = {name: table[id(node)] for name, node in self.outputs.items()}
        return Graph(table[id(self.input)], outputs, self.leaves), table


def topological(targets: Iterable[Node]) -> list[Node]:
    """What the targets depend on, and they, inputs first."""
    done: dict[int, Node] = {}
    for target in targets:
        stack: list[tuple[Node, Iterator[Node]]] = [(target, iter(target.inputs))]
        while stack:
            node, rest = stack[-1]
            if id(node) in done:
                stack.pop()
                continue
            following = next((each for each in rest if id(each) not in done), None)
            if following is None:
                done[id(node)] = node
                stack.pop()
            else:
                stack.append((following, iter(following.inputs)))
    return list(done.values())


def evaluate(targets: Sequence[Node], given: Mapping[int, Tensor]) -> list[Tensor]:
    """Computes nodes where some (by id) have given values; nothing before these is computed."""
    values = dict(given)
    for target in targets:
        stack = [target]
        while stack:
            node = stack[-1]
            if id(node) in values:
                stack.pop()
                continue
            missing = [each for each in node.inputs if id(each) not in values]
            if missing:
                stack += missing
            else:
                values[id(node)] = execute(node, [values[id(each)] for each in node.inputs])
                stack.pop()
    return [values[id(target)] for target in targets]


def evaluated(target: Node, given: Mapping[int, Tensor]) -> Tensor | None:
    """The value of one node; None where it can't run on what is given."""
    try:
        return evaluate([target], given)[0]
    except (RuntimeError, ValueError, IndexError):
        return None


# -------------------------------------------------------------------------------------- operations


def execute(node: Node, args: Sequence[Tensor]) -> Tensor:
    """Runs one operation on other inputs than those that it was recorded with."""
    attrs = node.attrs
    match node.op:
        case "conv":
            return _conv(args[0], attrs)
        case "affine":
            scale, shift = (attrs[name].value.to(args[0].dtype) for name in ("scale", "shift"))
            return args[0] * scale + shift
        case "max_pool":
            return _max_pool(args[0], attrs)
        case "average":
            return _average(args[0], attrs)
        case "concat":
            return torch.cat(list(args), attrs["axis"])
        case "add":
            return args[0] + args[1]
        case "mul":
            return args[0] * args[1]
        case "pad":
            (top, bottom), (left, right) = attrs["pads"]
            return F.pad(args[0], (0, 0, left, right, top, bottom), value=attrs["fill"])
        case "layout":
            return relaid(args[0], attrs["order"], attrs["tail"])
        case "slice":
            index = [slice(None)] * args[0].ndim
            index[attrs["axis"]] = slice(attrs["start"], attrs["stop"], attrs["step"])
            return args[0][tuple(index)]
        case "dropout":
            return args[0] * attrs["mask"].value if "mask" in attrs else args[0]
        case "probe":
            return args[0]
        case "lrn":
            return _lrn(args[0], attrs)
    return attrs["function"](*args)


def relaid(value: Tensor, order: Sequence[int], tail: Sequence[int]) -> Tensor:
    """Axes moved to `order`, then all behind the batch laid out as `tail`."""
    return value.permute(*order).reshape(value.shape[order[0]], *tail)


def _conv(x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    kernel = attrs["kernel"].value.permute(3, 2, 0, 1).to(x.dtype)
    (top, bottom), (left, right) = attrs["pads"]
    given = x.permute(0, 3, 1, 2)
    padding: tuple[int, int] = (top, left)
    if (top, left) != (bottom, right):
        given, padding = F.pad(given, (left, right, top, bottom)), (0, 0)
    result = F.conv2d(
        given, kernel, None, attrs["stride"], padding, attrs["dilation"], attrs["groups"]
    )
    return result.permute(0, 2, 3, 1)


def _max_pool(x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    (top, bottom), (left, right) = attrs["pads"]
    given = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom), value=-torch.inf)
    pooled = F.max_pool2d(given, attrs["window"], attrs["stride"], 0, attrs["dilation"])
    return pooled.permute(0, 2, 3, 1)


def _average(x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    rows, columns = (
        weights_for(attrs[name], size)
        for name, size in (("rows", x.shape[1]), ("columns", x.shape[2]))
    )
    x = torch.einsum("ih,nhwc->niwc", rows.to(x.dtype), x)
    return torch.einsum("jw,niwc->nijc", columns.to(x.dtype), x)


def _lrn(x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    size = attrs["size"]
    before = size // 2
    square = F.pad(x * x, (before, size - 1 - before))
    total = square.unfold(-1, size, 1).sum(-1)
    return x * (attrs["k"] + attrs["alpha"] / size * total) ** -attrs["beta"]


# ---------------------------------------------------------------------------------- average pools


@dataclasses.dataclass(frozen=True)
class Windows:
    """Averages along one axis: the matrix [out, in] that was recorded, and the rule behind it.

    Attributes:
      rule: ("global",), ("adaptive", out), ("windows", size, stride, before, after, counted) or
        ("matrix",): no rule was found, and maps of another size can't be pooled.
    """

    matrix: Tensor
    rule: tuple[Any, ...]


def weights_for(windows: Windows, size: int) -> Tensor:
    """The matrix for an axis of `size`; raises ValueError where there is none."""
    if size == windows.matrix.shape[1]:
        return windows.matrix
    match windows.rule:
        case ("global",):
            return torch.full((1, size), 1 / size, dtype=torch.float64)
        case ("adaptive", out):
            return adaptive(size, out)
        case ("windows", kernel, stride, before, after, counted):
            return averaging(size, kernel, stride, before, after, counted)
    raise ValueError(f"an average of {windows.matrix.shape[1]} places was given {size}")


def averaging(
    size: int, kernel: int, stride: int, before: int, after: int, counted: bool, extra: int = 0
) -> Tensor:
    """The matrix [out, size] of means over windows of an axis padded by `before` and `after`.

    `counted`: padding counts in the divisor; what lies behind it (`extra`, ceil mode) never does.
    """
    out = (size + before + after + extra - kernel) // stride + 1
    matrix = torch.zeros(max(out, 0), size, dtype=torch.float64)
    for row in range(len(matrix)):
        start = row * stride - before
        end = min(start + kernel, size + after)
        inside = slice(max(start, 0), min(start + kernel, size))
        count = end - start if counted else inside.stop - inside.start
        if inside.stop > inside.start:
            matrix[row, inside] = 1 / count
    return matrix


def adaptive(size: int, out: int) -> Tensor:
    """The matrix of PyTorch's adaptive average pooling."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        inside = slice(i * size // out, -(-(i + 1) * size // out))
        matrix[i, inside] = 1 / (inside.stop - inside.start)
    return matrix


def windows_of(matrix: Tensor) -> Windows:
    """Finds the rule behind a matrix [out, in] of averages."""
    matrix = matrix.to(torch.float64)
    out, size = matrix.shape

    def same(other: Tensor) -> bool:
        return other.shape == matrix.shape and bool(torch.allclose(other, matrix, 1e-6, 1e-9))

    if size == out and same(torch.eye(size, dtype=torch.float64)):
        return Windows(matrix, ("windows", 1, 1, 0, 0, False))
    if out == 1 and same(torch.full((1, size), 1 / size, dtype=torch.float64)):
        return Windows(matrix, ("global",))
    if same(adaptive(size, out)):
        return Windows(matrix, ("adaptive", out))
    for kernel, stride, before, counted in _guesses(matrix):
        after = max((out - 1) * stride + kernel - size - before, 0)
        for end in range(after, after + stride):
            if same(averaging(size, kernel, stride, before, end, counted)):
                return Windows(matrix, ("windows", kernel, stride, before, end, counted))
    return Windows(matrix, ("matrix",))


def _guesses(matrix: Tensor) -> Iterator[tuple[int, int, int, bool]]:
    """(kernel, stride, padding before, whether it counts) that could have made the matrix."""
    used = matrix != 0
    if not bool(used.any(1).all()):
        return
    starts = [int(row.nonzero()[0]) for row in used]
    ends = [int(row.nonzero()[-1]) + 1 for row in used]
    steps = {b - a for line in (starts, ends) for a, b in itertools.pairwise(line)} - {0}
    kernels = {int(used.sum(1).max()), round(float(1 / matrix[used].min()))}
    for kernel in sorted(kernels):
        for stride in sorted(steps or {1, kernel}):
            for counted in (False, True):
                if kernel >= ends[0]:
                    yield kernel, stride, kernel - ends[0], counted
