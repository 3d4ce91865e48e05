"""Statistics in files: pytorch-fid's and TTUR's `.npz`, ADM's, and ours, which say more."""

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.metrics.moments import Statistics
from googlenet_jax.runtime.storage import write_atomically, writing

_MOST = 1 << 33  # bytes of an array in a file; 2,048 features of a million images
# Our layer → the names of its mean and covariance, in all of these files.
NAMES = {"pool3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class StoredStatistics:
    """What a file holds.

    Attributes:
      layers: statistics by layer, "pool3" and perhaps "spatial".
      resize, weights: how images were resized, and the beginning of the weights' digest; None in
        other packages' files.
    """

    layers: dict[str, Statistics]
    resize: str | None = None
    weights: str | None = None


def read_stored(path: str | os.PathLike[str]) -> StoredStatistics:
    """Reads a file of statistics. No pickle in it is run.

    Raises:
      UserError: no such file, not an .npz, no `mu` and `sigma` in it, or of impossible shapes.
    """
    found = read_arrays(path)
    layers = {}
    count = int(found["count"]) if "count" in found else None
    for layer, (mean, cov) in NAMES.items():
        if mean in found and cov in found:
            layers[layer] = _statistics(path, found[mean], found[cov], count)
    if "pool3" not in layers:
        raise UserError(
            f"{path}: expected arrays mu and sigma, found {', '.join(found) or 'none'}; statistics"
            " are written by `googlenet-jax fid SET --output FILE.npz` and by pytorch-fid"
            " --save-stats"
        )
    resize, weights = (
        str(found[name]) if name in found else None for name in ("resize", "weights")
    )
    return StoredStatistics(layers, resize, weights)


def read_statistics(path: str | os.PathLike[str], layer: str = "pool3") -> Statistics:
    """The statistics of one layer, "pool3" or "spatial"; see `read_stored`."""
    layers = read_stored(path).layers
    if layer not in layers:
        raise UserError(f"{path}: has no statistics of {layer}, only of {', '.join(layers)}")
    return layers[layer]


def write_statistics(
    path: str | os.PathLike[str],
    pool3: Statistics,
    spatial: Statistics | None = None,
    *,
    resize: str | None = None,
    weights: str | None = None,
) -> None:
    """Writes a file that pytorch-fid and ADM's evaluator read too: mu, sigma (and mu_s, sigma_s),
    with count, resize and weights beside them. Raises UserError where the disk refuses.
    """
    arrays: dict[str, Any] = {"mu": pool3.mean, "sigma": pool3.cov}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    about = {"count": pool3.count, "resize": resize, "weights": weights}
    arrays |= {name: np.array(value) for name, value in about.items() if value is not None}
    write_arrays(path, arrays)


def write_arrays(path: str | os.PathLike[str], arrays: dict[str, Any]) -> None:
    """Writes an .npz, whole or not at all."""
    goal = Path(path)
    if goal.suffix != ".npz":
        raise UserError(f"{path}: expected a name that ends in .npz")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    with writing(goal):
        write_atomically(goal, write)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz but objects, which are pickled; see `read_stored` for what is raised."""
    try:
        with zipfile.ZipFile(path) as archive:
            large = [info.filename for info in archive.infolist() if info.file_size > _MOST]
        if large:
            raise UserError(f"{path}: {large[0]} is of more than {_MOST >> 30} GiB")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        reason = one_line(error)
        raise UserError(
            f"{path}: expected an .npz file of plain arrays: {reason or type(error).__name__}"
        ) from error


def _statistics(path: Any, mean: np.ndarray, cov: np.ndarray, count: int | None) -> Statistics:
    fits = mean.ndim == 1 and cov.shape == (len(mean),) * 2
    if not fits or mean.dtype.kind != "f" or cov.dtype.kind != "f":
        raise UserError(
            f"{path}: expected a mean [D] and a covariance [D, D] of floats, found "
            f"{mean.dtype} {list(mean.shape)} and {cov.dtype} {list(cov.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"{path}: its mean or covariance holds NaN or inf")
    return Statistics(mean.astype(np.float64), cov.astype(np.float64), count)
