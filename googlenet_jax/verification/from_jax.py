"""Any JAX callable as an op graph: its jaxpr, interpreted with values."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from googlenet_jax.errors import UserError
from googlenet_jax.verification.builder import Builder, Impossible, Ref, Value
from googlenet_jax.verification.from_torch import output_name, output_node
from googlenet_jax.verification.graph import Const, Graph, Windows, number, windows_of

INNER = {  # operations that hold a jaxpr which just runs
    *("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call"),
    *("custom_vjp_call", "custom_vjp_call_jaxpr", "remat2"),
}
SAME = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision"}
_SAME_NAME = (
    *("add", "sub", "mul", "div", "neg", "exp", "exp2", "log", "log1p", "expm1", "tanh", "sqrt"),
    *("rsqrt", "square", "abs", "sign", "erf", "erfc", "sin", "cos", "floor", "ceil", "pow"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
POINTWISE: dict[str, Callable[..., Tensor]] = {name: getattr(torch, name) for name in _SAME_NAME}
POINTWISE |= {
    "add_any": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "logistic": torch.sigmoid,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "is_finite": torch.isfinite,
}


def to_torch(value: Any) -> Tensor:
    """A JAX or NumPy array as a tensor that owns its memory; bfloat16 as float32."""
    array = np.asarray(value)
    if array.dtype.name in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array, order="C"))


def to_numpy(value: Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    return value.detach().cpu().numpy()


def trace_jax(
    function: Callable[[Any, Any], Any], parameters: Any, inputs: Any, channels_last: bool = True
) -> Graph:
    """The graph of `function(parameters, inputs)`, computed from its jaxpr.

    Args:
      parameters: any tree of arrays; its leaves are named by their paths, such as
        "params/conv1/kernel".
      inputs: one array, batch first. channels_last: whether a 4-D one is [N, H, W, C].
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(parameters, inputs)
    leaves = named_leaves(parameters)
    reader = _Reader()
    given = reader.builder.input(to_torch(inputs), channels_last)
    args = [Const(value, name) for name, value in leaves.items()]
    results = reader.run(closed.jaxpr, [Const(to_torch(c)) for c in closed.consts], [*args, given])
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]
    outputs = {}
    for path, value in zip(paths, results, strict=True):
        if isinstance(value, Ref):
            outputs[output_label(path)] = output_node(reader.builder, value)
    if not outputs:
        raise UserError("no output of the JAX side depends on its inputs")
    return Graph(given.node, outputs, leaves)


