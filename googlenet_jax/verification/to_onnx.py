"""A network as ONNX: its PyTorch reference with its weights, written by `torch.onnx`.

jax2onnx writes our networks directly, but 0.17 wants an older Orbax than this project has.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from googlenet_jax.data.image_kind import kind_of
from googlenet_jax.data.preprocessing import Preprocessing
from googlenet_jax.errors import UserError
from googlenet_jax.models.network import Network
from googlenet_jax.verification.verify import reference_of
from googlenet_jax.weights.export import largest_difference
from googlenet_jax.weights.pytorch import to_torch, with_scales

OPSET = 18


class _Images(nn.Module):
    """The network on images `[b, S, S, C]`, uint8 RGB mostly, as StableHLO's takes them."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.bgr = preprocessing.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(preprocessing.mean))
        self.register_buffer("std", torch.tensor(preprocessing.std))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if self.bgr:
            x = x.flip(3)
        x = (x - self.mean) / self.std
        return self.network(x.permute(0, 3, 1, 2))["logits"]


def write_onnx(
    path: Path, model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> None:
    """Writes a file that takes "images", `[b, S, S, C]`, uint8 RGB mostly, any b, and gives "logits",
    float32 `[b, num_classes]`; mean, standard deviation and channel order are inside.

    Raises:
      UserError: without the packages, or a network or option that has no PyTorch reference.
    """
    check_packages()
    try:
        network = reference_of(model)
    except UserError as error:
        reason = str(error).removeprefix("--against torch: ")
        raise UserError(f"--format onnx goes through PyTorch, and {reason}") from None
    network.load_state_dict(_tensors(network, model, to_torch(model, variables)))
    size, (channels, dtype) = preprocessing.size, kind_of(model, preprocessing)
    # Two: of one image the batch would be taken for a constant.
    images = torch.zeros((2, size, size, channels), dtype=getattr(torch, dtype))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names what isn't installed
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Images(network, preprocessing).eval(),
            (images,),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("b")}},
            external_data=False,
            verbose=False,
        )


def _tensors(
    network: nn.Module, model: Network, arrays: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """The state dict in the reference's types; of scales of one that ours has not, those that it
    has.
    """
    known = network.state_dict()
    return {
        name: torch.from_numpy(np.array(each, np.float32)).to(known[name].dtype)
        for name, each in with_scales(model, arrays).items()
        if name in arrays or name in known
    }


def check_packages() -> None:
    """Raises UserError where a package of the extra `onnx` is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}; pip install 'googlenet-jax[onnx]'"
        ) from None
    assert onnx and onnxruntime and onnxscript


def check_onnx(
    path: Path, model: Network, variables: Mapping[str, Any], preprocessing: Preprocessing
) -> float:
    """`largest_difference` of the file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: session.run(["logits"], {"images": b})[0] for name, b in batches.items()}

    return largest_difference(run, model, variables, preprocessing)
