"""The forms that XLA compiles best, chosen here and nowhere else; beside each stands the plain form
that the tests compare it with.

`FORMS` are what a network's option `forms` takes: "fast", the best on each platform; "plain", what
the formula says and JAX differentiates, everywhere; "indexed", the fast ones, with the max pool by
index on every platform: on a GPU its plain gradient scatters, which deterministic XLA refuses or
slows.

On a CPU the gradients that XLA derives for pooling and for 1×1 convolutions are slow, so they
are written out, and a 3×3 convolution takes fewer products by Winograd's tiles; elsewhere the plain
forms are used. Batch norm's gradient serves every platform. Every form computes the same
mathematics, ties in pooling included.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from googlenet_jax.models import rules, winograd

Array = jax.Array
Arrays = Sequence[Array]
AxisName = str | tuple[str, ...] | None
Pads = tuple[tuple[int, int], tuple[int, int]]
FORMS = ("fast", "plain", "indexed")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# ----------------------------------------------------------------------------------------- max pool


def plain_max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Maximum over windows by XLA's reduce_window, whose gradient is select-and-scatter: the first
    maximum gets it.
    """
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *pads, (0, 0)),
    )


def max_pool(x: Array, window: int, stride: int, pads: Pads, forms: str = "fast") -> Array:
    """`plain_max_pool`, by an index of the maximum on a CPU. `[N, H, W, C]` → `[N, H', W', C]`."""
    if forms == "plain":
        return plain_max_pool(x, window, stride, pads)
    if forms == "indexed":
        return _indexed_max_pool(x, window, stride, pads)
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_indexed_max_pool, window=window, stride=stride, pads=pads),
        default=functools.partial(plain_max_pool, window=window, stride=stride, pads=pads),
    )


def _indexed_max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Maximum over columns, then over rows. The first row with the maximum, and in it the first
    column: the first in row-major order.
    """
    x = lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
    )
    return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def _max_along(x: Array, axis: int, window: int, stride: int) -> Array:
    """Maximum over the windows of one axis; among equal values the first gets the gradient."""
    return _MAX_ALONG(x, axis=axis, window=window, stride=stride)[0]


def _parts(x: Array, axis: int, window: int, stride: int) -> list[Array]:
    """For each place of a window, what stands there in every window."""
    reach = (x.shape[axis] - window) // stride * stride + 1
    return [lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window)]


def _max_along_forward(x: Array, axis: int, window: int, stride: int) -> tuple[Array]:
    # The barrier keeps XLA from computing the maxima once more for each window that they enter
    # next.
    best = functools.reduce(jnp.maximum, _parts(x, axis, window, stride))
    return (lax.optimization_barrier(best),)


def _max_along_saved(
    args: Arrays, outputs: Arrays, axis: int, window: int, stride: int
) -> tuple[Array, Array]:
    """Where in its window each maximum stands, int8; of the input its size alone is kept."""
    (x,) = args
    parts = _parts(x, axis, window, stride)
    best = functools.reduce(jnp.maximum, parts)
    index = jnp.full_like(best, window - 1, jnp.int8)
    for i in range(window - 2, -1, -1):
        index = jnp.where(parts[i] == best, jnp.int8(i), index)
    return lax.optimization_barrier(index), jnp.zeros((0, x.shape[axis]))


def _max_along_tangent(
    saved: Arrays, tangents: Arrays, axis: int, window: int, stride: int
) -> tuple[Array]:
    (index, _), (dx,) = saved, tangents
    parts = enumerate(_parts(dx, axis, window, stride))
    return (functools.reduce(jnp.add, (jnp.where(index == i, part, 0) for i, part in parts)),)


def _max_along_backward(
    saved: Arrays, cotangents: Arrays, axis: int, window: int, stride: int
) -> tuple[Array]:
    """For each place of the input the sum over the windows that it is the maximum of.

    Place `stride · q + phase` is offset `phase + stride · k` of window `q − k`.
    """
    (index, sized), (dy,) = saved, cotangents
    size, zero = sized.shape[1], jnp.zeros((), dy.dtype)
    reach = -(-window // stride)  # windows over one place
    places = -(-size // stride)  # of each phase

    # Both are padded once and read at shifts: padding each shift wrote it to memory.
    def padded(x: Array, value: Array) -> Array:
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (reach - 1, max(places - x.shape[axis], 0), 0)
        return lax.pad(x, value, pads)

    dy, index = padded(dy, zero), padded(index, jnp.int8(-1))

    def from_offset(i: int) -> Array:
        start = reach - 1 - i // stride
        shift = functools.partial(
            lax.slice_in_dim, start_index=start, limit_index=start + places, axis=axis
        )
        return jnp.where(shift(index) == i, shift(dy), zero)

    phases = [
        functools.reduce(jnp.add, map(from_offset, range(phase, window, stride)))
        for phase in range(stride)
    ]
    if stride == 1:
        return (phases[0],)
    shape = (*dy.shape[:axis], places * stride, *dy.shape[axis + 1 :])
    return (lax.slice_in_dim(jnp.stack(phases, axis + 1).reshape(shape), 0, size, axis=axis),)


_MAX_ALONG = rules.Operation(
    forward=_max_along_forward,
    saved=_max_along_saved,
    tangent=_max_along_tangent,
    backward=_max_along_backward,
)

# -------------------------------------------------------------------------------------- convolution


def plain_conv(x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    """Convolution by XLA. `[N, H, W, C]`, `[h, w, C/groups, O]` → `[N, H', W', O]`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS, feature_group_count=groups
    )


