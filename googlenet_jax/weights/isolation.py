"""Reads another framework's weight file in a child process, so that no file can crash, stop or
swell the caller.

The child imports what the format needs, then limits its own memory, then opens the file; it sends
the tensors through a pipe, one JSON line and the bytes for each. A crash of a parser, a file that
unpacks to terabytes and one that never ends are each a UserError here.
"""

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.weights.parsers import NEEDS, PARSERS
from googlenet_jax.weights.parsers.limits import BadFile, Limits, Request

# Of a processor's time, for the file alone: a machine that is busy otherwise makes no file hostile.
PARSE_SECONDS = 30
# Of the clock's: to start (importing TensorFlow takes long on a busy machine), and in case a file
# makes its reader wait and not work.
START_SECONDS = 300
WAIT_SECONDS = 300
SLACK = 64 << 20
_LONGEST_LINE = 1 << 16
_EXTRAS = {"pytorch": "torch", "keras": "keras", "tensorflow": "tensorflow"}
_MAIN = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from googlenet_jax.weights.isolation import child; child(sys.argv[2])"
)


def read_tensors(
    path: str | os.PathLike[str], kind: str, model_bytes: int, ema: bool = False
) -> dict[str, np.ndarray]:
    """Returns a weight file's tensors by its own names, in its own layouts and dtypes.

    Args:
      path: the file; for TensorFlow the checkpoint's prefix.
      kind: a name of `parsers.PARSERS`.
      model_bytes: what the model takes in float32: the file may hold twice that (float64), and the
        child's memory grows by at most three times that + 64 MB.
      ema: take the averaged weights where the file has both.
    Raises:
      UserError: the file is missing, damaged, hostile, too large for the model or of another kind,
        or its library is not installed.
    """
    limit = 2 * model_bytes + SLACK // 16
    request = {"path": os.fspath(path), "kind": kind, "limit": limit, "ema": ema}
    asked = {"request": request, "memory": 3 * model_bytes + SLACK}
    command = [sys.executable, "-c", _MAIN, json.dumps(sys.path), json.dumps(asked)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
    ) as process:
        assert isinstance(process.stdout, io.BufferedIOBase)
        watch = _Watch(process)
        try:
            return _receive(process.stdout, str(path), kind, limit, watch)
        except EOFError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            status = process.wait()
            raise UserError(f"{path}: {_death(kind, status, watch.expired)}") from None
        finally:
            watch.stop()
            process.kill()


def _environment() -> dict[str, str]:
    """One thread and one malloc arena, so that the limit on memory means what it says; nothing
    that makes PyTorch trust a file.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    others = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return kept | threads | others | {"MALLOC_ARENA_MAX": "1", "HDF5_USE_FILE_LOCKING": "FALSE"}


class _Watch:
    """Kills the child when its time is up: first that of starting, then that of parsing."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.expired = process, False
        self._timer = self._start(START_SECONDS)

    def _start(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        return timer

    def _expire(self) -> None:
        self.expired = True
        self._process.kill()

    def parsing(self) -> None:
        self._timer.cancel()
        self._timer = self._start(WAIT_SECONDS)

    def stop(self) -> None:
        self._timer.cancel()


def _receive(
    pipe: io.BufferedIOBase, path: str, kind: str, limit: int, watch: _Watch
) -> dict[str, np.ndarray]:
    """The child's messages, held to the limits once more: a parser that was taken over is no more
    trusted than its file.
    """
    tensors: dict[str, np.ndarray] = {}
    limits = Limits(limit)
    while True:
        line = pipe.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        try:
            message = json.loads(line)
            array = None if "name" not in message else _room(message, limits)
        except BadFile as error:
            raise UserError(f"{path}: {error}") from None
        except (ValueError, TypeError, KeyError):  # no message of a child in its senses
            raise EOFError from None
        if array is not None:
            buffer = array.reshape(-1).view(np.uint8).data
            if array.size and pipe.readinto(buffer) != array.nbytes:
                raise EOFError
            tensors[message["name"]] = array
        elif "error" in message:
            raise UserError(f"{path}: {message['error']}")
        elif "missing" in message:
            raise UserError(
                f"{path}: reading it needs {message['missing']}; pip install"
                f" {_how_to_install(kind)}"
            )
        elif message == {"ready": True}:
            watch.parsing()
        elif message == {"end": len(tensors)}:
            return tensors
        else:
            raise EOFError


def _room(message: Mapping[str, Any], limits: Limits) -> np.ndarray:
    """An array for the tensor that a message announces."""
    import ml_dtypes

    name = message["dtype"]
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    if name != "bfloat16" and dtype.kind not in "fiub":
        raise ValueError(name)
    shape = tuple(int(length) for length in message["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(shape)
    limits.take(str(message["name"]), shape, dtype.itemsize)
    return np.empty(shape, dtype)


def _how_to_install(kind: str) -> str:
    return f"'googlenet-jax[{_EXTRAS[kind]}]'" if kind in _EXTRAS else NEEDS[kind]


def _death(kind: str, status: int, expired: bool) -> str:
    if expired or status == -signal.SIGXCPU:
        return (
            f"reading it took more than {PARSE_SECONDS} s and was stopped; the file may be damaged"
            " or hostile"
        )
    return (
        f"the {kind} reader stopped (status {status}) on it: the file is damaged or hostile;"
        " nothing was taken from it"
    )


# ---------------------------------------------------------------------------------------- the child


def child(argument: str) -> None:
    """Reads what the parent asks for and sends it; ends the process."""
    asked = json.loads(argument)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the messages
    request = Request(**asked["request"])
    try:
        _import(request.kind)
    except ImportError as error:
        missing = NEEDS[request.kind] if error.name is None else error.name.split(".")[0]
        _send(out, {"missing": missing})
        os._exit(1)
    limit_memory(asked["memory"])
    limit_time()
    _send(out, {"ready": True})
    send_tensors(request, out)
    out.flush()
    os._exit(0)  # no destructors of a library that a file has confused


def send_tensors(request: Request, out: IO[bytes]) -> None:
    """Parses the file and writes its tensors, or what is wrong with it."""
    count = 0
    try:
        for name, array in PARSERS[request.kind](request, Limits(request.limit)):
            _send(out, {"name": name[:1024], "dtype": array.dtype.name, "shape": array.shape})
            out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            count += 1
        _send(out, {"end": count})
    except Exception as error:
        _send(out, {"error": _what_is_wrong(request.kind, error)})


def _what_is_wrong(kind: str, error: Exception) -> str:
    match error:
        case BadFile():
            return one_line(error)
        case MemoryError() | RecursionError():
            memory = "memory than the model can take"
            what = memory if isinstance(error, MemoryError) else "nesting than a weight file has"
            return (
                f"unpacking it needs more {what}; the file is damaged, hostile or of another model"
            )
        case FileNotFoundError():
            return "no such file"
        case OSError():
            return f"can't be read: {error.strerror or error}"
    return f"not a whole {kind} file ({type(error).__name__}: {one_line(error, 160)})"


def _send(out: IO[bytes], message: Mapping[str, Any]) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _import(kind: str) -> None:
    import importlib

    import ml_dtypes  # noqa: F401

    importlib.import_module(NEEDS[kind])


def limit_time() -> None:
    """Lets this process work PARSE_SECONDS more, after which the system ends it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(usage.ru_utime + usage.ru_stime) + PARSE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def limit_memory(growth: int) -> None:
    """Lets this process's address space grow by `growth` bytes and no further; where the system
    can't say its size, does nothing.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    import resource

    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + growth, now + growth))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
