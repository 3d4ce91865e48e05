"""Coverage of proposals against their number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from googlenet_jax.detection.measures import COCO_AREAS, Objects, best_overlaps
from googlenet_jax.detection.proposals import Proposals, interleave

COUNTS = (10, 50, 100, 200, 500, 1000, 2000)
TOGETHER = "+"


def recall_table(
    truth: Sequence[Objects], methods: Mapping[str, Proposals], rows: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns a row for each method, or several joined with "+" (their best boxes in turn).

    A row holds "method", "boxes" (the mean number an image), "recall" (the share of objects
    that a box overlaps with an IoU of at least 0.5), "small" (that of the objects of less than
    32² pixels, COCO's small ones; None without one) and "at": {number: recall} with so many of
    the best boxes of each image, for the numbers that not every image stays below.
    """
    sizes = np.concatenate([np.zeros(0), *(each.areas[~each.ignored] for each in truth)])
    small = sizes < COCO_AREAS["_small"][1]
    table = []
    for row in rows:
        boxes = interleave([methods[name] for name in row.split(TOGETHER)])
        counts = [len(each) for each in boxes]
        at = {count: _share(truth, boxes, count) for count in COUNTS if count < max(counts)}
        met = best_overlaps(truth, boxes) >= 0.5
        found = {
            "method": row,
            "boxes": float(np.mean(counts)),
            "recall": float(met.mean()) if len(met) else float("nan"),
            "small": float(met[small].mean()) if small.any() else None,
            "at": at,
        }
        table.append(found)
    return table


def _share(truth: Sequence[Objects], boxes: Sequence[np.ndarray], count: int) -> float:
    best = best_overlaps(truth, [each[:count] for each in boxes])
    return float((best >= 0.5).mean()) if len(best) else float("nan")


def format_recall(table: Sequence[Mapping[str, Any]]) -> str:
    """The table for a person, shares in percent."""
    counts = sorted({count for row in table for count in row["at"]})
    width = max(len("proposals"), *(len(row["method"]) for row in table))
    head = f"{'proposals':{width}}  {'an image':>8}  {'recall':>8}  {'small':>8}"
    lines = [head + "".join(f"{f'first {count}':>12}" for count in counts)]
    for row in table:
        line = f"{row['method']:{width}}  {row['boxes']:8.0f}  {100 * row['recall']:6.1f} %"
        small = row["small"]
        line += f"  {100 * small:6.1f} %" if small is not None else f"  {'–':>8}"
        shares = (row["at"].get(count) for count in counts)
        cells = "".join(f"{100 * x:10.1f} %" if x is not None else f"{'–':>12}" for x in shares)
        lines.append(line + cells)
    return "\n".join(lines)
