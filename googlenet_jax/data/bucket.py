"""Data sets in a bucket: copied once to this machine's disk, or read where they lie."""

import hashlib
import math
import os
import shutil
from pathlib import Path

import tensorflow_datasets as tfds
from tqdm import tqdm

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.copies import StoredObject, copy_objects, list_objects
from googlenet_jax.runtime.local_storage import own_cache
from googlenet_jax.runtime.storage import is_store

CACHE = "GOOGLENET_JAX_DATA_CACHE"
LIMIT = "GOOGLENET_JAX_DATA_CACHE_GB"
DEFAULT_LIMIT = 50.0


def nearby(
    builder: tfds.core.DatasetBuilder, name: str, split: str
) -> tuple[tfds.core.DatasetBuilder, Path]:
    """The same data set, with the shards of `split` on this machine where it lies in a bucket; and
    a folder of this machine for what belongs to it.

    A set is copied where its copies, with those of others, take at most $GOOGLENET_JAX_DATA_CACHE_GB
    (50), into $GOOGLENET_JAX_DATA_CACHE, else the user's cache folder; a set that has changed in the
    bucket is copied anew, beside the old copy. A larger one stays where it is, and array_record
    reads its examples one by one, if it can.

    Raises:
        UserError: if a shard is missing, changed, or damaged on its way; if the store or the disk
            refuses; if the set is larger than copies may be and can't be read where it is.
    """
    if not is_store(builder.data_dir):
        return builder, Path(builder.data_dir)
    from googlenet_jax.runtime.process import log, shows_progress  # imports JAX

    there = list_objects(builder.data_dir)
    wanted = _wanted(builder, name, split, there)
    folder = _cache() / _key(builder.data_dir, there)
    size = sum(each.size for each in wanted if not each.is_in(folder))
    if refused := size and _refusal(size):
        if _readable(wanted):
            log(f"{name}: read from {builder.data_dir} example by example, as {refused}")
            return builder, folder
        raise UserError(
            f"data set {name!r} in {builder.data_dir}: {refused}, and this array_record can't read "
            "a bucket; upgrade array-record, or do that"
        )
    if size:
        log(f"{name}: copying {_said(size)} of {builder.data_dir} to {folder}")
    copy_objects(wanted, folder, progress=shows_progress())
    return tfds.builder_from_directory(folder), folder


def _wanted(
    builder: tfds.core.DatasetBuilder, name: str, split: str, there: list[StoredObject]
) -> list[StoredObject]:
    """The objects that a split needs: its shards, and what describes the set."""
    shards = {Path(each.filename).name for each in builder.info.splits[split].file_instructions}
    if missing := sorted(shards - {each.file_name for each in there}):
        raise UserError(
            f"data set {name!r}: {builder.data_dir} lacks {missing[0]}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}; copy the whole folder there"
        )
    described = (".json", ".txt")
    return [
        each for each in there if each.file_name in shards or each.file_name.endswith(described)
    ]


def _cache() -> Path:
    if chosen := os.environ.get(CACHE):
        return Path(chosen).expanduser()
    return own_cache() / "data"


def _key(url: str | os.PathLike[str], there: list[StoredObject]) -> str:
    """A folder's name that stands for the data set as it is now."""
    state = [os.fspath(url), *(f"{each.name} {each.generation} {each.size}" for each in there)]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]


def _refusal(size: int) -> str:
    """Why so many bytes more can't be kept, and what to do; "" where they can."""
    cache, limit = _cache(), _limit()
    kept = sum(path.stat().st_size for path in cache.glob("*/*")) if cache.is_dir() else 0
    if kept + size > limit:
        return (
            f"its copy takes {_said(size)} more in {cache}, where there are {_said(kept)}, and"
            f" {_said(limit)} are allowed: {LIMIT}={math.ceil((kept + size) / 1e5) / 1e4:g} allows"
            f" it, {CACHE} names another folder"
        )
    parent = next(each for each in (cache, *cache.absolute().parents) if each.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        return (
            f"its copy takes {_said(size)} and {cache} has {_said(free)} free: {CACHE} names"
            " another folder"
        )
    return ""


def _limit() -> float:
    given = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
    try:
        limit = float(given)
    except ValueError:
        limit = -1
    if not limit >= 0:
        raise UserError(f"{LIMIT}: expected a number of gigabytes such as 200, found {given!r}")
    return limit * 1e9


def _said(size: float) -> str:
    return tqdm.format_sizeof(size, "B")


def _readable(objects: list[StoredObject]) -> bool:
    """Whether array_record reads a bucket: builds for some systems and older ones don't."""
    from array_record.python.array_record_module import ArrayRecordReader

    shard = next(each for each in objects if ".array_record-" in each.file_name)
    try:
        reader = ArrayRecordReader(shard.url)
        reader.num_records()
        reader.close()
    except (OSError, RuntimeError, ValueError):
        return False
    return True
