"""`sweep` and `table`: runs over a grid and seeds, and their means; what a run was made with."""

import csv
import io
import itertools
import json
import math
import shlex
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from googlenet_jax.cli.main import main
from googlenet_jax.cli.sweep import folder_name, parse_axis
from googlenet_jax.errors import UserError
from googlenet_jax.runtime import process
from googlenet_jax.training.curves import draw_curves
from googlenet_jax.training.writers import read_metrics

CONFIG = """
from pathlib import Path
from tests.training.tiny_run import tiny_config


def get_config(arg=""):
    config = tiny_config(Path({data!r}))
    config.data.train_split, config.data.eval_splits = "train[:40]", ("test[:20]",)
    config.batch_size = config.eval_batch_size = 20
    config.duration = config.eval_every = config.checkpoint_every = config.log_every = "2 steps"
    return config
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of four runs, two rates and two seeds, as training leaves them."""
    folder = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    for rate, seed in itertools.product((0.05, 0.1), (0, 1)):
        run = folder / "runs" / f"learning_rate={rate},seed={seed}"
        run.mkdir(parents=True)
        config = {"seed": seed, "schedule": {"learning_rate": rate}, "data": {"threads": seed}}
        (run / "config.json").write_text(json.dumps(config))
        lines = [{"step": 1, "epoch": 1, "split": "train", "loss": 2.0, "learning_rate": rate}]
        for step, weights in itertools.product((1, 2), ("raw", "ema")):
            figures = {"loss": rng.random(), "top1": rng.random(), "examples": 20}
            line = {"step": step, "epoch": step, "split": "test", "weights": weights, **figures}
            lines.append(line)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A sweep of two rates and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "my_config.py").write_text(CONFIG.format(data=str(data_dir)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "prepare", lambda: None)
        assert main(command(folder)) == 0
    return folder


def command(folder: Path, *more: str) -> list[str]:
    grid = ["--grid", "schedule.learning_rate=0.05,0.1", "--seeds", "0,1"]
    place = ["--workdir", str(folder / "runs"), "--config.optimizer.momentum=0.8"]
    return ["sweep", str(folder / "my_config.py"), *grid, *place, *more]


def last(run: Path) -> dict[str, Any]:
    lines = read_metrics(run / "metrics.jsonl")
    return next(line for line in reversed(lines) if line.get("weights") == "ema")


@pytest.mark.proof
def test_a_sweep_trains_the_grid(swept: Path) -> None:
    names = {path.name for path in (swept / "runs").iterdir()}
    assert names == {
        f"learning_rate={rate},seed={seed}" for rate in ("0.05", "0.1") for seed in (0, 1)
    }
    for name in names:
        config = json.loads((swept / "runs" / name / "config.json").read_text())
        assert f"learning_rate={config['schedule']['learning_rate']},seed={config['seed']}" == name
        assert config["optimizer"]["momentum"] == 0.8


@pytest.mark.proof
def test_the_same_command_leaves_finished_runs(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "prepare", lambda: None)
    before = {path: path.stat().st_mtime_ns for path in (swept / "runs").glob("*/*.json*")}
    assert main(command(swept)) == 0
    assert capsys.readouterr().err.count("this run is finished") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (swept / "runs").glob("*/*.json*")}


