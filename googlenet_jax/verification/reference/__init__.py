"""PyTorch networks written from the papers' and the frameworks' facts, never from our JAX code: the
independent reference.

Each is a class whose forward returns `{"logits", and in training "aux1", "aux2"}`; layers bear
torchvision's names, so that its state dicts load; `endpoints` records every named activation under
our public endpoint names.
"""

from googlenet_jax.verification.reference.bn_inception import BNInception
from googlenet_jax.verification.reference.endpoints import endpoints
from googlenet_jax.verification.reference.inception_small import InceptionSmall
from googlenet_jax.verification.reference.inception_v3 import InceptionV2, InceptionV3
from googlenet_jax.verification.reference.networks import (
    Googlenet,
    GooglenetBN,
    GooglenetNaive,
    GooglenetPlain,
    GooglenetSlim,
    GooglenetTorchvision,
)

NETWORKS = {
    "googlenet": Googlenet,
    "googlenet_bn": GooglenetBN,
    "googlenet_naive": GooglenetNaive,
    "googlenet_plain": GooglenetPlain,
    "googlenet_slim": GooglenetSlim,
    "googlenet_torchvision": GooglenetTorchvision,
}
# Their smallest sizes and flavours differ too much to be looped over with those above.
INCEPTIONS = {
    "bn_inception": BNInception,
    "inception_small": InceptionSmall,
    "inception_v2": InceptionV2,
    "inception_v3": InceptionV3,
}

__all__ = ["INCEPTIONS", "NETWORKS", "endpoints"]
