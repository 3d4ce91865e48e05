"""The one door: a trained model from whatever holds one."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.models.registry import model_name
from googlenet_jax.weights.checkpoints import FOLDER, read_run
from googlenet_jax.weights.convert import read_weights
from googlenet_jax.weights.hub import PREFIX, load_from_hub, load_hub_folder
from googlenet_jax.weights.pretrained import list_pretrained, pretrained_file
from googlenet_jax.weights.trained_model import TrainedModel

FORMS = (
    "a run's folder or gs:// URL (DIR@raw, DIR@ema, DIR@STEP for a kept checkpoint), a weight file "
    "of this or another framework, a name of public weights, or hf-hub:OWNER/NAME"
)


def load(
    name: str | os.PathLike[str],
    model: str | None = None,
    *,
    kind: str | None = None,
    ema: bool = False,
    background: str = "keep",
    **options: Any,
) -> TrainedModel:
    """Loads a trained model, with its preprocessing and class names, from whatever holds one.

    Args:
      name: a run's folder or gs:// URL, of which DIR@raw and DIR@ema name the weights (by default
        the average, where the run has it) and DIR@1200 a kept checkpoint (by default the newest); a
        weight file of this or another framework; a name of `weights.list_pretrained()`, which is
        downloaded once; or hf-hub:OWNER/NAME, a safetensors model of the Hugging Face hub.
      model: the network, where a foreign file's names and shapes fit several.
      kind, ema, background: see `weights.read_weights`; of foreign files.
      **options: of the model, where a foreign file doesn't tell them, such as `flavour="keras"`.
    Returns:
      A `TrainedModel`; its `notes` say what was left out, initialised or supposed.
    Raises:
      UserError: nothing of that name, or a damaged, hostile or unknown file. Nothing in it is run.
    """
    reading: dict[str, Any] = {"kind": kind, "ema": ema, "background": background}
    with jax.ensure_compile_time_eval():  # inside a function that is being traced too
        return _load(os.fspath(name), model, reading, options)


def _load(
    text: str, model: str | None, reading: dict[str, Any], options: dict[str, Any]
) -> TrainedModel:
    """`load`; `reading` is `read_weights`' further arguments."""
    asked = [key for key, value in reading.items() if value not in (None, False, "keep")]
    if text.startswith(PREFIX):
        return load_from_hub(text, model, options)
    path, *choices = [text] if _is_there(text) else text.split("@")
    url, expanded = "://" in path, Path(path).expanduser()
    if url or expanded.is_dir():
        hub = None
        if not url and not (expanded / FOLDER).is_dir() and not choices:
            hub = load_hub_folder(expanded, model, options)
        if hub is not None:
            return hub
        if model or options or [each for each in asked if each != "ema"]:
            raise UserError(
                f"{path}: a run names its model itself; leave out model, options and the file's"
                " kind"
            )
        return _load_run(text, path if url else str(expanded), choices, reading["ema"])
    if _is_there(path):
        if choices:
            raise UserError(f"{text}: a file has no choice of weights; name it without '@'")
        return read_weights(expanded, model, options=options, **reading)
    if path in list_pretrained() and not choices:
        if model or options or asked:
            raise UserError(
                f"{path}: public weights name their model themselves; give the name alone"
            )
        return dataclasses.replace(read_weights(pretrained_file(path)), source=path)
    raise UserError(_not_found(text, path))


def load_of(
    name: str | os.PathLike[str], model: str, options: Mapping[str, Any] | None = None
) -> TrainedModel:
    """Loads weights that should be of one network: `load`, with `model` and its options where the
    file's own names and shapes fit several.

    Raises:
      UserError: as `load`, or where they are of another network.
    """
    try:
        loaded = load(name)
    except UserError as error:
        if "model=" not in str(error):
            raise
        loaded = load(name, model, **(options or {}))
    found = model_name(loaded.model)
    if found != model:
        raise UserError(f"{os.fspath(name)}: expected weights of {model}, found {found}'s")
    return loaded


def _is_there(text: str) -> bool:
    """Whether the name is a file's or a folder's, or a TensorFlow checkpoint's prefix."""
    path = Path(text).expanduser()
    try:
        return path.exists() or path.with_name(path.name + ".index").exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _not_found(text: str, path: str) -> str:
    names = list_pretrained()
    hint = f"; of a run's weights, say DIR@{path}" if path in ("raw", "ema") else ""
    return (
        f"{text!r} is no file, no run's folder and no public weights{nearest(path, names)}{hint}; "
        f"those are {', '.join(names)}"
    )


def _load_run(name: str, folder: str, choices: list[str], ema: bool) -> TrainedModel:
    weights, step = ("ema" if ema else None), None
    for choice in choices:
        if choice in ("raw", "ema"):
            weights = choice
        elif re.fullmatch(r"\d+", choice):
            step = int(choice)
        else:
            raise UserError(f"{name}: expected raw, ema or a step after '@', found {choice!r}")
    return dataclasses.replace(read_run(folder, weights=weights, step=step), source=name)
