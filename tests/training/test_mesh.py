import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from googlenet_jax.errors import UserError
from googlenet_jax.training.mesh import check_batch_size, create_mesh, padded_batch_size, replicate, shard_batch


def mesh_of(devices):
    return AbstractMesh((devices,), ("data",))


def test_mesh_is_of_every_device():
    mesh = create_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.size == jax.device_count()


def test_training_batch_that_devices_do_not_divide_names_both():
    check_batch_size(32, mesh_of(8))
    with pytest.raises(UserError, match=r"^batch_size: 30 examples .* 8 devices; .*32"):
        check_batch_size(30, mesh_of(8))


@given(st.integers(1, 10_000), st.integers(1, 64))
def test_padded_batch_is_the_next_multiple(batch_size, devices):
    padded = padded_batch_size(batch_size, mesh_of(devices))
    assert batch_size <= padded < batch_size + devices
    check_batch_size(padded, mesh_of(devices))


def test_batch_and_state_arrive_unchanged():
    mesh = create_mesh()
    batch = {"image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "label": np.array([3, 4], np.int32)}
    for arrived in (shard_batch(batch, mesh), replicate(batch, mesh)):
        for name, array in batch.items():
            np.testing.assert_array_equal(arrived[name], array)
            assert arrived[name].dtype == array.dtype
