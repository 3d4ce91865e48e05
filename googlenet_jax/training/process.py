"""What concerns the process that trains, and not the training: its part among several, its standard
error, its settings of XLA and JAX.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
from absl import logging
from tqdm import tqdm

from googlenet_jax.training.allocator import keep_freed_memory


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks: the first of several, or the
    only one.
    """
    return jax.process_index() == 0


def say(text: str) -> None:
    """A line for the person, on standard error, above the progress bar; the first process speaks
    for all.
    """
    if is_first():
        tqdm.write(text, file=sys.stderr)


def shows_progress() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()


def prepare() -> None:
    """Sets up a process that trains alone: the memory allocator, and where compiled code is kept.

    Call it before JAX touches a device.
    """
    # absl's, on which Orbax tells what it does, and prints tracebacks of what it also raises.
    logging.set_verbosity(logging.FATAL)
    keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", str(_cache_folder()))


def make_deterministic() -> None:
    """Asks XLA for the same bits in every run on a GPU; a CPU's are always the same.

    Call it before JAX touches a device: XLA reads its flags once. It rules out atomics and the
    choice of kernels by timing, at some cost in speed.
    """
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"


def _cache_folder() -> Path:
    """Compiled code, kept apart by jaxlib's version and the CPU: code for one CPU can hold
    instructions that another lacks.
    """
    import jaxlib

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.processor()
    )
    name = hashlib.sha256(f"{jaxlib.__version__} {platform.machine()} {cpu}".encode()).hexdigest()[
        :16
    ]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "googlenet_jax" / f"compiled-{name}"
