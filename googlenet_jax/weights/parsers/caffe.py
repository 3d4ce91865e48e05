"""Caffe's `.caffemodel`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.weights.parsers.limits import BadFile, Limits, Request, Tensors


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
    count = math.prod(shape)
    if count != len(values):
        raise BadFile(
            f"{name!r} of shape {list(shape)[:8]} must hold {count:,} values, found"
            f" {len(values):,}; the file may be damaged"
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
