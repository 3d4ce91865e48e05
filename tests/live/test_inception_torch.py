"""torchvision's, timm's and pytorch-fid's Inception-v3 and pretrainedmodels' BN-Inception beside
ours, in float64.
"""

import importlib
import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import googlenet_jax as gj
from googlenet_jax.verification import reference
from tests.parity.harness import randomise, relative_error

TOLERANCE = 1e-9
# torchvision's wheels hold compiled operators for a GPU build of PyTorch; beside a CPU build they
# do not load, and its package then fails as it describes them. No network here uses one: naming
# them is enough for the import.
OPERATORS = ("nms", "qnms")


def load(name: str) -> Any:
    """Imports a module, or skips the test."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        pytest.skip(f"needs {name.split('.')[0]}: pip install -e '.[test,live-inception]'")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # a build whose operators did not load
        for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        load.kept = library  # type: ignore[attr-defined]  # the definitions live as long as it does
    importlib.import_module(name)
    return sys.modules[
        name
    ]  # `pretrainedmodels` hides its module behind a function of the same name


def compare(theirs: nn.Module, name: str, size: int, taps: dict[str, str], **options: Any) -> None:
    """Holds the logits and the activations at `taps` (our endpoint → their module) to the
    tolerance, with random weights.
    """
    theirs = theirs.double().eval()
    randomise(theirs, 0)
    found: dict[str, torch.Tensor] = {}
    for ours, module in taps.items():
        theirs.get_submodule(module).register_forward_hook(
            lambda module, inputs, output, ours=ours: found.update({ours: output})
        )
    images = np.random.default_rng(0).normal(size=(1, size, size, 3))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    logits = logits[0] if isinstance(logits, tuple) else logits
    model = gj.create_model(
        name, num_classes=logits.shape[-1], dtype="float64", param_dtype="float64", **options
    )
    ours = gj.endpoints(model, gj.weights.from_torch(model, theirs.state_dict()), images)
    errors = {"head": relative_error(ours["head"], logits.numpy())}
    errors |= {
        tap: relative_error(ours[tap], value.permute(0, 2, 3, 1).numpy())
        for tap, value in found.items()
    }
    assert len(errors) == len(taps) + 1
    worst = max(errors, key=errors.__getitem__)
    print(
        f"{type(theirs).__module__}: {len(errors)} activations, at most {errors[worst]:.1e}"
        f" ({worst})"
    )
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


V3_MODULES = [
    f"{stage}{letter}"
    for stage, letters in (("5", "bcd"), ("6", "abcde"), ("7", "abc"))
    for letter in letters
]
V3_TAPS = {f"inception_{module}": f"Mixed_{module}" for module in V3_MODULES} | {
    "conv1a": "Conv2d_1a_3x3",
    "conv4a": "Conv2d_4a_3x3",
}


def test_torchvisions_inception_v3() -> None:
    models = load("torchvision.models")
    theirs = models.inception_v3(
        weights=None, init_weights=False, aux_logits=True, transform_input=True
    )
    compare(theirs, "inception_v3", 299, V3_TAPS, transform_input=True)


def test_timms_inception_v3() -> None:
    theirs = load("timm").create_model("inception_v3", pretrained=False, aux_logits=False)
    compare(theirs, "inception_v3", 139, V3_TAPS, aux_heads=False)


def test_pytorch_fids_network() -> None:
    fid = load("pytorch_fid.inception")
    net = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    # As `fid_inception_v3` patches it before it loads its weights.
    for letter, inputs, width in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        setattr(net, f"Mixed_5{letter}", fid.FIDInceptionA(inputs, pool_features=width))
    for letter, middle in zip("bcde", (128, 160, 160, 192), strict=True):
        setattr(net, f"Mixed_6{letter}", fid.FIDInceptionC(768, channels_7x7=middle))
    net.Mixed_7b, net.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    compare(net, "inception_v3", 299, V3_TAPS, flavour="fid")


def test_pretrainedmodels_bn_inception() -> None:
    theirs = load("pretrainedmodels.models.bninception").BNInception(num_classes=1000)
    names = {
        ours: name
        for name, ours in (
            reference.INCEPTIONS["bn_inception"](flavour="port").endpoint_names().items()
        )
    }
    taps = {
        ours: name.removesuffix("_relu") + "_bn"
        for ours, name in names.items()
        if name.endswith("_relu")
    }
    # Their rectifiers work in place, so that what the batch norm returned is what follows it.
    compare(theirs, "bn_inception", 224, taps, flavour="port")
