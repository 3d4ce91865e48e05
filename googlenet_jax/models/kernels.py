"""The forms that XLA compiles best, chosen here and nowhere else; beside each stands the plain form that the tests compare it with.

On a CPU the gradients that XLA derives for pooling, convolution and batch norm are slow (`benchmarks/train_speed.py` measures them), so
they are written out. Elsewhere the plain forms are used. Every form computes the same mathematics, ties in pooling included.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pads = tuple[tuple[int, int], tuple[int, int]]
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# ----------------------------------------------------------------------------------------------------------------- max pool


def plain_max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Maximum over windows by XLA's reduce_window, whose gradient is select-and-scatter: the first maximum gets it."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


def max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """`plain_max_pool`, by an index of the maximum on a CPU. `[N, H, W, C]` → `[N, H', W', C]`."""
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_indexed_max_pool, window=window, stride=stride, pads=pads),
        default=functools.partial(plain_max_pool, window=window, stride=stride, pads=pads),
    )


def _strided(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def _first_maximum(x: Array, axis: int, window: int, stride: int) -> tuple[Array, list[Array]]:
    """Maximum over windows along one axis, and for each offset whether it is the first one with the maximum."""
    count = (x.shape[axis] - window) // stride + 1
    parts = [_strided(x, axis, i, count, stride) for i in range(window)]
    best = functools.reduce(jnp.maximum, parts)
    return best, [part == best for part in parts]


def _index(matches: Sequence[Array]) -> Array:
    """The number of the first true one, as int8."""
    index = jnp.full(matches[0].shape, len(matches) - 1, jnp.int8)
    for i in range(len(matches) - 2, -1, -1):
        index = jnp.where(matches[i], jnp.int8(i), index)
    return index


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _indexed_max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    return _indexed_forward(x, window, stride, pads)[0]


def _indexed_forward(x: Array, window: int, stride: int, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
    rows, column_matches = _first_maximum(padded, 2, window, stride)
    # The barriers keep XLA from computing the row maxima once for each of the windows that share them.
    rows, columns = lax.optimization_barrier((rows, _index(column_matches)))
    out, row_matches = _first_maximum(rows, 1, window, stride)
    row = _index(row_matches)
    column = functools.reduce(
        lambda rest, i: jnp.where(row == i, _strided(columns, 1, i, out.shape[1], stride), rest),
        range(window - 2, -1, -1),
        _strided(columns, 1, window - 1, out.shape[1], stride),
    )
    out, index = lax.optimization_barrier((out, row * jnp.int8(window) + column))
    return out, (index, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _indexed_backward(window: int, stride: int, pads: Pads, residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    index, like = residuals
    _, height, width = like.shape
    # Phase (a, b) of the input, by row and column modulo the stride, gets the terms of the offsets with those remainders.
    n, out_height, out_width, channels = dy.shape
    reach = -(-window // stride)
    blocks_h, blocks_w = out_height + reach - 1, out_width + reach - 1
    zero = jnp.zeros((), dy.dtype)
    phases = []
    for a in range(stride):
        for b in range(stride):
            total = None
            for i in range(a, window, stride):
                for j in range(b, window, stride):
                    term = jnp.where(index == i * window + j, dy, zero)
                    up, left = i // stride, j // stride
                    pad = ((0, 0, 0), (up, reach - 1 - up, 0), (left, reach - 1 - left, 0), (0, 0, 0))
                    term = lax.pad(term, zero, pad)
                    total = term if total is None else total + term
            phases.append(jnp.zeros((n, blocks_h, blocks_w, channels), dy.dtype) if total is None else total)
    if stride == 1:
        dx = phases[0]
    else:
        grid = jnp.stack(phases).reshape(stride, stride, n, blocks_h, blocks_w, channels)
        dx = grid.transpose(2, 3, 0, 4, 1, 5).reshape(n, blocks_h * stride, blocks_w * stride, channels)
    after_h, after_w = pads[0][0] + height - dx.shape[1], pads[1][0] + width - dx.shape[2]
    return (lax.pad(dx, zero, ((0, 0, 0), (-pads[0][0], after_h, 0), (-pads[1][0], after_w, 0), (0, 0, 0))),)


_indexed_max_pool.defvjp(_indexed_forward, _indexed_backward)

# -------------------------------------------------------------------------------------------------------------- convolution


def plain_conv(x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    """Convolution by XLA. `[N, H, W, C]`, `[h, w, C/groups, O]` → `[N, H', W', O]`."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS, feature_group_count=groups)


