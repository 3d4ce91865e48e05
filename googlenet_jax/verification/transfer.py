"""Random weights, moved from one side to the other by the alignment, and the table that says how."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network, variable_shapes
from googlenet_jax.runtime.storage import write_text
from googlenet_jax.verification.align import (
    NEUTRAL,
    Alignment,
    Layouts,
    into_leaf,
    paired_affines,
    roles_of,
    units_of,
)
from googlenet_jax.verification.graph import Graph, Node


@dataclasses.dataclass(frozen=True)
class Move:
    """One of the candidate's entries and what it gets.

    Attributes:
      source: the reference's entry, "" where it gets a constant `fill`.
      through: the shape that the source is taken in, () for its own; axes: the order of that
        shape's axes, () where it stays; shape: what it is then laid out as.
    """

    target: str
    source: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    through: tuple[int, ...] = ()
    fill: float = 0.0


def random_variables(model: Network, size: int, dtype: str, seed: int = 0) -> dict[str, Any]:
    """Random variables of one of this package's networks, none of them zero or one; kernels such
    that activations keep their size.
    """
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        part, shape = path[-1].key, leaf.shape
        if "kernel" in part:
            value = generator.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif part in ("var", "scale"):
            value = generator.uniform(0.5, 1.5, shape)
        else:
            value = generator.normal(0, 0.2, shape)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model, size))


def random_leaves(graph: Graph, seed: int = 0) -> dict[str, Tensor]:
    """The same for any network: each leaf by what it does in the graph. A leaf that does nothing
    that is known keeps its value.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda like: torch.randn(like.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    found: dict[str, Tensor] = {}
    for unit in units_of(graph):
        if unit.leaf and unit.leaf not in found:
            fan_in = int(np.prod(unit.shape[:3]))
            found[unit.leaf] = normal(graph.leaves[unit.leaf]) * (2 / fan_in) ** 0.5
    for node in graph.nodes():
        if node.op == "affine":
            for role, name in roles_of(node, graph.leaves).leaves.items():
                like = graph.leaves[name]
                uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64) + 0.5
                found[name] = uniform if role in ("scale", "var") else 0.2 * normal(like)
    return found


def moves(
    alignment: Alignment, reference: Graph, candidate: Graph, usual: Layouts
) -> tuple[list[Move], dict[str, str]]:
    """What each of the candidate's entries gets.

    Returns the moves, and the candidate's kernels that can't be moved to, with the reason in words.
    """
    found: dict[str, Move] = {}
    stuck: dict[str, str] = {}
    for r, c in alignment.pairs.items():
        mine, of_candidate = alignment.reference[r], alignment.candidate[c]
        if of_candidate.leaf in found:
            continue  # shared: it keeps the first layer's
        if not mine.leaf or not of_candidate.leaf:
            stuck[of_candidate.leaf or of_candidate.name] = (
                "its kernel is computed from several weights"
            )
            continue
        made = _kernel_move(mine, of_candidate, reference, candidate, usual)
        if isinstance(made, str):
            stuck[of_candidate.leaf] = made
        else:
            found[of_candidate.leaf] = made
    for a, b in paired_affines(alignment, reference, candidate):
        for move in _affine_moves(a, b, reference, candidate):
            found.setdefault(move.target, move)
    return list(found.values()), stuck


def _kernel_move(
    mine: Any, of_candidate: Any, reference: Graph, candidate: Graph, usual: Layouts
) -> Move | str:
    source, target = reference.leaves[mine.leaf], candidate.leaves[of_candidate.leaf]
    if mine.shape != of_candidate.shape:
        one, other = ("×".join(map(str, unit.shape)) for unit in (of_candidate, mine))
        return f"its kernel is {one}, the reference's {other}"
    # Where each number of the source goes, found by moving the numbers 0, 1, 2, …
    marked = torch.arange(source.numel(), dtype=torch.float64).reshape(source.shape)
    kernel = mine.node.attrs["kernel"].under({mine.leaf: marked})
    placed = into_leaf(kernel, target, of_candidate.leaf, of_candidate.node.attrs["kernel"], usual)
    if placed is None:
        return "its kernel is no plain rearrangement of its weight"
    for through in _shapes(source, mine.shape):
        orders = itertools.permutations(range(len(through)))
        shapes = {axes: tuple(through[i] for i in axes) for axes in orders}
        for axes in sorted(shapes, key=lambda each: shapes[each] != tuple(target.shape)):
            turned = marked.reshape(through).permute(*axes)
            if torch.equal(turned.reshape(placed.shape), placed):
                own = through == tuple(source.shape)
                return Move(
                    of_candidate.leaf, mine.leaf, tuple(target.shape), axes, () if own else through
                )
    return "no order of axes makes its weight of the reference's"


