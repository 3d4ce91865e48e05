"""Devices in a line: batches are split over the mesh's one axis, `data`; the state is whole on
every device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of these devices, or of all there are, with one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    # A process's devices lie side by side, so that a row of the global batch has one place on every
    # layout (make_mesh may put them in another order, by the links between them).
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    # Auto axes: linen's Dropout cannot trace with explicit ones.
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: axis 0 split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch on the devices, from this process's share of it: {name: [B, …]}."""
    sharding = data_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays, such as the state, whole on every device; all processes hold the
    same one.
    """
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def place(tree: Any, shardings: Any) -> Any:
    """Returns a tree of arrays placed as `shardings`, a tree alike, say; all processes hold the
    same one.
    """
    return jax.tree.map(_spread, tree, shardings)


def _spread(array: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _spread(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises UserError where a training batch cannot be split evenly over the devices."""
    devices = mesh.size
    if batch_size % devices:
        multiple = (batch_size // devices + 1) * devices
        raise UserError(
            f"batch_size: {batch_size} examples do not divide among {devices} devices; take a multiple, such as {multiple}"
        )
