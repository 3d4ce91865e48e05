"""Imports run one way, and the package's root costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "googlenet_jax"
BESIDE = {"errors", "html_page", "registry"}  # files that every subpackage may import


def imported(subpackage: str) -> set[str]:
    """The other subpackages that its files import, wherever in them."""
    found = set()
    for path in (PACKAGE / subpackage).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {
                module.split(".")[1] for module in modules if module.startswith("googlenet_jax.")
            }
    return found - BESIDE - {subpackage}


def test_the_arrows_of_the_page_are_the_imports_and_run_one_way():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (\w+) → ([\w, ]+)$", text, re.MULTILINE)
    drawn = {name: set(targets.split(", ")) for name, targets in lines}
    there = {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert {name: drawn.get(name, set()) for name in there} == {
        name: imported(name) for name in there
    }
    order = [name for name, _ in lines]
    for name, targets in drawn.items():
        assert not targets & set(order[: order.index(name) + 1]), (
            f"{name} imports what stands above it"
        )
    assert not drawn.keys() & {"models", "runtime"} and drawn["data"] == {"runtime"}


def test_importing_the_package_loads_neither_jax_nor_flax():
    code = (
        "import sys, googlenet_jax; print(any(name in sys.modules for name in ('jax', 'flax',"
        " 'numpy')), googlenet_jax.__version__)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False 0.2.0\n"
    )
