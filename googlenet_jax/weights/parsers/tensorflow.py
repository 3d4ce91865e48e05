"""TensorFlow's checkpoints, TF-slim's among them."""

import re

import numpy as np

from googlenet_jax.errors import one_line
from googlenet_jax.weights.parsers.limits import BadFile, Limits, Request, Tensors

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
    short = one_line(error, 160)
    return (
        f"not a whole TensorFlow checkpoint ({short}); give its prefix, with .index and .data "
        "files beside it"
    )
