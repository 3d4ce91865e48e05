"""Any safetensors file."""

import numpy as np

from googlenet_jax.errors import one_line
from googlenet_jax.weights.parsers.limits import BadFile, Limits, Request, Tensors


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
                        f"{name!r} has dtype {view.get_dtype()}, expected one of"
                        f" {', '.join(dtypes)}"
                    )
                shape, dtype = tuple(view.get_shape()), np.dtype(dtypes[view.get_dtype()])
                limits.take(name, shape, dtype.itemsize)
                yield name, np.asarray(file.get_tensor(name)).reshape(shape)
    except (OSError, library.SafetensorError, ValueError, TypeError) as error:
        raise BadFile(
            f"not a whole safetensors file ({one_line(error, 160)}); it may be cut short, or of"
            " another kind"
        ) from None
