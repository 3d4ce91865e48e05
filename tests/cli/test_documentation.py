"""What the documentation shows works: its Python runs, its commands exist, its site builds."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import googlenet_jax as gj
from googlenet_jax.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Commands that a page's Python needs the files of.
EXPORTS = re.compile(r"^ +googlenet-jax (export .* --output \S+)$", re.MULTILINE)
# In place of what is downloaded, and of what takes long: the run beside which a page's code runs.
STANDS_FOR = {'"googlenet_torchvision"': '"runs/digits"', "googlenet_bn": "googlenet_plain"}
ELSEWHERE = {"docs/extending.md", "docs/fid.md", "docs/nnx.md"}  # other tests run these


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    for name, other in STANDS_FOR.items() if page.name in ("README.md", "export.md") else ():
        text = text.replace(name, other)
    return text


def blocks(page: Path) -> list[str]:
    found = BLOCK.findall(text_of(page))
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.mark.parametrize(
    "page",
    [p for p in [ROOT / "README.md", *PAGES] if blocks(p) and name_of(p) not in ELSEWHERE],
    ids=name_of,
)
def test_the_python_of_a_page_runs(
    page: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a page run one after the other, beside a run and a picture of the names in it."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(run_folder, tmp_path / "runs" / "digits")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    picture.save(tmp_path / "photo.jpg")
    for command in EXPORTS.findall(text_of(page)):
        assert main(command.split()) == 0, command
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, name_of(page), "exec"), names)


def options(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """Each subcommand's flags."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: {flag for each in sub._actions for flag in each.option_strings}
        for name, sub in action.choices.items()
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    known = options(build_parser())
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in lines:
        match = re.match(r"\s*(?:\$ )?googlenet-jax (\w+)(.*)", line)
        if not match:
            continue
        assert match[1] in known, line
        command = re.sub(r"\s{2,}\S.*|#.*", "", match[2])  # without what is said of it
        for flag in re.findall(r"(?<!\S)\[?(--[a-z][\w-]*)(?![\w.-])", command):
            assert flag in known[match[1]], line


def test_the_reference_has_every_public_name() -> None:
    text = "".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    there = {name.rsplit(".", 1)[1] for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    public = {*gj.__all__, *gj.weights.__all__, *gj.metrics.__all__} - {"weights", "metrics"}
    assert public <= there


def test_the_navigation_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- (\S+\.md)$", text, re.MULTILINE))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


@pytest.mark.exhaustive
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "reference" / "weights.html").read_text(encoding="utf-8")
    assert "TrainedModel" in page and "Raises" in page
