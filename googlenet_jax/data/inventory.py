"""What a prepared data set holds: every example read back, counted by class, and a picture of some
of them."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from googlenet_jax.data.decoding import BadImage, decode_crop
from googlenet_jax.data.pipeline import DEFAULT_THREADS
from googlenet_jax.data.resampling import ANTIALIASED
from googlenet_jax.data.sources import Record, Source

COUNTS_FILE, SAMPLES_FILE = "counts.json", "samples.png"
SAMPLES = 40  # pictures in the sample
_SIDE = 96  # pixels of one of them
_CHUNK = 64  # examples read at once


@dataclasses.dataclass(frozen=True)
class Inventory:
    """A split read through: examples by class name, what is wrong with those that can't be decoded,
    and (class name, picture) samples."""

    counts: dict[str, int]
    unreadable: list[str]
    samples: list[tuple[str, np.ndarray]]


def take_inventory(
    source: Source, threads: int = DEFAULT_THREADS, progress: bool = True
) -> Inventory:
    """Reads and decodes every example of a split.

    Args:
        threads: that decode.
        progress: whether a bar stands on standard error.

    Raises:
        UserError: if the files can't be read or a label is none of the classes.
    """
    shown = set(np.random.default_rng(0).permutation(len(source))[:SAMPLES].tolist())
    counts: Counter[str] = Counter(dict.fromkeys(source.class_names, 0))
    unreadable: list[str] = []
    samples: list[tuple[str, np.ndarray]] = []
    bar = tqdm(
        total=len(source),
        desc=f"verifying {source.split}",
        unit=" images",
        disable=not progress,
        leave=False,
    )
    with ThreadPoolExecutor(max(1, threads)) as pool, bar:
        for start in range(0, len(source), _CHUNK * max(1, threads)):
            indices = range(start, min(start + _CHUNK * max(1, threads), len(source)))
            records = source.records(list(indices))
            pictures = pool.map(lambda record: _thumbnail(record, source.grey), records)
            for index, record, picture in zip(indices, records, pictures, strict=True):
                class_name = source.class_names[record.label]
                counts[class_name] += 1
                if isinstance(picture, BadImage):
                    unreadable.append(source.describe(index, record, picture))
                elif index in shown:
                    samples.append((class_name, picture))
            bar.update(len(records))
    return Inventory(dict(counts), unreadable, samples)


def _thumbnail(record: Record, grey: bool) -> np.ndarray | BadImage:
    def output(height: int, width: int) -> tuple[int, int]:
        scale = _SIDE / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    try:
        return decode_crop(
            record.image,
            lambda height, width: (0, 0, height, width),
            output,
            ANTIALIASED,
            exact=False,
            grey=grey,
            orientation=record.orientation,
        )
    except BadImage as error:
        return error


def write_counts(path: Path, inventories: dict[str, Inventory]) -> None:
    """Writes {split: {"examples": …, "classes": {class name: examples}, "unreadable": [what is
    wrong]}} as JSON."""
    content = {
        split: {
            "examples": sum(inventory.counts.values()),
            "classes": inventory.counts,
            "unreadable": inventory.unreadable,
        }
        for split, inventory in inventories.items()
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def draw_samples(path: Path, samples: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draws the pictures in a grid, each under its class's name, and writes the file that `path`
    names."""
    from matplotlib.figure import Figure  # slow to import

    columns = max(1, min(10, len(samples)))
    rows = max(1, math.ceil(len(samples) / columns))
    figure = Figure(figsize=(1.25 * columns, 1.4 * rows), layout="constrained")
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.set_axis_off()
    for axis, (class_name, picture) in zip(figure.axes, samples, strict=False):
        axis.imshow(
            picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255
        )
        axis.set_title(
            class_name if len(class_name) <= 16 else class_name[:15] + "…",
            fontsize=7,
            parse_math=False,
        )
    figure.savefig(path, dpi=110)
