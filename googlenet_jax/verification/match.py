"""Which of their layers is which of ours: by names, then shapes, then position, then numbers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.verification.ours import Call
from googlenet_jax.verification.theirs import TorchUnit
from googlenet_jax.weights.pytorch import torch_names

Variables = Mapping[str, Any]
SWAPS_TRIED = 80  # of equal-shaped siblings


@dataclasses.dataclass(frozen=True)
class Match:
    """What belongs together.

    Attributes:
      pairs: our layer → their layer's weight. how: our layer → "name", "shape", "position" or
        "numbers". ours, theirs: what is left over on either side.
    """

    pairs: dict[str, str]
    how: dict[str, str]
    ours: list[str]
    theirs: list[str]


def kernels(variables: Variables, calls: Mapping[str, Call]) -> dict[str, np.ndarray]:
    """Our kernels by layer, in the network's order; a separable layer's depthwise one stands
    before it under "…/depthwise".
    """
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    found = {}
    for layer in calls:
        if f"{layer}/depthwise_kernel" in flat:
            found[f"{layer}/depthwise"] = flat[f"{layer}/depthwise_kernel"]
        found[layer] = flat[f"{layer}/kernel"]
    return found


def fits(kernel: np.ndarray, unit: TorchUnit) -> bool:
    """Whether their weight can hold our kernel: [out, in, h, w] or [out, in], also one for the
    other where the numbers of inputs agree.
    """
    ours, theirs = kernel.shape, unit.shape
    if len(ours) == 4 and len(theirs) == 4:
        return (ours[3], ours[2], *ours[:2]) == theirs
    return ours[-1] == theirs[0] and np.prod(ours[:-1]) == np.prod(theirs[1:])


def match_layers(
    model: Network, kernel_of: Mapping[str, np.ndarray], units: Mapping[str, TorchUnit]
) -> Match:
    """Pairs our layers with their units by names, then shapes, then position.

    Args:
      kernel_of: our layer → kernel, in the network's order.
      units: their weight → unit, in the order in which they ran.
    """
    pairs: dict[str, str] = {}
    how: dict[str, str] = {}

    def pair(layer: str, weight: str, by: str) -> None:
        pairs[layer], how[layer] = weight, by

    names = _names(model)
    for layer, kernel in kernel_of.items():
        entry = f"{layer}_kernel" if layer.endswith("/depthwise") else f"{layer}/kernel"
        named = names.get(entry, "")
        if named in units and fits(kernel, units[named]):
            pair(layer, named, "name")
    left = [weight for weight in units if weight not in pairs.values()]
    for layer, kernel in kernel_of.items():
        if layer in pairs:
            continue
        mine = [k for k in kernel_of if k not in pairs and kernel_of[k].shape == kernel.shape]
        found = [weight for weight in left if fits(kernel, units[weight])]
        if len(mine) == 1 and len(found) == 1:
            pair(layer, found[0], "shape")
            left.remove(found[0])
    for layer, kernel in kernel_of.items():
        if layer not in pairs:
            weight = next((each for each in left if fits(kernel, units[each])), None)
            if weight is not None:
                pair(layer, weight, "position")
                left.remove(weight)
    ordered = {layer: pairs[layer] for layer in kernel_of if layer in pairs}
    return Match(ordered, how, [k for k in kernel_of if k not in pairs], left)


def _names(model: Network) -> dict[str, str]:
    """Our entry → PyTorch's name, where the model's class states them."""
    try:
        return {"/".join(path[1:]): name for path, name in torch_names(model).items()}
    except UserError:  # a network of the user's own without such names
        return {}


def by_numbers(
    match: Match, kernel_of: Mapping[str, np.ndarray], score: Callable[[Match], tuple[int, float]]
) -> Match:
    """Swaps equal-shaped siblings where the two sides then agree further down, and only there.

    Args:
      score: (place in `kernel_of` of the layer where the two part, minus the difference there).
    """
    given, tried = match, 0
    first = best = score(match)
    while best[0] < len(kernel_of):
        for one, two in _siblings(match, kernel_of, best[0]):
            pairs = match.pairs | {one: match.pairs[two], two: match.pairs[one]}
            how = match.how | {one: "numbers", two: "numbers"}
            other = dataclasses.replace(match, pairs=pairs, how=how)
            reached, tried = score(other), tried + 1
            # Where several siblings feed one layer, the right swaps bring it nearer one by one.
            if reached[0] > best[0] or (reached[0] == best[0] and reached[1] > 0.9 * best[1]):
                match, best = other, reached
                break
            if tried >= SWAPS_TRIED:
                break
        else:
            break
        if tried >= SWAPS_TRIED:
            break
    return match if best[0] > first[0] else given


def _siblings(match: Match, kernel_of: Mapping[str, np.ndarray], at: int) -> list[tuple[str, str]]:
    """Pairs of equal shape that names have not settled, those nearest to place `at` first."""
    free = [k for k in kernel_of if match.how.get(k) in ("position", "numbers")]
    place = {layer: i for i, layer in enumerate(kernel_of)}
    pairs = [
        (one, two)
        for i, one in enumerate(free)
        for two in free[i + 1 :]
        if kernel_of[one].shape == kernel_of[two].shape and place[one] <= at
    ]
    return sorted(pairs, key=lambda pair: sum(abs(place[each] - at) for each in pair))


# ------------------------------------------------------------------------------- weights across


def their_values(
    variables: Variables, match: Match, units: Mapping[str, TorchUnit]
) -> dict[str, np.ndarray]:
    """Our variables under their names, in their layouts. Where they have a bias or scale that ours
    lack, it is 0 or 1.
    """
    flat = _flat(variables)
    found: dict[str, np.ndarray] = {}
    for layer, weight in match.pairs.items():
        unit = units[weight]
        entry = f"{layer}_kernel" if layer.endswith("/depthwise") else f"{layer}/kernel"
        found[weight] = _to_theirs(flat[entry], unit)
        for part, name in unit.parts.items():
            value = flat.get(f"{layer}/{part}")
            if value is None:
                value = np.full(unit.shape[0], float(part in ("bn/scale", "bn/var")))
            found[name] = value
    return found


def our_entries(
    variables: Variables, match: Match, units: Mapping[str, TorchUnit], given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Their entries `given` (or gradients, momenta by the same names) under our names and in our
    layouts, such as "conv1/kernel"; what is not matched or not given is absent.
    """
    shapes = {name: value.shape for name, value in _flat(variables).items()}
    found = {}
    for layer, weight in match.pairs.items():
        unit = units[weight]
        entry = f"{layer}_kernel" if layer.endswith("/depthwise") else f"{layer}/kernel"
        if weight in given:
            found[entry] = _to_ours(np.asarray(given[weight]), unit, shapes[entry])
        for part, name in unit.parts.items():
            if f"{layer}/{part}" in shapes and name in given:
                found[f"{layer}/{part}"] = np.asarray(given[name])
    return found


