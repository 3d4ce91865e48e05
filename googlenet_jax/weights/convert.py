"""Weights from any file that is known to any file that can be written, with what belongs to them:
preprocessing and class names.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from googlenet_jax.data.imagenet import class_names as imagenet_names
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.registry import create_model, model_name, option_defaults
from googlenet_jax.runtime.storage import write_atomically, writing
from googlenet_jax.weights import keras, pytorch
from googlenet_jax.weights.detect import find_in_scheme, find_in_state_dict
from googlenet_jax.weights.folded import note
from googlenet_jax.weights.heads import new_head_note
from googlenet_jax.weights.isolation import read_tensors
from googlenet_jax.weights.kinds import OURS, detect_kind, goal_kind
from googlenet_jax.weights.names import SCHEMES
from googlenet_jax.weights.public import published
from googlenet_jax.weights.safetensors import load_weights, read_metadata, save_weights
from googlenet_jax.weights.trained_model import TrainedModel
from googlenet_jax.weights.tree import COUNTERS, expected_shapes, flatten

# The most classes that the public weights have (the FID network's): a file may hold so many before
# it is opened.
_MOST_CLASSES = 1008
_LARGEST = 4 * 110_000_000  # bytes; googlenet_naive, the largest network, has 104 million weights
BACKGROUND = ("keep", "drop")
_NAMES_NOTE = "class names: "


def read_weights(
    path: str | os.PathLike[str],
    model: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    kind: str | None = None,
    ema: bool = False,
    background: str = "keep",
) -> TrainedModel:
    """Reads a weight file of this or another framework; see `docs/weights.md` for which.

    Args:
      path: the file; for a TensorFlow checkpoint its prefix.
      model: a name of `list_models()`; needed only where the file's names and shapes fit several.
      options: of the model, such as {"flavour": "keras"}; what the file's names and shapes tell
        needs none: classes, auxiliary heads, flavour, width.
      kind: one of `kinds.SOURCES`, where the content doesn't say.
      ema: take the averaged weights where the file has both.
      background: what becomes of the first of TF-slim's 1,001 classes: "keep", so that label 0 is
        logit 1, or "drop".
    Raises:
      UserError: a file that is missing, damaged, hostile or of no network that is known, or weights
        that are not finite. Nothing in it is run.
    """
    kind = detect_kind(path, kind)
    if background not in BACKGROUND:
        raise UserError(f"background: expected 'keep' or 'drop', found {background!r}")
    if kind == OURS:
        loaded = _ours(path, model, options)
        return _without_background(path, loaded) if background == "drop" else loaded
    tensors = read_tensors(path, kind, _limit(model, options or {}), ema)
    if kind in ("pytorch", "safetensors"):
        loaded = _from_state_dict(path, model, options or {}, tensors)
    else:
        loaded = _from_scheme(path, model, options or {}, kind, tensors)
    check_values(path, loaded.variables)
    if background == "drop":
        loaded = _without_background(path, loaded)
    if loaded.class_names is not None:
        supposed = f"{_NAMES_NOTE}ImageNet's, since there are {loaded.model.num_classes:,} classes"
        loaded = dataclasses.replace(loaded, notes=(*loaded.notes, supposed))
    return loaded


def _limit(model: str | None, options: Mapping[str, Any]) -> int:
    """How many bytes of weights a file may hold before it is known what it is."""
    if model is None:
        return _LARGEST
    largest = create_model(model, **{"num_classes": _MOST_CLASSES, **options})
    return 4 * sum(int(np.prod(shape)) for shape in expected_shapes(largest).values())


def _from_state_dict(
    path: str | os.PathLike[str],
    model: str | None,
    options: Mapping[str, Any],
    tensors: dict[str, np.ndarray],
) -> TrainedModel:
    name, found = find_in_state_dict(str(path), tensors, model, options)
    # Auxiliary heads are found where the classifier is settled.
    found = {option: value for option, value in found.items() if option != "aux_heads"}
    whole = create_model(name, **{**found, **options})
    public = published(whole, Path(path).name)
    wanted = {k: v for k, v in public.options.items() if k not in options}
    if whole.in_channels != 3:
        wanted.pop("transform_input", None)  # of RGB images
    loaded = pytorch.from_tensors(path, name, {**wanted, **found, **options}, tensors)
    settings = [f"{k}={v}" for k, v in wanted.items()]
    return dataclasses.replace(
        loaded,
        preprocessing=Preprocessing(**public.fields),
        notes=(*loaded.notes, _preprocessing_note(public.fields, settings, public.why)),
    )


def _preprocessing_note(fields: Mapping[str, Any], settings: Sequence[str], why: str) -> str:
    preprocessing = Preprocessing(**fields)
    if preprocessing.mean == preprocessing.std == (127.5,) * 3:
        values = "values in [-1, 1]"
    elif preprocessing.mean == Preprocessing().mean:
        values = "ImageNet's mean and standard deviation"
    else:
        values = f"mean {preprocessing.mean}, {preprocessing.channel_order.upper()}"
    whole = ", ".join([values, f"{preprocessing.size} pixels", *settings])
    return f"preprocessing: {whole}, {why}"


def _ours(
    path: str | os.PathLike[str], model: str | None, options: Mapping[str, Any] | None
) -> TrainedModel:
    loaded, variables = load_weights(path)
    metadata = read_metadata(path)
    if model not in (None, metadata["model"]) or options:
        raise UserError(
            f"{path}: names its model and options itself ({metadata['model']}); leave out --model"
            " and --option"
        )
    check_values(path, variables)
    preprocessing, names = metadata["preprocessing"], metadata["class_names"]
    return TrainedModel(
        loaded,
        variables,
        None if preprocessing is None else Preprocessing.from_dict(preprocessing),
        None if names is None else tuple(names),
        str(path),
        initialised=tuple(metadata.get("initialised") or ()),
    )


def _from_scheme(
    path: str | os.PathLike[str],
    name: str | None,
    given: Mapping[str, Any],
    kind: str,
    tensors: dict[str, np.ndarray],
) -> TrainedModel:
    schemes = SCHEMES[kind]
    name = name or find_in_scheme(str(path), kind, tensors)
    if name not in schemes:
        known = ", ".join(sorted(schemes)) or "no network"
        raise UserError(f"{path}: {kind} files are read for {known}, found --model {name}")
    scheme, options = schemes[name], dict(given)
    if "flavour" in option_defaults(name):
        options = {"flavour": {"keras": "keras", "tensorflow": "slim"}[kind], **options}
    notes: tuple[str, ...] = ()
    if kind == "keras":
        tensors, notes = keras.canonical(path, tensors)
    classes = scheme.num_classes(tensors)
    names = imagenet_names() if classes == 1000 else None
    initialised: tuple[str, ...] = ()
    if kind == "keras" and classes is None:
        classes = int(options.get("num_classes", 1000))
        tensors = keras.new_head(tensors, keras.FEATURES, classes)
        notes, initialised = (*notes, new_head_note(classes)), ("head",)
    found: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if "aux_heads" in option_defaults(name):
        found["aux_heads"] = scheme.has_aux(tensors)
    model = create_model(name, **{**found, **options})
    fields = dict(scheme.preprocessing)
    if kind == "tensorflow" and classes == 1001:
        fields["class_offset"] = 1
        names = imagenet_names(background=True)
    variables, folded = scheme.to_variables(str(path), model, tensors)
    why = {"caffe": "bvlc_googlenet's", "tensorflow": "TF-slim's", "keras": "Keras's"}[kind]
    settled = _preprocessing_note(fields, (), f"as {why} weights want it")
    return TrainedModel(
        model,
        variables,
        Preprocessing(**fields),
        names,
        str(path),
        (*notes, *note(folded), settled),
        initialised,
    )


def check_values(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Raises UserError that names the first entry which is not finite, or a variance below zero."""
    for entry, array in flatten(variables).items():
        if entry[0] == COUNTERS:
            continue
        name, values = "/".join(entry), np.asarray(array)
        finite = np.isfinite(values.astype(np.float32) if values.dtype == jnp.bfloat16 else values)
        if not finite.all():
            raise UserError(
                f"{path}: {name} holds {finite.size - int(finite.sum()):,} values that are not"
                " finite; the file is damaged"
            )
        if entry[-1] == "var" and (values < 0).any():
            raise UserError(f"{path}: {name} holds variances below zero; the file is damaged")


