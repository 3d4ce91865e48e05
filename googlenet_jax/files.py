"""Files that are there whole or not at all, and what a disk says where it refuses one."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from googlenet_jax.errors import UserError

# Why a disk refuses, and what a person can do about it.
_ADVICE = {
    errno.ENOSPC: "free some space there and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EFBIG: "raise the limit on the size of files and run the same command again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "mend the permissions, or choose another place",
    errno.EPERM: "mend the permissions, or choose another place",
    errno.EEXIST: "choose another place",
    errno.ENOTDIR: "choose another place",
    errno.EIO: "check the disk",
    errno.ENOENT: "something removed the folder in the meantime",
}


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether the path lies on an object store, and is an `epath.Path` then: it has neither locks
    nor renames nor folders, but an object appears whole or not at all.
    """
    return os.fspath(path).startswith("gs://")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, flushes it to disk, and renames it to `path`; for an
    object of a store, a temporary file, which is uploaded.

    Killed at any moment, the old file or the new one is there, whole. The temporary file has the
    suffix of `path`. Raises what `write` and the file system raise, and then leaves nothing behind.
    """
    if is_store(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            write(local)
            path.write_bytes(local.read_bytes())
        return
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns what a disk refuses inside into one line that names `path`, the reason and what to do.

    Raises UserError in place of OSError, and of what Orbax and TensorStore make of one. What an
    object store refuses is left to `training.store.reaching`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = None if is_store(path) else disk_reason(error)
        if reason is None:
            raise
        raise UserError(f"{path}: can't be written: {reason}") from error


def disk_reason(error: BaseException) -> str | None:
    """The disk's reason and what to do, from an exception or what caused it; None where no disk is
    to blame.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        for known, advice in _ADVICE.items():
            # Where an error has crossed C++ or a thread, its text alone tells.
            if number == known or (number is None and os.strerror(known) in str(cause)):
                return f"{os.strerror(known)}; {advice}"
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return None
