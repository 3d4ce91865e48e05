"""`googlenet-jax summary`: a network's layers with their sizes and costs, compared with the paper's
table or another network.
"""

import argparse
import dataclasses
import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from googlenet_jax.cli.members import add

if TYPE_CHECKING:
    from googlenet_jax.models.network import Network, PrintedTable
    from googlenet_jax.profiling.printed import Comparison
    from googlenet_jax.profiling.summary import Row, Summary


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand's arguments."""
    parser = subparsers.add_parser(
        "summary", help="a network's layers: output size, depth, parameters, multiply-adds"
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, such as googlenet")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="height and width of the image (default: the model's own)",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="classes (default: the model's own)"
    )
    parser.add_argument(
        "--width", type=float, metavar="X", help="multiplies the channels of every layer"
    )
    parser.add_argument("--stem", help="dense, separable (googlenet alone) or small")
    parser.add_argument("--no-aux", action="store_true", help="without the auxiliary heads")
    add(parser, "--option", help="of the network, such as width=0.25 or flavour=slim; repeatable")
    parser.add_argument("--compare", metavar="OTHER", help="another model, side by side")
    add(parser, "--json")


def run(args: argparse.Namespace) -> int:
    """Prints the summary; returns 0."""
    from googlenet_jax.errors import check_whole
    from googlenet_jax.profiling.summary import summarize

    model = _create(args.model, args)
    size = model.input_size
    if args.size is not None:
        size = check_whole("--size", args.size, 1)
    summary, printed = summarize(model, size), _printed(model, size)
    if args.compare:
        other_model = _create(args.compare, args)
        other = summarize(other_model, size)
        if args.json:
            names = align([row.name for row in summary.rows], [row.name for row in other.rows])
            different = [name for name in names if summary.row(name) != other.row(name)]
            entries = [_as_json(model, size, summary), _as_json(other_model, size, other)]
            _print_json({"models": entries, "different": different})
        else:
            print(comparison_text(args.model, summary, args.compare, other))
    elif args.json:
        _print_json(_as_json(model, size, summary, printed))
    else:
        print(f"{args.model}, input {_size((size, size, 3))}, {model.num_classes} classes\n")
        print(summary_text(summary, printed))
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _create(name: str, args: argparse.Namespace) -> "Network":
    from googlenet_jax.cli.members import fields
    from googlenet_jax.models.registry import create_model

    given = {
        "num_classes": args.num_classes,
        "width": args.width,
        "stem": args.stem,
        "aux_heads": False if args.no_aux else None,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    return create_model(name, **fields("--option", args.option) | flags)


def _printed(model: "Network", size: int) -> "PrintedTable | None":
    """The paper's table of the model, where there is one of exactly this."""
    from googlenet_jax.models.registry import model_options

    printed = model.printed
    return printed if printed is not None and printed.is_of(model_options(model), size) else None


def _as_json(
    model: "Network", size: int, summary: "Summary", printed: "PrintedTable | None" = None
) -> dict[str, Any]:
    from googlenet_jax.models.registry import model_name, model_options
    from googlenet_jax.profiling.printed import compare

    result: dict[str, Any] = {
        "model": {"name": model_name(model), "input_size": size, **model_options(model)},
        "rows": [dataclasses.asdict(row) for row in summary.rows],
        "depth": summary.depth,
        "totals": {"with_aux": summary.totals(aux=True), "without_aux": summary.totals(aux=False)},
    }
    if printed is not None:
        rows = compare(summary, printed)
        result["printed"] = {
            "source": printed.source,
            "rows": [{**dataclasses.asdict(row), "equal": row.equal} for row in rows],
        }
    return result


# --------------------------------------------------------------------------------------------- text


def summary_text(summary: "Summary", printed: "PrintedTable | None" = None) -> str:
    """The rows and totals as an aligned table; with `printed`, its figures beside the last layer
    that each sums up.
    """
    from googlenet_jax.profiling.printed import compare

    header = ["layer", "output", "depth", "parameters", "multiply-adds"]
    comparisons = compare(summary, printed) if printed else []
    beside = {comparison.layers[-1]: comparison for comparison in comparisons}
    has_costs = any(comparison.paper_weights is not None for comparison in comparisons)
    if printed:
        header += ["printed"]
        header += ["weights", "printed", "multiply-adds", "printed"] * has_costs + ["difference"]
    lines = [
        [*_cells(row), *(_beside(beside[row.name], has_costs) if row.name in beside else ())]
        for row in summary.rows
    ]
    has_aux = any(row.aux for row in summary.rows)
    main, everything = summary.totals(aux=False), summary.totals(aux=True)
    lines.append(
        ["total", "", str(summary.depth), f"{main['parameters']:,}", f"{main['multiply_adds']:,}"]
    )
    if has_aux:
        lines[-1][0] = "total without aux heads"
        lines.append(
            [
                "total with aux heads",
                "",
                "",
                f"{everything['parameters']:,}",
                f"{everything['multiply_adds']:,}",
            ]
        )
    text = table(header, lines, left=(0, 1, 5, len(header) - 1))
    if printed:
        note = (
            f"printed: {printed.source}; kernels' weights in K = 1024, multiply-adds in M;"
            " difference: printed against computed."
        )
        text += "\n\n" + textwrap.fill(note, _columns())
    return text


def comparison_text(name: str, summary: "Summary", other_name: str, other: "Summary") -> str:
    """Two networks side by side, rows aligned by name; a row that differs is marked with what
    differs in it.
    """
    columns = ["output", "depth", "parameters", "multiply-adds"]
    header = [
        "layer",
        *(f"{name}: {columns[0]}", *columns[1:]),
        *(f"{other_name}: {columns[0]}", *columns[1:]),
        "different",
    ]
    lines = []
    for row_name in align([row.name for row in summary.rows], [row.name for row in other.rows]):
        one, two = summary.row(row_name), other.row(row_name)
        cells = [_cells(row)[1:] if row else ["–"] * 4 for row in (one, two)]
        marks = [column for column, a, b in zip(columns, *cells, strict=True) if a != b]
        if not (one and two):
            marks = [f"only in {name if one else other_name}"]
        lines.append([row_name, *cells[0], *cells[1], ", ".join(marks)])
    for label, aux in (("total without aux heads", False), ("total with aux heads", True)):
        cells = [
            [
                "",
                str(s.depth),
                *(f"{s.totals(aux)[field]:,}" for field in ("parameters", "multiply_adds")),
            ]
            for s in (summary, other)
        ]
        lines.append([label, *cells[0], *cells[1]])
    return table(header, lines, left=(0, 1, 5, 9))


def align(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Both lists in one, each name once: those of `others` alone follow the name that they follow
    there.
    """
    merged, position = list(names), 0
    for name in others:
        if name in merged:
            position = merged.index(name) + 1
        else:
            merged.insert(position, name)
            position += 1
    return merged


def table(header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Plain text with aligned columns: those numbered in `left` to the left, the others to the
    right. Lines may be short.

    Columns that don't fit the terminal (80 columns where there is none) follow in a table of their
    own, each row with its name, and without the rows that say nothing there.
    """
    rows = [list(header), *([*line, *[""] * (len(header) - len(line))] for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    space = _columns() - widths[0]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(header)):
        if blocks[-1] and sum(widths[c] + 2 for c in (*blocks[-1], column)) > space:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(
        _block(rows, [0, *block], left, every=not number) for number, block in enumerate(blocks)
    )


def _block(
    rows: Sequence[Sequence[str]], columns: Sequence[int], left: Sequence[int], every: bool
) -> str:
    """The table of these columns, the last of them folded where it is too wide, of every row or of
    those that say something there.
    """
    head, *body = ([row[column] for column in columns] for row in rows)
    chosen = [head, *(row for row in body if every or any(row[1:]))]
    widths = [max(len(row[place]) for row in chosen) for place in range(len(columns))]
    left_over = _columns() - sum(widths[:-1]) - 2 * len(widths) + 2
    widths[-1] = min(widths[-1], max(12, left_over))
    folded = [part for row in chosen for part in _fold(row, widths[-1])]
    folded.insert(1, ["─" * width for width in widths])
    aligned = (
        "  ".join(
            f"{cell:{'<' if column in left else '>'}{width}}"
            for cell, column, width in zip(row, columns, widths, strict=True)
        )
        for row in folded
    )
    return "\n".join(line.rstrip() for line in aligned)


def _fold(row: Sequence[str], width: int) -> list[list[str]]:
    first, *more = textwrap.wrap(row[-1], width) or [""]
    return [[*row[:-1], first], *([*[""] * (len(row) - 1), part] for part in more)]


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _size(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape)


def _cells(row: "Row") -> list[str]:
    counts = [
        f"{count:,}" if count else "" for count in (row.depth, row.parameters, row.multiply_adds)
    ]
    return [row.name, _size(row.output), *counts]


def _beside(comparison: "Comparison", has_costs: bool) -> list[str]:
    differences = {
        "weights": comparison.weights_difference,
        "multiply-adds": comparison.multiply_adds_difference,
    }
    marks = [
        f"{what} {percent:+.1f} %" for what, percent in differences.items() if percent is not None
    ]
    if comparison.output != comparison.paper_output:
        marks.insert(0, f"output {_size(comparison.paper_output)}")
    remarks = [f"with {layer}" for layer in comparison.layers[:-1]] + [comparison.note] * bool(
        comparison.note
    )
    costs = [""] * 4
    if comparison.paper_weights is not None:
        costs = [
            f"{comparison.weights:.1f}K",
            f"{comparison.paper_weights:g}K",
            f"{comparison.multiply_adds:.1f}M",
            f"{comparison.paper_multiply_adds:g}M",
        ]
    verdict = (", ".join(marks) or "equal") + "".join(f" ({remark})" for remark in remarks)
    return [_size(comparison.paper_output), *(costs if has_costs else ()), verdict]