def filled(variables: Variables, entries: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables with `entries` in the place of their own; see `our_entries`."""
    result = {}
    for collection, tree in variables.items():
        flat = traverse_util.flatten_dict(tree, sep="/")
        mixed = {name: entries.get(name, value) for name, value in flat.items()}
        result[collection] = traverse_util.unflatten_dict(mixed, sep="/")
    return result


def _flat(variables: Variables) -> dict[str, np.ndarray]:
    trees = (variables.get(name, {}) for name in ("params", "batch_stats"))
    return {
        k: np.asarray(v) for t in trees for k, v in traverse_util.flatten_dict(t, sep="/").items()
    }


def _map_of(unit: TorchUnit, inputs: int, channels_first: bool) -> tuple[int, int, int]:
    """(height, width, channels) of the map whose flattening a linear layer reads."""
    shape = unit.flattened
    if shape is None or len(shape) != 4 or np.prod(shape[1:]) != inputs:
        return 1, 1, inputs
    return (shape[2], shape[3], shape[1]) if channels_first else (shape[1], shape[2], shape[3])


def channels_first(unit: TorchUnit) -> bool:
    """Whether the flattened map is [N, C, H, W]: a square one's two equal sides tell."""
    shape = unit.flattened or ()
    return len(shape) != 4 or shape[2] == shape[3] or shape[1] != shape[2]


def _to_theirs(kernel: np.ndarray, unit: TorchUnit) -> np.ndarray:
    if len(unit.shape) == 4:
        o, i, h, w = unit.shape
        return kernel.reshape(h, w, i, o).transpose(3, 2, 0, 1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    h, w, c = _map_of(unit, len(flat), channels_first(unit))
    order = (2, 0, 1) if channels_first(unit) else (0, 1, 2)
    return flat.reshape(h, w, c, -1).transpose(*order, 3).reshape(len(flat), -1).T


def _to_ours(weight: np.ndarray, unit: TorchUnit, shape: tuple[int, ...]) -> np.ndarray:
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0).reshape(shape)
    h, w, c = _map_of(unit, weight.shape[1], channels_first(unit))
    if channels_first(unit):
        return weight.T.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(shape)
    return weight.T.reshape(shape)


def in_our_layout(value: np.ndarray, unit: TorchUnit, ours: np.ndarray) -> np.ndarray:
    """Their activation as ours is laid out; as it is where no layout gives our shape.

    A map is [N, C, H, W] there, or [N, H, W, C] in a network written so; where both would do, the
    nearer to ours.
    """
    candidates = [value]
    if value.ndim == 4:
        candidates = [value.transpose(0, 2, 3, 1), value]
    if value.ndim == 2 and unit.flattened is not None and channels_first(unit):
        h, w, c = _map_of(unit, value.shape[1], True)
        if value.shape == (len(value), h * w * c):
            moved = value.reshape(-1, c, h, w).transpose(0, 2, 3, 1)
            candidates = [moved.reshape(len(value), -1), value]
    if ours.ndim == 2:
        candidates = [each.reshape(len(each), -1) for each in candidates]
    if ours.ndim == 4 and value.ndim == 2:
        candidates = [each[:, None, None] for each in candidates]
    if value.ndim == 2 and value.size == ours.size and value.shape[-1] == ours.shape[-1]:
        candidates.append(value.reshape(ours.shape))  # [N · H · W, C]
    fitting = [each for each in candidates if each.shape == ours.shape]
    if not fitting:
        return candidates[0]
    return min(fitting, key=lambda each: float(np.abs(each - ours).sum()))
