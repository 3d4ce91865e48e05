"""A run's folder: whose it is, and its config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.process import is_first
from googlenet_jax.runtime.storage import write_text
from googlenet_jax.training.config import changed_fields
from googlenet_jax.training.writers import METRICS_FILE
from googlenet_jax.weights.checkpoints import FOLDER

CONFIG_FILE = "config.json"


def check_folder(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises UserError where the folder holds a run with another config, naming each changed field.

    `defaults` stand for the fields that the folder's config, of an older version, lacks.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        if (workdir / FOLDER).exists() and any((workdir / FOLDER).iterdir()):
            raise UserError(
                f"{workdir} holds checkpoints but no {CONFIG_FILE}; put it back, or take another"
                " --workdir"
            )
        return
    if (workdir / METRICS_FILE).exists() and not (workdir / FOLDER).exists():
        raise UserError(
            f"{workdir} holds {METRICS_FILE} of a run, but no {FOLDER!r}; put the checkpoints back,"
            f" or remove {METRICS_FILE} to start anew"
        )
    try:
        changed = changed_fields(json.loads(path.read_text(encoding="utf-8")), config, defaults)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: expected a config as JSON, found {error}; put the file back, or take another"
            " --workdir"
        ) from error
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}); take its values, or"
            " another --workdir"
        )


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The config of the run that the folder holds; None where it holds none that can be read, which
    `check_folder` refuses in words.
    """
    try:
        config = json.loads((workdir / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes the folder's `config.json`; only the first process does. Raises UserError where that
    can't be.
    """
    if not is_first():
        return
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_text(workdir / CONFIG_FILE, text)
