"""Runs beside each other: what their configs differ in, and mean and spread over their seeds."""

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from googlenet_jax.errors import UserError, nearest
from googlenet_jax.runtime.storage import reaching, run_folder
from googlenet_jax.training.folder import read_config
from googlenet_jax.training.writers import METRICS_FILE, read_metrics

SEEDS = ("seed", "init_seed", "data.subset_seed")
# What may differ between runs that are compared without being said.
_UNSAID = ("data.dir", "data.threads", "data.workers")
FORMATS = ("text", "csv", "markdown", "latex")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder as it was given, its config's fields by dotted name, and its lines."""

    folder: str
    fields: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]

    def last(self, split: str, weights: str) -> Mapping[str, Any] | None:
        """The last evaluation of a split; "" is the first split, and the average where there is
        one.
        """
        found = [line for line in self.lines if "weights" in line]
        split = split or next((line["split"] for line in found), "")
        found = [line for line in found if line["split"] == split]
        weights = weights or ("ema" if any(line["weights"] == "ema" for line in found) else "raw")
        return next((line for line in reversed(found) if line["weights"] == weights), None)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but seeds.

    Attributes:
      values: what tells it from the other groups, by field.
    """

    values: Mapping[str, Any]
    runs: Sequence[Run]

    @property
    def has_spread(self) -> bool:
        """Whether it is several runs, no two of the same seeds."""
        seeds = {tuple(run.fields.get(name) for name in SEEDS) for run in self.runs}
        return len(self.runs) == len(seeds) > 1

    @property
    def name(self) -> str:
        """The values in words; the folder's name where there is one group alone."""
        if not self.values:
            return Path(self.runs[0].folder).name
        return ", ".join(f"{name.split('.')[-1]}={value}" for name, value in self.values.items())


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Reads runs, or all that lie in folders of runs; those not begun yet are left out.

    Raises UserError where a folder is neither.
    """
    runs = []
    for folder in folders:
        with reaching(folder):
            path = run_folder(folder)
            inside = (
                [] if (path / METRICS_FILE).exists() else sorted(path.glob(f"*/{METRICS_FILE}"))
            )
            places = [each.parent for each in inside] or [path]
            for place in places:
                lines = read_metrics(place / METRICS_FILE)
                fields = flatten_dict(read_config(place) or {}, sep=".")
                runs.append(Run(str(place) if inside else folder, fields, lines))
    return runs


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Returns runs that differ in nothing but seeds together, in the order in which they came."""
    names = sorted({name for run in runs for name in run.fields} - {*SEEDS, *_UNSAID})
    differ = [name for name in names if len({_said(run.fields.get(name)) for run in runs}) > 1]
    groups: dict[str, Group] = {}
    for run in runs:
        values = {name: run.fields.get(name) for name in differ}
        # A folder without a config is a group of its own.
        key = json.dumps(values, sort_keys=True) if run.fields else run.folder
        group = groups.setdefault(key, Group(values, []))
        assert isinstance(group.runs, list)
        group.runs.append(run)
    return list(groups.values())


