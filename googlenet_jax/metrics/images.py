"""Sets of images by name: a folder, an archive, arrays, or a prepared data set."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.metrics.resize import INPUT

SUFFIXES = frozenset(
    f".{name}" for name in ["bmp", "gif", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)
_ARRAY_NAMES = ("arr_0", "images", "samples")  # ADM's samples are arr_0
_REFUSED_MODES = ("I", "F")  # and I;16…: more than 8 bits a channel
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order.

    Attributes:
      name: as it was asked for. names: of each image.
      encoded: the bytes of number i; None for a set of arrays.
      arrays: uint8 [N, H, W, 3]; None for a set of files.
    """

    name: str
    names: Sequence[str]
    encoded: Callable[[int], bytes] | None = None
    arrays: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3]: Pillow's conversion to RGB and nothing else, as pytorch-fid's,
        torch-fidelity's and clean-fid's readers: no EXIF rotation, alpha dropped.
        """
        if self.arrays is not None:
            return np.asarray(self.arrays[index])
        with _opened(self, index) as image:
            return np.asarray(image.convert("RGB"))


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a set before its pixels are decoded.

    Attributes:
      digest: of all names' contents in order; equal sets of equal order have equal ones.
      sizes: how many images there are of each (height, width). modes: likewise, of Pillow's modes.
    """

    digest: str
    sizes: Counter[tuple[int, int]]
    modes: Counter[str]


def open_images(name: str, data_dir: str | None = None) -> ImageSet:
    """A folder (searched recursively, in the order of its paths), a .zip or .tar archive, an .npy
    or .npz array uint8 [N, H, W, 3], or a prepared data set as NAME@SPLIT.

    Raises UserError: nothing there, no images in it, or arrays of another form.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        return _checked(
            ImageSet(name, [str(each) for each in files], lambda i: files[i].read_bytes())
        )
    if path.is_file() and path.suffix in (".npy", ".npz"):
        return _checked(_from_arrays(path))
    if path.is_file() and zipfile.is_zipfile(path):
        return _checked(_from_zip(path))
    if path.is_file() and tarfile.is_tarfile(path):
        return _checked(_from_tar(path))
    if path.exists():
        raise UserError(f"{name}: expected a folder, .zip, .tar, .npy or .npz, found another file")
    if "@" not in name:
        raise UserError(
            f"{name}: there is no such folder or file; a data set is named with its split, such as "
            "cifar10@test"
        )
    return _checked(_from_data_set(name, data_dir))


def survey(images: ImageSet, progress: Callable[[int], object] = lambda count: None) -> Survey:
    """Reads every file once, and of its pixels only size and mode.

    Raises UserError that names a file which is no image, or of more than 8 bits a channel.
    """
    digest = hashlib.sha256()
    if images.arrays is not None:
        for row in images.arrays:
            digest.update(np.ascontiguousarray(row).tobytes())
        count, height, width = images.arrays.shape[:3]
        progress(count)
        return Survey(digest.hexdigest(), Counter({(height, width): count}), Counter(RGB=count))
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    for index in range(len(images)):
        with _opened(images, index) as image:
            sizes[image.size[1], image.size[0]] += 1
            modes[image.mode] += 1
        assert images.encoded is not None
        digest.update(hashlib.sha256(images.encoded(index)).digest())
        progress(1)
    return Survey(digest.hexdigest(), sizes, modes)


def check_alike(images: ImageSet, found: Survey, mixed: bool) -> list[str]:
    """What was found that a person should know, in lines. Raises UserError for several sizes or
    modes, unless `mixed`: each image is then stretched to the network's square by itself.
    """
    notes = []
    for what, counts in (("sizes", found.sizes), ("modes", found.modes)):
        if len(counts) > 1:
            parts = ", ".join(
                f"{_said(value)} ({count:,})" for value, count in counts.most_common(3)
            )
            more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
            line = f"{images.name}: images of {len(counts)} {what}: {parts}{more}"
            if not mixed:
                raise UserError(
                    f"{line}; the value would hang on how each is stretched or converted: make them"
                    " alike, or say --mixed"
                )
            notes.append(line)
    for mode in found.modes.keys() - {"RGB"}:
        what = "alpha is dropped" if mode in ("RGBA", "LA", "PA") else "converted to RGB"
        notes.append(f"{images.name}: {found.modes[mode]:,} images of mode {mode}: {what}")
    if any(height != width for height, width in found.sizes):
        notes.append(f"{images.name}: images are not square, and are stretched to {INPUT}×{INPUT}")
    return notes


def batches(
    images: ImageSet,
    batch_size: int,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    start: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (images [B, H, W, 3], mask bool [B]) in order, from number `start`, the next ones
    being read meanwhile. The last is padded with zeros.

    `prepare` brings each image, uint8 [H, W, 3], to one size, where they are not of one.
    """

    def one(index: int) -> np.ndarray:
        pixels = images.read(index)
        return pixels if prepare is None else prepare(pixels)

    def load(first: int) -> tuple[np.ndarray, np.ndarray]:
        indices = range(first, min(first + batch_size, len(images)))
        rows = np.stack(list(pool.map(one, indices)))
        mask = np.arange(batch_size) < len(rows)
        missing = batch_size - len(rows)
        return np.pad(rows, [(0, missing)] + [(0, 0)] * 3) if missing else rows, mask

    with (
        concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as ahead,
    ):
        firsts = list(range(start, len(images), batch_size))
        waiting = ahead.submit(load, firsts[0]) if firsts else None
        for following in [*firsts[1:], None]:
            assert waiting is not None
            ready = waiting.result()
            waiting = None if following is None else ahead.submit(load, following)
            yield ready


