"""Keras's `.weights.h5`, `.h5` and `.keras`."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.errors import one_line
from googlenet_jax.weights.parsers.limits import (
    MAX_STRUCTURE,
    MAX_TENSORS,
    BadFile,
    Limits,
    Request,
    Tensors,
)

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def keras(request: Request, limits: Limits) -> Tensors:
    """Keras's `.weights.h5`, `.h5` and `.keras`; names are the paths of the HDF5 data sets. The
    optimizer's are passed over.
    """
    with Path(request.path).open("rb") as file:
        archive = file.read(2) == b"PK"
    if archive:
        yield from _hdf5(_member(request.path, "model.weights.h5", limits), limits)
    else:
        yield from _hdf5(request.path, limits)


def _member(path: str, name: str, limits: Limits) -> io.BytesIO:
    """One member of a zip archive, in memory. Its size is read from the bytes: what the archive
    states may be untrue.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist().count(name) != 1:
                raise BadFile(
                    f"a zip archive with {archive.namelist().count(name)} members {name!r},"
                    " expected one: not a .keras file"
                )
            info = archive.getinfo(name)
            # HDF5's own structure comes on top of the tensors.
            most = min(limits.bytes + MAX_STRUCTURE, info.file_size)
            if info.file_size > limits.bytes + MAX_STRUCTURE or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise BadFile(
                    f"its member {name!r} unpacks to {info.file_size:,} bytes, more than such a"
                    " network can hold"
                )
            with archive.open(info) as member:
                data = member.read(most + 1)
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeDecodeError,
    ) as error:
        raise BadFile(f"not a whole .keras file ({error}); it may be cut short") from None
    except zipfile.zlib.error as error:  # type: ignore[attr-defined]
        raise BadFile(f"not a whole .keras file ({error}); it may be damaged") from None
    if not data.startswith(_HDF5_MAGIC):
        raise BadFile(f"its member {name!r} is not an HDF5 file")
    return io.BytesIO(data)


def _hdf5(file: str | io.BytesIO, limits: Limits) -> Tensors:
    import h5py

    try:
        with h5py.File(file, "r") as root:
            for name, dataset in _datasets(root):
                if dataset.dtype.kind not in "fiu" or dataset.shape is None:
                    raise BadFile(f"{name!r} must hold numbers, found {dataset.dtype}")
                if dataset.is_virtual or dataset.external:
                    raise BadFile(
                        f"{name!r} keeps its values in another file, which is not followed"
                    )
                limits.take(name, dataset.shape, dataset.dtype.itemsize)
                if (
                    dataset.chunks
                    and int(np.prod([float(n) for n in dataset.chunks])) * dataset.dtype.itemsize
                    > limits.bytes + MAX_STRUCTURE
                ):
                    raise BadFile(
                        f"{name!r} has chunks of shape {list(dataset.chunks)}, more than the model"
                        " can hold"
                    )
                array = dataset[()]
                yield name, np.asarray(array, array.dtype.newbyteorder("="))
    except MemoryError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        UnicodeError,
    ) as error:
        raise BadFile(
            f"not a whole HDF5 file ({one_line(error, 160)}); it may be cut short or damaged"
        ) from None


def _datasets(root: Any) -> Iterator[tuple[str, Any]]:
    """Every data set by path, without recursion; links to elsewhere are refused, and a group is
    entered once.
    """
    import h5py

    seen, waiting = set(), [("", root)]
    while waiting:
        path, group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue
        seen.add(address)
        if len(seen) + len(group) > MAX_TENSORS:
            raise BadFile(f"it has more than {MAX_TENSORS:,} groups")
        for key in group:
            name = f"{path}/{key}".lstrip("/")
            if name.split("/")[0] in ("optimizer", "optimizer_weights"):
                continue
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise BadFile(f"{name!r} is a link to elsewhere, which is not followed")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                yield name, item
            elif isinstance(item, h5py.Group):
                waiting.append((name, item))
