"""`googlenet-jax evaluate` on runs' folders and weight files."""

import json
from pathlib import Path

import numpy as np
import pytest

from googlenet_jax.cli.main import main
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.weights.load import load
from googlenet_jax.weights.safetensors import save_weights

Capture = pytest.CaptureFixture[str]


def evaluate(*argv: str, capsys: Capture) -> dict:
    assert main(["evaluate", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluates_the_runs_own_split_and_average_by_default(
    run_folder: Path, capsys: Capture
) -> None:
    result = evaluate("--weights", str(run_folder), capsys=capsys)
    assert result["members"] == [{"name": str(run_folder), "step": 12, "weights": "ema"}]
    assert [result[key] for key in ("data", "split", "examples")] == ["digits", "test", 360]
    # It says "seven" to everything.
    assert result["top1"] == pytest.approx(36 / 360, abs=0.005)
    assert 0.3 < result["top5"] < 0.7
    assert result["loss"] > 1
    assert [row["cost"] for row in result["table"]] == [1]


def test_an_ensemble_in_one_pass_with_its_report(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    weights, output = f"{run_folder}@raw,{run_folder}@ema@12", tmp_path / "report"
    argv = ["--weights", weights, "--split", "train[:2%]", "--crops", "10", "--output", str(output)]
    result = evaluate(*argv, capsys=capsys)
    assert [each["weights"] for each in result["members"]] == ["raw", "ema"]
    assert [(row["models"], row["crops"]) for row in result["table"]] == [
        (1, 1), (2, 1), (1, 10), (2, 10)
    ]  # fmt: skip
    assert json.loads((output / "results.json").read_text())["table"] == result["table"]
    assert (output / "report.html").stat().st_size > 10_000
    lines = (output / "examples.jsonl").read_text().splitlines()
    assert len(lines) == 1 + result["examples"]

    again = evaluate(*argv, capsys=capsys)  # from the records
    assert again == result
    assert main(["evaluate", *argv[:4], "--output", str(output)]) == 1
    assert "another crops" in capsys.readouterr().err


def test_prints_for_a_person(run_folder: Path, capsys: Capture) -> None:
    argv = ["--weights", f"{run_folder}@raw", "--split", "train[:10%]", "--batch-size", "7"]
    assert main(["evaluate", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits train[:10%], 144 examples"
    assert lines[1] == f"{run_folder}@raw, step 12, raw weights"
    assert " ".join(lines[3].split()) == "models crops cost top-1 error top-5 error top-5 change"
    assert lines[4].split()[:3] == ["1", "1", "1"]


def test_a_weight_file_brings_its_preprocessing(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    trained, path = load(f"{run_folder}@raw"), tmp_path / "weights.safetensors"
    preprocessing = trained.preprocessing.to_dict()
    save_weights(path, trained.model, trained.variables, preprocessing, trained.class_names)
    data = ["--split", "train[:2%]", "--data", "digits"]
    data += ["--data-dir", trained.config["data"]["dir"]]
    from_file = evaluate("--weights", str(path), *data, capsys=capsys)
    from_run = evaluate("--weights", f"{run_folder}@raw", *data, capsys=capsys)
    assert from_file["table"] == from_run["table"]

    assert main(["evaluate", "--weights", str(path)]) == 1
    assert "--data: a weight file names no data set" in capsys.readouterr().err

    save_weights(path, trained.model, trained.variables)
    assert main(["evaluate", "--weights", str(path), *data]) == 1
    assert "doesn't say how images are prepared" in capsys.readouterr().err


def test_another_preprocessing_gives_other_numbers(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    trained, path = load(f"{run_folder}@raw"), tmp_path / "weights.safetensors"
    other = Preprocessing(size=9, resize=12, mean=(0, 0, 0), std=(255, 255, 255))
    save_weights(path, trained.model, trained.variables, other.to_dict())
    data = ["--split", "train[:5%]", "--data", "digits", "--crops", "10"]
    data += ["--data-dir", trained.config["data"]["dir"]]
    both = evaluate("--weights", f"{run_folder}@raw,{path}", *data, capsys=capsys)
    losses = [row["loss"] for row in both["alone"] if row["crops"] == 1]
    assert not np.isclose(*losses, rtol=0.01)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--split", "tset"], "split 'tset'"),
        (["--batch-size", "0"], "batch size: expected at least 1, found 0"),
        (["--weights", "raw"], "is no file, no run's folder and no public weights"),
    ],
)
def test_says_what_is_wrong(run_folder: Path, argv: list[str], said: str, capsys: Capture) -> None:
    assert main(["evaluate", "--weights", str(run_folder), *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err and "unexpected" not in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("rwa", "expected raw, ema or a step after '@', found 'rwa'"),
        ("99", "no checkpoint of step"),
    ],
)
def test_a_choice_that_a_run_does_not_have(
    run_folder: Path, choice: str, said: str, capsys: Capture
) -> None:
    assert main(["evaluate", "--weights", f"{run_folder}@{choice}"]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", "--weights", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
