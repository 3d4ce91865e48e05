"""Digits and compiled code, made once for all tests of a session."""

import os
from collections.abc import Iterator
from pathlib import Path

# Workers side by side share the processors: with a thread for each processor in each, they wait for
# each other.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A command run in a test's process would set XLA's flags for processes that a later test starts,
# whose numbers would differ from its own in the last bits.
os.environ.setdefault("GOOGLENET_JAX_TUNING", "0")
# Most of a test's time is compiling; unoptimised it takes two fifths.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

# Of the default run's tests, those that take longest beside what they add: they carry the marker
# `proof`. A name stands for what begins with it.
LONG = (
    "tests/cli/test_fid.py::test_the_figures_are_those_of_the_features",
    "tests/metrics/test_docs.py",
    "tests/metrics/test_scores.py::test_a_network_in_training_mode_is_refused",
    "tests/metrics/test_scores.py::test_images_in_another_range_are_refused_inside_jit_too",
    "tests/models/test_compose.py::test_a_network_in_training[grad of grad]",
    "tests/models/test_compose.py::test_a_network_in_training[vmap of grad]",
    "tests/models/test_networks.py::test_dtypes[googlenet-float64]",
    "tests/models/test_networks.py::test_dtypes[googlenet_bn-float64]",
    "tests/models/test_networks.py::test_output_in_evaluation_and_training[bn_inception]",
    "tests/models/test_networks.py::test_output_in_evaluation_and_training[googlenet_naive]",
    "tests/models/test_networks.py::test_output_in_evaluation_and_training[googlenet_slim]",
    "tests/models/test_networks.py::test_output_in_evaluation_and_training[googlenet_torchvision]",
    "tests/models/test_networks.py::test_output_in_evaluation_and_training[inception_v2]",
    "tests/models/test_variants.py::test_another_activation_follows_every_unit",
    "tests/models/test_variants.py::test_another_norm_looks_at_no_other_image",
    "tests/cli/test_documentation.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker(pytest.mark.proof)


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
