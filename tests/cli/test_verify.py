"""`googlenet-jax verify`."""

import json
from pathlib import Path

import pytest

from googlenet_jax.cli.main import main

pytestmark = pytest.mark.usefixtures("small_network")

PORT = """
from __future__ import annotations
from dataclasses import dataclass
from tests.verification.small import Twin

class Port(Twin):
    def __init__(self, num_classes=5):
        super().__init__(num_classes)
        self.ceil = False

@dataclass
class Settings:
    width: int = 1

class Fine(Twin):
    pass

fine = Fine()

class Broken(Twin):
    def forward(self, x):
        raise RuntimeError("no such\\nluck")

def number():
    return 3
"""


@pytest.fixture
def port(tmp_path: Path) -> Path:
    path = tmp_path / "port.py"
    path.write_text(PORT)
    return path


def call(port: Path, name: str, *arguments: str) -> int:
    given = ["--against", f"{port}:{name}", "--option", "num_classes=5", "--steps", "0"]
    return main(["verify", "small", *given, *arguments])


def test_a_fault_is_said_on_the_screen_and_in_files(
    port: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page, pull, pairs = (tmp_path / name for name in ("report.html", "report.md", "pairs.json"))
    files = ["--html", str(page), "--markdown", str(pull), "--save-map", str(pairs)]
    assert call(port, "Port", *files) == 3
    out, err = capsys.readouterr()
    assert "different: ceil against floor (pool1" in out
    assert "segment by segment" in err
    html = page.read_text()
    assert "ceil against floor" in html and html.count("<svg") == 1 + ("by channel" in html)
    assert "http" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "").replace("http://creativecommons.org", "")
    assert f"--against {port}:Port" in html  # how to repeat it
    assert "jax" in html and "float64" in html
    assert "| ≠ |" in pull.read_text()
    assert json.loads(pairs.read_text())["params/conv1/kernel"] == "conv1.conv.weight"


def test_json_and_a_map(port: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = tmp_path / "pairs.json"
    pairs.write_text('{"params/conv2/kernel": "conv2.conv.weight"}')
    assert call(port, "Port", "--json", "--map", str(pairs)) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["explanations"][0]["fault"] == "ceil against floor"
    assert {"reference": "conv2", "candidate": "conv2.conv.weight", "by": "map"} in found["pairs"]


def test_equal_is_0_for_an_object_and_for_any_pair(port: Path, capsys: pytest.CaptureFixture[str]):
    assert call(port, "fine") == 0
    assert "equal to rounding" in capsys.readouterr().out
    pair = ["--reference", f"{port}:Fine", "--candidate", f"{port}:Port", "--size", "14"]
    assert main(["verify", *pair, "--steps", "0"]) == 3
    assert "ceil against floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Prot", "has no 'Prot' (did you mean 'Port'?)"),
        ("number", "expected a torch.nn.Module"),
        ("Broken", "does not run on inputs [4, 3, 14, 14]: RuntimeError: no such luck"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(
    port: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
):
    assert call(port, name) == 1
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--against", "no.py:X"], "with a file that exists, found 'no.py:X'"),
        (["small"], "there is no PyTorch reference of small"),
        ([], "give a MODEL, or --reference"),
        (["small", "--reference", "a.py:A"], "give a MODEL, or --reference"),
        (
            ["googlenet_bn", "--option", "fully_connected_head=true"],
            "leave fully_connected_head at",
        ),
        (["googlenet_bn", "--dtype", "int8", "--size", "32"], "expected one of float64, float32"),
        (["googlenet", "--size", "8"], "images must be at least 31 high"),
        (["googlenet", "--steps", "-1"], "--steps: expected a whole number of at least 0"),
        (["googlenet", "--size", "0"], "--size: expected a whole number of at least 1, found 0"),
        (["googlenet", "--against", "keras"], "keras.applications has InceptionV3 alone"),
        (["googlenet", "--images", "none.jpg"], "none.jpg"),
    ],
)
def test_what_cannot_be_verified_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", *arguments]) == 1
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]
