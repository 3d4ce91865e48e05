"""Scaling as products of matrices, on the device: the weights of source pixels in scaled ones."""

import jax
import jax.numpy as jnp


def resample(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Scales [H, W, C] by the weights of its rows [S, H] and columns [T, W]; uint8 [S, T, C]."""
    # HIGHEST: a GPU's and TPU's default would round the pixels to fewer bits than they have.
    values = jnp.einsum("sh,hwc,tw->stc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


def resampling_weights(
    source: jax.Array,
    scaled: jax.Array,
    first: jax.Array,
    count: int,
    padded: int,
    interpolation: str,
) -> jax.Array:
    """Returns the weights of source pixels in scaled pixels `first` … `first + count − 1`.

    float32 [count, padded]; pixels from `source` on are padding and weigh nothing.
    """
    wanted = first + jnp.arange(count)[:, None]
    given = jnp.arange(padded)[None, :]
    # Whole numbers until the last division, so that positions are exact.
    start = (wanted * source - given * scaled) / scaled
    end = ((wanted + 1) * source - given * scaled) / scaled
    centre = ((2 * wanted + 1) * source - (2 * given + 1) * scaled) / (2 * scaled)
    if interpolation == "nearest":
        return ((start >= 0) & (start < 1)).astype(jnp.float32)
    if interpolation == "bilinear_antialiased":
        reach = jnp.maximum(source / scaled, 1)
        values = jnp.where(given < source, jnp.maximum(1 - jnp.abs(centre) / reach, 0), 0)
        return values / values.sum(axis=1, keepdims=True)
    if interpolation == "bicubic":
        # What reaches over an edge counts for the pixel on the edge.
        before = _cubic(centre + 1) + _cubic(centre + 2)
        behind = _cubic(centre - 1) + _cubic(centre - 2)
        edges = jnp.where(given == 0, before, 0) + jnp.where(given == source - 1, behind, 0)
        return jnp.where(given < source, _cubic(centre) + edges, 0)
    bilinear = jnp.maximum(1 - jnp.abs(jnp.clip(centre, -given, source - 1 - given)), 0)
    if interpolation == "bilinear":
        return bilinear
    covered = jnp.maximum(jnp.minimum(end, 1) - jnp.maximum(start, 0), 0)
    return jnp.where(scaled <= source, covered * (scaled / source), bilinear)


def _cubic(distance: jax.Array) -> jax.Array:
    """Keys's kernel with OpenCV's a = −0.75."""
    a, x = -0.75, jnp.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))


def window_weights(
    start: jax.Array, end: jax.Array, size: jax.Array, pixels: int, side: int
) -> jax.Array:
    """What each of a line's pixels adds to each place of the result: [..., side, pixels].

    A place takes the mean over a stretch of the line around its middle, as long as the line's part
    that falls on it, and at least one pixel long: the overlap of such a stretch with two pixels is
    linear interpolation.
    """
    step = (end - start) / side
    middle = start[..., None] + step[..., None] * (jnp.arange(side) + 0.5)
    length = jnp.maximum(step, 1)[..., None]
    first, last = middle - length / 2, jnp.minimum(middle + length / 2, size[..., None])
    left = jnp.arange(pixels)
    overlap = jnp.minimum(last[..., None], left + 1) - jnp.maximum(first[..., None], left)
    return jnp.clip(overlap, 0) / length[..., None]
