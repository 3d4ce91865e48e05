"""Precision and recall, density and coverage, from distances to nearest neighbours; on the host."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from googlenet_jax.errors import UserError

_BLOCK = 1024  # rows whose distances are held at once


class Neighbourhoods(NamedTuple):
    """All in 0–1, but density, which may exceed 1.

    Precision: the share of generated images within a real image's neighbourhood, the ball that
    reaches to its k-th nearest real neighbour; recall the other way round (1904.06991). Density:
    how many real neighbourhoods a generated image lies in, divided by k; coverage: the share of
    real images whose neighbourhood holds a generated one (2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(
    real: np.ndarray, generated: np.ndarray, *, k: int = 3, k_density: int = 5
) -> Neighbourhoods:
    """The four figures of features [N, d] and [M, d], in float64.

    Args:
      k: of precision and recall, the paper's 3. k_density: of density and coverage, theirs 5.
    Raises:
      UserError: k or fewer images on a side, or sides of different widths.
    """
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"features: expected as many on both sides, found {real.shape[1]} and "
            f"{generated.shape[1]}"
        )
    if min(len(real), len(generated)) <= max(k, k_density):
        raise UserError(
            f"neighbours: expected more than {max(k, k_density)} images on each side, found "
            f"{len(real)} and {len(generated)}"
        )
    # About their common mean: squares of distances then lose fewer digits.
    centre = np.asarray(real, np.float64).mean(0)
    real, generated = real - centre, generated - centre
    real_radii = _radii(real, (k, k_density))
    generated_radii = _radii(generated, (k,))[:, 0]
    precise: list[Any] = []
    dense: list[Any] = []
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for squares in _blocks(generated, real, rows=len(generated)):
        start = len(precise)
        within = squares <= real_radii[:, 0]
        precise.extend(np.asarray(within.any(1)))
        inside = squares < real_radii[:, 1]
        dense.extend(inside.sum(1))
        covered |= inside.any(0)
        radii = generated_radii[start : start + len(squares)]
        recalled |= (squares <= radii[:, None]).any(0)
    return Neighbourhoods(
        float(np.mean(precise)),
        float(recalled.mean()),
        float(np.mean(dense)) / k_density,
        float(covered.mean()),
    )


def _radii(points: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Squared distances [N, len(ks)] to the k-th nearest other point."""
    found = []
    start = 0
    for squares in _blocks(points, points, rows=len(points)):
        rows = np.arange(len(squares))
        squares[rows, start + rows] = -1.0  # the point itself, whatever rounding made of it
        found.append(np.partition(squares, ks, axis=1)[:, list(ks)])
        start += len(squares)
    return np.concatenate(found)


def _blocks(x: np.ndarray, y: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Squared distances, a block of x's rows at a time: float64 [≤ _BLOCK, len(y)]."""
    norms = (y * y).sum(1)
    for start in range(0, rows, _BLOCK):
        part = x[start : start + _BLOCK]
        squares = (part * part).sum(1)[:, None] + norms - 2 * (part @ y.T)
        yield np.clip(squares, 0, None)