def named_leaves(tree: Any) -> dict[str, Tensor]:
    """The arrays of a tree by path."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): to_torch(value) for path, value in flat}


def path_name(path: Sequence[Any]) -> str:
    """ "params/conv1/kernel", ".layers/0/.weight" without the dots."""
    return "/".join(str(_entry(each)).strip(".") for each in path)


def _entry(key: Any) -> Any:
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


def output_label(path: Sequence[Any]) -> str:
    """An output's name: the last word of its path; a tuple's places are logits, aux1, aux2."""
    if not path:
        return "logits"
    last = _entry(path[-1])
    if isinstance(last, int):
        return f"aux{last}" if last else "logits"
    return output_name(str(last).strip("."))


class _Reader:
    """Interprets a jaxpr: constants are computed, all else becomes nodes."""

    def __init__(self) -> None:
        self.builder = Builder()

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """The results of a jaxpr."""
        table: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        table |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Value:
            if hasattr(atom, "val"):
                return Const(to_torch(atom.val))
            return table[atom]

        outer = self.builder.scope
        for equation in jaxpr.eqns:
            scope = _scope(str(equation.source_info.name_stack))
            self.builder.scope = scope or outer
            values = [read(each) for each in equation.invars]
            made = self._equation(equation, values)
            for var, value in zip(equation.outvars, made, strict=True):
                table[var] = value
        self.builder.scope = outer
        return [read(each) for each in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        if name in INNER:
            inner = next(
                params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params
            )
            closed = getattr(inner, "jaxpr", inner)
            consts = [Const(to_torch(c)) for c in getattr(inner, "consts", ())]
            return self.run(closed, consts, values)
        if name == "platform_index":  # the plain form, which is meant for every platform
            return [Const(torch.tensor(len(params["platforms"]) - 1))]
        if name == "cond" and isinstance(values[0], Const):
            at = min(max(int(values[0].value), 0), len(params["branches"]) - 1)
            branch = params["branches"][at]
            consts = [Const(to_torch(c)) for c in branch.consts]
            return self.run(branch.jaxpr, consts, values[1:])
        if name in SAME:
            return values
        try:
            handler = getattr(self, f"_do_{name}", None)
            if handler is not None:
                return [handler(params, *values)]
            if name in POINTWISE:
                plain = "add" if name == "add_any" else name
                return [self.builder.pointwise(plain, POINTWISE[name], values)]
        except Impossible:
            pass
        return self._unknown(equation, values)

    def _unknown(self, equation: Any, values: list[Value]) -> list[Value]:
        """An operation by its own name, run by JAX."""
        primitive, params = equation.primitive, equation.params

        def all_of(*given: Any) -> list[Tensor]:
            types = [each.aval.dtype for each in equation.invars]
            arrays = [
                (
                    jax.numpy.asarray(to_numpy(g) if isinstance(g, Tensor) else g, t)
                    if not jax.dtypes.issubdtype(t, jax.dtypes.extended)
                    else g
                )
                for g, t in zip(given, types, strict=True)
            ]
            result = primitive.bind(*arrays, **params)
            return [to_torch(r) for r in (result if primitive.multiple_results else [result])]

        refs = [each for each in values if isinstance(each, Ref)]
        if not refs:
            return [Const(v) for v in all_of(*(v.value for v in values))]
        results = all_of(*(v.recorded() if isinstance(v, Ref) else v.value for v in values))
        return [
            self.builder.call(primitive.name, lambda *g, i=i: all_of(*g)[i], values, result)
            for i, result in enumerate(results)
        ]

    # ---------------------------------------------------------------------------------- pointwise

    def _do_integer_pow(self, params: Mapping[str, Any], x: Value) -> Value:
        return self.builder.pointwise("pow", lambda v: v ** params["y"], [x])

    def _do_convert_element_type(self, params: Mapping[str, Any], x: Value) -> Value:
        new = np.dtype(params["new_dtype"]) if params["new_dtype"] != jax.numpy.bfloat16 else None
        if isinstance(x, Ref):
            return x  # maps keep the dtype that the graph is computed in
        if new is None:
            return x
        return Const.apply(lambda v: v.to(to_torch(np.zeros((), new)).dtype), x)

    def _do_select_n(self, params: Mapping[str, Any], which: Value, *cases: Value) -> Value:
        if len(cases) != 2:
            raise Impossible
        return self.builder.pointwise(
            "where", lambda w, no, yes: torch.where(w.bool(), yes, no), [which, *cases]
        )

    def _do_clamp(self, params: Mapping[str, Any], low: Value, x: Value, high: Value) -> Value:
        return self.builder.pointwise("clamp", lambda a, v, b: torch.clamp(v, a, b), [low, x, high])

    # ------------------------------------------------------------------------------------- layout

    def _do_broadcast_in_dim(self, params: Mapping[str, Any], x: Value, *_: Value) -> Value:
        shape, places = params["shape"], params["broadcast_dimensions"]
        if isinstance(x, Ref):
            return self.builder.expand(x, shape, places)

        def grow(v: Tensor) -> Tensor:
            sizes = [1] * len(shape)
            for size, at in zip(v.shape, places, strict=True):
                sizes[at] = size
            return v.reshape(sizes).expand(*shape)

        return Const.apply(grow, x)

    def _do_reshape(self, params: Mapping[str, Any], x: Value, *_: Value) -> Value:
        shape = params["new_sizes"]
        if isinstance(x, Ref):
            return self.builder.reshape(x, shape)
        return Const.apply(lambda v: v.reshape(shape), x)

    def _do_squeeze(self, params: Mapping[str, Any], x: Value) -> Value:
        drop = params["dimensions"]
        if isinstance(x, Ref):
            return Ref(x.node, tuple(g for i, g in enumerate(x.axes) if i not in drop))
        return Const.apply(
            lambda v: v.reshape([s for i, s in enumerate(v.shape) if i not in drop]), x
        )

    def _do_transpose(self, params: Mapping[str, Any], x: Value) -> Value:
        order = params["permutation"]
        if isinstance(x, Ref):
            return self.builder.permute(x, order)
        return Const.apply(lambda v: v.permute(*order), x)

    def _do_rev(self, params: Mapping[str, Any], x: Value) -> Value:
        axes = params["dimensions"]
        if isinstance(x, Ref):
            if len(axes) != 1:
                raise Impossible
            return self.builder.reorder(x, axes[0], range(x.shape[axes[0]])[::-1])
        return Const.apply(lambda v: v.flip(axes), x)

    def _do_concatenate(self, params: Mapping[str, Any], *parts: Value) -> Value:
        axis = params["dimension"]
        if all(isinstance(each, Ref) for each in parts):
            return self.builder.concat(parts, axis)
        if any(isinstance(each, Ref) for each in parts):
            raise Impossible
        return Const.apply(lambda *v: torch.cat(v, axis), *parts)

    def _do_slice(self, params: Mapping[str, Any], x: Value) -> Value:
        steps = params["strides"] or (1,) * len(params["start_indices"])
        limits = list(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
        if not isinstance(x, Ref):
            return Const.apply(lambda v: v[tuple(slice(*each) for each in limits)], x)
        for axis, (start, stop, step) in enumerate(limits):
            if (start, stop, step) != (0, x.shape[axis], 1):
                x = self.builder.cut(x, axis, start, stop, step)
        return x

    def _do_pad(self, params: Mapping[str, Any], x: Value, fill: Value) -> Value:
        config = params["padding_config"]
        if not isinstance(x, Ref) or not isinstance(fill, Const):
            raise Impossible
        if any(inner or before < 0 or after < 0 for before, after, inner in config):
            raise Impossible
        return self.builder.pad(x, [each[:2] for each in config], float(fill.value))

    def _do_gather(self, params: Mapping[str, Any], x: Value, index: Value) -> Value:
        """x[..., [2, 1, 0]] alone."""
        numbers = params["dimension_numbers"]
        if not isinstance(x, Ref) or not isinstance(index, Const) or index.value.ndim != 2:
            raise Impossible
        if len(numbers.start_index_map) != 1:
            raise Impossible
        axis = numbers.start_index_map[0]
        whole, taken = (
            [size for i, size in enumerate(sizes) if i != axis]
            for sizes in (x.shape, params["slice_sizes"])
        )
        if whole != taken or tuple(numbers.collapsed_slice_dims) != (axis,) or axis != x.ndim - 1:
            raise Impossible
        return self.builder.reorder(x, axis, index.value.reshape(-1).tolist())

    # ---------------------------------------------------------------------------- sums and products

    def _do_reduce_sum(self, params: Mapping[str, Any], x: Value) -> Value:
        axes = params["axes"]
        if not isinstance(x, Ref):
            return Const.apply(lambda v: v.sum(tuple(axes)), x)
        return self.builder.mean(x, axes, False, 1.0)

    def _do_dot_general(self, params: Mapping[str, Any], one: Value, two: Value) -> Value:
        (left, right), batch = params["dimension_numbers"]
        if batch != ((), ()) or isinstance(one, Ref) == isinstance(two, Ref):
            raise Impossible
        flipped = isinstance(two, Ref)
        x, const = (two, one) if flipped else (one, two)
        inner, outer = (right, left) if flipped else (left, right)
        if const.value.ndim != 2 or len(inner) != 1:
            return self._whole_map(x, const, inner, outer, flipped)
        matrix = const if outer[0] == 0 else Const.apply(torch.t, const)  # [in, out]
        group = x.axes[inner[0]] or (() if const.leaves else _place_of_one(x, inner[0]))
        kept = [i for i in range(x.ndim) if i != inner[0]]
        if group in ((1,), (2,)) and len(x.node.shape) == 4:
            windows = windows_of(matrix.value.t())
            node = self.builder.average(
                x.node, *(windows if group == (axis,) else None for axis in (1, 2))
            )
            axes = [x.axes[i] for i in kept]
            made = group if node.shape[group[0]] > 1 else ()
            axes = [made, *axes] if flipped else [*axes, made]
            return Ref(node, tuple(axes))
        moved = self.builder.permute(x, [*kept, inner[0]])
        made = self.builder.product(moved, matrix)
        last = made.ndim - 1
        return self.builder.permute(made, [last, *range(last)]) if flipped else made

    def _whole_map(
        self, x: Ref, const: Const, inner: Sequence[int], outer: Sequence[int], flipped: bool
    ) -> Value:
        """Several axes contracted at once, such as flax's DenseGeneral: flattened first."""
        kept = [i for i in range(x.ndim) if i not in inner]
        free = [i for i in range(const.value.ndim) if i not in outer]
        if flipped or len(free) != 1:
            raise Impossible
        moved = self.builder.permute(x, [*kept, *inner])
        flat = self.builder.reshape(
            moved, [*(x.shape[i] for i in kept), math.prod(x.shape[i] for i in inner)]
        )
        matrix = Const.apply(
            lambda v: v.permute(*outer, *free).reshape(-1, v.shape[free[0]]), const
        )
        return self.builder.product(flat, matrix)

    def _do_conv_general_dilated(self, params: Mapping[str, Any], x: Value, kernel: Value) -> Value:
        numbers = params["dimension_numbers"]
        plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
        if not plain or not isinstance(x, Ref) or not isinstance(kernel, Const) or x.ndim != 4:
            raise Impossible
        lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        order = (lhs[0], lhs[2], lhs[3], lhs[1])
        laid = Const.apply(lambda k: k.permute(rhs[2], rhs[3], rhs[1], rhs[0]), kernel)
        if any(each < 0 for pair in params["padding"] for each in pair):
            raise Impossible
        node = self.builder.conv(
            self.builder.channels_last(x, order),
            laid,
            params["window_strides"],
            params["padding"],
            params["rhs_dilation"],
            params["feature_group_count"],
        )
        return self.builder.back(node, (out[0], out[2], out[3], out[1]))

    def _windows(self, params: Mapping[str, Any], x: Value) -> tuple[Any, ...]:
        """(order of N, H, W, C; window, stride, pads of the two axes) of a reduce_window."""
        if not isinstance(x, Ref) or len(x.node.shape) != 4 or x.ndim < 4:
            raise Impossible
        if set(params["base_dilation"]) != {1}:
            raise Impossible
        order = []
        for axis in range(4):
            found = [i for i, group in enumerate(x.axes) if group == (axis,)]
            rest = [i for i, group in enumerate(x.axes) if not group and i not in order]
            if not found and not rest:
                raise Impossible
            order.append(found[0] if found else rest[0])
        spatial = order[1:3]
        window = params["window_dimensions"]
        if any(window[i] != 1 for i in range(x.ndim) if i not in spatial):
            raise Impossible
        pick = lambda name: tuple(params[name][i] for i in spatial)  # noqa: E731
        return (
            *(order, pick("window_dimensions"), pick("window_strides"), pick("padding")),
            pick("window_dilation"),
        )

    def _do_reduce_window_max(self, params: Mapping[str, Any], x: Value) -> Value:
        if isinstance(x, Ref) and x.ndim > 4:  # a window over single images, mapped over the batch
            small = [i for i, group in enumerate(x.axes) if not group][: x.ndim - 4]
            kept = [i for i in range(x.ndim) if i not in small]
            names = ("window_dimensions", "window_strides", "padding", "window_dilation")
            fewer = {n: [params[n][i] for i in kept] for n in (*names, "base_dilation")}
            inner = Ref(x.node, tuple(x.axes[i] for i in kept))
            made = self._do_reduce_window_max(fewer, inner)
            axes = list(made.axes)
            for i in small:
                axes.insert(i, ())
            return Ref(made.node, tuple(axes))
        order, window, stride, pads, dilation = self._windows(params, x)
        return self.builder.max_pool(
            x, order, window=window, stride=stride, pads=pads, dilation=dilation
        )

    def _do_reduce_window_sum(self, params: Mapping[str, Any], x: Value) -> Value:
        order, window, stride, pads, dilation = self._windows(params, x)
        if set(dilation) != {1}:
            raise Impossible
        found: list[Windows] = []
        for axis in range(2):
            size = x.shape[order[1 + axis]]
            before, after = pads[axis]
            out = (size + before + after - window[axis]) // stride[axis] + 1
            matrix = torch.zeros(out, size, dtype=torch.float64)
            for row in range(out):
                start = row * stride[axis] - before
                matrix[row, max(start, 0) : max(min(start + window[axis], size), 0)] = 1
            found.append(windows_of(matrix / window[axis]))
        node = self.builder.average(self.builder.channels_last(x, order), *found)
        node = self.builder.affine(node, number(math.prod(window)), number(0.0))
        return self.builder.back(node, order)


def _place_of_one(x: Ref, dimension: int) -> tuple[int, ...]:
    """Which axis of a map of one row or column a dimension is; () where that can't be told."""
    ones = [a for a in (1, 2) if len(x.node.shape) == 4 and x.node.shape[a] == 1]
    empty = [i for i, group in enumerate(x.axes) if not group]
    if len(ones) != len(empty):
        return ()
    return (ones[empty.index(dimension)],)


def _scope(stack: str) -> str:
    """The module's path in a name stack: linen names every module that runs; its root is left out."""
    words = [each for each in stack.split("/") if each.isidentifier()]
    return "/".join(words[1:] if words and words[0][:1].isupper() else words)


@contextlib.contextmanager
def in_float64() -> Any:
    """JAX computes in float64, its products whole, and compiles quickly rather than well."""
    before = jax.config.values["jax_disable_most_optimizations"]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)
