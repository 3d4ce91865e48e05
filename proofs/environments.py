"""The core tests in environments that nobody works in: the lowest versions that pyproject.toml
allows, a newer Python with the newest of all, and DeprecationWarnings as errors.

    python -m proofs environments lowest
    python -m proofs environments newest --python python3.13
    python -m proofs environments deprecations

Each makes an environment in a temporary folder with uv (fetched from PyPI where there is none),
copies the files that git knows there, and runs the tests that need no other framework. It prints
what was installed as JSON, then pytest's own lines, and ends with pytest's exit status.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = (
    "data",
    "evaluation",
    "training",
    "cli/test_evaluate.py",
    "cli/test_predict.py",
    "weights/test_checkpoints.py",
    "weights/test_safetensors.py",
    "test_train.py",
)
TOOLS = ("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "chex>=0.1.90")
# Of the test extra; their tests are left out, so that hundreds of megabytes are not fetched thrice.
ABSENT = re.compile(r"^\s*(?:import|from) (?:torch|h5py|tests\.parity|tests\.verification)\b", re.M)
SHOWN = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "protobuf",
    "pillow",
    "array-record",
)
SHOWN += ("tensorflow-datasets", "opencv-contrib-python-headless", "ml-collections", "etils")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("mode", choices=("lowest", "newest", "deprecations"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this)")
    parser.add_argument("tests", nargs="*", help="of tests/ (default: the core tests)")
    args = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(args.mode, args.python, args.tests, Path(folder))


def run(mode: str, interpreter: str, tests: list[str], folder: Path) -> int:
    """Makes the environment below `folder` and runs the tests there; returns pytest's status."""
    copy = folder / "copy"
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).split(b"\0")[:-1]
    for name in map(os.fsdecode, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    python = install(mode, interpreter, folder, copy)
    chosen = tests or [f"tests/{each}" for each in CORE]
    command = [python, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "--tb=short", *chosen]
    command += [f"--ignore={path.relative_to(copy)}" for path in absent(copy)]
    if mode == "deprecations":
        command += ["-W", "error::DeprecationWarning", "-W", "error::PendingDeprecationWarning"]
        command += ["-W", "ignore:the load_module() method"]  # ml_collections', of config files
    return subprocess.run(command, cwd=copy, check=False).returncode


def install(mode: str, interpreter: str, folder: Path, copy: Path) -> str:
    """Installs the package at `copy` and the tests' tools; returns the environment's Python."""
    uv = shutil.which("uv") or fetch_uv(folder / "tool")
    subprocess.check_call([uv, "venv", "--quiet", "--python", interpreter, folder / "env"])
    python = str(folder / "env/bin/python")
    resolution = "lowest-direct" if mode == "lowest" else "highest"
    into = [uv, "pip", "install", "--quiet", "--python", python]
    subprocess.check_call([*into, "--resolution", resolution, "-e", str(copy)])
    # The tools as they are today, beside what is installed and left as it is.
    frozen = subprocess.check_output([uv, "pip", "freeze", "--python", python], text=True)
    kept = folder / "kept.txt"
    kept.write_text("\n".join(line for line in frozen.splitlines() if "==" in line))
    subprocess.check_call([*into, "--constraint", str(kept), *TOOLS])
    versions = dict(line.split("==") for line in kept.read_text().splitlines())
    shown = {name: versions.get(name) for name in SHOWN}
    about = subprocess.check_output([python, "--version"], text=True).strip()
    print(json.dumps({"mode": mode, "python": about, **shown}, indent=2), flush=True)
    return python


def fetch_uv(folder: Path) -> str:
    """Installs uv into an environment of its own; returns its path."""
    venv.create(folder, with_pip=True)
    subprocess.check_call([folder / "bin/pip", "install", "--quiet", "uv"])
    return str(folder / "bin/uv")


def absent(copy: Path) -> list[Path]:
    """The test files that import what isn't installed, themselves or through each other."""
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in sorted((copy / "tests").rglob("test_*.py"))
    }
    found = {path for path, text in texts.items() if ABSENT.search(text)}
    while True:
        names = {".".join(path.relative_to(copy).with_suffix("").parts) for path in found}
        more = {p for p, text in texts.items() if any(f"from {name} " in text for name in names)}
        if more <= found:
            return sorted(found)
        found |= more


if __name__ == "__main__":
    sys.exit(main())
