"""FID, sFID, KID, the Inception score, precision and recall, image batch by image batch."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from googlenet_jax.errors import UserError, check_whole
from googlenet_jax.metrics import sums
from googlenet_jax.metrics.distance import frechet_distance
from googlenet_jax.metrics.features import (
    InceptionFeatures,
    check_function,
    inception_features,
    widths,
)
from googlenet_jax.metrics.kernel import Kernel, KernelDistance, cubic, kernel_distance
from googlenet_jax.metrics.moments import Moments, Statistics, fetch
from googlenet_jax.metrics.neighbours import Neighbourhoods, neighbourhoods

Array = jax.Array
Self = TypeVar("Self", bound="Metric")

# How far two sets of N images of one normal distribution are apart, of the trace of its covariance,
# by N / features: simulated by `benchmarks/fid.py bias`, with eigenvalues that fall as 1/i.
BIAS = {0.05: 1.10, 0.1: 0.85, 0.25: 0.57, 0.5: 0.37, 1.0: 0.21}


class InceptionScoreResult(NamedTuple):
    """The splits' mean and standard deviation."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class _Options:
    """What is fixed of a metric, and compared where jit looks for compiled code."""

    function: Any  # a user's, where it is no pytree
    mesh: Mesh | None
    value_range: tuple[float, float]
    own: tuple[tuple[str, Any], ...]  # the subclass's

    def __getitem__(self, name: str) -> Any:
        return dict(self.own)[name]


class Metric:
    """What the metrics share. One is a pytree that never changes: `update` returns another, inside
    or outside jit, so that it can be part of a training state. Its features' weights are leaves.

    Args:
      features: `inception_features(…)`, or a function of images that returns [N, D], or a
        `jax.tree_util.Partial` of one; None is the Inception network with its public weights.
      width: D, for a function of one's own.
      value_range: of images that are floats, such as (−1, 1). They are rounded to whole numbers of
        0–255, as saving them would; a function of one's own gets images as they are.
    """

    layer: ClassVar[str] = "pool3"
    sides: ClassVar[tuple[str, ...]] = ("real", "generated")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_node_class(cls)

    def __init__(
        self,
        features: Any = None,
        *,
        width: int | None = None,
        value_range: tuple[float, float] = (0, 255),
        **own: Any,
    ) -> None:
        if features is None:
            features = inception_features()
        mesh = getattr(features, "mesh", None)
        if width is None:
            if not isinstance(features, InceptionFeatures):
                raise UserError("width: say how many features your function returns for an image")
            width = widths(features)[self.layer]
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"value_range: expected (lowest, highest), found {value_range!r}")
        leaf = isinstance(features, InceptionFeatures | jax.tree_util.Partial)
        self.width = check_whole("width", width, 1)
        self._features = features if leaf else None
        self._options = _Options(
            None if leaf else features, mesh, (float(low), float(high)), tuple(own.items())
        )
        self._state = {side: self._zeros() for side in self.sides}
        self._pixels = {side: _no_pixels(mesh) for side in self.sides}

    # -------------------------------------------------------------------------------- as a pytree

    def tree_flatten(self) -> tuple[Any, Any]:
        """For JAX."""
        return (self._features, self._state, self._pixels), (self._options, self.width)

    @classmethod
    def tree_unflatten(cls: type[Self], fixed: Any, leaves: Any) -> Self:
        """For JAX."""
        metric = object.__new__(cls)
        metric._options, metric.width = fixed
        metric._features, metric._state, metric._pixels = leaves
        return metric

    def _with(self: Self, state: Any = None, pixels: Any = None) -> Self:
        leaves, fixed = self.tree_flatten()
        changed = (leaves[0], state or leaves[1], pixels or leaves[2])
        return self.tree_unflatten(fixed, changed)

    # ------------------------------------------------------------------------------------ its use

    @property
    def features(self) -> Any:
        """The function of images."""
        return self._options.function if self._features is None else self._features

    def update(self: Self, images: Any, real: bool = True, mask: Any = None) -> Self:
        """Adds images.

        Args:
          images: uint8 [N, H, W, 3], or floats of `value_range`; numpy's or JAX's, split over the
            mesh where there is one.
          real: whether they are real (the reference) or generated.
          mask: bool [N], False for rows that don't count, such as a last batch's padding.
        Raises:
          UserError: images of another shape, range or with NaN (inside jit `compute` says so), or
            features that are none.
        """
        return update({"": self}, images, real=real, mask=mask)[""]

    def update_features(self: Self, features: Any, real: bool = True, mask: Any = None) -> Self:
        """Adds features [N, D] that are there already; see `update`."""
        side = self.sides[0] if real else self.sides[-1]
        features = jnp.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise UserError(
                f"features: expected [N, {self.width}], found {list(features.shape)}; another width"
                " is given as width="
            )
        mask = jnp.ones(len(features), bool) if mask is None else jnp.asarray(mask, bool)
        return self._with({**self._state, side: self._add(self._state[side], features, mask)})

    def reset(self: Self, real: bool = False) -> Self:
        """Without the generated images (the real ones, with `real`), for the next evaluation."""
        side = self.sides[0] if real else self.sides[-1]
        zero, none = self._zeros(), _no_pixels(self._options.mesh)
        return self._with({**self._state, side: zero}, {**self._pixels, side: none})

    def merge(self: Self, other: Self) -> Self:
        """Both sets of images as one, in this one's order first; outside jit."""
        state = {side: self._merge(self._state[side], other._state[side]) for side in self.sides}
        pixels = {
            side: _join(self._pixels[side], fetch(other._pixels[side])) for side in self.sides
        }
        return self._with(state, pixels)

    def merge_processes(self: Self) -> Self:
        """The images of all processes as one, where each has updated a metric of its own; every
        process calls it and gets the same. With a mesh over the processes nothing is to be merged.
        """
        if jax.process_count() == 1:
            return self
        leaves, tree = jax.tree.flatten((self._state, self._pixels))
        gathered = [np.asarray(multihost_utils.process_allgather(leaf)) for leaf in leaves]
        parts = [
            self._with(*jax.tree.unflatten(tree, [jnp.asarray(leaf[rank]) for leaf in gathered]))
            for rank in range(jax.process_count())
        ]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.merge(part)
        return whole

    def _check(self) -> None:
        """Raises UserError for images that were in another range than was said."""
        for side in self.sides:
            check_pixels(side, fetch(self._pixels[side]), self._options.value_range)

    # --------------------------------------------------------------- what a metric says of itself

    def _zeros(self) -> Any:
        raise NotImplementedError

    def _seen(self) -> int:
        return sum(int(fetch(self._state[side].count).sum()) for side in self.sides)

    def _add(self, state: Any, features: Array, mask: Array) -> Any:
        return state.update(features, mask)

    def _merge(self, state: Any, other: Any) -> Any:
        return state.merge(other)


