"""A caffemodel as Caffe writes it, by protobuf, of more of caffe.proto than the reader knows:
types, bottoms, tops and gradients too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message → field → (number, type, repeated); numbers are caffe.proto's.
_PROTO: dict[str, dict[str, tuple[int, str, bool]]] = {
    "BlobShape": {"dim": (1, "int64", True)},
    "BlobProto": {
        "shape": (7, "BlobShape", False),
        "data": (5, "float", True),
        "diff": (6, "float", True),
        "double_data": (8, "double", True),
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
    },
    "LayerParameter": {
        "name": (1, "string", False),
        "type": (2, "string", False),
        "bottom": (3, "string", True),
        "top": (4, "string", True),
        "phase": (10, "int32", False),
        "blobs": (7, "BlobProto", True),
    },
    "V1LayerParameter": {
        "bottom": (2, "string", True),
        "top": (3, "string", True),
        "name": (4, "string", False),
        "type": (5, "int32", False),
        "blobs": (6, "BlobProto", True),
        "blobs_lr": (7, "float", True),
    },
    "NetParameter": {
        "name": (1, "string", False),
        "layers": (2, "V1LayerParameter", True),
        "input": (3, "string", True),
        "layer": (100, "LayerParameter", True),
    },
}


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _PROTO.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in _PROTO:
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
                field.options.packed = repeated and kind != "string"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


NetParameter = _message_class()


def caffemodel(layers: Mapping[str, list[np.ndarray]], old: bool) -> bytes:
    """The file of a network with these layers' blobs; `old` is the form of bvlc_googlenet:
    `layers`, and four axes for every blob.
    """
    net = NetParameter(name="GoogleNet")
    for name, blobs in layers.items():
        if old:
            layer = net.layers.add(name=name, type=4, bottom=["data"], top=[name], blobs_lr=[1, 2])
        else:
            layer = net.layer.add(name=name, type="Convolution", bottom=["data"], top=[name])
        for array in blobs:
            blob = layer.blobs.add()
            if old:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (
                    4 - array.ndim
                ) + array.shape
            else:
                blob.shape.dim.extend(array.shape)
            blob.data.extend(array.astype(np.float32).ravel().tolist())
    net.layers.add(name="pool", type=17) if old else net.layer.add(name="pool", type="Pooling")
    return net.SerializeToString()