def _shapes(source: Tensor, kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """What a kernel's leaf can be taken as: its own shape, and with a flattened map unfolded."""
    h, w, i, o = kernel
    own = [tuple(source.shape)]
    return (
        own if source.ndim == 4 else [*own, (h, w, i, o), (o, i, h, w), (i, h, w, o), (o, h, w, i)]
    )


def _affine_moves(a: Node, b: Node, reference: Graph, candidate: Graph) -> list[Move]:
    if a.op != "affine" or b.op != "affine":
        names = sorted(a.attrs.get("leaves", ())), sorted(b.attrs.get("leaves", ()))
        pairs = zip(*names, strict=False)
        shapes = lambda n, g: tuple(g.leaves[n].shape)  # noqa: E731
        return [
            Move(y, x, shapes(y, candidate))
            for x, y in pairs
            if reference.leaves[x].numel() == candidate.leaves[y].numel()
        ]
    mine, of_candidate = roles_of(a, reference.leaves), roles_of(b, candidate.leaves)
    found = []
    for role, name in of_candidate.leaves.items():
        shape = tuple(candidate.leaves[name].shape)
        source = mine.leaves.get(role, "")
        fits = source and reference.leaves[source].numel() == candidate.leaves[name].numel()
        found.append(Move(name, source if fits else "", shape, fill=NEUTRAL[role]))
    return found


def moved(
    moves_: list[Move], reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The candidate's new values by name."""
    found = {}
    for move in moves_:
        if not move.source:
            found[move.target] = torch.full(move.shape, move.fill, dtype=torch.float64)
            continue
        value = reference[move.source]
        value = value.reshape(move.through) if move.through else value
        value = value.permute(*move.axes) if move.axes else value
        found[move.target] = value.reshape(move.shape)
    return found


# ------------------------------------------------------------------------------------ the table


def save_map(path: str | Path, alignment: Alignment) -> None:
    """Writes which kernel is which as JSON, {the reference's: the candidate's}, to be edited.

    Raises UserError where the file can't be written.
    """
    pairs = {
        alignment.reference[r].leaf: alignment.candidate[c].leaf
        for r, c in alignment.pairs.items()
        if alignment.reference[r].leaf and alignment.candidate[c].leaf
    }
    text = json.dumps(pairs, indent=2, ensure_ascii=False) + "\n"
    write_text(path, text)


def load_map(path: str | Path) -> dict[str, str]:
    """Reads what `save_map` writes.

    Raises UserError where it is no such file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--map: {path} can't be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f"--map: expected {path} to hold {{our kernel: their kernel}}")
    return found


def code_of(moves_: list[Move], title: str) -> str:
    """The conversion as a Python function of the reference's weights by name (NumPy arrays)."""
    lines = [
        "def convert(reference):",
        f'    """{title}: the candidate\'s weights from the reference\'s, by name."""',
        "    import numpy as np",
        "",
        "    return {",
    ]
    for move in moves_:
        if not move.source:
            value = f"np.full({move.shape!r}, {move.fill})"
        else:
            value = f"reference[{move.source!r}]"
            if move.through:
                value += f".reshape{move.through!r}"
            if move.axes and move.axes != tuple(range(len(move.axes))):
                value += f".transpose{move.axes!r}"
            if not move.axes or move.through or len(move.axes) != len(move.shape):
                value += f".reshape({', '.join(map(str, move.shape))})"
        lines.append(f"        {move.target!r}: {value},")
    return "\n".join([*lines, "    }", ""])
