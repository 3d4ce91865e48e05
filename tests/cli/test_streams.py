"""Standard streams that are closed or break, and Ctrl-C in the first moments of a command."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from googlenet_jax.cli.streams import Output

ROOT = Path(__file__).parents[2]
# SIGINT comes when the module that the first argument names is asked for.
INTERRUPTED = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from googlenet_jax.__main__ import main
sys.exit(main(["plot", "nowhere"]))
"""


@pytest.mark.parametrize("module", ["googlenet_jax.cli.main", "matplotlib"])
def test_ctrl_c_while_a_command_starts_is_one_line(module):
    command = [sys.executable, "-c", INTERRUPTED, module]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    said = "googlenet-jax: stopped by Ctrl-C"
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, said, "")


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_change_nothing_else(tmp_path, closed):
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 1, "epoch": 1.0, "split": "train", "loss": 2.0}\n')
    command = f"{sys.executable} -m googlenet_jax plot {tmp_path}/run --output {tmp_path}/a.png"
    done = subprocess.run(
        f"{command} {closed}", shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("loss 2.0000" in done.stdout) == ("1>&-" not in closed)
    failing = command.replace("/run", "/nothing")
    done = subprocess.run(
        f"{failing} {closed}", shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout


def test_what_a_streams_encoding_lacks_is_an_escape():
    for encoding, expected in (("ascii", b"caf\\xe9 \\u2026"), ("utf-8", "café …".encode())):
        held = io.BytesIO()
        stream = io.TextIOWrapper(held, encoding=encoding)
        print("café …", file=Output(stream), end="")
        stream.flush()
        assert held.getvalue() == expected


def test_a_broken_standard_error_is_no_error_of_its_own(tmp_path):
    command = f"{sys.executable} -m googlenet_jax plot {tmp_path} 2>&1 >/dev/null | true"
    shell = ["bash", "-c", f"set -o pipefail; {command}"]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1