@pytest.mark.proof
def test_commands_for_an_array(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(swept, "--print")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    words = shlex.split(lines[1])
    assert words[:2] == ["googlenet-jax", "train"]
    assert {"--config.seed=1", "--config.schedule.learning_rate=0.05"} <= set(words)
    assert f"--workdir={swept / 'runs'}/learning_rate=0.05,seed=1" in words


@pytest.mark.proof
def test_a_second_run_of_the_same_shapes_compiles_nothing(swept: Path) -> None:
    starts = {
        path.parent.name: json.loads(path.read_text())["starts"]
        for path in (swept / "runs").glob("*/run.json")
    }
    assert {len(each) for each in starts.values()} == {1}
    assert starts["learning_rate=0.05,seed=1"][0]["compile_seconds"] == 0
    assert starts["learning_rate=0.1,seed=1"][0]["compile_seconds"] == 0
    assert (
        starts["learning_rate=0.1,seed=0"][0]["compile_seconds"] > 0
    )  # the rate is in the program


@pytest.mark.proof
def test_what_a_run_was_made_with(swept: Path) -> None:
    path = swept / "runs" / "learning_rate=0.05,seed=0" / "run.json"
    (entry,) = json.loads(path.read_text())["starts"]
    assert entry["outcome"] == "finished" and entry["ended"] >= entry["started"]
    assert (entry["first_step"], entry["last_step"], entry["examples_seen"]) == (0, 2, 40)
    assert entry["versions"]["jax"] == jax.__version__
    assert entry["hardware"]["devices"] == jax.device_count() and len(entry["hosts"]) == 1
    assert entry["peak_memory_bytes"]["host"] > 1e7
    assert set(entry["package"]) == {"version", "commit", "clean"}


def test_the_table_is_mean_and_deviation(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = written / "runs"
    losses = [last(runs / f"learning_rate=0.1,seed={seed}")["loss"] for seed in (0, 1)]
    mean, deviation = statistics.mean(losses), statistics.stdev(losses)
    assert main(["table", str(runs), "--metrics", "top1,loss", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["schedule.learning_rate"] for row in rows] == ["0.05", "0.1"]
    assert float(rows[1]["loss_mean"]) == pytest.approx(mean)
    assert float(rows[1]["loss_sd"]) == pytest.approx(deviation) and rows[1]["runs"] == "2"
    for form, found in (
        ("text", f"{mean:.3f} ± {deviation:.3f}"),
        ("markdown", f"{mean:.3f} ± {deviation:.3f} |"),
        ("latex", rf"{mean:.3f} $\pm$ {deviation:.3f} \\"),
    ):
        assert main(["table", str(runs), "--metrics", "top1,loss", "--format", form]) == 0
        text = capsys.readouterr().out
        assert found in text.splitlines()[{"latex": -3}.get(form, -1)]
    assert r"learning\_rate & runs & top1, \% & loss \\" in text
    assert main(["table", str(runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runs"] == 2
    assert main(["table", str(runs), "--metrics", "top2"]) == 1
    assert "did you mean 'top" in capsys.readouterr().err


def test_the_plot_shades_the_spread(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "googlenet_jax.training.curves.draw_curves",
        lambda runs, path: drawn.update(runs) or draw_curves(runs, path),
    )
    runs = sorted(map(str, (written / "runs").iterdir()))
    assert main(["plot", *runs, "--output", str(written / "spread.svg")]) == 0
    assert list(drawn) == ["learning_rate=0.05", "learning_rate=0.1"]
    ours = reversed(drawn["learning_rate=0.1"])
    line = next(line for line in ours if line.get("weights") == "ema")
    losses = [last(written / "runs" / f"learning_rate=0.1,seed={seed}")["loss"] for seed in (0, 1)]
    assert line["loss"] == pytest.approx(statistics.mean(losses))
    assert line["loss_sd"] == pytest.approx(statistics.stdev(losses))


def test_axes() -> None:
    assert parse_axis("augment.transforms=(),('a', 'b')") == (
        "augment.transforms",
        ["()", "('a', 'b')"],
    )
    assert (
        folder_name([("a.x", "('a', 'b')"), ("b.x", "1"), ("seed", "2")]) == "a.x=a_b,b.x=1,seed=2"
    )
    for wrong in ("rate", "rate=", "rate=1,1"):
        with pytest.raises(UserError, match="expected FIELD=VALUE"):
            parse_axis(wrong)


@pytest.mark.proof
def test_a_run_that_fails_is_told_and_the_others_go_on(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "prepare", lambda: None)
    grid = ["--grid", "schedule.learning_rate=1e30,0.05"]
    assert main(["sweep", str(swept / "my_config.py"), *grid, "--workdir", str(tmp_path)]) == 1
    assert "1 of 2 failed: learning_rate=1e30" in capsys.readouterr().err
    assert math.isfinite(last(tmp_path / "learning_rate=0.05")["loss"])
    (entry,) = json.loads((tmp_path / "learning_rate=1e30" / "run.json").read_text())["starts"]
    assert "is not finite" in entry["outcome"] or "nan" in entry["outcome"]
