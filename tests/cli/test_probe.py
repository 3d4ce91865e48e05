"""`googlenet-jax probe`: features of weights as they are, and a logistic regression on them."""

import json
from pathlib import Path

import pytest

from googlenet_jax.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_random_features_tell_digits_apart(run_folder: Path, capsys: Capture) -> None:
    command = ["probe", "digits", "--weights", str(run_folder)]
    command += ["--train-split", "train[:300]", "--split", "test[:100]"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == [300, 100]
    # The run's own head says "seven" to everything.
    assert 0.35 < found["top1"] <= found["train_top1"] <= 1
    assert set(found["per_class"]) == set("0123456789")
    assert (found["train_split"], found["split"]) == ("train[:300]", "test[:100]")

    assert main([*command, "--batch-size", "7"]) == 0
    text = capsys.readouterr().out
    assert f"top-1 {100 * found['top1']:.2f} %" in text


def test_one_class_alone_and_several_weights_are_refused(run_folder: Path, capsys: Capture) -> None:
    command = ["probe", "digits", "--train-split", "train[:1]"]
    assert main([*command, "--weights", str(run_folder)]) == 1
    assert "expected examples of two classes or more" in capsys.readouterr().err
    assert main([*command, "--weights", f"{run_folder},{run_folder}"]) == 1
    assert "--weights: expected one model, found 2" in capsys.readouterr().err
