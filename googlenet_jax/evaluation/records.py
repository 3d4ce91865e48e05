"""What an ensemble says of each example, kept in a file, so that a stopped evaluation resumes."""

import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError
from googlenet_jax.evaluation.ensemble import Ensemble, Member, average_of_prefixes
from googlenet_jax.runtime.local_storage import try_lock
from googlenet_jax.runtime.storage import writing

FORMAT_VERSION = 2
TOP = 5  # classes that a record names

Record = dict[str, Any]


def evaluate_ensemble(
    ensemble: Ensemble,
    source: Source,
    *,
    path: Path | None = None,
    threads: int,
    progress: bool = True,
) -> list[Record]:
    """Evaluates every example of `source` exactly once, whatever the batch size and the devices.

    Args:
      path: a file of JSON lines that the records are appended to as they come. Where it holds the
        beginning of this very evaluation, that is not computed again; batch size and devices may
        have changed. None keeps them in memory alone.
      threads: that read and prepare images.
      progress: whether a bar with the time left stands on standard error.
    Returns:
      For each example, in order:
        index, label: its position in the source and its class.
        rank, log_probability: of the label, [models][crops], for the average of the first models:
          how many classes stand before it (0 is a top-1 hit), and its logarithm (natural).
        alone: {"rank": …, "log_probability": …} likewise for each model by itself.
        classes, probabilities: the five most probable of all models with the most crops.
    Raises:
      UserError: images of another kind than the networks take; the file is another evaluation's,
        damaged, in use or can't be written; a model's outputs are not finite.
    """
    name = f"{source.name} {source.split}"
    ensemble.images.check(ensemble.members[0].source, name, source.channels, source.dtype)
    total, step = len(source), ensemble.images_at_a_time

    def read(first: int) -> tuple[list[np.ndarray], tuple[int, list[int]]]:
        examples = source.read(list(range(first, min(first + step, total))))
        images = [example["image"] for example in examples]
        return images, (first, [example["label"] for example in examples])

    who = {} if path is None else identity(ensemble, source)
    with RecordFile(path, who, total) as file:
        done = len(file.records)
        with _bar(source, done, progress) as bar:
            for (first, labels), values in ensemble.run(range(done, total, step), read, threads):
                _check_finite(ensemble, values, first)
                file.append(make_records(values, labels, first))
                if bar.n == done:  # compilation is no measure of what is left
                    bar.reset()
                    bar.initial = bar.n = done + len(labels)
                    bar.set_description(f"evaluating {source.split}")
                else:
                    bar.update(len(labels))
        return file.records


