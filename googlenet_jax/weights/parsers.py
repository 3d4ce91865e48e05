"""Readers of other frameworks' weight files: each gives the tensors one by one, under the names of
the file.

This file runs in a child process (`isolation.py`), which imports nothing of JAX. A reader allocates
nothing that it has not checked against
`Limits` before; what it finds wrong is a `BadFile`, in words for a person. Torch, h5py and
TensorFlow are imported by the reader that needs them.
"""

import dataclasses
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensors = Iterator[tuple[str, np.ndarray]]

MAX_TENSORS = 20_000
# A state dict's pickle, a `.keras` archive's list of members: a few hundred kB for the largest of
# these networks.
MAX_STRUCTURE = 16 << 20
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


class BadFile(Exception):
    """What is wrong with a file, as the end of a sentence that began with its path."""


@dataclasses.dataclass
class Limits:
    """What a file may still unpack to: `bytes` over all tensors together."""

    bytes: int
    tensors: int = MAX_TENSORS

    def take(self, name: str, shape: tuple[int, ...], itemsize: int) -> None:
        """Books a tensor before it is allocated; raises BadFile where it exceeds what a model of
        that size can hold.
        """
        size = itemsize
        for length in shape:
            size *= int(length)
        self.tensors -= 1
        self.bytes -= size
        if min(self.bytes, self.tensors) < 0:
            raise BadFile(
                f"{name!r} of shape {list(shape)[:8]} makes the file hold more than such a network can; is it of this model?"
            )


@dataclasses.dataclass(frozen=True)
class Request:
    """What the child process is asked to read: `kind` is a name of PARSERS; `ema` prefers the
    averaged weights where the file has both.
    """

    path: str
    kind: str
    limit: int
    ema: bool = False


# ------------------------------------------------------------------------------------------ PyTorch

_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_NESTED_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")


def pytorch(request: Request, limits: Limits) -> Tensors:
    """A `.pth` or `.pt`: a state dict, or a checkpoint that holds one. Only `weights_only=True`
    unpickles it: no code is run.
    """
    import torch

    torch.set_num_threads(1)
    path = Path(request.path)
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_torch_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive or None)
    except (MemoryError, BadFile):
        raise
    except Exception as error:  # whatever a hostile pickle makes PyTorch raise
        raise BadFile(_torch_reason(str(error) or type(error).__name__)) from None
    for name, tensor in _unwrapped(_state_dict(loaded, request.ema)).items():
        if (
            tensor.device.type != "cpu"
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_complex()
        ):
            raise BadFile(
                f"{name!r} must be a plain dense tensor, found {tensor.dtype} of layout {tensor.layout} on {tensor.device}"
            )
        limits.take(name, tuple(tensor.shape), tensor.element_size())
        dense = tensor.detach().contiguous()
        if dense.dtype == torch.bfloat16:
            yield name, _bfloat16(dense.view(torch.uint16).numpy())
        else:
            yield name, dense.numpy()


