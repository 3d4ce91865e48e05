"""Executables shared within the process: by program, shapes and devices."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.runtime import compiled
from googlenet_jax.runtime.compiled import Shared


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What was compiled."""
    monkeypatch.setattr(compiled, "_executables", type(compiled._executables)())
    yield compiled._executables


def affine(scale: float) -> Shared:
    return Shared(jax.jit(lambda x, y: {"sum": scale * x + y}, donate_argnums=0))


def test_the_same_program_is_compiled_once(compilations: list[object]) -> None:
    for _ in range(2):
        function = affine(2.0)
        for shape in ((3,), (4,), (3,)):
            x, y = jnp.ones(shape), np.full(shape, 0.5, np.float32)
            np.testing.assert_array_equal(function(x, y)["sum"], 2.5)
    assert len(compilations) == 2
    np.testing.assert_array_equal(affine(3.0)(jnp.ones(3), jnp.ones(3))["sum"], 4)
    assert len(compilations) == 3
    assert affine(2.0).eval_shape(jnp.ones(3), jnp.ones(3))["sum"].shape == (3,)


def test_another_dtype_and_tree_are_other_programs(compilations: list[object]) -> None:
    function = Shared(jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree)))
    assert function({"a": jnp.zeros(2)})["a"].dtype == jnp.float32
    assert function({"a": jnp.zeros(2, jnp.int32)})["a"].dtype == jnp.int32
    assert set(function({"b": jnp.zeros(2)})) == {"b"}
    assert len(compilations) == 3


def test_only_so_many_are_kept(compilations: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KEPT", 2)
    for scale in (1.0, 2.0, 3.0):
        affine(scale)(jnp.ones(3), jnp.ones(3))
    assert len(compilations) == 2
