"""PyTorch's state dicts ↔ variables, and the files that hold them.

Each network's class states the names: torchvision's for the GoogLeNets, such as
`conv1.conv.weight`, `inception3a.branch2.0.bn.bias`, `aux1.fc1.weight` and `fc.weight`. PyTorch
itself is imported to write a .pth file alone.
"""

import io
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import traverse_util

from googlenet_jax.data.imagenet import class_names
from googlenet_jax.errors import UserError, naming, one_line
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model, model_name, option_defaults
from googlenet_jax.weights.folded import note, unfold
from googlenet_jax.weights.heads import new_head, new_head_note, settled_classifier
from googlenet_jax.weights.trained_model import TrainedModel
from googlenet_jax.weights.tree import (
    COUNTERS,
    HEAD,
    Path,
    as_array,
    channels_of,
    check_array,
    check_counter,
    check_entry,
    check_names,
    counter_paths,
    expected_shapes,
    flatten,
    outputs_first,
    relaid,
    shape_fits,
)

_LOG = logging.getLogger(__name__)

_DENSE_PARTS = {"kernel": ".weight", "bias": ".bias"}


def torch_names(model: Network) -> dict[Path, str]:
    """Returns the state dict's name for every entry of the variables, counters among them, in the
    state dict's own order.

    The model's class states what PyTorch calls its layers.
    """
    shapes = expected_shapes(model)
    present = {*shapes, *counter_paths(shapes)}
    names = {}
    for layer, theirs in model.torch_names.items():
        inner = tuple(layer.split("/"))
        dense = len(shapes.get(("params", *inner, "kernel"), ())) == 2
        for part, ending in (_DENSE_PARTS if dense else model.torch_unit).items():
            for collection in ("params", "batch_stats", COUNTERS):
                path = (collection, *inner, *part.split("/"))
                if path in present:
                    names[path] = theirs + ending
    if missing := present - names.keys():
        layer = "/".join(sorted(missing)[0])
        raise UserError(
            f"{model_name(model)}: its class names no PyTorch counterpart of {layer} in torch_names"
        )
    return names


