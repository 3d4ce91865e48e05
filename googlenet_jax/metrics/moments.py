"""Means and covariances of features, added up on the device in float32 without losing digits."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_jax.errors import UserError

Array = jax.Array
Pair = tuple[Array, Array]  # a number as high + low, the low one below half a unit of the high one

# Examples whose products are added up at once. At most 2⁹, so that sums of products of two whole
# numbers up to 2⁷ stay below 2²⁴, where float32 holds every whole number; fewer bound the rest.
CHUNK = 128
# The bound that is stated: an example adds at most this much of (the largest |x| of column i in its
# chunk) · (that of column j) to the error of the sum at i, j, where x is a feature less the shift.
BOUND = 2.0**-30


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A set's mean float64 [D] and covariance float64 [D, D] (divided by count − 1).

    `count` is how many examples they are of, None where a file doesn't say.
    """

    mean: np.ndarray
    cov: np.ndarray
    count: int | None = None

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.mean)


@flax.struct.dataclass
class Moments:
    """Count, sum and sum of outer products of features, in float32 pairs; a pytree.

    Sums are of x = feature − shift, the shift being the first batch's mean. Each x is taken apart
    into whole numbers of at most seven bits on a grid of its column's, and what is left: products
    of the former add up without rounding, also in bfloat16 passes of a TPU and in TF32.

    Attributes:
      count: int32, examples. bad: int32, those with features that are not finite.
      shift: [D]. total: pair of [D]. half: pair of [D, D]; half + halfᵀ is the sum of outer
        products.
      mesh: over whose devices the columns of `half` are split; None for one device.
    """

    count: Array
    bad: Array
    shift: Array
    total: Pair
    half: Pair
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def zeros(cls, width: int, mesh: Mesh | None = None) -> "Moments":
        """Of no examples yet, with `width` features."""
        columns, whole = shardings(width, mesh)

        def zero(shape: tuple[int, ...], sharding: Any, dtype: Any = jnp.float32) -> Array:
            # Made on the devices, so that a mesh over several processes has its parts there.
            return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()

        vector, matrix = (width,), (width, width)
        return cls(
            zero((), whole, jnp.int32),
            zero((), whole, jnp.int32),
            zero(vector, whole),
            (zero(vector, whole), zero(vector, whole)),
            (zero(matrix, columns), zero(matrix, columns)),
            mesh,
        )

    def update(self, features: Array, mask: Array | None = None) -> "Moments":
        """Adds features, floats [N, D], read as float32; rows where `mask`, bool [N], is False
        don't count. Inside or outside jit.

        Raises ValueError for features of another width.
        """
        width = self.shift.shape[0]
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"features must be [N, {width}], found {list(features.shape)}")
        mask = jnp.ones(len(features), bool) if mask is None else mask
        return _update(self, features, mask)

    def statistics(self) -> Statistics:
        """The mean and the covariance, in float64 on the host. Raises UserError below two."""
        count, shift, total, second = self._sums()
        if bad := int(fetch(self.bad)):
            raise UserError(
                f"features: {bad:,} of {count:,} images gave values that are not finite; look for "
                "NaN in the images and in the network's weights"
            )
        if count < 2:
            raise UserError(f"a covariance needs at least two images, found {count}")
        mean = total / count
        cov = (second - np.outer(total, mean)) / (count - 1)
        return Statistics(shift + mean, (cov + cov.T) / 2, count)

    def merge(self, other: "Moments") -> "Moments":
        """Both sets' moments; in float64 on the host, so outside jit."""
        count, shift, total, second = self._sums()
        more, their_shift, their_total, their_second = other._sums()
        if not count:
            return other.replace(mesh=self.mesh)  # type: ignore[attr-defined]
        step = their_shift - shift  # x as we count it is theirs plus this
        moved = np.outer(their_total, step)
        second = second + their_second + moved + moved.T + more * np.outer(step, step)
        total = total + their_total + more * step
        columns, whole = shardings(len(shift), self.mesh)
        return self.replace(  # type: ignore[attr-defined]
            count=_put(np.int32(count + more), whole),
            bad=_put(np.int32(int(fetch(self.bad)) + int(fetch(other.bad))), whole),
            total=tuple(_put(part, whole) for part in _as_pair(total)),
            half=tuple(_put(part, columns) for part in _as_pair(second / 2)),
        )

    def _sums(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Count, shift, sum and sum of outer products, in float64."""
        total = sum(fetch(part).astype(np.float64) for part in self.total)
        half = sum(fetch(part).astype(np.float64) for part in self.half)
        shift = fetch(self.shift).astype(np.float64)
        return (
            int(fetch(self.count)),
            shift,
            np.asarray(total),
            np.asarray(half + np.transpose(half)),
        )


def statistics_of(features: np.ndarray) -> Statistics:
    """The statistics of features [N, D] on the host, in float64. Raises UserError below two."""
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise UserError(f"a covariance needs at least two images, found {len(features)}")
    mean = features.mean(0)
    centred = features - mean
    return Statistics(mean, centred.T @ centred / (len(features) - 1), len(features))


def merge_statistics(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of several sets together, from theirs (Chan, Golub and LeVeque, 1979).

    Raises UserError where one doesn't say of how many examples it is, or is of another width.
    """
    first, *rest = parts
    for each in rest:
        if first.count is None or each.count is None:
            raise UserError("statistics: can't be merged: one doesn't say of how many images it is")
        if each.width != first.width:
            raise UserError(f"statistics: widths differ: {first.width} and {each.width} features")
        count, step = first.count + each.count, each.mean - first.mean
        scatter = (first.count - 1) * first.cov + (each.count - 1) * each.cov
        scatter += np.outer(step, step) * (first.count * each.count / count)
        mean = first.mean + step * (each.count / count)
        first = Statistics(mean, scatter / (count - 1), count)
    return first


def fetch(array: Any) -> np.ndarray:
    """An array as numpy's, on every process whole, wherever its parts lie."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


@jax.jit
def _update(moments: Moments, features: Array, mask: Array) -> Moments:
    features, mesh = features.astype(jnp.float32), moments.mesh
    columns, whole = shardings(features.shape[1], mesh)
    if mesh is not None:
        # Each device has all features of the batch (kilobytes an image) and makes columns of its
        # own, in place of a sum of whole matrices over the devices.
        features = jax.lax.with_sharding_constraint(features, whole)
        mask = jax.lax.with_sharding_constraint(mask, whole)
    finite = jnp.isfinite(features).all(1)
    new = mask.sum(dtype=jnp.int32)
    mean = jnp.where(mask[:, None], features, 0).sum(0) / jnp.maximum(new, 1)
    shift = jnp.where(moments.count == 0, mean, moments.shift)

    def add(sums: tuple[Pair, Pair], part: tuple[Array, Array]) -> tuple[tuple[Pair, Pair], None]:
        total, half = sums
        vectors, matrices = _chunk(*part, shift)
        for vector in vectors:
            total = add_to_pair(total, vector)
        for matrix in matrices:
            if mesh is not None:
                matrix = jax.lax.with_sharding_constraint(matrix, columns)
            half = add_to_pair(half, matrix)
        return (total, half), None

    sums = moments.total, moments.half
    if len(features) <= CHUNK:
        (total, half), _ = add(sums, (features, mask))
    else:
        missing = -len(features) % CHUNK
        rows = jnp.pad(features, ((0, missing), (0, 0))).reshape(-1, CHUNK, features.shape[1])
        (total, half), _ = jax.lax.scan(
            add, sums, (rows, jnp.pad(mask, (0, missing)).reshape(-1, CHUNK))
        )
    return moments.replace(  # type: ignore[attr-defined]
        count=moments.count + new,
        bad=moments.bad + (mask & ~finite).sum(dtype=jnp.int32),
        shift=shift,
        total=total,
        half=half,
    )


def _chunk(features: Array, mask: Array, shift: Array) -> tuple[list[Array], list[Array]]:
    """Sums [D] and half the outer products [D, D] of a chunk's x, in parts to be added up.

    The outer products of x = a + b are aaᵀ + abᵀ + baᵀ + bbᵀ; half of it, whose other half is its
    transpose, is ½aaᵀ + abᵀ + ½bbᵀ.
    """
    high, low = _two_sum(features, -shift)
    high, low = (jnp.where(mask[:, None], part, 0) for part in (high, low))
    exponent = jnp.frexp(jnp.abs(high).max(0))[1]
    scale = jnp.ldexp(jnp.float32(1), 7 - exponent)  # a power of two, so that scaling is exact
    unit = jnp.ldexp(jnp.float32(1), exponent - 7)
    scaled = high * scale  # within ±128
    a = jnp.round(scaled)
    b = (scaled - a) + low * scale
    b_whole = jnp.round(b * 256)
    b_rest = b - b_whole / 256

    def products(left: Array, right: Array, precision: Any) -> Array:
        result = jnp.matmul(left.T, right, precision=precision, preferred_element_type=jnp.float32)
        return result * unit[:, None] * unit[None, :]

    exact = jax.lax.Precision.DEFAULT  # of whole numbers up to 128, which bfloat16 holds
    rest = products(
        jnp.concatenate([a, b / 2]), jnp.concatenate([b_rest, b]), jax.lax.Precision.HIGHEST
    )
    return (
        [a.sum(0) * unit, b.sum(0) * unit],
        [products(a, a, exact) / 2, products(a, b_whole, exact) / 256 + rest],
    )


def _two_sum(a: Array, b: Array) -> Pair:
    """a + b, and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def add_to_pair(pair: Pair, value: Array) -> Pair:
    high, error = _two_sum(pair[0], value)
    low = pair[1] + error
    total = high + low
    return total, low - (total - high)


def _as_pair(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = values.astype(np.float32)
    return high, (values - high).astype(np.float32)


def shardings(width: int, mesh: Mesh | None) -> tuple[Any, Any]:
    """Where a [D, D] matrix lies, its columns split where they divide, and everything else."""
    if mesh is None:
        return None, None
    split = PartitionSpec(None, *mesh.axis_names) if width % mesh.size == 0 else PartitionSpec()
    return NamedSharding(mesh, split), NamedSharding(mesh, PartitionSpec())


def _put(values: Any, sharding: Any) -> Array:
    if sharding is None:
        return jnp.asarray(values)
    values = np.asarray(values)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
