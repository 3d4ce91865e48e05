"""The units that every network is built of: convolution unit, batch norm, LRN, pooling, initialisers.

Arrays are `[N, H, W, C]`. A layer computes in `dtype`; statistics, LRN and logits have `promote_types(dtype, float32)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from googlenet_jax.models import kernels

Array = jax.Array
Initializer = Callable[..., Array]
Padding = str | int

# ----------------------------------------------------------------------------------------------------------- initialisers

# Caffe's "xavier" filler: uniform with variance 1/fan_in.
xavier_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# TF-slim's `variance_scaling_initializer()`.
he_fan_in_truncated = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
# PyTorch's default for kernels: uniform within ±1/√fan_in.
torch_uniform = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default for biases: uniform within ±1/√fan_in."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = 1.0 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def truncated_normal(stddev: float) -> Initializer:
    """TensorFlow's truncated normal: `stddev` is that of the normal before it is cut at two of them."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


def statistics_dtype(dtype: Any) -> Any:
    """The dtype of losses, logits, LRN and batch statistics beside a computation in `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


# ---------------------------------------------------------------------------------------------------------------- pooling


def pool_padding(size: int, window: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Returns how much a pooling pads `size` before and after.

    `padding` is "ceil" (Caffe's and PyTorch's ceil mode without padding: a last window that begins inside the input counts),
    "same" (TensorFlow's) or a number (that many on both sides, floor mode).
    """
    if padding == "ceil":
        out = max(-(-(size - window) // stride), 0) + 1
        return 0, max((out - 1) * stride + window - size, 0)
    if padding == "same":
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        return total // 2, total - total // 2
    return int(padding), int(padding)


def max_pool(x: Array, window: int = 3, stride: int = 2, padding: Padding = "ceil") -> Array:
    """Maximum over square windows; among equal values the first in row-major order gets the gradient, as in PyTorch.

    Args:
      x: `[N, H, W, C]`, any float dtype.
      window, stride: of both axes.
      padding: see `pool_padding`; what is padded is −∞.
    Returns:
      `[N, H', W', C]` of x's dtype.
    """
    rows, columns = (pool_padding(size, window, stride, padding) for size in x.shape[1:3])
    return kernels.max_pool(x, window, stride, (rows, columns))


def window_mean(x: Array, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> Array:
    """Mean over the windows `rows` × `columns`, given as [start, end) pairs; `[N, H, W, C]` → `[N, len(rows), len(columns), C]`."""

    def averaging(windows: Sequence[tuple[int, int]], size: int) -> Array:
        matrix = np.zeros((len(windows), size))
        for i, (start, end) in enumerate(windows):
            matrix[i, start:end] = 1.0 / (end - start)
        return jnp.asarray(matrix, x.dtype)

    x = jnp.einsum("ih,nhwc->niwc", averaging(rows, x.shape[1]), x)
    return jnp.einsum("jw,niwc->nijc", averaging(columns, x.shape[2]), x)


def adaptive_avg_pool(x: Array, out: int) -> Array:
    """PyTorch's adaptive average pooling to `out` × `out`: window i is [⌊i·H/out⌋, ⌈(i+1)·H/out⌉)."""

    def windows(size: int) -> list[tuple[int, int]]:
        return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]

    return window_mean(x, windows(x.shape[1]), windows(x.shape[2]))


def avg_pool_valid(x: Array, window: int, stride: int) -> Array:
    """Average over the windows that lie inside the map, without padding."""

    def windows(size: int) -> list[tuple[int, int]]:
        return [(i, i + window) for i in range(0, size - window + 1, stride)]

    return window_mean(x, windows(x.shape[1]), windows(x.shape[2]))


# ------------------------------------------------------------------------------------------------------------------- LRN


def local_response_norm(x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """Local response normalisation across channels, as Caffe's and PyTorch's: x · (k + alpha/size · Σ x²)^−beta.

    The sum runs over `size` neighbouring channels, those outside counting as zero. Computed in `promote_types(x.dtype, float32)`.

    Args:
      x: `[N, H, W, C]`.
    Returns:
      `[N, H, W, C]` of x's dtype.
    """
    wide = x.astype(statistics_dtype(x.dtype))
    before = size // 2
    square = jnp.pad(lax.square(wide), ((0, 0), (0, 0), (0, 0), (before, size - 1 - before)))
    total = sum(square[..., i : i + x.shape[-1]] for i in range(size))
    return (wide * (k + (alpha / size) * total) ** -beta).astype(x.dtype)


# ------------------------------------------------------------------------------------------------------------ batch norm


class BatchNorm(nn.Module):
    """Batch normalisation over N, H and W.

    In training the statistics are those of the whole (global) batch, or of `groups` equal parts of it, in order; the variance is the mean
    squared distance from the mean, so that nothing cancels. The running variance is the biased one or, with `unbiased`, n/(n−1) of it, as
    PyTorch and TensorFlow's fused form keep it. With groups, the running statistics follow the mean over the groups.

    Attributes:
      momentum: running = momentum · running + (1 − momentum) · batch (PyTorch's is one minus this).
      epsilon: added to the variance.
      use_scale: whether there is a learnt `scale` (gamma) beside `bias` (beta).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    use_scale: bool = True
    groups: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool, relu: bool = False) -> Array:
        """Normalises `[N, H, W, C]`; raises ValueError where `groups` does not divide N. With `relu`, the rectified result."""
        channels = x.shape[-1]
        statistics = statistics_dtype(self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), statistics)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), statistics)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        compute = statistics_dtype(self.dtype)
        gamma = jnp.ones((channels,), compute) if scale is None else scale.astype(compute)
        beta = bias.astype(compute)

        if use_running_average or self.is_initializing():
            factor = gamma * lax.rsqrt(var.value.astype(compute) + self.epsilon)
            y = (x.astype(compute) - mean.value.astype(compute)) * factor + beta
            return (nn.relu(y) if relu else y).astype(self.dtype)

        if x.shape[0] % self.groups:
            raise ValueError(f"batch norm: a batch of {x.shape[0]} does not split into {self.groups} groups")
        y, batch_mean, batch_var = kernels.batch_norm(x.astype(self.dtype), gamma, beta, self.epsilon, self.groups, relu)
        n = x.size // channels // self.groups
        if self.unbiased:
            batch_var = batch_var * (n / max(n - 1, 1))
        for running, batch in ((mean, batch_mean), (var, batch_var)):
            running.value = self.momentum * running.value + (1 - self.momentum) * batch.mean(0).astype(statistics)
        return y


# ------------------------------------------------------------------------------------------------------ convolution unit


def sow(module: nn.Module, name: str, value: Array) -> Array:
    """Makes `value` an endpoint of `module`: an intermediate of that name. Returns it."""
    module.sow("intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


class ConvUnit(nn.Module):
    """Convolution, then batch norm where `norm` is given and a bias where not, then ReLU.

    Attributes:
      features: output channels.
      window: (height, width) of the kernel.
      padding: "same" (TensorFlow's) or what is padded on both sides of (height, width).
      depth_multiplier: with a number, the convolution is separable: a depthwise one with that many outputs a channel (`depthwise_kernel`),
        then a 1×1 (`kernel`), nothing between.
      norm: makes the unit's batch norm.
      relu: whether the rectifier follows.
      bias_init: `None` is PyTorch's.
    """

    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str | tuple[int, int] = (0, 0)
    depth_multiplier: int | None = None
    norm: Callable[..., BatchNorm] | None = None
    relu: bool = True
    kernel_init: Initializer = xavier_fan_in
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool) -> Array:
        """`[N, H, W, C]` → `[N, H', W', features]` of `dtype`."""
        channels, window, stride = x.shape[-1], self.window, self.stride
        x = x.astype(self.dtype)
        if self.depth_multiplier:
            shape = (*window, 1, channels * self.depth_multiplier)
            depthwise = self.param("depthwise_kernel", self.kernel_init, shape, self.param_dtype)
            x = kernels.conv(x, depthwise.astype(self.dtype), stride, self._pads(x), groups=channels)
            channels, window, stride = channels * self.depth_multiplier, (1, 1), 1
        kernel = self.param("kernel", self.kernel_init, (*window, channels, self.features), self.param_dtype)
        pads = ((0, 0), (0, 0)) if self.depth_multiplier else self._pads(x)
        x = kernels.conv(x, kernel.astype(self.dtype), stride, pads)
        if self.norm is not None:
            x = self.norm(name="bn", dtype=self.dtype, param_dtype=self.param_dtype)(x, use_running_average, self.relu)
        else:
            bias_init = self.bias_init or torch_bias(math.prod(window) * channels)
            bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
            x = x + bias.astype(self.dtype)
            x = nn.relu(x) if self.relu else x
        return sow(self, "output", x)

    def _pads(self, x: Array) -> tuple[tuple[int, int], tuple[int, int]]:
        if self.padding == "same":
            height, width = (pool_padding(size, k, self.stride, "same") for size, k in zip(x.shape[1:3], self.window, strict=True))
            return height, width
        assert isinstance(self.padding, tuple)
        return (self.padding[0], self.padding[0]), (self.padding[1], self.padding[1])


class Dense(nn.Module):
    """A fully connected layer, `kernel` [in, out] and `bias` [out]; `bias_init` `None` is PyTorch's."""

    features: int
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, C]` → `[N, features]` of `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init or torch_bias(x.shape[-1]), (self.features,), self.param_dtype)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)
