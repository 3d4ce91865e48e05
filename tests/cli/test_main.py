"""The command itself: exit statuses, where things are printed, and that `--help` stays fast."""

import argparse
import subprocess
import sys

import pytest

from googlenet_jax.cli import main as command
from googlenet_jax.cli import summary
from googlenet_jax.errors import UserError


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(summary, "run", run)


def test_user_error_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, UserError("the field\nis wrong"))
    assert command.main(["summary", "googlenet"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "googlenet-jax: the field is wrong\n")


def test_a_defect_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyError("x"))
    assert command.main(["summary", "googlenet"]) == 1
    assert (
        capsys.readouterr().err == "googlenet-jax: unexpected KeyError: 'x' (--debug shows where)\n"
    )


@pytest.mark.parametrize(
    "argv", [["--debug", "summary", "googlenet"], ["summary", "googlenet", "--debug"]]
)
def test_debug_shows_the_traceback(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, UserError("wrong"))
    assert command.main(argv) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, KeyboardInterrupt())
    assert command.main(["summary", "googlenet"]) == 130


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nothing"],
        ["summary"],
        ["summary", "googlenet", "--size", "many"],
        ["predict", "--weights", "x"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(argv)
    assert caught.value.code == 2
    assert "usage: googlenet-jax" in capsys.readouterr().err


def test_broken_pipe_is_quiet() -> None:
    code = """
import os, sys
from googlenet_jax.cli import main, summary
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
summary.run = lambda args: print("text") or 0
sys.exit(main.main(["summary", "googlenet"]))
"""
    process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert (process.returncode, process.stderr) == (141, "")


def test_help_imports_nothing_slow() -> None:
    code = """
import sys
from googlenet_jax.cli import main
try:
    main.main(["--help"])
except SystemExit:
    pass
slow = {"jax", "flax", "orbax", "matplotlib", "tensorflow_datasets", "cv2", "PIL", "numpy"} & set(sys.modules)
print("slow:", sorted(slow), file=sys.stderr)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr == "slow: []\n"
    assert all(name in process.stdout for name in command.SUBCOMMANDS)


def test_python_dash_m_is_the_same_command() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "googlenet_jax", "summary", "googlenit"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.startswith(
        "googlenet-jax: unknown model 'googlenit' (did you mean 'googlenet'?)"
    )
    assert process.stderr.count("\n") == 1