M = TypeVar("M", bound=Mapping[str, Metric])


def update(metrics: M, images: Any, *, real: bool = True, mask: Any = None) -> M:
    """Adds images to several metrics that have the same features, with one pass of the network.

    Returns a dictionary alike; arguments as `Metric.update`'s.
    """
    first = next(iter(metrics.values()))
    features, value_range = first.features, first._options.value_range
    if any(each.features is not features for each in metrics.values()) and not _traced(images):
        raise UserError(
            "metrics: expected all with the same features=, made once and given to each"
        )
    _check_images(images, value_range)
    images = jnp.asarray(images)
    ours = isinstance(features, InceptionFeatures)
    if ours:
        pixels = prepared(images, value_range)
        values = features.layers(pixels, sorted({each.layer for each in metrics.values()}))
    else:
        if not _traced(images) and first._seen() == 0:
            check_function(features, images)
        values = dict.fromkeys((each.layer for each in metrics.values()), features(images))
    result: dict[str, Metric] = {}
    for name, each in metrics.items():
        new = each.update_features(values[each.layer], real, mask)
        side = each.sides[0] if real else each.sides[-1]
        if ours:
            seen = _join(each._pixels[side], _extent(images, mask))
            new = new._with(pixels={**each._pixels, side: seen})
        result[name] = new
    return result  # type: ignore[return-value]


class FID(Metric):
    """The Fréchet Inception distance (1706.08500): `compute()` is a float, 0 for equal sets."""

    def _zeros(self) -> Moments:
        return Moments.zeros(self.width, self._options.mesh)

    def statistics(self, real: bool = True) -> Statistics:
        """Mean and covariance of one side, in float64."""
        self._check()
        return self._state["real" if real else "generated"].statistics()

    def compute(self, real: Statistics | None = None) -> float:
        """The distance; `real` are stored statistics in place of real images.

        Warns where there are fewer images than features. Raises UserError below two images a side.
        """
        first, second = real or self.statistics(True), self.statistics(False)
        if text := few_images(first, second):
            warnings.warn(text, stacklevel=2)
        return frechet_distance(first, second)


