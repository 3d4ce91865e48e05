"""A sample of `python -m proofs fuzz_pictures`: mutants of each format, through three doors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
def test_mutants_of_every_format_are_bad_images_at_every_door_and_good_ones_served():
    """In a process of its own, which a decoder may end."""
    command = [sys.executable, "-m", "proofs", "fuzz_pictures", "--mutants", "12"]
    done = subprocess.run([*command, "--together"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert figures["mutants"] == 120 and figures["unreadable"] > 60 and figures["good_served"] > 0
