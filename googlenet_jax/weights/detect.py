"""Which network a foreign file's weights are of, from its own names and shapes."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network, NormedNetwork
from googlenet_jax.models.registry import create_model, list_models, option_defaults
from googlenet_jax.weights.names import SCHEMES
from googlenet_jax.weights.pytorch import torch_names
from googlenet_jax.weights.tree import COUNTERS, HEAD, Path, expected_shapes, outputs_first

Tensors = Mapping[str, np.ndarray]
# The classes by which two flavours with one set of names are told apart.
_CLASSES = {"fid": 1008, "slim": 1001}


class _Fit(NamedTuple):
    """How well a state dict fits a network: the smaller the better."""

    extra: int  # entries that the network has no place for
    gammas: bool  # has scales of batch norm that the network lacks
    folded: bool  # lacks batch norms that the network has


def find_in_scheme(path: str, kind: str, tensors: Tensors) -> str:
    """Returns the network that a Caffe, TensorFlow or Keras file is of.

    Raises UserError where it is of none that is known.
    """
    if kind == "keras":
        return next(iter(SCHEMES[kind]))  # the one that is read
    counts = {
        name: sum(
            any(entry.startswith(layer + "/") for entry in tensors)
            for layer in scheme.layers.values()
        )
        for name, scheme in SCHEMES[kind].items()
    }
    best = max(counts, key=lambda name: counts[name])
    if counts[best] < len(SCHEMES[kind][best].layers) // 2:
        raise UserError(
            f"{path}: no network that is known: {kind} files are read for "
            f"{', '.join(sorted(counts))}; its first entries are {', '.join(list(tensors)[:3])}"
        )
    return best


def find_in_state_dict(
    path: str, tensors: Tensors, model: str | None, options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Returns the network that a state dict of PyTorch's is of, and what of its options the names
    and shapes tell: `flavour`, `stem`, `width`, `aux_heads`.

    Args:
      model, options: what is known already; they are not looked for.
    Raises:
      UserError: it fits no network, or two equally well.
    """
    # The first kernel is fitted to other images where the weights are read.
    options = {name: value for name, value in options.items() if name != "in_channels"}
    found: list[tuple[_Fit, str, dict[str, Any]]] = []
    for name in [model] if model else list_models():
        if model is None and not options.keys() <= option_defaults(name).keys():
            continue
        for trial in _trials(name, tensors, options):
            fit = _fit(create_model(name, **{**trial, **options}), tensors)
            if fit is not None:
                found.append((fit, name, trial))
    if not found and model:
        return model, {}  # reading it says what is missing
    if not found:
        first = ", ".join(list(tensors)[:3])
        raise UserError(
            f"{path}: its names and shapes fit no network of {', '.join(list_models())} (its first "
            f"entries are {first}); name it with model=… and its options (--model, --option)"
        )
    best, name, trial = min(found, key=lambda each: each[0])
    # Folded batch norms leave the names of a network without any: that alone can't decide.
    others = {other for fit, other, _ in found if other != name and fit[:2] == best[:2]}
    if others:
        raise UserError(
            f"{path}: its names and shapes fit {name} and {', '.join(sorted(others))}; "
            "say which with model=… (--model)"
        )
    return name, trial


def _classes(name: str, tensors: Tensors) -> int:
    theirs = create_model(name).torch_names.get("head", "")
    bias = tensors.get(theirs + ".bias")
    return 0 if bias is None else int(bias.size)


