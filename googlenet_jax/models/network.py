"""What every network shares: its options, the check of its input, its output, and the tools of one
call.

A network's file states its blocks and one `__call__`, a line for a row of the paper's table. It
makes its layers with the tools of `Layers`, which know how published implementations differ
(`Style`) and nothing of any network.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from googlenet_jax.models.layers import (
    AvgPool,
    ConvUnit,
    Dense,
    Initializer,
    LocalResponseNorm,
    MaxPool,
    Norm,
    Padding,
    he_fan_in_truncated,
    max_pool,
    sow,
    statistics_dtype,
)

Array = jax.Array

VALID: Padding = 0


@flax.struct.dataclass
class Output:
    """What a network returns.

    Attributes:
      logits: `[N, num_classes]`, `promote_types(dtype, float32)`.
      aux_logits: the auxiliary heads' logits by name, in training or where asked for; else empty.
      features: `[N, C]` of the logits' dtype: what the classifier reads, before dropout. `None`
        where a network of a user's own names none.
    """

    logits: Array
    aux_logits: dict[str, Array]
    features: Array | None = None


@dataclasses.dataclass(frozen=True)
class Style:
    """Where published implementations of one network differ. An architecture may add fields of its
    own.

    Attributes:
      kernel_init: of convolutions. dense_init: of fully connected layers and classifiers.
      bias_init: of convolutions without batch norm; dense_bias_init: of fully connected layers;
        logits_bias_init: of classifiers. `None` is PyTorch's, uniform within ±1/√fan_in.
      bias_beside_norm: whether convolutions have a bias where batch norm follows.
      norm_scale: whether batch norm has a learnt scale.
      padding: of convolutions where none is named: "half" the kernel on every side (PyTorch) or
        TensorFlow's "same".
      pool: padding of the stride-2 max pools: "ceil", "same" or what is padded on every side.
      lrn: whether local response norm stands where the paper has it.
    """

    kernel_init: Initializer
    dense_init: Initializer
    bias_init: Initializer | None = None
    dense_bias_init: Initializer | None = nn.initializers.zeros
    logits_bias_init: Initializer | None = nn.initializers.zeros
    bias_beside_norm: bool = False
    norm_scale: bool = True
    padding: Padding = "half"
    pool: Padding = "ceil"
    lrn: bool = False


@dataclasses.dataclass(frozen=True)
class Layers:
    """The tools of one call. Data, never a module: blocks hold it as an attribute and stay
    comparable, clonable and fit for `nn.remat`.

    A layer that a tool makes belongs to the module whose `__call__` is running. `features` are the
    paper's: `width` multiplies them.
    """

    style: Any  # the network's Style, with its architecture's own fields
    norm: Norm | None
    width: float
    dtype: Any
    param_dtype: Any
    train: bool
    use_running_average: bool
    forms: str = "fast"
    activation: str = "relu"
    normalization: str = "batch"

    def scaled(self, features: int) -> int:
        """`features` times `width`, at least one."""
        return max(1, round(features * self.width))

    def conv(
        self,
        name: str,
        x: Array,
        features: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: Padding | None = None,
        **settings: Any,
    ) -> Array:
        """Convolution, batch norm or bias, ReLU: `[N, H, W, C]` → `[N, H', W', features]`.

        `kernel` is (height, width) or one number for both; `padding` is as in `layers.pads`, the
        style's where it is not given; `settings` are `ConvUnit`'s.
        """
        # A style's kernels count on its batch norms: without them activations grow or fade.
        alone = self.normalization == "none"
        given = {
            "kernel_init": he_fan_in_truncated if alone else self.style.kernel_init,
            "bias_init": self.style.bias_init,
            "use_bias": self.norm is None or self.style.bias_beside_norm,
            "norm": self.norm,
        } | settings
        return ConvUnit(
            self.scaled(features),
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            stride,
            self.style.padding if padding is None else padding,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            forms=self.forms,
            activation=self.activation,
            normalization=self.normalization,
            name=name,
            **given,
        )(x, self.use_running_average)

    def pool(
        self, name: str, x: Array, kernel: int = 3, stride: int = 2, padding: Padding | None = None
    ) -> Array:
        """Max pool, 3×3/2 where nothing else is said, padded as the style pads."""
        padding = self.style.pool if padding is None else padding
        return MaxPool(kernel, stride, padding, self.forms, name=name)(x)

    def max_pool(self, x: Array, kernel: int, stride: int, padding: Padding) -> Array:
        """Max pool inside a module: no endpoint of its own."""
        return max_pool(x, kernel, stride, padding, self.forms)

    def avg_pool(self, name: str, x: Array, kernel: int, stride: int) -> Array:
        """Average over the windows inside the map."""
        return AvgPool(kernel, stride, name=name)(x)

    def lrn(self, name: str, x: Array) -> Array:
        """Local response norm, where the style has it."""
        return LocalResponseNorm(name=name)(x) if self.style.lrn else x

    def dense(self, name: str, x: Array, features: int) -> Array:
        """Fully connected layer of a head: `[N, C]` → `[N, features]`."""
        style = self.style
        make = functools.partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
        return make(self.scaled(features), style.dense_init, style.dense_bias_init)(x)

    def dropout(self, x: Array, rate: float) -> Array:
        """Dropout in training."""
        return nn.Dropout(rate, deterministic=not self.train)(x)

    def logits(
        self, name: str, x: Array, num_classes: int, init: Initializer | None = None
    ) -> Array:
        """Classifier, `[N, C]` → `[N, num_classes]` in `promote_types(dtype, float32)`."""
        dtype = statistics_dtype(self.dtype)
        make = functools.partial(Dense, dtype=dtype, param_dtype=self.param_dtype, name=name)
        return make(num_classes, init or self.style.dense_init, self.style.logits_bias_init)(x)


@dataclasses.dataclass(frozen=True)
class PrintedRow:
    """A row of a paper's table, as printed.

    Attributes:
      layers: our layers that it sums up, the last of which gives its output.
      output: (height, width, channels).
      weights: of the kernels, in K = 1024; multiply_adds: in millions; None where the paper prints
        none.
      weights_unit: one unit of the last printed digit, in K.
    """

    layers: tuple[str, ...]
    output: tuple[int, ...]
    weights: float | None = None
    multiply_adds: float | None = None
    weights_unit: float = 1.0


@dataclasses.dataclass(frozen=True)
class PrintedTable:
    """A paper's table of a network.

    Attributes:
      source: which table of which paper.
      input_size: height and width of the image, in pixels.
      options: the values of the model's options that it is of; a tuple gives several.
      notes: by layer, why a row differs, where it is known.
    """

    source: str
    input_size: int
    rows: tuple[PrintedRow, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def is_of(self, options: Mapping[str, Any], input_size: int) -> bool:
        """Whether the table is of a model with these options, on images of that size."""
        return input_size == self.input_size and all(
            options[name] in (value if isinstance(value, tuple) else (value,))
            for name, value in self.options.items()
        )


# What PyTorch calls the parts of a layer, in the order of its state dicts; after the layer's own
# name.
TORCH_UNIT = {
    "depthwise_kernel": ".depthwise.weight",
    "kernel": ".conv.weight",
    "bias": ".conv.bias",
    "bn/scale": ".bn.weight",
    "bn/bias": ".bn.bias",
    "bn/mean": ".bn.running_mean",
    "bn/var": ".bn.running_var",
    "bn/count": ".bn.num_batches_tracked",
}


class Network(nn.Module):
    """What the networks share. One of a user's own states its `__call__`, which begins with
    `self.begin(…)`, and registers.

    Attributes:
      num_classes: of the main and the auxiliary classifiers.
      aux_heads: whether the auxiliary classifiers exist.
      dropout: rate before the main classifier.
      width: multiplies the channels of every layer but the classifiers.
      dtype: of the computation. param_dtype: of the parameters.
      in_channels: of the images, 3 for RGB; see `gj.load` for weights of other images.
      activation: after each unit, one of `layers.ACTIVATIONS`.
      forms: of pools, convolutions and batch norms: "fast", "plain" or "indexed"; see `ops.FORMS`.
        They compute the same.
    """

    num_classes: int = 1000
    aux_heads: bool = True
    dropout: float = 0.4
    width: float = 1.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    forms: str = "fast"
    in_channels: int = 3
    activation: str = "relu"

    input_size = 224  # height and width of the images that it was published for
    normalization = "batch"  # an option of the networks with batch norm
    transform_input = False  # an option of the networks whose released weights want it; see `begin`

    # What an architecture states beside its `__call__`.
    style: ClassVar[Any] = None
    # Options that take one of a few words, and these.
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Flavour → the defaults that it gives to other options. The first flavour is the default.
    flavours: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Layer → PyTorch's name of it, and the part of a convolution unit → the end of its name, both
    # in the order of PyTorch's state dict.
    torch_names: ClassVar[Mapping[str, str]] = {}
    torch_unit: ClassVar[Mapping[str, str]] = TORCH_UNIT
    printed: ClassVar[PrintedTable | None] = None

    @property
    def min_size(self) -> int:
        """The smallest height and width of an image."""
        return 1

    @property
    def min_size_without_aux(self) -> int:
        """The smallest height and width where the auxiliary heads don't answer, as in evaluation."""
        return self.min_size

    @nn.nowrap
    def size_problem(self, height: int, width: int, aux: bool) -> str:
        """Why the network can't take images of this size, in words; "" where it can. `aux`: its
        auxiliary heads are to answer.
        """
        smallest, found = self.min_size if aux else self.min_size_without_aux, min(height, width)
        if found >= smallest:
            return ""
        less = self.min_size_without_aux
        hint = f"; aux_heads=False takes {less} and more" if found >= less else ""
        return (
            f"with its options, images must be at least {smallest} high and wide, found"
            f" {height}×{width}{hint}"
        )

    @property
    def norm(self) -> Norm | None:
        """The batch norms, if the network has any."""
        return None

    @nn.nowrap
    def begin(
        self,
        images: Array,
        train: bool,
        aux: bool | None = None,
        use_running_average: bool | None = None,
    ) -> tuple[Layers, Array, bool]:
        """What a `__call__` begins with.

        Args:
          images: floats `[N, H, W, 3]`, at least `min_size` high and wide, normalised as the
            network's preprocessing says.
          train: whether dropout acts (it draws from the "dropout" stream), the auxiliary heads
            answer and batch norm uses the batch.
          aux: whether the auxiliary heads answer, where that should differ from `train`.
          use_running_average: whether batch norm uses its running statistics, where that should
            differ from `not train`.
        With `transform_input`, images normalised with ImageNet's mean and standard deviation are
        turned into [−1, 1], as torchvision does.

        Returns:
          The tools of the call, the images in the network's dtype, and whether the auxiliary heads
          are to answer.
        Raises:
          ValueError: images of another rank, channel count or dtype, or smaller than `min_size`.
        """
        wants_aux = self.aux_heads and ((train if aux is None else aux) or self.is_initializing())
        check_images(self, images, wants_aux)
        layers = Layers(
            style=self.style,
            norm=self.norm,
            width=self.width,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            train=train,
            use_running_average=not train if use_running_average is None else use_running_average,
            forms=self.forms,
            activation=self.activation,
            normalization=self.normalization,
        )
        x = images.astype(self.dtype)
        if self.transform_input:
            x = imagenet_to_unit_range(x)
        return layers, x, wants_aux

    def finish(
        self,
        layers: Layers,
        name: str,
        x: Array,
        aux_logits: Mapping[str, Array] | None = None,
        average: bool = True,
    ) -> Output:
        """What a `__call__` ends with: global average (or the whole map), dropout, classifier.

        Args:
          name: the endpoint's of what the classifier reads.
          x: the last map, `[N, H, W, C]`.
          aux_logits: what the auxiliary heads answered.
        """
        x = x.astype(statistics_dtype(x.dtype))
        x = sow(self, name, x.mean((1, 2)) if average else x.reshape(x.shape[0], -1))
        # The classifier is the submodule "head": no method may have that name, or flax.nnx takes it
        # for one.
        logits = layers.logits("head", layers.dropout(x, self.dropout), self.num_classes)
        return Output(logits, dict(aux_logits or {}), x)