def from_torch(model: Network, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a state dict into `model`'s variables.

    Args:
      model: what the weights are for; the auxiliary heads' entries are dropped, with a warning in
        the log, where it has none.
      state_dict: name → dense tensor or numpy array, of any float dtypes; batch norm's
        `num_batches_tracked` may be absent.
    Returns:
      `{"params", "batch_stats"}` of numpy arrays with the state dict's dtypes, and the counters,
      where given, under "num_batches_tracked".
    Raises:
      UserError: names a missing, unexpected or misshapen entry and the nearest expected one, or a
        tensor without plain values (meta, sparse, quantised).
    """
    if not isinstance(state_dict, Mapping):
        raise UserError(
            "from_torch: the state dict must map names to tensors, found"
            f" {type(state_dict).__name__}: pass module.state_dict()"
        )
    shapes = expected_shapes(model)
    counters = {name: path for path, name in torch_names(model).items() if path[0] == COUNTERS}
    names = {path: name for path, name in torch_names(model).items() if path[0] != COUNTERS}
    given = _without_aux(model, state_dict)
    check_names("the state dict", model, set(given) - set(counters), names.values())
    variables = {
        path: _convert(model, shapes, path, name, given[name]) for path, name in names.items()
    }
    for name in given.keys() & counters.keys():
        counter = _numpy(name, given[name])
        floats = counter.shape == () and jnp.issubdtype(counter.dtype, jnp.floating)
        if floats and counter == np.rint(counter):  # all of the state dict was cast
            counter = counter.astype(np.int64)
        check_counter("the state dict", name, counter)
        variables[counters[name]] = counter.astype(np.int64)
    return traverse_util.unflatten_dict(variables)


def to_torch(model: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turns `model`'s variables into a state dict of numpy arrays; with each through
    `torch.from_numpy` it loads with `strict=True`.

    The entries stand in the order of the PyTorch module's own state dict. float64, float32 and
    float16 stay; what `torch.from_numpy` does not take (bfloat16, float8) comes as float32, which
    holds it exactly. Counters (`num_batches_tracked`) that `from_torch` did not find are 0.

    Raises:
      UserError: names a missing, unexpected or misshapen entry, or one of a dtype that PyTorch
        lacks.
    """
    shapes = expected_shapes(model)
    found = flatten(variables)
    check_names(
        "variables",
        model,
        ["/".join(map(str, path)) for path in found if path[0] != COUNTERS],
        map("/".join, shapes),
    )
    state_dict = {}
    for path, name in torch_names(model).items():
        entry = "/".join(path)
        if path[0] == COUNTERS:
            counter = as_array("variables", entry, found.get(path, 0))
            check_counter("variables", entry, counter)
            state_dict[name] = counter.astype(np.int64)
            continue
        array = as_array("variables", entry, found[path])
        check_entry("variables", model, path, array, shapes[path])
        array = _torch_dtype(entry, array)
        state_dict[name] = relaid(array, channels_of(shapes, path), to_ours=False)
    return state_dict


def _without_aux(model: Network, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    if model.aux_heads:
        return dict(state_dict)
    heads = tuple(
        {
            theirs.split(".")[0] + "."
            for layer, theirs in model.torch_names.items()
            if layer.startswith("aux")
        }
    )
    kept = {name: value for name, value in state_dict.items() if not str(name).startswith(heads)}
    if dropped := len(state_dict) - len(kept):
        _LOG.warning(
            "from_torch: %d entries of auxiliary heads dropped, since %s has aux_heads=False",
            dropped,
            model_name(model),
        )
    return kept


def _numpy(name: str, value: Any) -> np.ndarray:
    """A tensor's or array's values, dtype kept."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise UserError(
            f"from_torch: {name!r} must be a tensor or an array, found {type(value).__name__}"
        )
    if not hasattr(value, "detach"):
        return as_array("the state dict", name, value)
    dtype = str(value.dtype).removeprefix("torch.")
    kinds = {"is_quantized": "quantised", "is_meta": "on the meta device", "is_nested": "nested"}
    found = next((what for kind, what in kinds.items() if getattr(value, kind, False)), None)
    if found is None and str(value.layout) != "torch.strided":
        found = str(value.layout).removeprefix("torch.")
    if found is not None:
        raise UserError(
            f"from_torch: {name!r} must be a dense tensor with values, found one that is {found}; "
            "load the weights onto the CPU and use dequantize() or to_dense() first"
        )
    try:
        # A negative or conjugate bit stands for values that are not in memory yet.
        value = value.detach().cpu().resolve_conj().resolve_neg()
        # numpy has no bfloat16 or float8 of its own, and PyTorch converts to none: float32 holds
        # both exactly.
        return (
            value.float().numpy().astype(getattr(ml_dtypes, dtype))
            if hasattr(ml_dtypes, dtype)
            else value.numpy()
        )
    except (TypeError, RuntimeError, NotImplementedError) as error:
        reason = one_line(error, 100)
        raise UserError(
            f"from_torch: {name!r} of dtype {dtype} can't be read ({reason}); convert it with"
            " .float() first"
        ) from None


def _torch_dtype(name: str, array: np.ndarray) -> np.ndarray:
    """The values in a dtype that `torch.from_numpy` takes, exactly."""
    if array.dtype.name in ("float64", "float32", "float16"):
        return array.astype(array.dtype.newbyteorder("="))
    if not np.can_cast(array.dtype, np.float32):
        raise UserError(
            f"variables: {name!r} has dtype {array.dtype}, which PyTorch lacks; convert it to"
            " float64 first"
        )
    return array.astype(np.float32)


def _convert(
    model: Network, shapes: Mapping[Path, tuple[int, ...]], path: Path, name: str, value: Any
) -> np.ndarray:
    array = _numpy(name, value)
    expected = outputs_first(shapes[path])
    ours = array.shape[::-1] if array.ndim == 2 else array.shape
    fits = shape_fits(model, path, ours, shapes[path]) if path == HEAD else array.shape == expected
    check_array("the state dict", model, name, array, fits, expected)
    return relaid(array, channels_of(shapes, path), to_ours=True)


# ---------------------------------------------------------------------------------------- files


def from_tensors(
    path: str | os.PathLike[str],
    name: str,
    options: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> TrainedModel:
    """Turns a public file's state dict into a trained model.

    The file may lack the auxiliary heads or the classifier, have a classifier of other names, or
    batch norms folded into their convolutions.

    Args:
      name, options: the network. Classes and auxiliary heads are the state dict's, unless
        `options` say otherwise.
    Raises:
      UserError: names or shapes that are not the model's.
    """
    largest = create_model(name, **options)
    names = torch_names(largest)
    aux = {theirs for entry, theirs in names.items() if entry[1].startswith("aux")}
    found: dict[str, Any] = {}
    features = expected_shapes(largest)[HEAD][0]
    classifier = settled_classifier(
        names[HEAD], names[("params", "head", "bias")], features, tensors
    )
    given, notes = classifier.tensors, [*classifier.notes]
    if classifier.num_classes is not None:
        found["num_classes"] = classifier.num_classes
    if "aux_heads" in option_defaults(name):
        found["aux_heads"] = largest.aux_heads and not aux.isdisjoint(given)
    model = create_model(name, **{**found, **options})
    others = _aux_classes(names, given) - {model.num_classes}
    if others and model.aux_heads and "aux_heads" not in options:
        model = model.clone(aux_heads=False)
        notes.append(
            f"the auxiliary heads were left out: they have {others.pop():,} classes, and the "
            f"classifier {model.num_classes:,}"
        )
    given = _absorbed(path, model, _flat(names, given))
    kernels = {entry[1:-1]: theirs for entry, theirs in names.items() if entry[-1] == "kernel"}
    if classifier.num_classes is None:
        given |= new_head(names[HEAD], features, model.num_classes)
        notes.append(new_head_note(model.num_classes))
    given, told = _fit_channels(model, given)
    notes += told
    state_dict, folded = unfold(model, torch_names(model), lambda unit: _bias(kernels[unit]), given)
    with naming(str(path)):
        variables = from_torch(model, state_dict)
    return TrainedModel(
        model,
        variables,
        class_names=class_names() if model.num_classes == 1000 else None,
        source=str(path),
        notes=(*notes, *note(folded)),
        initialised=("head",) if classifier.num_classes is None else (),
    )


def _fit_channels(
    model: Network, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The state dict with its first kernel made for `in_channels`, where that is of RGB images.

    One channel takes the sum, which is what grey images as RGB give; n channels repeat the three,
    scaled by 3 / n, so that the sum over equal channels stays (as timm does).
    """
    path, name = next((p, n) for p, n in torch_names(model).items() if p[-1] == "kernel")
    kernel, channels = tensors.get(name), expected_shapes(model)[path][2]
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 3 or channels == 3:
        return dict(tensors), []
    if channels == 1:
        fitted, how = kernel.sum(1, keepdims=True), "summed"
    else:
        repeated = kernel[:, np.arange(channels) % 3]
        fitted, how = (repeated * (3 / channels)).astype(kernel.dtype), "repeated"
    told = f"{name} is of 3 channels: they were {how} for in_channels={channels}"
    return {**tensors, name: fitted}, [told]


def _aux_classes(names: Mapping[Path, str], tensors: Mapping[str, np.ndarray]) -> set[int]:
    """How many classes the file's auxiliary heads have."""
    biases = (
        tensors.get(theirs)
        for path, theirs in names.items()
        if path[1].startswith("aux") and path[-2:] == ("head", "bias")
    )
    return {int(bias.size) for bias in biases if bias is not None}


def _absorbed(
    path: str | os.PathLike[str], model: Network, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Without the scales of batch norm that the network lacks, where that changes nothing: scales
    of one are left out, and powers of two multiply the kernel and the mean, which is exact.

    Raises UserError for other scales.
    """
    shapes = expected_shapes(model)
    names = torch_names(model)
    for unit in {entry[:-2] for entry in names if entry[-2:] == ("bn", "mean")}:
        mean = names[(*unit, "bn", "mean")]
        scale = mean.removesuffix("running_mean") + "weight"
        if ("params", *unit[1:], "bn", "scale") in shapes or scale not in tensors:
            continue
        gamma = tensors.pop(scale)
        if not (np.abs(np.frexp(gamma)[0]) == 0.5).all():
            raise UserError(
                f"{path}: {scale!r} scales batch norm, and {_called(model)} has no scales; take "
                f"{_with_scales(model)}"
            )
        kernel = names[("params", *unit[1:], "kernel")]
        tensors[kernel] = tensors[kernel] * gamma[:, None, None, None]
        tensors[mean] = tensors[mean] * gamma
    return tensors


def _called(model: Network) -> str:
    flavour = getattr(model, "flavour", None)
    return model_name(model) + (f" of flavour {flavour!r}" if flavour else "")


def _with_scales(model: Network) -> str:
    """The network's flavours whose batch norm has a scale, in words."""
    name = model_name(model)
    found = [f for f in model.flavours if create_model(name, flavour=f).style.norm_scale]
    return f"flavour {' or '.join(map(repr, found))}" if found else "another network"


def with_scales(model: Network, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with the scale, one, of every batch norm that has none: TF-slim's and Keras's
    networks leave it out, and PyTorch's modules want it.
    """
    full: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        scale = name.removesuffix("bias") + "weight"
        mean = name.removesuffix("bias") + "running_mean"
        if name.endswith(".bias") and mean in state_dict and scale not in state_dict:
            full[scale] = np.ones_like(array)
        full[name] = array
    return full


def _bias(kernel: str) -> str:
    return kernel.removesuffix("weight") + "bias"


def _flat(names: Mapping[Path, str], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The published BN-Inception port keeps batch norm's vectors as [1, C]."""
    vectors = {theirs for entry, theirs in names.items() if "bn" in entry}
    return {
        name: array[0] if name in vectors and array.ndim == 2 and len(array) == 1 else array
        for name, array in tensors.items()
    }


def to_pth(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Returns the file that `torch.load(weights_only=True)` gives as a state dict of tensors.
    Raises UserError without PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing .pth needs torch; pip install 'googlenet-jax[torch]', or write .safetensors"
            " with --to safetensors"
        ) from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    buffer = io.BytesIO()
    torch.save({name: tensor(array) for name, array in state_dict.items()}, buffer)
    return buffer.getvalue()


def to_safetensors(state_dict: Mapping[str, np.ndarray]) -> bytes:
    """Returns the safetensors file of a state dict, marked as PyTorch's."""
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in state_dict.items()},
        {"format": "pt"},
    )
