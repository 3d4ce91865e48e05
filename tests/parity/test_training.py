"""Ten steps of the project's own train step beside PyTorch's SGD in float64: losses, gradients,
parameters, momenta, averages.
"""

from typing import Any

import pytest

from tests.parity.harness import DRIFT_FACTOR, TOLERANCE, drift, training_errors

# Each config variant that changes the arithmetic stands with one of the networks.
CONFIGS = {
    "googlenet": {"optimizer.bias_rate_multiplier": 2.0},
    "googlenet_bn": {"optimizer.nesterov": True, "loss.label_smoothing": 0.1},
    "googlenet_naive": {},
    "googlenet_plain": {},
    "googlenet_slim": {},
    "googlenet_torchvision": {"transform_input": True},
}
FURTHER = ("googlenet_bn", "googlenet_naive", "googlenet_plain", "googlenet_slim")


def further(*case: Any) -> Any:
    """A case of `pytest -m exhaustive` alone."""
    return pytest.param(*case, marks=pytest.mark.exhaustive)


def check(errors: dict[str, float]) -> None:
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.proof
@pytest.mark.parametrize("name", [further(name) if name in FURTHER else name for name in CONFIGS])
def test_ten_steps_equal_pytorchs(name: str) -> None:
    errors = training_errors(name, 64, width=0.25, **CONFIGS[name])
    kinds = {error.split()[0] for error in errors}
    assert kinds >= {
        "loss",
        "loss_main",
        "learning_rate",
        "gradient",
        "value",
        "momentum",
        "average",
    }
    assert ("loss_aux2" in kinds) == (name not in ("googlenet_plain", "googlenet_slim"))
    check(errors)


# 224: the gradient of the paper's 5×5/3 aux pool, which a 14×14 map alone takes; 97: odd maps, so
# that the ceil pools' edges count.
@pytest.mark.proof
@pytest.mark.parametrize(
    ("name", "size"),
    [("googlenet", 224), further("googlenet_torchvision", 97), further("googlenet_slim", 97)],
)
def test_gradients_of_other_sizes_equal_pytorchs(name: str, size: int) -> None:
    check(training_errors(name, size, batch_size=6, steps=1, width=0.125))


def test_steps_with_the_separable_stem_and_without_aux_heads_equal_pytorchs() -> None:
    options = {"stem": "separable", "aux_heads": False}
    check(training_errors("googlenet", 48, batch_size=4, steps=2, width=0.125, **options))


@pytest.mark.proof
def test_at_a_configs_rate_we_are_no_farther_from_pytorch_than_it_is_from_itself() -> None:
    """At 0.1, the rate of two configs, rounding is amplified with every step: the control says what
    that comes to.
    """
    settings = {
        "width": 0.125,
        "stem": "small",
        "schedule.learning_rate": 0.1,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 5e-4,
    }
    distances = drift("googlenet_bn", 16, batch_size=6, steps=4, **settings)
    assert len(distances) == 4
    for ours, control in distances:
        assert ours <= DRIFT_FACTOR * control
