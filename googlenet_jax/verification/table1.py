"""Table 1 of "Going deeper with convolutions" (arXiv 1409.4842), as printed: what it says of weights and multiply-adds.

"K" is 1024 there and "M" a million; the weights are those of the kernels, without biases. The printed figures follow no single rounding.
"""

import dataclasses
from collections.abc import Mapping

K = 1024
M = 1_000_000


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A printed row.

    Attributes:
      layers: our rows that it sums up.
      weights: in K, multiply_adds: in M, both as printed.
      weights_unit: one unit of the last printed digit, in K.
    """

    layers: tuple[str, ...]
    weights: float
    multiply_adds: float
    weights_unit: float = 1.0


TABLE_1 = (
    PaperRow(("conv1",), 2.7, 34, weights_unit=0.1),
    PaperRow(("conv2_reduce", "conv2"), 112, 360),
    PaperRow(("inception_3a",), 159, 128),
    PaperRow(("inception_3b",), 380, 304),
    PaperRow(("inception_4a",), 364, 73),
    PaperRow(("inception_4b",), 437, 88),
    PaperRow(("inception_4c",), 463, 100),
    PaperRow(("inception_4d",), 580, 119),
    PaperRow(("inception_4e",), 840, 170),
    PaperRow(("inception_5a",), 1072, 54),
    PaperRow(("inception_5b",), 1388, 71),
    PaperRow(("head",), 1000, 1),
)

DENSE_STEM = "the paper's row fits the separable stem"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A printed row beside the computed one.

    Attributes:
      layers: our rows that it sums up.
      weights: in K, multiply_adds: in M, both computed; `paper_…` as printed.
      weights_difference, multiply_adds_difference: printed relative to computed, in percent; None where the two are within one unit of
        the printed figure.
      note: why they differ, where it is known; else "".
    """

    layers: tuple[str, ...]
    weights: float
    paper_weights: float
    weights_difference: float | None
    multiply_adds: float
    paper_multiply_adds: float
    multiply_adds_difference: float | None
    note: str

    @property
    def equal(self) -> bool:
        return self.weights_difference is None and self.multiply_adds_difference is None


def difference(computed: float, printed: float, unit: float) -> float | None:
    """How far `printed` lies from `computed`, in percent of `computed`; None where they are within one `unit`."""
    return None if abs(printed - computed) <= unit else 100 * (printed - computed) / computed


def compare(weights: Mapping[str, int], multiply_adds: Mapping[str, int]) -> list[Comparison]:
    """Lays computed figures, by row name, beside the printed ones: `weights` are the entries of kernels, `multiply_adds` for one image."""
    comparisons = []
    for row in TABLE_1:
        ours_weights = sum(weights[layer] for layer in row.layers) / K
        ours_multiply_adds = sum(multiply_adds[layer] for layer in row.layers) / M
        weights_difference = difference(ours_weights, row.weights, row.weights_unit)
        comparisons.append(
            Comparison(
                layers=row.layers,
                weights=ours_weights,
                paper_weights=row.weights,
                weights_difference=weights_difference,
                multiply_adds=ours_multiply_adds,
                paper_multiply_adds=row.multiply_adds,
                multiply_adds_difference=difference(ours_multiply_adds, row.multiply_adds, 1.0),
                note=DENSE_STEM if row.layers == ("conv1",) and weights_difference is not None else "",
            )
        )
    return comparisons
