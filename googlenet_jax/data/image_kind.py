"""Which images a network takes: how many channels, of which dtype."""

from typing import Any, NamedTuple

import numpy as np

from googlenet_jax.errors import UserError


class ImageKind(NamedTuple):
    """The channels and the dtype ("uint8", "uint16" or "float32") of images."""

    channels: int = 3
    dtype: str = "uint8"

    def __str__(self) -> str:
        return f"{self.dtype} images of {self.channels} channel{'s' * (self.channels != 1)}"

    def takes(self, channels: int, dtype: Any) -> bool:
        """Whether images of that form go in as they are; one channel is repeated."""
        return channels in (1, self.channels) and np.dtype(dtype) == self.dtype

    def check(self, network: str, images: str, channels: int, dtype: Any) -> None:
        """Raises UserError where `images` of that form are not those that the network takes."""
        if not self.takes(channels, dtype):
            found = ImageKind(channels, np.dtype(dtype).name)
            raise UserError(
                f"{images}: expected {self}, as {network} was trained on, found {found}"
            )


RGB = ImageKind()


def kind_of(model: Any, preprocessing: Any) -> ImageKind:
    """The images of a network and its preprocessing."""
    return ImageKind(getattr(model, "in_channels", 3), getattr(preprocessing, "dtype", "uint8"))


def shown(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] of any kind as people see it: uint8 [H, W, 3]. More than three channels
    are averaged, two too; floats are stretched between their smallest and largest.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = np.round(255 * (image - low) / ((high - low) or 1)).astype(np.uint8)
    if image.shape[-1] not in (1, 3):
        image = np.round(image.mean(-1, keepdims=True)).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3))
