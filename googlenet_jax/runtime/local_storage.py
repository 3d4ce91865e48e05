"""A run's folder on this machine's file systems; what kinds of storage have in common."""

import abc
import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from googlenet_jax.errors import UserError

LOCK_FILE = ".lock"
# Why a disk refuses, and what a person can do about it.
_DISK_ADVICE = {
    errno.ENOSPC: "free some space there and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EFBIG: "raise the limit on the size of files and run the same command again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "mend the permissions, or choose another place",
    errno.EPERM: "mend the permissions, or choose another place",
    errno.EEXIST: "choose another place",
    errno.ENOTDIR: "choose another place",
    errno.EIO: "check the disk",
    errno.ENOENT: "the folder is not there; make it, or choose another place",
}


def own_cache() -> Path:
    """This package's folder in the user's cache folder; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "googlenet_jax"


class Storage(abc.ABC):
    """Where a run's folder lies. Every path given to a form lies there.

    A folder that has to appear whole, as a checkpoint does, holds the file `marker`, written last;
    a file system, which can rename, needs none.
    """

    @abc.abstractmethod
    def write(self, path: Path, fill: Callable[[Path], object]) -> None:
        """See `storage.write_atomically`."""

    @abc.abstractmethod
    def check_output(self, path: str | os.PathLike[str]) -> None:
        """See `storage.check_output`."""

    @abc.abstractmethod
    def mirror(self, folder: Path) -> "Mirror":
        """A folder of this machine whose files come to be those of `folder`."""

    @abc.abstractmethod
    def lock(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        """See `storage.locked`."""

    @abc.abstractmethod
    def disk_refusal(self, error: BaseException) -> str | None:
        """Why a disk refused and what to do, or None where none did."""

    @abc.abstractmethod
    def refusal(self, error: BaseException) -> str | None:
        """Why the storage as a whole refused or is out of reach, and what to do; None for a file
        that is missing, and for anything else.
        """

    @abc.abstractmethod
    def absolute(self, path: Path) -> Path:
        """The same, wherever this process stands."""

    @abc.abstractmethod
    def changed_at(self, path: Path) -> float:
        """When a file was changed, in seconds."""

    @abc.abstractmethod
    def make(self, folder: Path) -> None:
        """Lets the folder be there, where what is put in it does not."""

    @abc.abstractmethod
    def is_whole(self, folder: Path, marker: str) -> bool:
        """Whether the folder is there with all that was to be in it."""

    @abc.abstractmethod
    def rename(self, folder: Path, target: Path, marker: str) -> None:
        """Renames a whole folder. Killed at any moment, at least one of the two is whole."""

    @abc.abstractmethod
    def remove(self, folder: Path, marker: str) -> None:
        """Removes a folder; half-removed, it is not whole."""


class Mirror:
    """A folder of this machine, `path`, that stands for a run's folder: here the folder itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def upload(self) -> None:
        """Brings to the run's folder what has changed since."""

    def close(self) -> None:
        """Uploads, and ends."""
        self.upload()


class LocalStorage(Storage):
    """File systems: they rename, have folders, and lock for a process."""

    def write(self, path: Path, fill: Callable[[Path], object]) -> None:
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        try:
            fill(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def check_output(self, path: str | os.PathLike[str]) -> None:
        folder = Path(path).parent
        if Path(path).is_dir():
            raise UserError(f"{path}: can't be written: it is a folder; name a file in it")
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise UserError(
                f"{path}: can't be written: expected a folder {folder}, found {found}; make it, or "
                "choose another place"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{path}: can't be written: {os.strerror(errno.EACCES)}; "
                f"{_DISK_ADVICE[errno.EACCES]}"
            )

    def mirror(self, folder: Path) -> Mirror:
        return Mirror(folder)

    @contextlib.contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        path = folder / LOCK_FILE
        with explaining(folder, self.disk_refusal):
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        with file:
            if not try_lock(file):
                file.seek(0)
                raise in_use(folder, file.read().strip() or "another process")
            with explaining(path, self.disk_refusal):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield

    def disk_refusal(self, error: BaseException) -> str | None:
        reason = disk_reason(error)
        return reason and f"can't be written: {reason}"

    def refusal(self, error: BaseException) -> str | None:
        return None

    def absolute(self, path: Path) -> Path:
        return path.absolute()

    def changed_at(self, path: Path) -> float:
        return path.stat().st_mtime

    def make(self, folder: Path) -> None:
        pass  # Orbax makes it

    def is_whole(self, folder: Path, marker: str) -> bool:
        return folder.exists()

    def rename(self, folder: Path, target: Path, marker: str) -> None:
        folder.rename(target)

    def remove(self, folder: Path, marker: str) -> None:
        shutil.rmtree(folder)


@contextlib.contextmanager
def explaining(
    path: str | os.PathLike[str], reason: Callable[[BaseException], str | None]
) -> Iterator[None]:
    """Raises UserError in place of what is raised inside and `reason` has words for."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (why := reason(error)) is None:
            raise
        raise UserError(f"{path}: {why}") from error


def in_use(folder: Path, owner: str) -> UserError:
    """What to raise where another process holds the folder."""
    return UserError(
        f"{folder}: {owner} is training in this folder; wait for it or stop it, or take another "
        "--workdir"
    )


def disk_reason(error: BaseException) -> str | None:
    """The disk's reason and what to do, from an exception or what caused it; None where no disk is
    to blame.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        for known, advice in _DISK_ADVICE.items():
            # Where an error has crossed C++ or a thread, its text alone tells.
            if number == known or (number is None and os.strerror(known) in str(cause)):
                return f"{os.strerror(known)}; {advice}"
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def try_lock(file: IO[Any]) -> bool:
    """Takes the operating system's lock of an open file, until this process ends or closes any
    handle of that file; False where another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        # POSIX's record locks: unlike flock's, a forked worker does not inherit them.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True  # also on file systems that know no locks
