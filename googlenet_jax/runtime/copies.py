"""Objects of a bucket copied to this machine's disk: each once, checked, whole or not at all."""

import base64
import contextlib
import dataclasses
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.google_cloud import GoogleCloudStorage, patience
from googlenet_jax.runtime.local_storage import LOCK_FILE, LocalStorage, explaining, try_lock

STREAMS = 8  # objects under way at once
_one_thread = threading.Lock()  # the operating system's lock is a process's


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """An object of a bucket, as it was when it was listed; `crc32c` as the store writes it."""

    bucket: str
    name: str
    size: int
    generation: int
    crc32c: str

    @property
    def file_name(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        return f"gs://{self.bucket}/{self.name}"

    def is_in(self, folder: Path) -> bool:
        """Whether its copy is there."""
        path = folder / self.file_name
        return path.exists() and path.stat().st_size == self.size


def list_objects(folder: str | os.PathLike[str]) -> list[StoredObject]:
    """The objects of gs://BUCKET/FOLDER itself, by name; none of the folders in it.

    Raises UserError for a store that refuses.
    """
    from google.cloud import storage

    bucket, _, place = os.fspath(folder).removeprefix("gs://").partition("/")
    prefix = f"{place.rstrip('/')}/"
    with explaining(folder, GoogleCloudStorage().refusal):
        blobs = storage.Client().list_blobs(bucket, prefix=prefix, delimiter="/", **patience())
        return [
            StoredObject(bucket, blob.name, blob.size, blob.generation, blob.crc32c)
            for blob in blobs
            if blob.name != prefix  # what a web page makes for a folder
        ]


def copy_objects(objects: Sequence[StoredObject], folder: Path, progress: bool) -> None:
    """Copies into the folder what is not there yet; of several processes one copies and the others
    wait.

    Raises UserError for an object that has changed since it was listed, for bytes that are not the
    ones whose checksum the store knows, and for what the store or the disk refuses.
    """
    disk = LocalStorage()
    with explaining(folder, disk.disk_refusal):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        missing = [each for each in objects if not each.is_in(folder)]
        total = sum(each.size for each in missing)
        with tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc="copying",
            disable=not (progress and missing),
        ) as bar:
            _copy_all(missing, folder, bar.update)


def _copy_all(objects: Sequence[StoredObject], folder: Path, advance: Callable[..., Any]) -> None:
    from google.cloud import storage

    client = storage.Client()
    with ThreadPoolExecutor(STREAMS) as pool:
        copies = [pool.submit(_copy, client, each, folder, advance) for each in objects]
        try:
            for each in copies:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy(
    client: Any, stored: StoredObject, folder: Path, advance: Callable[[int], object]
) -> None:
    target = folder / stored.file_name
    partial = target.with_name(f".{target.name}.partial")  # a killed process's is written over
    try:
        with (
            explaining(target, LocalStorage().disk_refusal),
            explaining(stored.url, GoogleCloudStorage().refusal),
        ):
            _download(client, stored, partial, advance)
        if partial.stat().st_size != stored.size or _crc32c(partial) != stored.crc32c:
            raise UserError(
                f"{stored.url}: expected {stored.size:,} bytes with the checksum {stored.crc32c}, "
                "found others in its copy; start again, and where it stays, write the object anew"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _download(
    client: Any, stored: StoredObject, path: Path, advance: Callable[[int], object]
) -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = client.bucket(stored.bucket).blob(stored.name)
    with _Counted(io.FileIO(path, "w"), advance) as file:
        try:
            blob.download_to_file(
                file, if_generation_match=stored.generation, checksum=None, **patience()
            )
        except (NotFound, PreconditionFailed) as error:
            raise UserError(
                f"{stored.url}: it was changed or removed while it was being copied; start again "
                "when the data set is whole"
            ) from error
        file.flush()
        os.fsync(file.fileno())


class _Counted(io.BufferedWriter):
    """A file that tells how much is written."""

    def __init__(self, raw: io.FileIO, advance: Callable[[int], object]) -> None:
        super().__init__(raw)
        self._advance = advance

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._advance(count)
        return count


def _crc32c(path: Path) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum.update(part)
    return base64.b64encode(checksum.digest()).decode()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, for which it waits."""
    with _one_thread, (folder / LOCK_FILE).open("a+") as file:
        while not try_lock(file):
            time.sleep(0.2)
        yield
