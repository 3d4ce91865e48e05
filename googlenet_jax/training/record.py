"""`run.json`: what a run was made with, an entry for each start."""

import datetime
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

import googlenet_jax
from googlenet_jax.runtime.process import is_first
from googlenet_jax.runtime.storage import write_text
from googlenet_jax.runtime.versions import processor, versions

RECORD_FILE = "run.json"
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-contrib-python-headless",
    "pillow", "simplejpeg", "tensorflow-datasets", "ml-collections",
)  # fmt: skip
_compiled = {"seconds": 0.0}


def _count_compiling(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compiling)


class RunRecord:
    """Appends an entry to a run's `run.json`, and keeps it true: at each save, and at the end.

    `{"starts": [entry, …]}`; an entry holds versions (of the package with its commit and whether
    its tree was clean), command, hardware, hosts, times in UTC, the steps, examples seen, seconds
    of compiling, peak memory in bytes, and how it ended; a killed process's is "running".
    """

    def __init__(self, workdir: Path, start: int, batch_size: int) -> None:
        """For a run that begins, or is resumed after `start` steps; all processes call it."""
        self._path, self._batch_size, self._start = workdir / RECORD_FILE, batch_size, start
        self._compiled_before = _compiled["seconds"]
        hosts = _hosts()
        if not is_first():
            return
        self._earlier = _read(self._path)
        self._entry: dict[str, Any] = {
            "started": _now(),
            "ended": None,
            "outcome": "running",
            "command": shlex.join(sys.argv),
            "package": {"version": googlenet_jax.__version__, **_commit(Path(__file__).parent)},
            "directory": _commit(Path.cwd()),
            "versions": {"python": platform.python_version(), **versions(PACKAGES)},
            "hardware": _hardware(),
            "hosts": hosts,
        }
        self.saved(start)

    def saved(self, step: int) -> None:
        """Takes note of how far the run is, `step` steps, and writes the file."""
        if not is_first():
            return
        self._entry |= {
            "first_step": self._start,
            "last_step": step,
            "examples_seen": (step - self._start) * self._batch_size,
            "compile_seconds": round(_compiled["seconds"] - self._compiled_before, 3),
            "peak_memory_bytes": _peak_memory(),
        }
        text = json.dumps({"starts": [*self._earlier, self._entry]}, indent=2, ensure_ascii=False)
        write_text(self._path, text + "\n")

    def end(self, outcome: str) -> None:
        """Says how the run has ended: "finished", "stopped …", or an error."""
        if is_first():
            self._entry |= {"ended": _now(), "outcome": outcome}
            self.saved(self._entry["last_step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self.end(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _read(path: Path) -> list[Any]:
    """The entries of earlier starts; none where the file is missing or damaged."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit(folder: Path) -> dict[str, Any]:
    """The commit of the repository that the folder's files belong to, and whether nothing is
    changed; None where there is none.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", ".") else None
    changed = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "clean": None if changed is None else not changed}


def _hardware() -> dict[str, Any]:
    devices = jax.devices()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
    }


def _hosts() -> list[str]:
    """The names of all processes' hosts."""
    own = socket.gethostname()
    if jax.process_count() == 1:
        return [own]
    padded = np.frombuffer(own.encode()[:64].ljust(64, b"\0"), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, 64)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gathered]


def _peak_memory() -> dict[str, int | None]:
    """Of this process, and of its first device where it says so."""
    try:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        host = peak * (1 if sys.platform == "darwin" else 1024)
    except ImportError:
        host = None
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"host": host, "device": device}
