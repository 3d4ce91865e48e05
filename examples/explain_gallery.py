"""Draws the pictures of docs/explain.md from two runs, which that page says how to train.

    python examples/explain_gallery.py RUNS/digits RUNS/found PHOTOS docs/explain

PHOTOS is what digits_in_photographs.py wrote.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_images

import googlenet_jax as gj
from googlenet_jax.interpretability.explain import Explanation

Tile = tuple[str, np.ndarray]  # title and picture


def main(digits_run: str, found_run: str, photos: Path, folder: Path) -> None:
    digits, found = gj.load(digits_run), gj.load(found_run)
    folder.mkdir(parents=True, exist_ok=True)
    validation = [sorted((photos / "val" / name).iterdir()) for name in found.class_names or ()]
    chosen = [names[0] for names in validation]  # the first of each class
    save(folder / "first.png", first(found, chosen[2:8]))
    save(folder / "photographs.png", [methods(found, chosen[place]) for place in (4, 8)])
    grey = [np.uint8(each * 15.9)[..., None].repeat(3, -1) for each in load_digits().images]
    save(folder / "digits.png", [methods(digits, grey[place]) for place in (3, 8)])
    filters = [
        (f"{title}, conv1", gj.explain(each, method="filters").picture)
        for title, each in (("digits", digits), ("digits in photographs", found))
    ]
    save(folder / "filters.png", [filters])
    save(folder / "activations.png", [activations(found, chosen[4])])
    save(folder / "deepdream.png", dreams(found))


def first(found: gj.TrainedModel, pictures: Sequence[Path]) -> list[list[Tile]]:
    rows: list[list[Tile]] = [[], []]
    for picture in pictures:
        each = gj.explain(found, picture, layer="inception_4e")
        rows[0].append((said(each), enlarged(each.image)))
        rows[1].append(("", each.picture))
    return rows


def said(each: Explanation) -> str:
    return f"{each.class_name} {100 * each.probability:.1f} %"


def enlarged(image: np.ndarray) -> np.ndarray:
    factor = max(1, 256 // len(image))
    return image.repeat(factor, 0).repeat(factor, 1)


def methods(trained: gj.TrainedModel, image: object) -> list[Tile]:
    """An image beside what three methods make of it."""
    gradcam = gj.explain(trained, image, layer="inception_4e")
    tiles = [(said(gradcam), enlarged(gradcam.image)), ("Grad-CAM", gradcam.picture)]
    tiles.append(("integrated gradients", gj.explain(trained, image, "integrated").picture))
    tiles.append(("occlusion", gj.explain(trained, image, "occlusion").picture))
    return tiles


def activations(trained: gj.TrainedModel, image: object) -> list[Tile]:
    shown = [gj.explain(trained, image, "activations", layer=layer, count=9) for layer in LAYERS]
    tiles = [("the picture", enlarged(shown[0].image))]
    return tiles + [(each.layer or "", each.picture) for each in shown]


LAYERS = ("conv1", "inception_3a", "inception_4e")


def dreams(trained: gj.TrainedModel) -> list[list[Tile]]:
    assert trained.preprocessing is not None
    larger = dataclasses.replace(trained.preprocessing, size=256, resize=256)
    trained = dataclasses.replace(trained, preprocessing=larger)
    rows = []
    for photograph in load_sample_images().images:
        row = [("the photograph", trained.crops(photograph)[0])]
        for layer in ("conv2", "inception_3b", "inception_4c"):
            dreamt = gj.explain(trained, photograph, "deepdream", layer=layer, steps=20)
            row.append((layer, dreamt.picture))
        rows.append(row)
    return rows


def save(path: Path, rows: list[list[Tile]]) -> None:
    """Draws rows of pictures under their titles."""
    columns = max(map(len, rows))
    titled = any(title for title, _ in rows[0])
    figure = Figure(figsize=(2.2 * columns, 2.35 * len(rows)), dpi=96, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, line in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(row, line, strict=False):
            axis.imshow(picture, interpolation="nearest")
            if titled and title:
                axis.set_title(title, fontsize=10)
    figure.savefig(path, facecolor="white")
    print(f"wrote {path}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
