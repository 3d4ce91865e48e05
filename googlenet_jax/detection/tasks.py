"""What R-CNN and MultiBox share as tasks: a config's fields, the network that it describes, and
batches whose examples depend on the seed and the batch's number alone.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.training.classification import build_model
from googlenet_jax.training.config import Field, check_fields, default_config

Batch = dict[str, np.ndarray]


def detection_config(task: str, best: str, fields: Sequence[Field]) -> ConfigDict:
    """Returns a config for a task on a detection set, with the fields that it adds; the metric
    `best` decides which checkpoint is the best.
    """
    config = default_config()
    config.task = task
    config.data.name = "voc/2007"  # a TFDS detection set, or "digit_scenes"
    config.data.train_split = "train+validation"
    config.data.eval_splits = ("test",)
    config.data.threads = 4
    config.preprocessing.resize = config.preprocessing.size
    del config.augment
    for field in fields:
        group, _, name = field.name.partition(".")
        if group not in config:
            config[group] = ConfigDict(type_safe=False)
        config[group][name] = field.default
    config.batch_size = 32
    del config.metrics
    config.checkpoint.best = best
    return config


def build_parts(
    config: ConfigDict, num_classes: int, best: str, fields: Sequence[Field]
) -> tuple[Network, Preprocessing]:
    """Builds what a config of `detection_config` describes; raises UserError for what can't be."""
    preprocessing = Preprocessing.from_dict(config.preprocessing.to_dict())
    model = build_model(config, num_classes=num_classes)
    size = preprocessing.size
    if problem := model.size_problem(size, size, model.aux_heads):
        raise UserError(f"preprocessing.size: {config.model.name}: {problem}")
    check_fields(config, fields)
    if config.checkpoint.best not in (best, "loss"):
        raise UserError(
            f"checkpoint.best: expected {best!r} or 'loss', found {config.checkpoint.best!r}"
        )
    return model, preprocessing


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
