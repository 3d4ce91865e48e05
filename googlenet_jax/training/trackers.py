"""Writers to experiment trackers: Weights & Biases and MLflow, which are extras."""

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from googlenet_jax.errors import UserError
from googlenet_jax.registry import Registry
from googlenet_jax.runtime.storage import write_atomically
from googlenet_jax.training.writers import Line, Writer

# (folder, config, **options) -> a writer; the folder is the run's, on this machine.
WriterFactory = Callable[..., Writer]


def figures(line: Line) -> dict[str, float]:
    """A line's figures by tag: "train/loss", "test_ema/top1"."""
    curve = "_".join(line[key] for key in ("split", "weights") if key in line)
    hidden = ("step", "split", "weights", "examples")
    return {f"{curve}/{name}": value for name, value in line.items() if name not in hidden}


class WandbWriter(Writer):
    """Weights & Biases (`pip install 'googlenet-jax[wandb]'`). WANDB_MODE=offline, or the option
    mode="offline", keeps everything in the run's folder, for `wandb sync`.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        project: str = "googlenet_jax",
        name: str = "",
        mode: str = "",
    ) -> None:
        wandb = _import("wandb")
        self._run = wandb.init(
            project=project,
            name=name or folder.name,
            id=_kept(folder, "wandb.json", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode=mode or None,
        )

    def write(self, line: Line) -> None:
        self._run.log(figures(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()


class MLflowWriter(Writer):
    """MLflow (`pip install 'googlenet-jax[mlflow]'`). `tracking_uri` is a server's or a local
    database's, such as "sqlite:///mlflow.db"; by default the environment's MLFLOW_TRACKING_URI.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        experiment: str = "googlenet_jax",
        tracking_uri: str = "",
    ) -> None:
        tracking = _import("mlflow.tracking")
        self._client = tracking.MlflowClient(tracking_uri or None)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)

        def begin() -> str:
            run = self._client.create_run(number, run_name=folder.name)
            for key, value in flatten_dict(dict(config), sep=".").items():
                self._client.log_param(run.info.run_id, key, str(value)[:500])
            return run.info.run_id

        self._id = _kept(folder, "mlflow.json", begin)
        self._client.update_run(self._id, status="RUNNING")

    def write(self, line: Line) -> None:
        for tag, value in figures(line).items():
            self._client.log_metric(self._id, tag, value, step=line["step"])

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"writers.names: {package!r} is not installed: pip install 'googlenet-jax[{package}]'"
        ) from error


def _kept(folder: Path, name: str, make: Callable[[], str]) -> str:
    """The tracker's own name of the run, kept in the folder, so that a resumed run goes on."""
    path = folder / name
    if path.exists():
        return json.loads(path.read_text())["id"]
    made = make()
    write_atomically(path, lambda partial: partial.write_text(json.dumps({"id": made}) + "\n"))
    return made


WRITERS: Registry[WriterFactory] = Registry(
    "writer", {"wandb": WandbWriter, "mlflow": MLflowWriter}
)
register_writer = WRITERS.register
