"""The kernel distance (KID): an unbiased squared maximum mean discrepancy, on the host."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from googlenet_jax.errors import UserError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class KernelDistance(NamedTuple):
    """The subsets' mean and standard deviation."""

    mean: float
    std: float


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y/d + 1)³, KID's (1801.01401): float64 [N, d], [M, d] → [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(bandwidth: float = 10.0) -> Kernel:
    """exp(−‖x − y‖² / 2σ²), CMMD's (2401.09603, with CLIP's features of unit length)."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)
        return np.exp(-np.clip(squares, 0, None) / (2 * bandwidth**2))

    return kernel


def squared_mmd(x: np.ndarray, y: np.ndarray, kernel: Kernel = cubic) -> float:
    """The unbiased estimate, which may be below zero; x [N, d], y [M, d]."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def within(z: np.ndarray) -> float:
        values = kernel(z, z)
        return (values.sum() - np.trace(values)) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    kernel: Kernel = cubic,
) -> KernelDistance:
    """The mean over random subsets, drawn as torch-fidelity draws them (its seed is the default).

    Args:
      first, second: features [N, d] and [M, d].
      subset_size: of each side, without repetition within a subset.
    Raises:
      UserError: fewer examples than a subset, or sides of different widths.
    """
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"features: expected as many on both sides, found {first.shape[1]} and"
            f" {second.shape[1]}"
        )
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise UserError(
            f"subset_size: expected 2 to {min(len(first), len(second)):,}, the smaller set's"
            f" images, found {subset_size:,}; a value from smaller subsets compares with none from"
            " 1,000"
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = first[random.choice(len(first), subset_size, replace=False)]
        y = second[random.choice(len(second), subset_size, replace=False)]
        values.append(squared_mmd(x, y, kernel))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))
