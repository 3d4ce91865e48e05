"""Winograd's minimal filtering for 3×3 convolutions of stride 1 (Lavin and Gray, 2016,
arXiv:1509.09308).

A tile of 4×4 outputs takes 36 products for each pair of channels, where direct convolution
takes 144. It is the same mathematics; the rounding errors are two to five times those of direct
convolution, more with more channels.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from googlenet_jax.models import rules

Array = jax.Array
Arrays = Sequence[Array]
Pads = tuple[tuple[int, int], tuple[int, int]]

TILE = 4  # outputs along a side
_SIZE = 3  # of the kernel
# With these and infinity the rounding errors are half of those with 0, ±1, ±2, which Lavin and Gray
# take (how points are chosen: Barabasz et al., 2020, arXiv:1803.10986).
_FINITE = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
_POINTS = len(_FINITE) + 1
_PART_BYTES = 32 << 20  # of transformed tiles at a time, which then stay in the cache

# ----------------------------------------------------------------------------------------- matrices


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of Π (x − root), the constant first."""
    result = [Fraction(1)]
    for root in roots:
        shifted, same = [Fraction(0), *result], [*result, Fraction(0)]
        result = [high - root * low for high, low in zip(shifted, same, strict=True)]
    return result


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A `[4, 6]`, G `[6, 3]` and B `[6, 6]` of y = A [(G k) ⊙ (B x)], the four values of a filter k
    on six of x.

    Cook and Toom's: two polynomials are multiplied at six points, infinity among them, and the
    product is interpolated; a filter is the transpose of that.
    """
    a, g, b = np.zeros((TILE, _POINTS)), np.zeros((_POINTS, _SIZE)), np.zeros((_POINTS, _POINTS))
    for i, point in enumerate(_FINITE):
        others = [other for other in _FINITE if other != point]
        scale = math.prod(point - other for other in others)
        a[:, i] = [point**power for power in range(TILE)]
        g[i] = [point**power / scale for power in range(_SIZE)]
        b[i, :-1] = _polynomial(others)
    a[-1, -1] = g[-1, -1] = 1  # infinity
    b[-1] = _polynomial(_FINITE)
    return a, g, b


_A, _G, _B = _matrices()
# The transpose of B where tiles overlap: a tile's four places have a term of that tile, and the
# first two also one of the tile before.
_B_OVERLAPPING = np.concatenate([_B.T[:TILE], np.pad(_B.T[TILE:], ((0, 2), (0, 0)))], axis=1)

# -------------------------------------------------------------------------------------- convolution


def conv(x: Array, kernel: Array, pads: Pads) -> Array:
    """3×3 convolution of stride 1 by F(4×4, 3×3).

    Args:
      x: `[N, H, W, C]`. kernel: `[3, 3, C, O]` of x's dtype.
      pads: zeros before and after, of the rows and of the columns.
    Returns:
      `[N, H', W', O]` of x's dtype.
    """
    return _CONV(x, kernel, pads=pads)[0]


def _conv_forward(x: Array, kernel: Array, pads: Pads) -> tuple[Array, Array]:
    """The result and the transformed kernel."""
    height, width = _out(x, pads)
    filters = _both_axes(_G, kernel)

    def part(x: Array) -> Array:
        products = _multiply(_tiles(x, _B, (height, width), pads), filters, (2, 1))
        return _from_points(products, _A)[:, :height, :width]

    parts = _parts(x, filters, pads)
    split = _split(x, parts)

    def step(i: Array, y: Array) -> Array:
        return lax.dynamic_update_index_in_dim(y, part(split[:, i]), i, 1)

    y = _zeros((*split.shape[:2], height, width, kernel.shape[-1]), x)
    y = lax.fori_loop(0, parts, step, y)
    return y.reshape(-1, *y.shape[2:]), filters


def _conv_tangent(saved: Arrays, tangents: Arrays, pads: Pads) -> tuple[Array, Array]:
    """By XLA's convolutions."""
    (x, kernel, _), (dx, dkernel) = saved, tangents
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return plain(dx, kernel) + plain(x, dkernel), _both_axes(_G, dkernel)


