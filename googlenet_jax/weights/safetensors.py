"""The project's weight files: safetensors, with what makes the model again in the header.

A tensor's name is its path in the variables, `params/conv1/kernel`; the header's metadata holds one
JSON object, `googlenet_jax`.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError, naming, one_line
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model, model_name, model_options
from googlenet_jax.runtime.storage import write_atomically
from googlenet_jax.weights.tree import (
    COUNTERS,
    as_array,
    check_counter,
    check_entry,
    check_names,
    counter_paths,
    expected_shapes,
    flatten,
)

FORMAT_VERSION = 1
_KEY = "googlenet_jax"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
}
_FLOATS = ("float64", "float32", "float16", "bfloat16")


def save_weights(
    path: str | os.PathLike,
    model: Network,
    variables: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    initialised: Sequence[str] = (),
) -> None:
    """Writes a model and its variables to a safetensors file, whole or not at all.

    Args:
      path: where to; an existing file is replaced.
      variables: as `model.init` returns them, each float64, float32, float16 or bfloat16, which is
        kept.
      preprocessing: `Preprocessing.to_dict()` of what the model was trained with, or some of its
        fields.
      class_names: one a class, in the order of the logits.
      initialised: parts whose values are random, such as "head"; they are not trusted on reading.
    Raises:
      UserError: what `load_weights` would refuse: variables that don't fit the model, a wrong
        number of class names or some that are no strings, impossible preprocessing; and a place
        that can't be written.
    """
    arrays = {
        "/".join(map(str, parts)): _storable(path, parts, value)
        for parts, value in flatten(variables).items()
    }
    metadata = {
        "version": FORMAT_VERSION,
        "model": model_name(model),
        "options": model_options(model),
        "preprocessing": (
            dict(preprocessing) if isinstance(preprocessing, Mapping) else preprocessing
        ),
        "class_names": (
            list(class_names)
            if isinstance(class_names, Iterable) and not isinstance(class_names, str)
            else class_names
        ),
    }
    if initialised:
        metadata["initialised"] = list(initialised)
    metadata["preprocessing"] = _checked_descriptions("save_weights", model, metadata)
    _check(f"the variables for {path}", model, arrays)
    # The checks have left nothing that JSON or the format can't hold.
    _write(
        Path(path), safetensors.numpy.save(arrays, {_KEY: json.dumps(metadata, allow_nan=False)})
    )


def load_weights(path: str | os.PathLike) -> tuple[Network, dict[str, Any]]:
    """Reads what `save_weights` wrote.

    Returns:
      The model, and its variables as numpy arrays with the dtypes of the file.
    Raises:
      UserError: a file that is missing, damaged, foreign or from a newer version, whose tensors are
        not the model's, or whose class names or preprocessing it can't have.
    """
    metadata = read_metadata(path)
    with naming(str(path)):
        model = create_model(metadata["model"], **metadata["options"])
    _checked_descriptions(str(path), model, metadata)
    arrays = _read_arrays(path)
    _check(str(path), model, arrays)
    return model, traverse_util.unflatten_dict(
        {tuple(name.split("/")): array for name, array in arrays.items()}
    )


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Returns a weight file's `version`, `model`, `options`, `preprocessing` and `class_names`, the
    last two None where not given.

    No tensor is read.

    Raises:
      UserError: a file that is missing, damaged, foreign or from a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from None
    if _KEY not in header:
        raise UserError(
            f"{path}: a safetensors file, but not of googlenet_jax: its header has no {_KEY!r}; a"
            " PyTorch model's goes through from_torch"
        )
    try:
        metadata = json.loads(header[_KEY])
    except (ValueError, RecursionError):
        metadata = None
    return _checked_metadata(path, metadata)


def _checked_metadata(path: str | os.PathLike, metadata: Any) -> dict[str, Any]:
    """The metadata, if every field is of its kind: the file may come from anywhere."""
    if not isinstance(metadata, dict):
        raise UserError(
            f"{path}: the header's {_KEY!r} is not a JSON object; write the file anew with"
            " save_weights"
        )
    version = metadata.get("version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(
            f"{path}: format version must be {FORMAT_VERSION}, found {version!r}; a newer"
            " googlenet_jax may read it"
        )
    options = metadata.get("options")
    plain = isinstance(options, dict) and all(
        isinstance(value, str | int | float | bool) for value in options.values()
    )
    fields = {
        "model": (isinstance(metadata.get("model"), str), "a name"),
        "options": (plain, "an object of plain values"),
        "preprocessing": (
            isinstance(metadata.get("preprocessing"), dict | None),
            "an object or null",
        ),
        "class_names": (_are_names(metadata.get("class_names")), "a list of names or null"),
        "initialised": (_are_names(metadata.get("initialised")), "a list of names or null"),
    }
    for field, (fine, what) in fields.items():
        if not fine:
            raise UserError(
                f"{path}: the header's {field!r} must be {what}; write the file anew with"
                " save_weights"
            )
    return {field: metadata.get(field) for field in ("version", *fields)}


def _are_names(value: Any) -> bool:
    """Whether these are class names, or None. A lone surrogate is no text: it can't be written as
    UTF-8.
    """
    if value is None or not isinstance(value, list):
        return value is None
    try:
        return all(isinstance(name, str) and name.encode() is not None for name in value)
    except UnicodeEncodeError:
        return False


def _checked_descriptions(
    source: str, model: Network, metadata: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The fields of the preprocessing as JSON values, if they and the class names are possible ones
    for the model.
    """
    class_names, preprocessing = metadata["class_names"], metadata["preprocessing"]
    if not _are_names(class_names):
        raise UserError(
            f"{source}: class_names must be a list of strings, found {_shortened(class_names)}"
        )
    if class_names is not None and len(class_names) != model.num_classes:
        raise UserError(
            f"{source}: class_names must be {model.num_classes} names, one a class, found"
            f" {len(class_names)}"
        )
    if preprocessing is None:
        return None
    with naming(source):
        plain = Preprocessing.from_dict(preprocessing).to_dict()
    return {field: plain[field] for field in preprocessing}


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.deserialize(Path(path).read_bytes())
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from None
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: {name!r} has dtype {tensor['dtype']}, expected one of"
                f" {', '.join(_DTYPES)}"
            )
        arrays[name] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
    return arrays