def conv(
    x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1, forms: str = "fast"
) -> Array:
    """`plain_conv`, where a 1×1 is a matrix product, and a 3×3 on a CPU a quarter of the products."""
    if stride == 1 and groups == 1 and forms != "plain":
        if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
            return lax.platform_dependent(x, kernel[0, 0], cpu=_flat_product, default=_product)
        if kernel.shape[:2] == (3, 3) and _gains_by_winograd(x, kernel):
            plain = functools.partial(plain_conv, stride=1, pads=pads)
            by_tiles = functools.partial(winograd.conv, pads=pads)
            return lax.platform_dependent(x, kernel, cpu=by_tiles, default=plain)
    return plain_conv(x, kernel, stride, pads, groups)


def _gains_by_winograd(x: Array, kernel: Array) -> bool:
    """Whether the products saved outweigh the transforms: measured (`docs/speed.md`). In less than
    float32 the transforms would lose too many digits.
    """
    batch = x.shape[0] if isinstance(x.shape[0], int) else 1  # an exported network's may be any
    tiles = batch * math.prod(winograd.tile_counts(x.shape[1:3]))
    return min(kernel.shape[2:]) >= 64 and tiles >= 16 and jnp.finfo(x.dtype).bits >= 32


def _product(x: Array, kernel: Array) -> Array:
    """`[N, H, W, C]` times `[C, O]`."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _flat_product(x: Array, kernel: Array) -> Array:
    """`_product` of matrices: in the gradients of more dimensions XLA transposes copies of them."""
    return _FLAT_PRODUCT(x, kernel)[0]


def _flat_product_forward(x: Array, kernel: Array) -> tuple[Array]:
    return ((x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:3], kernel.shape[1]),)


def _flat_product_tangent(saved: Arrays, tangents: Arrays) -> tuple[Array]:
    (x, kernel), (dx, dkernel) = saved, tangents
    return (_product(dx, kernel) + _product(x, dkernel),)


def _flat_product_backward(saved: Arrays, cotangents: Arrays) -> tuple[Array, Array]:
    (x, kernel), (dy,) = saved, cotangents
    rows, dy_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = lax.dot_general(dy_rows, kernel, (((1,), (1,)), ((), ()))).reshape(x.shape)
    # One product of long columns and a small result is computed by one core; two are by two.
    parts = 2 if len(rows) >= _SPLIT_ROWS and len(rows) % 2 == 0 else 1
    rows, dy_rows = (v.reshape(parts, -1, v.shape[-1]) for v in (rows, dy_rows))
    return dx, lax.dot_general(rows, dy_rows, (((1,), (1,)), ((0,), (0,)))).sum(0)


_FLAT_PRODUCT = rules.Operation(
    forward=_flat_product_forward,
    saved=lambda args, outputs, **_: tuple(args),
    tangent=_flat_product_tangent,
    backward=_flat_product_backward,
)
_SPLIT_ROWS = 4096  # at 7×7 and batch 32, 1568 rows, the split costs a third more

# --------------------------------------------------------------------------------------- batch norm


def batch_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    epsilon: float,
    groups: int,
    relu: bool,
    axis_name: AxisName = None,
    forms: str = "fast",
) -> tuple[Array, Array, Array]:
    """Batch norm, with ReLU where asked: saves the input alone for the backward pass, which
    recomputes the rest; the plain form reads as the formula.

    Args:
      x: `[N, H, W, C]`; gamma, beta: `[C]`, of the dtype that the statistics are computed in.
      groups: how many equal parts of the batch have statistics of their own.
      axis_name: of a `shard_map` or `pmap`, over whose parts of the batch the statistics are taken.
    Returns:
      `[N, H, W, C]` of x's dtype; mean and (biased) variance, `[groups, C]` of gamma's.
    """
    if forms != "plain" and axis_name is None:
        y, mean, var = _BATCH_NORM(x, gamma, beta, epsilon=epsilon, groups=groups, relu=relu)
        return y, mean, var

    def average(v: Array) -> Array:
        v = v.mean((1, 2, 3))
        return v if axis_name is None else lax.pmean(v, axis_name)

    wide = _group(x, groups).astype(gamma.dtype)
    mean = average(wide)
    centred = wide - mean[:, None, None, None]
    var = average(lax.square(centred))
    gamma, beta = (along_channels(v, centred) for v in (gamma, beta))
    y = (centred * lax.rsqrt(var + epsilon)[:, None, None, None] * gamma + beta).reshape(x.shape)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype), mean, var


def along_channels(v: Array, x: Array) -> Array:
    """`v` `[C]` with as many axes as x `[…, C]`: JAX may be told to add none by itself."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def _group(x: Array, groups: int) -> Array:
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def _sum(x: Array) -> Array:
    """Sum over all but the first and last axes, H and W before N: XLA's CPU reductions are faster
    so.
    """
    return x.sum((2, 3)).sum(1)


