"""Imports run one way, and the package's root costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "googlenet_jax"
# A room may import those named here, itself, and `errors`.
ROOMS = {
    "models": set(),
    "data": set(),
    "weights": {"models", "data"},
    "evaluation": {"models", "data"},
    "training": {"models", "data", "weights", "evaluation"},
    "verification": {"models", "data", "weights", "evaluation", "training"},
    "cli": {"models", "data", "weights", "evaluation", "training", "verification"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    found = set()
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {module.split(".")[1] for module in modules if module.startswith("googlenet_jax.")}
    assert found <= ROOMS[room] | {room, "errors"}


def test_importing_the_package_loads_neither_jax_nor_flax():
    code = "import sys, googlenet_jax; print(any(name in sys.modules for name in ('jax', 'flax', 'numpy')), googlenet_jax.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False 0.1.0\n"
