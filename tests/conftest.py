"""Digits and compiled code, made once for all tests of a session."""

import os
from collections.abc import Iterator
from pathlib import Path

# Workers side by side share the processors: with a thread for each processor in each, they wait for each other.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A command run in a test's process would set XLA's flags for processes that a later test starts, whose
# numbers would differ from its own in the last bits.
os.environ.setdefault("GOOGLENET_JAX_TUNING", "0")

import jax
import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run finds the digits, or puts them."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session", autouse=True)
def compiled_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JAX's compilation cache, shared by the workers: many of these tests compile the same steps."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """The network of tests/verification/small.py is registered, and afterwards no longer."""
    from googlenet_jax.models import registry
    from tests.verification.small import Small

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_MODELS", dict(registry._MODELS))
        registry.register_model("small", Small)
        yield
