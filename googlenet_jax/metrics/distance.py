"""The Fréchet distance between two normal distributions, in float64 on the host."""

import numpy as np
import scipy.linalg

from googlenet_jax.errors import UserError
from googlenet_jax.metrics.moments import Statistics

# Of the result: where rounding could reach more, the slower and exacter way is taken.
_PRECISION = 1e-7
# Of the trace: what the arithmetic of covariances themselves leaves.
_FLOOR = 1e-13


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (1706.08500, equation 6), symmetric to rounding.

    With Σ = LLᵀ the last trace is the sum of the singular values of L₁ᵀL₂, or of the square roots
    of the eigenvalues of L₁ᵀΣ₂L₁. No square root of a matrix is taken, nothing is added to a
    diagonal, and singular covariances are no special case: L has as many columns as Σ has rank.

    Raises UserError for statistics of different widths, or that are not finite.
    """
    if first.width != second.width:
        raise UserError(
            f"statistics: expected as many features on both sides, found {first.width} and "
            f"{second.width}: they are of different layers or networks"
        )
    for side in (first, second):
        if not (np.isfinite(side.mean).all() and np.isfinite(side.cov).all()):
            raise UserError("statistics: expected finite means and covariances, found NaN or inf")
    step = first.mean - second.mean
    trace = float(np.trace(first.cov) + np.trace(second.cov))
    shared = _trace_of_root(first.cov, second.cov, float(step @ step) + trace)
    return max(float(step @ step) + trace - 2 * shared, 0.0)


def _trace_of_root(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """tr (ab)^½ of two positive semi-definite matrices.

    Eigenvalues are three times as quick as singular values, but an error of δ in one that is nearly
    zero is one of √δ in its root: where that could show in the distance, singular values are taken.
    """
    left, right = sorted((_factor(a), _factor(b)), key=lambda factor: factor.shape[1])
    if not left.shape[1]:
        return 0.0
    product = right.T @ left
    values = scipy.linalg.eigvalsh(product.T @ product)
    noise = 2 * np.finfo(np.float64).eps * max(values[-1], 0)  # of LAPACK's eigenvalues, as found
    roots = np.sqrt(np.clip(values, 0, None))
    doubt = (noise / np.maximum(roots, np.sqrt(noise) or 1)).sum()
    distance = scale - 2 * roots.sum()
    if doubt > max(_PRECISION * distance, _FLOOR * scale):
        return float(scipy.linalg.svdvals(product).sum())
    return float(roots.sum())


def _factor(cov: np.ndarray) -> np.ndarray:
    """L [D, rank] with LLᵀ = cov: Cholesky's, pivoted, which ends at the matrix's rank."""
    lower, pivots, rank, info = scipy.linalg.lapack.dpstrf(cov, lower=1)
    if info < 0:
        raise AssertionError(f"dpstrf refuses its argument {-info}")
    factor = np.empty((len(cov), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor
