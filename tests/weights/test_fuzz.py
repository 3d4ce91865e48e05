"""A sample of `python -m proofs fuzz_weights`: mutated files crash, hang and run nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits its memory by /proc")
def test_mutated_files_are_read_or_refused() -> None:
    """In a process of its own, since it forks one for every file."""
    pytest.importorskip("h5py")
    command = [sys.executable, "-m", "proofs", "fuzz_weights", "--files", "25", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert {result["kind"] for result in results} == {"pytorch", "safetensors", "caffe", "keras"}
    for result in results:
        assert result["findings"] == []
        assert result.get("written", 0) + result["refused"] == 25
        assert result["largest_growth_mb"] < 3 + 64
