"""Devices in a mesh: batches are split over its axis `data`. It has others where a config names
them, over which parameters can be split.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError


def create_mesh(devices: Sequence[jax.Device] | None = None, axes: str = "") -> Mesh:
    """Returns a mesh of these devices, or of all there are.

    `axes` names its axes and their lengths, such as "data=4,model=2", of which "data" must be one;
    "" is "data" alone. Raises UserError where they are not as many as the devices.
    """
    devices = jax.devices() if devices is None else devices
    # A process's devices lie side by side, so that a row of the global batch has one place on every
    # layout (make_mesh may put them in another order, by the links between them).
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    lengths = _parse_axes(axes) if axes else {"data": len(ordered)}
    if math.prod(lengths.values()) != len(ordered):
        raise UserError(
            f"devices.mesh: {axes!r} takes {math.prod(lengths.values())} devices, and there are "
            f"{len(ordered)}"
        )
    # Auto axes: linen's Dropout cannot trace with explicit ones.
    kinds = (AxisType.Auto,) * len(lengths)
    return Mesh(np.array(ordered).reshape(*lengths.values()), tuple(lengths), axis_types=kinds)


def _parse_axes(axes: str) -> dict[str, int]:
    found = re.findall(r"(\w+)=(\d+)", axes)
    lengths = {name: int(length) for name, length in found}
    written = ",".join(f"{name}={length}" for name, length in found)
    wrong = written != axes.replace(" ", "") or len(lengths) < len(found)
    if wrong or "data" not in lengths or 0 in lengths.values():
        raise UserError(
            "devices.mesh: expected axes such as 'data=4,model=2', 'data' among them, found"
            f" {axes!r}"
        )
    return lengths


def parse_shards(rules: Sequence[str], mesh: Mesh) -> list[tuple[str, str]]:
    """Returns "PATTERN=AXIS" strings as (pattern, axis). Raises UserError where one is not, or the
    mesh has no such axis.
    """
    parsed = []
    for rule in rules:
        pattern, equals, axis = rule.rpartition("=")
        if not equals or not pattern or axis not in mesh.shape:
            raise UserError(
                "devices.shard: expected PATTERN=AXIS with an axis of the mesh, "
                f"{', '.join(mesh.axis_names)}, such as '*/kernel={mesh.axis_names[-1]}', "
                f"found {rule!r}"
            )
        parsed.append((pattern, axis))
    return parsed


def split_longest(shape: Sequence[int], mesh: Mesh, axis: str | None = None) -> NamedSharding:
    """Returns the sharding of an array whose longest axis that divides evenly is split over the
    mesh's `axis`, or over all of its devices; whole where none does.
    """
    names = mesh.axis_names if axis is None else (axis,)
    parts = math.prod(mesh.shape[name] for name in names)
    divide = [place for place, length in enumerate(shape) if length and length % parts == 0]
    if not divide:
        return replicated(mesh)
    longest = max(divide, key=lambda place: shape[place])
    over = names[0] if len(names) == 1 else names
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, over))


@functools.cache
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def whole(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays that lie on the mesh, whole on every device."""
    return _gather(mesh)(tree)


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


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, parts: int = 1) -> None:
    """Raises UserError where a training batch can't be split evenly over the devices, or over
    `parts` that are computed one after the other and each split so.
    """
    devices = data_devices(mesh)
    unit = devices * parts
    if batch_size % unit:
        among = f"{devices} devices" if devices > 1 or parts == 1 else ""
        each = f"devices.accumulate, {parts} parts" if parts > 1 else ""
        multiple = (batch_size // unit + 1) * unit
        raise UserError(
            f"batch_size: {batch_size} examples do not divide among"
            f" {' × '.join(filter(None, (among, each)))}; take a multiple of {unit}, such as"
            f" {multiple}"
        )


def data_devices(mesh: Mesh | AbstractMesh) -> int:
    """Among how many devices a batch is split: the length of the axis "data"."""
    return mesh.shape["data"]
