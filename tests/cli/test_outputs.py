"""A place that can't be written is refused before any work is done, in the right words."""

import os
from pathlib import Path

import pytest

from googlenet_jax.cli.main import main

COMMANDS = {
    "plot": ["plot", "RUN", "--output", "PLACE/curves.png"],
    "verify": ["verify", "googlenet", "--html", "PLACE/page.html"],
    "predict": ["predict", "--weights", "RUN", "RUN/a.jpg", "--grid", "PLACE/grid.png"],
    "export": ["export", "googlenet_plain", "--weights", "RUN", "--output", "PLACE/a.stablehlo"],
    "convert": ["convert", "RUN", "PLACE/a.safetensors"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["missing", "a file", "closed"])
def test_an_output_s_place_comes_first(name, place, tmp_path: Path, monkeypatch, capsys):
    """The run is not there either, and is not asked for."""
    if place == "a file":
        (tmp_path / place).write_text("")
    elif place == "closed":
        (tmp_path / place).mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    places = {"PLACE": str(tmp_path / place), "RUN": str(tmp_path / "run")}
    argv = [
        part.replace("PLACE", places["PLACE"]).replace("RUN", places["RUN"])
        for part in COMMANDS[name]
    ]
    assert main(argv) == 1
    said = capsys.readouterr().err
    expected = {"missing": "found nothing", "a file": "found a file", "closed": "Permission denied"}
    assert "can't be written" in said and expected[place] in said and said.count("\n") == 1
