"""Photometric distortions on the device, inside jit: what changes an image's colours and nothing
else.

The GoogLeNet paper (arXiv 1409.4842, section 6) takes them from A. G. Howard (arXiv 1312.5402):
brightness, contrast and colour as Pillow's ImageEnhance changes them, in random order, then
AlexNet's lighting noise. Hue is changed in TensorFlow's published Inception training too.

All images are [N, H, W, 3], RGB, in units of 0–255, uint8 or float; the results are float32
(float64 stays) from 0 to 255.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Batch = dict[str, Array]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's "L"

# Of the colours of ImageNet's pixels in units of 0–1, red first: square roots of the covariance's
# eigenvalues, and the eigenvectors in the columns (as in Facebook's fb.resnet.torch).
PCA_STD = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def adjust_brightness(images: Array, factor: Array) -> Array:
    """Blends with black: factor 0 is black, 1 the image, above 1 brighter; factor [N]. Pillow's
    ImageEnhance.Brightness."""
    return _blend(images, jnp.zeros_like(_floats(images)), factor)


def adjust_contrast(images: Array, factor: Array) -> Array:
    """Blends with the mean of the image's greys; factor [N]. Pillow's ImageEnhance.Contrast, but
    that the mean is not rounded."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdims=True), factor)


def adjust_saturation(images: Array, factor: Array) -> Array:
    """Blends with the image in greys: factor 0 is greyscale; factor [N]. Pillow's
    ImageEnhance.Color."""
    return _blend(images, _grey(images), factor)


def adjust_hue(images: Array, shift: Array) -> Array:
    """Turns the hue by `shift` of the whole circle, [N], with HSV's saturation and value as they
    are; greys stay."""
    images = _floats(images)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value, low = images.max(-1), images.min(-1)
    chroma = value - low
    divisor = jnp.where(chroma == 0, 1, chroma)
    sector = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = sector + 6 * shift[:, None, None]
    # Each channel is `value` less the share of the chroma by which the hue is away from that
    # channel's.
    away = jnp.mod(sector[..., None] + jnp.asarray((5, 3, 1), images.dtype), 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)


_OPERATIONS: tuple[Callable[[Array, Array], Array], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def color_jitter(
    batch: Batch,
    key: Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Batch:
    """Changes each image's brightness, contrast, saturation and hue, in an order and by amounts
    drawn for each.

    Args:
        batch: with image [N, H, W, 3].
        key: of the draws.
        brightness, contrast, saturation: each image's factor is uniform in [1 − x, 1 + x]; x from 0
            to 1, 0 leaves it out.
        hue: each image's turn is uniform in [−x, x] of the circle; x from 0 to ½, 0 leaves it out.
    """
    images = _floats(batch["image"])
    factor_key, order_key = jax.random.split(key)
    spread = jnp.asarray((brightness, contrast, saturation, hue), images.dtype)
    centre = jnp.asarray((1, 1, 1, 0), images.dtype)
    amounts = centre + spread * jax.random.uniform(
        factor_key, (len(images), 4), images.dtype, -1, 1
    )
    order = jnp.argsort(jax.random.uniform(order_key, (len(images), 4)), axis=1)
    used = [
        number for number, width in enumerate((brightness, contrast, saturation, hue)) if width > 0
    ]
    # Which operation is an image's next differs from image to image: all are computed, one is
    # taken. An operation that is left out leaves its place in the order empty.
    for place in range(4 if used else 0):
        candidates = [(number, _OPERATIONS[number](images, amounts[:, number])) for number in used]
        for number, candidate in candidates:
            images = jnp.where((order[:, place] == number)[:, None, None, None], candidate, images)
    return batch | {"image": images}


def lighting(batch: Batch, key: Array, *, std: float) -> Batch:
    """AlexNet's lighting noise: adds to all pixels of an image one colour, drawn along the
    principal components of ImageNet's colours.

    Each component's share is normal with standard deviation `std` (0.1 in Krizhevsky et al. 2012,
    section 4.1) times the component's own.
    """
    images = _floats(batch["image"])
    shares = std * jax.random.normal(key, (len(images), 3), images.dtype)
    colour = (
        255
        * (shares * jnp.asarray(PCA_STD, images.dtype))
        @ jnp.asarray(PCA_VECTORS, images.dtype).T
    )
    return batch | {"image": jnp.clip(images + colour[:, None, None, :], 0, 255)}


def _floats(images: Array) -> Array:
    return images.astype(jnp.promote_types(images.dtype, jnp.float32))


def _grey(images: Array) -> Array:
    images = _floats(images)
    return (images * jnp.asarray(_LUMA, images.dtype)).sum(-1, keepdims=True)


def _blend(images: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(other + (_floats(images) - other) * factor[:, None, None, None], 0, 255)
