"""Every endpoint and all logits of every network beside the PyTorch references, in float64."""

import pytest

from googlenet_jax.verification.reference import NETWORKS
from tests.parity.harness import TOLERANCE, endpoint_errors


def check(name: str, size: int, **options) -> None:
    errors = endpoint_errors(name, size, **options)
    assert len(errors) > 40
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


# The even and odd maps of these sizes tell ceil, floor and SAME pooling apart; 224 alone has the
# 14×14 map of the paper's aux pool.
@pytest.mark.proof
@pytest.mark.parametrize(("name", "size"), [*((name, 97) for name in NETWORKS), ("googlenet", 224)])
def test_every_endpoint_equals_pytorchs(name: str, size: int) -> None:
    check(name, size, width=0.25)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [224, 225, 231])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_endpoint_of_further_sizes_equals_pytorchs(name: str, size: int) -> None:
    check(name, size, width=0.25)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("googlenet", 97, {"stem": "separable"}),
        ("googlenet", 97, {"aux_heads": False}),
        ("googlenet_torchvision", 33, {"transform_input": True, "stem": "small"}),
        ("googlenet_torchvision", 64, {"side": 2}),
        ("googlenet", 80, {"side": 2}),
        ("googlenet_plain", 64, {"base_dim": 48, "side": 2}),
        ("googlenet_bn", 32, {"stem": "small", "eps": 0.02}),
        ("googlenet_slim", 33, {"stem": "small"}),
    ],
)
def test_options_equal_pytorchs(name: str, size: int, options: dict) -> None:
    check(name, size, width=0.25, num_classes=7, **options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["googlenet", "googlenet_torchvision"])
def test_full_width_equals_pytorchs(name: str) -> None:
    check(name, 224)


@pytest.mark.proof
def test_a_wrong_epsilon_is_no_rounding(monkeypatch) -> None:
    """The comparison can fail: the reference's 0.001 beside our 0.0010001."""
    import googlenet_jax as gj

    create = gj.create_model
    monkeypatch.setattr(
        "tests.parity.harness.gj.create_model",
        lambda name, **options: create(name, bn_epsilon=0.0010001, **options),
    )
    errors = endpoint_errors("googlenet_torchvision", 64, width=0.125)
    assert max(errors.values()) > 100 * TOLERANCE
