"""The command line: what is wrong is one line on standard error with the right exit status; what is
right trains.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from googlenet_jax.cli.main import main
from googlenet_jax.cli.train import read_config
from googlenet_jax.runtime import process
from googlenet_jax.training.writers import read_metrics

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `googlenet-jax train` in this process: (exit status, standard error)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(process, "prepare", lambda: None)  # it sets JAX up for a whole process

    def run(*arguments):
        try:
            status = main(["train", *arguments])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--config.batchsize=3"],
            "batchsize: a config has no such field (did you mean 'batch_size'?)",
        ),
        (
            ["--config.schedule.learning_rat=3"],
            (
                "schedule.learning_rat: a config has no such field (did you mean"
                " 'schedule.learning_rate'?)"
            ),
        ),
        (["--config.batch_size=3.5"], "batch_size: expected a value such as 64, found '3.5'"),
        (
            ["--config.schedule.learning_rate", "fast"],
            "schedule.learning_rate: expected a value such as 0.1, found 'fast'",
        ),
        (
            ["--config.augment.flip=maybe"],
            "augment.flip: expected a value such as False, found 'maybe'",
        ),
        (
            ["--config.data=digits"],
            "data: expected one of its fields, such as --config.data.name=digits, found 'digits'",
        ),
        (
            ["--config.model.options.dropout=2"],
            "option 'dropout' must be a rate from 0 to below 1, found 2",
        ),
        (
            ["--config.model.options.width=0.25", "--config.batchsize=3"],
            "batchsize: a config has no such field",
        ),
        (
            ["--config.model.options.drop=0.1"],
            "googlenet_bn has no option 'drop' (did you mean 'dropout'?)",
        ),
        (
            ["--config.optimizer.momentum=2"],
            "optimizer.momentum: expected a number of at least 0 and below 1, found 2.0",
        ),
        (
            ["--config.model.options.width=abc"],
            "model.options.width: expected a value such as 0.25, found 'abc'",
        ),
        (
            ["--config.model.options.width=1e300"],
            "option 'width' must be a positive number of at most 64, found 1e+300",
        ),
        (
            ["--config.data_dir=x"],
            "data_dir: a config has no such field (did you mean 'data.dir'?)",
        ),
        (
            ["--config.batch_size=1000000000"],
            "batch_size: 1,000,000,000 images of 32×32 take 3,072 GB, and the host has",
        ),
        (["--config.schedule.name=cosin"], "found 'cosin' (did you mean 'cosine'?)"),
        (["--config.model.name=googlnet"], "unknown model 'googlnet' (did you mean 'googlenet'?)"),
        (
            ["--config.data.name=nowhere", "--config.data.dir=nowhere"],
            "data set 'nowhere': not prepared in",
        ),
    ],
)
def test_what_a_config_does_not_allow_is_one_line(command, tmp_path, arguments, line):
    status, message = command(DIGITS, f"--workdir={tmp_path}/run", *arguments)
    assert status == 1
    assert message.startswith("googlenet-jax: ") and message.count("\n") == 1 and line in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            "configs/digit.py",
            "--config: there is no file 'configs/digit.py' (did you mean 'configs/digits.py'?)",
        ),
        (
            "digit",
            (
                "--config: there is no config 'digit' (did you mean 'digits'?): one of cifar10,"
                " cifar10_fast, detection_digits, "
            ),
        ),
        ("configs/digits.py:big", "configs/digits.py takes no argument, found 'big'"),
        ("{tmp}/broken.py", "--config: the config does not load: ZeroDivisionError"),
    ],
)
def test_a_config_that_does_not_load_is_one_line(command, tmp_path, config, line):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    status, message = command(
        f"--config={config.format(tmp=tmp_path)}", f"--workdir={tmp_path}/run"
    )
    assert (status, message.count("\n")) == (1, 1) and line in message


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([DIGITS], "the following arguments are required: --workdir"),
        (["--workdir=run"], "the following arguments are required: --config"),
        (
            [DIGITS, "--workdir=run", "--workdri=x"],
            "there is no --workdri (did you mean '--workdir'?)",
        ),
        ([DIGITS, "--workdir=run", "more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_usage_is_exit_status_2(command, arguments, line):
    status, message = command(*arguments)
    assert status == 2 and message.startswith("usage: ") and message.splitlines()[-1].endswith(line)


def test_what_follows_a_field_is_named(command, tmp_path):
    status, message = command(DIGITS, f"--workdir={tmp_path}/run", "--config.batch_size=3", "more")
    assert status == 1 and "'more' is no field" in message


@pytest.mark.parametrize("name", ["digits", "cifar10:tune"])
def test_configs_are_found_by_name_from_anywhere(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    config = read_config(name, ["--config.batch_size=32", "--config.model.options.width", "0.5"])
    assert (config.data.name, config.batch_size, config.model.options.width) == (
        name.split(":")[0],
        32,
        0.5,
    )
    assert config.data.train_split == ("train[:45000]" if ":" in name else "train")


def test_a_users_module_is_imported_from_the_current_folder(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text(
        "import googlenet_jax as gj\ngj.register_loss('mine', lambda output, batch: (0, {}))\n"
    )
    fields = (f"--workdir={tmp_path}/run", "--config.loss.name=mine", "--config.data.name=nowhere")
    assert "loss.name: expected one of" in command("--config=digits", *fields)[1]
    assert "data set 'nowhere'" in command("--config=digits", "--import=my_losses", *fields)[1]
    status, message = command("--config=digits", "--import=my_loses", *fields)
    assert (status, message.count("\n")) == (
        1,
        1,
    ) and "--import: can't import my_loses: ModuleNotFoundError" in message


def test_debug_shows_the_traceback(command, tmp_path):
    status, message = command(
        DIGITS, f"--workdir={tmp_path}/run", "--config.optimizer.momentum=2", "--debug"
    )
    assert status == 1 and "Traceback" in message and "UserError: optimizer.momentum" in message


@pytest.mark.proof
def test_the_first_command_trains_and_says_what_it_does(tmp_path):
    """configs/digits.py with the smallest network, in a process of its own; then once more, when it
    is finished.
    """
    fields = {
        "data.dir": tmp_path,
        "duration": "3 steps",
        "schedule.warmup": "1 step",
        "log_every": "1 step",
    }
    fields |= {
        "model.name": "googlenet_plain",
        "model.options.width": 0.0625,
        "preprocessing.size": 8,
        "preprocessing.resize": 8,
    }
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "train.py", DIGITS, f"--workdir={tmp_path}/run", *overrides]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        for _ in range(2)
    )
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert (
        "compiling…" in first.stderr
        and "images/s" in first.stderr
        and "test, ema: loss" in first.stderr
    )
    lines = [
        (line["step"], line["split"], line.get("weights"))
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
    ]
    assert lines == [
        (1, "train", None),
        (2, "train", None),
        (3, "train", None),
        (3, "test", "raw"),
        (3, "test", "ema"),
    ]
    assert any((tmp_path / "cache" / "googlenet_jax").glob("compiled-*/*"))
    assert (
        second.returncode == 0
        and second.stderr == f"{tmp_path}/run: this run is finished, all 3 steps are done\n"
    )
