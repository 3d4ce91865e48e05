"""What kind of file holds the weights, by its content: names can be wrong."""

import json
import os
import re
from pathlib import Path

from googlenet_jax.errors import UserError, nearest

OURS = "googlenet_jax"
SOURCES = (OURS, "pytorch", "safetensors", "keras", "tensorflow", "caffe")
GOALS = (OURS, "pytorch", "safetensors", "keras")
# The endings that a file to be written can have, and what it then holds.
_ENDINGS = {".safetensors": OURS, ".pth": "pytorch", ".pt": "pytorch", ".weights.h5": "keras"}

_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEVELDB_FOOTER = bytes.fromhex("57fb808b247547db")
_TAIL = 1 << 16


def detect_kind(path: str | os.PathLike[str], asked: str | None = None) -> str:
    """Returns the kind of a weight file, one of SOURCES; nothing of it is unpacked.

    Args:
      asked: what the person said that it is; believed where the content says nothing.
    Raises:
      UserError: no such file, an empty one, one of no known kind or of another than asked for.
    """
    if asked is not None and asked not in SOURCES:
        raise UserError(
            f"--from: expected one of {', '.join(SOURCES)}, found"
            f" {asked!r}{nearest(asked, SOURCES)}"
        )
    found = _by_content(Path(path))
    if found and asked and found != asked:
        raise UserError(
            f"{path}: its content is of kind {found!r}, found --from {asked}; leave out --from"
        )
    if kind := found or asked:
        return kind
    raise UserError(
        f"{path}: no weight file that is known ({', '.join(SOURCES)}); "
        "if it is one of them, `googlenet-jax convert --from KIND` reads it"
    )


def goal_kind(path: str | os.PathLike[str], asked: str | None = None) -> str:
    """Returns what to write, one of GOALS: as asked, else by the file's ending. Raises UserError
    where neither says.
    """
    if asked is not None:
        if asked not in GOALS:
            raise UserError(
                f"--to: expected one of {', '.join(GOALS)}, found {asked!r}{nearest(asked, GOALS)}"
            )
        return asked
    for ending, kind in _ENDINGS.items():
        if str(path).lower().endswith(ending):
            return kind
    raise UserError(
        f"{path}: can't tell what to write; end the name in {', '.join(_ENDINGS)} or give --to"
    )


def _by_content(path: Path) -> str | None:
    if (
        re.search(r"\.(index|data-\d{5}-of-\d{5})$", path.name)
        or path.with_name(path.name + ".index").is_file()
    ):
        return "tensorflow"
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder, expected a weight file; of a TensorFlow checkpoint, give the"
            " prefix of its .index file"
        )
    if path.exists() and not path.is_file():  # a pipe or device, which could be without end
        raise UserError(f"{path}: is no regular file, expected a weight file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(512)
            file.seek(max(size - _TAIL, 0))
            tail = file.read(_TAIL)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None
    if not size:
        raise UserError(f"{path}: is empty; the download or copy may have failed")
    return _by_bytes(path, head, tail, size)


def _by_bytes(path: Path, head: bytes, tail: bytes, size: int) -> str | None:
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not weights; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: a pointer of Git LFS, not the weights; fetch the file with git lfs pull"
        )
    if head.startswith(b"PK\x03\x04"):
        return "keras" if b"model.weights.h5" in tail else "pytorch"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if head.startswith(_LEGACY_TORCH):
        return "pytorch"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(
            f"{path}: a Python pickle, which could run code and is not opened; save"
            " module.state_dict() with torch.save"
        )
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _safetensors_kind(path, int.from_bytes(head[:8], "little"))
    if tail.endswith(_LEVELDB_FOOTER):
        return "tensorflow"
    return "caffe" if path.suffix == ".caffemodel" else None


def _safetensors_kind(path: Path, length: int) -> str:
    """Ours has a metadata entry of its own name; a header that is no JSON is left to the reader to
    complain of.
    """
    if length > 100 << 20:  # the format's own limit
        return "safetensors"
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(length)
    if f'"{OURS}"'.encode() not in header:
        return "safetensors"
    try:
        return OURS if OURS in json.loads(header).get("__metadata__", {}) else "safetensors"
    except (ValueError, RecursionError, AttributeError, TypeError):
        return "safetensors"
