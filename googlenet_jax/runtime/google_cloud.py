"""A run's folder on Google Cloud Storage, gs://BUCKET/FOLDER.

Files go through `etils.epath` (gcsfs, or TensorFlow where that is installed), checkpoints through
Orbax, which uses TensorStore's own driver. A store has neither locks nor renames nor folders, but
an object appears whole or not at all.
"""

import contextlib
import functools
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from etils import epath

from googlenet_jax.errors import UserError, one_line
from googlenet_jax.runtime.local_storage import LOCK_FILE, Mirror, Storage, explaining, in_use

BEAT: float = 10  # seconds between signs of life of a run that holds a store's folder
SILENCE: float = 60  # seconds without one after which the folder is free
CONNECT_TIMEOUT = 20  # seconds for the first answer of a store
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
    "Credentials": (
        "sign in with `gcloud auth application-default login`, or name a key's file in"
        " GOOGLE_APPLICATION_CREDENTIALS"
    ),
    "RefreshError": "sign in anew with `gcloud auth application-default login`",
    "401": "sign in anew with `gcloud auth application-default login`",
    "UNAUTHENTICATED": "sign in anew with `gcloud auth application-default login`",
    "403": "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket",
    "Forbidden": (
        "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket"
    ),
    "PERMISSION_DENIED": (
        "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket"
    ),
    "Project was not passed": "name your project in GOOGLE_CLOUD_PROJECT",
}


class GoogleCloudStorage(Storage):
    """Buckets of Google Cloud Storage."""

    def write(self, path: Path, fill: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / path.name
            fill(local)
            path.write_bytes(local.read_bytes())

    def check_output(self, path: str | os.PathLike[str]) -> None:
        pass  # a store has no folders

    def mirror(self, folder: Path) -> Mirror:
        return _Uploads(folder)

    def lock(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        return leased(folder / LOCK_FILE)

    def disk_refusal(self, error: BaseException) -> str | None:
        return None

    def refusal(self, error: BaseException) -> str | None:
        if not _is_from_store(error):
            return None
        error = getattr(error, "cause", None) or error  # of a client that has tried again and again
        text = one_line(error, 300)
        if getattr(error, "code", None) == 404:
            return "there is no such bucket; create it first, or name another"
        named = f"{type(error).__name__}: {text}"
        advice = next((advice for words, advice in _ADVICE.items() if words in named), None)
        return (
            f"the store can't be used: {text};"
            f" {advice or 'run the same command again when it answers'}"
        )

    def absolute(self, path: Path) -> Path:
        return path

    def changed_at(self, path: Path) -> float:
        stat: Any = path.stat()  # an epath's has names of its own
        return stat.mtime

    def make(self, folder: Path) -> None:
        (folder / ".keep").write_bytes(b"")  # a folder is there when something is in it

    def is_whole(self, folder: Path, marker: str) -> bool:
        return (folder / marker).exists()

    def rename(self, folder: Path, target: Path, marker: str) -> None:
        if target.exists():
            self.remove(target, marker)
        last = folder / marker
        for path in [*(p for p in _objects(folder) if p != last), last]:
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())
        self.remove(folder, marker)

    def remove(self, folder: Path, marker: str) -> None:
        (folder / marker).unlink(missing_ok=True)
        cast(epath.Path, folder).rmtree(missing_ok=True)


class _Uploads(Mirror):
    """A temporary folder, whose files are uploaded where they have changed, the oldest first."""

    def __init__(self, folder: Path) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        super().__init__(Path(self._temporary.name))
        self._folder = folder
        self._known: dict[Path, int] = {}  # uploaded -> when it was changed

    def upload(self) -> None:
        changes = {p: p.stat().st_mtime_ns for p in self.path.rglob("*") if p.is_file()}
        for path, changed in sorted(changes.items(), key=lambda item: item[1]):
            if self._known.get(path) != changed:
                (self._folder / path.relative_to(self.path)).write_bytes(path.read_bytes())
                self._known[path] = changed

    def close(self) -> None:
        with self._temporary:
            self.upload()


def _objects(folder: Path) -> Iterator[Path]:
    for path in list(folder.iterdir()):
        if path.is_dir():
            yield from _objects(path)
        else:
            yield path


@functools.cache
def check_bucket(name: str) -> None:
    """Asks for the bucket once, quickly: the clients by themselves would try for minutes."""
    if find_spec("gcsfs") is None:  # its requirements hold what Orbax needs too
        raise UserError(f"gs://{name}: needs gcsfs; pip install 'googlenet-jax[gcs]'")
    import fsspec
    from google.cloud import storage

    for name_of_log in ("gcsfs", "fsspec"):  # they print tracebacks of what they also raise
        logging.getLogger(name_of_log).setLevel(logging.CRITICAL)
    # What another process has written must be seen.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    with explaining(f"gs://{name}", GoogleCloudStorage().refusal):
        storage.Client().get_bucket(name, **patience())


def patience() -> dict[str, Any]:
    """How long Google's client waits for an answer, and how long it asks again."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": CONNECT_TIMEOUT, "retry": DEFAULT_RETRY.with_timeout(CONNECT_TIMEOUT)}


def _is_from_store(error: BaseException) -> bool:
    """Whether it says that the store can't be reached, or refuses; not that an object is missing."""
    if any(kind.__module__.split(".")[0] in _CLIENTS for kind in type(error).__mro__):
        return True
    return isinstance(error, ValueError | OSError) and any(w in str(error) for w in _REFUSALS)


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
            self._bucket.blob(self._name).delete(if_generation_match=self._generation, **patience())

    def _read(self) -> Any:
        """The object that is there, which knows its generation, or None."""
        return self._bucket.get_blob(self._name, **patience())

    def _write(self, generation: int) -> bool:
        """Writes the object where it is of this generation; returns whether it is ours then."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._name)
        try:
            blob.upload_from_string(self._content, if_generation_match=generation, **patience())
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
        from googlenet_jax.runtime.process import log  # imports JAX

        log(f"{self._folder}: {owner} trained here; waiting {SILENCE:g} s for a sign of its life")
        began = time.monotonic()
        while time.monotonic() - began < SILENCE:
            time.sleep(min(1, SILENCE / 10))
            now = self._read()
            if now is None:
                return 0
            if now.generation != found.generation:
                raise in_use(self._folder, owner)
        return found.generation

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT):
            # Unreachable for a while, the store is asked again.
            with contextlib.suppress(Exception):
                if not self._write(self._generation):
                    text = (
                        f"{self._folder}: another process has taken this folder over, as this one"
                        " was silent for too long; it ends"
                    )
                    os.write(2, f"\ngooglenet-jax: {text}\n".encode())
                    os._exit(1)


def _text(blob: Any) -> str:
    """What is in an object; "" where it has been removed since it was found."""
    from google.api_core.exceptions import NotFound

    try:
        return blob.download_as_text(**patience())
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
