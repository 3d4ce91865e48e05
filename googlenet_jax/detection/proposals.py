"""Proposed boxes of a whole split, computed once and kept beside the data."""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

from googlenet_jax.detection.selective_search import SMALLEST_SIDE, selective_search
from googlenet_jax.detection.sources import DetectionSource, load_detection_source
from googlenet_jax.errors import UserError
from googlenet_jax.runtime.process import shows_progress
from googlenet_jax.runtime.storage import write_atomically, writing

DataDir = str | os.PathLike[str] | None
# An image's boxes, and its height and width.
Found = tuple[np.ndarray, tuple[int, ...]]

SEARCH, MULTIBOX = "selective_search", "multibox"
FOLDER = "proposals"
CHUNK = 8  # images that a process takes at a time


@dataclasses.dataclass(frozen=True)
class SelectiveSearch:
    """How selective search is run; its name says it all, such as "selective_search_x2_w500".

    Attributes:
      superpixel_scale: 2 doubles the superpixels' size, as in GoogLeNet's entry; "_x2" in the name.
      width: to which an image is scaled before, R-CNN's 500, "_w500"; 0 leaves it as it is.
      smallest_side: of a box, in pixels of the scaled image; "_s10" where it is not 20.
    """

    superpixel_scale: float = 1.0
    width: int = 0
    smallest_side: int = SMALLEST_SIDE

    @property
    def name(self) -> str:
        """The method's name, which `from_name` reads."""
        scale = f"_x{self.superpixel_scale:g}" if self.superpixel_scale != 1 else ""
        width = f"_w{self.width}" if self.width else ""
        side = f"_s{self.smallest_side}" if self.smallest_side != SMALLEST_SIDE else ""
        return f"{SEARCH}{scale}{width}{side}"

    @classmethod
    def from_name(cls, name: str) -> "SelectiveSearch":
        """Reads a method's name.

        Raises:
          UserError: it is none.
        """
        match = re.fullmatch(rf"{SEARCH}(?:_x(\d+(?:\.\d+)?))?(?:_w(\d+))?(?:_s(\d+))?", name)
        scale, width, side = match.groups() if match else ("0", None, None)
        if match is None or (scale and not 0.02 <= float(scale) <= 100):
            raise UserError(
                f"proposals: expected {MULTIBOX!r} or {SEARCH!r}, the latter with _xF for "
                f"superpixels F times as large, _wN for a width and _sN for the smallest side, "
                f"found {name!r}"
            )
        return cls(float(scale or 1), int(width or 0), int(side or SMALLEST_SIDE))


@dataclasses.dataclass(frozen=True)
class Proposals:
    """The boxes of a split's images, in the split's order.

    Attributes:
      boxes: float32 [P, 4] an image, (top, left, bottom, right) in pixels, the best first.
      sizes: int32 [N, 2], the images' heights and widths.
      about: how they were made, plain JSON values.
    """

    boxes: Sequence[np.ndarray]
    sizes: np.ndarray
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.boxes)


def check_method(name: str) -> None:
    """Raises UserError where that names no way to propose boxes."""
    if name != MULTIBOX:
        SelectiveSearch.from_name(name)


def proposals_file(source: DetectionSource, name: str) -> Path:
    """Where a split's proposals by that method lie: beside the data set's own files."""
    check_method(name)
    return source.folder / FOLDER / name / f"{quote(source.split, safe='')}.npz"


