"""Public weights by name: downloaded once, checked, converted, kept.

A file is taken only if its hash is the one that its publisher states: PyTorch's in the file's own
name, Keras's and Caffe's in their sources.
"""

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError, nearest, one_line
from googlenet_jax.models.network import Network
from googlenet_jax.models.registry import create_model, list_models
from googlenet_jax.runtime.local_storage import own_cache
from googlenet_jax.runtime.storage import writing
from googlenet_jax.weights.convert import read_weights, write_weights
from googlenet_jax.weights.names import SCHEMES
from googlenet_jax.weights.public import published

_CHUNK = 1 << 20
# No file below is larger; a server that sends more is wrong.
_LARGEST = 512 << 20
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EFBIG,
)


@dataclasses.dataclass(frozen=True)
class Public:
    """A public weight file.

    Attributes:
      url: where its publisher has it.
      algorithm, digest: of the whole file; `digest` may be its beginning.
      stated: where the publisher states the digest.
      model, options: what it is of.
    """

    url: str
    algorithm: str
    digest: str
    stated: str
    model: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Its publisher's name for it."""
        return self.url.rsplit("/", 1)[1]


_ENDINGS = {".caffemodel": "caffe", ".h5": "keras"}
_IN_THE_NAME = "the file's name, as torch.hub checks it"
PUBLIC: dict[str, Public] = {
    "googlenet": Public(
        "https://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel",
        "sha1",
        "405fc5acd08a3bb12de8ee5e23a96bec22f08204",
        "BVLC/caffe, models/bvlc_googlenet/readme.md",
        "googlenet",
    ),
    "googlenet_torchvision": Public(
        "https://download.pytorch.org/models/googlenet-1378be20.pth",
        "sha256",
        "1378be20",
        _IN_THE_NAME,
        "googlenet_torchvision",
        {"transform_input": True},  # as torchvision sets it for these weights
    ),
    "bn_inception": Public(
        "https://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        "sha256",
        "52deb4733",
        _IN_THE_NAME,
        "bn_inception",
        {"flavour": "port"},
    ),
    "inception_v3": Public(
        "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
        "sha256",
        "0cc3c7bd",
        _IN_THE_NAME,
        "inception_v3",
        {"flavour": "torchvision", "transform_input": True},
    ),
    "inception_v3_keras": Public(
        "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
        "md5",
        "9a0d58056eeedaa3f26cb7ebd46da564",
        "keras, src/applications/inception_v3.py",
        "inception_v3",
        {"flavour": "keras"},
    ),
    "inception_v3_fid": Public(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "sha256",
        "6726825d",
        _IN_THE_NAME,
        "inception_v3",
        {"flavour": "fid"},
    ),
}


def list_pretrained() -> list[str]:
    """Returns the names of public weights that `gj.load` takes, sorted."""
    return sorted(name for name, public in PUBLIC.items() if public.model in list_models())


def cache_folder() -> Path:
    """Where downloaded and converted weights are kept: $GOOGLENET_JAX_CACHE, else googlenet_jax in
    the user's cache folder.
    """
    if chosen := os.environ.get("GOOGLENET_JAX_CACHE"):
        return Path(chosen)
    return own_cache() / "weights"


class Described(NamedTuple):
    """Public weights without their values."""

    model: Network
    preprocessing: Preprocessing


def describe(name: str) -> Described | None:
    """Returns the network and the preprocessing of public weights, without a download; None where
    there are none of that name.
    """
    if name not in list_pretrained():
        return None
    public = PUBLIC[name]
    model = create_model(public.model, **public.options)
    kind = next((k for ending, k in _ENDINGS.items() if public.url.endswith(ending)), None)
    fields = (
        SCHEMES[kind][public.model].preprocessing
        if kind is not None
        else published(model, public.file_name).fields
    )
    return Described(model, Preprocessing(**fields))


def pretrained_file(name: str) -> Path:
    """Returns where the converted weights of that name lie, having made them where they were not.

    The first time, downloads the file over HTTPS, checks it against its publisher's hash and
    converts it; a broken download resumes where it stopped.

    Raises:
      UserError: no such name; no network (says which file to put where), a full disk, or a file
        that is not the publisher's.
    """
    if name not in PUBLIC or name not in list_pretrained():
        known = list_pretrained()
        raise UserError(
            f"pretrained weights {name!r}: there are none of that name{nearest(name, known)}; there"
            f" are {', '.join(known)}"
        )
    public, folder = PUBLIC[name], cache_folder()
    kept = folder / f"{name}-{public.digest[:8]}.safetensors"
    if kept.exists():
        return kept
    with _no_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    source = folder / public.file_name
    if not source.exists():
        download(public, source)
    _check(public, source)
    write_weights(kept, read_weights(source, public.model, options=public.options))
    source.unlink()
    return kept


def download(public: Public, goal: Path) -> None:
    """Downloads a file, beside `goal` until it is whole and checked; resumes what an earlier
    try left there.
    """
    part = goal.with_name(goal.name + ".part")
    try:
        with _no_disk(goal.parent):
            _fetch(public.url, part)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        short = one_line(reason) or type(error).__name__
        raise UserError(
            f"{public.url}: the download failed ({short}); the next try resumes there; "
            f"without a network, put the file at {goal}"
        ) from None
    _check(public, part)
    part.replace(goal)


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "googlenet-jax"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.build_opener(_OnlyHttps(url)).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing follows what we have
            raise
        return
    with response:
        resumed = (
            response.status == 206 and _starts_at(response.headers.get("Content-Range", "")) == have
        )
        length = response.headers.get("Content-Length")
        total = int(length) + (have if resumed else 0) if length else None
        if (total or 0) > _LARGEST:
            raise ValueError(f"the server offers {total:,} bytes, more than any of these files has")
        with part.open("ab" if resumed else "wb") as file:
            _copy(response, file, have if resumed else 0, total, url)


def _copy(response: Any, file: BinaryIO, have: int, total: int | None, url: str) -> None:
    with tqdm(
        desc=url.rsplit("/", 1)[1],
        initial=have,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
            if have > _LARGEST:
                raise ValueError("the server sends more bytes than any of these files has")
    if total is not None and have != total:
        raise ValueError(f"the connection broke after {have:,} of {total:,} bytes")


def _starts_at(content_range: str) -> int | None:
    match = re.match(r"bytes (\d{1,15})-", content_range)
    return int(match[1]) if match else None


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows no redirection from HTTPS to anything else."""

    def __init__(self, url: str) -> None:
        self._scheme = url.split(":", 1)[0]

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if self._scheme == "https" and not newurl.startswith("https://"):
            raise urllib.error.URLError(f"the server redirects to {newurl}, which is not HTTPS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(public: Public, path: Path) -> None:
    """Raises UserError, and removes the file, where it is not the publisher's."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, public.algorithm).hexdigest()
    if found.startswith(public.digest):
        return
    path.unlink()
    raise UserError(
        f"{public.file_name}: its {public.algorithm} begins with {found[: len(public.digest)]},"
        f" expected {public.digest} ({public.stated}); the file was removed: try again, or download"
        f" it from {public.url} yourself"
    )


@contextlib.contextmanager
def _no_disk(folder: Path) -> Iterator[None]:
    """A disk that is full or can't be written is no fault of the network's."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            with writing(folder):
                raise
        raise