def conv(x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    """`plain_conv`, where a 1×1 is a matrix product and the weight gradient of a 3×3 on a large map is made of products on a CPU."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1 and pads == ((0, 0), (0, 0)):
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    plain = functools.partial(plain_conv, stride=stride, pads=pads, groups=groups)
    # On small maps XLA's own weight gradient is the faster one.
    if kernel.shape[:2] == (3, 3) and stride == 1 and groups == 1 and x.shape[1] * x.shape[2] > 400:
        return lax.platform_dependent(x, kernel, cpu=functools.partial(_conv_with_dots, pads=pads), default=plain)
    return plain(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_with_dots(x: Array, kernel: Array, pads: Pads) -> Array:
    return plain_conv(x, kernel, 1, pads)


def _conv_forward(x: Array, kernel: Array, pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv(x, kernel, 1, pads), (x, kernel)


def _conv_backward(pads: Pads, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    (dx,) = jax.linear_transpose(lambda x: plain_conv(x, kernel, 1, pads), x)(dy)
    return dx, _weight_gradient(x, dy, kernel.shape, pads)


def _weight_gradient(x: Array, dy: Array, shape: Sequence[int], pads: Pads) -> Array:
    """The gradient of a stride-1 convolution's kernel: for each row offset one product of dy with the column shifts side by side."""
    height, width, features = dy.shape[1:]
    window_h, window_w, channels, _ = shape
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    columns = jnp.concatenate([lax.slice_in_dim(padded, j, j + width, axis=2) for j in range(window_w)], axis=3)
    # dy on the left: it is what XLA transposes, once for all row offsets.
    contract = (((0, 1, 2), (0, 1, 2)), ((), ()))
    rows = [lax.dot_general(dy, lax.slice_in_dim(columns, i, i + height, axis=1), contract) for i in range(window_h)]
    return jnp.stack(rows).reshape(window_h, features, window_w, channels).transpose(0, 2, 3, 1)


_conv_with_dots.defvjp(_conv_forward, _conv_backward)

# --------------------------------------------------------------------------------------------------------------- batch norm


def plain_batch_norm(x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool) -> tuple[Array, Array, Array]:
    """Batch norm as the formula reads; see `batch_norm`."""
    wide = x.astype(gamma.dtype).reshape(groups, -1, *x.shape[1:])
    mean = wide.mean((1, 2, 3))
    centred = wide - mean[:, None, None, None]
    var = lax.square(centred).mean((1, 2, 3))
    y = (centred * lax.rsqrt(var + epsilon)[:, None, None, None] * gamma + beta).reshape(x.shape)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool) -> tuple[Array, Array, Array]:
    """Batch norm, with ReLU where asked: saves the input alone for the backward pass, which recomputes the rest.

    The statistics are for the running averages: no gradient flows through them.

    Args:
      x: `[N, H, W, C]`; gamma, beta: `[C]`, of the dtype that the statistics are computed in.
      groups: how many equal parts of the batch have statistics of their own.
    Returns:
      `[N, H, W, C]` of x's dtype; mean and (biased) variance, `[groups, C]` of gamma's.
    """
    return _batch_norm_forward(x, gamma, beta, epsilon, groups, relu)[0]


def _group(x: Array, groups: int) -> Array:
    return x.reshape(groups, x.shape[0] // groups, *x.shape[1:])


def _sum(x: Array) -> Array:
    """Sum over all but the first and last axes, H and W before N: XLA's CPU reductions are faster so."""
    return x.sum((2, 3)).sum(1)


def _batch_norm_forward(x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool):
    grouped = _group(x, groups).astype(gamma.dtype)
    n = x.size // x.shape[-1] // groups
    mean = _sum(grouped) / n
    var = _sum(lax.square(grouped - mean[:, None, None, None])) / n
    factor = gamma * lax.rsqrt(var + epsilon)
    y = (grouped - mean[:, None, None, None]) * factor[:, None, None, None] + beta
    y = (jax.nn.relu(y) if relu else y).reshape(x.shape).astype(x.dtype)
    return (y, mean, var), (x, gamma, beta, mean, var)


def _batch_norm_backward(epsilon: float, groups: int, relu: bool, residuals, cotangents):
    x, gamma, beta, mean, var = residuals
    dy = _group(cotangents[0], groups).astype(gamma.dtype)
    n = x.size // x.shape[-1] // groups
    wide = lambda v: v[:, None, None, None]  # noqa: E731
    centred = _group(x, groups).astype(gamma.dtype) - wide(mean)
    inverse = lax.rsqrt(var + epsilon)
    if relu:
        dy = jnp.where(centred * wide(gamma * inverse) + beta > 0, dy, 0)
    sum_dy = _sum(dy)
    sum_dy_hat = _sum(dy * centred) * inverse
    factor = gamma * inverse
    dx = wide(factor) * dy - centred * wide(factor * inverse * sum_dy_hat / n) - wide(factor * sum_dy / n)
    return dx.reshape(x.shape).astype(x.dtype), sum_dy_hat.sum(0), sum_dy.sum(0)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