def _conv_backward(
    saved: Arrays, cotangents: Sequence[Array | None], pads: Pads
) -> tuple[Array, Array]:
    """The transposes of the steps forward, in reverse order; the tiles of x are computed once more."""
    (x, _, filters), (dy, dfilters) = saved, cotangents
    out = _out(x, pads)
    dy = _zeros((x.shape[0], *out, filters.shape[-1]), x) if dy is None else dy
    rows, columns = (
        slice(low, low + size) for (low, _), size in zip(pads, x.shape[1:3], strict=True)
    )

    def part(x: Array, dy: Array) -> tuple[Array, Array]:
        dy_tiles = _tiles(dy, _A.T, out, ((0, 0), (0, 0)))
        products = _multiply(_tiles(x, _B, out, pads), dy_tiles, (1, 1))
        dx_tiles = _multiply(dy_tiles, filters, (2, 2))
        around = ((0, 0),) * 3 + ((1, 1), (1, 1), (0, 0))
        dx = _from_points(jnp.pad(dx_tiles, around), _B_OVERLAPPING)
        return products, dx[:, rows, columns]

    parts = _parts(x, filters, pads)
    x, dy = _split(x, parts), _split(dy, parts)

    def step(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        products, dx = part(x[:, i], dy[:, i])
        return sums[0] + products, lax.dynamic_update_index_in_dim(sums[1], dx, i, 1)

    start = _zeros(filters.shape, x) if dfilters is None else dfilters
    total, dx = lax.fori_loop(0, parts, step, (start, jnp.zeros_like(x)))
    return dx.reshape(-1, *dx.shape[2:]), _both_axes(_G.T, total)


_CONV = rules.Operation(
    forward=_conv_forward,
    saved=lambda args, outputs, **_: (*args, outputs[1]),
    tangent=_conv_tangent,
    backward=_conv_backward,
)


def _zeros(shape: Sequence[int], like: Array) -> Array:
    """Zeros of `like`'s dtype, which vary over the axes of a `shard_map` that it varies over."""
    return rules.varying(jnp.zeros(shape, like.dtype), like)[0]


def tile_counts(sizes: Sequence[int]) -> list[int]:
    """How many tiles lie along each axis of a map; the last ones may stick out."""
    return [-(-size // TILE) for size in sizes]


def _out(x: Array, pads: Pads) -> tuple[int, int]:
    height, width = (
        size + sum(pad) - _SIZE + 1 for size, pad in zip(x.shape[1:3], pads, strict=True)
    )
    return height, width


def _parts(x: Array, filters: Array, pads: Pads) -> int:
    """In how many parts the batch is taken, for each to fit `_PART_BYTES`; an exported network's
    batch is one.
    """
    count = x.shape[0]
    if not isinstance(count, int):
        return 1
    tiles = math.prod(tile_counts(_out(x, pads)))
    image = _POINTS**2 * tiles * sum(filters.shape[2:]) * x.dtype.itemsize
    fitting = [size for size in range(1, count + 1) if count % size == 0]
    return count // max(size for size in fitting if size == 1 or size * image <= _PART_BYTES)


def _split(x: Array, parts: int) -> Array:
    """`[N, …]` → `[N/parts, parts, …]`: each part has images of every device that the batch lies
    on.
    """
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:])


# --------------------------------------------------------------------------------------- transforms


def _both_axes(matrix: np.ndarray, v: Array) -> Array:
    """`[side, side, C, O]` times `matrix` `[rows, side]` along both axes, which change places:
    `[rows, rows, C, O]`.
    """
    first = _apart(lambda v: _stacked(matrix, list(v)), v)
    return _stacked(matrix, [first[:, i] for i in range(v.shape[1])])


def _tiles(x: Array, matrix: np.ndarray, out: tuple[int, int], pads: Pads) -> Array:
    """The tiles of x, each of which begins 4 after the one before, times `matrix` `[6, side]` along
    both axes.

    Returns:
      `[6, 6, N, rows, columns, C]`: the column's point, the row's, the image, the tile's row and
        column.
    """
    counts = tile_counts(out)
    window = matrix.shape[1]
    around = [(0, 0)]
    for (low, _), size, count in zip(pads, x.shape[1:3], counts, strict=True):
        around.append((low, (count - 1) * TILE + window - size - low))
    x = jnp.pad(x, (*around, (0, 0)))

    def shifts(v: Array, axis: int, count: int) -> list[Array]:
        end = (count - 1) * TILE + 1
        return [lax.slice_in_dim(v, i, i + end, TILE, axis) for i in range(window)]

    rows = _apart(lambda x: _stacked(matrix, shifts(x, 1, counts[0])), x)
    return _stacked(matrix, shifts(rows, 3, counts[1]))


def _from_points(tiles: Array, matrix: np.ndarray) -> Array:
    """`[6, 6, N, rows, columns, C]` times `matrix` along both axes: `[N, 4·rows, 4·columns, C]`.

    With `_B_OVERLAPPING` there is one row and one column of tiles less, each with the one before
    it.
    """
    weights: Any = np.asarray(matrix, tiles.dtype)

    def pairs(v: Array, axis: int) -> list[Array]:
        if matrix.shape[1] == _POINTS:
            return [v]
        return [lax.slice_in_dim(v, i, v.shape[axis] - 1 + i, axis=axis) for i in (1, 0)]

    def columns(tiles: Array) -> Array:
        parts = [part for shifted in pairs(tiles, 4) for part in shifted]
        return _total(_scaled(weights[:, j, None], v[..., None, :]) for j, v in enumerate(parts))

    found = _apart(columns, tiles)  # [6, N, rows, columns, 4, C]
    parts = [part for shifted in pairs(found, 2) for part in shifted]
    y = _total(_scaled(weights[:, i, None, None, None], v[:, :, None]) for i, v in enumerate(parts))
    n, height, _, width, _, channels = y.shape
    return y.reshape(n, TILE * height, TILE * width, channels)


def _stacked(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
    """`matrix` `[rows, len(parts)]` times the parts, `[rows, …]`, in one loop over the result."""
    weights: Any = np.asarray(matrix, parts[0].dtype).reshape(*matrix.shape, *(1,) * parts[0].ndim)
    return _total(_scaled(weights[:, i], part) for i, part in enumerate(parts))


def _apart(function: Callable[..., Array], *arguments: Array) -> Array:
    """Calls a function that XLA does not fuse with what reads its result: of two fused transforms
    the second would compute the first anew for each of its terms.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arguments)


def _scaled(weight: Any, part: Array) -> Array:
    """Their product; the one of lower rank gets leading axes, which JAX may be told not to add."""
    rank = max(weight.ndim, part.ndim)
    one, other = (v.reshape((1,) * (rank - v.ndim) + v.shape) for v in (weight, part))
    return one * other


def _total(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _multiply(x: Array, y: Array, contracted: tuple[int, int]) -> Array:
    """For each of the 36 points the product of two matrices, of channels and of tiles or channels."""
    x_flat, y_flat = (v.reshape(_POINTS**2, -1, v.shape[-1]) for v in (x, y))
    axes = (contracted[:1], contracted[1:])
    products = lax.dot_general(x_flat, y_flat, (axes, ((0,), (0,))))
    rows = x.shape[2:-1] if contracted[0] == 2 else x.shape[-1:]
    return products.reshape(_POINTS, _POINTS, *rows, products.shape[-1])
