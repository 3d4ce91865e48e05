"""The planted faults: each can be planted, and a sample is seen; `python -m proofs mutations` tries
all of them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def mutations(*arguments: str) -> tuple[int, dict]:
    """The exit status and the last line of `python -m proofs mutations`."""
    command = [sys.executable, "-m", "proofs", "mutations", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_each_fault_can_be_planted() -> None:
    status, found = mutations("--check")
    assert (status, found["problems"]) == (0, [])
    assert found["faults"] >= 30


@pytest.mark.proof
def test_planted_faults_are_seen(tmp_path: Path) -> None:
    sample = ("images are flipped upside down", "equal probabilities stand in reverse")
    status, found = mutations("--only", *sample, "--state", str(tmp_path / "state.json"))
    assert (status, found) == (0, {"faults": 2, "alive": []})
