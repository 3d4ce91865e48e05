"""What a researcher brings along: losses, optimizers, schedules and data, and what a run knows of
them.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.metrics import batch_mean
from googlenet_jax.registry import Registry
from googlenet_jax.training.config import resolve
from googlenet_jax.training.loop import train
from googlenet_jax.training.losses import LOSSES
from googlenet_jax.training.optimizer import OPTIMIZERS, create_optimizer, create_schedule
from googlenet_jax.training.writers import read_metrics
from tests.training.tiny_run import tiny_config


def binary(output: Any, batch: Any, scale: float = 1.0) -> Any:
    """Binary cross entropy of every class."""
    targets = jax.nn.one_hot(batch["label"], output.logits.shape[-1])
    values = optax.sigmoid_binary_cross_entropy(output.logits, targets).sum(-1)
    return scale * batch_mean(values, batch), {}


def careless(output: Any, batch: Any) -> Any:
    """Takes padding for examples."""
    return (output.logits[:, 0] * 0 + batch["label"]).astype(jnp.float32).mean(), {}


def test_evaluation_is_by_the_registered_loss(tmp_path: Path) -> None:
    for name, loss in (("binary", binary), ("careless", careless)):
        if name not in LOSSES:
            gj.register_loss(name, loss)
    config = tiny_config(tmp_path / "d")
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "1 steps"
    config.data.eval_splits = ("test[:21]",)  # no multiple of a batch: the rest is padding
    config.loss.name, config.checkpoint.best = "binary", "loss"
    config.checkpoint.best_mode = "min"
    train(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = {line["weights"]: line["loss"] for line in lines if line["split"] != "train"}
    trained = gj.load(f"{tmp_path / 'run'}@raw")
    from googlenet_jax.data.sources import load_source

    source = load_source("digits", "test[:21]", tmp_path / "d")
    logits = trained.logits(
        [np.broadcast_to(e["image"], (*e["image"].shape[:2], 3)) for e in source]
    )
    targets = np.eye(10)[[example["label"] for example in source]]
    expected = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits), targets).sum(-1).mean()
    assert losses["raw"] == pytest.approx(float(expected), rel=1e-4)
    config.loss.name = "careless"
    train(config, tmp_path / "careless")
    lines = read_metrics(tmp_path / "careless" / "metrics.jsonl")
    found = next(line["loss"] for line in lines if line["split"] != "train")
    assert found == pytest.approx(np.mean([example["label"] for example in source]))


@pytest.mark.parametrize(
    ("name", "factory"),
    [("lars", optax.lars), ("adadelta", optax.adadelta), ("prodigy", optax.contrib.prodigy)],
)
def test_an_optimizers_own_decay_is_the_only_one(name: str, factory: Any) -> None:
    if name not in OPTIMIZERS:
        gj.register_optimizer(name, factory)
    params = {"head": {"kernel": jnp.full((3, 2), 0.7), "bias": jnp.full((2,), 0.7)}}
    grads = jax.tree.map(lambda leaf: leaf * 0.01, params)
    ours = create_optimizer(lambda step: 0.1, name, weight_decay=0.01)
    mask = {"head": {"kernel": True, "bias": False}}
    masks = {} if name == "prodigy" else {"weight_decay_mask": mask}
    theirs = factory(learning_rate=lambda step: 0.1, weight_decay=0.01, **masks)
    if name == "lars":  # the field's momentum, which it takes
        theirs = factory(learning_rate=lambda step: 0.1, weight_decay=0.01, momentum=0.9, **masks)
    updates = [each.update(grads, each.init(params), params)[0] for each in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *updates)


def test_a_schedule_of_ones_own() -> None:
    gj.register_schedule("sawtooth", sawtooth)
    rate = create_schedule("sawtooth", 2.0, 12, warmup=2, options={"teeth": 5})
    assert [float(rate(step)) for step in (0, 2, 6, 7)] == pytest.approx([2 / 3, 2, 0.4, 2])
    with pytest.raises(UserError, match=r"schedule\.options\.tooth"):
        create_schedule("sawtooth", 2.0, 12, options={"tooth": 5})
    with pytest.raises(UserError, match=r"schedule\.name.*did you mean 'sawtooth'"):
        create_schedule("sawtoth", 2.0, 12)
    restarts = create_schedule("cosine_restarts", 1.0, 20, options={"restarts": 1})
    assert [float(restarts(step)) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 1])


def sawtooth(learning_rate: float, steps: int, teeth: int = 4) -> optax.Schedule:
    return lambda step: learning_rate * (1 - (step % teeth) / teeth)


def test_a_config_names_a_schedules_options(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.schedule.name = "cosine_restarts"
    config.schedule.options = {"restarts": 2}
    assert resolve(config).config.schedule.options.restarts == 2
    config.schedule.options = {"restart": 2}
    with pytest.raises(UserError, match=r"did you mean 'restarts'"):
        resolve(config)


def photos(folder: Path, names: tuple[str, ...], seed: int) -> Path:
    """A data set "photos" of a few pictures of each class."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (10, 10, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    data = folder / "data"
    assert main(["prepare", "folder", str(folder / "photos"), "--data-dir", str(data)]) == 0
    return data


def test_other_data_under_the_same_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = photos(tmp_path / "pets", ("cat", "dog"), 0)
    config = tiny_config(pets)
    config.data.name, config.data.train_split = "photos", "train"
    config.data.eval_splits = ("validation",)
    config.batch_size, config.metrics = 4, ("top1",)
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "2 steps"
    train(config, tmp_path / "run")
    for names, differs in ((("boat", "plane"), "class_names"), (("cat", "dog"), "fingerprint")):
        other = photos(tmp_path / names[0], names, 1)
        config.data.dir, config.duration = str(other), "2 steps"
        with pytest.raises(UserError, match=f"trained on other data under this name: {differs}"):
            train(config, tmp_path / "run")
    capsys.readouterr()
    arguments = [f"--weights={tmp_path / 'run'}", f"--data-dir={tmp_path / 'boat' / 'data'}"]
    assert main(["evaluate", *arguments]) == 1
    assert "was trained on cat, dog" in capsys.readouterr().err


def test_statistics_that_can_not_settle_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """0.9997 is TF-slim's, made for millions of steps."""
    from googlenet_jax.training.loop import _warn_of_statistics

    slim = gj.create_model("googlenet_slim", width=0.1)
    _warn_of_statistics(slim, 300)
    assert "91 % of their first values" in capsys.readouterr().err
    _warn_of_statistics(slim, 100_000)
    _warn_of_statistics(gj.create_model("googlenet_bn", width=0.1), 300)
    _warn_of_statistics(gj.create_model("googlenet", width=0.1), 1)
    assert capsys.readouterr().err == ""


def test_a_file_that_is_imported_and_read_as_a_config_registers_once(tmp_path: Path) -> None:
    text = """
from googlenet_jax.training.task import TaskKind
def build(): ...
KIND = TaskKind(build, build, build)
"""
    path = tmp_path / "mine.py"
    path.write_text(text)
    kinds: Registry[Any] = Registry("task", {})
    for name, file in (("mine", path), ("config", path), ("other", tmp_path / "other.py")):
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if name == "other":
            with pytest.raises(UserError, match="there is a 'mine' already"):
                kinds.register("mine", module.KIND)
        else:
            kinds.register("mine", module.KIND)
