"""A network's computed figures compared with those that its paper printed; the network's class
holds the printed table.
"""

import dataclasses

from googlenet_jax.models.network import PrintedRow, PrintedTable
from googlenet_jax.profiling.summary import Summary

K = 1024
M = 1_000_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A printed row compared with the computed one; None where the paper prints nothing.

    Attributes:
      layers: our rows that it sums up.
      output: (height, width, channels), computed; weights: of the kernels, in K = 1024, and
        multiply_adds: in millions, both computed;
        `paper_…` as printed.
      weights_difference, multiply_adds_difference: printed relative to computed, in percent; None
        where the two are within one unit of the printed figure.
      note: why they differ, where it is known; else "".
    """

    layers: tuple[str, ...]
    output: tuple[int, ...]
    paper_output: tuple[int, ...]
    weights: float
    paper_weights: float | None
    weights_difference: float | None
    multiply_adds: float
    paper_multiply_adds: float | None
    multiply_adds_difference: float | None
    note: str

    @property
    def equal(self) -> bool:
        """Whether all that is printed agrees."""
        differences = (self.weights_difference, self.multiply_adds_difference)
        return self.output == self.paper_output and differences == (None, None)


def compare(summary: Summary, printed: PrintedTable) -> list[Comparison]:
    """Lays a network's figures beside the printed ones, row by row."""
    return [_compare_row(summary, printed, row) for row in printed.rows]


def _compare_row(summary: Summary, printed: PrintedTable, row: PrintedRow) -> Comparison:
    ours = [found for layer in row.layers if (found := summary.row(layer)) is not None]
    weights = sum(layer.weights for layer in ours) / K
    multiply_adds = sum(layer.multiply_adds for layer in ours) / M
    weights_difference = _difference(weights, row.weights, row.weights_unit)
    multiply_adds_difference = _difference(multiply_adds, row.multiply_adds, 1.0)
    differs = weights_difference is not None or multiply_adds_difference is not None
    return Comparison(
        layers=row.layers,
        output=ours[-1].output,
        paper_output=row.output,
        weights=weights,
        paper_weights=row.weights,
        weights_difference=weights_difference,
        multiply_adds=multiply_adds,
        paper_multiply_adds=row.multiply_adds,
        multiply_adds_difference=multiply_adds_difference,
        note=printed.notes.get(row.layers[-1], "") if differs else "",
    )


def _difference(computed: float, printed: float | None, unit: float) -> float | None:
    """How far `printed` lies from `computed`, in percent of `computed`; None where they are within
    one `unit`, or none is printed.
    """
    if printed is None or abs(printed - computed) <= unit:
        return None
    return 100 * (printed - computed) / computed