def _batch_norm_forward(
    x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool
) -> tuple[Array, Array, Array]:
    grouped = _group(x, groups).astype(gamma.dtype)
    n = x.size // x.shape[-1] // groups
    mean = _sum(grouped) / n
    var = _sum(lax.square(grouped - mean[:, None, None, None])) / n
    factor = along_channels(gamma, var) * lax.rsqrt(var + epsilon)
    y = (grouped - mean[:, None, None, None]) * factor[:, None, None, None]
    y = y + along_channels(beta, y)
    y = (jax.nn.relu(y) if relu else y).reshape(x.shape).astype(x.dtype)
    return y, mean, var


def _batch_norm_tangent(
    saved: Arrays, tangents: Arrays, epsilon: float, groups: int, relu: bool
) -> tuple[Array, ...]:
    plain = functools.partial(batch_norm, epsilon=epsilon, groups=groups, relu=relu, forms="plain")
    return jax.jvp(plain, tuple(saved[:3]), tuple(tangents))[1]


def _batch_norm_backward(
    saved: Arrays, cotangents: Sequence[Array | None], epsilon: float, groups: int, relu: bool
) -> tuple[Array, Array, Array]:
    x, gamma, beta, mean, var = saved
    dy, dmean, dvar = cotangents
    n = x.size // x.shape[-1] // groups
    wide = lambda v: v[:, None, None, None]  # noqa: E731
    centred = _group(x, groups).astype(gamma.dtype) - wide(mean)
    inverse = lax.rsqrt(var + epsilon)
    gamma, beta = along_channels(gamma, var), along_channels(beta, centred)
    dy = jnp.zeros_like(centred) if dy is None else _group(dy, groups).astype(gamma.dtype)
    if relu:
        dy = jnp.where(centred * wide(gamma * inverse) + beta > 0, dy, 0)
    sum_dy = _sum(dy)
    sum_dy_hat = _sum(dy * centred) * inverse
    factor = gamma * inverse
    dx = (
        wide(factor) * dy
        - centred * wide(factor * inverse * sum_dy_hat / n)
        - wide(factor * sum_dy / n)
    )
    if dmean is not None:
        dx = dx + wide(dmean / n)
    if dvar is not None:
        dx = dx + centred * wide(2 * dvar / n)
    return dx.reshape(x.shape).astype(x.dtype), sum_dy_hat.sum(0), sum_dy.sum(0)


_BATCH_NORM = rules.Operation(
    forward=_batch_norm_forward,
    saved=lambda args, outputs, **_: (*args, *outputs[1:]),
    tangent=_batch_norm_tangent,
    backward=_batch_norm_backward,
)
