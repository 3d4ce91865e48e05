"""Readers of other frameworks' weight files, one a format: each gives the tensors one by one, under
the names of the file.

They run in a child process (`isolation.py`), which imports nothing of JAX. A reader allocates
nothing that it has not checked against `Limits` before; what it finds wrong is a `BadFile`, in
words for a person. Torch, h5py and TensorFlow are imported by the reader that needs them.
"""

from collections.abc import Callable

from googlenet_jax.weights.parsers.caffe import caffe
from googlenet_jax.weights.parsers.keras import keras
from googlenet_jax.weights.parsers.limits import Limits, Request, Tensors
from googlenet_jax.weights.parsers.pytorch import pytorch
from googlenet_jax.weights.parsers.safetensors import safetensors
from googlenet_jax.weights.parsers.tensorflow import tensorflow

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
