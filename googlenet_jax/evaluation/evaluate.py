"""Loss and metrics over a whole split, every example counted once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from googlenet_jax.data.bad_images import BadImages
from googlenet_jax.data.pipeline import DEFAULT_THREADS, eval_batches
from googlenet_jax.data.preprocessing import Preprocessing, normalize
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.metrics import METRICS, Metric, cross_entropy
from googlenet_jax.evaluation.set_metrics import SetMetric, compute
from googlenet_jax.runtime.compiled import Shared
from googlenet_jax.runtime.sharding import data_sharding, replicated, shard_batch

Batch = dict[str, jax.Array]
Sums = Mapping[str, Any]
OUTPUTS = "outputs"  # the entry of the sums that is no sum


class CutShort(Exception):
    """An evaluation has ended early, as it was asked to; there is no result."""


def make_eval_step(
    model: Any,
    preprocessing: Preprocessing,
    mesh: Mesh,
    metrics: Mapping[str, Metric] | None = None,
    loss: Callable[[Any, Batch], jax.Array] | None = None,
    *,
    keeps_outputs: bool = False,
) -> Callable[[dict[str, Any], Batch], Sums]:
    """Returns the compiled step (variables, batch) -> sums over the batch's examples.

    batch: image [B, S, S, C] in the preprocessing's dtype, label int32 [B] or float32 [B, K],
    weight float32 [B] (1 an example, 0 padding) and whatever else the metrics use, split over the
    mesh. The sums are scalars: loss, each of `metrics` (top1 and top5 by default; top5 is absent
    below five classes) and examples; counts are int32. Add up batches in Python's numbers: float32
    loses counts above 2^24.

    Args:
      loss: (output, batch) -> a batch's mean loss; it is asked for each example by itself, so that
        every one counts once. None is the main head's plain cross entropy.
      keeps_outputs: whether the sums hold OUTPUTS besides: {"logits": [B, K], "label", "weight"} of
        the whole batch, for `set_metrics`.
    """
    chosen = {name: METRICS[name] for name in ("top1", "top5")} if metrics is None else metrics

    def eval_step(variables: dict[str, Any], batch: Batch) -> Sums:
        is_example = batch["weight"] > 0
        output: Any = model.apply(
            variables, normalize(batch["image"], preprocessing, model.dtype), train=False
        )
        values = {name: metric(output, batch) for name, metric in chosen.items()}
        sums = {
            name: _sum_of(value, is_example) for name, value in values.items() if value is not None
        }
        losses = (
            cross_entropy(output.logits, batch["label"])
            if loss is None
            else _each_loss(loss, output, batch)
        )
        total = jnp.where(is_example, losses, 0).sum()
        outputs = {"logits": output.logits, "label": batch["label"], "weight": batch["weight"]}
        kept = {OUTPUTS: outputs} if keeps_outputs else {}
        return {"loss": total, **sums, "examples": is_example.sum(dtype=jnp.int32), **kept}

    return Shared(
        jax.jit(
            eval_step,
            in_shardings=(replicated(mesh), data_sharding(mesh)),
            out_shardings=replicated(mesh),
        )
    )


def _each_loss(loss: Callable[[Any, Batch], jax.Array], output: Any, batch: Batch) -> jax.Array:
    """The loss of each example, [B]: of a batch that holds it alone."""
    rest = {name: array for name, array in batch.items() if name != "weight"}

    def one(output: Any, example: Batch) -> jax.Array:
        alone = jax.tree.map(lambda leaf: leaf[None], (output, example))
        return loss(*alone)

    return jax.vmap(one)(output, rest)


def _sum_of(values: jax.Array, is_example: jax.Array) -> jax.Array:
    if values.dtype == jnp.bool:
        return (values & is_example).sum(dtype=jnp.int32)
    return jnp.where(is_example, values, 0).sum()


def evaluate_source(
    eval_step: Callable[[Any, Batch], Sums],
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    mesh: Mesh,
    threads: int = DEFAULT_THREADS,
    workers: int = 0,
    bad_images: BadImages | None = None,
    channels: int = 3,
    set_metrics: Mapping[str, SetMetric] | None = None,
    progress: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Evaluates every example of `source` exactly once, whatever the batch size and the number of
    devices.

    Args:
      eval_step: (variables, batch) -> sums over the batch's examples: loss, metrics and examples.
      variables: the model's, whole on every device of `mesh`.
      batch_size: over all devices and processes; a batch is padded to the next multiple of the
        devices.
      threads, workers: that decode images: threads, or processes where there are any.
      bad_images: where images that can't be read are counted, and not evaluated; None is for an
        error. channels: of the network's images. progress: whether a bar with the time left stands
          on standard
        error.
      set_metrics: of the whole split, where `eval_step` keeps the outputs.
      should_stop: asked before each batch.
    Returns:
      The means of all sums and the set metrics (top5 is absent below five classes), and examples,
      their number.
    Raises:
      UserError: a batch size below one.
      CutShort: `should_stop()` said so.
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
        workers=workers,
        bad_images=bad_images,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        channels=channels,
    )
    hidden = not progress or jax.process_index() > 0
    count = -(-len(source) // padded)
    bar = tqdm(
        batches, f"evaluating {source.split}", count, unit="batch", leave=False, disable=hidden
    )
    totals: dict[str, float] = {}
    outputs: list[Mapping[str, Any]] = []
    waiting: Sums = {}
    for batch in bar:
        if should_stop():
            bar.close()
            raise CutShort
        # The sums are fetched one batch late, so that the device has the next one while the host
        # adds.
        computing = eval_step(variables, shard_batch(batch, mesh))
        _add(totals, outputs, waiting)
        waiting = computing
    _add(totals, outputs, waiting)
    examples = int(totals.pop("examples"))
    means = {name: total / examples for name, total in totals.items()}
    if set_metrics:
        whole = {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}
        there = whole["weight"] > 0
        logits, labels = whole["logits"][there], whole["label"][there]
        means |= compute(set_metrics, logits, labels, source.class_names)
    return {**means, "examples": examples}


def _add(totals: dict[str, float], outputs: list[Mapping[str, Any]], sums: Sums) -> None:
    """Adds in Python's numbers, which lose no count."""
    for name, value in sums.items():
        if name == OUTPUTS:
            outputs.append(jax.device_get(value))
        else:
            totals[name] = totals.get(name, 0) + value.item()
