"""Training batches whose examples depend on the seed and the batch's number alone."""

from collections.abc import Callable, Generator
from contextlib import closing

import grain
import jax
import numpy as np

Batch = dict[str, np.ndarray]


def numbered_batches(
    read: Callable[[np.ndarray, list[np.random.Generator]], Batch],
    start_step: int,
    *,
    examples: int,
    batch_size: int,
    seed: int,
    threads: int,
) -> Generator[Batch, None, None]:
    """Yields this process's share of each global batch, from number `start_step` on, without end.

    Every epoch is a permutation of the examples. What an example draws depends on the seed and its
    place in the run, not on the number of processes.

    Args:
      read: from the examples' positions and a random generator for each to a batch.
    """
    rows = batch_size // jax.process_count()
    own = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def share(indices: np.ndarray, rng: np.random.Generator) -> Batch:
        # Seeds, since `spawn` would count on from what grain's generator has served before.
        seeds = rng.integers(2**63, size=batch_size)[own]
        return read(np.asarray(indices)[own], [np.random.default_rng(seed) for seed in seeds])

    order = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    batches = order.batch(batch_size, drop_remainder=True).random_map(share)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    with closing(iterator):  # ends the threads
        yield from iterator
