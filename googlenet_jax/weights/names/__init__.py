"""What other frameworks call a network's layers, a table for each network and format.

A table maps a layer of ours ("inception_3a/conv_1x1") to the file's name for it.
`SCHEMES[kind][model]` is how files of that kind hold that
network; PyTorch's names stand with the networks themselves (`Network.torch_names`).
"""

from googlenet_jax.weights.names import googlenet, inception
from googlenet_jax.weights.names.scheme import Scheme

SCHEMES: dict[str, dict[str, Scheme]] = {
    "caffe": {"googlenet": googlenet.CAFFE},
    "tensorflow": {
        "googlenet_slim": googlenet.SLIM,
        "bn_inception": inception.SLIM_V2,
        "inception_v3": inception.SLIM_V3,
    },
    "keras": {"inception_v3": inception.KERAS_V3},
}
