"""Does a test fail when the code is wrong? Plants the faults of proofs/faults.py one by one and
runs the test files named for each.

    python -m proofs mutations [--jobs 2] [--only NAME …]      # writes docs/mutations.md once every fault has its answer

Each fault is planted in a copy of the tree, where pytest stops at the first failure. A fault that
no test sees is "alive". What is known is kept in --state (default: mutations.json in the temporary
folder), so that an interrupted run goes on where it stopped; a fault whose file or test files have
changed since runs again.
"""

import argparse
import collections
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from proofs.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]

COPIED = (
    "googlenet_jax",
    "tests",
    "configs",
    "benchmarks",
    "proofs",
    "docs",
    "train.py",
    "pyproject.toml",
    "README.md",
)
LIMIT = 1800  # seconds for a fault's tests: a hang is a failure too

TEXT = """# Faults planted one by one

Made by `python -m proofs mutations` from the {count} faults of `proofs/faults.py`: each is planted alone in a copy of the
tree, and the test files named for it must fail. {alive}

| fault | file | test that sees it |
|---|---|---|
{rows}
"""


def plant(fault: Fault, root: Path) -> None:
    """Writes the fault into the tree at `root`; raises ValueError unless its text stands there
    exactly once.
    """
    path = root / fault.file
    source = path.read_text(encoding="utf-8")
    if source.count(fault.text) != 1:
        raise ValueError(
            f"{fault.name}: expected its text once in {fault.file}, found it"
            f" {source.count(fault.text)} times: {fault.text!r}"
        )
    path.write_text(source.replace(fault.text, fault.replacement), encoding="utf-8")


def try_fault(fault: Fault) -> dict[str, Any]:
    """Plants a fault in a copy and runs its tests: {"seen_by": the failed test, or None where the
    fault is alive, "seconds"}.
    """
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        plant(fault, Path(folder))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not exhaustive",
            *fault.tests,
        ]
        start = time.perf_counter()
        try:
            process = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": folder},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return {"seen_by": f"no end within {LIMIT} s", "seconds": LIMIT}
        if process.returncode not in (
            0,
            1,
        ):  # pytest's own statuses for "all passed" and "a test failed"
            raise RuntimeError(
                f"{fault.name}: pytest ended with {process.returncode}:"
                f" {process.stdout[-2000:]}{process.stderr[-2000:]}"
            )
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", process.stdout, re.MULTILINE)
        seen_by = failed[1] if failed else "unknown" if process.returncode else None
        return {"seen_by": seen_by, "seconds": round(time.perf_counter() - start, 1)}


def fingerprint(fault: Fault) -> str:
    """Changes when the fault, the file it is planted in or its test files do."""
    parts = [
        repr(fault).encode(),
        *((ROOT / name).read_bytes() for name in (fault.file, *fault.tests)),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def run(faults: Sequence[Fault], state_file: Path, jobs: int) -> dict[str, Any]:
    """Tries the faults that have no answer yet, `jobs` side by side; returns all answers by name."""
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
    prints = {fault.name: fingerprint(fault) for fault in faults}
    missing = [
        fault for fault in faults if state.get(fault.name, {}).get("of") != prints[fault.name]
    ]
    lock = threading.Lock()

    def answer(fault: Fault) -> None:
        found = try_fault(fault)
        with lock:
            state[fault.name] = {**found, "of": prints[fault.name]}
            part = state_file.with_suffix(".part")
            part.write_text(json.dumps(state, indent=1))
            part.replace(state_file)
            print(json.dumps({"fault": fault.name, **found}), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(answer, fault) for fault in missing]:
            future.result()
    return {fault.name: state[fault.name] for fault in faults}


def check() -> list[str]:
    """What is wrong with the faults themselves: one that can't be planted, or whose tests are gone."""
    problems = [
        f"{name}: several have this name"
        for name, times in collections.Counter(fault.name for fault in FAULTS).items()
        if times > 1
    ]
    for fault in FAULTS:
        problems += [
            f"{fault.name}: no {test}" for test in fault.tests if not (ROOT / test).exists()
        ]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / fault.file
            copy.parent.mkdir(parents=True)
            shutil.copy(ROOT / fault.file, copy)
            try:
                plant(fault, Path(folder))
                compile(copy.read_text(encoding="utf-8"), fault.file, "exec")
            except (ValueError, SyntaxError) as error:
                problems.append(str(error))
    return problems


def render(answers: dict[str, Any]) -> str:
    alive = [name for name, found in answers.items() if found["seen_by"] is None]
    rows = [
        f"| {f.name} | `{f.file}` |"
        f" {'**none**' if f.name in alive else '`' + answers[f.name]['seen_by'] + '`'} |"
        for f in FAULTS
    ]
    said = f"Alive: {len(alive)}." if alive else "None is alive."
    return TEXT.format(count=len(FAULTS), alive=said, rows="\n".join(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--jobs", type=int, default=1, help="faults tried side by side (default: 1)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these faults alone; the table is not written"
    )
    parser.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "mutations.json"
    )
    parser.add_argument("--check", action="store_true", help="only see that each can be planted")
    args = parser.parse_args()
    if args.check:
        problems = check()
        print(json.dumps({"faults": len(FAULTS), "problems": problems}))
        return 1 if problems else 0
    unknown = set(args.only or ()) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    answers = run(
        [fault for fault in FAULTS if not args.only or fault.name in args.only],
        args.state,
        args.jobs,
    )
    alive = [name for name, found in answers.items() if found["seen_by"] is None]
    if not args.only:
        (ROOT / "docs" / "mutations.md").write_text(render(answers), encoding="utf-8")
    print(json.dumps({"faults": len(answers), "alive": alive}))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
