"""float32 and bfloat16 beside the float64 reference, with tolerances that follow from the dtype and the depth."""

import jax.numpy as jnp
import pytest
import torch

import googlenet_jax as gj
from tests.parity.harness import images, make_pair, randomise, relative_error

# A path crosses at most 22 layers. Each rounds its input, its kernel, its sum and its norm, relatively by at most the unit roundoff and
# independently, and batch norm may raise the share of the error that an activation carries by its kernel's: 4 roundings · √22 layers,
# twice that for safety.
DEPTH = 22
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
TOLERANCE = {dtype: 2 * 4 * DEPTH**0.5 * roundoff for dtype, roundoff in ROUNDOFF.items()}


def error(dtype: str, **options) -> float:
    network, _, _ = make_pair("googlenet_torchvision", width=0.25)
    # Small variances, where epsilon counts.
    randomise(network, 5, variance=(0.02, 0.05))
    network.eval()
    batch = images(97) / 64.0 - 1.5
    with torch.no_grad():
        theirs = network(torch.from_numpy(batch).permute(0, 3, 1, 2))["logits"].numpy()
    model = gj.create_model("googlenet_torchvision", width=0.25, dtype=dtype, **options)
    variables = gj.weights.from_torch(model, {name: value.float() for name, value in network.state_dict().items()})
    return relative_error(model.apply(variables, jnp.asarray(batch, jnp.float32), train=False).logits, theirs)


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_logits_are_within_rounding_and_a_wrong_epsilon_is_not(dtype: str) -> None:
    assert error(dtype) < TOLERANCE[dtype]
    assert error(dtype, bn_epsilon=0.01) > 2 * TOLERANCE[dtype]
