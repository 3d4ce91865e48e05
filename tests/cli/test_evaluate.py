"""`googlenet-jax evaluate` on a run's folder."""

import json
from pathlib import Path

import pytest

from googlenet_jax.cli.main import main


def test_evaluates_the_runs_own_split_and_average_by_default(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run_folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [result[key] for key in ("step", "weights", "data", "split")] == [12, "ema", "digits", "test"]
    assert 0.05 < result["top1"] < 0.2  # it says "seven" to everything
    assert 0.3 < result["top5"] < 0.7
    assert result["loss"] > 1


def test_prints_for_a_person(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run_folder), "--split", "train[:10%]", "--weights", "raw", "--batch-size", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run_folder}, step 12, raw weights, on digits train[:10%]"
    assert [line.split()[0] for line in lines[2:]] == ["examples", "loss", "top-1", "top-5"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--split", "tset"], "split 'tset'"),
        (["--batch-size", "0"], "batch size: expected at least 1, found 0"),
    ],
)
def test_says_what_is_wrong(run_folder: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(run_folder), *argv]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err and "unexpected" not in captured.err
    assert captured.err.count("\n") == 1


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--run", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
