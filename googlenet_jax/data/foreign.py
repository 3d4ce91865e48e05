"""Data sets in formats of other libraries: Hugging Face's `datasets`, and tar shards as
webdataset writes them.
"""

import dataclasses
import glob
import io
import json
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.data.examples import ItemSource, Part, as_sources
from googlenet_jax.data.picture_files import ENDINGS
from googlenet_jax.data.sources import Source
from googlenet_jax.errors import UserError, nearest, one_line


def open_foreign(name: str, split: str) -> Source:
    """Opens a split of "huggingface:NAME_OR_FOLDER[:CONFIG]" or "tar:PATTERN"; slices too, such as
    "train[:10%]".

    Raises UserError where it can't be read.
    """
    kind, _, place = name.partition(":")
    whole, bracket, limits = split.partition("[")
    if kind == "tar":
        examples: Any = TarShards(sorted(glob.glob(place.replace("{split}", whole))), place)
    else:
        examples = _hugging_face(place, whole)
    source, _ = as_sources(examples, None)
    assert isinstance(source, ItemSource)
    source.name, source.split = name, split
    return _slice(source, limits, split) if bracket else source


def _slice(source: Source, limits: str, split: str) -> Source:
    """The examples from a number or a percentage to another: "a:b]"."""
    match = re.fullmatch(r"(\d+%?)?:(\d+%?)?\]", limits)
    if match is None:
        raise UserError(
            f"split {split!r}: expected a slice such as 'train[:10%]' or 'train[50:90]'"
        )
    count = len(source)
    ends = [
        default
        if text is None
        else round(count * int(text[:-1]) / 100)
        if "%" in text
        else int(text)
        for text, default in ((match[1], 0), (match[2], count))
    ]
    places = np.arange(count)[ends[0] : ends[1]]
    if not len(places):
        raise UserError(f"split {split!r}: has no examples; there are {count}")
    return Part(source, places, split)


class HuggingFaceExamples:
    """A split of a `datasets.Dataset` as examples; images stay the files' bytes until they are
    needed.
    """

    def __init__(self, dataset: Any, image: str = "image", label: str = "label") -> None:
        """`image` and `label` are the columns' names."""
        import datasets

        for column in (image, label):
            if column not in dataset.features:
                names = list(dataset.features)
                raise UserError(
                    f"huggingface: there is no column {column!r}{nearest(column, names)}; it has "
                    f"{', '.join(names)}"
                )
        if isinstance(dataset.features[image], datasets.Image):
            dataset = dataset.cast_column(image, datasets.Image(decode=False))
        self._dataset, self._image, self._label = dataset, image, label
        feature = dataset.features[label]
        if isinstance(feature, datasets.ClassLabel):
            self.class_names = tuple(feature.names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self._dataset[index]
        image = row[self._image]
        if isinstance(image, dict):
            image = image["bytes"] or Path(image["path"]).read_bytes()
        return image, row[self._label]


def _hugging_face(place: str, split: str) -> HuggingFaceExamples:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "data.name: 'huggingface:…' needs the library datasets: "
            "pip install 'googlenet-jax[huggingface]'"
        ) from error
    try:
        if Path(place).expanduser().is_dir():
            found = datasets.load_from_disk(str(Path(place).expanduser()))
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            path, _, config = place.partition(":")
            found = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # of the library's, anything
        text = one_line(error)
        raise UserError(f"data set 'huggingface:{place}', split {split!r}: {text}") from error
    columns = [name for name in ("image", "img") if name in found.features]
    labels = [name for name in ("label", "labels", "fine_label") if name in found.features]
    return HuggingFaceExamples(found, (columns or ["image"])[0], (labels or ["label"])[0])


@dataclasses.dataclass(frozen=True)
class _Member:
    shard: str
    offset: int
    size: int
    label: Any


class TarShards:
    """Tar files of webdataset's form as examples: KEY.jpg (.png, …) beside KEY.cls with the label,
    or KEY.json with {"label": …}. They are read through once, for where everything lies; then every
    example is read from its place.

    A file classes.txt beside them holds the classes' names, one a line.
    """

    def __init__(self, paths: Sequence[str | Path], pattern: str = "") -> None:
        """Raises UserError where there are no shards, or one can't be read or lacks a label."""
        if not paths:
            raise UserError(f"data set 'tar:{pattern}': no such file")
        self._members = [member for path in paths for member in _members(str(path))]
        if not self._members:
            raise UserError(f"{paths[0]}: no pictures in it")
        names = Path(paths[0]).with_name("classes.txt")
        if names.is_file():
            self.class_names = tuple(names.read_text(encoding="utf-8").splitlines())

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> tuple[bytes, Any]:
        member = self._members[index]
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            return file.read(member.size), member.label

    def fingerprint(self) -> int:
        """Of the pictures' sizes, their labels, and 64 pictures' bytes."""
        crc = 0
        for member in self._members:
            crc = zlib.crc32(f"{member.size} {member.label}\n".encode(), crc)
        for index in sorted({place * len(self) // 64 for place in range(64)}):
            crc = zlib.crc32(self[index][0], crc)
        return crc


def _members(path: str) -> list[_Member]:
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as archive:  # uncompressed: places in it can be sought
            for info in archive:
                match = re.fullmatch(r"((?:.*/)?[^/.]+)\.(.+)", info.name)
                if match is None or not info.isfile():
                    continue
                key, ending = match[1], match[2].lower()
                if f".{ending}" in ENDINGS:
                    pictures[key] = info.offset_data, info.size
                elif ending in ("cls", "json"):
                    file = archive.extractfile(info) or io.BytesIO()
                    labels[key] = _label(file.read(), ending)
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: expected an uncompressed tar file with KEY.jpg and KEY.cls or KEY.json, "
            f"found {error}"
        ) from error
    for key in pictures:
        if key not in labels:
            raise UserError(f"{path}: {key} has no label, {key}.cls or {key}.json")
    return [_Member(path, *place, labels[key]) for key, place in pictures.items()]


def _label(text: bytes, ending: str) -> Any:
    return int(text) if ending == "cls" else json.loads(text)["label"]
