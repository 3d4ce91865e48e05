"""Why two networks part: each suspected fault is applied to our own side, and the difference must
vanish there. What no known fault brings about stays unexplained.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.errors import FlaxError

from googlenet_jax.models.layers import AvgPool, ConvUnit, Dense, LocalResponseNorm, MaxPool, pads
from googlenet_jax.verification.compare import Comparison, Row
from googlenet_jax.verification.ours import Call, Fault, Trace

# What published implementations and frameworks use.
EPSILONS = (1e-5, 1e-3, 1e-2, 1e-4, 1e-6, 2e-5, 1e-8, 0.0)
MOST = 8  # faults that are looked for, one after the other

Compare = Callable[[Sequence[Fault], str], Comparison]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Faults that were found, in the order in which they were, and where the two part after them.

    Attributes:
      faults: each was applied to our side and made the first difference vanish.
      left: the first row where the two still part, which no known fault explains; None where with
        the faults applied the two are equal to rounding.
      tried: how many suspected faults were applied.
    """

    faults: list[Fault]
    left: Row | None
    tried: int


def explain(
    compare: Compare, ours: Callable[[Sequence[Fault]], Trace], epsilons: Mapping[str, float]
) -> Explanation:
    """Finds the faults that bring the two sides together.

    Args:
      compare: (faults, layer to stop after or "") → the comparison with these faults on our side.
      ours: faults → our run with them.
      epsilons: our layer → the epsilon that their batch norm was called with.
    """
    found: list[Fault] = []
    tried = 0
    while True:
        now = compare(found, "")
        first = now.first
        if first is None or len(found) == MOST:
            return Explanation(found, first, tried)
        best, reached = None, now.reached()
        for fault in suspects(first, ours(found), epsilons):
            tried += 1
            further = _reached(compare, [*found, fault], first)
            if further > reached:
                best, reached = fault, further
        if best is None:
            return Explanation(found, first, tried)
        found.append(best)


def _reached(compare: Compare, faults: Sequence[Fault], first: Row) -> tuple[int, int]:
    """Where the two part with the faults applied; before everything where nothing runs."""
    try:
        if first.unit:  # most suspects do not help, which the run up to there says
            near = compare(faults, first.unit).reached()
            if near <= first.place:
                return near
        return compare(faults, "").reached()
    except (TypeError, ValueError, FlaxError):  # shapes that do not go together
        return (-1, 0)


def suspects(first: Row, ours: Trace, epsilons: Mapping[str, float]) -> Iterator[Fault]:
    """The faults that could make the two part at `first`; those of one layer before those of all.

    Args:
      ours: our run, faults found so far applied.
    """
    if not first.unit:
        yield from _swapped_heads()
        return
    units = ours.units()
    call = units[first.unit]
    near = _before(ours, call)
    one: list[Fault] = []
    all_: list[Fault] = []
    if first.layer == first.unit:
        if isinstance(call.module, ConvUnit):
            one += [*_padding(call, first), *_relu(call), *_epsilon(call, epsilons)]
            all_ += [*_relu_everywhere(), *_padding_everywhere(ConvUnit)]
            all_ += _epsilon_everywhere(call, epsilons)
        one += _transposed(call)
        all_ += _transposed_everywhere()
        if call.source == "images":
            one += _channels(call)
    else:
        if first.layer == "images":
            one += _channels(call)
        for pool in near:
            one += _padding(pool, first) if isinstance(pool.module, MaxPool) else _counting(pool)
        one += _inside(first)
        one += _unrectified(first, units)
        all_ += [*_padding_everywhere(MaxPool), *_counting_everywhere()]
    yield from one
    yield from all_
    if first.unit.startswith("aux"):
        yield from _swapped_heads()


def _before(ours: Trace, call: Call) -> list[Call]:
    """The layers without weights that ran between `call` and the last with weights before it."""
    found: list[Call] = []
    for each in ours.calls:
        if each.layer == call.layer:
            return found
        if isinstance(each.module, MaxPool | AvgPool | LocalResponseNorm):
            found.append(each)
        else:
            found = []
    return found


# ------------------------------------------------------------------------------------- one by one


def _entry(tree: Any, layer: str, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """The variables with the parameters of `layer` changed; of every layer where it is ""."""

    def walk(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, Mapping):
            return node
        inner = {name: walk(value, (*path, name)) for name, value in node.items()}
        return change(inner) if "kernel" in inner and layer in ("", "/".join(path)) else inner

    return {**tree, "params": walk(tree["params"], ())}


def _turned(kernel: np.ndarray) -> np.ndarray:
    """[h, w, in, out] → [w, h, in, out] where h = w > 1; a matrix with its axes exchanged."""
    if kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1] > 1:
        return kernel.swapaxes(0, 1)
    if kernel.shape[-1] == kernel.shape[-2]:
        return kernel.swapaxes(-1, -2)
    return kernel


