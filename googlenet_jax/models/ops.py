"""The forms that XLA compiles best, chosen here and nowhere else; beside each stands the plain form that the tests compare it with.

On a CPU the gradients that XLA derives for pooling and convolution are slow (`benchmarks/train_speed.py` measures the sum of it), so they
are written out, and elsewhere the plain forms are used. Batch norm's gradient and 1×1 convolutions as products serve every platform. Every
form computes the same mathematics, ties in pooling included.
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
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *pads, (0, 0)),
    )


def max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """`plain_max_pool`, by an index of the maximum on a CPU. `[N, H, W, C]` → `[N, H', W', C]`."""
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_indexed_max_pool, window=window, stride=stride, pads=pads),
        default=functools.partial(plain_max_pool, window=window, stride=stride, pads=pads),
    )


def _indexed_max_pool(x: Array, window: int, stride: int, pads: Pads) -> Array:
    """Maximum over columns, then over rows. The first row with the maximum, and in it the first column: the first in row-major order."""
    x = lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0))
    )
    return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: Array, axis: int, window: int, stride: int) -> Array:
    """Maximum over the windows of one axis; among equal values the first gets the gradient."""
    return _max_along_forward(x, axis, window, stride)[0]


def _max_along_forward(
    x: Array, axis: int, window: int, stride: int
) -> tuple[Array, tuple[Array, Array]]:
    size = x.shape[axis]
    count = (size - window) // stride + 1
    parts = [
        lax.slice_in_dim(x, i, i + (count - 1) * stride + 1, stride, axis) for i in range(window)
    ]
    best = functools.reduce(jnp.maximum, parts)
    index = jnp.full(best.shape, window - 1, jnp.int8)
    for i in range(window - 2, -1, -1):
        index = jnp.where(parts[i] == best, jnp.int8(i), index)
    # The barrier keeps XLA from computing the maxima once more for each window that they enter next.
    best, index = lax.optimization_barrier((best, index))
    return best, (index, jnp.zeros((0, size)))


def _max_along_backward(
    axis: int, window: int, stride: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array]:
    index, sized = residuals
    zero = jnp.zeros((), dy.dtype)
    reach = -(-window // stride)

    def shifted(i: int) -> Array:
        pads = [(0, 0, 0)] * dy.ndim
        pads[axis] = (i // stride, reach - 1 - i // stride, 0)
        return lax.pad(jnp.where(index == i, dy, zero), zero, pads)

    # The places of the input, by their remainder modulo the stride, each the sum of the offsets with that remainder.
    phases = [
        functools.reduce(jnp.add, [shifted(i) for i in range(phase, window, stride)])
        for phase in range(stride)
    ]
    shape = (*dy.shape[:axis], phases[0].shape[axis] * stride, *dy.shape[axis + 1 :])
    dx = phases[0] if stride == 1 else jnp.stack(phases, axis + 1).reshape(shape)
    pads = [(0, 0, 0)] * dy.ndim
    pads[axis] = (0, sized.shape[1] - shape[axis], 0)
    return (lax.pad(dx, zero, pads),)


_max_along.defvjp(_max_along_forward, _max_along_backward)

# -------------------------------------------------------------------------------------------------------------- convolution


def plain_conv(x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    """Convolution by XLA. `[N, H, W, C]`, `[h, w, C/groups, O]` → `[N, H', W', O]`."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=_DIMENSIONS, feature_group_count=groups
    )


def conv(x: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    """`plain_conv`, where a 1×1 is a matrix product and the weight gradient of a 3×3 on a large map is made of products on a CPU."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and groups == 1 and pads == ((0, 0), (0, 0)):
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    plain = functools.partial(plain_conv, stride=stride, pads=pads, groups=groups)
    # On small maps XLA's own weight gradient is the faster one.
    if kernel.shape[:2] == (3, 3) and stride == 1 and groups == 1 and x.shape[1] * x.shape[2] > 400:
        return lax.platform_dependent(
            x, kernel, cpu=functools.partial(_conv_with_dots, pads=pads), default=plain
        )
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
    columns = jnp.concatenate(
        [lax.slice_in_dim(padded, j, j + width, axis=2) for j in range(window_w)], axis=3
    )
    # dy on the left: it is what XLA transposes, once for all row offsets.
    contract = (((0, 1, 2), (0, 1, 2)), ((), ()))
    rows = [
        lax.dot_general(dy, lax.slice_in_dim(columns, i, i + height, axis=1), contract)
        for i in range(window_h)
    ]
    return jnp.stack(rows).reshape(window_h, features, window_w, channels).transpose(0, 2, 3, 1)


_conv_with_dots.defvjp(_conv_forward, _conv_backward)

# --------------------------------------------------------------------------------------------------------------- batch norm


def plain_batch_norm(
    x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool
) -> tuple[Array, Array, Array]:
    """Batch norm as the formula reads; see `batch_norm`."""
    wide = x.astype(gamma.dtype).reshape(groups, -1, *x.shape[1:])
    mean = wide.mean((1, 2, 3))
    centred = wide - mean[:, None, None, None]
    var = lax.square(centred).mean((1, 2, 3))
    y = (centred * lax.rsqrt(var + epsilon)[:, None, None, None] * gamma + beta).reshape(x.shape)
    return (jax.nn.relu(y) if relu else y).astype(x.dtype), mean, var


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool
) -> tuple[Array, Array, Array]:
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


def _batch_norm_forward(
    x: Array, gamma: Array, beta: Array, epsilon: float, groups: int, relu: bool
):
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
    dx = (
        wide(factor) * dy
        - centred * wide(factor * inverse * sum_dy_hat / n)
        - wide(factor * sum_dy / n)
    )
    return dx.reshape(x.shape).astype(x.dtype), sum_dy_hat.sum(0), sum_dy.sum(0)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
