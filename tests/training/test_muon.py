"""Muon: orthogonal directions, steps that are a share of a kernel, SGD on the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_jax.training.muon import orthogonalized
from googlenet_jax.training.optimizer import create_optimizer, create_schedule
from tests.training.test_optimizer import SHAPES

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(27, 8), (8, 27), (16, 16)])
def test_all_singular_values_come_near_one_and_directions_stay(shape):
    u, _, vt = np.linalg.svd(RNG.normal(size=shape), full_matrices=False)
    values = np.geomspace(1, 0.1, min(shape))
    found = np.asarray(orthogonalized(jnp.asarray(u * values @ vt, jnp.float32), 5))
    inside = u.T @ found @ vt.T
    np.testing.assert_allclose(np.diag(inside), 1, atol=0.35)
    assert abs(inside - np.diag(np.diag(inside))).max() < 1e-4
    assert not np.asarray(orthogonalized(jnp.zeros(shape))).any()


def test_a_step_is_a_share_of_a_kernel_and_all_else_is_sgds():
    start, gradients = (
        {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
        for _ in range(2)
    )
    trees = [
        {"conv1": {"kernel": each["conv1.kernel"], "bn": {"scale": each["conv1.bn.scale"]}}}
        | {"head": {"kernel": each["head.kernel"], "bias": each["head.bias"]}}
        for each in (start, gradients)
    ]
    schedule = create_schedule("constant", 0.1, 10)
    fields = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    tx = create_optimizer(schedule, "muon", **fields, options={"others": 3.0})
    updates, _ = jax.jit(tx.update)(trees[1], tx.init(trees[0]), trees[0])

    kernel, gradient = (np.asarray(each["conv1"]["kernel"]).reshape(18, 4) for each in trees)
    moved = kernel + np.asarray(updates["conv1"]["kernel"]).reshape(18, 4)
    before = kernel * np.sqrt(4) / np.linalg.norm(kernel)
    step = before - moved
    # Downhill, and of the length that a rate of 0.1 gives four directions, roughly.
    assert (step * gradient).sum() > 0
    assert np.linalg.norm(step) == pytest.approx(0.1 * np.sqrt(4), rel=0.3)

    plain = create_optimizer(create_schedule("constant", 0.3, 10), "sgd", **fields)
    expected, _ = plain.update(trees[1], plain.init(trees[0]), trees[0])
    for path in (("head", "kernel"), ("head", "bias"), ("conv1", "bn")):
        for ours, theirs in zip(
            *(jax.tree.leaves(tree[path[0]][path[1]]) for tree in (updates, expected)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
