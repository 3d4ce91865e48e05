"""What the metrics keep of images beside moments: features themselves, and sums of probabilities."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError
from googlenet_jax.metrics.moments import Pair, add_to_pair, fetch, shardings

Array = jax.Array


def place(values: Any, mesh: Mesh | None) -> Array:
    """A small array, whole on every device of the mesh."""
    if mesh is None:
        return jnp.asarray(values)
    values = np.asarray(values)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])


@flax.struct.dataclass
class Rows:
    """Features in the order in which they came, up to a capacity; a pytree.

    Attributes:
      table: float32 [capacity, D], its columns split over the mesh. count: int32, all that came.
      bad: int32, those that are not finite.
    """

    table: Array
    count: Array
    bad: Array

    @classmethod
    def zeros(cls, capacity: int, width: int, mesh: Mesh | None = None) -> "Rows":
        """Of no rows yet."""
        columns, _ = shardings(width, mesh)
        table = jax.jit(lambda: jnp.zeros((capacity, width), jnp.float32), out_shardings=columns)()
        return cls(table, place(np.int32(0), mesh), place(np.int32(0), mesh))

    def update(self, features: Array, mask: Array) -> "Rows":
        """Adds the rows of [N, D] where `mask`, bool [N]; those beyond the capacity are counted."""
        return _append(self, features, mask)

    def values(self) -> np.ndarray:
        """float32 [count, D]. Raises UserError beyond the capacity, or for what is not finite."""
        count, capacity = int(fetch(self.count)), self.table.shape[0]
        if count > capacity:
            raise UserError(
                f"capacity: expected at least the number of images, {count:,}, found {capacity:,}"
            )
        if bad := int(fetch(self.bad)):
            raise UserError(
                f"features: {bad:,} of {count:,} images gave values that are not finite; look for "
                "NaN in the images and in the network's weights"
            )
        return fetch(self.table)[:count]

    def merge(self, other: "Rows") -> "Rows":
        """These rows and then the other's, with this one's capacity; outside jit."""
        rows = fetch(other.table)[: int(fetch(other.count))]
        if len(rows) < int(fetch(other.count)):
            raise UserError(
                f"capacity: expected at least the number of images, {int(fetch(other.count)):,}, "
                f"found {len(rows):,}"
            )
        return self.update(jnp.asarray(rows), jnp.ones(len(rows), bool))


@jax.jit
def _append(rows: Rows, features: Array, mask: Array) -> Rows:
    places = jnp.where(mask, rows.count + jnp.cumsum(mask) - 1, rows.table.shape[0])
    features = features.astype(jnp.float32)
    bad = mask & ~jnp.isfinite(features).all(1)
    return rows.replace(  # type: ignore[attr-defined]
        table=rows.table.at[places].set(features, mode="drop"),
        count=rows.count + mask.sum(dtype=jnp.int32),
        bad=rows.bad + bad.sum(dtype=jnp.int32),
    )


@flax.struct.dataclass
class Probabilities:
    """Sums over the splits of the Inception score; a pytree.

    Attributes:
      classes: pair of [splits, C], sums of p. entropies: pair of [splits], sums of Σ p log p.
      count: int32 [splits]. examples: how many images there will be, None where unknown.
    """

    classes: Pair
    entropies: Pair
    count: Array
    examples: int | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def zeros(cls, splits: int, classes: int, examples: int | None) -> "Probabilities":
        """Of no images yet."""
        table, line = (jnp.zeros(shape, jnp.float32) for shape in ((splits, classes), (splits,)))
        return cls((table, table), (line, line), jnp.zeros(splits, jnp.int32), examples)

    def update(self, logits: Array, mask: Array) -> "Probabilities":
        """Adds logits [N, C] where `mask`, bool [N]."""
        return _add_logits(self, logits, mask)

    def scores(self) -> np.ndarray:
        """Each split's score, float64 [splits]. Raises UserError; see `InceptionScore.compute`."""
        count = fetch(self.count)
        total = int(count.sum())
        if self.examples not in (None, total):
            raise UserError(
                f"examples: expected {self.examples:,} images, as was said, found {total:,}"
            )
        if not count.all():
            raise UserError(
                f"splits: expected at least {len(count)} images, one a split, found {total}"
            )
        classes = sum(fetch(part).astype(np.float64) for part in self.classes)
        entropies = sum(fetch(part).astype(np.float64) for part in self.entropies)
        mean = np.asarray(classes) / count[:, None]
        of_mean = np.where(mean > 0, mean * np.log(np.maximum(mean, 1e-300)), 0).sum(1)
        scores = np.exp(np.asarray(entropies) / count - of_mean)
        if not np.isfinite(scores).all():
            raise UserError(
                "logits: some are not finite; look for NaN in the images and in the network's"
                " weights"
            )
        return scores

    def merge(self, other: "Probabilities") -> "Probabilities":
        """Both sums: image i of each belongs to split i modulo splits."""
        if self.examples is not None:
            raise UserError(
                "examples: sets whose splits are stretches of a known length can't be merged; leave"
                " out examples="
            )
        return self.replace(  # type: ignore[attr-defined]
            classes=add_to_pair(add_to_pair(self.classes, other.classes[0]), other.classes[1]),
            entropies=add_to_pair(
                add_to_pair(self.entropies, other.entropies[0]), other.entropies[1]
            ),
            count=self.count + other.count,
        )


@jax.jit
def _add_logits(sums: Probabilities, logits: Array, mask: Array) -> Probabilities:
    splits = len(sums.count)
    places = sums.count.sum() + jnp.cumsum(mask) - 1
    if sums.examples is None:
        split = places % splits
    else:
        # Split s is of images ⌊s·N/splits⌋ to ⌊(s + 1)·N/splits⌋.
        ends = np.array([(s + 1) * sums.examples // splits for s in range(splits)])
        split = jnp.searchsorted(jnp.asarray(ends), places, side="right")
    chosen = jax.nn.one_hot(split, splits, dtype=jnp.float32) * mask[:, None]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_p = jnp.where(mask[:, None], log_p, 0)
    p = jnp.exp(log_p)
    classes = jnp.matmul(chosen.T, p, precision="highest")
    entropies = jnp.matmul(chosen.T, (p * log_p).sum(1), precision="highest")
    return sums.replace(  # type: ignore[attr-defined]
        classes=add_to_pair(sums.classes, classes),
        entropies=add_to_pair(sums.entropies, entropies),
        count=sums.count + chosen.sum(0).astype(jnp.int32),
    )
