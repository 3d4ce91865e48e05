"""Loss and accuracy over a whole split, every example counted once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from googlenet_jax.data.pipeline import DEFAULT_THREADS, eval_batches
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError

Sums = Mapping[str, jax.Array]


def evaluate_source(
    eval_step: Callable[[Any, dict[str, jax.Array]], Sums],
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    mesh: Mesh,
    threads: int = DEFAULT_THREADS,
    progress: bool = True,
) -> dict[str, float]:
    """Evaluates every example of `source` exactly once, whatever the batch size and the number of devices.

    Args:
      eval_step: (variables, batch) -> sums over the batch's examples: loss, top1, examples and, from five classes on, top5.
      variables: the model's, whole on every device of `mesh`.
      batch_size: over all devices and processes; a batch is padded to the next multiple of the devices.
      threads: that decode images. progress: whether a bar with the time left stands on standard error.
    Returns:
      loss, top1 and top5 (means; top5 absent below five classes), and examples, their number.
    Raises:
      UserError: a batch size below one.
    """
    if batch_size < 1:
        raise UserError(f"batch size: expected at least 1, found {batch_size}")
    devices = mesh.devices.size
    padded = -(-min(batch_size, len(source)) // devices) * devices
    batches = eval_batches(
        source,
        batch_size=padded,
        preprocessing=preprocessing,
        threads=threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    hidden = not progress or jax.process_index() > 0
    bar = tqdm(batches, f"evaluating {source.split}", -(-len(source) // padded), unit="batch", leave=False, disable=hidden)
    totals: dict[str, float] = {}
    waiting: Sums = {}
    for batch in bar:
        # The sums are fetched one batch late, so that the device has the next one while the host adds.
        computing = eval_step(variables, _on_devices(batch, mesh))
        _add(totals, waiting)
        waiting = computing
    _add(totals, waiting)
    examples = int(totals.pop("examples"))
    return {**{name: total / examples for name, total in totals.items()}, "examples": examples}


def _on_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {name: jax.make_array_from_process_local_data(sharding, batch[name]) for name in ("image", "label", "weight")}


def _add(totals: dict[str, float], sums: Sums) -> None:
    """Adds in Python's numbers, which lose no count."""
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + value.item()
