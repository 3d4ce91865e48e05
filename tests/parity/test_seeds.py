"""The seed documents' networks, repaired, give our logits."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.verification.reference import NETWORKS
from tests.parity import seeds
from tests.parity.harness import TOLERANCE, images, randomise, relative_error


def our_logits(model: Any, state_dict: Any, batch: np.ndarray) -> jax.Array:
    variables = gj.weights.from_torch(model, state_dict)
    return jax.jit(functools.partial(model.apply, train=False))(variables, batch).logits


@pytest.mark.proof
@pytest.mark.parametrize(
    ("document", "name", "classes"),
    [
        ("seed_000", "googlenet_plain", 2),
        ("seed_001", "googlenet_plain", 2),
        ("seed_002", "googlenet_plain", 5),
        ("seed_003", "googlenet_bn", 10),
    ],
)
def test_a_seeds_network_gives_our_logits(document: str, name: str, classes: int) -> None:
    seed = getattr(seeds, document)(num_classes=classes).double().eval()
    reference = NETWORKS[name](num_classes=classes).double()
    randomise(reference, 3)
    values = reference.state_dict()
    # The two lay their parameters out in the same order; shapes are checked as they load.
    seed.load_state_dict(dict(zip(seed.state_dict(), values.values(), strict=True)))
    batch = images(224) / 64.0 - 1.5
    with torch.no_grad():
        theirs = seed(torch.from_numpy(batch).permute(0, 3, 1, 2))
    model = gj.create_model(name, num_classes=classes, dtype="float64", param_dtype="float64")
    ours = our_logits(model, values, batch)
    assert relative_error(ours, theirs.numpy()) <= TOLERANCE


@pytest.mark.proof
def test_a_seeds_other_stem_width_gives_our_logits() -> None:
    reference = NETWORKS["googlenet_plain"](base_dim=16).double()
    randomise(reference, 4)
    seed = seeds.seed_000(base_dim=16).double().eval()
    seed.load_state_dict(dict(zip(seed.state_dict(), reference.state_dict().values(), strict=True)))
    model = gj.create_model("googlenet_plain", base_dim=16, dtype="float64", param_dtype="float64")
    batch = images(224, 1) / 64.0 - 1.5
    with torch.no_grad():
        theirs = seed(torch.from_numpy(batch).permute(0, 3, 1, 2))
    ours = our_logits(model, reference.state_dict(), batch)
    assert relative_error(ours, theirs.numpy()) <= TOLERANCE
