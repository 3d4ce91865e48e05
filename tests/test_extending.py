"""docs/extending.md: every file and every command in it works, here at a small size."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

import googlenet_jax as gj
from googlenet_jax.cli.main import main
from googlenet_jax.cli.train import read_config
from googlenet_jax.models import registry
from googlenet_jax.runtime import process
from googlenet_jax.training.config import resolve
from googlenet_jax.training.writers import read_metrics
from tests.training.tiny_run import Tiny

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {
    name: text for text, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", TEXT, re.DOTALL)
}
COMMANDS = {}
for line in re.findall(r"^    googlenet-jax (.*)$", TEXT, re.MULTILINE):
    COMMANDS.setdefault(line.split()[0], []).append(shlex.split(line))
SMALL = {
    "duration": "2 steps",
    "schedule.warmup": "0 steps",
    "log_every": "1 step",
    "batch_size": 16,
    "eval_batch_size": 360,
}
TINY = {"model.name": "tiny", "preprocessing.size": 8, "preprocessing.resize": 8}


class TinyOfTheConfig(Tiny):
    """Takes the options that configs/digits.py sets."""

    stem: str = "small"


@pytest.fixture
def folder(monkeypatch, tmp_path, data_dir, compiled_dir):
    """A folder with the page's files, in which its commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "prepare", lambda: None)  # it sets JAX up for a whole process
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setitem(registry._MODELS, "tiny", TinyOfTheConfig)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def fields(values):
    return [f"--config.{name}={value}" for name, value in values.items()]


def small(data_dir):
    return fields({**SMALL, "data.dir": data_dir})


def test_the_page_names_its_files_and_commands():
    assert set(FILES) == {
        "my_network.py", "my_config.py", "from_python.py", "my_loss.py", "my_set_metric.py", "my_optimizer.py",
        "my_schedule.py", "my_augmentation.py", "my_callback.py", "my_data.py",
    }  # fmt: skip
    assert {name: len(lines) for name, lines in COMMANDS.items()} == {
        "summary": 1,
        "train": 8,
        "evaluate": 1,
    }
    network = FILES["my_network.py"].split("\n\n\n")
    assert sum(len(part.splitlines()) for part in network[1:]) <= 30


ABLATIONS = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \|$", TEXT, re.MULTILINE)
MINE = ("my_network", "my_loss", "my_optimizer", "my_schedule", "my_augmentation")


def ablated(given):
    """The config of digits with an ablation's fields."""
    for module in MINE:
        importlib.import_module(module)
    return read_config("digits", [f"--config.{field}" for field in given.split(" ")])


def test_every_ablation_is_a_config(folder):
    assert len(ABLATIONS) >= 30 and len(dict(ABLATIONS)) == len(ABLATIONS)
    plain = resolve(read_config("digits", [])).config.to_dict()
    for what, given in ABLATIONS:
        assert resolve(ablated(given)).config.to_dict() != plain, what


@pytest.mark.proof
@pytest.mark.parametrize(("what", "given"), ABLATIONS, ids=[what for what, _ in ABLATIONS])
def test_every_ablation_trains(folder, data_dir, what, given):
    config = ablated(given)
    if not re.search(r"model\.|augment\.size", given):  # most say nothing of the network
        config.update_from_flattened_dict(TINY)
    elif config.model.options.get("width") == 0.25:
        config.model.options.width = 0.0625
    config.data.update(dir=str(data_dir), eval_splits=("test[:20]",))
    config.update_from_flattened_dict({**SMALL, "duration": "2 steps", "eval_batch_size": 20})
    gj.train(config, "runs/ablation")
    assert [line["step"] for line in read_metrics(Path("runs/ablation/metrics.jsonl"))][-1] == 2


@pytest.mark.proof
def test_data_of_ones_own(folder, capsys):
    exec(FILES["my_data.py"], {})
    assert "(2, 3)" in capsys.readouterr().out


@pytest.mark.proof
def test_a_network_of_ones_own_is_summarized_trained_and_evaluated(folder, data_dir, capsys):
    assert main([*COMMANDS["summary"][0], "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert {"conv1", "fire2", "head"} <= set(names) or {"conv1", "fire2/squeeze", "head"} <= set(
        names
    )
    assert main([*COMMANDS["train"][0], *small(data_dir)]) == 0
    assert main([*COMMANDS["evaluate"][0], "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["examples"] == 360


@pytest.mark.proof
def test_the_same_from_python(folder, data_dir, capsys):
    program = FILES["from_python.py"]
    settings = (
        f"config.update_from_flattened_dict({ {**SMALL, 'data.dir': str(data_dir)}!r})\ngj.train("
    )
    exec(program.replace("gj.train(", settings), {})
    assert "SqueezeNet" in capsys.readouterr().out


@pytest.mark.proof
@pytest.mark.parametrize(
    "command", COMMANDS["train"][1:], ids=lambda command: command[-1].split("=")[0]
)
def test_a_loss_an_optimizer_and_augmentations(folder, data_dir, command):
    assert main([*command, *small(data_dir), *fields(TINY)]) == 0
    workdir = next(part.split("=")[1] for part in command if part.startswith("--workdir"))
    train, test = (
        [
            line
            for line in read_metrics(Path(workdir) / "metrics.jsonl")
            if (line["split"] == "train") == training
        ]
        for training in (True, False)
    )
    assert [line["step"] for line in train] == [1, 2]
    assert all(("confidence" in line) == (workdir == "runs/focal") for line in [*train, *test])
