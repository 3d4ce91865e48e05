"""Models in the Hugging Face hub's layout: safetensors, and a config.json with the preprocessing.

timm's repositories are read, and those that hold a file of this project's. Other formats than
safetensors, which pickles are, are never downloaded.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError, one_line
from googlenet_jax.weights.convert import read_weights
from googlenet_jax.weights.trained_model import TrainedModel

PREFIX = "hf-hub:"
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"
_LARGEST = 512 << 20
# timm's architectures → ours, and the options that they have.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "inception_v3": ("inception_v3", {"flavour": "torchvision", "transform_input": False})
}


def load_from_hub(name: str, model: str | None, options: Mapping[str, Any]) -> TrainedModel:
    """Downloads a repository's safetensors and its config once, and reads them.

    Args:
      name: hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION.
    Raises:
      UserError: no such repository, no safetensors in it, no network connection, or without
        huggingface_hub.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name.removeprefix(PREFIX))
    if not match:
        raise UserError(f"{name}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"{name}: needs huggingface_hub; pip install 'googlenet-jax[hub]'"
        ) from None
    folder = None
    for file, needed in ((_WEIGHTS, True), (_CONFIG, False)):
        try:
            folder = Path(huggingface_hub.hf_hub_download(match[1], file, revision=match[2])).parent
        except (errors.EntryNotFoundError, errors.LocalEntryNotFoundError) as error:
            if needed or isinstance(error, errors.LocalEntryNotFoundError):
                raise UserError(
                    f"{name}: no {file} could be had ({one_line(error, 200)}); only safetensors are"
                    " read"
                ) from None
        except Exception as error:  # what its HTTP client raises differs between versions
            raise UserError(f"{name}: can't be downloaded: {one_line(error, 200)}") from None
    assert folder is not None
    loaded = load_hub_folder(folder, model, options)
    assert loaded is not None
    return dataclasses.replace(loaded, source=name)


def load_hub_folder(
    folder: Path, model: str | None, options: Mapping[str, Any]
) -> TrainedModel | None:
    """Reads a folder in the hub's layout; None where it holds no model.safetensors.

    The preprocessing is config.json's, where it has timm's `pretrained_cfg`.
    """
    file = folder / _WEIGHTS
    if not file.is_file():
        return None
    config = _config(folder / _CONFIG)
    name, theirs = _ARCHITECTURES.get(str(config.get("architecture")), (model, {}))
    given = config.get("pretrained_cfg")
    if name != model and model is not None:
        name, theirs = model, {}
    if not isinstance(given, dict):  # its publisher's usual preprocessing is taken then
        return read_weights(file, model, options=dict(options))
    loaded = read_weights(file, name, options={**theirs, **options})
    preprocessing = _preprocessing(folder, given)
    note = f"preprocessing: {preprocessing.size} pixels, as {_CONFIG} says"
    notes = tuple(each for each in loaded.notes if not each.startswith("preprocessing: "))
    names = config.get("label_names") or given.get("label_names")
    if isinstance(names, list) and len(names) == loaded.model.num_classes:
        loaded = dataclasses.replace(loaded, class_names=tuple(map(str, names)))
    return dataclasses.replace(loaded, preprocessing=preprocessing, notes=(*notes, note))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {one_line(error, 200)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def _preprocessing(folder: Path, given: Mapping[str, Any]) -> Preprocessing:
    """timm's words for it: mean and std in units of 0–1, the share of a side that is cropped."""
    where = f"{folder / _CONFIG}: pretrained_cfg"
    try:
        channels, height, width = given["input_size"]
        size, share = int(height), float(given.get("crop_pct", 0.875))
        scaled = {
            field: tuple(255 * float(value) for value in given[field]) for field in ("mean", "std")
        }
        fine = channels == 3 and height == width and 0 < share <= 1
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise UserError(
            f"{where}: expected input_size [3, S, S], mean, std and crop_pct as timm writes them"
        )
    interpolation = str(given.get("interpolation", "bilinear"))
    fields: dict[str, Any] = {
        **scaled,
        "size": size,
        "resize": math.floor(size / share),
        "crop": "squash" if given.get("crop_mode") == "squash" else "center",
        "interpolation": "bicubic" if interpolation == "bicubic" else "bilinear_antialiased",
    }
    return Preprocessing.from_dict(fields)
