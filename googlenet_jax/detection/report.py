"""Coverage of proposals against their number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from googlenet_jax.detection.measures import Objects, best_overlaps
from googlenet_jax.detection.proposals import Proposals, interleave

COUNTS = (10, 50, 100, 200, 500, 1000, 2000)
TOGETHER = "+"


def coverage_table(
    truth: Sequence[Objects], methods: Mapping[str, Proposals], rows: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns a row for each method, or several joined with "+" (their best boxes in turn).

    A row holds "method", "boxes" (the mean number an image), "recall" (the share of objects
    that a box overlaps with an IoU of at least 0.5) and "at": {number: recall} with so many of
    the best boxes of each image, for the numbers that not every image stays below.
    """
    table = []
    for row in rows:
        boxes = interleave([methods[name] for name in row.split(TOGETHER)])
        counts = [len(each) for each in boxes]
        at = {count: _share(truth, boxes, count) for count in COUNTS if count < max(counts)}
        everything = _share(truth, boxes, max(counts))
        mean = float(np.mean(counts))
        table.append({"method": row, "boxes": mean, "recall": everything, "at": at})
    return table


def _share(truth: Sequence[Objects], boxes: Sequence[np.ndarray], count: int) -> float:
    best = best_overlaps(truth, [each[:count] for each in boxes])
    return float((best >= 0.5).mean()) if len(best) else float("nan")


def format_coverage(table: Sequence[Mapping[str, Any]]) -> str:
    """The table for a person, shares in percent."""
    counts = sorted({count for row in table for count in row["at"]})
    width = max(len("proposals"), *(len(row["method"]) for row in table))
    head = f"{'proposals':{width}}  {'an image':>8}  {'recall':>8}"
    lines = [head + "".join(f"{f'first {count}':>12}" for count in counts)]
    for row in table:
        line = f"{row['method']:{width}}  {row['boxes']:8.0f}  {100 * row['recall']:6.1f} %"
        shares = (row["at"].get(count) for count in counts)
        cells = "".join(f"{100 * x:10.1f} %" if x is not None else f"{'–':>12}" for x in shares)
        lines.append(line + cells)
    return "\n".join(lines)
