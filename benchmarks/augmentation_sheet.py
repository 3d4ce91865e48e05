"""Draws one photograph under every augmentation: docs/augmentation.png.

python -m benchmarks augmentation_sheet [--out docs/augmentation.jpg]
"""

import argparse
import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from googlenet_jax.data import photometric
from googlenet_jax.data.augment import flip, mix
from googlenet_jax.data.decoding import decode_crop
from googlenet_jax.data.pipeline import CROP_TRIES, RandomCrop, random_crop
from googlenet_jax.data.resampling import INTERPOLATIONS

SIZE = 128
PAPER = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}


def encoded() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def cropped(
    box: tuple[int, int, int, int],
    interpolation: str = "area",
    exact: bool = True,
    size: int = SIZE,
) -> np.ndarray:
    return decode_crop(
        encoded(),
        lambda height, width: box,
        lambda height, width: (size, size),
        interpolation,
        exact=exact,
    )


def mirrored(batch: dict[str, Any]) -> dict[str, Any]:
    """A flip whose coin fell on mirroring."""
    return next(
        flipped
        for flipped in (flip(batch, jax.random.key(number)) for number in range(20))
        if (flipped["image"] != batch["image"]).any()
    )


def rows() -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """Name of a row -> titles and pictures."""
    whole = (0, 106, 427, 427)
    image = cropped(whole)
    batch = {"image": jnp.asarray(image[None])}

    def adjusted(operation: Callable[..., Any], *amounts: float) -> list[tuple[str, np.ndarray]]:
        return [
            (
                f"{amount:+g}" if operation is photometric.adjust_hue else f"× {amount:g}",
                np.asarray(operation(batch["image"], jnp.full(1, amount)))[0],
            )
            for amount in amounts
        ]

    rng = np.random.default_rng(0)
    boxes = [
        random_crop(427, 640, RandomCrop(), rng.random((CROP_TRIES + 1, 2)).tolist())
        for _ in range(6)
    ]
    small = (150, 250, 100, 100)
    other = np.asarray(
        Image.fromarray(load_sample_image("flower.jpg"))
        .crop((106, 0, 533, 427))
        .resize((SIZE, SIZE))
    )
    pair = {"image": jnp.asarray(np.stack([image, other]), jnp.float32), "label": jnp.arange(2)}

    def mixed(number: int, **options: float) -> np.ndarray:
        return np.asarray(mix(pair, jax.random.key(number), num_classes=2, **options)["image"][0])

    jitter = functools.partial(photometric.color_jitter, batch, **PAPER)
    lit = [
        np.asarray(photometric.lighting(batch, jax.random.key(number), std=0.1)["image"][0])
        for number in range(6)
    ]
    return [
        ("random crop", [(f"{100 * b[2] * b[3] / 427 / 640:.0f} %", cropped(b)) for b in boxes]),
        (
            "shrinking to 32 pixels",
            [(name, cropped(whole, name, size=32)) for name in INTERPOLATIONS],
        ),
        ("enlarging", [(name, cropped(small, name)) for name in INTERPOLATIONS]),
        (
            "decoding; mirror",
            [
                ("exact", image),
                ("scaled", cropped(whole, exact=False)),
                ("mirrored", np.asarray(mirrored(batch)["image"][0])),
            ],
        ),
        ("brightness", adjusted(photometric.adjust_brightness, 0.5, 0.75, 1, 1.25, 1.5)),
        ("contrast", adjusted(photometric.adjust_contrast, 0.5, 0.75, 1, 1.25, 1.5)),
        ("saturation", adjusted(photometric.adjust_saturation, 0.5, 0.75, 1, 1.25, 1.5)),
        ("hue", adjusted(photometric.adjust_hue, -0.2, -0.1, 0, 0.1, 0.2)),
        (
            "all four, random order",
            [(f"draw {n}", np.asarray(jitter(jax.random.key(n))["image"][0])) for n in range(6)],
        ),
        ("lighting noise", [(f"draw {number}", picture) for number, picture in enumerate(lit)]),
        (
            "MixUp, CutMix",
            [(f"MixUp {n}", mixed(n, mixup=0.4, cutmix=0.0)) for n in range(3)]
            + [(f"CutMix {n}", mixed(n, mixup=0.0, cutmix=1.0)) for n in range(3)],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="docs/augmentation.jpg")
    args = parser.parse_args()
    sheet = rows()
    figure = Figure(figsize=(9, 1.55 * len(sheet)), layout="constrained")
    axes = figure.subplots(len(sheet), 6)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, pictures) in zip(axes, sheet, strict=True):
        for place, (axis, (title, picture)) in enumerate(zip(line, pictures, strict=False)):
            axis.imshow(np.clip(np.rint(picture), 0, 255).astype(np.uint8), interpolation="nearest")
            axis.set_title(f"{name}\n{title}" if place == 0 else title, fontsize=7, loc="left")
    figure.savefig(args.out, dpi=90, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
