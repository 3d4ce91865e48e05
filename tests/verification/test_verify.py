"""Planted faults are found, named and tested; what is no known fault stays unexplained."""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import googlenet_jax as gj
from googlenet_jax.errors import UserError
from googlenet_jax.verification.explain import biased_variance
from googlenet_jax.verification.ours import draw_variables
from googlenet_jax.verification.verify import Verification, reference_of, verify
from tests.verification.other_style import Net
from tests.verification.small import CLASSES, BiasedNorm, Twin

pytestmark = pytest.mark.usefixtures("small_network")


def set_to(path: str, value: Any) -> Callable[[Twin], None]:
    """Sets an attribute of the twin: "conv2.transposed"."""

    def plant(twin: Twin) -> None:
        *owner, name = path.split(".")
        setattr(twin.get_submodule(".".join(owner)), name, value)

    return plant


def norms(change: Callable[[nn.BatchNorm2d], None]) -> Callable[[Twin], None]:
    def plant(twin: Twin) -> None:
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)

    return plant


def biased(twin: Twin) -> None:
    for module in list(twin.modules()):
        if hasattr(module, "bn"):
            module.bn = BiasedNorm(module.bn.num_features, eps=1e-3)


# Name, where it is, how it is planted, steps of training.
FAULTS: dict[str, tuple[str, Callable[[Twin], None], int]] = {
    "transposed kernel": ("conv2", set_to("conv2.transposed", True), 0),
    "padding side": ("mixed/conv_double_3x3_1", set_to("mixed.b3b.before", True), 0),
    "pooling that counts padding": ("mixed", set_to("mixed.counts", True), 0),
    "ceil against floor": ("pool1", set_to("ceil", False), 0),
    "channel order": ("images", set_to("reversed", True), 0),
    "BN epsilon": ("", norms(lambda norm: setattr(norm, "eps", 1e-5)), 0),
    "biased running variance": ("", biased, 1),
    "swapped aux heads": ("aux1, aux2", set_to("swapped", True), 0),
    "missing ReLU": ("mixed/conv_1x1", set_to("mixed.b1.bare", True), 0),
}
PAIRS = [
    ("channel order", "missing ReLU"),
    ("ceil against floor", "transposed kernel"),
    ("BN epsilon", "pooling that counts padding"),
    ("padding side", "swapped aux heads"),
]
OUTSIDE: dict[str, tuple[str, Callable[[Twin], None], int]] = {
    "leaky ReLU": ("conv2", set_to("conv2.leaky", True), 0),
    "a factor between layers": ("pool1", set_to("scale", 1.01), 0),
    "BN momentum": (
        "statistic aux1/conv/bn/mean",
        norms(lambda norm: setattr(norm, "momentum", 0.01)),
        1,
    ),
}


def run(*plants: Callable[[Twin], None], steps: int = 0, **options: Any) -> Verification:
    torch.manual_seed(0)
    twin = Twin()
    for plant in plants:
        plant(twin)
    return verify(gj.create_model("small", num_classes=CLASSES), twin, steps=steps, **options)


@functools.cache
def planted(name: str) -> Verification:
    """One of FAULTS, found once for all tests."""
    _, plant, steps = FAULTS[name]
    return run(plant, steps=steps)


@pytest.fixture(scope="module")
def clean(small_network: None) -> Verification:
    """No fault, two steps."""
    return run(steps=2)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_and_applying_it_brings_the_two_together(name: str):
    found = planted(name)
    assert found.verdict == "different"
    assert [(fault.name, fault.layer) for fault in found.faults] == [(name, FAULTS[name][0])]
    assert found.unexplained is None


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_two_planted_faults_are_found_one_after_the_other(names: tuple[str, str]):
    found = run(*(FAULTS[name][1] for name in names))
    assert [fault.name for fault in found.faults] == list(names)
    assert [fault.layer for fault in found.faults] == [FAULTS[name][0] for name in names]
    assert found.unexplained is None


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_no_known_fault_is_unexplained(name: str):
    layer, plant, steps = OUTSIDE[name]
    found = run(plant, steps=steps)
    assert found.verdict == "different"
    assert found.faults == []
    assert found.unexplained is not None
    assert found.unexplained.layer == found.first.layer == layer
    assert "unexplained from " + layer in found.sentence()


def test_a_known_fault_before_an_unknown_one_is_named_and_the_rest_is_not_guessed():
    found = run(FAULTS["ceil against floor"][1], OUTSIDE["leaky ReLU"][1])
    assert [fault.name for fault in found.faults] == ["ceil against floor"]
    assert found.unexplained.layer == "conv2"


def test_without_a_fault_the_two_are_equal_to_rounding_and_so_is_their_training(
    clean: Verification,
):
    found = clean
    assert found.verdict == "equal to rounding"
    assert found.first is None and not found.faults
    kinds = {row.layer.split()[0] for row in found.training}
    assert kinds == {"loss", "gradient", "parameter", "momentum", "statistic"}
    losses = [row for row in found.training if row.layer.startswith("loss")]
    assert len(losses) == 2
    assert len(found.match.pairs) == 16 and set(found.match.how.values()) == {"name"}


def test_another_dtype_has_bounds_of_its_own(clean: Verification):
    found = run(dtype="bfloat16")
    assert found.verdict == "equal to rounding"
    assert found.bound > 1e4 * clean.bound


