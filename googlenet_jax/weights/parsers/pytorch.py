"""PyTorch's `.pth` and `.pt`."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from googlenet_jax.weights.parsers.limits import MAX_STRUCTURE, BadFile, Limits, Request, Tensors

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
                f"{name!r} must be a plain dense tensor, found {tensor.dtype} of layout"
                f" {tensor.layout} on {tensor.device}"
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
                f"its member {member.filename!r} is compressed, which PyTorch never writes; save it"
                " again with torch.save"
            )
        if member.filename.startswith(("/", "\\")) or ".." in member.filename.split("/"):
            raise BadFile(
                f"its member {member.filename!r} points outside the archive; this is no file of"
                " PyTorch's"
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
        return (
            f"its pickle asks for {asked[1]}, which is not run: only tensors are read; save"
            " module.state_dict() with torch.save"
        )
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
        f"holds no state dict but a {type(loaded).__name__}; save module.state_dict() with"
        " torch.save"
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
