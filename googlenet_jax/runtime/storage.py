"""Where files lie: a folder of this machine, or gs://BUCKET/FOLDER.

Files are there whole or not at all; what a disk or a store refuses is worded for people; one run at
a time holds a folder. Orbax stores arrays on Google Cloud Storage and on no other store, so that
there is gs:// alone.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from etils import epath

from googlenet_jax.errors import UserError
from googlenet_jax.runtime.google_cloud import GoogleCloudStorage, check_bucket
from googlenet_jax.runtime.local_storage import LocalStorage, Storage, explaining

_URL = re.compile(r"([A-Za-z][\w+.-]+):/+(.*)")  # also as pathlib writes one; C:/ is a drive
_LOCAL, _GOOGLE_CLOUD = LocalStorage(), GoogleCloudStorage()


def storage_of(path: str | os.PathLike[str]) -> Storage:
    """The storage on which the path lies; one on a store is an `epath.Path`."""
    return _GOOGLE_CLOUD if is_store(path) else _LOCAL


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a URL of a store."""
    return os.fspath(path).startswith("gs://")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, flushes it to disk, and renames it to `path`; for an
    object of a store, a temporary file, which is uploaded.

    Killed at any moment, the old file or the new one is there, whole. The temporary file has the
    suffix of `path`. Raises what `write` and the file system raise, and then leaves nothing behind.
    """
    storage_of(path).write(path, write)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all. Raises UserError where it can't be written."""
    target = Path(path) if isinstance(path, str) else path  # a store's is an `epath.Path`
    with writing(path):
        write_atomically(target, lambda part: part.write_text(text, encoding="utf-8"))


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises UserError where a file of this name can't be written, before there is anything to
    write: its folder is not there or can't be written, or it is a folder itself.
    """
    storage_of(path).check_output(path)


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file of this machine for reading; never waits for what may never come.

    Raises UserError for a pipe, a device or a folder, and OSError as `open` does.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
        raise UserError(
            f"{path}: expected a file, found {kinds.get(stat.S_IFMT(mode), 'a device')}"
        )
    return open(path, "rb")


def writing(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Turns what a disk refuses inside into one line that names `path`, the reason and what to do.

    Raises UserError in place of OSError, and of what Orbax and TensorStore make of one. What an
    object store refuses is left to `reaching`.
    """
    return explaining(path, storage_of(path).disk_refusal)


def reaching(folder: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Turns what a store's clients raise inside into one line with what to do; for a folder that is
    on no store it does nothing.

    Raises UserError in place of it.
    """
    return explaining(folder, storage_of(folder).refusal)


def locked(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the folder, so that no second run trains in it. Whoever only reads needs no lock.

    The lock is the operating system's and ends with the process, however that ends: the file that
    a killed run leaves does not block. On an object store it is a lease, which a killed run's
    silence ends (`google_cloud.leased`). Raises UserError where another process holds it.
    """
    return storage_of(workdir).lock(workdir)


def run_folder(workdir: str | os.PathLike[str]) -> Path:
    """Returns a run's folder: a path, or for gs://BUCKET/FOLDER an `epath.Path`, which has a path's
    methods.

    Raises UserError for another URL, which would be taken for a folder's name, and for a bucket
    that is not there or can't be reached.
    """
    no_driver = "; checkpoints can't be written to {}://, as Orbax has no driver for it"
    return _folder(workdir, "--workdir", no_driver)


def data_folder(folder: str | os.PathLike[str]) -> Path:
    """The same for the folder of data sets; a user's own, ~, is looked up.

    Raises UserError as `run_folder` does.
    """
    return _folder(folder, "data.dir", "; copy the data to one of these").expanduser()


def _folder(path: str | os.PathLike[str], field: str, why_not: str) -> Path:
    url = _URL.match(os.fspath(path))
    if not url:
        return Path(path)
    scheme, place = url[1].lower(), url[2].strip("/")
    expected = f"{field}: expected a folder or gs://BUCKET/FOLDER, found {os.fspath(path)!r}"
    if scheme != "gs":
        raise UserError(expected + why_not.format(scheme))
    bucket, _, folder = place.partition("/")
    if not bucket or not folder:
        raise UserError(expected)
    check_bucket(bucket)
    return cast(Path, epath.Path(f"gs://{bucket}/{folder}"))
