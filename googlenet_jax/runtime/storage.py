"""Where files lie: a folder of this machine, or gs://BUCKET/FOLDER.

Files are there whole or not at all; what a disk or a store refuses is worded for people; one run at
a time holds a folder. A store's files go through `etils.epath` (gcsfs, or TensorFlow where that is
installed), checkpoints through Orbax, which uses TensorStore's own driver. Orbax stores arrays on
Google Cloud Storage and on no other store, so that there is gs:// alone.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import re
import socket
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from etils import epath

from googlenet_jax.errors import UserError

LOCK_FILE = ".lock"
BEAT: float = 10  # seconds between signs of life of a run that holds a store's folder
SILENCE: float = 60  # seconds without one after which the folder is free
CONNECT_TIMEOUT = 20  # seconds for the first answer of a store
_URL = re.compile(r"([A-Za-z][\w+.-]+):/+(.*)")  # also as pathlib writes one; C:/ is a drive
# Where what a store's clients raise is defined.
_CLIENTS = {"google", "gcsfs", "aiohttp", "requests", "urllib3", "tensorflow"}
# In what TensorStore says of a store, beside what it says of damaged objects; the last is gcsfs's.
_REFUSALS = (
    "retry attempts failed",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "Forbidden: ",
)
# What a store says -> what a person can do about it, in the order in which they are looked for.
_ADVICE = {
    "Credentials": "sign in with `gcloud auth application-default login`, or name a key's file in GOOGLE_APPLICATION_CREDENTIALS",
    "RefreshError": "sign in anew with `gcloud auth application-default login`",
    "401": "sign in anew with `gcloud auth application-default login`",
    "UNAUTHENTICATED": "sign in anew with `gcloud auth application-default login`",
    "403": "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket",
    "Forbidden": "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket",
    "PERMISSION_DENIED": "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket",
    "Project was not passed": "name your project in GOOGLE_CLOUD_PROJECT",
}
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


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises UserError where a file of this name can't be written, before there is anything to
    write: its folder is not there or can't be written, or it is a folder itself.
    """
    if is_store(path):
        return
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
            f"{path}: can't be written: {os.strerror(errno.EACCES)}; {_DISK_ADVICE[errno.EACCES]}"
        )


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


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns what a disk refuses inside into one line that names `path`, the reason and what to do.

    Raises UserError in place of OSError, and of what Orbax and TensorStore make of one. What an
    object store refuses is left to `reaching`.
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
        for known, advice in _DISK_ADVICE.items():
            # Where an error has crossed C++ or a thread, its text alone tells.
            if number == known or (number is None and os.strerror(known) in str(cause)):
                return f"{os.strerror(known)}; {advice}"
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def run_folder(workdir: str | Path) -> Path:
    """Returns a run's folder: a path, or for gs://BUCKET/FOLDER an `epath.Path`, which has a path's
    methods.

    Raises UserError for another URL, which would be taken for a folder's name, and for a bucket
    that is not there or can't be reached.
    """
    url = _URL.match(os.fspath(workdir))
    if not url:
        return Path(workdir)
    scheme, place = url[1].lower(), url[2].strip("/")
    if scheme != "gs":
        raise UserError(
            f"--workdir: expected a folder or gs://BUCKET/FOLDER, found {str(workdir)!r}; checkpoints "
            f"can't be written to {scheme}://, as Orbax has no driver for it"
        )
    bucket, _, folder = place.partition("/")
    if not bucket or not folder:
        raise UserError(f"--workdir: expected gs://BUCKET/FOLDER, found {str(workdir)!r}")
    _check_bucket(bucket)
    return cast(Path, epath.Path(f"gs://{bucket}/{folder}"))


@functools.cache
def _check_bucket(name: str) -> None:
    """Asks for the bucket once, quickly: the clients by themselves would try for minutes."""
    if find_spec("gcsfs") is None:  # its requirements hold what Orbax needs too
        raise UserError(f"gs://{name}: needs gcsfs; pip install 'googlenet-jax[gcs]'")
    import fsspec
    from google.cloud import storage

    for name_of_log in ("gcsfs", "fsspec"):  # they print tracebacks of what they also raise
        logging.getLogger(name_of_log).setLevel(logging.CRITICAL)
    # What another process has written must be seen.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    with reaching(f"gs://{name}"):
        storage.Client().get_bucket(name, **_patience())


