"""PyTorch networks written for the tests from the papers' and the frameworks' facts, never from our JAX code: the independent reference.

Each is a function of its options that gives an `nn.Module` whose forward returns `{"logits", and in training "aux1", "aux2"}`; layers bear
torchvision's names, so that its state dicts load; `endpoints` records every named activation under our public endpoint names.
"""

from tests.reference.endpoints import endpoints
from tests.reference.networks import googlenet, googlenet_bn, googlenet_naive, googlenet_plain, googlenet_slim, googlenet_torchvision

NETWORKS = {
    "googlenet": googlenet,
    "googlenet_bn": googlenet_bn,
    "googlenet_naive": googlenet_naive,
    "googlenet_plain": googlenet_plain,
    "googlenet_slim": googlenet_slim,
    "googlenet_torchvision": googlenet_torchvision,
}

__all__ = ["NETWORKS", "endpoints"]