def _storable(path: str | os.PathLike, parts: tuple[Any, ...], value: Any) -> np.ndarray:
    """An entry in C order, which the format takes for granted; a counter as int64."""
    array = as_array(f"the variables for {path}", "/".join(map(str, parts)), value)
    if parts[0] == COUNTERS and array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return np.asarray(array, order="C")  # not ascontiguousarray, which makes vectors of scalars


def _check(source: str, model: Network, arrays: Mapping[str, np.ndarray]) -> None:
    shapes = expected_shapes(model)
    counters = set(map("/".join, counter_paths(shapes)))
    weights = {name: array for name, array in arrays.items() if name not in counters}
    check_names(source, model, weights, map("/".join, shapes))
    for parts, shape in shapes.items():
        name = "/".join(parts)
        check_entry(source, model, parts, weights[name], shape)
        if weights[name].dtype.name not in _FLOATS:
            raise UserError(
                f"{source}: {name!r} has dtype {weights[name].dtype}, expected one of"
                f" {', '.join(_FLOATS)}; convert it first"
            )
    for name in counters & arrays.keys():
        check_counter(source, name, arrays[name])


def _write(path: Path, data: bytes) -> None:
    if not path.name or "\0" in str(path):
        raise UserError(f"{str(path)!r}: can't be written: expected the name of a file")
    try:
        write_atomically(path, lambda part: part.write_bytes(data))
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}") from None


def _unreadable(path: str | os.PathLike, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file")
    reason = one_line(error)
    return UserError(
        f"{path}: not a whole safetensors file ({reason}); it may be cut short, or of another kind"
    )
