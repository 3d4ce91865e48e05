"""Draws the pictures of docs/explain.md from a run on the digits.

python examples/explain_gallery.py runs/digits docs/explain
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

import googlenet_jax as gj
from googlenet_jax.interpretability.explain import Explanation

Tile = tuple[str, np.ndarray]  # title and picture
SHOWN = (0, 2, 3, 5, 8, 9)  # classes
LAYERS = ("conv1", "inception_3a", "inception_4e")


def main(run: str, folder: Path) -> None:
    """Draws and writes all of them."""
    trained = gj.load(run)
    folder.mkdir(parents=True, exist_ok=True)
    digits = held_out()
    save(folder / "first.png", first(trained, [digits[place] for place in SHOWN]))
    save(folder / "digits.png", [methods(trained, digits[place]) for place in (3, 8)])
    filters = gj.explain(trained, method="filters")
    save(
        folder / "layers.png", [[("conv1's kernels", filters.picture), *layers(trained, digits[3])]]
    )
    save(folder / "deepdream.png", [dreams(trained)])


def held_out() -> list[np.ndarray]:
    """Of each class the first digit that the config sets apart, uint8 [8, 8, 3]."""
    digits = load_digits()
    _, test = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    places = [next(i for i in sorted(test) if digits.target[i] == label) for label in range(10)]
    return [np.uint8(digits.images[i] * 15.9)[..., None].repeat(3, -1) for i in places]


def first(trained: gj.TrainedModel, images: Sequence[np.ndarray]) -> list[list[Tile]]:
    """Images with the network's answers, and below each its Grad-CAM."""
    rows: list[list[Tile]] = [[], []]
    for image in images:
        each = gj.explain(trained, image, layer="inception_4e")
        rows[0].append((said(each), enlarged(each.image)))
        rows[1].append(("", each.picture))
    return rows


def said(each: Explanation) -> str:
    """The class and its probability."""
    return f"{each.class_name} {100 * (each.probability or 0):.1f} %"


def enlarged(image: np.ndarray | None) -> np.ndarray:
    """The image, each pixel a square."""
    assert image is not None  # filters alone have none
    factor = max(1, 256 // len(image))
    return image.repeat(factor, 0).repeat(factor, 1)


def methods(trained: gj.TrainedModel, image: np.ndarray) -> list[Tile]:
    """An image beside what three methods make of it."""
    gradcam = gj.explain(trained, image, layer="inception_4e")
    tiles = [(said(gradcam), enlarged(gradcam.image)), ("Grad-CAM", gradcam.picture)]
    tiles.append(("integrated gradients", gj.explain(trained, image, "integrated").picture))
    tiles.append(("occlusion", gj.explain(trained, image, "occlusion").picture))
    return tiles


def layers(trained: gj.TrainedModel, image: np.ndarray) -> list[Tile]:
    """The strongest channels of a few layers."""
    shown = [gj.explain(trained, image, "activations", layer=layer, count=9) for layer in LAYERS]
    return [(each.layer or "", each.picture) for each in shown]


def dreams(trained: gj.TrainedModel) -> list[Tile]:
    """scikit-learn's photographs, larger than what the network was trained on, and changed."""
    assert trained.preprocessing is not None
    larger = dataclasses.replace(trained.preprocessing, size=192, resize=192)
    trained, tiles = dataclasses.replace(trained, preprocessing=larger), []
    for photograph in load_sample_images().images:
        tiles.append(("the photograph", trained.crops(photograph)[0]))
        options = {"layer": "inception_3b", "octaves": 3, "steps": 20}
        tiles.append(
            ("inception_3b", gj.explain(trained, photograph, "deepdream", **options).picture)
        )
    return tiles


def save(path: Path, rows: list[list[Tile]]) -> None:
    """Draws rows of pictures under their titles."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(2.2 * columns, 2.3 * len(rows)), dpi=96, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, line in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(row, line, strict=False):
            axis.imshow(picture, interpolation="nearest")
            if title:
                axis.set_title(title, fontsize=10)
    figure.savefig(path, facecolor="white")
    print(f"wrote {path}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
