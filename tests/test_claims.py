"""docs/claims.md says what the code computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.proof
def test_the_page_holds_what_the_code_computes() -> None:
    command = [sys.executable, "-m", "proofs", "claims", "--check", "--gradients"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"differences": []}
