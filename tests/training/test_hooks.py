"""What hangs into a run: callbacks, writers, metrics of a set, steps and options, two gradients."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

import googlenet_jax as gj
from googlenet_jax.data.augment import AUGMENTATIONS
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.set_metrics import SET_METRICS, compute
from googlenet_jax.runtime.sharding import check_batch_size, create_mesh
from googlenet_jax.training.config import resolve
from googlenet_jax.training.losses import LOSSES, create_loss, weighted_cross_entropy
from googlenet_jax.training.optimizer import create_optimizer
from googlenet_jax.training.trackers import WRITERS
from googlenet_jax.training.writers import Writer, read_metrics
from tests.training.tiny_run import tiny_config

NAMES = ("a", "b", "c")


def scores(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [14, 6])  # none of class c
    return rng.normal(size=(20, 3)) + 0.8 * np.eye(3)[labels], labels


def test_metrics_of_a_set_are_scikit_learns() -> None:
    logits, labels = scores()
    names = (
        "balanced_accuracy",
        "per_class",
        "macro_f1",
        "auc",
        "mean_average_precision",
        "confusion",
    )
    found = compute({name: SET_METRICS[name] for name in names}, logits, labels, NAMES)
    powers = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    guesses = logits.argmax(1)
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(guesses[labels == c] == c).mean() for c in (0, 1)])
    )
    assert found["macro_f1"] == pytest.approx(
        f1_score(labels, guesses, labels=[0, 1, 2], average="macro", zero_division=0)
    )
    assert found["auc"] == pytest.approx(
        np.mean([roc_auc_score(labels == c, powers[:, c]) for c in (0, 1)])
    )
    assert found["mean_average_precision"] == pytest.approx(
        np.mean([average_precision_score(labels == c, powers[:, c]) for c in (0, 1)])
    )
    assert (
        found["per_class/a"] == pytest.approx((guesses[labels == 0] == 0).mean())
        and "per_class/c" not in found
    )
    assert found["confusion/b/a"] == ((labels == 1) & (guesses == 0)).sum()
    two, few = np.repeat([0, 1], 10), logits[:, :2]
    one = compute({"balanced_accuracy": SET_METRICS["balanced_accuracy"]}, few, two, NAMES[:2])
    assert one["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(two, few.argmax(1)))


def test_calibration_error() -> None:
    logits = np.log(np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10))
    labels = np.array([0] * 7 + [1] * 3 + [1] * 6 + [0] * 4)
    found = compute({"e": SET_METRICS["calibration_error"]}, logits, labels, NAMES[:2])
    assert found["e"] == pytest.approx(0.5 * 0.2)


def test_several_labels_have_metrics_too() -> None:
    logits, labels = scores()
    there = np.stack([labels == 0, labels == 1, labels >= 0], axis=1).astype(np.float32)
    chosen = {name: SET_METRICS[name] for name in ("macro_f1", "mean_average_precision", "auc")}
    found = compute(chosen, logits, there, NAMES)
    assert found["macro_f1"] == pytest.approx(f1_score(there, logits >= 0, average="macro"))
    with pytest.raises(UserError, match="'calibration_error' takes one label"):
        compute({"calibration_error": SET_METRICS["calibration_error"]}, logits, there, NAMES)


class Notes(gj.Callback):
    """Notes every call, and ends the run after so many steps."""

    def __init__(self, ends_at: int = 99) -> None:
        self.calls: list[tuple[str, int]] = []
        self._ends_at = ends_at

    def started(self, step: int, lines: Any) -> None:
        self.calls.append(("started", step))

    def evaluated(self, step: int, state: Any, lines: Any) -> None:
        assert [line["split"] for line in lines] == ["test[:100]"] * 2
        self.calls.append(("evaluated", step))

    def saved(self, step: int, state: Any) -> None:
        assert int(state.step) == step
        self.calls.append(("saved", step))

    def batch(self, step: int, batch: Any) -> None:
        assert batch["image"].shape == (100, 8, 8, 3)
        self.calls.append(("batch", step))

    def stepped(self, step: int, state: Any, metrics: Any) -> bool:
        assert np.isfinite(float(metrics["loss"]))
        self.calls.append(("stepped", step))
        return step == self._ends_at


class Lines(Writer):
    """A writer that keeps its lines in a file."""

    def __init__(self, folder: Path, config: Any, name: str = "lines") -> None:
        self._file = (folder / f"{name}.txt").open("a")
        self._file.write(f"{config['batch_size']}\n")

    def write(self, line: Any) -> None:
        self._file.write(f"{line['step']} {line['split']}\n")

    def close(self) -> None:
        self._file.close()


def short(folder: Path) -> Any:
    config = tiny_config(folder)
    config.data.eval_splits = ("test[:100]",)
    config.update(
        duration="4 steps", eval_every="2 steps", checkpoint_every="2 steps", log_every="1 steps"
    )
    return config


def test_callbacks_stand_at_the_loops_places(tmp_path: Path) -> None:
    config, notes = short(tmp_path / "d"), Notes(ends_at=3)
    if "lines" not in WRITERS:
        gj.register_writer("lines", Lines)
    config.writers.names, config.writers.options = ("lines",), {"lines": {"name": "mine"}}
    config.metrics = ("top1", "balanced_accuracy", "per_class")
    gj.train(config, tmp_path / "run", callbacks=[notes])
    assert notes.calls == [
        ("started", 0), ("batch", 0), ("stepped", 1), ("batch", 1), ("stepped", 2),
        ("evaluated", 2), ("saved", 2), ("batch", 2), ("stepped", 3), ("saved", 3),
    ]  # fmt: skip
    (entry,) = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert entry["outcome"] == "stopped by Notes" and entry["last_step"] == 3
    assert (tmp_path / "run" / "mine.txt").read_text().split()[:3] == ["100", "1", "train"]
    again = Notes()
    gj.train(config, tmp_path / "run", callbacks=[again])
    assert again.calls[:2] == [("started", 3), ("batch", 3)] and again.calls[-1] == ("saved", 4)
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    shares = [line[f"per_class/{name}"] for name in gj.load(tmp_path / "run").class_names]
    assert line["balanced_accuracy"] == pytest.approx(np.mean(shares))


@pytest.mark.proof
def test_early_stopping_holds_when_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = short(tmp_path / "d")
    config.duration, config.eval_every = "9 steps", "1 steps"
    config.callbacks.names = ("early_stopping",)
    options = {"metric": "loss", "patience": 2, "min_delta": 100.0}  # nothing is better than that
    config.callbacks.options = {"early_stopping": options}
    for _ in range(2):
        gj.train(config, tmp_path / "run")
        assert "ended by EarlyStopping after step 3 of 9" in capsys.readouterr().err
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3
    config.callbacks.options = {"early_stopping": {"patiense": 2}}
    with pytest.raises(UserError, match=r"callbacks\.options\.patiense.*did you mean 'patience'"):
        gj.train(config, tmp_path / "other")


def warming(output: Any, batch: Any, step: Any = 1000, warm: float = 100.0) -> Any:
    """Cross entropy whose weight rises over the first steps."""
    loss, parts = weighted_cross_entropy(output, batch)
    share = jnp.minimum(step / warm, 1)
    return share * loss, {**parts, "share": share}


def brighter(batch: Any, key: Any, step: Any, by: float = 1.0) -> Any:
    return batch | {"image": batch["image"] + by * step}


@pytest.mark.proof
def test_losses_and_augmentations_take_the_step_and_options(tmp_path: Path) -> None:
    if "warming" not in LOSSES:
        gj.register_loss("warming", warming)
    if "brighter" not in AUGMENTATIONS:
        gj.register_augmentation("brighter", brighter)
    config = short(tmp_path / "d")
    config.loss.name, config.loss.options = "warming", {"warm": 10.0}
    config.augment.transforms, config.augment.options = ("brighter",), {"brighter": {"by": 2.0}}
    gj.train(config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    shares = [line["share"] for line in lines if line["split"] == "train"]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3])
    task = resolve(config).open(create_mesh())
    batch = {"image": jnp.zeros((1, 8, 8, 3), jnp.uint8), "label": jnp.zeros(1, jnp.int32)}
    early, late = (task.prepare(batch, jax.random.key(0), step=step)["image"] for step in (0, 7))
    np.testing.assert_allclose((late - early) * 95.9, 14, rtol=1e-4)
    config.augment.options = {"brighter": {"bye": 2.0}}
    with pytest.raises(UserError, match=r"augment\..*bye.*did you mean 'by'"):
        resolve(config)
    with pytest.raises(UserError, match="give its `step` a default"):
        LOSSES.register("stepless", lambda output, batch, step: (0.0, {}))
        create_loss("stepless")


def test_sam_takes_the_gradient_elsewhere() -> None:
    params = {"head": {"kernel": jnp.array([[1.0, -2.0]])}}
    gradient = jax.grad(lambda p: (p["head"]["kernel"] ** 4).sum())
    sam = create_optimizer(
        lambda _: 0.1, "sam", momentum=0.0, weight_decay=0.0, options={"rho": 0.5}
    )
    grads = gradient(params)
    updates, _ = sam.update(grads, sam.init(params), params, grad_fn=lambda p, _: gradient(p))
    away = jax.tree.map(lambda p, g: p + 0.5 * g / optax.tree.norm(grads), params, grads)
    expected = jax.tree.map(lambda g: -0.1 * g, gradient(away))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.proof
def test_a_run_with_two_gradients_a_step(tmp_path: Path) -> None:
    config = short(tmp_path / "d")
    config.duration = "2 steps"
    config.optimizer.name, config.optimizer.options = "sam", {"rho": 0.1}
    gj.train(config, tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


def test_advice_for_the_batch_size_holds() -> None:
    from jax.sharding import AbstractMesh

    mesh = AbstractMesh((8,), ("data",))
    with pytest.raises(
        UserError, match=r"20 examples.*8 devices × devices\.accumulate, 2 parts.*such as 32"
    ):
        check_batch_size(20, mesh, 2)
    check_batch_size(32, mesh, 2)


@pytest.mark.proof
def test_the_learning_rates_range(tmp_path: Path) -> None:
    config = short(tmp_path / "d")
    found = gj.find_learning_rate(config, lowest=1e-4, highest=100, steps=25, smoothing=0.5)
    assert found.rates[0] == pytest.approx(1e-4) and found.rates[1] > found.rates[0]
    assert 1e-4 < found.suggestion < 1 and min(found.losses) < found.losses[0]
    found.draw(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 1000


@pytest.mark.proof
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = WRITERS["wandb"](tmp_path, {"seed": 1})
    writer.write({"step": 1, "epoch": 0.1, "split": "train", "loss": 2.0})
    writer.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "wandb.json").read_text())["id"]


@pytest.mark.proof
def test_mlflow_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs SQLAlchemy
    tracking = pytest.importorskip("mlflow.tracking")
    place = f"{tmp_path}/mlruns"
    for step in (1, 2):  # a resumed run goes on in its own
        writer = WRITERS["mlflow"](tmp_path, {"a": {"b": 3}}, tracking_uri=place)
        writer.write(
            {"step": step, "epoch": 1, "split": "test", "weights": "ema", "top1": step / 4}
        )
        writer.close()
    client = tracking.MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("googlenet_jax").experiment_id])
    assert run.data.params == {"a.b": "3"} and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "test_ema/top1")
    assert [(each.step, each.value) for each in history] == [(1, 0.25), (2, 0.5)]


def test_a_tracker_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"'wandb' is not installed: pip install"):
        WRITERS["wandb"](tmp_path, {})