def _turn(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {n: _turned(np.asarray(v)) if "kernel" in n else v for n, v in parts.items()}


def _exchange(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of a square kernel exchanged."""
    kernel = np.asarray(parts["kernel"])
    square = kernel.shape[-1] == kernel.shape[-2]
    return {**parts, "kernel": kernel.swapaxes(-1, -2) if square else kernel}


def _transposed(call: Call) -> Iterator[Fault]:
    for change, detail in ((_turn, "height and width"), (_exchange, "inputs and outputs")):
        variables = lambda tree, change=change: _entry(tree, call.layer, change)  # noqa: E731
        yield Fault("transposed kernel", call.layer, detail, variables=variables)


def _transposed_everywhere() -> Iterator[Fault]:
    for change, detail in ((_turn, "height and width"), (_exchange, "inputs and outputs")):
        variables = lambda tree, change=change: _entry(tree, "", change)  # noqa: E731
        yield Fault("transposed kernel", "", detail, variables=variables)


def _channels(call: Call) -> Iterator[Fault]:
    def turned(parts: Mapping[str, Any]) -> dict[str, Any]:
        name = "depthwise_kernel" if "depthwise_kernel" in parts else "kernel"
        kernel = np.asarray(parts[name])
        if name == "kernel":
            return {**parts, name: kernel[:, :, ::-1]}
        each = kernel.reshape(*kernel.shape[:3], 3, -1)
        return {**parts, name: each[:, :, :, ::-1].reshape(kernel.shape)}

    detail = "blue, green, red"
    yield Fault("channel order", "images", detail, images=lambda images: images[..., ::-1])
    variables = lambda tree: _entry(tree, call.layer, turned)  # noqa: E731
    yield Fault("channel order", call.layer, detail, variables=variables)


def _padding(call: Call, first: Row) -> Iterator[Fault]:
    """Every other way to pad that gives their output's size, where that is known."""
    module: Any = call.module
    kernel = module.kernel if isinstance(module.kernel, tuple) else (module.kernel, module.kernel)
    sizes = call.input.shape[1:3]
    rule, stride = module.padding, module.stride
    now = tuple(pads(size, k, stride, rule) for size, k in zip(sizes, kernel, strict=True))
    wanted = tuple(first.theirs[1:3]) if first.layer == call.layer else None
    seen = {_effect(sizes, kernel, stride, now)}
    for before in range(max(kernel)):
        for after in range(max(kernel)):
            given = tuple((before, after) if k > 1 else (0, 0) for k in kernel)
            effect = _effect(sizes, kernel, stride, given)
            if effect in seen or wanted not in (None, tuple(out for _, out in effect)):
                continue
            seen.add(effect)
            side = any(b != n for (b, _), (n, _) in zip(given, now, strict=True))
            floor = isinstance(module, MaxPool) and not side
            name = "ceil against floor" if floor else "padding side"
            detail = f"{before} before, {after} after in place of {now[0][0]}, {now[0][1]}"
            yield Fault(name, call.layer, detail, pads=(given[0], given[1]))


def _effect(
    sizes: Sequence[int], kernel: Sequence[int], stride: int, padding: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """(where the first window begins, how many there are) of each axis."""
    return tuple(
        (before, (size + before + after - window) // stride + 1)
        for size, window, (before, after) in zip(sizes, kernel, padding, strict=True)
    )


def _padding_everywhere(kind: type[nn.Module]) -> Iterator[Fault]:
    """Another rule of padding in every convolution, or every max pool."""
    rules = ("half", "same", 0) if kind is ConvUnit else ("ceil", "same", 0, 1)
    for rule in rules:

        def fields(layer: str, module: Any, rule: Any = rule) -> dict[str, Any]:
            if isinstance(module, kind):
                kernel = module.kernel
                return {"padding": rule} if kernel not in (1, (1, 1)) else {}
            if kind is MaxPool and hasattr(module, "layers"):
                style = dataclasses.replace(module.layers.style, pool=rule)
                return {"layers": dataclasses.replace(module.layers, style=style)}
            return {}

        name = (
            "ceil against floor" if rule in ("ceil", 0, 1) and kind is MaxPool else "padding side"
        )
        what = "convolution" if kind is ConvUnit else "max pool"
        yield Fault(name, "", f"{rule!r} in every {what}", fields=fields)


def _relu(call: Call) -> Iterator[Fault]:
    if call.module.relu:  # type: ignore[attr-defined]
        fields = lambda layer, module: {"relu": False} if layer == call.layer else {}  # noqa: E731
        yield Fault("missing ReLU", call.layer, fields=fields)


def _relu_everywhere() -> Iterator[Fault]:
    fields = lambda layer, module: {"relu": False} if isinstance(module, ConvUnit) else {}  # noqa: E731
    yield Fault("missing ReLU", "", fields=fields)


def _unrectified(first: Row, units: Mapping[str, Call]) -> Iterator[Fault]:
    """A fully connected layer whose rectifier stands between it and the one that reads it."""
    before = [name for name, call in units.items() if isinstance(call.module, Dense)]
    if first.unit in before and first.layer == f"{first.unit} input":
        place = before.index(first.unit)
        if place and before[place - 1].split("/")[0] == first.unit.split("/")[0]:
            source = before[place - 1]
            yield Fault("missing ReLU", source, reads={first.unit: source})


def _norms(layer: str, **changes: Any) -> Callable[[str, nn.Module], dict[str, Any]]:
    """Fields of the batch norm of `layer`, or of all where it is ""."""

    def fields(at: str, module: Any) -> dict[str, Any]:
        if not isinstance(module, ConvUnit) or module.norm is None or layer not in ("", at):
            return {}
        return {"norm": dataclasses.replace(module.norm, **changes)}

    return fields


def _epsilon_values(call: Call, epsilons: Mapping[str, float]) -> list[float]:
    norm = call.module.norm  # type: ignore[attr-defined]
    if norm is None:
        return []
    given = [epsilons[call.layer]] if call.layer in epsilons else []
    return [value for value in dict.fromkeys([*given, *EPSILONS]) if value != norm.epsilon]


def _epsilon(call: Call, epsilons: Mapping[str, float]) -> Iterator[Fault]:
    for value in _epsilon_values(call, epsilons):
        fields = _norms(call.layer, epsilon=value)
        yield Fault("BN epsilon", call.layer, f"{value:g}", fields=fields)


def _epsilon_everywhere(call: Call, epsilons: Mapping[str, float]) -> Iterator[Fault]:
    for value in _epsilon_values(call, epsilons):
        yield Fault("BN epsilon", "", f"{value:g}", fields=_norms("", epsilon=value))


def _counting(call: Call) -> Iterator[Fault]:
    if isinstance(call.module, AvgPool):
        value = not call.module.count_padding
        detail = "counted" if value else "not counted"
        fields = lambda layer, module: {"count_padding": value} if layer == call.layer else {}  # noqa: E731
        yield Fault("pooling that counts padding", call.layer, detail, fields=fields)


def _inside(first: Row) -> Iterator[Fault]:
    """Pools that are lines of a module and no layers of their own: its style says how they pad."""
    parts = first.unit.split("/")
    modules = ["/".join(parts[:i]) for i in range(1, len(parts))]
    modules += [first.layer] if first.layer not in modules else []
    for module in modules:
        for name, change in _STYLES:
            for detail, values in change:
                yield Fault(name, module, detail, fields=_styled(module, values))


_STYLES: tuple[tuple[str, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    (
        "pooling that counts padding",
        (("counted", {"count_padding": True}), ("not counted", {"count_padding": False})),
    ),
    (
        "ceil against floor",
        (("ceil", {"pool": "ceil"}), ("floor", {"pool": 0}), ("floor, padded by 1", {"pool": 1})),
    ),
    ("padding side", (("SAME", {"pool": "same"}),)),
)


def _styled(at: str, values: Mapping[str, Any]) -> Callable[[str, nn.Module], dict[str, Any]]:
    """The style of module `at`, or of all where it is "", with other values."""

    def fields(layer: str, module: Any) -> dict[str, Any]:
        layers = getattr(module, "layers", None)
        if layers is None or at not in ("", layer):
            return {}
        known = {name: value for name, value in values.items() if hasattr(layers.style, name)}
        style = dataclasses.replace(layers.style, **known)
        return {"layers": dataclasses.replace(layers, style=style)}

    return fields


def _counting_everywhere() -> Iterator[Fault]:
    for value in (True, False):
        styled = _styled("", {"count_padding": value})

        def fields(layer: str, module: Any, value: bool = value, styled: Any = styled) -> Any:
            if isinstance(module, AvgPool):
                return {"count_padding": value}
            return styled(layer, module)

        detail = "counted" if value else "not counted"
        yield Fault("pooling that counts padding", "", detail, fields=fields)


def _swapped_heads() -> Iterator[Fault]:
    def outputs(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {"aux1": "aux2", "aux2": "aux1"}
        return {name: found.get(names.get(name, name), value) for name, value in found.items()}

    def variables(tree: Any) -> Any:
        result = {}
        for name, collection in tree.items():
            heads = [collection.get(head) for head in ("aux1", "aux2")]
            shapes = [jax.tree.map(np.shape, head) for head in heads]
            swapped = dict(zip(("aux1", "aux2"), reversed(heads), strict=True))
            fit = None not in heads and shapes[0] == shapes[1]
            result[name] = {**collection, **swapped} if fit else collection
        return result

    name, where = "swapped aux heads", "aux1, aux2"
    yield Fault(name, where, "their outputs", outputs=outputs)
    yield Fault(name, where, "their weights", variables=variables)
    yield Fault(name, where, "weights and outputs", variables=variables, outputs=outputs)


def biased_variance(layers: Sequence[str], unbiased: bool) -> Iterator[list[Fault]]:
    """Running variances that follow the batch's other variance: in every layer, then in `layers`
    alone. A single one is not asked whether it stands for all.
    """
    detail = "biased" if unbiased else "unbiased"
    for where in ([""], layers) if len(layers) > 1 else (layers,):
        yield [
            Fault(
                "biased running variance",
                layer,
                detail,
                fields=_norms(layer, unbiased=not unbiased),
            )
            for layer in where
        ]
