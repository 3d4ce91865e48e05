"""What turns uint8 images into a network's input: sizes for the host, and the arithmetic that runs
on the device inside jit.
"""

import dataclasses
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from googlenet_jax.errors import UserError, check_whole, nearest

CHANNEL_ORDERS = ("rgb", "bgr")
LARGEST = 2**15 - 1  # pixels, OpenCV's limit for a side
DTYPES = ("uint8", "uint16", "float32")
CROPS = ("center", "squash")
INTERPOLATIONS = ("auto", "area", "bilinear", "nearest", "bicubic", "bilinear_antialiased")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input; plain JSON values, so that a checkpoint can hold it.

    Attributes:
        size: height and width of the network's input, in pixels.
        resize: the short side before the centre crop of an evaluation, in pixels; at least `size`.
        mean: subtracted, a number for each channel, or one for all; in the images' units (0–255 for
            uint8) and in the order that `channel_order` names. The default is ImageNet's; Caffe's
            models take (104, 117, 123) in BGR order, std 1.
        std: divided by afterwards, likewise.
        channel_order: the order in which the network takes its channels, "rgb" or "bgr".
        crop: of an evaluation: "center" brings the short side to `resize` and takes the middle;
            "squash" brings both sides there, so that the proportions change, as Caffe's, TF-slim's
            and Keras's pipelines do.
        interpolation: of that resizing: OpenCV's of that name; "auto" averages areas where the
            image shrinks and is bilinear where it grows; "bilinear_antialiased" is Pillow's
            bilinear, which torchvision evaluates with.
        class_offset: logits before that of label 0: 1 for a network with a background class, as
            TF-slim's.
        dtype: of the images: "uint8", "uint16" or "float32".

    Raises:
        UserError: naming the field, if a value is impossible.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    channel_order: str = "rgb"
    crop: str = "center"
    interpolation: str = "auto"
    class_offset: int = 0
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        for field in ("size", "resize"):
            object.__setattr__(
                self, field, check_whole(f"preprocessing.{field}", getattr(self, field), 1, LARGEST)
            )
        for field in ("mean", "std"):
            object.__setattr__(self, field, _numbers(field, getattr(self, field)))
        if 1 not in (len(self.mean), len(self.std)) and len(self.mean) != len(self.std):
            raise UserError(
                "preprocessing.mean: expected as many numbers as preprocessing.std has,"
                f" {len(self.std)}, or one for all, found {self.mean}"
            )
        if self.resize < self.size:
            raise UserError(
                "preprocessing.resize: the short side before the crop must be at least size ="
                f" {self.size}, found {self.resize}; raise resize or lower size"
            )
        if np.float32(min(self.std)) <= 0:
            raise UserError(
                f"preprocessing.std: expected numbers above 0, found {self.std}; use 1 for a"
                " channel that is not scaled"
            )
        for field, choices in (
            ("channel_order", CHANNEL_ORDERS),
            ("crop", CROPS),
            ("interpolation", INTERPOLATIONS),
            ("dtype", DTYPES),
        ):
            value = getattr(self, field)
            if not isinstance(value, str) or value not in choices:
                raise UserError(
                    f"preprocessing.{field}: expected one of {', '.join(map(repr, choices))}, "
                    f"found {value!r}{nearest(str(value), choices)}"
                )
        offset = check_whole("preprocessing.class_offset", self.class_offset, 0)
        object.__setattr__(self, "class_offset", offset)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values (lists in place of tuples), `dtype` where it is not
        uint8: files of before have none.
        """
        values = {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.dtype == "uint8":
            del values["dtype"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Builds it from `to_dict`'s values; fields left out keep their defaults.

        Raises:
            UserError: if a field is unknown or a value impossible.
        """
        if not isinstance(values, dict):
            raise UserError(
                f"preprocessing: expected an object with fields, found {values!r}; see"
                " Preprocessing.to_dict"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"preprocessing: there is no field {name!r}{nearest(name, known)}; the fields"
                    f" are {', '.join(known)}"
                )
        return cls(**values)


def normalize(
    images: jax.Array, preprocessing: Preprocessing, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Puts the channels in order, subtracts the mean and divides by the standard deviation.

    Args:
        images: [N, S, S, C] of the preprocessing's dtype; uint8 [N, S, S, 3] is RGB.
        preprocessing: mean, std and channel order.
        dtype: of the result; the arithmetic runs in this type or float32, whichever is wider.

    Returns:
        [N, S, S, C] in `dtype`.

    Raises:
        UserError: if the images have another dtype or other channels than the preprocessing.
    """
    channels = len(preprocessing.mean)
    if images.dtype != preprocessing.dtype or channels not in (1, images.shape[-1]):
        raise UserError(
            f"normalize: expected {preprocessing.dtype} images [N, S, S, {channels}], "
            f"found {images.dtype} {list(images.shape)}; pass them undivided"
        )
    return standardize(images, preprocessing, dtype)


def standardize(
    images: jax.Array, preprocessing: Preprocessing, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """`normalize` without its check: images [N, S, S, C] may also be floats, in units of 0–255, as
    augmentation leaves them.
    """
    compute = jnp.promote_types(dtype, jnp.float32)
    if preprocessing.channel_order == "bgr":
        images = images[..., ::-1]
    mean, std = jnp.asarray(preprocessing.mean, compute), jnp.asarray(preprocessing.std, compute)
    return ((images.astype(compute) - mean) / std).astype(dtype)


def _numbers(field: str, value: Any) -> tuple[float, ...]:
    given: list[Any] = (
        list(value)
        if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim)
        else []
    )
    # Compared before it becomes a float, which a long whole number can't; normalize computes in
    # float32.
    largest = float(np.finfo(np.float32).max)
    fine = (
        len(given) > 0
        and all(isinstance(number, Real) for number in given)
        and all(abs(number) <= largest for number in given)
    )
    if not fine:
        raise UserError(
            f"preprocessing.{field}: expected finite numbers in the images' units, one a channel,"
            f" found {value!r}"
        )
    return tuple(float(number) for number in given)