def _said(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Table:
    """Groups by what they differ in, with (mean, standard deviation) of each metric; the deviation
    of one run is None.
    """

    fields: Sequence[str]
    metrics: Sequence[str]
    rows: Sequence[tuple[Mapping[str, Any], int, Mapping[str, tuple[float, float | None] | None]]]

    def to_json(self) -> list[dict[str, Any]]:
        """A dictionary a row."""
        return [
            {
                **values,
                "runs": count,
                **{
                    name: None if cell is None else {"mean": cell[0], "sd": cell[1]}
                    for name, cell in cells.items()
                },
            }
            for values, count, cells in self.rows
        ]

    def text(self, form: str) -> str:
        """The table in one of FORMATS; shares such as top1 are in percent but in CSV."""
        if form == "csv":
            return self._csv()
        plus = r" $\pm$ " if form == "latex" else " ± "
        titles = [*_short(self.fields), "runs", *map(_title, self.metrics)]
        rows = [
            [*(_shown(values[name]) for name in self.fields), str(count)]
            + [_cell(name, cells[name], plus) for name in self.metrics]
            for values, count, cells in self.rows
        ]
        left = len(self.fields)
        return {"text": _text, "markdown": _markdown, "latex": _latex}[form](titles, rows, left)

    def _csv(self) -> str:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        figures = [f"{name}_{part}" for name in self.metrics for part in ("mean", "sd")]
        writer.writerow([*self.fields, "runs", *figures])
        for values, count, cells in self.rows:
            parts = [
                "" if part is None else repr(part)
                for name in self.metrics
                for part in cells[name] or (None, None)
            ]
            writer.writerow([*(_shown(values[name]) for name in self.fields), count, *parts])
        return file.getvalue()


def tabulate(
    runs: Sequence[Run], metrics: Sequence[str] = (), split: str = "", weights: str = ""
) -> Table:
    """Returns the table of the runs' last evaluations: mean and sample standard deviation over the
    seeds.

    Args:
      metrics: their names; by default loss and the config's.
      split, weights: of the evaluation; "" is the first split, and the average where there is one.
    Raises:
      UserError: no run has such an evaluation or metric.
    """
    groups = grouped(runs)
    lines = {id(run): run.last(split, weights) for run in runs}
    known = list(dict.fromkeys(name for line in lines.values() if line for name in line))
    known = [n for n in known if n not in ("step", "epoch", "split", "weights", "examples")]
    if not known:
        splits = sorted({line["split"] for run in runs for line in run.lines if "weights" in line})
        what = " ".join(filter(None, (split, weights))) or "any split"
        raise UserError(f"no evaluation of {what} in these runs; they have {splits or 'none'}")
    for name in metrics:
        if name not in known:
            raise UserError(
                f"--metrics: expected some of {', '.join(known)}, found"
                f" {name!r}{nearest(name, known)}"
            )
    chosen = list(metrics or known)
    rows = []
    for group in groups:
        found = [line for run in group.runs if (line := lines[id(run)])]
        cells = {name: _spread([line[name] for line in found if name in line]) for name in chosen}
        rows.append((group.values, len(found), cells))
    return Table(list(groups[0].values), chosen, rows)


def _spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


def _is_share(name: str) -> bool:
    return "loss" not in name


def _title(name: str) -> str:
    return f"{name}, %" if _is_share(name) else name


def _cell(name: str, cell: tuple[float, float | None] | None, plus: str) -> str:
    if cell is None:
        return "–"
    factor, digits = (100, 2) if _is_share(name) else (1, 3)
    mean, deviation = cell
    text = f"{factor * mean:.{digits}f}"
    return text if deviation is None else f"{text}{plus}{factor * deviation:.{digits}f}"


def _short(fields: Sequence[str]) -> list[str]:
    """The last words of the fields' names, or more where two would be the same."""
    last = [name.split(".")[-1] for name in fields]
    return [name if last.count(word) > 1 else word for name, word in zip(fields, last, strict=True)]


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return "–" if value is None else str(value)


def _text(titles: list[str], rows: list[list[str]], left: int) -> str:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
    return "\n".join(lines) + "\n"


def _markdown(titles: list[str], rows: list[list[str]], left: int) -> str:
    rule = ["---" if place < left else "---:" for place in range(len(titles))]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (titles, rule, *rows))
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


_LATEX = {**{sign: f"\\{sign}" for sign in "&%#_{}"}, "~": r"\textasciitilde{}"}


def _latex(titles: list[str], rows: list[list[str]], left: int) -> str:
    """A tabular of booktabs."""

    def row(cells: list[str]) -> str:
        texts = [
            r" $\pm$ ".join(
                "".join(_LATEX.get(sign, sign) for sign in part) for part in cell.split(r" $\pm$ ")
            )
            for cell in cells
        ]
        return " & ".join(texts) + " \\\\\n"

    columns = "l" * left + "r" * (len(titles) - left)
    body = "".join(map(row, rows))
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{row(titles)}\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )


def mean_lines(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The lines of several runs as one's: each figure's mean over the runs that have the step, and
    its standard deviation as NAME_sd.
    """
    together: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        for line in run.lines:
            key = line["step"], line["split"], line.get("weights")
            together.setdefault(key, []).append(line)
    means = []
    for lines in together.values():
        whole: dict[str, Any] = dict(lines[0])
        for name in lines[0].keys() - {"step", "split", "weights", "epoch", "examples"}:
            values = [line[name] for line in lines if name in line]
            whole[name] = statistics.fmean(values)
            if len(values) > 1:
                whole[f"{name}_sd"] = statistics.stdev(values)
        means.append(whole)
    return sorted(means, key=lambda line: line["step"])
