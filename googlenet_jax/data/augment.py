"""Augmentation on the device, inside jit: an ordered list of functions of a batch and a key.

On the host an image is cropped and scaled, and nothing else (`data/pipeline.py`). What changes
pixels or labels belongs here.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_jax.data.photometric import color_jitter, lighting
from googlenet_jax.data.preprocessing import Preprocessing, standardize
from googlenet_jax.errors import UserError
from googlenet_jax.registry import Registry, arguments, given_step

Array = jax.Array
Batch = dict[str, Array]
Transform = Callable[..., Batch]  # (batch, key) and, where it takes it, step=


def flip(batch: Batch, key: Array) -> Batch:
    """Mirrors each image left to right with probability ½, independently; image [N, H, W, C], any
    dtype.
    """
    images = batch["image"]
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0],))
    return batch | {
        "image": jnp.where(mirrored[:, None, None, None], images[:, :, ::-1, :], images)
    }


def translate(batch: Batch, key: Array, *, by: int = 2) -> Batch:
    """Moves each image by up to `by` pixels along both axes, independently; what comes in at the
    edges is a mirror image. image [N, H, W, C], any dtype.
    """
    images = batch["image"]
    padded = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)), mode="reflect")
    starts = jax.random.randint(key, (images.shape[0], 2), 0, 2 * by + 1)

    def moved(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

    return batch | {"image": jax.vmap(moved)(padded, starts)}


def mix(batch: Batch, key: Array, *, num_classes: int, mixup: float, cutmix: float) -> Batch:
    """MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899): each image becomes part the next one
    of the batch, and so do its labels.

    One share λ ~ Beta(α, α) is drawn for the whole batch, with α = `mixup` or `cutmix`; where both
    are above 0, a fair coin decides which of the two it is. CutMix's λ is then the share of pixels
    that its box, clipped at the edges, has left.

    image [N, H, W, C], any float dtype; label int [N] or targets [N, num_classes]. Returns the
    image in its own dtype, and as label targets [N, num_classes] that sum to 1, float32 or wider.
    """
    images, labels = batch["image"], soft_targets(batch["label"], num_classes)
    coin_key, share_key, box_key = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(coin_key) if mixup and cutmix else jnp.asarray(cutmix > 0)
    share = jax.random.beta(share_key, *(jnp.where(cuts, cutmix or mixup, mixup or cutmix),) * 2)
    stays = _outside_a_box(box_key, images.shape[1], images.shape[2], 1 - share)
    weight = jnp.where(cuts, stays, share)
    share = jnp.where(cuts, stays.mean(), share)
    weight = weight[None, :, :, None]
    # In float32 or wider, as `weight` is.
    mixed = weight * images + (1 - weight) * jnp.roll(images, 1, axis=0)
    mixed_labels = share * labels + (1 - share) * jnp.roll(labels, 1, axis=0)
    mixed_batch = batch | {"image": mixed.astype(images.dtype), "label": mixed_labels}
    if "weight" in batch:  # what is mixed with an image that couldn't be read has no weight either
        mixed_batch["weight"] = batch["weight"] * jnp.roll(batch["weight"], 1, axis=0)
    return mixed_batch


def _outside_a_box(key: Array, height: int, width: int, area: Array) -> Array:
    """Returns 0 inside a box that covers `area` of the image before it is clipped at the edges, and
    1 outside; float [H, W].
    """
    centre = jax.random.uniform(key, (2,)) * jnp.array([height, width])
    half = jnp.array([height, width]) * jnp.sqrt(area) / 2
    (top, left), (bottom, right) = jnp.round(centre - half), jnp.round(centre + half)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return 1.0 - inside


def soft_targets(labels: Array, num_classes: int, dtype: jnp.dtype | type = jnp.float32) -> Array:
    """Returns the target distribution [N, num_classes] of labels, int [N], or of targets [N,
    num_classes] as they are.
    """
    return (
        labels.astype(dtype)
        if labels.ndim == 2
        else jax.nn.one_hot(labels, num_classes, dtype=dtype)
    )


AUGMENTATIONS: Registry[Transform] = Registry("augmentation", {"translate": translate})
register_augmentation = AUGMENTATIONS.register


def device_transforms(
    preprocessing: Preprocessing,
    *,
    dtype: jnp.dtype | type,
    num_classes: int,
    mirror: bool = False,
    jitter: Mapping[str, float] | None = None,
    lighting_std: float = 0.0,
    names: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> list[tuple[str, Transform]]:
    """Returns what happens to a training batch on the device, in this order, each with the name
    that its randomness is drawn by.

    First the flip, then `jitter` (the amounts of `photometric.color_jitter`) and lighting noise,
    then the registered augmentations `names` on images in units of 0–255 (uint8, or
    floats once one has made them so) with their `options` by name, then normalization to `dtype`,
    then MixUp and CutMix. Raises UserError for a name that is not registered, or an option that it
    does not take.
    """
    transforms: list[tuple[str, Transform]] = [("flip", flip)] if mirror else []
    if jitter and any(jitter.values()):
        transforms.append(("color_jitter", lambda batch, key: color_jitter(batch, key, **jitter)))
    if lighting_std:
        transforms.append(("lighting", functools.partial(lighting, std=lighting_std)))
    for name in options or {}:
        if name not in names:
            raise UserError(f"options.{name}: it is none of the transforms {tuple(names)}")
    for name in names:
        given, own = (options or {}).get(name, {}), ("batch", "key", "step")
        function = AUGMENTATIONS[name]
        taken = arguments(function, f"augmentation {name!r}", "augment", {}, given, own)
        transforms.append((name, functools.partial(function, **taken) if taken else function))

    transforms.append(
        (
            "normalize",
            lambda batch, _: batch | {"image": standardize(batch["image"], preprocessing, dtype)},
        )
    )
    if mixup or cutmix:
        transforms.append(
            ("mix", functools.partial(mix, num_classes=num_classes, mixup=mixup, cutmix=cutmix))
        )
    return transforms


def apply_transforms(
    transforms: Sequence[tuple[str, Transform]], batch: Batch, key: Array, step: Array | int = 0
) -> Batch:
    """Applies the transforms in order; those that take `step` get the number of the step.

    The flip draws from `key` itself, each other one from `key` with its name folded in. So an
    augmentation draws the same whichever others are on.
    """
    for name, transform in transforms:
        own = key if name == "flip" else jax.random.fold_in(key, zlib.crc32(name.encode()))
        batch = given_step(transform)(batch, own, step=step)
    return batch