def _without_background(path: str | os.PathLike[str], loaded: TrainedModel) -> TrainedModel:
    if loaded.preprocessing is None or loaded.preprocessing.class_offset != 1:
        raise UserError(
            f"{path}: only a network such as TF-slim's of 1,001 classes has a background to drop, "
            f"found {loaded.model.num_classes:,} classes without one"
        )
    variables = {
        collection: {
            name: _drop_first(entry) if name == "head" else entry for name, entry in entries.items()
        }
        for collection, entries in loaded.variables.items()
    }
    for name, entry in variables["params"].items():
        if name.startswith("aux"):
            variables["params"][name] = {**entry, "head": _drop_first(entry["head"])}
    preprocessing = dataclasses.replace(loaded.preprocessing, class_offset=0)
    return dataclasses.replace(
        loaded,
        model=loaded.model.clone(num_classes=loaded.model.num_classes - 1),
        variables=variables,
        preprocessing=preprocessing,
        class_names=None if loaded.class_names is None else loaded.class_names[1:],
        notes=(*loaded.notes, "the background class was dropped"),
    )


def _drop_first(head: Any) -> dict[str, np.ndarray]:
    return {leaf: np.ascontiguousarray(array[..., 1:]) for leaf, array in head.items()}


def write_weights(
    path: str | os.PathLike[str], weights: TrainedModel, kind: str | None = None
) -> None:
    """Writes weights, whole or not at all, as one of `kinds.GOALS`: by default what the file's
    ending says.

    PyTorch's and Keras's files hold no preprocessing and no class names.

    Raises:
      UserError: a kind that can't hold this network, a missing library, or a place that can't be
        written.
    """
    kind = goal_kind(path, kind)
    if kind == OURS:
        preprocessing = None if weights.preprocessing is None else weights.preprocessing.to_dict()
        save_weights(
            path,
            weights.model,
            weights.variables,
            preprocessing,
            weights.class_names,
            weights.initialised,
        )
    elif kind == "keras":
        scheme = SCHEMES["keras"].get(model_name(weights.model))
        if scheme is None:
            raise UserError(
                f"{path}: Keras has no such network as {model_name(weights.model)}; write it as"
                " .pth or .safetensors"
            )
        _write(path, keras.to_bytes(scheme, weights.model, weights.variables))
    else:
        state_dict = pytorch.to_torch(weights.model, weights.variables)
        state_dict = pytorch.with_scales(weights.model, state_dict)
        _write(
            path,
            (
                pytorch.to_safetensors(state_dict)
                if kind == "safetensors"
                else pytorch.to_pth(state_dict)
            ),
        )


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    with writing(os.fspath(path)):
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(data))