def _check_torch_archive(path: Path) -> None:
    """PyTorch stores its tensors uncompressed: an archive that unpacks to more than it is was not
    written by PyTorch.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        UnicodeDecodeError,
    ) as error:
        raise BadFile(f"not a whole PyTorch file ({error}); it may be cut short") from None
    names = [member.filename for member in members]
    if any(name.endswith(("constants.pkl", "model.json")) for name in names):
        raise BadFile(
            "a TorchScript archive, which holds code; save module.state_dict() with torch.save"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise BadFile("a zip archive without data.pkl: not a PyTorch file")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise BadFile(
                f"its member {member.filename!r} is compressed, which PyTorch never writes; save it again with torch.save"
            )
        if member.filename.startswith(("/", "\\")) or ".." in member.filename.split("/"):
            raise BadFile(
                f"its member {member.filename!r} points outside the archive; this is no file of PyTorch's"
            )
        if member.filename.endswith(".pkl") and member.file_size > MAX_STRUCTURE:
            raise BadFile(
                f"its pickle is {member.file_size:,} bytes long, expected at most {MAX_STRUCTURE:,}"
            )
    if len(set(names)) != len(names):
        raise BadFile("the archive has two members of one name; this is no file of PyTorch's")


def _torch_reason(text: str) -> str:
    asked = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function) ([\w.]+)", text)
    if asked and "Weights only" in text:
        return f"its pickle asks for {asked[1]}, which is not run: only tensors are read; save module.state_dict() with torch.save"
    reason = re.split(r"WeightsUnpickler error:|\n", text)
    short = " ".join((reason[1] if len(reason) > 1 else text).split())[:160]
    return f"not a whole PyTorch file ({short}); it may be cut short, or of another kind"


def _state_dict(loaded: Any, ema: bool) -> dict[str, Any]:
    import torch

    def tensors(value: Any) -> dict[str, Any]:
        return (
            {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
            if isinstance(value, Mapping)
            else {}
        )

    if isinstance(loaded, Mapping):
        for key in (*(_NESTED_EMA if ema else ()), *_NESTED, *_NESTED_EMA):
            if found := tensors(loaded.get(key)):
                return found
        if found := tensors(loaded):
            return found
    raise BadFile(
        f"holds no state dict but a {type(loaded).__name__}; save module.state_dict() with torch.save"
    )


def _unwrapped(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Without the prefixes that DataParallel, torch.compile and trainers put before every name."""
    while prefix := next(
        (wrapper for wrapper in _WRAPPERS if all(name.startswith(wrapper) for name in state_dict)),
        None,
    ):
        state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    return state_dict


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)


# -------------------------------------------------------------------------------------- safetensors


