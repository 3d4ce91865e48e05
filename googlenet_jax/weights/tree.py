"""What a model's variables must hold, and whether entries read from elsewhere fit."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import unfreeze

from googlenet_jax.errors import UserError, nearest, one_line
from googlenet_jax.models.network import Network, variable_shapes
from googlenet_jax.models.registry import model_name

# An entry's place in the variables, collection first: ("params", "conv1", "kernel").
Path = tuple[str, ...]

HEAD = ("params", "head", "kernel")
# A collection that holds PyTorch's counters, so that converting back loses nothing. The models
# ignore it.
COUNTERS = "num_batches_tracked"


def flatten(variables: Mapping[str, Any]) -> dict[Path, Any]:
    """Returns the variables by path; raises UserError where they are no nested dictionaries of
    arrays.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise UserError(
            "variables must be a dictionary that holds 'params' (and 'batch_stats'), as model.init"
            " returns it"
        )
    return traverse_util.flatten_dict(unfreeze(dict(variables)))


def expected_shapes(model: Network) -> dict[Path, tuple[int, ...]]:
    """Returns the shape of every parameter and batch statistic of `model`.

    With `fully_connected_head` the classifier's kernel [H·W·C, num_classes] depends on the image's
    size: here it is [C, num_classes].
    """
    fields = {field.name for field in dataclasses.fields(model)}
    off = {"fully_connected_head", "transform_input"} & fields
    without: dict[str, Any] = dict.fromkeys(off, False)
    general = model.clone(**without, num_classes=_ANY, aux_heads=True)
    try:
        found = _cached_shapes(general)
    except TypeError:  # a user's own network, with a field that has no hash
        found = _cached_shapes.__wrapped__(general)
    if not all(path[-2] == "head" for path, shape in found.items() if shape[-1:] == (_ANY,)):
        return _cached_shapes.__wrapped__(model.clone(**without))  # a classifier of another name
    return {
        path: (*shape[:-1], model.num_classes) if path[-2] == "head" else shape
        for path, shape in found.items()
        if model.aux_heads or not path[1].startswith("aux")
    }


# Classes of the network that is traced for any number of them.
_ANY = 1021


@functools.lru_cache(maxsize=64)
def _cached_shapes(model: Network) -> dict[Path, tuple[int, ...]]:
    """Tracing a network takes a third of a second, and one conversion asks several times: of
    networks that differ in their classes, auxiliary heads and the input's transform alone.
    """
    shapes = variable_shapes(model, model.min_size)
    return {
        path: leaf.shape
        for path, leaf in flatten(shapes).items()
        if path[0] in ("params", "batch_stats")
    }


def counter_paths(shapes: Iterable[Path]) -> list[Path]:
    """Returns where each batch norm's counter stands, if it is kept."""
    return [
        (COUNTERS, *path[1:-1], "count")
        for path in shapes
        if path[0] == "batch_stats" and path[-1] == "mean"
    ]


def shape_fits(
    model: Network, path: Path, found: tuple[int, ...], expected: tuple[int, ...]
) -> bool:
    """Whether an entry has its expected shape; a fully connected head's kernel may stand for any
    square map.
    """
    if path == HEAD and getattr(model, "fully_connected_head", False) and len(found) == 2:
        positions, rest = divmod(found[0], expected[0])
        return (
            found[1] == expected[1]
            and rest == 0
            and positions > 0
            and math.isqrt(positions) ** 2 == positions
        )
    return found == expected


def channels_of(shapes: Mapping[Path, tuple[int, ...]], path: Path) -> int:
    """Channels of the map that a fully connected layer reads flattened."""
    return shapes[(*path[:-2], "conv", "kernel")][-1] if path[-2] == "fc" else shapes[path][0]


def outputs_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that PyTorch and Caffe give an entry: [out, in, h, w], [out, in]."""
    return tuple(shape[axis] for axis in {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), (0,)))


def relaid(array: np.ndarray, channels: int, *, to_ours: bool) -> np.ndarray:
    """A copy of an entry between PyTorch's and Caffe's layout and ours: kernels [out, in, h, w] and
    [h, w, in, out], matrices [out, in] and [in, out].

    Args:
      channels: see `channels_of`: they flatten a map as [C, H, W], these networks as [H, W, C].
    """
    axes = (2, 3, 1, 0) if to_ours else (3, 2, 0, 1)
    if array.ndim == 4:
        array = array.transpose(axes)
    elif array.ndim == 2:
        side = math.isqrt(array.shape[1 if to_ours else 0] // channels)
        spread = (-1, channels, side, side) if to_ours else (side, side, channels, -1)
        array = array.reshape(spread).transpose(axes).reshape(array.shape[::-1])
    return np.array(array, order="C")


def check_names(source: str, model: Network, found: Iterable[Any], expected: Iterable[str]) -> None:
    """Raises UserError that names the missing and the extra entries of `source`, each with the
    nearest of the other side.
    """
    found, expected = set(map(str, found)), set(expected)  # a foreign file's keys may be anything
    missing, extra = sorted(expected - found), sorted(found - expected)
    complaints = [
        f"{what} {len(names)} entr{'y' if len(names) == 1 else 'ies'}:"
        f" {', '.join(repr(n) + nearest(n, others) for n in names[:3])}"
        + (", …" if len(names) > 3 else "")
        for what, names, others in (("lacks", missing, extra), ("has unexpected", extra, expected))
        if names
    ]
    if complaints:
        hint = ""
        if missing and not extra and all("aux" in name.lower() for name in missing):
            hint = (
                "; these are the auxiliary heads': make the model with aux_heads=False to go"
                " without"
            )
        raise UserError(
            f"{source} does not fit {model_name(model)}: it {' and '.join(complaints)}{hint}"
        )


def check_entry(
    source: str, model: Network, path: Path, array: np.ndarray, expected: tuple[int, ...]
) -> None:
    """`check_array` of an entry under its own name, in its own layout."""
    fits = shape_fits(model, path, array.shape, expected)
    check_array(source, model, "/".join(path), array, fits, expected)


def check_array(
    source: str, model: Network, name: str, array: np.ndarray, fits: bool, expected: tuple[int, ...]
) -> None:
    """Raises UserError that names an entry of the wrong shape or without floats."""
    if not fits:
        raise UserError(
            f"{source}: {name!r} must have shape {list(expected)} for {model_name(model)}, found"
            f" {list(array.shape)}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{source}: {name!r} must hold floats, found {array.dtype}")


def check_counter(source: str, name: str, array: np.ndarray) -> None:
    """Raises UserError where an entry is no batch norm's counter, one whole number."""
    if array.shape != () or array.dtype.kind not in "iu":
        raise UserError(
            f"{source}: {name!r} must be one whole number, found {array.dtype} {list(array.shape)};"
            " leave it out, or give a count"
        )


def as_array(source: str, name: str, value: Any) -> np.ndarray:
    """Returns an entry as a numpy array; raises UserError that names it where it is none (a ragged
    list, a deleted jax.Array).
    """
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(
            f"{source}: {name!r} must be an array of floats, found {type(value).__name__}"
            f" ({reason})"
        ) from None