def _bar(source: Source, done: int, progress: bool) -> tqdm:
    return tqdm(
        desc="compiling…",
        initial=done,
        total=len(source),
        unit="image",
        leave=False,
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


def make_records(values: np.ndarray, labels: list[int], first: int) -> Iterator[Record]:
    """Makes the records of examples `first` … from log-probabilities [N, models, crops, K]."""
    together = average_of_prefixes(values)
    final = together[:, -1, -1]
    best = np.argsort(-final, axis=1, kind="stable")[:, :TOP]  # equals in the classes' order
    columns = np.array(labels)
    measured, alone = _of_labels(together, columns), _of_labels(values, columns)
    for row, label in enumerate(labels):
        yield {
            "index": first + row,
            "label": label,
            **{name: array[row].tolist() for name, array in measured.items()},
            "alone": {name: array[row].tolist() for name, array in alone.items()},
            "classes": best[row].tolist(),
            "probabilities": np.exp(final[row, best[row]]).tolist(),
        }


def _of_labels(values: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The labels' ranks and logarithms [N, models, crops]. Equals stand in the classes' order."""
    own = np.take_along_axis(values, labels[:, None, None, None], axis=-1)
    before = np.arange(values.shape[-1]) < labels[:, None, None, None]
    rank = ((values > own) | ((values == own) & before)).sum(-1)
    return {"rank": rank, "log_probability": own[..., 0].astype(np.float64)}


def _check_finite(ensemble: Ensemble, values: np.ndarray, first: int) -> None:
    bad = ~np.isfinite(values).all(axis=(2, 3))
    if bad.any():
        example, member = np.argwhere(bad)[0]
        raise UserError(
            f"{ensemble.members[member].source}: its outputs for example {first + example} are not "
            "finite; take other weights"
        )


def identity(ensemble: Ensemble, source: Source) -> dict[str, Any]:
    """Returns what makes two evaluations the same one: the examples themselves, the networks with
    their options, and how both are used; names and places of files don't. Reads the set's files.
    """
    return {
        "format_version": FORMAT_VERSION,
        "data": source.name,
        "split": source.split,
        "examples": len(source),
        "content": source.checksum(),
        "crops": list(ensemble.crops),
        "members": [_fingerprint(member) for member in ensemble.members],
    }


def _fingerprint(member: Member) -> dict[str, Any]:
    crc = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(member.variables):
        about = f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}"
        crc = zlib.crc32(about.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    names = None if member.labels is None else list(member.labels)
    return {
        "model": type(member.model).__name__,
        "options": _options(member.model),
        "classes": zlib.crc32(json.dumps(names).encode()),
        "preprocessing": member.preprocessing and member.preprocessing.to_dict(),
        "class_offset": member.class_offset,
        "crc32": crc,
    }


def _options(model: Any) -> dict[str, Any]:
    """A network's options as JSON values: files that differ in `transform_input` alone hold the
    same variables.
    """
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    plain = {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}
    return {**plain, "dtype": jnp.dtype(model.dtype).name, "name": None}


class RecordFile:
    """Records in a file of JSON lines, the first of which says of what evaluation they are."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any], total: int) -> None:
        """Opens or makes the file, and reads what it holds.

        A last line that was cut off is dropped. Raises UserError as `evaluate_ensemble` does.
        """
        self.records: list[Record] = []
        self._path, self._file = path, None
        if path is None:
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what is written survives this process's end, and nothing is written twice.
            self._file = path.open("a+b", buffering=0)
        if not try_lock(self._file):
            raise UserError(f"{path}: another evaluation writes it; wait for it to end")
        self._go_on(path, identity, total)

    def _go_on(self, path: Path, identity: Mapping[str, Any], total: int) -> None:
        assert self._file is not None
        whole = 0
        self._file.seek(0)  # another handle, when closed, would end the lock
        for number, line in enumerate(self._file.readall().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            self._take(path, number, line, identity)
            whole += len(line)
        self._file.truncate(whole)
        if len(self.records) > total:
            raise UserError(f"{path}: more records than examples; remove the file to start anew")
        if whole == 0:
            self._write(json.dumps({"evaluation": identity}))

    def _take(self, path: Path, number: int, line: bytes, identity: Mapping[str, Any]) -> None:
        try:
            entry = json.loads(line)
            index = None if number == 0 else entry["index"]
            found = entry["evaluation"] if number == 0 else None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number + 1}: not a record; remove the file to start anew"
            ) from error
        if number == 0:
            _compare(path, found, identity)
        elif index != number - 1:
            raise UserError(
                f"{path}, line {number + 1}: expected the record of example {number - 1}, found "
                f"{index!r}; remove the file to start anew"
            )
        else:
            self.records.append(entry)

    def append(self, records: Iterator[Record]) -> None:
        """Adds records, and hands them to the operating system before it returns."""
        new = list(records)
        self.records += new
        if self._file is not None:
            self._write("\n".join(json.dumps(record) for record in new))

    def _write(self, lines: str) -> None:
        assert self._file is not None
        left = memoryview(f"{lines}\n".encode())
        with writing(str(self._path)):
            while left:
                left = left[self._file.write(left) :]

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def _compare(path: Path, found: Any, expected: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(expected))
    if not isinstance(found, dict):
        found = {}
    changed = [name for name in expected if found.get(name) != expected[name]]
    if changed:
        raise UserError(
            f"{path}: holds an evaluation with another {' and '.join(changed)}; choose another "
            "--output, or remove the file to start anew"
        )