def _trials(name: str, tensors: Tensors, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options with which a network may fit, by the first kernel and the names alone."""
    model = create_model(name, **given)
    layers = {layer: theirs for layer, theirs in model.torch_names.items() if "aux" not in layer}
    kernels = [theirs + model.torch_unit["kernel"] for theirs in layers.values()]
    there = [kernel for kernel in kernels if kernel in tensors]
    if not kernels or len(there) < 0.8 * len(kernels):
        return
    normed = any("running_mean" in entry for entry in tensors)
    if normed and not isinstance(model, NormedNetwork):
        return
    aux = any(
        theirs.split(".")[0] + "." in entry
        for layer, theirs in model.torch_names.items()
        if layer.startswith("aux")
        for entry in tensors
    )
    choices: dict[str, list[Any]] = {}
    defaults = option_defaults(name)
    if "flavour" in defaults and "flavour" not in given:
        choices["flavour"] = [_flavour(name, given, tensors)]
    if "stem" in defaults and "stem" not in given:
        choices["stem"] = list(model.choices.get("stem", (defaults["stem"],)))
    if "aux_heads" in defaults and "aux_heads" not in given:
        choices["aux_heads"] = [aux] if True in model.choices.get("aux_heads", (True,)) else [False]
    for values in itertools.product(*choices.values()):
        trial = dict(zip(choices, values, strict=True))
        width = _width(create_model(name, **{**trial, **given}), tensors, given)
        if width is not None:
            yield {**trial, **width}


def _flavour(name: str, given: Mapping[str, Any], tensors: Tensors) -> str:
    """The flavour whose batch norm has the file's entries: scales, and biases beside it; where
    several have, that of the file's number of classes, else the first.
    """
    flavours = list(create_model(name).flavours)
    styles = {f: create_model(name, **{**given, "flavour": f}).style for f in flavours}
    unit = create_model(name).torch_unit
    scales = any(entry.endswith(unit["bn/scale"]) for entry in tensors)
    beside = any(
        entry.endswith(unit["kernel"]) and entry.removesuffix("weight") + "bias" in tensors
        for entry in tensors
    )
    folded = not any("running_mean" in entry for entry in tensors)
    classes = _classes(name, tensors)
    return min(
        flavours,
        key=lambda f: (
            not folded and styles[f].norm_scale != scales,
            not folded and styles[f].bias_beside_norm != beside,
            {classes: 0, None: 1}.get(_CLASSES.get(f), 2),
        ),
    )


def _width(model: Network, tensors: Tensors, given: Mapping[str, Any]) -> dict[str, float] | None:
    """The width that the first kernel tells; None where that kernel is another."""
    if "width" in given:
        return {}
    names, shapes = torch_names(model), expected_shapes(model)
    path = next(path for path in names if path[-1] == "kernel")
    kernel, ours = tensors.get(names[path]), shapes[path]
    if kernel is None or kernel.ndim != 4 or kernel.shape[2:] != ours[:2]:
        return None
    width = kernel.shape[0] / ours[-1]
    return {} if width == 1 else {"width": width}


def _fit(model: Network, tensors: Tensors) -> _Fit | None:
    """How the trunk and the auxiliary heads' convolutions fit; None where an entry is missing."""
    names, shapes = torch_names(model), expected_shapes(model)
    folded = not any("running_mean" in entry for entry in tensors)
    places = {name for path, name in names.items() if path[0] != COUNTERS}
    for path, name in names.items():
        if path[0] == COUNTERS or _is_dense(path):
            continue
        if name not in tensors:
            if folded and "bn" in path:
                continue
            return None
        if not _same_size(tensors[name].shape, shapes[path]):
            return None
    lacks_bn = folded and any("bn" in path for path in names)
    head = names[HEAD].split(".")[0] + "."
    unknown = [
        entry
        for entry in tensors
        if entry not in places
        and not entry.endswith("num_batches_tracked")
        and not entry.startswith((head, "last_linear.", "fc."))
    ]
    scales = [entry for entry in unknown if entry.endswith(".bn.weight")]
    biases = [entry for entry in unknown if lacks_bn and entry.endswith(".bias")]
    return _Fit(len(unknown) - len(scales) - len(biases), bool(scales), lacks_bn)


def _is_dense(path: Path) -> bool:
    """Whether an entry is of a classifier, whose size the number of classes decides."""
    return path[-2] in ("head", "fc")


def _same_size(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether shapes agree up to the order of axes, which differs between the frameworks."""
    if len(ours) == 4:
        return theirs == outputs_first(ours)
    return int(np.prod(theirs)) == int(np.prod(ours))