@contextlib.contextmanager
def _opened(images: ImageSet, index: int) -> Iterator[Image.Image]:
    """A file of the set, open; what goes wrong inside is said in one line that names it."""
    assert images.encoded is not None
    name = images.names[index]
    try:
        with Image.open(io.BytesIO(images.encoded(index))) as image:
            if image.mode in _REFUSED_MODES or image.mode.startswith("I;16"):
                raise UserError(
                    f"{name}: expected 8 bits a channel, found mode {image.mode}; save it as an "
                    "8-bit PNG"
                )
            yield image
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: can't read the image: {error}") from error


def _checked(images: ImageSet) -> ImageSet:
    if not len(images):
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{images.name}: expected images, found none (of {endings})")
    return images


def _from_arrays(path: Path) -> ImageSet:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = [name for name in _ARRAY_NAMES if name in loaded.files]
            if not names:
                raise UserError(
                    f"{path}: expected an array {' or '.join(_ARRAY_NAMES)}, found "
                    f"{', '.join(loaded.files) or 'none'}"
                )
            loaded = loaded[names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise UserError(f"{path}: expected plain arrays of NumPy's: {reason}") from error
    if loaded.ndim != 4 or loaded.shape[-1] != 3:
        raise UserError(f"{path}: expected images [N, H, W, 3], found shape {list(loaded.shape)}")
    if loaded.dtype != np.uint8:
        extent = ""
        if loaded.dtype.kind == "f" and loaded.size:
            bad = int((~np.isfinite(loaded)).reshape(len(loaded), -1).any(1).sum())
            extent = (
                f", {bad:,} images of which hold NaN or inf"
                if bad
                else f" from {loaded.min():g} to {loaded.max():g}"
            )
        raise UserError(
            f"{path}: expected uint8 from 0 to 255, found {loaded.dtype}{extent}; round them as "
            "saving them as pictures would"
        )
    return ImageSet(str(path), [f"{path}[{i}]" for i in range(len(loaded))], arrays=loaded)


def _from_zip(path: Path) -> ImageSet:
    archive, lock = zipfile.ZipFile(path), threading.Lock()
    names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES)

    def encoded(index: int) -> bytes:
        with lock:
            return archive.read(names[index])

    return ImageSet(str(path), [f"{path}/{name}" for name in names], encoded)


def _from_tar(path: Path) -> ImageSet:
    archive, lock = tarfile.open(path), threading.Lock()  # noqa: SIM115  # read as long as the set
    members = sorted(
        (each for each in archive if each.isfile() and Path(each.name).suffix.lower() in SUFFIXES),
        key=lambda each: each.name,
    )

    def encoded(index: int) -> bytes:
        with lock:
            file = archive.extractfile(members[index])
            assert file is not None
            return file.read()

    return ImageSet(str(path), [f"{path}/{each.name}" for each in members], encoded)


def _from_data_set(name: str, data_dir: str | None) -> ImageSet:
    from googlenet_jax.data.sources import load_source

    set_name, split = name.split("@", 1)
    source = load_source(set_name, split, data_dir)
    names = [f"{name}, example {index}" for index in range(len(source))]

    def encoded(index: int) -> bytes:
        image = source.records([index])[0].image
        assert isinstance(image, bytes)  # prepared sets hold files
        return image

    return ImageSet(name, names, encoded)


def _said(value: object) -> str:
    return f"{value[0]}×{value[1]}" if isinstance(value, tuple) else str(value)