def search_split(source: DetectionSource, settings: SelectiveSearch, workers: int = 0) -> Proposals:
    """Runs selective search over every image of a split, several processes at once.

    The boxes do not depend on the number of processes. `workers` 0 is one for each processor.

    Raises:
      UserError: an image can't be read.
    """
    workers = workers or os.cpu_count() or 1
    chunks = [
        range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)
    ]
    where = (source.name, source.split, source.data_dir)
    search = functools.partial(_search_chunk, where, settings)
    boxes: list[np.ndarray] = []
    sizes: list[tuple[int, ...]] = []
    name, hidden = f"selective search, {source.split}", not shows_progress()
    with tqdm(desc=name, total=len(source), unit=" images", disable=hidden) as bar:
        for found in _in_order(search, chunks, workers):
            boxes += [each for each, _ in found]
            sizes += [size for _, size in found]
            bar.update(len(found))
    about = {"method": settings.name}
    return Proposals(boxes, np.array(sizes, np.int32).reshape(-1, 2), about)


def _in_order(
    search: Callable[[range], list[Found]], chunks: Sequence[range], workers: int
) -> Iterator[list[Found]]:
    if workers == 1 or len(chunks) == 1:
        yield from map(search, chunks)
        return
    # Spawned, since forking a process in which JAX's threads run can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(chunks)), context) as pool:
        yield from pool.map(search, chunks)


def _search_chunk(
    where: tuple[str, str, DataDir], settings: SelectiveSearch, positions: range
) -> list[Found]:
    name, split, data_dir = where
    examples = _opened(name, split, str(data_dir or "")).read(positions)
    images = [np.broadcast_to(each["image"], (*each["image"].shape[:2], 3)) for each in examples]
    options = dataclasses.asdict(settings)
    return [(selective_search(np.ascontiguousarray(x), **options), x.shape[:2]) for x in images]


@functools.lru_cache(maxsize=1)
def _opened(name: str, split: str, data_dir: str) -> DetectionSource:
    return load_detection_source(name, split, data_dir or None)


def save_proposals(source: DetectionSource, name: str, proposals: Proposals) -> Path:
    """Writes a split's proposals by that method, atomically, and returns the file.

    Raises:
      UserError: the folder can't be written.
    """
    path = proposals_file(source, name)
    counts = [len(boxes) for boxes in proposals.boxes]
    arrays: dict[str, Any] = {
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *proposals.boxes]),
        "counts": np.array(counts, np.int64),
        "sizes": proposals.sizes,
        "about": np.array(json.dumps(dict(proposals.about))),
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: np.savez_compressed(part, **arrays))
    return path


def load_proposals(source: DetectionSource, name: str) -> Proposals:
    """Reads a split's proposals by that method.

    Raises:
      UserError: there are none (with the command that makes them), the file is damaged, or it is of
        another version of the data set.
    """
    path = proposals_file(source, name)
    if not path.exists():
        more = " --multibox RUN" if name == MULTIBOX else ""
        raise UserError(
            f"{path}: no {name} proposals for {source.name} {source.split}; make them with: "
            f"googlenet-jax proposals {source.name} --split '{source.split}' --methods {name}{more}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            boxes, counts, sizes = file["boxes"], file["counts"], file["sizes"]
            about = json.loads(str(file["about"]))
        whole = boxes.shape == (counts.sum(), 4) and sizes.shape == (len(counts), 2)
        if not whole or not np.isfinite(boxes).all():
            raise ValueError("its arrays contradict each other")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a whole file of proposals ({error}); delete it and make it anew"
        ) from error
    if len(counts) != len(source):
        raise UserError(
            f"{path}: expected proposals for {len(source)} images, found {len(counts)}; "
            "delete it and make it anew"
        )
    return Proposals(np.split(boxes, counts.cumsum()[:-1]), sizes, about)


def interleave(parts: Sequence[Proposals], most: int = 0) -> list[np.ndarray]:
    """Joins several methods' proposals of one split by rank: [P, 4] float32 an image.

    `most` above 0 takes only so many of each method's best boxes.
    """
    cut = most or None
    joined = []
    for sets in zip(*(part.boxes for part in parts), strict=True):
        boxes = [boxes[:cut] for boxes in sets]
        rank = np.concatenate([np.arange(len(each)) for each in boxes])
        joined.append(np.concatenate(boxes)[np.argsort(rank, kind="stable")])
    return joined