class SFID(FID):
    """FID of the first seven channels of mixed_6d's map, 17×17×7 (2103.03841): arrangement."""

    layer = "spatial"


class _Stored(Metric):
    """A metric that needs the features themselves: `capacity` images a side, in float32."""

    def _zeros(self) -> sums.Rows:
        return sums.Rows.zeros(self._options["capacity"], self.width, self._options.mesh)

    def stored(self, real: bool = True) -> np.ndarray:
        """The features of one side, float32 [N, D], in the order of the updates."""
        self._check()
        return self._state["real" if real else "generated"].values()


class KID(_Stored):
    """The kernel Inception distance (1801.01401): `compute()` gives mean and std over subsets.

    Args (and those of Metric):
      capacity: the most images a side that are kept; 8 kB each.
      subsets, subset_size, seed, kernel: see `kernel.kernel_distance`.
    """

    def __init__(
        self,
        features: Any = None,
        *,
        capacity: int = 10_000,
        subsets: int = 100,
        subset_size: int = 1000,
        seed: int = 2020,
        kernel: Kernel = cubic,
        **common: Any,
    ) -> None:
        super().__init__(
            features,
            capacity=check_whole("capacity", capacity, 2),
            subsets=check_whole("subsets", subsets, 1),
            subset_size=check_whole("subset_size", subset_size, 2),
            seed=seed,
            kernel=kernel,
            **common,
        )

    def compute(self) -> KernelDistance:
        """Mean and standard deviation over the subsets. Raises UserError where a side is smaller
        than a subset.
        """
        given = {name: self._options[name] for name in ("subsets", "subset_size", "seed", "kernel")}
        return kernel_distance(self.stored(True), self.stored(False), **given)


class PrecisionRecall(_Stored):
    """Precision and recall (1904.06991), density and coverage (2002.09797): `Neighbourhoods`.

    Args (and those of Metric):
      capacity: the most images a side that are kept; 8 kB each.
      k, k_density: see `neighbours.neighbourhoods`.
    """

    def __init__(
        self,
        features: Any = None,
        *,
        capacity: int = 10_000,
        k: int = 3,
        k_density: int = 5,
        **common: Any,
    ) -> None:
        super().__init__(
            features,
            capacity=check_whole("capacity", capacity, 2),
            k=check_whole("k", k, 1),
            k_density=check_whole("k_density", k_density, 1),
            **common,
        )

    def compute(self) -> Neighbourhoods:
        """The four figures. Raises UserError for k or fewer images on a side."""
        k, k_density = self._options["k"], self._options["k_density"]
        return neighbourhoods(self.stored(True), self.stored(False), k=k, k_density=k_density)


class InceptionScore(Metric):
    """exp of the mean divergence of an image's classes from the split's (1606.03498).

    Args (and those of Metric):
      splits: parts whose scores are averaged.
      examples: how many images there will be: a split is then a stretch of them in order, as the
        reference's. Where it is not known, image i belongs to split i modulo splits.
    """

    layer = "logits"
    sides = ("generated",)

    def __init__(
        self, features: Any = None, *, splits: int = 10, examples: int | None = None, **common: Any
    ) -> None:
        splits = check_whole("splits", splits, 1)
        if examples is not None:
            check_whole("examples", examples, splits)
        super().__init__(features, splits=splits, examples=examples, **common)

    def update(self: Self, images: Any, real: bool = False, mask: Any = None) -> Self:
        """Adds images; there is one side alone. See `Metric.update`."""
        return super().update(images, False, mask)

    def _zeros(self) -> sums.Probabilities:
        return sums.Probabilities.zeros(
            self._options["splits"], self.width, self._options["examples"]
        )

    def compute(self) -> InceptionScoreResult:
        """Mean and standard deviation over the splits. Raises UserError below an image a split, or
        where there were more or fewer than `examples`.
        """
        self._check()
        scores = self._state["generated"].scores()
        return InceptionScoreResult(float(scores.mean()), float(scores.std()))


# --------------------------------------------------------------------------------------- the images


