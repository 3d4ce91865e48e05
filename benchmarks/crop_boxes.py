"""Draws the boxes of the 144 crops of a landscape, a portrait and a square image.

    python -m benchmarks crop_boxes [--output docs/crops.png]

Each of the three squares of a scale has a colour: thick its outline (the whole square is a view),
thin its four corners and its centre. Mirror images lie in the same boxes. Prints, as JSON, how many
boxes are distinct.
"""

import argparse
import json

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

from googlenet_jax.evaluation.crops import SQUARES, VIEWS, boxes, short_sides

SIZE = 224
COLOURS = ("#d62728", "#1f77b4", "#2ca02c")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="docs/crops.png", metavar="FILE")
    args = parser.parse_args()

    photograph = load_sample_image("china.jpg")  # 427×640
    images = {
        "landscape": photograph,
        "portrait": photograph[:, 60:380],
        "square": photograph[:, 100:527],
    }
    figure = Figure(figsize=(15, 11.5), dpi=65, layout="constrained")
    distinct = {}
    for row, (name, image) in zip(
        figure.subplots(len(images), len(short_sides(SIZE))), images.items(), strict=True
    ):
        found = boxes(*image.shape[:2], SIZE, 144)
        distinct[name] = len(set(found))
        for scale, axes in enumerate(row):
            draw(axes, image, scale)
        height, width = image.shape[:2]
        row[0].set_ylabel(f"{name}, {height}×{width}: {distinct[name]} distinct views")
    figure.savefig(args.output)
    print(json.dumps({"output": args.output, "distinct": distinct}))


def draw(axes: Axes, image: np.ndarray, scale: int) -> None:
    """Draws the eighteen boxes of one scale."""
    own = boxes(*image.shape[:2], SIZE, 144)[SQUARES * VIEWS * scale :][: SQUARES * VIEWS]
    height, width = own[0].height, own[0].width
    scaled = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    axes.imshow(scaled // 3 + 170)
    for number, box in enumerate(own):
        square, view = divmod(number, VIEWS)
        inset = 2 * square + 1  # so that squares which share an edge stay apart
        corner, side = (box.left + inset, box.top + inset), box.side - 2 * inset
        line = 3 if view == VIEWS - 1 else 1
        colour = COLOURS[square]
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=line))
    axes.set(title=f"short side {short_sides(SIZE)[scale]}: {height}×{width}", xticks=[], yticks=[])


if __name__ == "__main__":
    main()
