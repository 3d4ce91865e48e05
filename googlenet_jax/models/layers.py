"""The units that every network is built of: convolution unit, batch norm, LRN, pooling,
initialisers.

Arrays are `[N, H, W, C]`. A layer computes in `dtype`; statistics, LRN and logits have
`promote_types(dtype, float32)`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from googlenet_jax.models import ops

Array = jax.Array
Initializer = Callable[..., Array]
Padding = str | int

# ------------------------------------------------------------------------------------- initialisers

# Data, so that what holds them can be pickled and compared.


@dataclasses.dataclass(frozen=True)
class VarianceScaling:
    """A distribution around 0 whose variance is `scale` over the fan ("fan_in", …)."""

    scale: float
    fan: str
    distribution: str

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        scaling: Any = nn.initializers.variance_scaling
        return scaling(self.scale, self.fan, self.distribution)(key, shape, dtype)


xavier_fan_in = VarianceScaling(1.0, "fan_in", "uniform")  # Caffe's "xavier" filler
he_fan_out = VarianceScaling(2.0, "fan_out", "normal")
# TF-slim's `variance_scaling_initializer()`.
he_fan_in_truncated = VarianceScaling(2.0, "fan_in", "truncated_normal")
glorot_uniform = VarianceScaling(1.0, "fan_avg", "uniform")  # Keras's default
torch_uniform = VarianceScaling(1.0 / 3.0, "fan_in", "uniform")  # PyTorch's: within ±1/√fan_in


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal with this standard deviation."""

    stddev: float

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return nn.initializers.normal(self.stddev)(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class TruncatedNormal:
    """TensorFlow's truncated normal: `stddev` is that of the normal before it is cut at two of
    them.
    """

    stddev: float

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return self.stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """This value everywhere."""

    value: float

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return nn.initializers.constant(self.value)(key, shape, dtype)


def torch_bias(fan_in: int) -> Initializer:
    """PyTorch's default for biases: uniform within ±1/√fan_in."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = 1.0 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def sow(module: nn.Module, name: str, value: Array) -> Array:
    """Makes `value` an endpoint of `module`: an intermediate of that name. Returns it."""
    module.sow("intermediates", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


def statistics_dtype(dtype: Any) -> Any:
    """The dtype of losses, logits, LRN and batch statistics beside a computation in `dtype`: at
    least float32.
    """
    return jnp.promote_types(dtype, jnp.float32)


# ------------------------------------------------------------------------------------------ pooling


def pads(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Returns how much a convolution or pool pads `size` before and after.

    `padding` is "half" (half the kernel on both sides), "same" (TensorFlow's), "ceil" (Caffe's and
    PyTorch's ceil mode without
    padding: a last window that begins inside the input counts) or a number (that many on both
    sides; 0 is "valid").
    """
    if padding == "half":
        return kernel // 2, kernel // 2
    if padding == "ceil":
        out = max(-(-(size - kernel) // stride), 0) + 1
        return 0, max((out - 1) * stride + kernel - size, 0)
    if padding == "same":
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    return int(padding), int(padding)


def max_pool(
    x: Array, kernel: int = 3, stride: int = 2, padding: Padding = "ceil", forms: str = "fast"
) -> Array:
    """Maximum over square windows; among equal values the first in row-major order gets the
    gradient, as in PyTorch.

    Args:
      x: `[N, H, W, C]`, any float dtype.
      kernel, stride: of both axes.
      padding: see `pads`; what is padded is −∞.
      forms: see `ops.FORMS`.
    Returns:
      `[N, H', W', C]` of x's dtype.
    """
    rows, columns = (pads(size, kernel, stride, padding) for size in x.shape[1:3])
    return ops.max_pool(x, kernel, stride, (rows, columns), forms)


def avg_pool(
    x: Array, kernel: int, stride: int, padding: Padding = 0, count_padding: bool = False
) -> Array:
    """Average over square windows.

    Args:
      x: `[N, H, W, C]`, any float dtype.
      kernel, stride: of both axes.
      padding: see `pads`; what is padded is zero.
      count_padding: whether a window divides by its whole size (PyTorch's default) or by how much
        of it lies inside the map (TensorFlow's).
    Returns:
      `[N, H', W', C]` of x's dtype.
    """

    def weights(size: int) -> np.ndarray:
        before, after = pads(size, kernel, stride, padding)
        starts = range(-before, size + after - kernel + 1, stride)
        return _averaging(
            [(start, start + kernel) for start in starts], size, kernel if count_padding else None
        )

    return _weigh(x, weights(x.shape[1]), weights(x.shape[2]))


def adaptive_avg_pool(x: Array, out: int) -> Array:
    """PyTorch's adaptive average pooling to `out` × `out`: window i is [⌊i·H/out⌋, ⌈(i+1)·H/out⌉)."""

    def weights(size: int) -> np.ndarray:
        return _averaging([(i * size // out, -(-(i + 1) * size // out)) for i in range(out)], size)

    return _weigh(x, weights(x.shape[1]), weights(x.shape[2]))


def _averaging(
    windows: Sequence[tuple[int, int]], size: int, divisor: int | None = None
) -> np.ndarray:
    """The matrix [len(windows), size] of the means over [start, end) of an axis, or of the sums
    over `divisor`.
    """
    matrix = np.zeros((len(windows), size))
    for row, (start, end) in zip(matrix, windows, strict=True):
        inside = slice(max(start, 0), min(end, size))
        row[inside] = 1.0 / (divisor or inside.stop - inside.start)
    return matrix


def _weigh(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Averages by one product an axis: windows are separable, and so are the counts of what lies
    inside.
    """
    x = jnp.einsum("ih,nhwc->niwc", jnp.asarray(rows, x.dtype), x)
    return jnp.einsum("jw,niwc->nijc", jnp.asarray(columns, x.dtype), x)


class MaxPool(nn.Module):
    """`max_pool` as an endpoint."""

    kernel: int = 3
    stride: int = 2
    padding: Padding = "ceil"
    forms: str = "fast"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H', W', C]`."""
        return sow(self, "output", max_pool(x, self.kernel, self.stride, self.padding, self.forms))


class AvgPool(nn.Module):
    """`avg_pool` as an endpoint."""

    kernel: int
    stride: int
    padding: Padding = 0
    count_padding: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` → `[N, H', W', C]`."""
        return sow(
            self, "output", avg_pool(x, self.kernel, self.stride, self.padding, self.count_padding)
        )


# ---------------------------------------------------------------------------------------------- LRN


def local_response_norm(
    x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """Local response normalisation across channels, as Caffe's and PyTorch's: x · (k + alpha/size ·
    Σ x²)^−beta.

    The sum runs over `size` neighbouring channels, those outside counting as zero. Computed in
    `promote_types(x.dtype, float32)`.

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


class LocalResponseNorm(nn.Module):
    """`local_response_norm` as an endpoint."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, H, W, C]` in and out."""
        return sow(self, "output", local_response_norm(x))


# --------------------------------------------------------------------------------------- batch norm


@dataclasses.dataclass(frozen=True)
class Norm:
    """How a network's batch norms are set; see `BatchNorm`, which has these attributes."""

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    use_scale: bool = True
    groups: int = 1
    axis_name: ops.AxisName = None


class BatchNorm(nn.Module):
    """Batch normalisation over N, H and W.

    In training the statistics are those of the whole (global) batch, or of `groups` equal parts of
    it, in order; the variance is the mean squared distance from the mean, so that nothing cancels.
    The running variance is the biased one or, with `unbiased`, n/(n−1) of it, as PyTorch and
    TensorFlow's fused form keep it. With groups, the running statistics follow the mean over the
    groups. Gradients flow through the batch's statistics, also where they leave the network as
    updated running ones.

    Attributes:
      momentum: running = momentum · running + (1 − momentum) · batch (PyTorch's is one minus this).
      epsilon: added to the variance.
      use_scale: whether there is a learnt `scale` (gamma) beside `bias` (beta).
      axis_name: inside `shard_map` or `pmap`, where a device sees its part of the batch alone: the
        axis (or axes) over which the statistics are taken together. Under `jit` they are the whole
        batch's without it.
      forms: see `ops.FORMS`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    use_scale: bool = True
    groups: int = 1
    axis_name: ops.AxisName = None
    forms: str = "fast"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool, relu: bool = False) -> Array:
        """Normalises `[N, H, W, C]`. With `relu`, the rectified result.

        Raises ValueError where `groups` does not divide N, or a channel has one value, which has no
        variance.
        """
        channels = x.shape[-1]
        statistics = statistics_dtype(self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), statistics)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), statistics)
        scale = (
            self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
            if self.use_scale
            else None
        )
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        compute = statistics_dtype(self.dtype)
        gamma = jnp.ones((channels,), compute) if scale is None else scale.astype(compute)
        beta = bias.astype(compute)

        if use_running_average or self.is_initializing():
            factor = gamma * lax.rsqrt(var.value.astype(compute) + self.epsilon)
            shift, factor, beta = (
                ops.along_channels(v, x) for v in (mean.value.astype(compute), factor, beta)
            )
            y = (x.astype(compute) - shift) * factor + beta
            return (nn.relu(y) if relu else y).astype(self.dtype)

        if x.shape[0] % self.groups:
            raise ValueError(
                f"batch norm: a batch of {x.shape[0]} does not split into {self.groups} groups"
            )
        n = x.size // channels // self.groups * self._parts()
        if isinstance(n, int) and n == 1:
            raise ValueError(
                f"batch norm in training: a channel of {list(x.shape)} has one"
                f" value{' a group' * (self.groups > 1)}, which has no variance; give more images"
                " or larger ones, or set use_running_average=True"
            )
        y, batch_mean, batch_var = ops.batch_norm(
            x.astype(self.dtype),
            gamma,
            beta,
            self.epsilon,
            self.groups,
            relu,
            self.axis_name,
            self.forms,
        )
        if self.unbiased:
            batch_var = batch_var * (n / max(n - 1, 1))
        for running, batch in ((mean, batch_mean), (var, batch_var)):
            running.value = self.momentum * running.value + (1 - self.momentum) * batch.mean(
                0
            ).astype(statistics)
        return y

    def _parts(self) -> int:
        """Over how many parts of the batch the statistics are taken."""
        return 1 if self.axis_name is None else lax.axis_size(self.axis_name)


# --------------------------------------------------------------------------------- convolution unit


# What may stand in the place of the rectifier, by `jax.nn`'s names.
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh")
NORMALIZATIONS = ("batch", "group", "layer", "none")


def activate(name: str, x: Array) -> Array:
    """One of ACTIVATIONS, element by element."""
    function: Callable[[Array], Array] = getattr(jax.nn, name)
    return function(x)


def other_norm(kind: str, features: int, epsilon: float, dtype: Any, param_dtype: Any) -> nn.Module:
    """Group norm of at most 32 equal groups (arXiv 1803.08494), or layer norm over a position's
    channels, as ConvNeXt's (arXiv 2201.03545); neither looks at other images.
    """
    types = {"epsilon": epsilon, "dtype": dtype, "param_dtype": param_dtype, "name": "norm"}
    if kind == "layer":
        return nn.LayerNorm(**types)
    return nn.GroupNorm(num_groups=math.gcd(32, features), **types)


class ConvUnit(nn.Module):
    """Convolution, bias, batch norm, ReLU, of which the last three are options.

    Attributes:
      features: output channels.
      kernel: (height, width).
      padding: see `pads`.
      depth_multiplier: with a number, the convolution is separable: a depthwise one with that many
        outputs a channel (`depthwise_kernel`), then a 1×1 (`kernel`), nothing between.
      norm: the batch norm, if there is one.
      use_bias: whether the convolution has a bias.
      relu: whether the rectifier follows, or what `activation` names in its place.
      bias_init: `None` is PyTorch's.
      normalization: one of NORMALIZATIONS, where `norm` is set.
      forms: see `ops.FORMS`.
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Padding = "half"
    depth_multiplier: int | None = None
    norm: Norm | None = None
    use_bias: bool = True
    relu: bool = True
    kernel_init: Initializer = xavier_fan_in
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    forms: str = "fast"
    activation: str = "relu"
    normalization: str = "batch"

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool) -> Array:
        """`[N, H, W, C]` → `[N, H', W', features]` of `dtype`."""
        channels, window, stride, padding = x.shape[-1], self.kernel, self.stride, self.padding
        x = x.astype(self.dtype)
        if self.depth_multiplier:
            shape = (*window, 1, channels * self.depth_multiplier)
            depthwise = self.param("depthwise_kernel", self.kernel_init, shape, self.param_dtype)
            x = self._conv(x, depthwise, stride, padding, groups=channels)
            channels, window, stride, padding = channels * self.depth_multiplier, (1, 1), 1, 0
        kernel = self.param(
            "kernel", self.kernel_init, (*window, channels, self.features), self.param_dtype
        )
        x = self._conv(x, kernel, stride, padding)
        if self.use_bias:
            bias_init = self.bias_init or torch_bias(math.prod(window) * channels)
            bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
            x = x + ops.along_channels(bias.astype(self.dtype), x)
        rectified = self.relu and self.activation == "relu"
        if self.norm is not None and self.normalization != "batch":
            epsilon, types = self.norm.epsilon, (self.dtype, self.param_dtype)
            x = other_norm(self.normalization, self.features, epsilon, *types)(x)
            x = nn.relu(x) if rectified else x
        elif self.norm is not None:
            settings = dataclasses.asdict(self.norm) | {"forms": self.forms}
            norm = BatchNorm(**settings, dtype=self.dtype, param_dtype=self.param_dtype, name="bn")
            x = norm(x, use_running_average, rectified)
        elif rectified:
            x = nn.relu(x)
        if self.relu and not rectified:
            x = activate(self.activation, x)
        return sow(self, "output", x)

    def _conv(
        self, x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1
    ) -> Array:
        rows, columns = (
            pads(size, window, stride, padding)
            for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
        )
        return ops.conv(x, kernel.astype(self.dtype), stride, (rows, columns), groups, self.forms)


class Dense(nn.Module):
    """A fully connected layer, `kernel` [in, out] and `bias` [out]; `bias_init` `None` is
    PyTorch's.
    """

    features: int
    kernel_init: Initializer = torch_uniform
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[N, C]` → `[N, features]` of `dtype`."""
        kernel = self.param(
            "kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype
        )
        bias = self.param(
            "bias", self.bias_init or torch_bias(x.shape[-1]), (self.features,), self.param_dtype
        )
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y + ops.along_channels(bias.astype(self.dtype), y)
