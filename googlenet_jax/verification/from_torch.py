"""Any PyTorch module's forward pass as an op graph: the aten operations that really ran."""

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from googlenet_jax.errors import UserError
from googlenet_jax.verification.builder import Builder, Impossible, Ref, Value, place
from googlenet_jax.verification.graph import (
    Const,
    Graph,
    Windows,
    adaptive,
    averaging,
    windows_of,
)

NCHW_TO_NHWC = (0, 2, 3, 1)
POINTWISE = {
    *("relu", "relu6", "threshold", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "log_sigmoid"),
    *("_prelu_kernel", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "abs", "exp"),
    *("add", "sub", "rsub", "mul", "div", "neg", "pow", "sqrt", "rsqrt", "reciprocal", "square"),
    *("log", "log1p", "expm1", "erf", "where", "gt", "ge", "lt", "le", "eq", "ne", "sign"),
    *("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "masked_fill"),
    *("sin", "cos", "softshrink", "hardshrink", "relu_", "nan_to_num", "clone"),
}
SAME = {
    *("detach", "alias", "contiguous", "_to_copy", "to", "lift_fresh", "clone", "view_as"),
    *("lift_fresh_copy", "dropout", "feature_dropout", "alpha_dropout"),
}
MAKING = {
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "empty_permuted"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
}
RANDOM = {"bernoulli", "bernoulli_", "uniform_", "rand", "rand_like", "normal_", "randn"}


class WithoutDropout(TorchFunctionMode):
    """Dropout as a function does nothing, but where `allowed` holds the line that calls it. With
    `settled`, batch norm as a function takes its running statistics in training too.

    `active`: the lines that called it to act.
    """

    def __init__(self, allowed: frozenset[Any] | None = frozenset(), settled: bool = False) -> None:
        super().__init__()
        self.allowed, self.settled = allowed, settled
        self.active: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            train = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
            line = _caller()
            if train:
                self.active.add(line)
                if self.allowed is not None and line not in self.allowed:
                    return args[0] if args else kwargs["input"]
        if self.settled and func is F.batch_norm:
            given = inspect.signature(F.batch_norm).bind(*args, **kwargs).arguments
            if given.get("running_mean") is not None:
                return func(**(given | {"training": False}))
        return func(*args, **kwargs)


def _caller() -> tuple[str, int]:
    """The nearest line outside PyTorch and this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if f"{os.sep}torch{os.sep}" not in name and name != __file__:
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def layers_of(module: nn.Module) -> nn.Module:
    """The module itself, inside DataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def trace_torch(
    module: nn.Module, images: Tensor, channels_last: bool
) -> tuple[Graph, dict[str, Tensor]]:
    """Runs the module on `images` as they are and gives its graph and its outputs.

    Args:
      channels_last: whether a 4-D input is [N, H, W, C].
    """
    leaves = dict(module.named_parameters()) | dict(module.named_buffers())
    recorder = _Recorder(leaves, images, channels_last)
    handles = [
        hook
        for name, each in module.named_modules()
        if name and not isinstance(each, torch.jit.ScriptModule)
        for hook in (
            each.register_forward_pre_hook(recorder.enter(name)),
            each.register_forward_hook(recorder.leave),
        )
    ]
    try:
        with torch.no_grad(), recorder:
            result = module(images)
    finally:
        for handle in handles:
            handle.remove()
    tensors = named(result)
    nodes = {}
    for name, tensor in tensors.items():
        ref = recorder.of(tensor)
        if not isinstance(ref, Ref):
            raise UserError(f"the output {name} does not depend on the images")
        nodes[name] = output_node(recorder.builder, ref)
    values = {name: value.detach().clone() for name, value in tensors.items()}
    plain = {name: value.detach().clone() for name, value in leaves.items()}
    return Graph(recorder.input.node, nodes, plain), values


def output_node(builder: Builder, ref: Ref) -> Any:
    """A node for an output: a matrix is [N, 1, 1, C], whatever it was before."""
    shape = ref.shape
    if len(shape) == 2:
        return builder.laid(ref, (shape[0], 1, 1, shape[1]))
    if len(shape) == 4 and len(ref.node.shape) == 4:
        return ref.node
    return builder.laid(ref, shape)


def named(result: Any) -> dict[str, Tensor]:
    """The outputs of a module by name: a tensor, a dictionary, a named tuple, or a plain tuple
    (logits, first auxiliary head's, second's).

    Raises UserError for anything else.
    """
    if isinstance(result, Tensor):
        return {"logits": result}
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        found = {output_name(str(name)): value for name, value in result.items()}
    elif isinstance(result, (tuple, list)):
        found = {f"aux{i}" if i else "logits": value for i, value in enumerate(result)}
    else:
        raise UserError(
            "expected the module to return logits, a tuple or a dictionary of them, found "
            f"{type(result).__name__}"
        )
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def output_name(name: str) -> str:
    """Ours for the names that other networks give their outputs."""
    if name.startswith("aux"):
        return "aux" + (name[-1] if name[-1].isdigit() else "1")
    return "logits" if name in ("out", "output", "main") else name


class _Recorder(TorchDispatchMode):
    """Translates each aten call as it runs."""

    def __init__(self, leaves: Mapping[str, Tensor], images: Tensor, channels_last: bool) -> None:
        super().__init__()
        self.builder = Builder()
        self.table: dict[int, Value] = {}
        self.kept: list[Tensor] = []  # an id means something while its tensor lives
        self.names = {_key(value): name for name, value in leaves.items()}
        self.scopes: list[str] = []
        self.busy = False
        self.input = self.builder.input(images.detach().clone(), channels_last)
        self._note(images, self.input)

    def enter(self, name: str) -> Callable[..., None]:
        """A hook that says which module runs."""

        def hook(*_: Any) -> None:
            self.scopes.append(name)
            self.builder.scope = name

        return hook

    def leave(self, *_: Any) -> None:
        """A hook: the module is done."""
        if self.scopes:
            self.scopes.pop()
        self.builder.scope = self.scopes[-1] if self.scopes else ""

    def of(self, tensor: Tensor) -> Value:
        """What a tensor is: a ref, or a constant."""
        if id(tensor) not in self.table:
            name = self.names.get(_key(tensor), "")
            self._note(tensor, Const(_plain(tensor), name))
        return self.table[id(tensor)]

    def _note(self, tensor: Tensor, value: Value) -> None:
        self.table[id(tensor)] = value
        self.kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.busy:
            return func(*args, **kwargs)
        before = self._seen(args), self._seen(kwargs)  # in-place calls change their arguments
        result = func(*args, **kwargs)
        name = func.name().split("::")[-1].split(".")[0]
        self.busy = True
        try:
            self._translate(name, func, before, result)
        finally:
            self.busy = False
        return result

    def _seen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, (list, tuple)):
            return [self._seen(each) for each in value]
        if isinstance(value, dict):
            return {name: self._seen(each) for name, each in value.items()}
        return value

    def _translate(self, name: str, func: Any, given: Any, result: Any) -> None:
        args, kwargs = given
        results = [result] if isinstance(result, Tensor) else result
        if not isinstance(results, (list, tuple)):
            return
        flat = _flat([args, kwargs])
        if name in MAKING or not any(isinstance(each, Ref) for each in flat):
            self._constants(name, func, args, kwargs, results)
            return
        plain = name.rstrip("_") if not name.startswith("__") else name
        try:
            made = self._known(plain, func, args, kwargs, results)
        except Impossible:
            made = None
        if made is None or not self._true(made, results):
            made = self._unknown(name, func, args, kwargs, results)
        for tensor, value in zip(results, made, strict=False):
            if isinstance(tensor, Tensor) and value is not None:
                self._note(tensor, value)

    def _true(self, made: Sequence[Value], results: Sequence[Any]) -> bool:
        """Whether the translation gives what was computed; if so the nodes keep the latter."""
        for tensor, value in zip(results, made, strict=False):
            if not isinstance(value, Ref) or value.shape != tuple(tensor.shape):
                return isinstance(value, Const)
            real = place(_plain(tensor), value.axes, value.node.shape)
            if not same_numbers(value.node.value, real, tensor.dtype):
                return False
            value.node.value = real
        return True

    def _constants(
        self, name: str, func: Any, args: Any, kwargs: Any, results: Sequence[Any]
    ) -> None:
        for place_, tensor in enumerate(results):
            if isinstance(tensor, Tensor):
                known = [e for e in _flat([args, kwargs]) if isinstance(e, Const) and e.leaves]
                random = name in RANDOM or any(
                    isinstance(e, Const) and e.random for e in _flat([args, kwargs])
                )
                made = None
                if known and not name.endswith("_"):
                    made = (_again(func, args, kwargs, known, place_), tuple(known))
                self._note(tensor, Const(_plain(tensor), made=made, random=random))

    # ------------------------------------------------------------------------------- translations

    def _known(
        self, name: str, func: Any, args: Any, kwargs: Any, results: Sequence[Any]
    ) -> list[Value] | None:
        if name in SAME or (name == "native_dropout" and not args[2]):
            return [args[0]]
        handler = getattr(self, f"_do_{name.lstrip('_')}", None)
        if handler is not None:
            made = handler(args, kwargs, results)
            if made is not None:
                return made if isinstance(made, list) else [made]
        if name in POINTWISE:
            return [self._pointwise(name, func, args, kwargs)]
        return None

    def _unknown(
        self, name: str, func: Any, args: Any, kwargs: Any, results: Sequence[Any]
    ) -> list[Value]:
        """An operation by its own name, run again as it was."""
        operands = [e for e in _flat([args, kwargs]) if isinstance(e, (Ref, Const))]
        made: list[Value] = []
        for place_, tensor in enumerate(results):
            if not isinstance(tensor, Tensor):
                continue
            run = _again(func, args, kwargs, operands, place_)
            made.append(self.builder.call(f"aten.{name}", run, operands, _plain(tensor)))
        return made

    def _pointwise(self, name: str, func: Any, args: Any, kwargs: Any) -> Value:
        alpha = kwargs.get("alpha", 1)
        if name in ("add", "sub", "rsub") and alpha != 1:
            scaled = self.builder.pointwise("mul", torch.mul, [args[1], alpha])
            args, kwargs = [args[0], scaled], {}
        packet = getattr(torch.ops.aten, name)
        extra = {key: value for key, value in kwargs.items() if not isinstance(value, (Ref, Const))}
        operands = list(args) + [v for v in kwargs.values() if isinstance(v, (Ref, Const))]
        names = [key for key, value in kwargs.items() if isinstance(value, (Ref, Const))]
        count = len(args)

        def run(*given: Any) -> Tensor:
            named_ = dict(zip(names, given[count:], strict=True))
            return packet(*given[:count], **named_, **extra)

        linear = name if not extra else ""
        return self.builder.pointwise(linear, run, operands)

    def _do_convolution(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = args
        if transposed or len(stride) != 2 or not isinstance(weight, Const) or x.ndim != 4:
            raise Impossible
        kernel = Const.apply(lambda w: w.permute(2, 3, 1, 0), weight)
        node = self.builder.conv(
            self.builder.channels_last(x, NCHW_TO_NHWC),
            kernel,
            stride,
            [(p, p) for p in padding],
            dilation,
            groups,
        )
        made = self.builder.back(node, NCHW_TO_NHWC)
        if isinstance(bias, Const):
            return self.builder.pointwise(
                "add", torch.add, [made, Const.apply(lambda b: b[:, None, None], bias)]
            )
        return made

    def _do_native_batch_norm(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, gamma, beta, mean, var, train, _, eps = args
        if train or mean is None:
            raise Impossible
        return self._norm(x, gamma, beta, mean, var, eps)

    _do_cudnn_batch_norm = _do_native_batch_norm

    def _do_native_batch_norm_legit_no_training(
        self, args: Any, kwargs: Any, results: Sequence[Any]
    ) -> Any:
        x, gamma, beta, mean, var, _, eps = args
        return self._norm(x, gamma, beta, mean, var, eps)

    def _norm(self, x: Ref, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> Ref:
        if 1 not in range(x.ndim):
            raise Impossible
        scale = Const.apply(lambda v: torch.rsqrt(v + eps), var)
        if gamma is not None:
            scale = Const.apply(torch.mul, scale, gamma)
        shift = Const.apply(lambda m, s: -m * s, mean, scale)
        if beta is not None:
            shift = Const.apply(torch.add, shift, beta)
        wide = (-1,) + (1,) * (x.ndim - 2)
        made: Any = x
        for name, const in (("mul", scale), ("add", shift)):
            const = Const.apply(lambda v: v.reshape(wide), const)
            made = self.builder.pointwise(name, getattr(torch, name), [made, const])
        return made

    def _do_max_pool2d_with_indices(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, window, stride, padding, dilation, ceil = _filled(args, 2, ([], [0, 0], [1, 1], False))
        window, padding, dilation = _pair(window), _pair(padding), _pair(dilation)
        stride = _pair(stride) if stride else window
        pads = []
        for axis in range(2):
            size, out = x.shape[2 + axis], results[0].shape[2 + axis]
            reach = (out - 1) * stride[axis] + dilation[axis] * (window[axis] - 1) + 1
            after = reach - size - padding[axis] if ceil else padding[axis]
            pads.append((padding[axis], max(after, 0)))
        return self.builder.max_pool(
            x, NCHW_TO_NHWC, window=window, stride=stride, pads=tuple(pads), dilation=dilation
        )

    _do_max_pool2d = _do_max_pool2d_with_indices

    def _do_avg_pool2d(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, window, stride, padding, ceil, counted, divisor = _filled(
            args, 2, ([], [0, 0], False, True, None)
        )
        window, padding = _pair(window), _pair(padding)
        stride = _pair(stride) if stride else window
        found: list[Windows] = []
        for axis in range(2):
            size, out = x.shape[2 + axis], results[0].shape[2 + axis]
            reach = (out - 1) * stride[axis] + window[axis]
            extra = max(reach - size - 2 * padding[axis], 0) if ceil else 0
            matrix = averaging(
                *(size, window[axis], stride[axis], padding[axis], padding[axis], counted, extra)
            )
            if divisor:
                matrix = (matrix != 0).double() / math.sqrt(divisor)
            found.append(windows_of(matrix[:out]))
        return self.builder.average_pool(x, NCHW_TO_NHWC, *found)

    def _do_adaptive_avg_pool2d(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, out = args[0], args[1]
        found = [windows_of(adaptive(x.shape[2 + axis], _pair(out)[axis])) for axis in range(2)]
        return self.builder.average_pool(x, NCHW_TO_NHWC, *found)

    def _do_mean(
        self, args: Any, kwargs: Any, results: Sequence[Any], scale: float | None = None
    ) -> Any:
        x, axes, keep = _filled(args, 1, (None, False))
        if axes is None:
            raise Impossible
        return self.builder.mean(x, axes, keep, scale)

    _do_sum = functools.partialmethod(_do_mean, scale=1.0)

    def _do_view(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        return self.builder.reshape(args[0], tuple(results[0].shape))

    _do_reshape = _do_unsafe_view = _do_flatten = _do_view
    _do_squeeze = _do_unsqueeze = _do_unflatten = _do_view

    def _do_permute(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        return self.builder.permute(args[0], [i % args[0].ndim for i in args[1]])

    def _do_t(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        return self.builder.permute(args[0], tuple(reversed(range(args[0].ndim))))

    def _do_transpose(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, one, two = args[:3]
        order = list(range(x.ndim))
        order[one], order[two] = order[two], order[one]
        return self.builder.permute(x, order)

    def _do_expand(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        shape = tuple(results[0].shape)
        return self.builder.expand(args[0], shape, range(len(shape) - args[0].ndim, len(shape)))

    def _do_cat(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        parts = args[0]
        if not all(isinstance(each, Ref) for each in parts):
            raise Impossible
        return self.builder.concat(parts, args[1] if len(args) > 1 else 0)

    def _do_constant_pad_nd(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, widths, fill = _filled(args, 2, (0.0,))
        pairs = [(0, 0)] * x.ndim
        for i in range(len(widths) // 2):
            pairs[x.ndim - 1 - i] = (widths[2 * i], widths[2 * i + 1])
        if any(each < 0 for pair in pairs for each in pair):
            raise Impossible
        return self.builder.pad(x, pairs, float(fill))

    def _do_slice(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, axis, start, stop, step = _filled(args, 1, (0, None, None, 1))
        start, stop, step = slice(start, stop, step).indices(x.shape[axis])
        return self.builder.cut(x, axis, start, stop, step)

    def _do_split(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, axis = args[0], args[2] if len(args) > 2 else 0
        made, start = [], 0
        for part in results:
            stop = start + part.shape[axis]
            made.append(self.builder.cut(x, axis, start, stop))
            start = stop
        return made

    _do_split_with_sizes = _do_split

    def _do_addmm(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        bias, x, matrix = args
        if kwargs or not isinstance(matrix, Const) or not isinstance(bias, Const):
            raise Impossible
        return self.builder.pointwise("add", torch.add, [self.builder.product(x, matrix), bias])

    def _do_mm(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, matrix = args
        if not isinstance(x, Ref) or not isinstance(matrix, Const):
            raise Impossible
        return self.builder.product(x, matrix)

    def _do_linear(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, weight, bias = _filled(args, 2, (None,))
        if not isinstance(x, Ref) or not isinstance(weight, Const):
            raise Impossible
        made = self.builder.product(x, Const.apply(torch.t, weight))
        return made if bias is None else self.builder.pointwise("add", torch.add, [made, bias])

    def _do_softmax(
        self, args: Any, kwargs: Any, results: Sequence[Any], name: str = "softmax"
    ) -> Any:
        x, axis = args[0], args[1] % args[0].ndim
        if x.axes[axis] != (3,):
            raise Impossible
        run = lambda v: getattr(torch, name)(v, -1)  # noqa: E731
        return Ref(self.builder.emit(name, [x.node], function=run), x.axes)

    _do_log_softmax = functools.partialmethod(_do_softmax, name="log_softmax")

    def _do_flip(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, axes = args
        if len(axes) != 1:
            raise Impossible
        return self.builder.reorder(x, axes[0], range(x.shape[axes[0]])[::-1])

    def _do_index(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, indices = args
        given = [(i, each) for i, each in enumerate(indices) if each is not None]
        if len(given) != 1 or not isinstance(given[0][1], Const) or not isinstance(x, Ref):
            raise Impossible
        axis, index = given[0]
        if index.value.ndim != 1:
            raise Impossible
        return self.builder.reorder(x, axis, index.value.tolist())

    def _do_index_select(self, args: Any, kwargs: Any, results: Sequence[Any]) -> Any:
        x, axis, index = args
        if not isinstance(index, Const):
            raise Impossible
        return self.builder.reorder(x, axis, index.value.tolist())


def same_numbers(one: Any, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of one operation differ by no more than rounding in `dtype`."""
    if one.dtype == torch.bool or not other.is_floating_point():
        return bool((one.to(other.dtype) == other).all())
    finite = torch.isfinite(other)
    size = float(other[finite].abs().max()) if bool(finite.any()) else 0.0
    unit = torch.finfo(dtype).eps
    same = torch.isclose(one.to(other.dtype), other, 1e3 * unit, 1e3 * unit * size, equal_nan=True)
    return bool(same.all())


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())


def _plain(tensor: Tensor) -> Tensor:
    value = tensor.detach().clone()
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))


def _filled(args: Any, required: int, defaults: Sequence[Any]) -> list[Any]:
    """The arguments, the last of them from `defaults` where they were left out."""
    return [*args, *defaults[max(len(args) - required, 0) :]]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [each for inner in value for each in _flat(inner)]
    return [value]


def _again(
    func: Any, args: Any, kwargs: Any, operands: Sequence[Any], result: int
) -> Callable[..., Tensor]:
    """The call as a function of its operands alone; `result` is which of its results."""
    places = {id(each): i for i, each in enumerate(operands)}

    def filled(value: Any, given: Sequence[Any]) -> Any:
        if id(value) in places:
            return given[places[id(value)]]
        if isinstance(value, Const):
            return value.value
        if isinstance(value, list):
            return [filled(each, given) for each in value]
        if isinstance(value, dict):
            return {name: filled(each, given) for name, each in value.items()}
        return value

    def run(*given: Any) -> Tensor:
        made = func(*filled(list(args), given), **filled(kwargs, given))
        return made[result] if isinstance(made, (list, tuple)) else made

    return run