def safetensors(request: Request, limits: Limits) -> Tensors:
    """Any safetensors file; the library checks the header against the file's length."""
    import ml_dtypes
    import safetensors as library

    dtypes = {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
    }
    try:
        with library.safe_open(request.path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                view = file.get_slice(name)
                if view.get_dtype() not in dtypes:
                    raise BadFile(
                        f"{name!r} has dtype {view.get_dtype()}, expected one of {', '.join(dtypes)}"
                    )
                shape, dtype = tuple(view.get_shape()), np.dtype(dtypes[view.get_dtype()])
                limits.take(name, shape, dtype.itemsize)
                yield name, np.asarray(file.get_tensor(name)).reshape(shape)
    except (OSError, library.SafetensorError, ValueError, TypeError) as error:
        raise BadFile(
            f"not a whole safetensors file ({' '.join(str(error).split())[:160]}); it may be cut short, or of another kind"
        ) from None


# -------------------------------------------------------------------------------------------- Keras


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
                    f"a zip archive with {archive.namelist().count(name)} members {name!r}, expected one: not a .keras file"
                )
            info = archive.getinfo(name)
            # HDF5's own structure comes on top of the tensors.
            most = min(limits.bytes + MAX_STRUCTURE, info.file_size)
            if info.file_size > limits.bytes + MAX_STRUCTURE or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise BadFile(
                    f"its member {name!r} unpacks to {info.file_size:,} bytes, more than such a network can hold"
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
                        f"{name!r} has chunks of shape {list(dataset.chunks)}, more than the model can hold"
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
            f"not a whole HDF5 file ({' '.join(str(error).split())[:160]}); it may be cut short or damaged"
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


# --------------------------------------------------------------------------------------- TensorFlow

EMA_SUFFIX = "/ExponentialMovingAverage"
_SLOTS = ("/Momentum", "/RMSProp", "/RMSProp_1", "/Adam", "/Adam_1", "/Adagrad", "/Ftrl")


def tensorflow(request: Request, limits: Limits) -> Tensors:
    """A TensorFlow checkpoint of variables by name, of either version; optimizer slots and the step
    are passed over.

    Where the file has a moving average beside a variable, `ema` says which of the two is given,
    under the variable's name.
    """
    import tensorflow as tf

    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", request.path)
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except Exception as error:  # tf.errors, and what its C++ raises as ValueError or RuntimeError
        raise BadFile(_tensorflow_reason(error)) from None
    for name in sorted(shapes):
        if name.endswith((*_SLOTS, EMA_SUFFIX)) or not dtypes[name].is_floating:
            continue
        source = name + EMA_SUFFIX if request.ema and name + EMA_SUFFIX in shapes else name
        limits.take(name, tuple(shapes[source]), dtypes[source].size)
        try:
            yield name, np.asarray(reader.get_tensor(source))
        except MemoryError:
            raise
        except Exception as error:
            raise BadFile(f"{source!r}: {_tensorflow_reason(error)}") from None


def _tensorflow_reason(error: Exception) -> str:
    short = " ".join(str(error).split())[:160]
    return (
        f"not a whole TensorFlow checkpoint ({short}); give its prefix, with .index and .data "
        "files beside it"
    )


# -------------------------------------------------------------------------------------------- Caffe


def caffe(request: Request, limits: Limits) -> Tensors:
    """A `.caffemodel`, of `layer` or of the older `layers` messages; names are "LAYER/blob
    number".
    """
    from google.protobuf.message import DecodeError

    net = caffe_message()()
    try:
        net.ParseFromString(Path(request.path).read_bytes())
    except DecodeError as error:
        raise BadFile(
            f"not a whole caffemodel ({error}); it may be cut short, or of another kind"
        ) from None
    found = False
    for layer in (*net.layer, *net.layers):
        for index, blob in enumerate(layer.blobs):
            found = True
            yield f"{layer.name}/{index}", _blob(f"{layer.name}/{index}", blob, limits)
    if not found:
        raise BadFile("a caffemodel without weights, or a file of another kind")


def _blob(name: str, blob: Any, limits: Limits) -> np.ndarray:
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    values, dtype = (
        (blob.double_data, np.float64) if len(blob.double_data) else (blob.data, np.float32)
    )
    if any(length < 0 for length in shape):
        raise BadFile(f"{name!r} has the impossible shape {list(shape)[:8]}")
    limits.take(name, shape, np.dtype(dtype).itemsize)
    count = 1
    for length in shape:
        count *= length
    if count != len(values):
        raise BadFile(
            f"{name!r} of shape {list(shape)[:8]} must hold {count:,} values, found {len(values):,}; the file may be damaged"
        )
    return np.fromiter(values, dtype, count).reshape(shape)


# The few messages of caffe.proto that hold weights: message → field → (number, type, repeated).
_CAFFE_SCHEMA = {
    "BlobShape": {"dim": (1, "int64", True)},
    "BlobProto": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "float", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "double", True),
    },
    "LayerParameter": {"name": (1, "string", False), "blobs": (7, "BlobProto", True)},
    "V1LayerParameter": {"name": (4, "string", False), "blobs": (6, "BlobProto", True)},
    "NetParameter": {
        "name": (1, "string", False),
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}


def caffe_message() -> Any:
    """The class of Caffe's NetParameter, of the schema above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="googlenet_jax_caffe.proto", package="googlenet_jax_caffe", syntax="proto2"
    )
    for message, fields in _CAFFE_SCHEMA.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            entry = described.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in _CAFFE_SCHEMA:
                entry.type, entry.type_name = entry.TYPE_MESSAGE, f".googlenet_jax_caffe.{kind}"
            else:
                entry.type = getattr(entry, f"TYPE_{kind.upper()}")
                entry.options.packed = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("googlenet_jax_caffe.NetParameter")
    )


PARSERS: dict[str, Callable[[Request, Limits], Tensors]] = {
    "pytorch": pytorch,
    "safetensors": safetensors,
    "keras": keras,
    "tensorflow": tensorflow,
    "caffe": caffe,
}
# Package → what a person installs to read that kind.
NEEDS = {
    "pytorch": "torch",
    "keras": "h5py",
    "tensorflow": "tensorflow",
    "caffe": "google.protobuf",
    "safetensors": "safetensors",
}