def _patience() -> dict[str, Any]:
    """How long Google's client waits for an answer, and how long it asks again."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": CONNECT_TIMEOUT, "retry": DEFAULT_RETRY.with_timeout(CONNECT_TIMEOUT)}


def is_from_store(error: BaseException, folder: str | os.PathLike[str]) -> bool:
    """Whether the store that holds `folder` could not be reached, or refused. False for an object
    that is missing, and for any other folder.
    """
    if not is_store(folder) or isinstance(error, UserError):
        return False
    if any(kind.__module__.split(".")[0] in _CLIENTS for kind in type(error).__mro__):
        return True
    return isinstance(error, ValueError | OSError) and any(w in str(error) for w in _REFUSALS)


@contextlib.contextmanager
def reaching(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what a store's clients raise inside into one line with what to do; for a folder that is
    on no store it does nothing.

    Raises UserError in place of it.
    """
    try:
        yield
    except Exception as error:
        if not is_from_store(error, folder):
            raise
        raise UserError(f"{folder}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    error = getattr(error, "cause", None) or error  # of a client that has tried again and again
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if getattr(error, "code", None) == 404:
        return "there is no such bucket; create it first, or name another"
    named = f"{type(error).__name__}: {text}"
    advice = next((advice for words, advice in _ADVICE.items() if words in named), None)
    return (
        f"the store can't be used: {text}; {advice or 'run the same command again when it answers'}"
    )


def upload(local: Path, folder: Path, known: dict[Path, int] | None = None) -> None:
    """Copies the files under `local` to a store's folder, the oldest first.

    `known` maps those that have been uploaded to when they were changed; they are left out, and the
    others added.
    """
    known = {} if known is None else known
    changes = {p: p.stat().st_mtime_ns for p in local.rglob("*") if p.is_file()}
    for path, changed in sorted(changes.items(), key=lambda item: item[1]):
        if known.get(path) != changed:
            (folder / path.relative_to(local)).write_bytes(path.read_bytes())
            known[path] = changed


@contextlib.contextmanager
def leased(path: Path) -> Iterator[None]:
    """Holds a store's folder by the object `path` in it, which is refreshed every BEAT seconds and
    removed at the end.

    The object is replaced only where it is the one that was read, which the store decides, so that
    of two that start at once one gets it. One whose owner is known to have died, or has been silent
    for SILENCE seconds while this process watched, is taken over. Raises UserError where its owner
    lives. Where another process has taken the object over, this one ends at once with status 1.
    """
    lease = _Lease(path)
    lease.take()
    lease.start()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    """This process's claim on a folder."""

    def __init__(self, path: Path) -> None:
        from google.cloud import storage

        bucket, _, name = os.fspath(path).removeprefix("gs://").partition("/")
        self._bucket, self._name = storage.Client().bucket(bucket), name
        self._folder = path.parent
        self._content = json.dumps(
            {
                "owner": f"process {os.getpid()} on {socket.gethostname()}",
                "pid": os.getpid(),
                "machine": _machine(),
                "id": uuid.uuid4().hex,
            }
        )
        self._generation = 0  # of our object; 0 is none
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)

    def take(self) -> None:
        while True:
            if self._write(self._free(self._read())):
                return

    def start(self) -> None:
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it is silent from now on in any case
            self._bucket.blob(self._name).delete(
                if_generation_match=self._generation, **_patience()
            )

    def _read(self) -> Any:
        """The object that is there, which knows its generation, or None."""
        return self._bucket.get_blob(self._name, **_patience())

    def _write(self, generation: int) -> bool:
        """Writes the object where it is of this generation; returns whether it is ours then."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._name)
        try:
            blob.upload_from_string(self._content, if_generation_match=generation, **_patience())
        except PreconditionFailed:
            # Also where an answer was lost on its way, and the object is ours.
            blob = self._read()
            if blob is None or _text(blob) != self._content:
                return False
        self._generation = blob.generation
        return True

    def _free(self, found: Any) -> int:
        """The generation that may be replaced: that of no object, or of one whose owner is gone."""
        if found is None:
            return 0
        owner, known_dead = _read_owner(found)
        if known_dead:
            return found.generation
        from googlenet_jax.runtime.process import say

        say(f"{self._folder}: {owner} trained here; waiting {SILENCE:g} s for a sign of its life")
        began = time.monotonic()
        while time.monotonic() - began < SILENCE:
            time.sleep(min(1, SILENCE / 10))
            now = self._read()
            if now is None:
                return 0
            if now.generation != found.generation:
                raise UserError(
                    f"{self._folder}: {owner} is training in this folder; wait for it or stop it, or take another --workdir"
                )
        return found.generation

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT):
            # Unreachable for a while, the store is asked again.
            with contextlib.suppress(Exception):
                if not self._write(self._generation):
                    text = f"{self._folder}: another process has taken this folder over, as this one was silent for too long; it ends"
                    os.write(2, f"\ngooglenet-jax: {text}\n".encode())
                    os._exit(1)


def _text(blob: Any) -> str:
    """What is in an object; "" where it has been removed since it was found."""
    from google.api_core.exceptions import NotFound

    try:
        return blob.download_as_text(**_patience())
    except NotFound:
        return ""


def _read_owner(found: Any) -> tuple[str, bool]:
    """An object's owner in words, and whether it is known to have died: on this machine alone can
    that be known.
    """
    try:
        owner = json.loads(_text(found))
        name, machine, pid = owner["owner"], owner["machine"], owner["pid"]
    except (ValueError, KeyError, TypeError):
        return "another process", False
    if not machine or machine != _machine():
        return name, False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return name, True
    except OSError:
        pass
    return name, False


def _machine() -> str:
    """What a process's number counts in: this start of the system, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder, so that no second run trains in it. Whoever only reads needs no lock.

    The lock is the operating system's and ends with the process, however that ends: the file that
    a killed run leaves does not block. On an object store it is a lease, which a killed run's
    silence ends (`leased`). Raises UserError where another process holds it.
    """
    if is_store(workdir):
        with leased(workdir / LOCK_FILE):
            yield
        return
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("a+", encoding="utf-8")
    with file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{workdir}: {holder} is training in this folder; wait for it or stop it, or take another --workdir"
            )
        with writing(workdir / LOCK_FILE):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
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
