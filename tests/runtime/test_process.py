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
process.log_settings()
import logging
logging.getLogger("googlenet_jax").setLevel(logging.INFO)  # as --verbose does
process.log_settings()
process.log_settings()
import jax
jax.numpy.ones(3).sum()
print(os.environ.get("XLA_FLAGS", ""))
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size)
"""
# A function takes and frees an array of 128 MiB, after JAX has compiled it itself; each call's page
# faults are counted. Then where the blocks of two threads lie.
COMPUTE = """
import ctypes, resource, threading
from googlenet_jax.runtime import process
print(any("ASYNC_DISPATCH" in each for each in process.prepare()))
import jax
import jax.numpy as jnp
double = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y + x, x))
x = jnp.zeros((1 << 15, 1 << 10))
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(double(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = []
for _ in range(2):
    thread = threading.Thread(target=lambda: blocks.append(libc.malloc(1 << 16)))
    thread.start()
    thread.join()
with open("/proc/self/maps") as lines:
    ends = [line.split()[0].split("-") for line in lines if line.rstrip().endswith("[heap]")]
low, high = int(ends[0][0], 16), int(ends[-1][1], 16)
print(low <= libc.malloc(1 << 16) < high, any(low <= block < high for block in blocks))
"""
# Whether the block of another thread lies in the main thread's heap.
SEVERAL = """
import ctypes, threading
import jax
from googlenet_jax.runtime import process
process.prepare()
{change}
process.prepare_for_several()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = []
thread = threading.Thread(target=lambda: blocks.append(libc.malloc(1 << 16)))
thread.start()
thread.join()
with open("/proc/self/maps") as lines:
    ends = [line.split()[0].split("-") for line in lines if line.rstrip().endswith("[heap]")]
print(int(ends[0][0], 16) <= blocks[0] < int(ends[-1][1], 16))
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_computed_buffers_are_kept_and_threads_have_heaps_of_their_own(tmp_path):
    """One heap for all kept them too, but threads waited for each other's blocks."""
    (sets, faults, heaps), _ = run(COMPUTE, tmp_path)
    assert sets == "True" and int(faults) < 1000  # 128 MiB in pages of 4 KiB are 32,768
    assert heaps == "True False"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("several", [False, True])
def test_one_of_several_processes_has_one_heap(tmp_path, several):
    """What they compute together runs in JAX's threads, whose own heaps keep no large buffers."""
    change = f"jax.distributed.is_initialized = lambda: {several}"
    assert run(SEVERAL.format(change=change), tmp_path)[0] == [str(several)]


def test_a_users_own_choice_of_dispatch_stays(tmp_path):
    (sets, *_), _ = run(COMPUTE, tmp_path, JAX_CPU_ENABLE_ASYNC_DISPATCH="1")
    assert sets == "False"


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


TRAIN = """
import sys
from googlenet_jax.runtime import process
process.DETERMINISTIC_FLAG = "--xla_not_a_flag=true"
from googlenet_jax.cli.main import main
sys.exit(main(["train", "--config=digits", "--config.batch_size=0", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_deterministic_flag_is_there_before_xla_reads_its_flags(tmp_path, deterministic):
    """XLA ends a process that names a flag which it doesn't know; that it has ended shows that it
    has read the flag.
    """
    fields = [f"--workdir={tmp_path / 'run'}", f"--config.deterministic={deterministic}"]
    done = subprocess.run([sys.executable, "-c", TRAIN, *fields], capture_output=True, text=True)
    assert ("xla_not_a_flag" in done.stderr) == deterministic
    assert done.returncode == 1 and ("batch_size" in done.stderr) != deterministic
