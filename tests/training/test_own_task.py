"""A task of a researcher's own: its run is loaded again, whatever else it trained."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import googlenet_jax as gj
from googlenet_jax.models.network import Output
from googlenet_jax.training.classification import CLASSIFICATION
from googlenet_jax.training.task import TASKS, TaskKind
from googlenet_jax.weights.checkpoints import RunDescription
from tests.training.tiny_run import tiny_config


class Probed(nn.Module):
    """A network, and a further layer on its logits."""

    encoder: Any

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        output = self.encoder(images, train=train)
        return Output(nn.Dense(10, name="probe")(output.logits), {})


def open_probed(resolved: Any, mesh: Any) -> Any:
    task = CLASSIFICATION.open(resolved, mesh)
    description = {**task.description, "part": "encoder"}
    model = Probed(task.model)
    return dataclasses.replace(
        task, model=model, evaluations={"none": nothing}, description=description
    )


def nothing(variables: Any, should_stop: Any) -> dict[str, float]:
    return {"loss": 0.0, "top1": 0.0, "examples": 1}


def test_the_run_of_a_task_is_loaded_as_its_network(tmp_path: Path) -> None:
    if "probed" not in TASKS:
        kind = TaskKind(CLASSIFICATION.defaults, CLASSIFICATION.build, open_probed)
        gj.register_task("probed", kind)
    config = tiny_config(tmp_path / "d")
    config.task = "probed"
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "1 steps"
    gj.train(config, tmp_path / "run")
    for weights in ("raw", "ema"):
        trained = gj.load(f"{tmp_path / 'run'}@{weights}")
        assert type(trained.model).__name__ == "Tiny"
        assert set(trained.variables["params"]) == {"conv1", "bn", "aux1", "head"}
    logits = trained.logits(np.zeros((2, 8, 8, 3), np.uint8))
    assert logits.shape == (2, 10)
    # Weights to begin another run with.
    config.task, config.init_from = "classification", f"{tmp_path / 'run'}@raw"
    config.schedule.learning_rate = 1e-12
    gj.train(config, tmp_path / "tuned")
    both = (
        gj.load(f"{tmp_path / name}@raw").variables["params"]["head"]["kernel"]
        for name in ("run", "tuned")
    )
    np.testing.assert_allclose(*both, rtol=1e-4)


def test_a_description_without_a_part_is_as_before() -> None:
    about = RunDescription("tiny", {}, {}, ("a",), {})
    assert "part" not in about.to_json()
    assert RunDescription.from_json(about.to_json()) == about
    encoder = dataclasses.replace(about, part="encoder")
    assert RunDescription.from_json(encoder.to_json()) == encoder


def test_a_config_is_resolved_without_the_loop() -> None:
    code = (
        "from googlenet_jax.training.config import default_config, resolve; import sys; "
        "resolve(default_config()); print('googlenet_jax.training.loop' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr[-2000:]