class NormedNetwork(Network):
    """What the networks with batch norm share.

    Attributes:
      bn_epsilon, bn_momentum: of every batch norm; see `layers.BatchNorm`.
      bn_groups: equal parts of a training batch that have statistics of their own.
      bn_axis_name: inside `shard_map` or `pmap`, the axis over whose parts of the batch the
        statistics are taken together.
      normalization: "batch", or "group", "layer" (see `layers.other_norm`) or "none" in its place,
        with kernels that begin as He's (arXiv 1502.01852), which keep the activations' variance.
      bn_folded: whether the convolutions have biases in place of batch norms; see
        `fold_batch_norm`.
    """

    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9
    bn_groups: int = 1
    bn_axis_name: str | None = None
    bn_folded: bool = False
    normalization: str = "batch"

    @property
    def norm(self) -> Norm | None:
        """The batch norms, unless they are folded."""
        if self.bn_folded or self.normalization == "none":
            return None
        scale = self.style.norm_scale
        return Norm(
            self.bn_momentum,
            self.bn_epsilon,
            use_scale=scale,
            groups=self.bn_groups,
            axis_name=self.bn_axis_name,
        )


def check_images(model: Network, images: Array, aux: bool) -> None:
    """Raises ValueError, in words, where a network can't take `images`."""
    name = type(model).__name__
    if images.ndim != 4 or images.shape[-1] != model.in_channels:
        raise ValueError(
            f"{name}: images must be [N, H, W, {model.in_channels}], found shape"
            f" {list(images.shape)}; the option in_channels sets the last"
        )
    if model.transform_input and model.in_channels != 3:
        raise ValueError(
            f"{name}: transform_input is of RGB images, found in_channels {model.in_channels}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name}: images must be normalised floats, found {images.dtype}; see"
            " googlenet_jax.data.preprocessing.normalize"
        )
    height, width = images.shape[1:3]
    if problem := model.size_problem(height, width, aux):
        raise ValueError(f"{name}: {problem}")


def imagenet_to_unit_range(x: Array) -> Array:
    """From ImageNet's mean and standard deviation, in units of 0–1, to (x − 0.5) / 0.5. Any shape
    [..., 3].
    """
    mean = jnp.array([0.485, 0.456, 0.406], x.dtype)
    std = jnp.array([0.229, 0.224, 0.225], x.dtype)
    return x * (std / 0.5) + (mean - 0.5) / 0.5


def variable_shapes(model: Network, size: int) -> dict[str, Any]:
    """Traces `model.init` on an image of `size` × `size`: the variables' tree, as
    ShapeDtypeStructs; nothing is computed.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)

    def init(key: Array, images: Array) -> Any:
        return model.init({"params": key, "dropout": key}, images, train=False)

    return jax.eval_shape(init, key, images)
