"""Devices in a line: batches are split over the mesh's one axis, `data`; the state is whole on
every device.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of these devices, or of all there are, with one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: linen's Dropout cannot trace with make_mesh's default, explicit ones.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def data_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: axis 0 split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the state: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch on the devices, from this process's share of it: {name: [B, …]}."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays, such as the state, whole on every device."""
    return jax.device_put(tree, replicated(mesh))


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises UserError where a training batch cannot be split evenly over the devices."""
    devices = mesh.size
    if batch_size % devices:
        multiple = (batch_size // devices + 1) * devices
        raise UserError(
            f"batch_size: {batch_size} examples do not divide among {devices} devices; take a multiple, such as {multiple}"
        )