def test_the_module_s_own_weights_are_taken_where_ours_are_not_given():
    found = run(keep_weights=True)
    assert found.verdict == "equal to rounding"


def test_own_weights_on_both_sides_that_differ_are_seen():
    model = gj.create_model("small", num_classes=CLASSES)
    variables = draw_variables(model, 14, "float64")
    found = verify(model, Twin(), variables, steps=0, keep_weights=True)
    assert found.first.layer == "conv1" and found.unexplained.layer == "conv1"


def test_a_transposed_kernel_in_own_weights_is_named():
    torch.manual_seed(0)
    twin = Twin()
    model = gj.create_model("small", num_classes=CLASSES)
    variables = draw_variables(model, 14, "float64")
    verify(model, twin, variables, steps=0)  # leaves the weights in the twin
    with torch.no_grad():
        twin.conv2.conv.weight.copy_(twin.conv2.conv.weight.transpose(2, 3).clone())
    found = verify(model, twin, variables, steps=0, keep_weights=True)
    assert [(fault.name, fault.layer) for fault in found.faults] == [("transposed kernel", "conv2")]


def test_bounds_grow_with_depth_and_are_far_below_what_a_fault_makes(clean: Verification):
    rows = clean.rows
    bounds = [row.bound for row in rows]
    assert bounds == sorted(bounds) and bounds[-1] < 1e-12
    assert max(row.relative for row in rows) < bounds[0]


def test_a_module_with_nothing_in_common_is_an_error_in_words():
    with pytest.raises(UserError, match="none of the module's 1 convolutions"):
        module = nn.Sequential(nn.Conv2d(3, 77, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        verify(gj.create_model("small", num_classes=CLASSES), module, steps=0)


def test_what_could_not_be_matched_is_listed():
    class Shorter(Twin):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Conv2d(8, 77, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv2(nn.functional.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True))
            self.extra(x)
            return self.fc(self.mixed(x).mean((2, 3)))

    found = verify(gj.create_model("small", num_classes=CLASSES), Shorter(), steps=1)
    assert found.verdict == "equal to rounding"
    assert found.match.theirs == ["extra.weight"]
    assert found.match.ours == [f"aux{i}/{part}" for i in (1, 2) for part in ("conv", "fc", "head")]
    assert "10 of our 16 layers" in found.covers() and "our output aux1" in found.covers()


@pytest.mark.parametrize("name", gj.list_models())
def test_every_network_has_a_reference_with_its_options(name: str):
    model = gj.create_model(name, num_classes=7, width=0.125)
    shapes = [value.shape for value in reference_of(model).state_dict().values()]
    assert (7,) in shapes  # a classifier's bias


NETWORKS = [
    pytest.param(name, marks=[] if name == "googlenet_plain" else pytest.mark.exhaustive)
    for name in gj.list_models()
]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_equal_to_its_reference_in_float64(name: str):
    model = gj.create_model(name, num_classes=7, width=0.125)
    found = verify(model, reference_of(model), size=max(model.min_size, 32), steps=0)
    assert found.verdict == "equal to rounding", found.sentence()
    assert not found.match.ours and not found.match.theirs
    assert max(row.relative for row in found.rows) < 1e-12


@pytest.mark.exhaustive
def test_running_variances_biased_in_some_layers_are_named_one_by_one():
    def plant(twin: Twin) -> None:
        for unit in (twin.conv1, twin.mixed.b4):
            unit.bn = BiasedNorm(unit.bn.num_features, eps=1e-3)

    found = run(plant, steps=1)
    layers = [("biased running variance", layer) for layer in ("conv1", "mixed/pool_proj")]
    assert sorted((fault.name, fault.layer) for fault in found.faults) == layers
    assert found.unexplained is None


def test_running_variances_are_tried_in_every_layer_then_in_those_that_differ():
    tried = [[fault.layer for fault in each] for each in biased_variance(["conv1", "conv2"], True)]
    assert tried == [[""], ["conv1", "conv2"]]
    assert [[fault.layer for fault in each] for each in biased_variance(["conv1"], True)] == [
        ["conv1"]
    ]


def test_numbers_are_json():
    found = planted("ceil against floor").to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["first"] == "pool1"
    assert found["explanations"][0] == {
        "fault": "ceil against floor",
        "layer": "pool1",
        "detail": "0 before, 0 after in place of 0, 1",
        "tested": True,
    }
    assert np.isfinite([row["bound"] for row in found["layers"]]).all()


@pytest.mark.proof
def test_a_googlenet_in_another_style_is_matched_without_help():
    torch.manual_seed(0)
    model = gj.create_model("googlenet_bn", num_classes=7, width=0.125)
    found = verify(model, Net(), size=32, steps=0)
    assert found.verdict == "equal to rounding", found.sentence()
    assert not found.match.ours and not found.match.theirs
    assert found.not_compared == ["training"]
    assert len(found.match.pairs) == 64
    assert set(found.match.how.values()) == {"shape", "position", "numbers"}
    # Written and run in another order than ours, and of one shape with its neighbour.
    assert found.match.pairs["inception_3b/conv_1x1"] == "parts.3.paths.3.0.0.weight"
    assert found.match.pairs["inception_3b/conv_3x3_reduce"] == "parts.3.paths.2.0.0.weight"
