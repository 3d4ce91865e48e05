"""What concerns the process that is a command, and not the training: whether it speaks for
several, its standard error, its settings of XLA and JAX.
"""

import hashlib
import mmap
import os
import platform
import sys
import warnings
from importlib.metadata import entry_points
from importlib.util import find_spec
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

import jax
import jaxlib
from absl import logging
from tqdm import tqdm

from googlenet_jax.runtime.allocator import keep_freed_memory, share_one_heap
from googlenet_jax.runtime.local_storage import own_cache

TUNING = "GOOGLENET_JAX_TUNING"
# YNN, a library of kernels, is quicker than XLA's own for reductions alone.
XLA_CPU_FLAGS = {"xla_cpu_experimental_ynn_fusion_type": "reduce"}
ASYNC_DISPATCH = "JAX_CPU_ENABLE_ASYNC_DISPATCH"
CACHE_BYTES = 2 << 30  # a training step takes some 10 MB
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
_KEPT = "freed memory is kept and huge pages are asked for"
_settings: list[str] = []  # what `prepare` has set and `log_settings` has not told yet


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks: the first of several, or the
    only one.
    """
    return jax.process_index() == 0


def log(text: str) -> None:
    """A line for the person, on standard error, above the progress bar; the first process speaks
    for all.
    """
    if is_first():
        tqdm.write(text, file=sys.stderr)


def shows_progress() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()


def prepare() -> tuple[str, ...]:
    """Sets up a process that is a command: the memory allocator, the thread in which a CPU
    computes, XLA's flags for a CPU, and where compiled code is kept. Returns what it has set for
    speed, in words; `log_settings` tells them.

    GOOGLENET_JAX_TUNING=0 in the environment leaves all but the cache alone; XLA_FLAGS and JAX's
    own settings come before these. Call it before JAX touches a device.
    """
    _settings.clear()
    # absl's, on which Orbax tells what it does, and prints tracebacks of what it also raises.
    logging.set_verbosity(logging.FATAL)
    if os.environ.get(TUNING, "") not in ("0", "off", "false"):
        if keep_freed_memory():
            _settings.append(_KEPT)
            if _compute_in_calling_thread():
                _settings.append(f"{ASYNC_DISPATCH}=0")
        if _is_for_cpu():
            _settings.extend(_add_xla_flags())
    config: Any = jax.config  # its stubs name no option
    if config.jax_compilation_cache_dir is None:
        if config.jax_compilation_cache_max_size == -1:
            jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))
    # An entry cut short by a kill, or removed by another process: JAX compiles instead.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return tuple(_settings)


def prepare_for_several() -> None:
    """What `prepare` can't know yet: after it and `connect`, where this process is one of several.

    Does nothing where `prepare` has set no allocator.
    """
    if jax.distributed.is_initialized() and _KEPT in _settings:
        share_one_heap()


def log_settings() -> None:
    """Says once what `prepare` has set for speed, and how to turn it off; under `--verbose` alone."""
    if _settings and getLogger("googlenet_jax").isEnabledFor(INFO):
        log(f"for speed: {', '.join(_settings)} ({TUNING}=0 turns it off)")
        _settings.clear()


def _is_for_cpu() -> bool:
    """Whether JAX has the CPU alone: a plugin for an accelerator has an XLA of its own, which might
    not know a flag, and ends the process then.
    """
    platforms = getattr(jax.config, "jax_platforms", None)
    if platforms:
        return platforms == "cpu"
    plugins = entry_points(group="jax_plugins")
    return not plugins and not any(map(find_spec, ("jax_plugins", "libtpu")))


def _compute_in_calling_thread() -> bool:
    """Makes a CPU's computations run in the thread that calls them, whose heap keeps their buffers
    (see `allocator`); returns whether this has set it. Other platforms' calls still return at once.
    """
    config: Any = jax.config
    name = ASYNC_DISPATCH.lower()
    if ASYNC_DISPATCH in os.environ or not config.values.get(name, False):
        return False
    config.update(name, False)
    return True


def _add_xla_flags() -> list[str]:
    """Adds the flags that make XLA's code for this CPU faster; returns them.

    XLA ends a process that names a flag which it doesn't know, so the flag's name is looked for in
    jaxlib itself.
    """
    given = os.environ.get("XLA_FLAGS", "")
    new = [
        f"--{name}={value}"
        for name, value in XLA_CPU_FLAGS.items()
        if name not in given and _jaxlib_knows(name)
    ]
    if new:
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()
    return new


def _jaxlib_knows(flag: str) -> bool:
    library = Path(jaxlib.__file__).with_name("libjax_common.so")
    try:
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            return text.find(flag.encode()) >= 0
    except (OSError, ValueError):
        return False


def make_deterministic() -> None:
    """Asks XLA for the same bits in every run on a GPU; a CPU's are always the same.

    Call it before JAX touches a device: XLA reads its flags once. It rules out atomics and the
    choice of kernels by timing, at some cost in speed.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC_FLAG}".strip()


def _cache_folder() -> Path:
    """Compiled code, kept apart by jaxlib's version and the CPU: code for one CPU can hold
    instructions that another lacks.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
    # JAX can't bound a folder that it has filled without bounds: those are apart too.
    key = f"{jaxlib.__version__} {platform.machine()} {cpu} bounded"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return own_cache() / f"compiled-{name}"
