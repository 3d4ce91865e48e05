import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.sharding import check_batch_size, create_mesh, replicate, shard_batch


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


def test_batch_and_state_arrive_unchanged():
    mesh = create_mesh()
    batch = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
        "label": np.array([3, 4], np.int32),
    }
    for arrived in (shard_batch(batch, mesh), replicate(batch, mesh)):
        for name, array in batch.items():
            np.testing.assert_array_equal(arrived[name], array)
            assert arrived[name].dtype == array.dtype
