"""What `prepare` sets for speed, in processes of their own: it is for a process that is a command."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from googlenet_jax.runtime import process

# Frees and takes 64 MiB again, and counts what the kernel had to map for it.
REUSE = """
import ctypes, resource
from googlenet_jax.runtime.allocator import keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def take():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    return block
first = take()
with open("/proc/self/smaps_rollup") as lines:
    print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
libc.free(first)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PREPARE = """
import os, sys
from googlenet_jax.runtime import process
{change}
process.prepare()
process.say_settings()
process.say_settings()
import jax
jax.numpy.ones(3).sum()
print(os.environ.get("XLA_FLAGS", ""))
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""
FLAG = "--xla_cpu_experimental_ynn_fusion_type=reduce"


def run(code: str, tmp_path, **environment: str) -> tuple[list[str], str]:
    """The lines of the script's output, and its standard error."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", process.TUNING)
    }
    given = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_and_lies_in_huge_pages(tmp_path):
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        huge = "[never]" not in file.read()
    (kilobytes, faults), _ = run(REUSE, tmp_path)
    assert int(faults) < 100  # 64 MiB in pages of 4 KiB are 16,384
    assert not huge or int(kilobytes) >= 32 << 10


def test_a_command_sets_xlas_flag_and_a_bounded_cache_and_says_so_once(tmp_path):
    (flags, cache), said = run(PREPARE.format(change=""), tmp_path)
    assert flags == FLAG and said.count(FLAG) == 1 and "GOOGLENET_JAX_TUNING=0" in said
    assert cache.startswith(f"{tmp_path}/googlenet_jax/compiled-") and cache.endswith(f" {2 << 30}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"GOOGLENET_JAX_TUNING": "0"}, ""),
        (
            {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=dot"},
            "--xla_cpu_experimental_ynn_fusion_type=dot",
        ),
    ],
)
def test_what_the_user_sets_comes_first(tmp_path, given, expected):
    (flags, cache), said = run(
        PREPARE.format(change=""),
        tmp_path,
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
        **given,
    )
    assert flags == expected and FLAG not in said
    assert cache == f"{tmp_path}/mine -1"


@pytest.mark.parametrize("plugin", ["libtpu", None])
def test_an_accelerators_own_xla_is_not_given_the_cpus_flags(monkeypatch, plugin):
    """It might not know them, and ends the process then."""
    monkeypatch.setattr(process, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms="")))
    monkeypatch.setattr(process, "entry_points", lambda group: ())
    monkeypatch.setattr(process, "find_spec", lambda name: True if name == plugin else None)
    assert process._is_for_cpu() == (plugin is None)
    process.jax.config.jax_platforms = "tpu,cpu" if plugin is None else "cpu"
    assert process._is_for_cpu() == (plugin is not None)


def test_a_flag_that_this_jaxlib_does_not_know_is_left_out(tmp_path):
    """XLA would end the process."""
    change = "process.XLA_CPU_FLAGS['xla_cpu_not_a_flag'] = '1'"
    assert run(PREPARE.format(change=change), tmp_path)[0][0] == FLAG
