"""Digits and compiled code, made once for all tests of a session."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run finds the digits, or puts them."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def compiled_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JAX's compilation cache: most runs in these tests compile the same steps."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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