def convert(
    source: str | os.PathLike[str] | TrainedModel,
    goal: str | os.PathLike[str],
    model: str | None = None,
    *,
    to: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    **reading: Any,
) -> TrainedModel:
    """Reads one file and writes another; see `read_weights` (whose arguments are taken) and
    `write_weights`.

    Args:
      source: a file, or what was read from one.
      preprocessing: fields that differ from those the file came with.
      class_names: in place of the file's or ImageNet's.
    Returns:
      What was written.
    """
    goal_kind(goal, to)  # before the work, not after
    weights = source if isinstance(source, TrainedModel) else read_weights(source, model, **reading)
    if preprocessing:
        fields = weights.preprocessing.to_dict() if weights.preprocessing else {}
        weights = dataclasses.replace(
            weights, preprocessing=Preprocessing.from_dict({**fields, **preprocessing})
        )
    if class_names is not None:
        if len(class_names) != weights.model.num_classes:
            raise UserError(
                f"class names: expected {weights.model.num_classes:,}, one for each class, found"
                f" {len(class_names):,}"
            )
        notes = tuple(note for note in weights.notes if not note.startswith(_NAMES_NOTE))
        weights = dataclasses.replace(weights, class_names=tuple(class_names), notes=notes)
    write_weights(goal, weights, to)
    return weights