def prepared(images: Array, value_range: tuple[float, float]) -> Array:
    """uint8 as they are; floats of `value_range` rounded to uint8. (NaN shows in `_extent`.)"""
    if images.dtype == jnp.uint8:
        return images
    low, high = value_range
    scaled = (images.astype(jnp.float32) - low) * (255 / (high - low))
    return jnp.round(scaled).clip(0, 255).astype(jnp.uint8)


def check_pixels(side: str, extent: np.ndarray, value_range: tuple[float, float]) -> None:
    """Raises UserError where the lowest and the highest value of a side's images don't fit."""
    lowest, highest = (float(value) for value in extent)
    low, high = value_range
    if math.isnan(lowest) or math.isnan(highest):
        raise UserError(f"{side} images: some hold NaN")
    if lowest > highest:
        return  # none was seen
    found = f"{side} images: found values from {lowest:g} to {highest:g}"
    if (low, high) == (0, 255) and highest <= 1:
        raise UserError(
            f"{found}, where 0 to 255 is expected; they seem to be in [−1, 1] or [0, 1]: give"
            " floats with value_range=(-1, 1) or (0, 1)"
        )
    beyond = (high - low) / 2
    if lowest < low - beyond or highest > high + beyond:
        raise UserError(f"{found}, outside of value_range {low:g} to {high:g}; say their range")
    if low < 0 <= lowest and highest <= high:
        warnings.warn(
            f"{found}, none below zero, where {low:g} to {high:g} was said: are they in "
            f"[0, {high:g}]?",
            stacklevel=3,
        )


def few_images(*sides: Statistics) -> str:
    """A line for sets with fewer images than features, and what it means; "" for others."""
    counts = [side.count for side in sides if side.count is not None]
    width = sides[0].width
    if not counts or min(counts) >= width:
        return ""
    share = float(np.interp(min(counts) / width, list(BIAS), list(BIAS.values())))
    apart = share * float(np.trace(sides[0].cov))
    return (
        f"{min(counts):,} images for {width:,} features: the distance is biased upwards. In a "
        f"simulation two sets of so many images from one distribution were {share:.2g} of the "
        f"covariance's trace apart, here {apart:.3g}; compare with sets of the same size alone"
    )


def _check_images(images: Any, value_range: tuple[float, float]) -> None:
    shape: Any = getattr(images, "shape", None)
    dtype: Any = getattr(images, "dtype", None)
    if shape is None or len(shape) != 4 or shape[-1] != 3:
        raise UserError(
            "images: expected an array [N, H, W, 3], found "
            f"{list(shape) if shape is not None else type(images).__name__}; PyTorch's order "
            "[N, 3, H, W] is turned by transpose(0, 2, 3, 1), one channel repeated three times"
        )
    if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"images: expected uint8 or floats, found {dtype}")
    if isinstance(images, np.ndarray) and images.size and dtype != np.uint8:
        bad = ~np.isfinite(images).reshape(len(images), -1).all(1)
        if bad.any():
            raise UserError(
                f"images: {int(bad.sum())} of {len(images)} hold NaN or inf, the first is number "
                f"{int(bad.argmax())}"
            )
        check_pixels("the", np.array([images.min(), images.max()]), value_range)


def _no_pixels(mesh: Mesh | None) -> Array:
    values = np.array([np.inf, -np.inf], np.float32)
    return sums.place(values, mesh)


def _extent(images: Array, mask: Any) -> Array:
    """The lowest and the highest value of the images that count; NaN where one is none.

    Bytes have one range, and nothing is asked of it.
    """
    if images.dtype == jnp.uint8:
        return jnp.array([jnp.inf, -jnp.inf], jnp.float32)
    lowest, highest = images.min((1, 2, 3)), images.max((1, 2, 3))
    mask = jnp.ones(len(images), bool) if mask is None else jnp.asarray(mask, bool)
    lowest = jnp.where(mask, lowest.astype(jnp.float32), jnp.inf).min()
    highest = jnp.where(mask, highest.astype(jnp.float32), -jnp.inf).max()
    # A CPU's quick reductions can lose a NaN.
    bad = (mask & ~jnp.isfinite(images).all((1, 2, 3))).any()
    return jnp.where(bad, jnp.nan, jnp.stack([lowest, highest]))


def _join(one: Array, other: Any) -> Array:
    return jnp.stack([jnp.minimum(one[0], other[0]), jnp.maximum(one[1], other[1])])


def _traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)
